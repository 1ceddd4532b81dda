//! Lookup by hostname with single-label-or-more wildcards, most specific first.

use ahash::AHashMap;
use serde::{Serialize, Serializer, ser::SerializeMap};
use std::{collections::BTreeMap, sync::Arc};

/// A map from hostname patterns (`shop.example`, `*.example`, none) to values.
///
/// Names are lower case without a trailing dot. `*.example.com` matches one label or more in front of
/// `example.com`, never `example.com` itself (Gateway API Hostname).
#[derive(Debug, Clone)]
pub struct HostMap<T> {
    exact: AHashMap<Arc<str>, T>,
    /// Keyed by the part behind `*.`.
    wildcard: AHashMap<Arc<str>, T>,
    any: Option<T>,
}

impl<T> Default for HostMap<T> {
    fn default() -> Self {
        Self { exact: AHashMap::new(), wildcard: AHashMap::new(), any: None }
    }
}

impl<T> HostMap<T> {
    /// The slot of a pattern; `None` is the pattern that matches every host.
    pub fn get_pattern(&self, pattern: Option<&str>) -> Option<&T> {
        match pattern {
            None => self.any.as_ref(),
            Some(p) => match p.strip_prefix("*.") {
                Some(suffix) => self.wildcard.get(suffix),
                None => self.exact.get(p),
            },
        }
    }

    /// Puts a value under a pattern and returns what was there.
    pub fn insert(&mut self, pattern: Option<&str>, value: T) -> Option<T> {
        match pattern {
            None => self.any.replace(value),
            Some(p) => match p.strip_prefix("*.") {
                Some(suffix) => self.wildcard.insert(suffix.into(), value),
                None => self.exact.insert(p.into(), value),
            },
        }
    }

    /// The value under a pattern, made first when there is none.
    pub fn entry(&mut self, pattern: Option<&str>, make: impl FnOnce() -> T) -> &mut T {
        match pattern {
            None => self.any.get_or_insert_with(make),
            Some(p) => match p.strip_prefix("*.") {
                Some(suffix) => self.wildcard.entry(suffix.into()).or_insert_with(make),
                None => self.exact.entry(p.into()).or_insert_with(make),
            },
        }
    }

    /// As [`HostMap::get_pattern`], to change it.
    pub fn get_pattern_mut(&mut self, pattern: Option<&str>) -> Option<&mut T> {
        match pattern {
            None => self.any.as_mut(),
            Some(p) => match p.strip_prefix("*.") {
                Some(suffix) => self.wildcard.get_mut(suffix),
                None => self.exact.get_mut(p),
            },
        }
    }

    /// Takes out what is under a pattern.
    pub fn remove(&mut self, pattern: Option<&str>) -> Option<T> {
        match pattern {
            None => self.any.take(),
            Some(p) => match p.strip_prefix("*.") {
                Some(suffix) => self.wildcard.remove(suffix),
                None => self.exact.remove(p),
            },
        }
    }

    /// The most specific value for a host.
    pub fn find(&self, host: &str) -> Option<&T> {
        self.all(host).next()
    }

    /// Every value whose pattern matches, most specific first.
    pub fn all<'s, 'h>(&'s self, host: &'h str) -> impl Iterator<Item = &'s T> + use<'s, 'h, T> {
        let exact = if self.exact.is_empty() { None } else { self.exact.get(host) };
        let wild = (!self.wildcard.is_empty()).then_some(Suffixes(host)).into_iter().flatten();
        exact.into_iter().chain(wild.filter_map(|s| self.wildcard.get(s))).chain(self.any.as_ref())
    }

    /// All patterns with their values, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (Option<String>, &T)> {
        (self.exact.iter().map(|(k, v)| (Some(k.to_string()), v)))
            .chain(self.wildcard.iter().map(|(k, v)| (Some(format!("*.{k}")), v)))
            .chain(self.any.iter().map(|v| (None, v)))
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.exact.values().chain(self.wildcard.values()).chain(self.any.as_ref())
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.exact.values_mut().chain(self.wildcard.values_mut()).chain(self.any.as_mut())
    }

    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> HostMap<U> {
        HostMap {
            exact: self.exact.into_iter().map(|(k, v)| (k, f(v))).collect(),
            wildcard: self.wildcard.into_iter().map(|(k, v)| (k, f(v))).collect(),
            any: self.any.map(f),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcard.is_empty() && self.any.is_none()
    }

    pub fn len(&self) -> usize {
        self.exact.len() + self.wildcard.len() + usize::from(self.any.is_some())
    }
}

/// Parent domains of a host, longest first. A DNS name has at most 127 labels, so this is short.
struct Suffixes<'a>(&'a str);

impl<'a> Iterator for Suffixes<'a> {
    type Item = &'a str;
    fn next(&mut self) -> Option<&'a str> {
        let (_, rest) = self.0.split_once('.')?;
        self.0 = rest;
        Some(rest)
    }
}

impl<T: Serialize> Serialize for HostMap<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sorted: BTreeMap<_, _> = self.iter().map(|(k, v)| (k.unwrap_or_else(|| "*".to_owned()), v)).collect();
        let mut map = serializer.serialize_map(Some(sorted.len()))?;
        for (k, v) in sorted {
            map.serialize_entry(&k, v)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_specific_pattern_wins() {
        let mut map = HostMap::default();
        map.insert(None, 0);
        map.insert(Some("*.example.com"), 1);
        map.insert(Some("*.shop.example.com"), 2);
        map.insert(Some("a.shop.example.com"), 3);
        assert_eq!(map.all("a.shop.example.com").copied().collect::<Vec<_>>(), [3, 2, 1, 0]);
        assert_eq!(map.find("b.shop.example.com"), Some(&2));
        assert_eq!(map.find("x.y.example.com"), Some(&1));
        assert_eq!(map.find("example.com"), Some(&0), "a wildcard does not match its own suffix");
        assert_eq!(map.find("other"), Some(&0));
    }
}
