//! Request routing: host, then path, then the rest, as the Gateway API orders it.
//!
//! The same [`Router`] serves requests and `selvedge explain`, so the two cannot disagree.
//! Order of precedence (HTTPRouteRule.matches): hostname by length, exact path, regular expression
//! (longest first; the standard leaves its place open), longest prefix, method, number of headers,
//! number of query parameters, older route, `namespace/name`, position in the route.
//! Cost is one hash per hostname label and per distinct prefix length, whatever the number of routes.

mod hosts;
mod matches;
mod paths;

pub use hosts::HostMap;
pub use matches::{HeaderMatch, Mismatch, Pattern, QueryMatch, ValueMatch};
use paths::PathRouter;

use crate::snapshot::Rule;
use http::{HeaderMap, Method};
use serde::{Serialize, Serializer};
use std::{cmp::Reverse, ops::Range, sync::Arc};

/// What routing looks at. Host and path are already normalised (`selvedge_wire`).
#[derive(Debug, Clone, Copy)]
pub struct Lookup<'a> {
    /// Lower case, without port.
    pub host: &'a str,
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
}

/// All rules attached to one listener. Routers that were made from one another share what they have in common.
#[derive(Debug, Clone, Default)]
pub struct Router {
    hosts: HostMap<Arc<PathRouter>>,
    rules: Vec<Arc<Rule>>,
}

/// One `matches` item of a rule.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    pub path: Pattern,
    #[serde(serialize_with = "matches::method")]
    pub method: Option<Method>,
    pub headers: Vec<HeaderMatch>,
    pub query: Vec<QueryMatch>,
    /// gRPC: a condition on the last path segment, for matches that name a method but no service.
    pub grpc_method: Option<ValueMatch>,
    /// Index into the router's rules.
    pub rule: u32,
    pub age: Age,
}

/// Tie breaker between routes: older first, then by name, then by position.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Age {
    /// RFC 3339 in UTC sorts as text; empty (unknown) sorts last.
    pub created: String,
    pub namespace: String,
    pub name: String,
    pub rule: u32,
    pub position: u32,
}

/// A rule that a request met.
#[derive(Debug, Clone, Copy)]
pub struct Matched<'a> {
    pub rule: &'a Arc<Rule>,
    pub entry: &'a Entry,
}

/// A rule that was looked at, in order of precedence.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub rule: &'a Arc<Rule>,
    pub entry: &'a Entry,
    /// `None`: it matches.
    pub mismatch: Option<Mismatch<'a>>,
}

impl Router {
    /// The rule that a request meets, if any.
    pub fn find(&self, request: &Lookup<'_>) -> Option<Matched<'_>> {
        self.hosts
            .all(request.host)
            .find_map(|paths| paths.find(request))
            .map(|entry| Matched { rule: &self.rules[entry.rule as usize], entry })
    }

    /// Every rule whose host and path fit, in order of precedence, with the reason why it does not match.
    pub fn candidates<'a>(&'a self, request: &'a Lookup<'a>) -> Vec<Candidate<'a>> {
        let mut found = Vec::new();
        for paths in self.hosts.all(request.host) {
            for entry in paths.candidates(request.path) {
                let rule = &self.rules[entry.rule as usize];
                found.push(Candidate { rule, entry, mismatch: entry.mismatch(request) });
            }
        }
        found
    }

    pub fn rules(&self) -> &[Arc<Rule>] {
        &self.rules
    }

    /// Every hostname pattern with its entries in order of precedence; patterns sorted, the one for every host last.
    pub fn table(&self) -> Vec<(Option<String>, Vec<&Entry>)> {
        let mut table: Vec<_> = self.hosts.iter().map(|(host, paths)| (host, paths.entries().collect())).collect();
        table.sort_by(|a: &(Option<String>, Vec<&Entry>), b| (a.0.is_none(), &a.0).cmp(&(b.0.is_none(), &b.0)));
        table
    }

    /// Matches that can never be met, because an older or earlier one under the same hostname and path has the same
    /// conditions: the winner, then the loser.
    pub fn shadowed(&self) -> impl Iterator<Item = (&Entry, &Entry)> {
        self.hosts.values().flat_map(|paths| paths.shadowed())
    }

    /// Hostname patterns that have routes.
    pub fn hostnames(&self) -> impl Iterator<Item = Option<String>> {
        self.hosts.iter().map(|(pattern, _)| pattern)
    }
}

/// Rules are written in the order of their names, and not of how this router came about.
impl Serialize for Router {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename = "Router")]
        struct Ordered<'a> {
            hosts: HostMap<Vec<Entry>>,
            rules: Vec<&'a Arc<Rule>>,
        }
        let mut order: Vec<usize> = (0..self.rules.len()).collect();
        order.sort_by_key(|&i| {
            let name = &self.rules[i].name;
            (Reverse(name.kind), &name.namespace, &name.route, name.index)
        });
        let mut places = vec![0; order.len()];
        order.iter().zip(0..).for_each(|(&i, place)| places[i] = place);
        let mut hosts = HostMap::default();
        for (pattern, paths) in self.hosts.iter() {
            let entries = paths.entries().map(|e| Entry { rule: places[e.rule as usize], ..e.clone() });
            hosts.insert(pattern.as_deref(), entries.collect());
        }
        Ordered { hosts, rules: order.iter().map(|&i| &self.rules[i]).collect() }.serialize(serializer)
    }
}

/// Collects rules and entries; [`RouterBuilder::build`] sorts them once.
#[derive(Debug, Default)]
pub struct RouterBuilder {
    hosts: HostMap<Arc<PathRouter>>,
    rules: Vec<Arc<Rule>>,
    /// Hostname patterns that have changed, when this began as a router; else all have.
    touched: Option<Vec<Option<String>>>,
}

impl RouterBuilder {
    /// Begins with what a router has. Whatever is not changed stays shared with it.
    pub fn from_router(router: &Router) -> Self {
        RouterBuilder { hosts: router.hosts.clone(), rules: router.rules.clone(), touched: Some(Vec::new()) }
    }

    /// Adds a rule and returns its index for [`Entry::rule`].
    pub fn rule(&mut self, rule: Arc<Rule>) -> u32 {
        self.rules.push(rule);
        (self.rules.len() - 1) as u32
    }

    /// Puts another rule in the place of one; its entries stay.
    pub fn replace_rule(&mut self, index: u32, rule: Arc<Rule>) {
        if let Some(place) = self.rules.get_mut(index as usize) {
            *place = rule;
        }
    }

    /// Adds one match of a rule under one hostname pattern (`None` = every host of the listener).
    pub fn entry(&mut self, hostname: Option<&str>, entry: Entry) {
        self.touch(hostname);
        Arc::make_mut(self.hosts.entry(hostname, Arc::default)).insert(entry);
    }

    /// Takes out what leads from a path under one hostname pattern to some rules. The rules stay, to be replaced.
    pub fn remove(&mut self, hostname: Option<&str>, path: &Pattern, rules: &Range<u32>) {
        self.touch(hostname);
        if let Some(paths) = self.hosts.get_pattern_mut(hostname) {
            Arc::make_mut(paths).remove(path, rules);
        }
    }

    fn touch(&mut self, hostname: Option<&str>) {
        if let Some(touched) = &mut self.touched
            && touched.last().is_none_or(|last| last.as_deref() != hostname)
        {
            touched.push(hostname.map(str::to_owned));
        }
    }

    pub fn build(mut self) -> Router {
        match self.touched.take() {
            None => self.hosts.values_mut().for_each(|paths| Arc::make_mut(paths).sort(&self.rules)),
            Some(touched) => {
                for hostname in touched.iter().map(Option::as_deref) {
                    let Some(paths) = self.hosts.get_pattern_mut(hostname) else { continue };
                    if paths.is_empty() {
                        self.hosts.remove(hostname);
                    } else {
                        Arc::make_mut(paths).sort(&self.rules);
                    }
                }
            }
        }
        Router { hosts: self.hosts, rules: self.rules }
    }
}

impl Entry {
    /// Method, headers and query; the path has been looked at by the caller.
    fn mismatch<'a>(&'a self, request: &Lookup<'_>) -> Option<Mismatch<'a>> {
        if let Some(method) = &self.method
            && method != request.method
        {
            return Some(Mismatch::Method(method));
        }
        if let Some(header) = self.headers.iter().find(|h| !h.matches(request.headers)) {
            return Some(Mismatch::Header(header));
        }
        if let Some(method) = &self.grpc_method
            && !method.matches(request.path.rsplit('/').next().unwrap_or("").as_bytes())
        {
            return Some(Mismatch::GrpcMethod(method));
        }
        self.query.iter().find(|q| !q.matches(request.query)).map(Mismatch::Query)
    }

    /// Whether method, headers and query ask for the same; the path has been looked at by the caller.
    fn same_conditions(&self, other: &Entry) -> bool {
        self.method == other.method
            && self.headers.len() == other.headers.len()
            && self.query.len() == other.query.len()
            && self.headers.iter().all(|h| other.headers.iter().any(|o| o.name == h.name && o.value.same(&h.value)))
            && self.query.iter().all(|q| other.query.iter().any(|o| o.name == q.name && o.value.same(&q.value)))
            && match (&self.grpc_method, &other.grpc_method) {
                (Some(own), Some(others)) => own.same(others),
                (own, others) => own.is_none() && others.is_none(),
            }
    }

    /// Sort key behind the path: more specific first.
    fn precedence(&self) -> impl Ord + '_ {
        use std::cmp::Reverse;
        let unknown_age = self.age.created.is_empty();
        let named = self.grpc_method.as_ref().map_or(0, ValueMatch::len);
        (
            Reverse(named),
            Reverse(self.method.is_some()),
            Reverse(self.headers.len()),
            Reverse(self.query.len()),
            unknown_age,
            &self.age,
        )
    }
}
