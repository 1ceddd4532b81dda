//! AccessPolicy of `selvedge.dev/v1alpha1`: who may do what.
//!
//! Whatever any policy with action `Deny` matches is denied. Otherwise, where policies with action `Allow` hold, one of them
//! must match. Otherwise the default of the mesh holds. Policies with action `Audit` decide nothing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::meta::{GATEWAY_GROUP, Kind, ObjectMeta};
use crate::refs::LabelSelector;

/// Who may do what at its targets. Judged where traffic arrives: at Gateways, and in front of workloads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["status"]))]
pub struct AccessPolicy {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Targets, action and rules.
    pub spec: AccessPolicySpec,
}

/// Targets, action and rules of an AccessPolicy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessPolicySpec {
    /// Where the policy holds, in its own namespace. Without targets and selector it holds for the whole namespace, its
    /// Gateways included; in the namespace `selvedge-system`, for the whole mesh and all Gateways.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<AccessTarget>,
    /// Workloads of the namespace by their labels; in the namespace `selvedge-system`, workloads of all namespaces.
    /// Not together with `targetRefs`.
    pub selector: Option<LabelSelector>,
    /// What is done with what the rules match.
    #[serde(default)]
    #[schemars(extend("default" = "Allow"))]
    pub action: AccessAction,
    /// The policy matches when one of the rules does. A policy without rules matches nothing: with action `Allow` nothing
    /// is then allowed but by other policies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub rules: Vec<AccessRule>,
    /// Set for a policy that could not be read: its targets then deny everything. Not to be written in files.
    #[serde(skip)]
    pub unreadable: bool,
}

/// What is done with what a policy matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum AccessAction {
    /// It is allowed, and what no policy allows is denied.
    #[default]
    Allow,
    /// It is denied, whatever other policies say.
    Deny,
    /// It is marked in logs and metrics. Nothing is decided.
    Audit,
}

/// One target of an AccessPolicy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessTarget {
    /// API group of the target; without it, the group of `kind`.
    #[schemars(length(max = 253))]
    pub group: Option<String>,
    /// Kind of the target.
    pub kind: AccessTargetKind,
    /// Name of the target; for a Namespace, the policy's own.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// One listener of a Gateway, by name.
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
}

/// Kinds that an AccessPolicy can target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum AccessTargetKind {
    /// All workloads and Gateways of the namespace.
    Namespace,
    /// All workloads that serve a Service. Does not hold at Gateways, as a Gateway is another client than who asks it.
    Service,
    /// One Workload.
    Workload,
    /// Everything that comes through a Gateway, or through one listener of it.
    Gateway,
    /// Requests that an HTTPRoute takes at a Gateway.
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    /// Requests that a GRPCRoute takes at a Gateway.
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
}

impl AccessTargetKind {
    /// As written in `kind:`.
    pub const fn name(self) -> &'static str {
        match self {
            AccessTargetKind::Namespace => "Namespace",
            AccessTargetKind::Service => "Service",
            AccessTargetKind::Workload => "Workload",
            AccessTargetKind::Gateway => "Gateway",
            AccessTargetKind::HttpRoute => "HTTPRoute",
            AccessTargetKind::GrpcRoute => "GRPCRoute",
        }
    }

    /// API group of the kind.
    pub const fn group(self) -> &'static str {
        match self {
            AccessTargetKind::Namespace => Kind::Namespace.group(),
            AccessTargetKind::Service => Kind::Service.group(),
            AccessTargetKind::Workload => crate::meta::SELVEDGE_GROUP,
            AccessTargetKind::Gateway | AccessTargetKind::HttpRoute | AccessTargetKind::GrpcRoute => GATEWAY_GROUP,
        }
    }
}

impl AccessTarget {
    /// The group of the target, given or implied.
    pub fn group(&self) -> &str {
        self.group.as_deref().unwrap_or(self.kind.group())
    }
}

/// Who does what. All of `from`, `to` and `when` that are given must hold; a rule without any matches everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessRule {
    /// Name of the rule, for logs and explanations.
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// Who: one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64))]
    pub from: Vec<AccessSource>,
    /// What: one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64))]
    pub to: Vec<AccessOperation>,
    /// A CEL expression that must be true. Variables: `source` (`identity`, `namespace`, `trust_domain`, `service_account`,
    /// `ip`), `destination` (`port`), `request` (`method`, `path`, `host`, `query`, `remote_ip`, `headers`: a list of values
    /// by lower-case name), `connection` (`mtls`), `claims` (of the verified token; empty without one: ask
    /// `'sub' in claims && …`). Texts that are not known are empty. An expression that fails matches
    /// with action `Deny`, and does not with action `Allow`. `source.namespace` may be one of another trust domain: compare
    /// `source.trust_domain` too where others are trusted.
    #[schemars(length(min = 1, max = 4096))]
    pub when: Option<String>,
}

/// Who. Everything that is given must hold; of each list, one entry must. Texts are compared exactly, or with `*` at the
/// end or beginning by what is before or behind it; `*` alone is anything that is there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessSource {
    /// SPIFFE IDs, proven by mutual TLS: `spiffe://cluster.local/ns/shop/sa/cart`, `spiffe://cluster.local/ns/shop/*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 2048)))]
    pub identities: Vec<String>,
    /// SPIFFE IDs that it must not be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 2048)))]
    pub not_identities: Vec<String>,
    /// Namespaces of identities. To allow, they are those of the mesh's own trust domain, unless `trustDomains` stands
    /// beside them: a namespace of another mesh belongs to somebody else, whatever its name. To deny, and for audit, they
    /// are those of every trust domain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 63)))]
    pub namespaces: Vec<String>,
    /// Namespaces that it must not come from, in any trust domain; with action `Deny` only those of the mesh's own are
    /// spared, unless `trustDomains` stands beside them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 63)))]
    pub not_namespaces: Vec<String>,
    /// Trust domains of identities.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 255)))]
    pub trust_domains: Vec<String>,
    /// Trust domains that it must not come from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 255)))]
    pub not_trust_domains: Vec<String>,
    /// Service accounts of identities, `NAMESPACE/NAME`, or `NAME` for the policy's own namespace. Of which trust
    /// domains is as for `namespaces`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 317)))]
    pub service_accounts: Vec<String>,
    /// Service accounts that it must not be. Of which trust domains is as for `notNamespaces`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 317)))]
    pub not_service_accounts: Vec<String>,
    /// Address of whoever opened the connection to us: addresses or ranges, `10.0.0.0/8`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 49)))]
    pub ip_blocks: Vec<String>,
    /// Addresses that the connection must not come from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 49)))]
    pub not_ip_blocks: Vec<String>,
    /// Address of the client, as proxies that are trusted have named it: `X-Forwarded-For` or PROXY protocol.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 49)))]
    pub remote_ip_blocks: Vec<String>,
    /// Addresses that the client must not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 49)))]
    pub not_remote_ip_blocks: Vec<String>,
    /// Claims of the token that the caller has sent and an AuthPolicy has verified; all must hold. Who comes without has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32))]
    pub claims: Vec<AccessClaim>,
}

/// A claim of a token that an AuthPolicy has verified.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessClaim {
    /// Name of the claim; `/` leads into objects: `realm_access/roles`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Values, one of which it must have; of a claim that is a list, one entry must be one of them.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 1024)))]
    pub values: Vec<String>,
}

/// What. Everything that is given must hold; of each list, one entry must.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessOperation {
    /// Hosts without port, in any case: `shop.example`, `*.shop.example`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 254)))]
    pub hosts: Vec<String>,
    /// Hosts that it must not be for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 254)))]
    pub not_hosts: Vec<String>,
    /// Ports that the connection is for: of the workload, or of the Gateway's listener.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(range(min = 1)))]
    pub ports: Vec<u16>,
    /// Ports that it must not be for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(range(min = 1)))]
    pub not_ports: Vec<u16>,
    /// Methods, in upper case as they are sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 64)))]
    pub methods: Vec<String>,
    /// Methods that it must not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 64)))]
    pub not_methods: Vec<String>,
    /// Paths without query, in the form that backends receive: `/health`; `/admin/*` (everything below), `/static*`
    /// (everything that begins so), `*.css`; `/orders/{id}/items/*`, where `{id}` is one segment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 1024)))]
    pub paths: Vec<String>,
    /// Paths that it must not be for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 1024)))]
    pub not_paths: Vec<String>,
    /// Headers; all must hold. A header that is sent more than once holds when one of its values does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32))]
    pub headers: Vec<AccessHeader>,
    /// Headers of which none may hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32))]
    pub not_headers: Vec<AccessHeader>,
}

/// One header: exactly one of `exact`, `prefix` and `present`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessHeader {
    /// Name, in any case.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// The whole value.
    #[schemars(length(max = 4096))]
    pub exact: Option<String>,
    /// Beginning of the value.
    #[schemars(length(min = 1, max = 4096))]
    pub prefix: Option<String>,
    /// Whether the header must be there (`true`) or must not (`false`), whatever its value.
    pub present: Option<bool>,
}

impl AccessPolicy {
    /// What stands for a policy that cannot be read, with as much of its targets as could be: it denies everything there.
    pub fn unreadable(
        namespace: &str,
        name: &str,
        targets: Vec<AccessTarget>,
        selector: Option<LabelSelector>,
    ) -> Self {
        let metadata = ObjectMeta { name: name.to_owned(), namespace: namespace.to_owned(), ..ObjectMeta::default() };
        let action = AccessAction::Deny;
        let rules = vec![AccessRule::default()];
        let spec = AccessPolicySpec { target_refs: targets, selector, action, rules, unreadable: true };
        AccessPolicy { metadata, spec }
    }
}
