//! Conditions of one match beyond the host.

use http::{HeaderMap, HeaderName, Method};
use regex::Regex;
use serde::{Serialize, Serializer};
use std::borrow::Cow;

/// A path condition.
#[derive(Debug, Clone, Serialize)]
pub enum Pattern {
    Exact(String),
    /// By path elements: `/foo` matches `/foo` and `/foo/bar`, not `/foobar`. Without trailing slash, so `/` is empty.
    Prefix(String),
    /// The whole path must match.
    Regex(#[serde(serialize_with = "regex_source")] Regex),
}

/// A value condition of a header or query parameter.
#[derive(Debug, Clone, Serialize)]
pub enum ValueMatch {
    Exact(String),
    /// The whole value must match.
    Regex(#[serde(serialize_with = "regex_source")] Regex),
}

#[derive(Debug, Clone, Serialize)]
pub struct HeaderMatch {
    #[serde(serialize_with = "header_name")]
    pub name: HeaderName,
    pub value: ValueMatch,
}

#[derive(Debug, Clone, Serialize)]
pub struct QueryMatch {
    pub name: String,
    pub value: ValueMatch,
}

/// Why an entry does not match.
#[derive(Debug, Clone, Copy)]
pub enum Mismatch<'a> {
    Method(&'a Method),
    Header(&'a HeaderMatch),
    Query(&'a QueryMatch),
    GrpcMethod(&'a ValueMatch),
}

impl ValueMatch {
    /// Whether both ask for the same.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }

    /// Characters of the text or expression: longer is more specific.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Exact(want) => want.len(),
            Self::Regex(re) => re.as_str().len(),
        }
    }

    pub(super) fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(want) => want.as_bytes() == value,
            // A value that is not UTF-8 never matches an expression; deny rules must not rely on it (see docs).
            Self::Regex(re) => std::str::from_utf8(value).is_ok_and(|v| re.is_match(v)),
        }
    }
}

impl HeaderMatch {
    /// Each of several lines is looked at by itself, never a joined value.
    pub fn matches(&self, headers: &HeaderMap) -> bool {
        headers.get_all(&self.name).iter().any(|v| self.value.matches(v.as_bytes()))
    }
}

impl QueryMatch {
    /// The first parameter of that name decides, percent-decoded, as the standard recommends.
    pub fn matches(&self, query: Option<&str>) -> bool {
        let mut pairs = query.unwrap_or("").split('&').map(|p| p.split_once('=').unwrap_or((p, "")));
        pairs
            .find(|(name, _)| decode(name) == self.name.as_bytes())
            .is_some_and(|(_, v)| self.value.matches(&decode(v)))
    }
}

/// `application/x-www-form-urlencoded` decoding of one name or value.
fn decode(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|b| matches!(b, b'%' | b'+')) {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|b| (*b as char).to_digit(16));
        match (bytes[i], hex(i + 1), hex(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                i += 2;
            }
            (b'+', ..) => out.push(b' '),
            (other, ..) => out.push(other),
        }
        i += 1;
    }
    Cow::Owned(out)
}

fn regex_source<S: Serializer>(re: &Regex, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(re.as_str())
}

fn header_name<S: Serializer>(name: &HeaderName, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(name.as_str())
}

pub(super) fn method<S: Serializer>(method: &Option<Method>, s: S) -> Result<S::Ok, S::Error> {
    method.as_ref().map(Method::as_str).serialize(s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_takes_the_first_and_decodes() {
        let q = |name: &str, v: &str| QueryMatch { name: name.into(), value: ValueMatch::Exact(v.into()) };
        assert!(q("a", "1").matches(Some("b=2&a=1&a=3")));
        assert!(!q("a", "3").matches(Some("a=1&a=3")));
        assert!(q("a b", "x/y").matches(Some("a%20b=x%2Fy")));
        assert!(q("a", "").matches(Some("a")));
        assert!(!q("a", "").matches(None));
        assert!(q("a", "%zz").matches(Some("a=%zz")), "a broken escape stays as it is");
    }
}
