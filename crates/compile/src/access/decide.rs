//! The decision itself: pure, used by the proxy, `explain` and tests alike.

use super::pattern::other_reading;
use crate::snapshot::{
    Access, AccessAction, AccessFact, AccessPolicy, AccessRule, AccessTest, Auth, DefaultAccess, Domains, HeaderTest,
};
use http::HeaderMap;
use selvedge_wire::spiffe::SpiffeId;
use serde_json::Value;
use std::{net::IpAddr, sync::Arc};

/// Who wants what.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Of the direct peer, proven by mutual TLS.
    pub identity: Option<&'a SpiffeId>,
    /// Whether the peer has proven itself by a client certificate, with or without a SPIFFE ID.
    pub mtls: bool,
    /// Address of the direct peer.
    pub peer: IpAddr,
    /// Address of the client, as trusted hops have named it.
    pub client: IpAddr,
    /// The port that the connection is for.
    pub port: u16,
    /// Of a verified token.
    pub claims: Option<&'a Value>,
    /// A question of a browser before the request (CORS), which is answered here and comes without a token.
    pub preflight: bool,
    pub layer7: Layer7<'a>,
}

/// What is known of the application protocol.
#[derive(Debug, Clone, Copy)]
pub enum Layer7<'a> {
    /// An HTTP request.
    Request(Asked<'a>),
    /// It never will be known. What is said about requests then matches to deny, and does not match to allow.
    Bytes,
    /// Requests will come: only what no request could change is decided.
    Later,
}

/// An HTTP request, as the backend is going to receive it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub method: &'a str,
    /// Canonical, without port.
    pub host: &'a str,
    /// Normalised, without query.
    pub path: &'a str,
    pub query: Option<&'a str>,
    /// `None` when they are not known any more; what is said about them then counts as for [`Layer7::Bytes`].
    pub headers: Option<&'a HeaderMap>,
}

/// What was decided, and by what.
#[derive(Debug, Clone)]
pub struct Verdict<'a> {
    pub allowed: bool,
    pub by: By<'a>,
    /// Audit policies that match. Not told of connections whose requests are still to come.
    pub audited: Vec<&'a Arc<AccessPolicy>>,
}

/// What decided.
#[derive(Debug, Clone, Copy)]
pub enum By<'a> {
    /// A policy with its rule.
    Rule(&'a Arc<AccessPolicy>, &'a AccessRule),
    /// An AuthPolicy demands a token, and there is none; or it is broken.
    Unproven(&'a Auth),
    /// There are policies that allow, and none of them matches.
    NoAllow,
    Default(DefaultAccess),
}

impl Verdict<'_> {
    /// Name of the policy that decided; `default` when none did.
    pub fn policy(&self) -> &str {
        match self.by {
            By::Rule(policy, _) => &policy.name,
            By::Unproven(auth) => &auth.name,
            By::NoAllow | By::Default(_) => "default",
        }
    }

    /// Whether the default would have denied, were it not for audit.
    pub fn default_audit(&self) -> bool {
        matches!(self.by, By::Default(DefaultAccess::Audit))
    }
}

impl std::fmt::Display for By<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            By::Rule(policy, _) if policy.broken.is_some() => {
                write!(f, "policy {} is broken: {}", policy.name, policy.broken.as_deref().unwrap_or_default())
            }
            By::Rule(policy, rule) => {
                let verb = match policy.action {
                    AccessAction::Allow => "allowed",
                    AccessAction::Deny | AccessAction::Audit => "denied",
                };
                write!(f, "{verb} by rule {} of policy {}", rule.name, policy.name)
            }
            By::Unproven(auth) => match &auth.broken {
                Some(why) => write!(f, "AuthPolicy {} is broken: {why}", auth.name),
                None => write!(f, "AuthPolicy {} demands a token, and there is none", auth.name),
            },
            By::NoAllow => f.write_str("no policy that allows matches"),
            By::Default(DefaultAccess::Allow) => f.write_str("no policy decides, and the default is Allow"),
            By::Default(DefaultAccess::Audit) => f.write_str("no policy decides, and the default is Audit"),
            By::Default(DefaultAccess::Deny) => f.write_str("no policy decides, and the default is Deny"),
        }
    }
}

impl Auth {
    /// Whether a subject lacks the proof that is demanded. No token comes with what is not HTTP.
    fn is_unproven(&self, subject: &Subject<'_>) -> bool {
        match subject.layer7 {
            Layer7::Later => false,
            Layer7::Bytes => self.broken.is_some() || !self.optional,
            Layer7::Request(_) => {
                self.broken.is_some() || (!self.optional && subject.claims.is_none() && !subject.preflight)
            }
        }
    }
}

impl Access {
    /// Who must prove who they are and have not, have nothing to say. Deny wins, whatever the order; then one that allows must match where there is one; then the default.
    pub fn decide(&self, subject: &Subject<'_>) -> Verdict<'_> {
        if let Some(auth) = self.auth.as_deref().filter(|auth| auth.is_unproven(subject)) {
            return Verdict { allowed: false, by: By::Unproven(auth), audited: Vec::new() };
        }
        let reading = Reading::new(subject);
        let mut audited = Vec::new();
        let mut allows = false;
        let mut allowed: Option<By<'_>> = None;
        let mut denied: Option<By<'_>> = None;
        for policy in &self.policies {
            allows |= policy.action == AccessAction::Allow;
            let decided = match policy.action {
                AccessAction::Deny => denied.is_some(),
                AccessAction::Allow => denied.is_some() || allowed.is_some(),
                AccessAction::Audit => false,
            };
            if decided {
                continue;
            }
            let Some(rule) = policy.rules.iter().find(|rule| reading.rule(policy.action, rule)) else { continue };
            match policy.action {
                AccessAction::Deny => denied = Some(By::Rule(policy, rule)),
                AccessAction::Allow => allowed = Some(By::Rule(policy, rule)),
                AccessAction::Audit => audited.push(policy),
            }
        }
        let (allowed, by) = match (denied, allowed, allows) {
            (Some(by), _, _) => (false, by),
            (None, Some(by), _) => (true, by),
            (None, None, true) => (false, By::NoAllow),
            (None, None, false) => (self.default != DefaultAccess::Deny, By::Default(self.default)),
        };
        Verdict { allowed, by, audited }
    }
}

/// A subject with the ways in which its path may be read.
struct Reading<'s, 'a> {
    subject: &'s Subject<'a>,
    /// How else a backend may read the path, if it may.
    other: Option<Result<String, ()>>,
}

impl<'s, 'a> Reading<'s, 'a> {
    fn new(subject: &'s Subject<'a>) -> Self {
        let other = match &subject.layer7 {
            Layer7::Request(asked) => other_reading(asked.path),
            Layer7::Bytes | Layer7::Later => None,
        };
        Reading { subject, other }
    }

    /// A path that can be read in several ways is denied if one of them is, and allowed if all of them are.
    fn rule(&self, action: AccessAction, rule: &AccessRule) -> bool {
        let case = |path| Case { subject: self.subject, action, path };
        let literal = case(None).rule(rule);
        match (&self.other, action) {
            (None, _) => literal,
            (Some(Ok(path)), AccessAction::Allow) => literal && case(Some(path)).rule(rule),
            (Some(Ok(path)), _) => literal || case(Some(path)).rule(rule),
            // Nobody can tell what the backend will read.
            (Some(Err(())), AccessAction::Allow) => literal && !about_paths(rule),
            (Some(Err(())), _) => literal || about_paths(rule),
        }
    }
}

fn about_paths(rule: &AccessRule) -> bool {
    let path = |test: &AccessTest| matches!(test.of, AccessFact::Path(_));
    rule.to.iter().flatten().any(path) || rule.when.as_ref().is_some_and(|when| when.needs_request())
}

/// One way to look at a subject, for one action.
struct Case<'s, 'a> {
    subject: &'s Subject<'a>,
    action: AccessAction,
    /// Instead of the path as it is.
    path: Option<&'s str>,
}

impl Case<'_, '_> {
    fn rule(&self, rule: &AccessRule) -> bool {
        self.one(&rule.from) && self.one(&rule.to) && rule.when.as_ref().is_none_or(|when| self.when(when))
    }

    /// One of the lists must hold whole; none given holds.
    fn one(&self, lists: &[Vec<AccessTest>]) -> bool {
        lists.is_empty() || lists.iter().any(|tests| tests.iter().all(|test| self.test(test)))
    }

    /// What a condition on something counts as that is not known, negated or not: to deny it is met, to allow it is not, unless requests are
    /// still to come, which will be judged.
    fn unknown(&self) -> bool {
        let later = matches!(self.subject.layer7, Layer7::Later);
        match self.action {
            AccessAction::Allow => later,
            AccessAction::Deny | AccessAction::Audit => !later,
        }
    }

    fn when(&self, when: &super::Expression) -> bool {
        let known = match &self.subject.layer7 {
            Layer7::Request(asked) => asked.headers.is_some() || !when.needs_headers(),
            Layer7::Bytes | Layer7::Later => !when.needs_request(),
        };
        if !known {
            return self.unknown();
        }
        when.holds(self.subject, self.path).unwrap_or(self.action != AccessAction::Allow)
    }

    fn test(&self, test: &AccessTest) -> bool {
        if self.is_elsewhere(&test.of) {
            return self.action != AccessAction::Allow;
        }
        self.fact(&test.of).map_or_else(|| self.unknown(), |yes| yes != test.not)
    }

    /// Whether the caller has a name that is meant, but in a trust domain that is not: it is let in neither by the condition
    /// nor by its negation, and denied by both.
    fn is_elsewhere(&self, fact: &AccessFact) -> bool {
        let (AccessFact::Namespace(_, Domains::Own(domain)) | AccessFact::ServiceAccount(_, Domains::Own(domain))) =
            fact
        else {
            return false;
        };
        self.subject.identity.is_some_and(|id| id.trust_domain() != domain) && self.fact(fact) == Some(true)
    }

    /// `None` when it cannot be known.
    fn fact(&self, fact: &AccessFact) -> Option<bool> {
        let subject = self.subject;
        let id = subject.identity;
        let asked = match &subject.layer7 {
            Layer7::Request(asked) => Some(asked),
            Layer7::Bytes | Layer7::Later => None,
        };
        Some(match fact {
            AccessFact::Identity(list) => id.is_some_and(|id| list.iter().any(|p| p.matches(id.as_str()))),
            AccessFact::Namespace(list, _) => {
                id.and_then(SpiffeId::namespace).is_some_and(|ns| list.iter().any(|p| p.matches(ns)))
            }
            AccessFact::TrustDomain(list) => id.is_some_and(|id| list.iter().any(|p| p.matches(id.trust_domain()))),
            AccessFact::ServiceAccount(list, _) => match id.and_then(|id| Some((id.namespace()?, id.account()?))) {
                Some((ns, name)) => list.iter().any(|(n, a)| n.matches(ns) && a.matches(name)),
                None => false,
            },
            AccessFact::Ip(nets) => contains(nets, subject.peer),
            // Headers of requests to come may name the client.
            AccessFact::RemoteIp(_) if matches!(subject.layer7, Layer7::Later) => return None,
            AccessFact::RemoteIp(nets) => contains(nets, subject.client),
            AccessFact::Claim(way, values) => return self.claim(way, values),
            AccessFact::Port(ports) => ports.contains(&subject.port),
            AccessFact::Host(list) => {
                let asked = asked?;
                list.iter().any(|pattern| pattern.matches(asked.host))
            }
            AccessFact::Method(list) => {
                let asked = asked?;
                list.iter().any(|method| method == asked.method)
            }
            AccessFact::Path(list) => {
                let path = self.path.unwrap_or(asked?.path);
                list.iter().any(|pattern| pattern.matches(path))
            }
            AccessFact::Header(name, test) => {
                let mut values = asked?.headers?.get_all(name).iter().map(http::HeaderValue::as_bytes);
                match test {
                    HeaderTest::Present => values.next().is_some(),
                    HeaderTest::Exact(all) => values.any(|value| value == all.as_bytes()),
                    HeaderTest::Prefix(begin) => values.any(|value| value.starts_with(begin.as_bytes())),
                }
            }
        })
    }

    fn claim(&self, way: &[String], values: &[super::TextPattern]) -> Option<bool> {
        let Some(mut claim) = self.subject.claims else {
            // Tokens come with requests.
            return if matches!(self.subject.layer7, Layer7::Request(_)) { Some(false) } else { None };
        };
        for name in way {
            match claim.get(name) {
                Some(inner) => claim = inner,
                None => return Some(false),
            }
        }
        let one = |value: &Value| match value {
            Value::String(text) => values.iter().any(|p| p.matches(text)),
            Value::Bool(_) | Value::Number(_) => values.iter().any(|p| p.matches(&value.to_string())),
            _ => false,
        };
        Some(match claim {
            Value::Array(list) => list.iter().any(one),
            value => one(value),
        })
    }
}

fn contains(nets: &[ipnet::IpNet], ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    nets.iter().any(|net| net.contains(&ip))
}
