//! One AccessPolicy, from what a user wrote to what is judged by.

use super::{Expression, PathPattern, TextPattern};
use crate::snapshot::{AccessAction, AccessFact, AccessPolicy, AccessRule, AccessTest, Domains, HeaderTest};
use http::HeaderName;
use ipnet::IpNet;
use selvedge_model::{
    self as model, Code, Diagnostic, FieldPath, Kind, ResourceKey,
    access::{AccessAction as Action, AccessClaim, AccessHeader, AccessOperation, AccessSource},
    validate,
};
use selvedge_wire::spiffe::{self, SpiffeId};
use std::net::IpAddr;

/// Compiles a policy of a mesh of this trust domain. One that has an error denies everything where it holds.
pub(super) fn policy(policy: &model::AccessPolicy, domain: &str) -> (AccessPolicy, Vec<Diagnostic>) {
    let (namespace, name) = (&policy.metadata.namespace, &policy.metadata.name);
    let mut build = Build { namespace, domain, errors: Vec::new(), doubts: Vec::new() };
    let spec = &policy.spec;
    if !spec.target_refs.is_empty() && spec.selector.is_some() {
        build.errors.push(("spec.selector".to_owned(), "`targetRefs` and `selector` exclude each other".to_owned()));
    }
    if let Some(Err(why)) = spec.selector.as_ref().map(validate::label_selector) {
        build.errors.push(("spec.selector".to_owned(), why));
    }
    let mut rules = Vec::with_capacity(spec.rules.len());
    for (i, rule) in spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{i}]");
        let from = rule.from.iter().enumerate();
        let from = from.map(|(n, source)| build.source(source, &format!("{at}.from[{n}]"))).collect();
        let to = rule.to.iter().enumerate();
        let to = to.map(|(n, operation)| build.operation(operation, &format!("{at}.to[{n}]"))).collect();
        let when = rule.when.as_deref().and_then(|text| build.check(&format!("{at}.when"), Expression::compile(text)));
        rules.push(AccessRule { name: rule.name.clone().unwrap_or_else(|| format!("#{i}")), from, to, when });
    }
    if spec.unreadable {
        build.errors.push(("spec".to_owned(), "it cannot be read".to_owned()));
    }
    let key = ResourceKey::new(Kind::AccessPolicy, namespace.as_str(), name.as_str());
    let broken = build.errors.first().map(|(at, why)| format!("{at}: {why}"));
    let tell = |(at, why): (String, String)| {
        let path: FieldPath = at.parse().unwrap_or_default();
        Diagnostic::error(Code::BrokenAccessPolicy, key.clone(), path, why)
            .help("until it is corrected, everything that the policy targets is denied")
    };
    let doubt = |(at, why): (String, String)| {
        Diagnostic::warning(Code::NoEffect, key.clone(), at.parse().unwrap_or_default(), why)
    };
    let doubts: Vec<Diagnostic> = build.doubts.into_iter().map(doubt).collect();
    let diagnostics = build.errors.into_iter().map(tell).chain(doubts).collect();
    let (action, rules) = match (&broken, spec.action) {
        (Some(_), _) => (AccessAction::Deny, vec![everything()]),
        (None, Action::Allow) => (AccessAction::Allow, rules),
        (None, Action::Deny) => (AccessAction::Deny, rules),
        (None, Action::Audit) => (AccessAction::Audit, rules),
    };
    (AccessPolicy { name: format!("{namespace}/{name}"), action, rules, broken }, diagnostics)
}

fn everything() -> AccessRule {
    AccessRule { name: "everything".to_owned(), from: Vec::new(), to: Vec::new(), when: None }
}

struct Build<'p> {
    namespace: &'p str,
    /// Of the mesh.
    domain: &'p str,
    /// Field and what is wrong with it.
    errors: Vec<(String, String)>,
    /// What is valid, but hardly meant.
    doubts: Vec<(String, String)>,
}

impl Build<'_> {
    fn check<T>(&mut self, at: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|why| self.errors.push((at.to_owned(), why))).ok()
    }

    /// A list of values and its negation, each a test when it is given.
    fn pair<T>(
        &mut self,
        (at, name): (&str, &str),
        (yes, not): (&[String], &[String]),
        parse: impl Fn(&str) -> Result<T, String>,
        fact: impl Fn(Vec<T>) -> AccessFact,
        into: &mut Vec<AccessTest>,
    ) {
        for (list, negated) in [(yes, false), (not, true)] {
            if list.is_empty() {
                continue;
            }
            let name = if negated { negate(name) } else { name.to_owned() };
            let values = list.iter().enumerate();
            let values = values.filter_map(|(i, text)| self.check(&format!("{at}.{name}[{i}]"), parse(text))).collect();
            into.push(AccessTest { not: negated, of: fact(values) });
        }
    }

    fn source(&mut self, source: &AccessSource, at: &str) -> Vec<AccessTest> {
        let mut tests = Vec::new();
        let own = self.namespace.to_owned();
        let namespace = |text: &str| checked(text, validate::dns_label);
        let domain = |text: &str| {
            checked(text, |it| {
                if spiffe::is_trust_domain(it) { Ok(()) } else { Err(spiffe::Invalid::TrustDomain.to_string()) }
            })
        };
        let account = |text: &str| {
            let (ns, name) = text.split_once('/').unwrap_or((&own, text));
            Ok((checked(ns, validate::dns_label)?, checked(name, validate::dns_subdomain)?))
        };
        let s = source;
        let domains = match s.trust_domains.is_empty() {
            true => Domains::Own(self.domain.to_owned()),
            false => Domains::Named,
        };
        // Cheap ones first: all must hold.
        self.pair(
            (at, "trustDomains"),
            (&s.trust_domains, &s.not_trust_domains),
            domain,
            AccessFact::TrustDomain,
            &mut tests,
        );
        let fact = |names| AccessFact::Namespace(names, domains.clone());
        self.pair((at, "namespaces"), (&s.namespaces, &s.not_namespaces), namespace, fact, &mut tests);
        let accounts = (s.service_accounts.as_slice(), s.not_service_accounts.as_slice());
        let fact = |names| AccessFact::ServiceAccount(names, domains.clone());
        self.pair((at, "serviceAccounts"), accounts, account, fact, &mut tests);
        self.pair((at, "identities"), (&s.identities, &s.not_identities), identity, AccessFact::Identity, &mut tests);
        self.pair((at, "ipBlocks"), (&s.ip_blocks, &s.not_ip_blocks), range, AccessFact::Ip, &mut tests);
        let remote = (s.remote_ip_blocks.as_slice(), s.not_remote_ip_blocks.as_slice());
        self.pair((at, "remoteIpBlocks"), remote, range, AccessFact::RemoteIp, &mut tests);
        for (i, claim) in s.claims.iter().enumerate() {
            tests.extend(self.claim(claim, &format!("{at}.claims[{i}]")));
        }
        if tests.is_empty() {
            self.errors.push((at.to_owned(), "it says nothing; leave `from` out to mean everybody".to_owned()));
        }
        tests
    }

    fn claim(&mut self, claim: &AccessClaim, at: &str) -> Option<AccessTest> {
        let way: Vec<String> = claim.name.split('/').map(str::to_owned).collect();
        if way.iter().any(String::is_empty) {
            self.errors.push((format!("{at}.name"), format!("`{}` has an empty part", claim.name)));
            return None;
        }
        let values = claim.values.iter().enumerate();
        let values =
            values.filter_map(|(i, text)| self.check(&format!("{at}.values[{i}]"), TextPattern::parse(text))).collect();
        Some(AccessTest { not: false, of: AccessFact::Claim(way, values) })
    }

    fn operation(&mut self, operation: &AccessOperation, at: &str) -> Vec<AccessTest> {
        let mut tests = Vec::new();
        let o = operation;
        for (ports, not) in [(&o.ports, false), (&o.not_ports, true)] {
            if !ports.is_empty() {
                tests.push(AccessTest { not, of: AccessFact::Port(ports.clone()) });
            }
        }
        for (list, field) in [(&o.methods, "methods"), (&o.not_methods, "notMethods")] {
            for (i, text) in list.iter().enumerate().filter(|(_, text)| text.bytes().any(|b| b.is_ascii_lowercase())) {
                let upper = text.to_ascii_uppercase();
                let why =
                    format!("methods are case-sensitive, and `{text}` is another than `{upper}`, which clients send");
                self.doubts.push((format!("{at}.{field}[{i}]"), why));
            }
        }
        let method = |text: &str| validate::method(text).map(|()| text.to_owned());
        self.pair((at, "methods"), (&o.methods, &o.not_methods), method, AccessFact::Method, &mut tests);
        self.pair((at, "hosts"), (&o.hosts, &o.not_hosts), host, AccessFact::Host, &mut tests);
        self.pair((at, "paths"), (&o.paths, &o.not_paths), PathPattern::parse, AccessFact::Path, &mut tests);
        for (list, field, negated) in [(&o.headers, "headers", false), (&o.not_headers, "notHeaders", true)] {
            for (i, header) in list.iter().enumerate() {
                tests.extend(self.header(header, negated, &format!("{at}.{field}[{i}]")));
            }
        }
        if tests.is_empty() {
            self.errors.push((at.to_owned(), "it says nothing; leave `to` out to mean everything".to_owned()));
        }
        tests
    }

    fn header(&mut self, header: &AccessHeader, negated: bool, at: &str) -> Option<AccessTest> {
        let name = validate::header_name(&header.name)
            .and_then(|()| HeaderName::from_bytes(header.name.as_bytes()).map_err(|error| error.to_string()));
        let name = self.check(&format!("{at}.name"), name)?;
        if matches!(name.as_str(), "host" | "connection" | "transfer-encoding") {
            let why = format!("the header {name} is not seen here; use `hosts` for hosts");
            self.errors.push((format!("{at}.name"), why));
            return None;
        }
        let (test, absent) = match (&header.exact, &header.prefix, header.present) {
            (Some(all), None, None) => (HeaderTest::Exact(all.clone()), false),
            (None, Some(begin), None) => (HeaderTest::Prefix(begin.clone()), false),
            (None, None, Some(there)) => (HeaderTest::Present, !there),
            _ => {
                let why = "exactly one of `exact`, `prefix` and `present` must be given";
                self.errors.push((at.to_owned(), why.to_owned()));
                return None;
            }
        };
        Some(AccessTest { not: negated != absent, of: AccessFact::Header(name, test) })
    }
}

/// `notX` for `x`.
fn negate(name: &str) -> String {
    let mut chars = name.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    format!("not{}{}", first.unwrap_or_default(), chars.as_str())
}

/// A pattern whose text must, when it is a whole one, be valid: a misspelt name would never match.
fn checked(text: &str, check: impl Fn(&str) -> Result<(), String>) -> Result<TextPattern, String> {
    let pattern = TextPattern::parse(text)?;
    if let TextPattern::Exact(all) = &pattern {
        check(all)?;
    }
    Ok(pattern)
}

fn identity(text: &str) -> Result<TextPattern, String> {
    let pattern = checked(text, |all| {
        all.parse::<SpiffeId>().map(drop).map_err(|error| format!("`{all}` is not a SPIFFE ID: {error}"))
    })?;
    match &pattern {
        TextPattern::Prefix(begin) if !begin.starts_with("spiffe://") && !"spiffe://".starts_with(begin.as_str()) => {
            Err(format!("`{text}` matches no SPIFFE ID: they begin with `spiffe://`"))
        }
        _ => Ok(pattern),
    }
}

fn host(text: &str) -> Result<TextPattern, String> {
    let lower = text.to_ascii_lowercase();
    if text.contains('/') || !text.is_ascii() {
        return Err(format!("`{text}` is not a host; write it alone, and names of other scripts as xn--"));
    }
    let pattern = TextPattern::parse(&lower)?;
    match pattern {
        TextPattern::Exact(all) => match selvedge_wire::host::parse(all.as_bytes()) {
            Ok(authority) if authority.port.is_none() => Ok(TextPattern::Exact(authority.host.into_owned())),
            Ok(_) => Err(format!("`{text}` has a port; use `ports`")),
            Err(error) => Err(format!("`{text}`: {error}")),
        },
        other => Ok(other),
    }
}

/// An address or a range; addresses in other notations are the same as in the plain one.
fn range(text: &str) -> Result<IpNet, String> {
    let refused = || format!("`{text}` is neither an address nor a range such as 10.0.0.0/8");
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(ip.to_canonical()));
    }
    let net: IpNet = text.parse().map_err(|_| refused())?;
    let mapped = match net.addr() {
        IpAddr::V6(ip) => ip.to_ipv4_mapped(),
        IpAddr::V4(_) => None,
    };
    match mapped {
        // `::ffff:10.0.0.0/104` is 10.0.0.0/8.
        Some(ip) if net.prefix_len() >= 96 => {
            IpNet::new(IpAddr::V4(ip), net.prefix_len() - 96).map(|net| net.trunc()).map_err(|_| refused())
        }
        _ => Ok(net.trunc()),
    }
}
