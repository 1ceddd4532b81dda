//! Collects diagnostics while compiling.

use selvedge_model::{Code, Diagnostic, FieldPath, ResourceKey, diagnostic::nearest};

/// The diagnostics so far; [`Report::finish`] sorts them.
#[derive(Debug, Default)]
pub(crate) struct Report(pub(crate) Vec<Diagnostic>);

impl Report {
    /// `path` is written as in a message: `spec.rules[0].name`.
    pub(crate) fn error(&mut self, key: &ResourceKey, code: Code, path: &str, message: &str) {
        self.0.push(Diagnostic::error(code, key.clone(), parsed(path), message));
    }

    pub(crate) fn warning(&mut self, key: &ResourceKey, code: Code, path: &str, message: &str) {
        self.0.push(Diagnostic::warning(code, key.clone(), parsed(path), message));
    }

    pub(crate) fn info(&mut self, key: &ResourceKey, code: Code, path: &str, message: &str) {
        self.0.push(Diagnostic::info(code, key.clone(), parsed(path), message));
    }

    /// By resource, path and code, without duplicates: the order in which rules were looked at must not show.
    pub(crate) fn finish(mut self) -> Vec<Diagnostic> {
        self.0.sort_by(|a, b| {
            (&a.resource, &a.path, a.code, &a.message).cmp(&(&b.resource, &b.path, b.code, &b.message))
        });
        self.0.dedup();
        self.0
    }
}

/// `; did you mean web?`, if one of the names is like enough.
pub(crate) fn did_you_mean<'n>(name: &str, names: impl IntoIterator<Item = &'n str>) -> String {
    nearest(name, names).map(|near| format!("; did you mean {near}?")).unwrap_or_default()
}

fn parsed(path: &str) -> FieldPath {
    path.parse().unwrap_or_default()
}
