//! Namespace, Service, Secret and ConfigMap of Kubernetes core/v1, and EndpointSlice of discovery/v1.
//!
//! Only what Selvedge uses is kept; the other fields of these kinds are accepted and ignored.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bytes::ByteString;
use crate::meta::ObjectMeta;

/// A namespace; its labels are what namespace selectors look at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["spec", "status"]))]
pub struct Namespace {
    /// Metadata.
    pub metadata: ObjectMeta,
}

/// A named set of backends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["status"]))]
pub struct Service {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Ports and where the backends are.
    #[serde(default)]
    pub spec: ServiceSpec,
}

/// Ports of a Service and where its backends are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["allocateLoadBalancerNodePorts", "externalTrafficPolicy", "healthCheckNodePort", "internalTrafficPolicy", "ipFamilies", "ipFamilyPolicy", "loadBalancerClass", "loadBalancerIP", "loadBalancerSourceRanges", "sessionAffinity", "sessionAffinityConfig", "topologyKeys", "externalIPs"]))]
pub struct ServiceSpec {
    /// Kind of Service.
    #[serde(rename = "type", default)]
    pub service_type: ServiceType,
    /// Virtual address; `None` for a headless Service.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// Virtual addresses of both families.
    #[serde(rename = "clusterIPs", default, skip_serializing_if = "Vec::is_empty")]
    pub cluster_ips: Vec<String>,
    /// Ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub ports: Vec<ServicePort>,
    /// DNS name of the backends, for type `ExternalName`; looked up again as its time to live says.
    pub external_name: Option<String>,
    /// Labels of the pods behind the Service; used by Kubernetes to write EndpointSlices.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    /// Whether endpoints that are not ready are used too.
    #[serde(default)]
    pub publish_not_ready_addresses: bool,
    /// Preference among endpoints: `PreferClose`, `PreferSameZone` or `PreferSameNode`.
    pub traffic_distribution: Option<String>,
}

/// Kind of Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// Reached inside the cluster.
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// Also on a port of every node.
    NodePort,
    /// Also through a load balancer.
    LoadBalancer,
    /// A DNS name outside.
    ExternalName,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["nodePort"]))]
pub struct ServicePort {
    /// Name, unique in the Service; required when there are several ports.
    #[schemars(length(max = 63))]
    pub name: Option<String>,
    /// Port number that routes refer to.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Port number or port name at the endpoints; without it, the same number.
    pub target_port: Option<PortOrName>,
    /// Transport protocol.
    #[serde(default)]
    pub protocol: TransportProtocol,
    /// What is spoken over it: `kubernetes.io/h2c`, `kubernetes.io/ws`, `kubernetes.io/wss`, `https`, `http`, …
    pub app_protocol: Option<String>,
}

/// A port number or the name of a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub enum PortOrName {
    /// Number.
    Number(u16),
    /// Name.
    Name(String),
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum TransportProtocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, which Selvedge does not serve.
    Sctp,
}

/// Secret bytes: certificates with their keys, passwords, tokens.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["immutable"]))]
pub struct Secret {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What the Secret holds, such as `kubernetes.io/tls`.
    #[serde(rename = "type")]
    pub secret_type: Option<String>,
    /// Bytes by name, in base64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, ByteString>,
    /// Text by name; wins over `data`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub string_data: BTreeMap<String, String>,
}

impl Secret {
    /// The bytes of that name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        match self.string_data.get(name) {
            Some(text) => Some(text.as_bytes()),
            None => self.data.get(name).map(ByteString::as_bytes),
        }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret")
            .field("metadata", &self.metadata)
            .field("type", &self.secret_type)
            .field("data", &self.data.keys().collect::<Vec<_>>())
            .field("stringData", &self.string_data.keys().collect::<Vec<_>>())
            .finish()
    }
}

/// Plain settings: CA certificates, files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["immutable"]))]
pub struct ConfigMap {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Text by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
    /// Bytes by name, in base64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub binary_data: BTreeMap<String, ByteString>,
}

impl ConfigMap {
    /// The bytes of that name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        match self.data.get(name) {
            Some(text) => Some(text.as_bytes()),
            None => self.binary_data.get(name).map(ByteString::as_bytes),
        }
    }
}

/// Endpoints of a Service; belongs to the Service named by the label `kubernetes.io/service-name`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Family of the addresses.
    pub address_type: EndpointAddressType,
    /// The endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub endpoints: Vec<Endpoint>,
    /// Ports that every endpoint has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub ports: Vec<EndpointPort>,
}

/// The label of an EndpointSlice that names its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

impl EndpointSlice {
    /// Name of the Service whose endpoints these are.
    pub fn service_name(&self) -> Option<&str> {
        self.metadata.labels.get(SERVICE_NAME_LABEL).map(String::as_str)
    }
}

/// Family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum EndpointAddressType {
    /// IPv4 addresses.
    #[serde(rename = "IPv4")]
    Ipv4,
    /// IPv6 addresses.
    #[serde(rename = "IPv6")]
    Ipv6,
    /// DNS names.
    #[serde(rename = "FQDN")]
    Fqdn,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["targetRef", "deprecatedTopology"]))]
pub struct Endpoint {
    /// Addresses; all reach the same process, the first is used.
    #[schemars(length(min = 1, max = 100))]
    pub addresses: Vec<String>,
    /// Whether it takes traffic.
    #[serde(default)]
    pub conditions: EndpointConditions,
    /// Where it should be used from.
    pub hints: Option<EndpointHints>,
    /// Zone that it is in.
    pub zone: Option<String>,
    /// Node that it runs on.
    pub node_name: Option<String>,
    /// Hostname of the pod.
    pub hostname: Option<String>,
}

/// Whether an endpoint takes traffic; what is unknown counts as ready.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointConditions {
    /// Takes traffic; unknown counts as yes.
    pub ready: Option<bool>,
    /// Would take traffic, were it not ending; unknown counts as `ready`.
    pub serving: Option<bool>,
    /// Is ending; unknown counts as no.
    pub terminating: Option<bool>,
}

impl EndpointConditions {
    /// Whether new traffic goes there.
    pub fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }

    /// Whether traffic may go there when no endpoint is ready: it is ending but still serves.
    pub fn is_serving(&self) -> bool {
        self.serving.unwrap_or_else(|| self.is_ready())
    }

    /// Whether it is ending.
    pub fn is_terminating(&self) -> bool {
        self.terminating.unwrap_or(false)
    }
}

/// Where an endpoint should be used from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["forNodes"]))]
pub struct EndpointHints {
    /// Zones whose traffic should come here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub for_zones: Vec<ForZone>,
}

/// A zone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForZone {
    /// Name of the zone.
    pub name: String,
}

/// A port that every endpoint of a slice has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointPort {
    /// Name of the Service port; empty or absent for a port without name.
    pub name: Option<String>,
    /// Port number at the endpoints.
    pub port: Option<u16>,
    /// Transport protocol.
    #[serde(default)]
    pub protocol: TransportProtocol,
    /// What is spoken over it.
    pub app_protocol: Option<String>,
}
