//! The paths of one hostname.

use super::{Entry, Lookup, Pattern};
use crate::snapshot::Rule;
use ahash::AHashMap;
use std::{
    cmp::{Ordering, Reverse},
    ops::Range,
    sync::Arc,
};

/// Entries by path: hashed exact paths and prefixes, and the expressions in order. What is cloned shares its entries.
#[derive(Debug, Clone, Default)]
pub(super) struct PathRouter {
    exact: AHashMap<Arc<str>, Arc<Vec<Entry>>>,
    regex: Arc<Vec<Entry>>,
    prefix: AHashMap<Arc<str>, Arc<Vec<Entry>>>,
    /// Distinct lengths of the prefixes, longest first: a hostile path of many slashes costs no more than these.
    lengths: Vec<usize>,
}

/// How far back a list is searched for an equal match, which keeps the search linear.
const MAX_COMPARED: usize = 32;

impl PathRouter {
    /// To be followed by [`PathRouter::sort`].
    pub(super) fn insert(&mut self, entry: Entry) {
        let list = match &entry.path {
            Pattern::Exact(path) => self.exact.entry(path.as_str().into()).or_default(),
            Pattern::Prefix(path) => self.prefix.entry(path.as_str().into()).or_default(),
            Pattern::Regex(_) => &mut self.regex,
        };
        Arc::make_mut(list).push(entry);
    }

    /// Takes out what leads from a path to some rules. To be followed by [`PathRouter::sort`].
    pub(super) fn remove(&mut self, path: &Pattern, rules: &Range<u32>) {
        let others = |entry: &Entry| !rules.contains(&entry.rule);
        let (map, path) = match path {
            Pattern::Exact(path) => (&mut self.exact, path.as_str()),
            Pattern::Prefix(path) => (&mut self.prefix, path.as_str()),
            Pattern::Regex(_) => return Arc::make_mut(&mut self.regex).retain(others),
        };
        let Some(list) = map.get_mut(path) else { return };
        if list.iter().any(others) {
            Arc::make_mut(list).retain(others);
        } else {
            map.remove(path);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.regex.is_empty() && self.prefix.is_empty()
    }

    /// `rules` are those that the entries lead to.
    pub(super) fn sort(&mut self, rules: &[Arc<Rule>]) {
        // An HTTPRoute and a GRPCRoute of the same name and age: the HTTPRoute comes first.
        let kind = |e: &Entry| Reverse(rules.get(e.rule as usize).map(|rule| rule.name.kind));
        let precedence = |a: &Entry, b: &Entry| a.precedence().cmp(&b.precedence()).then_with(|| kind(a).cmp(&kind(b)));
        for list in self.exact.values_mut().chain(self.prefix.values_mut()) {
            sort_shared(list, precedence);
        }
        sort_shared(&mut self.regex, |a, b| {
            let length = |e: &Entry| if let Pattern::Regex(re) = &e.path { re.as_str().len() } else { 0 };
            Reverse(length(a)).cmp(&Reverse(length(b))).then_with(|| precedence(a, b))
        });
        let mut lengths: Vec<usize> = self.prefix.keys().map(|path| path.len()).collect();
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
        exact.into_iter().flat_map(|list| list.iter()).chain(regex).chain(prefix.flat_map(|list| list.iter()))
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
        let sorted = |map: &AHashMap<Arc<str>, Arc<Vec<Entry>>>| {
            let mut keys: Vec<_> = map.keys().cloned().collect();
            keys.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
            keys
        };
        let exact = sorted(&self.exact).into_iter().flat_map(|k| self.exact[&k].iter());
        let prefix = sorted(&self.prefix).into_iter().flat_map(|k| self.prefix[&k].iter());
        exact.chain(self.regex.iter()).chain(prefix)
    }
}

/// A list that is shared is copied only if it is out of order.
fn sort_shared(list: &mut Arc<Vec<Entry>>, order: impl Fn(&Entry, &Entry) -> Ordering) {
    if !list.is_sorted_by(|a, b| order(a, b).is_le()) {
        Arc::make_mut(list).sort_by(order);
    }
}
