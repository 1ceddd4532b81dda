//! URLRewrite: host and path of the request that goes upstream.

use super::Facts;
use crate::Request;
use http::{HeaderValue, header::HOST, uri::PathAndQuery};
use selvedge_compile::snapshot::{PathChange, Rewrite};

pub(super) fn apply(change: &Rewrite, facts: &Facts<'_>, request: &mut Request) {
    if let Some(host) = &change.host
        && let Ok(value) = HeaderValue::from_str(host)
    {
        request.headers_mut().insert(HOST, value);
    }
    if let Some(path) = &change.path {
        let uri = request.uri();
        let new = rewritten(path, uri.path(), facts.prefix);
        let full = match uri.query() {
            Some(query) => format!("{new}?{query}"),
            None => new,
        };
        // The parts are valid by themselves, so this only fails beyond 64 KiB: the old path is kept then.
        if let Ok(path_and_query) = PathAndQuery::try_from(full) {
            let mut parts = std::mem::take(request.uri_mut()).into_parts();
            parts.path_and_query = Some(path_and_query);
            if let Ok(uri) = http::Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
    }
}

/// The path after a change. `prefix` is the length of what PathPrefix matched, without trailing slash.
pub(super) fn rewritten(change: &PathChange, path: &str, prefix: Option<usize>) -> String {
    match change {
        PathChange::Full(full) => full.clone(),
        PathChange::Prefix(with) => {
            let rest = path.get(prefix.unwrap_or(0)..).unwrap_or("").trim_start_matches('/');
            let with = with.trim_end_matches('/');
            match (with.is_empty(), rest.is_empty()) {
                // `/foo` -> `/xyz` keeps a trailing slash only where one was there and something precedes it.
                (false, true) if path.len() > prefix.unwrap_or(0) => format!("{with}/"),
                (false, true) => with.to_owned(),
                _ => format!("{with}/{rest}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of HTTPPathModifier.replacePrefixMatch in the Gateway API.
    #[test]
    fn prefix_table_of_the_standard() {
        let cases = [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/a/b", "/", "/x", "/x/a/b"),
        ];
        for (path, prefix, with, want) in cases {
            let matched = prefix.trim_end_matches('/').len();
            assert_eq!(
                rewritten(&PathChange::Prefix(with.into()), path, Some(matched)),
                want,
                "{path} {prefix} {with}"
            );
        }
    }
}
