//! What each resource is told about itself, in the exact shape of Kubernetes `status`, so that writing it to a
//! cluster is only a write. `lastTransitionTime` belongs to the writer: compiling reads no clock.

use selvedge_model::{ResourceKey, refs::ParentReference};
use serde::{Serialize, Serializer, ser::SerializeMap};
use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

/// The status of every resource that has one, sorted by key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    pub resources: BTreeMap<Arc<ResourceKey>, Arc<ResourceStatus>>,
}

impl Status {
    pub fn get(&self, key: &ResourceKey) -> Option<&ResourceStatus> {
        self.resources.get(key).map(Arc::as_ref)
    }

    pub(crate) fn set(&mut self, key: ResourceKey, status: ResourceStatus) {
        self.resources.insert(Arc::new(key), Arc::new(status));
    }
}

/// A map from `Kind namespace/name` to the status, for people; writers use [`Status::resources`].
impl Serialize for Status {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.resources.len()))?;
        for (key, status) in &self.resources {
            map.serialize_entry(&key.to_string(), status)?;
        }
        map.end()
    }
}

/// The `status` field of one resource.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ResourceStatus {
    GatewayClass(GatewayClassStatus),
    Gateway(GatewayStatus),
    ListenerSet(ListenerSetStatus),
    Route(RouteStatus),
    Policy(PolicyStatus),
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayClassStatus {
    pub conditions: Vec<Condition>,
    pub supported_features: Vec<Feature>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Feature {
    pub name: &'static str,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    pub addresses: Vec<GatewayAddress>,
    pub conditions: Vec<Condition>,
    pub listeners: Vec<ListenerStatus>,
    /// ListenerSets that at least one accepted listener came from.
    pub attached_listener_sets: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GatewayAddress {
    #[serde(rename = "type")]
    pub address_type: &'static str,
    pub value: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ListenerSetStatus {
    pub conditions: Vec<Condition>,
    pub listeners: Vec<ListenerStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    pub name: String,
    pub supported_kinds: Vec<SupportedKind>,
    /// Routes that this listener admits, whatever the state of the listener or of their backends.
    pub attached_routes: u32,
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SupportedKind {
    pub group: &'static str,
    pub kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouteStatus {
    /// One entry per parentRef that names one of our Gateways or ListenerSets, in the order of the route.
    pub parents: Vec<RouteParentStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteParentStatus {
    /// As the route wrote it.
    pub parent_ref: ParentReference,
    pub controller_name: Arc<str>,
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyStatus {
    /// At most 16, as the standard limits it.
    pub ancestors: Vec<PolicyAncestorStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyAncestorStatus {
    pub ancestor_ref: ParentReference,
    pub controller_name: Arc<str>,
    pub conditions: Vec<Condition>,
}

/// One condition. Polarity is the standard's; conditions of negative polarity are left out when they do not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: &'static str,
    #[serde(serialize_with = "truth")]
    pub status: bool,
    pub reason: &'static str,
    pub message: Cow<'static, str>,
    /// `metadata.generation` that was looked at; absent in folders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

fn truth<S: Serializer>(status: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *status { "True" } else { "False" })
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={} {}", self.kind, if self.status { "True" } else { "False" }, self.reason)?;
        self.observed_generation.map_or(Ok(()), |generation| write!(f, " @{generation}"))
    }
}

/// The reason of a condition that does not hold, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Fault {
    pub(crate) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Fault { reason, message: message.into() }
    }
}

/// Makes the conditions of one resource, all with its generation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conditions(pub(crate) Option<i64>);

impl Conditions {
    pub(crate) fn yes(self, kind: &'static str, reason: &'static str) -> Condition {
        self.make(kind, true, reason, Cow::Borrowed(""))
    }

    pub(crate) fn no(self, kind: &'static str, fault: &Fault) -> Condition {
        self.make(kind, false, fault.reason, Cow::Owned(limited(&fault.message)))
    }

    /// A condition of negative polarity that holds, or a positive one that holds with a caveat.
    pub(crate) fn yes_but(self, kind: &'static str, fault: &Fault) -> Condition {
        self.make(kind, true, fault.reason, Cow::Owned(limited(&fault.message)))
    }

    /// `True` with the condition's own name as reason, or `False` with the fault.
    pub(crate) fn check(self, kind: &'static str, fault: Option<&Fault>) -> Condition {
        fault.map_or_else(|| self.yes(kind, kind), |f| self.no(kind, f))
    }

    fn make(self, kind: &'static str, status: bool, reason: &'static str, message: Cow<'static, str>) -> Condition {
        Condition { kind, status, reason, message, observed_generation: self.0 }
    }
}

/// Kubernetes refuses messages over 32 KiB; a message that long helps nobody anyway.
fn limited(message: &str) -> String {
    const MAX: usize = 1024;
    match message.char_indices().nth(MAX) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

/// Features of the Gateway API (v1.6.1) that this implementation passes, sorted as the standard asks.
pub const SUPPORTED_FEATURES: &[&str] = &[
    "BackendTLSPolicy",
    "BackendTLSPolicySANValidation",
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayBackendClientCertificate",
    "GatewayFrontendClientCertificateValidation",
    "GatewayFrontendClientCertificateValidationInsecureFallback",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    "GatewayPort8080",
    "GatewayStaticAddresses",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteRetryBackendTimeout",
    "HTTPRouteRetryConnectionError",
    "HTTPRouteSchemeRedirect",
    "ListenerSet",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "TLSRouteModeMixed",
    "TLSRouteModeTerminate",
    "UDPRoute",
];
