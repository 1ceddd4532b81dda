//! What every resource carries: its metadata, its kind and its key.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Metadata of a resource; other Kubernetes metadata is accepted and ignored.
///
/// Two are equal whatever their `resourceVersion`, which also changes when only the status does.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["generateName", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "ownerReferences", "finalizers", "managedFields", "clusterName"]))]
pub struct ObjectMeta {
    /// Name, unique among the resources of one kind in one namespace: a DNS subdomain of at most 253 characters.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Namespace; empty for kinds that belong to no namespace. Files may leave it out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63), extend("default" = "default"))]
    pub namespace: String,
    /// Labels, to be selected by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Free notes of people and tools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// When the resource was created, RFC 3339 in UTC and to the second: `2026-01-31T12:00:00Z`. The older of two conflicting resources wins.
    pub creation_timestamp: Option<String>,
    /// Counts changes of the specification; written by the Kubernetes API.
    pub generation: Option<i64>,
    /// Identity in time; written by the Kubernetes API.
    pub uid: Option<String>,
    /// Version for optimistic locking; written by the Kubernetes API.
    pub resource_version: Option<String>,
}

impl PartialEq for ObjectMeta {
    fn eq(&self, other: &Self) -> bool {
        let ObjectMeta {
            name,
            namespace,
            labels,
            annotations,
            creation_timestamp,
            generation,
            uid,
            resource_version: _,
        } = self;
        *name == other.name
            && *namespace == other.namespace
            && *labels == other.labels
            && *annotations == other.annotations
            && *creation_timestamp == other.creation_timestamp
            && *generation == other.generation
            && *uid == other.uid
    }
}

macro_rules! kinds {
    ($($variant:ident, $name:literal, $group:literal, [$($version:literal),+], $namespaced:literal;)+) => {
        /// The kinds of resources that Selvedge reads.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        pub enum Kind {
            $(
                #[doc = concat!("`", $name, "` of group `", $group, "`.")]
                #[serde(rename = $name)]
                $variant,
            )+
        }

        impl Kind {
            /// Every kind, in the order of the reference.
            pub const ALL: &'static [Kind] = &[$(Kind::$variant),+];

            /// The name as written in `kind:`.
            pub const fn name(self) -> &'static str {
                match self { $(Kind::$variant => $name),+ }
            }

            /// The API group; empty for the core group.
            pub const fn group(self) -> &'static str {
                match self { $(Kind::$variant => $group),+ }
            }

            /// The accepted versions, the preferred one first.
            pub const fn versions(self) -> &'static [&'static str] {
                match self { $(Kind::$variant => &[$($version),+]),+ }
            }

            /// Whether resources of the kind belong to a namespace.
            pub const fn namespaced(self) -> bool {
                match self { $(Kind::$variant => $namespaced),+ }
            }
        }
    };
}

kinds! {
    GatewayClass, "GatewayClass", "gateway.networking.k8s.io", ["v1", "v1beta1"], false;
    Gateway, "Gateway", "gateway.networking.k8s.io", ["v1", "v1beta1"], true;
    ListenerSet, "ListenerSet", "gateway.networking.k8s.io", ["v1"], true;
    HttpRoute, "HTTPRoute", "gateway.networking.k8s.io", ["v1", "v1beta1"], true;
    GrpcRoute, "GRPCRoute", "gateway.networking.k8s.io", ["v1"], true;
    TlsRoute, "TLSRoute", "gateway.networking.k8s.io", ["v1", "v1alpha3", "v1alpha2"], true;
    TcpRoute, "TCPRoute", "gateway.networking.k8s.io", ["v1", "v1alpha2"], true;
    UdpRoute, "UDPRoute", "gateway.networking.k8s.io", ["v1", "v1alpha2"], true;
    ReferenceGrant, "ReferenceGrant", "gateway.networking.k8s.io", ["v1", "v1beta1"], true;
    BackendTlsPolicy, "BackendTLSPolicy", "gateway.networking.k8s.io", ["v1", "v1alpha3"], true;
    TrafficPolicy, "TrafficPolicy", "selvedge.dev", ["v1alpha1"], true;
    Mesh, "Mesh", "selvedge.dev", ["v1alpha1"], false;
    Workload, "Workload", "selvedge.dev", ["v1alpha1"], true;
    ExternalService, "ExternalService", "selvedge.dev", ["v1alpha1"], true;
    AccessPolicy, "AccessPolicy", "selvedge.dev", ["v1alpha1"], true;
    AuthPolicy, "AuthPolicy", "selvedge.dev", ["v1alpha1"], true;
    Namespace, "Namespace", "", ["v1"], false;
    Service, "Service", "", ["v1"], true;
    EndpointSlice, "EndpointSlice", "discovery.k8s.io", ["v1"], true;
    Secret, "Secret", "", ["v1"], true;
    ConfigMap, "ConfigMap", "", ["v1"], true;
}

/// The group of the Gateway API.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// The group of Selvedge's own kinds.
pub const SELVEDGE_GROUP: &str = "selvedge.dev";

impl Kind {
    /// The kind named so in the group, if Selvedge knows it.
    pub fn find(group: &str, name: &str) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|kind| kind.name() == name && kind.group() == group)
    }

    /// The `apiVersion` that is written out: group and preferred version.
    pub fn api_version(self) -> String {
        match self.group() {
            "" => self.versions()[0].to_owned(),
            group => format!("{group}/{}", self.versions()[0]),
        }
    }

    /// Whether the kind is one of the five route kinds.
    pub const fn is_route(self) -> bool {
        matches!(self, Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute | Kind::UdpRoute)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The name of a kind that Selvedge does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a kind that Selvedge reads")]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        Kind::ALL.iter().copied().find(|kind| kind.name() == name).ok_or_else(|| UnknownKind(name.to_owned()))
    }
}

/// What names one resource: kind, namespace and name. Shown as `HTTPRoute shop/cart`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ResourceKey {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty for kinds that belong to none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ResourceKey {
    /// The key of a resource; the namespace is dropped for kinds that belong to none.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        let namespace = if kind.namespaced() { namespace.into() } else { String::new() };
        ResourceKey { kind, namespace, name: name.into() }
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_well() {
        assert_eq!(ResourceKey::new(Kind::HttpRoute, "shop", "cart").to_string(), "HTTPRoute shop/cart");
        assert_eq!(ResourceKey::new(Kind::GatewayClass, "shop", "edge").to_string(), "GatewayClass edge");
    }

    #[test]
    fn kinds_are_found_by_group_and_name() {
        assert_eq!(Kind::find("", "Service"), Some(Kind::Service));
        assert_eq!(Kind::find("serving.knative.dev", "Service"), None);
        assert_eq!(Kind::HttpRoute.api_version(), "gateway.networking.k8s.io/v1");
        assert_eq!(Kind::Secret.api_version(), "v1");
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse::<Kind>().as_ref(), Ok(kind));
        }
    }
}
