//! GRPCRoute of the Gateway API v1.6.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gateway::DefaultScope;
use crate::http::{HeaderMatch, HeaderModifier, HttpFilter, RequestMirror, SessionPersistence};
use crate::meta::ObjectMeta;
use crate::refs::{BackendRef, LocalObjectReference, ParentReference};

/// Routes gRPC calls from listeners to backends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["status"]))]
pub struct GrpcRoute {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Hostnames, parents and rules.
    pub spec: GrpcRouteSpec,
}

/// Hostnames, parents and rules of a GRPCRoute.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrpcRouteSpec {
    /// Gateways, ListenerSets or Services to attach to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub parent_refs: Vec<ParentReference>,
    /// Whether the route also attaches to default Gateways (experimental).
    pub use_default_gateways: Option<DefaultScope>,
    /// Hostnames to match, maybe with a leading `*.` label; without any, those of the listener.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    pub hostnames: Vec<String>,
    /// The rules; without any, every call matches and none is answered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub rules: Vec<GrpcRouteRule>,
}

/// What matches, and what then happens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrpcRouteRule {
    /// Name, unique in the route, for policies to target.
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
    /// The rule matches when any of these does; without any, always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub matches: Vec<GrpcRouteMatch>,
    /// Applied in this order to calls, in reverse to answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub filters: Vec<GrpcRouteFilter>,
    /// Backends and their weights; without any, calls fail with UNAVAILABLE.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub backend_refs: Vec<GrpcBackendRef>,
    /// Keeps a client at one backend endpoint (experimental).
    pub session_persistence: Option<SessionPersistence>,
}

/// A call matches when method and headers all do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrpcRouteMatch {
    /// Service and method; without it, all.
    pub method: Option<GrpcMethodMatch>,
    /// Metadata that must all match; of several with one name, only the first counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
}

/// A condition on service and method; at least one of the two is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrpcMethodMatch {
    /// How they are compared.
    #[serde(rename = "type", default)]
    pub match_type: GrpcMethodMatchType,
    /// Service with its package, such as `shop.Cart`; without it, all services.
    #[schemars(length(max = 1024))]
    pub service: Option<String>,
    /// Method; without it, all methods.
    #[schemars(length(max = 1024))]
    pub method: Option<String>,
}

/// How service and method are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum GrpcMethodMatchType {
    /// Whole and with case.
    #[default]
    Exact,
    /// By regular expressions.
    RegularExpression,
}

/// A backend with its weight and filters that only its calls pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrpcBackendRef {
    /// The backend.
    #[serde(flatten)]
    pub backend: BackendRef,
    /// Filters for calls to this backend alone, after those of the rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub filters: Vec<GrpcRouteFilter>,
}

/// One step that calls and answers pass; `type` says which of the other fields is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrpcRouteFilter {
    /// Which filter.
    #[serde(rename = "type")]
    pub filter_type: GrpcFilterType,
    /// Changes request headers.
    pub request_header_modifier: Option<HeaderModifier>,
    /// Changes response headers.
    pub response_header_modifier: Option<HeaderModifier>,
    /// Sends a copy of calls elsewhere and ignores the answer; may be given several times.
    pub request_mirror: Option<RequestMirror>,
    /// A filter that is defined in another resource.
    pub extension_ref: Option<LocalObjectReference>,
}

/// Names of the filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum GrpcFilterType {
    /// Changes request headers.
    RequestHeaderModifier,
    /// Changes response headers.
    ResponseHeaderModifier,
    /// Sends a copy of calls elsewhere.
    RequestMirror,
    /// Defined in another resource.
    ExtensionRef,
}

impl GrpcRouteFilter {
    /// The filter that `type` names; nothing when its field is missing, which validation reports.
    pub fn filter(&self) -> Option<HttpFilter<'_>> {
        match self.filter_type {
            GrpcFilterType::RequestHeaderModifier => {
                self.request_header_modifier.as_ref().map(HttpFilter::RequestHeaderModifier)
            }
            GrpcFilterType::ResponseHeaderModifier => {
                self.response_header_modifier.as_ref().map(HttpFilter::ResponseHeaderModifier)
            }
            GrpcFilterType::RequestMirror => self.request_mirror.as_ref().map(HttpFilter::RequestMirror),
            GrpcFilterType::ExtensionRef => self.extension_ref.as_ref().map(HttpFilter::ExtensionRef),
        }
    }
}
