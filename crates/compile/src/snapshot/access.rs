//! Who may do what, compiled from AccessPolicies. Judged by [`Access::decide`].

use super::Auth;
pub use crate::access::{Expression, PathPattern, TextPattern};
use ipnet::IpNet;
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc};

/// All AccessPolicies that hold at one place, and what is done where none says anything.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Access {
    pub default: DefaultAccess,
    /// The port that requests are for, as the Gateway names it; `None`: the one that the connection came to.
    pub port: Option<u16>,
    /// Those that deny, then those that allow, then those that audit, each by name.
    pub policies: Vec<Arc<AccessPolicy>>,
    /// How callers prove who they are; `None`: they need not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Arc<Auth>>,
    /// What holds instead for requests that these routes take: the same policies and those that target the route.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", serialize_with = "routes")]
    pub routes: BTreeMap<RouteKey, Arc<Access>>,
}

/// Kind, namespace and name of a route.
pub type RouteKey = (&'static str, String, String);

/// What is done with what no policy allows or denies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum DefaultAccess {
    #[default]
    Allow,
    /// Allowed, and logged and counted as what `Deny` would refuse.
    Audit,
    Deny,
}

/// One AccessPolicy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccessPolicy {
    /// `namespace/name`.
    pub name: String,
    pub action: AccessAction,
    /// It matches when one of these does.
    pub rules: Vec<AccessRule>,
    /// Why it cannot be understood; it then denies everything.
    pub broken: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum AccessAction {
    Deny,
    Allow,
    Audit,
}

/// Holds when `from`, `to` and `when` do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccessRule {
    /// `spec.rules[].name`, or the index with `#`.
    pub name: String,
    /// One list of tests must hold whole; an empty `from` holds for everybody.
    pub from: Vec<Vec<AccessTest>>,
    /// As `from`.
    pub to: Vec<Vec<AccessTest>>,
    pub when: Option<Expression>,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccessTest {
    /// Holds when what it says does not.
    pub not: bool,
    pub of: AccessFact,
}

/// What a condition is about, with the values of which one must hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum AccessFact {
    Identity(Vec<TextPattern>),
    Namespace(Vec<TextPattern>, Domains),
    TrustDomain(Vec<TextPattern>),
    /// Namespace and name.
    ServiceAccount(Vec<(TextPattern, TextPattern)>, Domains),
    Ip(Vec<IpNet>),
    RemoteIp(Vec<IpNet>),
    /// The way to the claim, and its values.
    Claim(Vec<String>, Vec<TextPattern>),
    Host(Vec<TextPattern>),
    Port(Vec<u16>),
    Method(Vec<String>),
    Path(Vec<PathPattern>),
    Header(#[serde(serialize_with = "header_name")] http::HeaderName, HeaderTest),
}

/// Of which trust domains the names of namespaces are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Domains {
    /// The mesh's own: a namespace of that name elsewhere belongs to somebody else.
    Own(String),
    /// Those that stand beside the names.
    Named,
}

/// What one value of a header must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum HeaderTest {
    Exact(String),
    Prefix(String),
    Present,
}

impl Access {
    /// What holds for requests that a route takes.
    pub fn of_route(&self, kind: &str, namespace: &str, name: &str) -> &Access {
        let found = self.routes.iter().find(|((k, ns, n), _)| *k == kind && ns == namespace && n == name);
        found.map_or(self, |(_, access)| access)
    }

    /// Whether headers of requests matter.
    pub fn reads_headers(&self) -> bool {
        let header = |test: &AccessTest| matches!(test.of, AccessFact::Header(..));
        let reads = |rule: &AccessRule| {
            rule.to.iter().flatten().any(header) || rule.when.as_ref().is_some_and(Expression::needs_headers)
        };
        self.policies.iter().any(|policy| policy.rules.iter().any(reads))
    }

    /// Whether everything is allowed without a look at it.
    pub fn is_open(&self) -> bool {
        self.default == DefaultAccess::Allow
            && self.auth.is_none()
            && self.policies.is_empty()
            && self.routes.is_empty()
    }
}

fn header_name<S: serde::Serializer>(name: &http::HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}

fn routes<S: serde::Serializer>(map: &BTreeMap<RouteKey, Arc<Access>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(map.iter().map(|((kind, ns, name), access)| (format!("{kind} {ns}/{name}"), access)))
}
