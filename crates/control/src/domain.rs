//! The trust domain of a mesh stays: a Mesh that names another one than the certificates are of is not taken.

use selvedge_model::{Code, Diagnostic, Kind, Mesh, Resource, ResourceKey, Resources, mesh::MeshSpec};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::watch;

/// Of which trust domain the certificates are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Domain {
    pub name: String,
    /// Where it is written: `the certificate authority in .selvedge-control/ca.redb`.
    pub place: String,
}

/// What the Mesh says; nothing when it leaves the trust domain to whoever issues certificates.
pub fn declared(resources: &Resources) -> Option<&str> {
    let meshes = || resources.meshes().iter();
    let chosen = meshes().find(|mesh| mesh.metadata.name == "default").or_else(|| meshes().next());
    chosen?.spec.trust_domain.as_deref()
}

/// Keeps the Mesh in the trust domain, as soon as that is known.
pub(crate) struct Guard {
    domain: watch::Receiver<Option<Domain>>,
    /// The last Mesh of each name that was taken.
    kept: BTreeMap<String, Arc<Mesh>>,
}

impl Guard {
    pub(crate) fn new(domain: watch::Receiver<Option<Domain>>) -> Self {
        Self { domain, kept: BTreeMap::new() }
    }

    /// What an earlier run has taken.
    pub(crate) fn remember<'r>(&mut self, resources: impl Iterator<Item = &'r Resource>) {
        for resource in resources {
            if let Resource::Mesh(mesh) = resource {
                self.kept.insert(mesh.metadata.name.clone(), Arc::clone(mesh));
            }
        }
    }

    /// Waits until the domain is told anew; never, when nobody is left to tell it.
    pub(crate) async fn changed(&mut self) {
        if self.domain.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn name(&self) -> Option<String> {
        self.domain.borrow().as_ref().map(|domain| domain.name.clone())
    }

    /// Puts what was before in the place of a Mesh of another trust domain, and tells.
    pub(crate) fn apply(&mut self, resources: &mut Resources) -> Vec<Diagnostic> {
        let Some(domain) = self.domain.borrow().clone() else { return Vec::new() };
        let meshes: Vec<Arc<Mesh>> = resources.meshes().iter().cloned().collect();
        let mut refused = Vec::new();
        for mesh in &meshes {
            let name = &mesh.metadata.name;
            let Some(wanted) = mesh.spec.trust_domain.as_deref().filter(|wanted| *wanted != domain.name) else {
                self.kept.insert(name.clone(), Arc::clone(mesh));
                continue;
            };
            refused.push(refusal(name, wanted, &domain));
            let fits = |kept: &&Arc<Mesh>| kept.spec.trust_domain.as_ref().is_none_or(|named| *named == domain.name);
            let stays = self.kept.get(name).filter(fits).cloned().unwrap_or_else(|| {
                let spec = MeshSpec { trust_domain: Some(domain.name.clone()), ..mesh.spec.clone() };
                Arc::new(Mesh { metadata: mesh.metadata.clone(), spec })
            });
            self.kept.insert(name.clone(), Arc::clone(&stays));
            resources.upsert(Resource::Mesh(stays));
        }
        self.kept.retain(|name, _| meshes.iter().any(|mesh| mesh.metadata.name == *name));
        refused
    }
}

fn refusal(name: &str, wanted: &str, domain: &Domain) -> Diagnostic {
    let Domain { name: own, place } = domain;
    let message = format!(
        "the Mesh says {wanted}, but {place} is of trust domain {own}: this Mesh is not taken, and what it said before stays"
    );
    let path = "spec.trustDomain".parse().unwrap_or_default();
    Diagnostic::error(Code::OtherTrustDomain, ResourceKey::new(Kind::Mesh, "", name), path, message).help(format!(
        "write {own} again; another trust domain needs a control plane with a store of its own, which proxies join with new \
         tokens, and `federation` in both Meshes meanwhile (`selvedge explain SELV0224`)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvedge_model::{Limits, parse};

    fn mesh(spec: &str) -> Resources {
        let text =
            format!("apiVersion: selvedge.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: default}}\nspec: {spec}\n");
        let mut resources = Resources::default();
        resources
            .extend(parse("test", text.as_bytes(), &Limits::default()).loaded.into_iter().filter_map(|l| l.resource));
        resources
    }

    fn shown(resources: &Resources) -> (Option<&str>, bool) {
        let strict = resources.meshes().iter().any(|mesh| mesh.spec.mtls.is_some());
        (declared(resources), strict)
    }

    #[test]
    fn the_trust_domain_stays_whatever_the_mesh_says() {
        let told = watch::Sender::new(None);
        let mut guard = Guard::new(told.subscribe());
        let mut first = mesh("{trustDomain: b.example, mtls: {mode: Strict}}");
        assert!(guard.apply(&mut first).is_empty(), "nothing is known yet");
        told.send_replace(Some(Domain { name: "a.example".into(), place: "the store".into() }));
        // Nothing to keep: all but the name is taken.
        let diagnostics = guard.apply(&mut first);
        assert_eq!(shown(&first), (Some("a.example"), true));
        let text = diagnostics[0].to_string();
        assert!(text.contains("says b.example") && text.contains("the store is of trust domain a.example"), "{text}");
        // What was taken stays whole.
        let mut good = mesh("{trustDomain: a.example}");
        assert!(guard.apply(&mut good).is_empty());
        let mut other = mesh("{trustDomain: b.example, mtls: {mode: Strict}}");
        assert_eq!(guard.apply(&mut other).len(), 1);
        assert_eq!(shown(&other), (Some("a.example"), false));
        // Who names none follows, and what is gone is forgotten.
        let mut silent = mesh("{mtls: {mode: Strict}}");
        assert!(guard.apply(&mut silent).is_empty());
        assert_eq!(shown(&silent), (None, true));
        guard.apply(&mut Resources::default());
        assert!(guard.kept.is_empty());
    }
}
