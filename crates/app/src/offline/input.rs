//! Reading and compiling what `-f` names, once.

use anyhow::{Context, Result, bail};
use selvedge_compile::{Compiled, Options, Position, check, compile};
use selvedge_control::{Folder, source::Changes};
use selvedge_model::{Code, Diagnostic, Limits, ResourceKey, Severity};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// How diagnostics call standard input.
const STDIN: &str = "<stdin>";

/// Everything that is known of some folders.
pub struct Input {
    pub folder: Folder,
    pub compiled: Compiled,
    /// All findings, sorted by place.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads folders, files, pipes and (as `-`) standard input with the rules of `selvedge run`, and compiles them.
///
/// # Errors
/// Something cannot be read at all; whatever is wrong in what was read is a diagnostic.
pub fn read(paths: &[PathBuf]) -> Result<Input> {
    read_for(paths, Position::Gateway)
}

/// The same for a proxy that stands elsewhere.
///
/// # Errors
/// As [`read`].
pub fn read_for(paths: &[PathBuf], position: Position) -> Result<Input> {
    let mut roots = Vec::new();
    let mut texts = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            texts.push((STDIN.to_owned(), limited(io::stdin().lock()).context("cannot read standard input")?));
            continue;
        }
        let meta = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        if meta.is_dir() || meta.is_file() {
            roots.push(path.clone());
        } else {
            let read = File::open(path).and_then(limited);
            texts.push((path.display().to_string(), read.with_context(|| format!("cannot read {}", path.display()))?));
        }
    }
    let mut folder = Folder::new(roots);
    for (name, text) in texts {
        folder.insert(&name, text);
    }
    folder.read(&Changes::Everything);
    if folder.files().next().is_none() && folder.diagnostics().is_empty() {
        let all: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
        bail!("there is no .yaml, .yml or .json file in {} (hidden files do not count)", all.join(", "));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    let options = Options { now, position, ..Options::default() };
    // Whoever asks about no workload in particular wants to hear about all.
    let compiled = match options.position {
        Position::Gateway => check(folder.resources(), &options),
        Position::Workloads(_) => compile(folder.resources(), &options),
    };
    let mut about_resources = compiled.diagnostics.clone();
    let mut diagnostics = folder.diagnostics();
    blame_broken(&mut about_resources, &folder.broken().cloned().collect(), &diagnostics);
    folder.locate(&mut about_resources);
    diagnostics.append(&mut about_resources);
    sort(&mut diagnostics);
    Ok(Input { folder, compiled, diagnostics })
}

impl Input {
    /// Resources that were found, broken ones included.
    pub fn resources(&self) -> usize {
        self.folder.resources().len() + self.folder.broken().count()
    }

    pub fn count(&self, severity: Severity) -> usize {
        self.diagnostics.iter().filter(|d| d.severity == severity).count()
    }

    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// One byte over the limit is enough for it to be told.
fn limited(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    reader.take(Limits::default().file_bytes as u64 + 1).read_to_end(&mut text)?;
    Ok(text)
}

/// What "does not exist" may be there and merely broken, which is then the thing to mend.
fn blame_broken(diagnostics: &mut [Diagnostic], broken: &BTreeSet<ResourceKey>, of_files: &[Diagnostic]) {
    for diagnostic in diagnostics.iter_mut().filter(|d| d.code != Code::DuplicateResource) {
        let culprit = broken.iter().find(|key| diagnostic.message.contains(&format!("{key} does not exist")));
        if let Some(key) = culprit {
            let first = of_files.iter().find(|it| it.is_error() && it.resource.as_ref() == Some(key));
            let which = first.map_or_else(String::new, |it| {
                let place = it.location.as_ref().map(|at| format!("{at}: ")).unwrap_or_default();
                format!(", the first of them at {place}{}", it.message)
            });
            diagnostic.help = Some(format!("{key} is there but has errors: mend it first{which}"));
        }
    }
}

fn sort(diagnostics: &mut Vec<Diagnostic>) {
    diagnostics.sort_by(|a, b| {
        let key = |d: &Diagnostic| (d.severity, d.code, d.resource.clone(), d.path.clone());
        (&a.location, key(a), &a.message).cmp(&(&b.location, key(b), &b.message))
    });
    diagnostics.dedup();
}

/// Path, text: what a line of a diagnostic is cut out of. Read again, for it is rarely needed.
pub fn line_of(folder: &Folder, file: &str, line: u32) -> Option<String> {
    let text = folder.text(Path::new(file))?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?)?;
    Some(line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
}
