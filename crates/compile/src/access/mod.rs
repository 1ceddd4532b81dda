//! AccessPolicy and AuthPolicy: what holds where, and the pure decision of who may do what.
//!
//! `attach` says where policies hold. `build` compiles one AccessPolicy, `decide` judges by several, `pattern` and `expression` are
//! what conditions are made of. `auth` compiles an AuthPolicy, `jwks` the keys of its issuers.

mod attach;
mod auth;
mod build;
mod decide;
mod expression;
mod json;
mod jwks;
mod may;
mod pattern;
#[cfg(test)]
mod tests;

pub use decide::{Asked, By, Layer7, Subject, Verdict};
pub use expression::Expression;
pub use json::unique as unique_json;
pub use may::{Arrival, Question, Ruling, may};
pub use pattern::{PathPart, PathPattern, TextPattern};

use crate::{
    Context,
    index::{self, Name},
    snapshot::{Access, AccessPolicy, Auth, DefaultAccess, ListenerName, RouteKey},
    status::Fault,
};
use ahash::AHashMap;
use attach::{Attached, Written};
use selvedge_model::{self as model, Diagnostic, Kind, access::AccessTargetKind, mesh};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Compiled policies by the resources they were made from, so that an unchanged one is not compiled again.
#[derive(Default)]
pub(crate) struct Cache {
    access: AHashMap<(String, String), Built>,
    auth: AHashMap<(String, String), auth::Built>,
}

struct Built {
    from: Arc<model::AccessPolicy>,
    /// Trust domain of the mesh.
    domain: String,
    policy: Arc<AccessPolicy>,
    diagnostics: Vec<Diagnostic>,
}

/// A workload, as policies select it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkloadPlace<'p> {
    pub(crate) namespace: &'p str,
    pub(crate) name: &'p str,
    pub(crate) labels: &'p BTreeMap<String, String>,
    /// Names of the Services of its namespace that it serves.
    pub(crate) services: &'p [&'p str],
}

/// All policies by where they hold.
#[derive(Default)]
pub(crate) struct Accesses<'a> {
    default: DefaultAccess,
    access: Attached<'a, Arc<AccessPolicy>>,
    /// By number in `verifiers`.
    auth: Attached<'a, usize>,
    /// The oldest first.
    verifiers: Vec<Arc<Auth>>,
}

impl<'a> Accesses<'a> {
    /// Compiles all policies and writes the status of each.
    pub(crate) fn new(cx: &mut Context<'a>, cache: &mut Cache) -> Self {
        let default = match cx.mesh.spec.access.as_ref().and_then(|access| access.default) {
            Some(mesh::DefaultAccess::Deny) => DefaultAccess::Deny,
            Some(mesh::DefaultAccess::Audit) => DefaultAccess::Audit,
            Some(mesh::DefaultAccess::Allow) | None => DefaultAccess::Allow,
        };
        let mut all = Accesses { default, ..Accesses::default() };
        all.access_policies(cx, &mut cache.access);
        all.auth_policies(cx, &mut cache.auth);
        all
    }

    fn access_policies(&mut self, cx: &mut Context<'a>, cache: &mut AHashMap<(String, String), Built>) {
        let policies = cx.index.access.clone();
        let mut kept = std::mem::take(cache);
        for policy in policies {
            let at = (policy.metadata.namespace.clone(), policy.metadata.name.clone());
            let domain = cx.mesh.trust_domain;
            let same = |built: &Built| Arc::ptr_eq(&built.from, policy) && built.domain == domain;
            let built = match kept.remove(&at).filter(same) {
                Some(built) => built,
                None => {
                    let (compiled, diagnostics) = build::policy(policy, domain);
                    let (from, domain) = (Arc::clone(policy), domain.to_owned());
                    Built { from, domain, policy: Arc::new(compiled), diagnostics }
                }
            };
            cx.report.0.extend(built.diagnostics.iter().cloned());
            let broken = built.policy.broken.as_ref().map(|why| Fault::new("Invalid", why.clone()));
            let written = Written {
                kind: Kind::AccessPolicy,
                metadata: &policy.metadata,
                targets: &policy.spec.target_refs,
                selector: policy.spec.selector.as_ref(),
                alone: false,
            };
            self.access.enter(cx, written, &built.policy, broken.as_ref());
            cache.insert(at, built);
        }
    }

    fn auth_policies(&mut self, cx: &mut Context<'a>, cache: &mut AHashMap<(String, String), auth::Built>) {
        let policies = cx.index.auth.clone();
        let mut kept = std::mem::take(cache);
        for policy in policies {
            let (namespace, name) = index::name(&policy.metadata);
            let at = (namespace.to_owned(), name.to_owned());
            let secrets = auth::secrets(policy, &cx.index.secrets);
            let built = match kept.remove(&at).filter(|built| built.is_of(policy, &secrets)) {
                Some(built) => built,
                None => auth::Built::new(policy, secrets),
            };
            cx.report.0.extend(built.diagnostics.iter().cloned());
            let broken = built.auth.broken.as_ref().map(|why| Fault::new("Invalid", why.clone()));
            let written = Written {
                kind: Kind::AuthPolicy,
                metadata: &policy.metadata,
                targets: &policy.spec.target_refs,
                selector: policy.spec.selector.as_ref(),
                alone: true,
            };
            self.verifiers.push(Arc::clone(&built.auth));
            self.auth.enter(cx, written, &(self.verifiers.len() - 1), broken.as_ref());
            cache.insert(at, built);
        }
    }

    /// What holds for connections to a workload.
    pub(crate) fn for_workload(&self, place: WorkloadPlace<'_>) -> Arc<Access> {
        let list = self.access.of_workload(place).into_iter().flatten().cloned().collect();
        let auth = self.most_specific(self.auth.of_workload(place));
        Arc::new(self.access(list, None, auth))
    }

    /// What holds for a listener of a Gateway; `None` when everything is open.
    pub(crate) fn for_listener(
        &self,
        gateway: Name<'_>,
        listener: &ListenerName,
        port: u16,
        routes: impl IntoIterator<Item = RouteKey>,
    ) -> Option<Arc<Access>> {
        let list: Vec<_> = self.access.of_listener(gateway, listener).into_iter().flatten().cloned().collect();
        let auth = self.most_specific(self.auth.of_listener(gateway, listener));
        let mut access = self.access(list.clone(), Some(port), auth.clone());
        if self.has_routes() {
            let unique: BTreeSet<RouteKey> = routes.into_iter().collect();
            for key in unique {
                let kind = match key.0 {
                    "GRPCRoute" => AccessTargetKind::GrpcRoute,
                    _ => AccessTargetKind::HttpRoute,
                };
                let name = (key.1.as_str(), key.2.as_str());
                let own: Vec<_> = self.access.of_route(kind, name).cloned().collect();
                let own_auth = self.most_specific([self.auth.of_route(kind, name).collect()]);
                if !own.is_empty() || own_auth.is_some() {
                    let both = list.iter().cloned().chain(own).collect();
                    let auth = own_auth.or_else(|| auth.clone());
                    access.routes.insert(key, Arc::new(self.access(both, Some(port), auth)));
                }
            }
        }
        (!access.is_open()).then(|| Arc::new(access))
    }

    /// Whether some policy targets a route.
    pub(crate) fn has_routes(&self) -> bool {
        self.access.has_routes() || self.auth.has_routes()
    }

    /// The oldest of the last level that has any.
    fn most_specific<const N: usize>(&self, levels: [Vec<&usize>; N]) -> Option<Arc<Auth>> {
        let level = levels.into_iter().rev().find(|level| !level.is_empty())?;
        let oldest = level.into_iter().min()?;
        self.verifiers.get(*oldest).cloned()
    }

    fn access(&self, mut policies: Vec<Arc<AccessPolicy>>, port: Option<u16>, auth: Option<Arc<Auth>>) -> Access {
        policies.sort_by(|a, b| (a.action, &a.name).cmp(&(b.action, &b.name)));
        policies.dedup_by(|a, b| Arc::ptr_eq(a, b));
        Access { default: self.default, port, policies, auth, routes: BTreeMap::new() }
    }
}
