//! GatewayClass, Gateway, ListenerSet and ReferenceGrant of the Gateway API v1.6.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::meta::ObjectMeta;
use crate::refs::{LabelSelector, ObjectReference, SecretObjectReference, gateway_group, gateway_kind};

/// A class of Gateways and the controller that serves them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["status"]))]
pub struct GatewayClass {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What the class is.
    pub spec: GatewayClassSpec,
}

/// What a GatewayClass is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayClassSpec {
    /// Controller that serves Gateways of this class: a domain and a path; Selvedge serves `selvedge.dev/gateway`.
    #[schemars(length(min = 1, max = 253))]
    pub controller_name: String,
    /// What the class is for, in words.
    #[schemars(length(max = 64))]
    pub description: Option<String>,
    /// A resource with further parameters of the class.
    pub parameters_ref: Option<ObjectReference>,
}

/// A place where traffic enters: addresses and listeners.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["status"]))]
pub struct Gateway {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Listeners and addresses.
    pub spec: GatewaySpec,
}

/// Listeners and addresses of a Gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewaySpec {
    /// Name of the GatewayClass.
    #[schemars(length(min = 1, max = 253))]
    pub gateway_class_name: String,
    /// Addresses to listen on; without any, all addresses of the machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub addresses: Vec<GatewaySpecAddress>,
    /// Ports to listen on; further ones come from ListenerSets.
    #[schemars(length(min = 1, max = 64))]
    pub listeners: Vec<Listener>,
    /// Which ListenerSets may add listeners.
    pub allowed_listeners: Option<AllowedListeners>,
    /// Labels and annotations for what is created to serve this Gateway.
    pub infrastructure: Option<GatewayInfrastructure>,
    /// TLS for the whole Gateway: client certificates in both directions.
    pub tls: Option<GatewayTls>,
    /// Whether routes that ask for default Gateways attach here (experimental).
    pub default_scope: Option<DefaultScope>,
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewaySpecAddress {
    /// Kind of address: `IPAddress`, `Hostname` or a name with a domain prefix.
    #[serde(rename = "type", default)]
    pub address_type: AddressType,
    /// The address; empty asks for any address of the type.
    #[schemars(length(max = 253))]
    pub value: Option<String>,
}

/// Kind of a Gateway address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(from = "String", into = "String")]
#[schemars(with = "String", inline)]
pub enum AddressType {
    /// A textual IPv4 or IPv6 address.
    #[default]
    IpAddress,
    /// A DNS name.
    Hostname,
    /// A name with a domain prefix, of another implementation.
    Other(String),
}

impl From<String> for AddressType {
    fn from(text: String) -> Self {
        match text.as_str() {
            "IPAddress" => AddressType::IpAddress,
            "Hostname" => AddressType::Hostname,
            _ => AddressType::Other(text),
        }
    }
}

impl From<AddressType> for String {
    fn from(value: AddressType) -> Self {
        match value {
            AddressType::IpAddress => "IPAddress".to_owned(),
            AddressType::Hostname => "Hostname".to_owned(),
            AddressType::Other(text) => text,
        }
    }
}

/// One port with a protocol and, for most protocols, a hostname.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Name, unique in the Gateway or ListenerSet.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Virtual hostname, maybe with a leading `*.` label; without it, every hostname. Not for TCP and UDP.
    #[schemars(length(min = 1, max = 253))]
    pub hostname: Option<String>,
    /// Port to listen on.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// `HTTP`, `HTTPS`, `TLS`, `TCP`, `UDP`, or a protocol with a domain prefix.
    pub protocol: ListenerProtocol,
    /// Certificates and mode; required for HTTPS and TLS, forbidden otherwise.
    pub tls: Option<ListenerTls>,
    /// Which routes may attach; without it, routes of the same namespace.
    #[serde(default)]
    pub allowed_routes: AllowedRoutes,
}

/// Protocol of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(from = "String", into = "String")]
#[schemars(with = "String", inline)]
pub enum ListenerProtocol {
    /// HTTP/1.1 and HTTP/2 in clear text.
    Http,
    /// HTTP over TLS, terminated here.
    Https,
    /// TLS, terminated here or passed through by server name.
    Tls,
    /// Plain TCP.
    Tcp,
    /// Plain UDP.
    Udp,
    /// A protocol that Selvedge does not serve.
    Other(String),
}

impl ListenerProtocol {
    /// The name as written in a listener.
    pub fn as_str(&self) -> &str {
        match self {
            ListenerProtocol::Http => "HTTP",
            ListenerProtocol::Https => "HTTPS",
            ListenerProtocol::Tls => "TLS",
            ListenerProtocol::Tcp => "TCP",
            ListenerProtocol::Udp => "UDP",
            ListenerProtocol::Other(text) => text,
        }
    }
}

impl From<String> for ListenerProtocol {
    fn from(text: String) -> Self {
        match text.as_str() {
            "HTTP" => ListenerProtocol::Http,
            "HTTPS" => ListenerProtocol::Https,
            "TLS" => ListenerProtocol::Tls,
            "TCP" => ListenerProtocol::Tcp,
            "UDP" => ListenerProtocol::Udp,
            _ => ListenerProtocol::Other(text),
        }
    }
}

impl From<ListenerProtocol> for String {
    fn from(value: ListenerProtocol) -> Self {
        match value {
            ListenerProtocol::Other(text) => text,
            known => known.as_str().to_owned(),
        }
    }
}

/// TLS of one listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerTls {
    /// Whether TLS ends here or passes through.
    #[serde(default)]
    pub mode: TlsMode,
    /// Secrets of type `kubernetes.io/tls`; the certificate is picked by server name. Required to terminate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub certificate_refs: Vec<SecretObjectReference>,
    /// Options with a domain prefix.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// Where TLS ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum TlsMode {
    /// TLS ends at the listener.
    #[default]
    Terminate,
    /// The TLS stream is passed on as it is; only the server name is read.
    Passthrough,
}

/// Which routes may attach to a listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AllowedRoutes {
    /// Namespaces that routes may come from.
    #[serde(default)]
    pub namespaces: RouteNamespaces,
    /// Kinds of routes; without any, all that suit the protocol.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub kinds: Vec<RouteGroupKind>,
}

/// Namespaces that routes may come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteNamespaces {
    /// Which namespaces.
    #[serde(default)]
    pub from: FromNamespaces,
    /// Labels of the namespaces; for `from: Selector`, which needs it.
    pub selector: Option<LabelSelector>,
}

/// Which namespaces routes may come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum FromNamespaces {
    /// All namespaces.
    All,
    /// Namespaces whose labels match the selector.
    Selector,
    /// The namespace of the listener.
    #[default]
    Same,
    /// No namespace.
    None,
}

/// A kind of route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteGroupKind {
    /// API group.
    #[serde(default = "gateway_group")]
    #[schemars(length(max = 253), regex(pattern = crate::refs::GROUP_PATTERN))]
    pub group: String,
    /// Kind, such as `HTTPRoute`.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::KIND_PATTERN))]
    pub kind: String,
}

/// Which ListenerSets may add listeners to a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AllowedListeners {
    /// Namespaces that ListenerSets may come from; without it, none.
    #[serde(default)]
    pub namespaces: ListenerNamespaces,
}

/// Namespaces that ListenerSets may come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerNamespaces {
    /// Which namespaces.
    #[serde(default = "no_namespaces")]
    pub from: FromNamespaces,
    /// Labels of the namespaces; for `from: Selector`, which needs it.
    pub selector: Option<LabelSelector>,
}

impl Default for ListenerNamespaces {
    fn default() -> Self {
        ListenerNamespaces { from: FromNamespaces::None, selector: None }
    }
}

fn no_namespaces() -> FromNamespaces {
    FromNamespaces::None
}

/// What is put on resources created to serve a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayInfrastructure {
    /// Labels, at most 8.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations, at most 8.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// A resource with further parameters of this Gateway.
    pub parameters_ref: Option<crate::refs::LocalObjectReference>,
}

/// TLS for the whole Gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayTls {
    /// Towards backends.
    pub backend: Option<GatewayBackendTls>,
    /// Towards clients.
    pub frontend: Option<FrontendTls>,
}

/// TLS towards backends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayBackendTls {
    /// Secret with the certificate shown to backends that ask for one.
    pub client_certificate_ref: Option<SecretObjectReference>,
}

/// TLS towards clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FrontendTls {
    /// For all ports that have nothing of their own.
    pub default: FrontendTlsConfig,
    /// For single ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub per_port: Vec<FrontendTlsPort>,
}

/// TLS towards clients of one port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FrontendTlsPort {
    /// Port number, unique in the list.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// What holds for the port.
    pub tls: FrontendTlsConfig,
}

/// Whether and how clients must show a certificate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FrontendTlsConfig {
    /// How client certificates are checked; without it, none is asked for.
    pub validation: Option<FrontendValidation>,
}

/// How client certificates are checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FrontendValidation {
    /// ConfigMaps (key `ca.crt`) or Secrets with the CA certificates that sign clients.
    #[schemars(length(min = 1, max = 16))]
    pub ca_certificate_refs: Vec<ObjectReference>,
    /// What happens to clients without a valid certificate.
    #[serde(default)]
    pub mode: FrontendValidationMode,
}

/// What happens to clients without a valid certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum FrontendValidationMode {
    /// Only clients with a valid certificate may connect.
    #[default]
    AllowValidOnly,
    /// Every client may connect. Backends see the certificate in `X-Forwarded-Client-Cert` when it was valid, and no such
    /// header when it was not, or there was none.
    AllowInsecureFallback,
}

/// Scope of default Gateways (experimental).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum DefaultScope {
    /// All routes that ask for default Gateways.
    All,
    /// None.
    None,
}

/// Further listeners for a Gateway, maybe of another team.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["status"]))]
pub struct ListenerSet {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Gateway and listeners.
    pub spec: ListenerSetSpec,
}

/// Gateway and listeners of a ListenerSet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerSetSpec {
    /// Gateway that the listeners join; it must allow them by `allowedListeners`.
    pub parent_ref: ParentGatewayReference,
    /// The listeners.
    #[schemars(length(min = 1, max = 64))]
    pub listeners: Vec<Listener>,
}

/// Gateway of a ListenerSet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentGatewayReference {
    /// API group.
    #[serde(default = "gateway_group")]
    #[schemars(length(max = 253), regex(pattern = crate::refs::GROUP_PATTERN))]
    pub group: String,
    /// Kind.
    #[serde(default = "gateway_kind")]
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::KIND_PATTERN))]
    pub kind: String,
    /// Namespace; without it, the ListenerSet's own.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::NAMESPACE_PATTERN))]
    pub namespace: Option<String>,
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Lets resources of other namespaces refer to resources of this one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["status"]))]
pub struct ReferenceGrant {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Who may refer to what.
    pub spec: ReferenceGrantSpec,
}

/// Who may refer to what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReferenceGrantSpec {
    /// Who may refer.
    #[schemars(length(min = 1, max = 16))]
    pub from: Vec<ReferenceGrantFrom>,
    /// What may be referred to.
    #[schemars(length(min = 1, max = 16))]
    pub to: Vec<ReferenceGrantTo>,
}

/// Resources that may refer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReferenceGrantFrom {
    /// API group; empty for the core group.
    #[schemars(length(max = 253), regex(pattern = crate::refs::GROUP_PATTERN))]
    pub group: String,
    /// Kind: `Gateway`, `ListenerSet` or a kind of route.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::KIND_PATTERN))]
    pub kind: String,
    /// Namespace.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::NAMESPACE_PATTERN))]
    pub namespace: String,
}

/// Resources that may be referred to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReferenceGrantTo {
    /// API group; empty for the core group.
    #[schemars(length(max = 253), regex(pattern = crate::refs::GROUP_PATTERN))]
    pub group: String,
    /// Kind: `Service`, `Secret` or `ConfigMap`.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::KIND_PATTERN))]
    pub kind: String,
    /// Name; without it, all of the kind in this namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
}
