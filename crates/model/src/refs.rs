//! References from one resource to another.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::meta::GATEWAY_GROUP;

/// Form of an API group.
pub(crate) const GROUP_PATTERN: &str = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";

/// Form of a kind.
pub(crate) const KIND_PATTERN: &str = "^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$";

/// Form of a namespace: a DNS label.
pub(crate) const NAMESPACE_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";

/// A Gateway, ListenerSet or Service that a route attaches to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentReference {
    /// API group of the parent; empty for a Service.
    #[serde(default = "gateway_group")]
    #[schemars(length(max = 253), regex(pattern = crate::refs::GROUP_PATTERN))]
    pub group: String,
    /// Kind of the parent: `Gateway`, `ListenerSet` or `Service`.
    #[serde(default = "gateway_kind")]
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::KIND_PATTERN))]
    pub kind: String,
    /// Namespace of the parent; without it, the route's own.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::NAMESPACE_PATTERN))]
    pub namespace: Option<String>,
    /// Name of the parent.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Name of one listener of a Gateway or ListenerSet, or of one port of a Service; without it, all of them.
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
    /// Only listeners, or the Service port, of this port number.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
}

/// A backend with its share of the traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendRef {
    /// API group of the backend; empty for the core group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253), regex(pattern = crate::refs::GROUP_PATTERN))]
    pub group: String,
    /// Kind of the backend: `Service`, or `Hostname` of group `selvedge.dev`: then `name` is a DNS name, such as
    /// `api.example.com`, that is looked up and kept fresh, and port 443 means TLS verified for that name.
    #[serde(default = "service_kind")]
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::KIND_PATTERN))]
    pub kind: String,
    /// Namespace of the backend; without it, the route's own. Another namespace needs a ReferenceGrant there.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::NAMESPACE_PATTERN))]
    pub namespace: Option<String>,
    /// Name of the backend.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Port of the backend; required for a Service.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Share of the traffic: weight divided by the sum of all weights of the rule; 0 sends nothing. When all are 0, the rule
    /// answers with 500.
    #[serde(default = "one")]
    #[schemars(range(max = 1_000_000))]
    pub weight: u32,
}

/// A backend without a weight, such as a mirror's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendObjectReference {
    /// API group of the backend; empty for the core group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253), regex(pattern = crate::refs::GROUP_PATTERN))]
    pub group: String,
    /// Kind of the backend: `Service`, or `Hostname` of group `selvedge.dev`: then `name` is a DNS name, such as
    /// `api.example.com`, that is looked up and kept fresh, and port 443 means TLS verified for that name.
    #[serde(default = "service_kind")]
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::KIND_PATTERN))]
    pub kind: String,
    /// Namespace of the backend; without it, the referrer's own. Another namespace needs a ReferenceGrant there.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::NAMESPACE_PATTERN))]
    pub namespace: Option<String>,
    /// Name of the backend.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Port of the backend; required for a Service.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
}

/// A Secret, or another kind that holds a certificate and its key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretObjectReference {
    /// API group; empty for the core group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253), regex(pattern = crate::refs::GROUP_PATTERN))]
    pub group: String,
    /// Kind.
    #[serde(default = "secret_kind")]
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::KIND_PATTERN))]
    pub kind: String,
    /// Namespace; without it, the referrer's own. Another namespace needs a ReferenceGrant there.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::NAMESPACE_PATTERN))]
    pub namespace: Option<String>,
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Any resource, maybe of another namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectReference {
    /// API group; empty for the core group.
    #[schemars(length(max = 253), regex(pattern = crate::refs::GROUP_PATTERN))]
    pub group: String,
    /// Kind, such as `ConfigMap`.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::KIND_PATTERN))]
    pub kind: String,
    /// Namespace; without it, the referrer's own. Another namespace needs a ReferenceGrant there.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::NAMESPACE_PATTERN))]
    pub namespace: Option<String>,
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A resource of the referrer's own namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalObjectReference {
    /// API group; empty for the core group.
    #[schemars(length(max = 253), regex(pattern = crate::refs::GROUP_PATTERN))]
    pub group: String,
    /// Kind, such as `ConfigMap`.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::refs::KIND_PATTERN))]
    pub kind: String,
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Selects resources by their labels; an empty selector selects all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that must be there with exactly these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Further conditions; all must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LabelSelectorRequirement>,
}

/// One condition on labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelectorRequirement {
    /// Label name.
    pub key: String,
    /// How the label is compared.
    pub operator: LabelOperator,
    /// Values for `In` and `NotIn`; must be empty otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum LabelOperator {
    /// The label is there with one of the values.
    In,
    /// The label is absent or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether resources with these labels are selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let exact = self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value));
        exact
            && self.match_expressions.iter().all(|requirement| {
                let value = labels.get(&requirement.key);
                match requirement.operator {
                    LabelOperator::In => value.is_some_and(|value| requirement.values.contains(value)),
                    LabelOperator::NotIn => !value.is_some_and(|value| requirement.values.contains(value)),
                    LabelOperator::Exists => value.is_some(),
                    LabelOperator::DoesNotExist => value.is_none(),
                }
            })
    }
}

impl BackendRef {
    /// The same backend without its weight.
    pub fn object(&self) -> BackendObjectReference {
        BackendObjectReference {
            group: self.group.clone(),
            kind: self.kind.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            port: self.port,
        }
    }
}

pub(crate) fn gateway_group() -> String {
    GATEWAY_GROUP.to_owned()
}

pub(crate) fn gateway_kind() -> String {
    "Gateway".to_owned()
}

fn service_kind() -> String {
    "Service".to_owned()
}

fn secret_kind() -> String {
    "Secret".to_owned()
}

fn one() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_follow_kubernetes() {
        let labels = BTreeMap::from([("env".to_owned(), "prod".to_owned())]);
        let requirement = |operator, key: &str, values: &[&str]| LabelSelector {
            match_labels: BTreeMap::new(),
            match_expressions: vec![LabelSelectorRequirement {
                key: key.to_owned(),
                operator,
                values: values.iter().map(|value| (*value).to_owned()).collect(),
            }],
        };
        assert!(LabelSelector::default().matches(&labels));
        assert!(requirement(LabelOperator::In, "env", &["prod", "test"]).matches(&labels));
        assert!(!requirement(LabelOperator::In, "tier", &["prod"]).matches(&labels));
        assert!(requirement(LabelOperator::NotIn, "tier", &["prod"]).matches(&labels));
        assert!(!requirement(LabelOperator::NotIn, "env", &["prod"]).matches(&labels));
        assert!(requirement(LabelOperator::Exists, "env", &[]).matches(&labels));
        assert!(requirement(LabelOperator::DoesNotExist, "tier", &[]).matches(&labels));
    }
}
