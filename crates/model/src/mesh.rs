//! Mesh, Workload and ExternalService: who is in the mesh, and what is known outside of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;
use crate::meta::ObjectMeta;
use crate::refs::NAMESPACE_PATTERN;
use crate::traffic::HealthCheck;

/// What holds for the whole mesh: its trust domain, how strict mutual TLS is, who may call whom where nothing is said.
///
/// There is at most one, named `default`. Without it all defaults hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["status"]))]
pub struct Mesh {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What holds.
    #[serde(default)]
    pub spec: MeshSpec,
}

/// The trust domain, and the cluster domain, of a mesh that names none.
pub const DEFAULT_DOMAIN: &str = "cluster.local";

/// The namespace whose AccessPolicies hold for the whole mesh.
pub const ROOT_NAMESPACE: &str = "selvedge-system";

/// What holds for the whole mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshSpec {
    /// First part of every identity: `spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT`. Lower-case letters, digits,
    /// dots, dashes and underscores. Once certificates are given out it should stay.
    #[schemars(length(min = 1, max = 255), extend("default" = "cluster.local"))]
    pub trust_domain: Option<String>,
    /// Last part of the full DNS names of Services: `orders.shop.svc.CLUSTERDOMAIN`.
    #[schemars(length(min = 1, max = 253), extend("default" = "cluster.local"))]
    pub cluster_domain: Option<String>,
    /// Whether workloads take connections without mutual TLS. Workloads and their ports may say otherwise.
    pub mtls: Option<Mtls>,
    /// Who may call whom.
    pub access: Option<MeshAccess>,
    /// What happens to connections from workloads to destinations that no Service, Workload or ExternalService names.
    #[schemars(extend("default" = "AllowAny"))]
    pub egress: Option<Egress>,
    /// Names that workloads look up.
    pub dns: Option<MeshDns>,
    /// Namespaces whose Services every proxy knows from the start. Others are fetched when a workload first uses them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 63), regex(pattern = NAMESPACE_PATTERN)))]
    pub scope: Vec<String>,
    /// Other trust domains whose identities are believed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub federation: Vec<Federation>,
}

impl MeshSpec {
    /// The trust domain, given or implied.
    pub fn trust_domain(&self) -> &str {
        self.trust_domain.as_deref().unwrap_or(DEFAULT_DOMAIN)
    }

    /// The cluster domain, given or implied.
    pub fn cluster_domain(&self) -> &str {
        self.cluster_domain.as_deref().unwrap_or(DEFAULT_DOMAIN)
    }
}

/// Mutual TLS of what comes in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Mtls {
    /// How strict it is; without it, what the next wider place says: port, Workload, Mesh.
    #[schemars(extend("default" = "Permissive"))]
    pub mode: Option<MtlsMode>,
}

/// How strict mutual TLS is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum MtlsMode {
    /// Mutual TLS or clear text.
    #[default]
    Permissive,
    /// As `Permissive`; what `Strict` would refuse is logged and counted.
    Audit,
    /// Only mutual TLS. That is about TCP: UDP is not captured, and reaches the application as it would without the mesh.
    Strict,
}

/// Who may call whom.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshAccess {
    /// What happens to what no AccessPolicy allows or denies.
    #[schemars(extend("default" = "Allow"))]
    pub default: Option<DefaultAccess>,
}

/// What happens to what no AccessPolicy allows or denies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum DefaultAccess {
    /// Allowed.
    #[default]
    Allow,
    /// Allowed, and logged and counted as what `Deny` would refuse.
    Audit,
    /// Refused.
    Deny,
}

/// What happens to connections to destinations that nothing names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Egress {
    /// They are passed on to where they were going.
    #[default]
    AllowAny,
    /// They are refused.
    RegistryOnly,
}

/// Names that workloads look up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshDns {
    /// How long clients may keep an answer.
    #[schemars(extend("default" = "30s"))]
    pub ttl: Option<Duration>,
}

/// Another trust domain whose identities are believed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Federation {
    /// Its name.
    #[schemars(length(min = 1, max = 255))]
    pub trust_domain: String,
    /// Certificates of its authorities.
    pub bundle: TrustBundle,
}

/// Certificates of the authorities of a trust domain: one of the two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrustBundle {
    /// A ConfigMap that holds them as PEM.
    pub config_map: Option<BundleSource>,
    /// The certificates themselves, as PEM.
    #[schemars(length(min = 1, max = 262_144))]
    pub pem: Option<String>,
}

/// A ConfigMap that holds certificates as PEM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BundleSource {
    /// Namespace of the ConfigMap.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAMESPACE_PATTERN))]
    pub namespace: String,
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253), extend("x-refers" = "ConfigMap"))]
    pub name: String,
    /// Which entry of it.
    #[serde(default = "ca_crt")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn ca_crt() -> String {
    "ca.crt".to_owned()
}

/// A process, container or virtual machine that is in the mesh, with its proxy.
///
/// Services of its namespace pick it by its labels, besides EndpointSlices. An endpoint of an EndpointSlice that has the
/// address of a Workload is that Workload. Its identity is `spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["status"]))]
pub struct Workload {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Where it is and what it offers.
    pub spec: WorkloadSpec,
}

/// Where a workload is and what it offers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSpec {
    /// IP addresses that it has for itself: one, or one of each family. No two Workloads share one.
    #[schemars(length(min = 1, max = 2))]
    pub addresses: Vec<String>,
    /// Ports that it serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub ports: Vec<WorkloadPort>,
    /// Second part of its identity.
    #[serde(default = "default_account")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account: String,
    /// First part of its identity, where it is of another mesh: a trust domain that `Mesh.spec.federation` names. Without
    /// it, the Mesh's own.
    #[schemars(length(min = 1, max = 255))]
    pub trust_domain: Option<String>,
    /// How members of the mesh reach it safely.
    #[serde(default)]
    pub tunnel: Tunnel,
    /// Whether it takes connections without mutual TLS; without it, what the Mesh says.
    pub mtls: Option<Mtls>,
    /// Zone that it is in, for preference of near endpoints.
    #[schemars(length(min = 1, max = 253))]
    pub zone: Option<String>,
    /// Region that it is in: the next best after its zone.
    #[schemars(length(min = 1, max = 253))]
    pub region: Option<String>,
    /// Machine that it runs on.
    #[schemars(length(min = 1, max = 253))]
    pub node: Option<String>,
    /// Its share among the endpoints of a Service, relative to theirs; 0 sends it nothing.
    #[serde(default = "one")]
    #[schemars(range(max = 1_000_000))]
    pub weight: u32,
    /// How its own proxy tells whether it is well. While it is not, it is taken out of the mesh.
    pub health_check: Option<HealthCheck>,
}

fn default_account() -> String {
    "default".to_owned()
}

fn one() -> u32 {
    1
}

/// A port of a workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadPort {
    /// Name, unique in the Workload; `targetPort` of a Service may name it. A name such as `http`, `grpc-api` or
    /// `mysql` tells the protocol where `appProtocol` does not.
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// Port number.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// What is spoken over it: `http`, `kubernetes.io/h2c`, `grpc`, `tcp`, `tls`, …
    #[schemars(length(max = 253))]
    pub app_protocol: Option<String>,
    /// Whether this port takes connections without mutual TLS; without it, what the Workload says.
    pub mtls: Option<Mtls>,
}

/// How members of the mesh reach a workload safely.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tunnel {
    /// The protocol.
    #[serde(default)]
    pub protocol: TunnelProtocol,
    /// Port of its proxy. Without it 15008 for `HBONE`; for `MutualTLS` the port that is called itself, which its proxy
    /// captures.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Address of its proxy; without it, the workload's own of the same family.
    #[schemars(length(min = 2, max = 45))]
    pub address: Option<String>,
}

/// The port of HBONE, unless told.
pub const HBONE_PORT: u16 = 15008;

/// The protocol between members of the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum TunnelProtocol {
    /// HTTP/2 CONNECT over mutual TLS, as Istio's ambient mode speaks it.
    #[default]
    #[serde(rename = "HBONE")]
    Hbone,
    /// Mutual TLS around what the application speaks.
    #[serde(rename = "MutualTLS")]
    MutualTls,
    /// Clear text: there is no proxy beside it.
    None,
}

/// Something outside of the mesh that workloads may call: known by name, with protocol, TLS and policies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["status"]))]
pub struct ExternalService {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Its names and how it is reached.
    pub spec: ExternalServiceSpec,
}

/// Names of an external service and how it is reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalServiceSpec {
    /// DNS names. One that begins with `*.` holds for all names below; it is only known to clients that say the name,
    /// as those of an HTTP proxy do, and the longest that fits is used.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 253)))]
    pub hosts: Vec<String>,
    /// IP addresses that clients connect to. Without any, the names get one that exists only inside the mesh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub addresses: Vec<String>,
    /// Ports.
    #[schemars(length(min = 1, max = 64))]
    pub ports: Vec<ExternalPort>,
    /// Where connections go.
    #[serde(default)]
    pub resolution: Resolution,
    /// Where it is, for `Static`; without any, at `addresses`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub endpoints: Vec<ExternalEndpoint>,
}

/// Where connections to an external service go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Resolution {
    /// To what DNS says of the name; looked up again as its time to live says.
    #[default]
    #[serde(rename = "DNS")]
    Dns,
    /// To the endpoints listed.
    Static,
}

/// A port of an external service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalPort {
    /// Name, unique in the ExternalService. A name such as `http` or `tls-db` tells the protocol where `appProtocol` does
    /// not.
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// Port number that clients use.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Port number at the endpoints; without it, the same.
    #[schemars(range(min = 1))]
    pub target_port: Option<u16>,
    /// What clients speak over it: `http`, `grpc`, `tls`, `tcp`, …
    #[schemars(length(max = 253))]
    pub app_protocol: Option<String>,
    /// TLS that is added to what clients speak in clear text.
    pub tls: Option<ExternalTls>,
}

/// TLS towards an external service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalTls {
    /// Who speaks it.
    #[serde(default)]
    pub mode: ExternalTlsMode,
    /// Name to ask for and to verify; without it, the host that is called, or for `Static` the first of `hosts`.
    #[schemars(length(min = 1, max = 253))]
    pub sni: Option<String>,
    /// A ConfigMap of the same namespace whose `ca.crt` holds the authorities to trust; without it, those of the operating
    /// system.
    #[schemars(length(min = 1, max = 253), extend("x-refers" = "ConfigMap"))]
    pub ca_certificate: Option<String>,
    /// A Secret of the same namespace (type `kubernetes.io/tls`) with the certificate to show. A control plane gives it only
    /// to proxies beside workloads of that namespace; from others the port cannot be called.
    #[schemars(length(min = 1, max = 253), extend("x-refers" = "Secret"))]
    pub client_certificate: Option<String>,
}

/// Who speaks TLS to an external service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ExternalTlsMode {
    /// The mesh: clients speak clear text.
    #[default]
    Originate,
    /// Nobody, or the clients themselves.
    None,
}

/// One place where an external service is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalEndpoint {
    /// IP address.
    #[schemars(length(min = 2, max = 45))]
    pub address: String,
    /// Its share of the traffic, relative to the others.
    #[serde(default = "one")]
    #[schemars(range(max = 1_000_000))]
    pub weight: u32,
    /// Zone that it is in.
    #[schemars(length(min = 1, max = 253))]
    pub zone: Option<String>,
    /// Region that it is in.
    #[schemars(length(min = 1, max = 253))]
    pub region: Option<String>,
}
