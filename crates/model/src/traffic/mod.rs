//! TrafficPolicy of `selvedge.dev/v1alpha1`: how traffic to and through a target behaves.
//!
//! Every setting is optional. What a more specific target leaves out comes from the less specific one
//! (GEP-713: Namespace, then Gateway or Service, then listener or port, then route, then rule), and in
//! the end from the default named in its documentation. Lists replace each other whole.

mod balance;
mod connection;
mod health;
mod listener;
mod resilience;
mod telemetry;

pub use balance::*;
pub use connection::*;
pub use health::*;
pub use listener::*;
pub use resilience::*;
pub use telemetry::*;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::meta::{GATEWAY_GROUP, Kind, ObjectMeta};

/// How traffic to and through its targets behaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["status"]))]
pub struct TrafficPolicy {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Targets and settings.
    pub spec: TrafficPolicySpec,
}

/// Targets and settings of a TrafficPolicy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicySpec {
    /// What the policy applies to, in its own namespace.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TrafficTarget>,
    /// The settings.
    #[serde(flatten)]
    pub settings: TrafficSettings,
}

/// One target of a policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrafficTarget {
    /// API group of the target; without it, the group of `kind`.
    #[schemars(length(max = 253))]
    pub group: Option<String>,
    /// Kind of the target.
    pub kind: TrafficTargetKind,
    /// Name of the target; for a Namespace, the policy's own.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// A part of the target: a listener of a Gateway or ListenerSet, a port of a Service or ExternalService, a rule of a
    /// route, by name.
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
}

/// Kinds that a TrafficPolicy can target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum TrafficTargetKind {
    /// All traffic of the namespace.
    Namespace,
    /// All traffic through a Gateway, or one listener of it.
    Gateway,
    /// All traffic through a ListenerSet, or one listener of it.
    ListenerSet,
    /// All traffic to a Service, or one port of it.
    Service,
    /// All traffic of workloads to an ExternalService, or to one port of it.
    ExternalService,
    /// An HTTPRoute, or one rule of it.
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    /// A GRPCRoute, or one rule of it.
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
    /// A TLSRoute, or one rule of it.
    #[serde(rename = "TLSRoute")]
    TlsRoute,
    /// A TCPRoute, or one rule of it.
    #[serde(rename = "TCPRoute")]
    TcpRoute,
    /// A UDPRoute, or one rule of it.
    #[serde(rename = "UDPRoute")]
    UdpRoute,
}

impl TrafficTargetKind {
    /// The kind of resource.
    pub const fn kind(self) -> Kind {
        match self {
            TrafficTargetKind::Namespace => Kind::Namespace,
            TrafficTargetKind::Gateway => Kind::Gateway,
            TrafficTargetKind::ListenerSet => Kind::ListenerSet,
            TrafficTargetKind::Service => Kind::Service,
            TrafficTargetKind::ExternalService => Kind::ExternalService,
            TrafficTargetKind::HttpRoute => Kind::HttpRoute,
            TrafficTargetKind::GrpcRoute => Kind::GrpcRoute,
            TrafficTargetKind::TlsRoute => Kind::TlsRoute,
            TrafficTargetKind::TcpRoute => Kind::TcpRoute,
            TrafficTargetKind::UdpRoute => Kind::UdpRoute,
        }
    }

    /// Whether the target is a route kind.
    pub const fn is_route(self) -> bool {
        self.kind().is_route()
    }
}

impl TrafficTarget {
    /// The group of the target, given or implied.
    pub fn group(&self) -> &str {
        self.group.as_deref().unwrap_or(self.kind.kind().group())
    }

    /// Whether the given group, if any, is the one of the kind.
    pub fn group_fits(&self) -> bool {
        self.group() == self.kind.kind().group()
            || (self.kind.kind().group() == GATEWAY_GROUP && self.group().is_empty())
    }
}

/// All settings that a TrafficPolicy can carry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrafficSettings {
    /// How an endpoint is picked.
    pub load_balancing: Option<LoadBalancing>,
    /// Connections to backends and limits on them.
    pub connections: Option<Connections>,
    /// Active health checks; an endpoint takes traffic when all say healthy. An empty list switches them off.
    #[schemars(length(max = 8))]
    pub health_checks: Option<Vec<HealthCheck>>,
    /// Takes endpoints out that fail real requests.
    pub outlier_detection: Option<OutlierDetection>,
    /// Limits of time. `timeouts` of an HTTPRoute rule wins over these.
    pub timeouts: Option<Timeouts>,
    /// When failed requests are sent again. `retry` of an HTTPRoute rule wins over `codes`, `attempts` and the base of `backoff`.
    pub retry: Option<Retry>,
    /// Sends a second copy of slow requests to another endpoint and uses the first answer.
    pub hedging: Option<Hedging>,
    /// Delays or fails a share of the requests on purpose, to test clients.
    pub fault: Option<Fault>,
    /// Answers requests here instead of forwarding them. Routes and rules only.
    pub direct_response: Option<DirectResponse>,
    /// Compresses responses that clients accept compressed.
    pub compression: Option<Compression>,
    /// Limits on single requests.
    pub request_limits: Option<RequestLimits>,
    /// Settings of listeners. Gateways, ListenerSets and their listeners only.
    pub listener: Option<ListenerSettings>,
    /// Access logs and traces: of Gateways, ListenerSets and their listeners; by the Namespace also of the proxies of its
    /// workloads.
    pub telemetry: Option<Telemetry>,
}

/// Settings that can be completed by those of a less specific target.
pub trait Inherit {
    /// Fills in what is missing here from `parent`.
    fn inherit(&mut self, parent: &Self);
}

/// Implements [`Inherit`] field by field; naming every field is checked by the compiler.
macro_rules! inherit {
    ($type:ident { $($leaf:ident),* $(; $($section:ident),+)? }) => {
        impl $crate::traffic::Inherit for $type {
            fn inherit(&mut self, parent: &Self) {
                let $type { $($leaf,)* $($($section,)+)? } = parent;
                $(if self.$leaf.is_none() { self.$leaf.clone_from($leaf); })*
                $($($crate::traffic::inherit_section(&mut self.$section, $section);)+)?
            }
        }
    };
}
pub(crate) use inherit;

pub(crate) fn inherit_section<T: Inherit + Clone>(child: &mut Option<T>, parent: &Option<T>) {
    match (child.as_mut(), parent) {
        (Some(child), Some(parent)) => child.inherit(parent),
        (None, Some(parent)) => *child = Some(parent.clone()),
        (_, None) => {}
    }
}

inherit!(TrafficSettings {
    health_checks, direct_response;
    load_balancing, connections, outlier_detection, timeouts, retry, hedging, fault, compression,
    request_limits, listener, telemetry
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::duration::Duration;

    #[test]
    fn a_specific_target_keeps_its_own_and_inherits_the_rest() {
        let mut rule = TrafficSettings {
            timeouts: Some(Timeouts { request: Some(Duration::from_secs(1)), ..Timeouts::default() }),
            health_checks: Some(Vec::new()),
            ..TrafficSettings::default()
        };
        let route = TrafficSettings {
            timeouts: Some(Timeouts {
                request: Some(Duration::from_secs(9)),
                backend_request: Some(Duration::from_millis(300)),
                stream_idle: None,
            }),
            health_checks: Some(vec![HealthCheck::default()]),
            hedging: Some(Hedging { delay: Some(Duration::from_millis(20)), max_attempts: None }),
            ..TrafficSettings::default()
        };
        rule.inherit(&route);
        let timeouts = rule.timeouts.expect("kept");
        assert_eq!(timeouts.request, Some(Duration::from_secs(1)));
        assert_eq!(timeouts.backend_request, Some(Duration::from_millis(300)));
        assert_eq!(rule.health_checks, Some(Vec::new()));
        assert_eq!(rule.hedging, route.hedging);
    }
}
