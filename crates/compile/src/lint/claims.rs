//! AccessPolicies that ask for claims where no token is verified.

use super::Code;
use crate::{
    report::Report,
    snapshot::{Access, AccessFact, AccessPolicy, Expression, ListenerName, Protocol, Snapshot, TlsMode},
};
use selvedge_model::{Kind, ResourceKey};

pub(super) fn all(snapshot: &Snapshot, report: &mut Report) {
    for listener in &snapshot.listeners {
        let mut at = |name: &ListenerName, access: Option<&Access>| {
            access.into_iter().for_each(|access| place(name, access, report));
        };
        match &listener.protocol {
            Protocol::Http(hosts) => hosts.values().for_each(|http| at(&http.name, http.access.as_deref())),
            Protocol::Tls(hosts) => {
                for tls in hosts.values() {
                    if let TlsMode::Http { http, .. } = &tls.mode {
                        at(&tls.name, http.access.as_deref());
                    }
                }
            }
            Protocol::Inbound(inbound) => at(&inbound.name, Some(&inbound.access)),
            Protocol::Tcp(_) | Protocol::Udp(_) | Protocol::Outbound(_) => {}
        }
    }
}

fn place(name: &ListenerName, access: &Access, report: &mut Report) {
    for here in std::iter::once(access).chain(access.routes.values().map(|access| &**access)) {
        if here.auth.is_none() {
            here.policies.iter().for_each(|policy| asks(policy, name, report));
        }
    }
}

/// Tells of each place in a policy that asks for claims.
fn asks(policy: &AccessPolicy, place: &ListenerName, report: &mut Report) {
    let Some((namespace, name)) = policy.name.split_once('/') else { return };
    let key = ResourceKey::new(Kind::AccessPolicy, namespace, name);
    let why = format!("no AuthPolicy holds at {place}, so that no request there has claims");
    for (i, rule) in policy.rules.iter().enumerate() {
        for (n, tests) in rule.from.iter().enumerate() {
            if tests.iter().any(|test| matches!(test.of, AccessFact::Claim(..))) {
                let path = format!("spec.rules[{i}].from[{n}].claims");
                report.warning(&key, Code::NoEffect, &path, &format!("{why}: this `from` matches none of them"));
            }
        }
        if rule.when.as_ref().is_some_and(Expression::reads_claims) {
            report.warning(&key, Code::NoEffect, &format!("spec.rules[{i}].when"), &why);
        }
    }
}
