//! Resolves references to certificates and CA bundles, remembering what was parsed.

use crate::{
    grants::{self, From, To},
    index::Index,
    report::did_you_mean,
    snapshot::{CaBundle, CertificateRef},
    status::Fault,
    tls,
};
use ahash::AHashMap;
use selvedge_model::{
    ConfigMap, Kind, Secret,
    refs::{ObjectReference, SecretObjectReference},
};
use std::sync::Arc;

/// Parsed certificates and CA bundles. An entry holds the resource that it was made from, so that an unchanged
/// resource (the same `Arc`) is never parsed again, and a changed one always is.
#[derive(Default)]
pub(crate) struct TlsCache {
    certificates: AHashMap<(String, String), (Arc<Secret>, Result<CertificateRef, String>)>,
    secrets: AHashMap<(String, String), (Arc<Secret>, Result<Arc<CaBundle>, String>)>,
    config_maps: AHashMap<(String, String), (Arc<ConfigMap>, Result<Arc<CaBundle>, String>)>,
}

impl TlsCache {
    pub(crate) fn certificate(&mut self, secret: &Arc<Secret>) -> Result<CertificateRef, String> {
        cached(&mut self.certificates, secret, &secret.metadata, |s| tls::certificate(s).map(Arc::new))
    }

    pub(crate) fn ca_of_secret(&mut self, secret: &Arc<Secret>) -> Result<Arc<CaBundle>, String> {
        cached(&mut self.secrets, secret, &secret.metadata, |s| tls::ca_of_secret(s).map(Arc::new))
    }

    pub(crate) fn ca_of_config_map(&mut self, map: &Arc<ConfigMap>) -> Result<Arc<CaBundle>, String> {
        cached(&mut self.config_maps, map, &map.metadata, |m| tls::ca_of_config_map(m).map(Arc::new))
    }

    /// Forgets what no resource asks for any more.
    pub(crate) fn retain(&mut self, index: &Index<'_>) {
        let secret = |key: &(String, String)| index.secrets.contains_key(&(key.0.as_str(), key.1.as_str()));
        self.certificates.retain(|key, _| secret(key));
        self.secrets.retain(|key, _| secret(key));
        self.config_maps.retain(|key, _| index.config_maps.contains_key(&(key.0.as_str(), key.1.as_str())));
    }
}

fn cached<S, T: Clone>(
    map: &mut AHashMap<(String, String), (Arc<S>, Result<T, String>)>,
    source: &Arc<S>,
    meta: &selvedge_model::ObjectMeta,
    make: impl FnOnce(&S) -> Result<T, String>,
) -> Result<T, String> {
    let key = (meta.namespace.clone(), meta.name.clone());
    if let Some((from, made)) = map.get(&key)
        && Arc::ptr_eq(from, source)
    {
        return made.clone();
    }
    let made = make(source);
    map.insert(key, (Arc::clone(source), made.clone()));
    made
}

/// Why a reference to a CA bundle does not resolve; each has its own reason in the standard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CaFault {
    Kind(String),
    NotPermitted(String),
    Invalid(String),
}

/// The certificate that a Gateway, ListenerSet or policy refers to. `invalid` is the reason to give when the
/// reference is broken in another way than by a missing grant.
pub(crate) fn certificate(
    cache: &mut TlsCache,
    index: &Index<'_>,
    from: From<'_>,
    reference: &SecretObjectReference,
    invalid: &'static str,
) -> Result<CertificateRef, Fault> {
    if reference.kind != "Secret" || !reference.group.is_empty() {
        let kind = qualified(&reference.group, &reference.kind);
        return Err(Fault::new(invalid, format!("a certificate must be a Secret, not a {kind}")));
    }
    let namespace = reference.namespace.as_deref().unwrap_or(from.namespace);
    let to = To { group: "", kind: "Secret", namespace, name: &reference.name };
    if !index.grants.allow(from, to) {
        return Err(Fault::new("RefNotPermitted", grants::advice(from, to)));
    }
    let Some(secret) = index.secrets.get(&(namespace, reference.name.as_str())) else {
        let near = did_you_mean(&reference.name, index.names(Kind::Secret, namespace));
        return Err(Fault::new(invalid, format!("Secret {namespace}/{} does not exist{near}", reference.name)));
    };
    cache
        .certificate(secret)
        .map_err(|e| Fault::new(invalid, format!("Secret {namespace}/{} is not usable: {e}", reference.name)))
}

/// The CA bundle that a Gateway refers to.
pub(crate) fn ca(
    cache: &mut TlsCache,
    index: &Index<'_>,
    from: From<'_>,
    reference: &ObjectReference,
) -> Result<Arc<CaBundle>, CaFault> {
    let namespace = reference.namespace.as_deref().unwrap_or(from.namespace);
    if !reference.group.is_empty() || !matches!(reference.kind.as_str(), "ConfigMap" | "Secret") {
        let kind = qualified(&reference.group, &reference.kind);
        return Err(CaFault::Kind(format!("CA certificates must be in a ConfigMap or Secret, not a {kind}")));
    }
    let to = To { group: "", kind: &reference.kind, namespace, name: &reference.name };
    if !index.grants.allow(from, to) {
        return Err(CaFault::NotPermitted(grants::advice(from, to)));
    }
    let missing = || {
        let kind = if reference.kind == "Secret" { Kind::Secret } else { Kind::ConfigMap };
        let near = did_you_mean(&reference.name, index.names(kind, namespace));
        CaFault::Invalid(format!("{} {namespace}/{} does not exist{near}", reference.kind, reference.name))
    };
    let key = (namespace, reference.name.as_str());
    let found = if reference.kind == "Secret" {
        cache.ca_of_secret(index.secrets.get(&key).ok_or_else(missing)?)
    } else {
        cache.ca_of_config_map(index.config_maps.get(&key).ok_or_else(missing)?)
    };
    found.map_err(CaFault::Invalid)
}

/// `group/Kind`, or the kind alone for the core group.
pub(crate) fn qualified(group: &str, kind: &str) -> String {
    if group.is_empty() { kind.to_owned() } else { format!("{group}/{kind}") }
}
