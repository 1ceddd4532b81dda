//! The paths of one hostname.

use super::{Entry, Lookup, Pattern};
use ahash::AHashMap;
use serde::{Serialize, Serializer};
use std::cmp::Reverse;

/// Entries by path: hashed exact paths and prefixes, and the expressions in order.
#[derive(Debug, Clone, Default)]
pub(super) struct PathRouter {
    exact: AHashMap<String, Vec<Entry>>,
    regex: Vec<Entry>,
    prefix: AHashMap<String, Vec<Entry>>,
    /// Distinct lengths of the prefixes, longest first: a hostile path of many slashes costs no more than these.
    lengths: Vec<usize>,
}

/// How far back a list is searched for an equal match, which keeps the search linear.
const MAX_COMPARED: usize = 32;

impl PathRouter {
    pub(super) fn insert(&mut self, entry: Entry) {
        match &entry.path {
            Pattern::Exact(path) => self.exact.entry(path.clone()).or_default().push(entry),
            Pattern::Prefix(path) => self.prefix.entry(path.clone()).or_default().push(entry),
            Pattern::Regex(_) => self.regex.push(entry),
        }
    }

    pub(super) fn sort(&mut self) {
        for list in self.exact.values_mut().chain(self.prefix.values_mut()) {
            if list.len() > 1 {
                list.sort_by(|a, b| a.precedence().cmp(&b.precedence()));
            }
        }
        self.regex.sort_by(|a, b| {
            let length = |e: &Entry| if let Pattern::Regex(re) = &e.path { re.as_str().len() } else { 0 };
            Reverse(length(a)).cmp(&Reverse(length(b))).then_with(|| a.precedence().cmp(&b.precedence()))
        });
        let mut lengths: Vec<usize> = self.prefix.keys().map(String::len).collect();
        lengths.sort_unstable_by_key(|&n| Reverse(n));
        lengths.dedup();
        self.lengths = lengths;
    }

    pub(super) fn find(&self, request: &Lookup<'_>) -> Option<&Entry> {
        self.candidates(request.path).find(|entry| entry.mismatch(request).is_none())
    }

    /// Entries whose path fits, most specific first.
    pub(super) fn candidates<'s, 'p>(&'s self, path: &'p str) -> impl Iterator<Item = &'s Entry> + use<'s, 'p> {
        let exact = (!self.exact.is_empty()).then(|| self.exact.get(path)).flatten();
        let regex = self.regex.iter().filter(move |e| matches!(&e.path, Pattern::Regex(re) if re.is_match(path)));
        let prefix = self.lengths.iter().filter_map(move |&n| {
            let ends_element = n == path.len() || path.as_bytes().get(n) == Some(&b'/');
            if ends_element { self.prefix.get(path.get(..n)?) } else { None }
        });
        exact.into_iter().flatten().chain(regex).chain(prefix.flatten())
    }
}

impl PathRouter {
    /// Entries that an earlier one with the very same conditions keeps from ever being met: the earlier, then the later.
    pub(super) fn shadowed(&self) -> impl Iterator<Item = (&Entry, &Entry)> {
        let lists = self.exact.values().chain(self.prefix.values()).filter(|list| list.len() > 1);
        lists.flat_map(|list| {
            list.iter().enumerate().skip(1).filter_map(move |(i, later)| {
                // Equal conditions sort side by side, but for others of the same number of headers.
                let before = list[i.saturating_sub(MAX_COMPARED)..i].iter();
                before.into_iter().find(|earlier| earlier.same_conditions(later)).map(|earlier| (earlier, later))
            })
        })
    }

    /// All entries: exact paths, expressions, prefixes; each in order of precedence.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        let sorted = |map: &'_ AHashMap<String, Vec<Entry>>| {
            let mut keys: Vec<_> = map.keys().cloned().collect();
            keys.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
            keys
        };
        let exact = sorted(&self.exact).into_iter().flat_map(|k| self.exact[&k].iter());
        let prefix = sorted(&self.prefix).into_iter().flat_map(|k| self.prefix[&k].iter());
        exact.chain(self.regex.iter()).chain(prefix)
    }
}

impl Serialize for PathRouter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.entries())
    }
}
