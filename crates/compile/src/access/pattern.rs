//! Texts and paths as policies write them.

use http::Method;
use selvedge_wire::uri::{self, EscapedSlashes, PathOptions};
use serde::Serialize;

/// A text: exactly, by its beginning or end, or anything that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum TextPattern {
    Any,
    Exact(String),
    Prefix(String),
    Suffix(String),
}

impl TextPattern {
    /// `text`, `begin*`, `*end` or `*`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let star = |rest: &str| rest.contains('*');
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => Ok(TextPattern::Any),
            (Some(end), None) if !star(end) => Ok(TextPattern::Suffix(end.to_owned())),
            (None, Some(begin)) if !star(begin) => Ok(TextPattern::Prefix(begin.to_owned())),
            (None, None) if !star(text) => Ok(TextPattern::Exact(text.to_owned())),
            _ => Err(format!("`{text}` has a `*` elsewhere than at one end")),
        }
    }

    /// Nothing matches a text that is not there.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            TextPattern::Any => !text.is_empty(),
            TextPattern::Exact(all) => all == text,
            TextPattern::Prefix(begin) => text.starts_with(begin.as_str()),
            TextPattern::Suffix(end) => text.ends_with(end.as_str()),
        }
    }
}

/// A path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum PathPattern {
    Any,
    Exact(String),
    Prefix(String),
    Suffix(String),
    Template {
        parts: Vec<PathPart>,
        /// Anything may follow.
        open: bool,
    },
}

/// A part of a path template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum PathPart {
    /// With its slashes.
    Literal(String),
    /// One segment that is not empty.
    Segment,
}

impl PathPattern {
    /// `/exact`, `/begin*`, `*end`, `*`, `/orders/{id}/items/*`. Literal parts are brought into the form in which
    /// requests are judged and sent on.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(PathPattern::Any);
        }
        if let Some(end) = text.strip_prefix('*') {
            if end.contains(['*', '{', '}', '?', '#']) {
                return Err(format!("`{text}`: what follows a leading `*` is literal"));
            }
            return Ok(PathPattern::Suffix(end.to_owned()));
        }
        let (body, open) = match text.strip_suffix('*') {
            Some(body) => (body, true),
            None => (text, false),
        };
        let segments = body.strip_prefix('/').ok_or_else(|| format!("`{text}` must begin with `/` or `*`"))?;
        let mut parts = Vec::new();
        let mut literal = String::new();
        let count = segments.split('/').count();
        for (i, segment) in segments.split('/').enumerate() {
            literal.push('/');
            if is_variable(segment) {
                parts.push(PathPart::Literal(std::mem::take(&mut literal)));
                parts.push(PathPart::Segment);
            } else if segment.is_empty() && i + 1 < count {
                return Err(format!("`{text}` holds `//`, which no request has"));
            } else {
                literal.push_str(&normal(segment).map_err(|why| format!("`{text}`: {why}"))?);
            }
        }
        if parts.is_empty() {
            return Ok(if open { PathPattern::Prefix(literal) } else { PathPattern::Exact(literal) });
        }
        if !literal.is_empty() {
            parts.push(PathPart::Literal(literal));
        }
        Ok(PathPattern::Template { parts, open })
    }

    pub fn matches(&self, path: &str) -> bool {
        match self {
            PathPattern::Any => true,
            PathPattern::Exact(all) => all == path,
            PathPattern::Prefix(begin) => path.starts_with(begin.as_str()),
            PathPattern::Suffix(end) => path.ends_with(end.as_str()),
            PathPattern::Template { parts, open } => follows(parts, *open, path),
        }
    }
}

fn follows(parts: &[PathPart], open: bool, mut rest: &str) -> bool {
    for part in parts {
        match part {
            PathPart::Literal(text) => match rest.strip_prefix(text.as_str()) {
                Some(after) => rest = after,
                None => return false,
            },
            PathPart::Segment => {
                let end = rest.find('/').unwrap_or(rest.len());
                if end == 0 {
                    return false;
                }
                rest = &rest[end..];
            }
        }
    }
    open || rest.is_empty()
}

/// `{name}`: a whole segment.
fn is_variable(segment: &str) -> bool {
    let name = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
    name.is_some_and(|name| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    })
}

fn normal(segment: &str) -> Result<String, String> {
    if segment.is_empty() {
        return Ok(String::new());
    }
    if segment.contains(['{', '}', '*']) {
        return Err("`{name}` is a whole segment, and `*` is only at one end".to_owned());
    }
    if segment.contains(['?', '#']) {
        return Err("a path has no query and no fragment".to_owned());
    }
    let whole = format!("/{segment}");
    let options = PathOptions { escaped_slashes: EscapedSlashes::Keep, ..PathOptions::default() };
    let target = uri::parse(&Method::GET, whole.as_bytes(), &options).map_err(|error| error.to_string())?;
    match target.path().strip_prefix('/') {
        Some(normal) if !normal.is_empty() && !normal.contains('/') => Ok(normal.to_owned()),
        _ => Err(format!("`{segment}` is no segment of a path in normal form")),
    }
}

/// How else a backend may read a path: without parameters (`;x`), with escaped slashes and backslashes as slashes. `None` when there
/// is no other reading; an error when it cannot be told.
pub(crate) fn other_reading(path: &str) -> Option<Result<String, ()>> {
    if !path.contains([';', '%', '\\']) {
        return None;
    }
    if !path.contains([';', '\\'])
        && !path.contains("%2F")
        && !path.contains("%5C")
        && !path.contains("%2f")
        && !path.contains("%5c")
    {
        return None;
    }
    let options = PathOptions {
        normalize: true,
        merge_slashes: true,
        escaped_slashes: EscapedSlashes::Unescape,
        backslash: uri::Backslash::Slash,
        path_params: uri::PathParams::Strip,
    };
    match uri::parse(&Method::GET, path.as_bytes(), &options) {
        Ok(target) if target.path() == path => None,
        Ok(target) => Some(Ok(target.path().to_owned())),
        Err(_) => Some(Err(())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let matches = |pattern: &str, text: &str| TextPattern::parse(pattern).expect("valid").matches(text);
        assert!(matches("a", "a") && !matches("a", "ab") && !matches("a", ""));
        assert!(matches("a*", "ab") && matches("a*", "a") && !matches("a*", "ba"));
        assert!(matches("*a", "ba") && !matches("*a", "ab"));
        assert!(matches("*", "x") && !matches("*", ""));
        for bad in ["a*b", "*a*", "**", "*a*b"] {
            assert!(TextPattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths() {
        let table = [
            ("/", "/", true),
            ("/admin", "/admin", true),
            ("/admin", "/admin/", false),
            ("/admin/*", "/admin/x/y", true),
            ("/admin/*", "/admin", false),
            ("/admin*", "/administrator", true),
            ("*.css", "/a/b.css", true),
            ("*", "/x", true),
            ("/orders/{id}", "/orders/7", true),
            ("/orders/{id}", "/orders/", false),
            ("/orders/{id}", "/orders/7/items", false),
            ("/orders/{id}/items/*", "/orders/7/items/3/4", true),
            ("/orders/{id}/items/*", "/orders/7/8/items/3", false),
            ("/orders/{id}/*", "/orders/7/x", true),
            ("/caf%c3%a9", "/caf%C3%A9", true),
            ("/%61dmin", "/admin", true),
        ];
        for (pattern, path, wanted) in table {
            assert_eq!(PathPattern::parse(pattern).expect("valid").matches(path), wanted, "{pattern} {path}");
        }
        for bad in [
            "", "admin", "/a//b", "/a/../b", "/a/{id", "/a/x{id}", "/{}", "/a*b", "/a?b", "/a#b", "*{x}", "/%zz",
            "/a/./b",
        ] {
            assert!(PathPattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_that_backends_may_read_differently() {
        assert_eq!(other_reading("/admin"), None);
        assert_eq!(other_reading("/caf%C3%A9"), None);
        assert_eq!(other_reading("/admin;x=y"), Some(Ok("/admin".into())));
        assert_eq!(other_reading("/user;a/b"), Some(Ok("/user/b".into())));
        assert_eq!(other_reading("/x%2Fadmin"), Some(Ok("/x/admin".into())));
        assert_eq!(other_reading("/x/..%2Fadmin"), Some(Ok("/admin".into())));
    }
}
