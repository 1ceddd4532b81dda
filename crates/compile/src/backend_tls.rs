//! BackendTLSPolicy: which applies to which Service port, and whether it can be used.
//!
//! A policy for one port (sectionName) wins over one for the whole Service; of several for the same, the oldest wins. A
//! policy that applies but cannot be used closes the backend: sending in clear text what was meant for TLS would be worse.

use crate::{
    Context, index,
    report::did_you_mean,
    secrets::{TlsCache, qualified},
    snapshot::{CaBundle, SubjectAltName, Trust, UpstreamTls},
    status::{Conditions, Fault, PolicyAncestorStatus, PolicyStatus, ResourceStatus},
    tls,
};
use ahash::AHashMap;
use selvedge_model::{
    BackendTlsPolicy, Code, GATEWAY_GROUP, Kind, ResourceKey,
    backend_tls::{SubjectAltNameType, WellKnownCaCertificates},
    refs::{LocalObjectReference, ParentReference},
};
use std::{collections::BTreeSet, sync::Arc};

/// All policies, by the Service they apply to.
#[derive(Default)]
pub(crate) struct BackendTls<'a> {
    /// By namespace and Service: the port name (`None` is the whole Service) and the policy that won it.
    targets: AHashMap<(&'a str, &'a str), Vec<(Option<&'a str>, usize)>>,
    policies: Vec<PolicyState<'a>>,
}

struct PolicyState<'a> {
    policy: &'a BackendTlsPolicy,
    /// What it says, or why it cannot be used.
    tls: Result<Arc<UpstreamTls>, String>,
    accepted: Option<Fault>,
    refs: Option<Fault>,
}

impl PolicyState<'_> {
    fn key(&self) -> ResourceKey {
        let (namespace, name) = index::name(&self.policy.metadata);
        ResourceKey::new(Kind::BackendTlsPolicy, namespace, name)
    }
}

impl<'a> BackendTls<'a> {
    pub(crate) fn new(cx: &mut Context<'a>, cache: &mut TlsCache) -> Self {
        let mut all = BackendTls::default();
        for policy in cx.index.backend_tls.clone() {
            let mut state = usable(cx, cache, policy);
            all.target(cx, &mut state);
            all.policies.push(state);
        }
        all
    }

    /// What holds for a port of a Service: nothing, the settings, or why they cannot be used.
    pub(crate) fn policy(
        &self,
        namespace: &str,
        service: &str,
        port: Option<&str>,
    ) -> Option<Result<&Arc<UpstreamTls>, &str>> {
        let list = self.targets.get(&(namespace, service))?;
        let of_port = list.iter().find(|(section, _)| section.is_some() && *section == port);
        let (_, winner) = of_port.or_else(|| list.iter().find(|(section, _)| section.is_none()))?;
        Some(self.policies.get(*winner)?.tls.as_ref().map_err(String::as_str))
    }

    /// Whether some policy names the Service.
    pub(crate) fn knows(&self, service: &(String, String)) -> bool {
        self.targets.contains_key(&(service.0.as_str(), service.1.as_str()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Enters the targets of a policy; the older ones are in already.
    fn target(&mut self, cx: &mut Context<'a>, state: &mut PolicyState<'a>) {
        let policy = state.policy;
        let (namespace, key) = (policy.metadata.namespace.as_str(), state.key());
        let mut lost = Vec::new();
        let mut astray = None;
        let mut won = 0;
        for (i, target) in policy.spec.target_refs.iter().enumerate() {
            let path = format!("spec.targetRefs[{i}]");
            if !target.group.is_empty() || target.kind != "Service" {
                let message = format!("the target must be a Service, not a {}", qualified(&target.group, &target.kind));
                cx.report.error(&key, Code::UnsupportedReference, &path, &message);
                continue;
            }
            let section = target.section_name.as_deref();
            let service = cx.index.service(namespace, &target.name);
            let missing = match (service, section) {
                (None, _) => {
                    let near = did_you_mean(&target.name, cx.index.service_names(namespace));
                    Some(format!("Service {namespace}/{} does not exist{near}", target.name))
                }
                (Some(s), Some(port)) if !s.spec.ports.iter().any(|p| p.name.as_deref() == Some(port)) => {
                    let ports: Vec<&str> = s.spec.ports.iter().filter_map(|p| p.name.as_deref()).collect();
                    let near = selvedge_model::diagnostic::nearest(port, ports.iter().copied())
                        .map(|n| format!("; did you mean {n}?"))
                        .unwrap_or_default();
                    Some(format!(
                        "Service {namespace}/{} has no port named {port}: the policy has no effect, its ports are \
                         spoken to in CLEAR TEXT unless another policy says otherwise{near}",
                        target.name
                    ))
                }
                _ => None,
            };
            if let Some(message) = missing {
                cx.report.error(&key, Code::TargetNotFound, &path, &message);
                if service.is_some() {
                    // So that the status is written where the Service is reached.
                    self.targets.entry((namespace, &target.name)).or_default();
                }
                astray.get_or_insert(message);
                continue;
            }
            let list = self.targets.entry((namespace, &target.name)).or_default();
            if let Some((_, winner)) = list.iter().find(|(s, _)| *s == section) {
                let winner = &self.policies[*winner].policy.metadata.name;
                let message = format!("the older BackendTLSPolicy {winner} already applies to Service {}", target.name);
                cx.report.error(&key, Code::PolicyConflict, &path, &message);
                lost.push(message);
            } else {
                list.push((section, self.policies.len()));
                won += 1;
            }
        }
        if won > 0 {
            return;
        }
        if let Some(message) = lost.into_iter().next() {
            state.accepted = Some(Fault::new("Conflicted", message));
        } else if let Some(message) = astray {
            state.accepted = Some(Fault::new("TargetNotFound", message));
        }
    }

    /// Writes the status of each policy for every Gateway that reaches one of its Services. `reached` holds Services
    /// (namespace, name) with the Gateway (namespace, name) that some route of reaches them.
    pub(crate) fn write_status(&self, cx: &mut Context<'_>, reached: &BTreeSet<((String, String), (String, String))>) {
        for state in &self.policies {
            let namespace = &state.policy.metadata.namespace;
            let targets = |service: &(String, String)| {
                service.0 == *namespace && state.policy.spec.target_refs.iter().any(|t| t.name == service.1)
            };
            let gateways: BTreeSet<&(String, String)> =
                reached.iter().filter(|(service, _)| targets(service)).map(|(_, gateway)| gateway).collect();
            let make = Conditions(state.policy.metadata.generation);
            let conditions =
                vec![make.check("Accepted", state.accepted.as_ref()), make.check("ResolvedRefs", state.refs.as_ref())];
            let ancestors = gateways.into_iter().take(MAX_ANCESTORS).map(|(namespace, name)| PolicyAncestorStatus {
                ancestor_ref: ParentReference {
                    group: GATEWAY_GROUP.to_owned(),
                    kind: "Gateway".to_owned(),
                    namespace: Some(namespace.clone()),
                    name: name.clone(),
                    section_name: None,
                    port: None,
                },
                controller_name: cx.controller(),
                conditions: conditions.clone(),
            });
            let status = PolicyStatus { ancestors: ancestors.collect() };
            cx.status.set(state.key(), ResourceStatus::Policy(status));
        }
    }
}

/// The limit of the standard.
const MAX_ANCESTORS: usize = 16;

fn usable<'a>(cx: &mut Context<'a>, cache: &mut TlsCache, policy: &'a BackendTlsPolicy) -> PolicyState<'a> {
    let validation = &policy.spec.validation;
    let mut state = PolicyState { policy, tls: Err(String::new()), accepted: None, refs: None };
    let key = state.key();
    let trust = match &validation.well_known_ca_certificates {
        Some(WellKnownCaCertificates::System) if validation.ca_certificate_refs.is_empty() => Ok(Trust::System),
        Some(WellKnownCaCertificates::Other(name)) => Err((
            "spec.validation.wellKnownCACertificates",
            "Invalid",
            format!("the set {name} is not known: System is"),
        )),
        Some(WellKnownCaCertificates::System) => {
            let message = "caCertificateRefs and wellKnownCACertificates exclude each other".to_owned();
            Err(("spec.validation", "Invalid", message))
        }
        None => trusted(cx, cache, &mut state),
    };
    match trust {
        Ok(trust) => {
            let names = validation.subject_alt_names.iter().filter_map(|n| match n.name_type {
                SubjectAltNameType::Hostname => {
                    n.hostname.as_deref().map(|h| SubjectAltName::Hostname(crate::hosts::normal(h)))
                }
                SubjectAltNameType::Uri => n.uri.clone().map(SubjectAltName::Uri),
            });
            let sni = crate::hosts::normal(&validation.hostname);
            let subject_alt_names = names.collect();
            state.tls = Ok(Arc::new(UpstreamTls { sni, trust, subject_alt_names, client_certificate: None }));
        }
        Err((path, reason, message)) => {
            // A reference that is broken has been reported by itself.
            if state.refs.is_none() {
                cx.report.error(&key, Code::InvalidCaCertificate, path, &message);
            }
            state.accepted = Some(Fault::new(reason, message.clone()));
            state.tls = Err(message);
        }
    }
    state
}

fn trusted(
    cx: &mut Context<'_>,
    cache: &mut TlsCache,
    state: &mut PolicyState<'_>,
) -> Result<Trust, (&'static str, &'static str, String)> {
    let namespace = state.policy.metadata.namespace.as_str();
    let refs = &state.policy.spec.validation.ca_certificate_refs;
    let mut bundles = Vec::new();
    for (i, reference) in refs.iter().enumerate() {
        match bundle(cx, cache, namespace, reference) {
            Ok(bundle) => bundles.push(bundle),
            Err(fault) => {
                let path = format!("spec.validation.caCertificateRefs[{i}]");
                cx.report.error(&state.key(), Code::InvalidCaCertificate, &path, &fault.message);
                state.refs.get_or_insert(fault);
            }
        }
    }
    tls::join(bundles).map(Trust::Roots).ok_or_else(|| {
        let why = state.refs.as_ref().map_or("no CA certificate is named", |f| f.message.as_str());
        ("spec.validation.caCertificateRefs", "NoValidCACertificate", format!("no CA certificate is usable: {why}"))
    })
}

fn bundle(
    cx: &Context<'_>,
    cache: &mut TlsCache,
    namespace: &str,
    reference: &LocalObjectReference,
) -> Result<Arc<CaBundle>, Fault> {
    let missing = || {
        let message = format!("{} {namespace}/{} does not exist", reference.kind, reference.name);
        Fault::new("InvalidCACertificateRef", message)
    };
    let key = (namespace, reference.name.as_str());
    let found = match (reference.group.as_str(), reference.kind.as_str()) {
        ("", "ConfigMap") => cache.ca_of_config_map(cx.index.config_maps.get(&key).ok_or_else(missing)?),
        ("", "Secret") => cache.ca_of_secret(cx.index.secrets.get(&key).ok_or_else(missing)?),
        (group, kind) => {
            let message = format!("CA certificates must be in a ConfigMap or Secret, not a {}", qualified(group, kind));
            return Err(Fault::new("InvalidKind", message));
        }
    };
    found.map_err(|message| Fault::new("InvalidCACertificateRef", message))
}
