//! The one Mesh, and what it says in the words of the snapshot.

use crate::{
    index::Index,
    report::Report,
    snapshot::{AccessLog, HttpOptions, L4Options, ListenerName, MtlsMode, Underscores, Unknown},
};
use selvedge_model::{
    Code, Kind, ResourceKey,
    mesh::{self as spec, MeshSpec, Mtls},
};
use std::{sync::Arc, time::Duration};

/// The Mesh named `default`, else the oldest; the others are told.
pub(super) fn mesh<'a>(index: &Index<'a>, report: &mut Report) -> Option<&'a MeshSpec> {
    let all = index.meshes();
    let chosen = all.iter().find(|m| m.metadata.name == "default").or(all.first()).copied()?;
    for other in all.iter().filter(|m| m.metadata.name != chosen.metadata.name) {
        let message = format!("Mesh {} is in effect, so that this one is not: there is one Mesh", chosen.metadata.name);
        report.error(
            &ResourceKey::new(Kind::Mesh, "", &*other.metadata.name),
            Code::SecondMesh,
            "metadata.name",
            &message,
        );
    }
    if chosen.metadata.name != "default" {
        let key = ResourceKey::new(Kind::Mesh, "", &*chosen.metadata.name);
        let message = "it is in effect only as long as no Mesh is named `default`: name it `default`";
        report.warning(&key, Code::SecondMesh, "metadata.name", message);
    }
    Some(&chosen.spec)
}

/// What holds where nothing narrower says anything.
pub(super) fn mtls(own: Option<&Mtls>, wider: MtlsMode) -> MtlsMode {
    own.and_then(|mtls| mtls.mode).map_or(wider, |mode| match mode {
        spec::MtlsMode::Permissive => MtlsMode::Permissive,
        spec::MtlsMode::Audit => MtlsMode::Audit,
        spec::MtlsMode::Strict => MtlsMode::Strict,
    })
}

pub(super) fn unknown(spec: &MeshSpec) -> Unknown {
    match spec.egress.unwrap_or_default() {
        spec::Egress::AllowAny => Unknown::Pass,
        spec::Egress::RegistryOnly => Unknown::Refuse,
    }
}

/// How long answers to name look-ups may be kept.
pub(super) fn dns_ttl(spec: &MeshSpec) -> Duration {
    let ttl = spec.dns.as_ref().and_then(|dns| dns.ttl);
    ttl.map_or(Duration::from_secs(30), selvedge_model::Duration::as_std)
}

/// HTTP between an application and its own proxy, or another's that has already checked it: what guards an edge against
/// strangers would only break things here. Who forwards says who the client was.
pub(super) fn http_options() -> HttpOptions {
    HttpOptions {
        header_timeout: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(3600),
        body_min_rate: 0,
        trusted_cidrs: everybody(),
        server_header: false,
        underscores: Underscores::Allow,
        get_bodies: true,
        ..HttpOptions::default()
    }
}

fn everybody() -> Vec<ipnet::IpNet> {
    [std::net::IpAddr::from([0u8; 4]), std::net::IpAddr::from([0u8; 16])]
        .into_iter()
        .filter_map(|ip| ipnet::IpNet::new(ip, 0).ok())
        .collect()
}

/// Connections that are not HTTP.
pub(super) fn streams(name: &ListenerName, access_log: Vec<Arc<AccessLog>>) -> L4Options {
    L4Options { name: name.clone(), idle_timeout: Duration::from_secs(3600), access_log, access: None }
}
