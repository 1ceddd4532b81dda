//! BackendTLSPolicy of the Gateway API v1.6.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::meta::ObjectMeta;
use crate::refs::LocalObjectReference;

/// TLS towards the backends of a Service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["status"]))]
pub struct BackendTlsPolicy {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Services and how their certificates are checked.
    pub spec: BackendTlsPolicySpec,
}

/// Services and how their certificates are checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendTlsPolicySpec {
    /// Services of the same namespace, or single ports of them.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// How the certificate of the backend is checked.
    pub validation: BackendTlsValidation,
    /// Options with a domain prefix.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// A resource of the same namespace, or a section of it, that a policy applies to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTargetReference {
    /// API group; empty for a Service.
    #[schemars(length(max = 253), regex(pattern = crate::refs::GROUP_PATTERN))]
    pub group: String,
    /// Kind, such as `Service`.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::KIND_PATTERN))]
    pub kind: String,
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Section: the name of a port of a Service.
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
}

/// How the certificate of a backend is checked; one of `caCertificateRefs` and `wellKnownCACertificates` is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendTlsValidation {
    /// ConfigMaps (key `ca.crt`) or Secrets with the CA certificates that sign the backend.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub ca_certificate_refs: Vec<LocalObjectReference>,
    /// A well-known set of CA certificates.
    #[serde(rename = "wellKnownCACertificates")]
    pub well_known_ca_certificates: Option<WellKnownCaCertificates>,
    /// Server name to send, and the name the certificate must carry unless `subjectAltNames` is given.
    #[schemars(length(min = 1, max = 253))]
    pub hostname: String,
    /// Names of which the certificate must carry one, instead of `hostname`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    pub subject_alt_names: Vec<SubjectAltName>,
}

/// A well-known set of CA certificates.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(from = "String", into = "String")]
#[schemars(with = "String", inline)]
pub enum WellKnownCaCertificates {
    /// Those of the operating system.
    System,
    /// A set with a domain prefix, which Selvedge does not know.
    Other(String),
}

impl From<String> for WellKnownCaCertificates {
    fn from(text: String) -> Self {
        match text.as_str() {
            "System" => WellKnownCaCertificates::System,
            _ => WellKnownCaCertificates::Other(text),
        }
    }
}

impl From<WellKnownCaCertificates> for String {
    fn from(value: WellKnownCaCertificates) -> Self {
        match value {
            WellKnownCaCertificates::System => "System".to_owned(),
            WellKnownCaCertificates::Other(text) => text,
        }
    }
}

/// A name that a certificate may carry; `type` says which of the other fields is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SubjectAltName {
    /// Which kind of name.
    #[serde(rename = "type")]
    pub name_type: SubjectAltNameType,
    /// A DNS name, maybe with a leading `*.` label.
    #[schemars(length(min = 1, max = 253))]
    pub hostname: Option<String>,
    /// A URI, such as a SPIFFE ID.
    #[schemars(length(min = 1, max = 253))]
    pub uri: Option<String>,
}

/// Which kind of name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum SubjectAltNameType {
    /// A DNS name.
    Hostname,
    /// A URI.
    #[serde(rename = "URI")]
    Uri,
}
