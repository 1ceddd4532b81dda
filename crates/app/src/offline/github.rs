//! Diagnostics as workflow commands of GitHub Actions, which shows them at their lines.

use selvedge_model::{Diagnostic, Severity};
use std::fmt::Write;

/// `::error file=a.yaml,line=3,col=7,title=SELV0100::message`, one line each.
pub fn commands(diagnostics: &[Diagnostic]) -> String {
    let mut out = String::new();
    for diagnostic in diagnostics {
        let command = match diagnostic.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "notice",
        };
        let mut message = diagnostic.message.clone();
        if let Some(resource) = &diagnostic.resource {
            let path = if diagnostic.path.is_root() { String::new() } else { format!(" {}", diagnostic.path) };
            message = format!("{resource}{path}: {message}");
        }
        if let Some(help) = &diagnostic.help {
            message = format!("{message}\nhelp: {help}");
        }
        let place = diagnostic
            .location
            .as_ref()
            .map_or_else(String::new, |l| format!("file={},line={},col={},", property(&l.file), l.line, l.column));
        // Writing to a String cannot fail.
        let _ = writeln!(out, "::{command} {place}title={}::{}", diagnostic.code, data(&message));
    }
    out
}

/// As `escapeData` of `@actions/core`.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// As `escapeProperty` of `@actions/core`.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvedge_model::{Code, Kind, Location, ResourceKey};

    #[test]
    fn what_ends_a_property_or_a_line_is_escaped() {
        let key = ResourceKey::new(Kind::HttpRoute, "shop", "cart");
        let path = "spec.rules[0]".parse().unwrap();
        let diagnostic = Diagnostic::error(Code::UnknownField, key, path, "100 % a: b,\nc").help("d").at(Location {
            file: "a,b: 50%.yaml".into(),
            line: 3,
            column: 7,
        });
        assert_eq!(
            commands(&[diagnostic]),
            "::error file=a%2Cb%3A 50%25.yaml,line=3,col=7,title=SELV0100::HTTPRoute shop/cart spec.rules[0]: 100 %25 a: b,%0Ac%0Ahelp: d\n"
        );
    }
}
