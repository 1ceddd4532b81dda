//! TLSRoute, TCPRoute and UDPRoute of the Gateway API v1.6.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gateway::DefaultScope;
use crate::meta::ObjectMeta;
use crate::refs::{BackendRef, ParentReference};

/// Routes TLS connections by server name to backends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["status"]))]
pub struct TlsRoute {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Server names, parents and rules.
    pub spec: TlsRouteSpec,
}

/// Server names, parents and rules of a TLSRoute.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsRouteSpec {
    /// Gateways, ListenerSets or Services to attach to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub parent_refs: Vec<ParentReference>,
    /// Whether the route also attaches to default Gateways (experimental).
    pub use_default_gateways: Option<DefaultScope>,
    /// Server names to match, maybe with a leading `*.` label. `v1` requires them; `v1alpha2` does without, and then
    /// those of the listener match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(min = 1, max = 253)))]
    pub hostnames: Vec<String>,
    /// The rule; `v1alpha2` allows several, of which the first is used.
    #[schemars(length(min = 1, max = 16))]
    pub rules: Vec<StreamRule>,
}

/// Routes TCP connections to backends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["status"]))]
pub struct TcpRoute {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Parents and rules.
    pub spec: StreamRouteSpec,
}

/// Routes UDP flows to backends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["status"]))]
pub struct UdpRoute {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Parents and rules.
    pub spec: StreamRouteSpec,
}

/// Parents and rules of a TCPRoute or UDPRoute.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamRouteSpec {
    /// Gateways, ListenerSets or Services to attach to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub parent_refs: Vec<ParentReference>,
    /// Whether the route also attaches to default Gateways (experimental).
    pub use_default_gateways: Option<DefaultScope>,
    /// The rule; `v1alpha2` allows several, of which the first is used.
    #[schemars(length(min = 1, max = 16))]
    pub rules: Vec<StreamRule>,
}

/// Backends of connections or flows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamRule {
    /// Name, unique in the route, for policies to target.
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
    /// Backends and their weights; a share that falls to an invalid backend is refused.
    #[schemars(length(min = 1, max = 16))]
    pub backend_refs: Vec<BackendRef>,
}
