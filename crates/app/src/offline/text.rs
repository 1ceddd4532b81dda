//! Diagnostics for people.

use super::{
    input::{Input, line_of},
    tint::Tint,
};
use selvedge_model::{Diagnostic, Kind, Location, Severity};
use std::fmt::Write;

/// Columns of a source line that are shown around its place.
const WIDTH: usize = 100;

/// Diagnostics of which the source line is shown; the rest is shown without.
const MAX_SNIPPETS: usize = 50;

/// One diagnostic after the other, and how many there are. On a terminal the lines they are about are shown too.
pub fn report(input: &Input, tint: Tint) -> String {
    let mut out = String::new();
    for (number, diagnostic) in input.diagnostics.iter().enumerate() {
        let snippet = (tint.is_on() && number < MAX_SNIPPETS).then(|| snippet(input, diagnostic)).flatten();
        // Writing to a String cannot fail.
        let _ = one(&mut out, diagnostic, snippet.as_ref(), tint);
    }
    let _ = writeln!(out, "{}", summary(input, tint));
    out
}

/// `12 resources, 1 error, 2 warnings`.
pub fn summary(input: &Input, tint: Tint) -> String {
    let (errors, warnings) = (input.count(Severity::Error), input.count(Severity::Warning));
    let errors_text = counted(errors, "error");
    let warnings_text = counted(warnings, "warning");
    format!(
        "{}, {}, {}",
        counted(input.resources(), "resource"),
        if errors > 0 { tint.red(errors_text) } else { tint.green(errors_text) },
        if warnings > 0 { tint.yellow(warnings_text) } else { tint.green(warnings_text) },
    )
}

/// `1 error`, `2 errors`.
pub fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn one(out: &mut String, diagnostic: &Diagnostic, snippet: Option<&Snippet>, tint: Tint) -> std::fmt::Result {
    if let Some(location) = &diagnostic.location {
        write!(out, "{}: ", tint.bold(location))?;
    }
    let title = format!("{}[{}]", diagnostic.severity, diagnostic.code);
    let title = match diagnostic.severity {
        Severity::Error => tint.red(title),
        Severity::Warning => tint.yellow(title),
        Severity::Info => tint.green(title),
    };
    write!(out, "{title}")?;
    if let Some(resource) = &diagnostic.resource {
        write!(out, " {}", tint.cyan(resource))?;
    }
    if !diagnostic.path.is_root() {
        write!(out, " {}", diagnostic.path)?;
    }
    writeln!(out, ": {}", tint.bold(&diagnostic.message))?;
    if let Some(Snippet { number, text, indent }) = snippet {
        writeln!(out, "{}", tint.dim(format!("{number:>6} | {text}")))?;
        writeln!(out, "       {} {}{}", tint.dim("|"), " ".repeat(*indent), tint.red("^"))?;
    }
    if let Some(help) = &diagnostic.help {
        writeln!(out, "  {} {help}", tint.green("help:"))?;
    }
    if tint.is_on() {
        writeln!(out)?;
    }
    Ok(())
}

struct Snippet {
    number: u32,
    text: String,
    /// Columns before the place.
    indent: usize,
}

fn snippet(input: &Input, diagnostic: &Diagnostic) -> Option<Snippet> {
    // Lines of Secrets are nobody's business, least of all that of a CI log.
    if diagnostic.resource.as_ref().is_some_and(|key| key.kind == Kind::Secret) {
        return None;
    }
    let Location { file, line, column } = diagnostic.location.as_ref()?;
    // A finding about a whole resource begins at its first line, which says little.
    if diagnostic.path.is_root() && diagnostic.resource.is_some() {
        return None;
    }
    let text = line_of(&input.folder, file, *line)?;
    let column = usize::try_from(*column).ok()?.saturating_sub(1);
    let skip = (column + 1).saturating_sub(WIDTH);
    let text: String = text.chars().skip(skip).take(WIDTH).collect();
    Some(Snippet { number: *line, text, indent: column - skip })
}
