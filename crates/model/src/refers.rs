//! Fields that name another resource without saying of which kind, such as `caCertificate` of an ExternalService. Each
//! has `x-refers` with that kind in its schema. What has a `kind` beside its `name` says it itself.

use std::sync::OnceLock;

use serde_json::Value;

use crate::meta::{Kind, ResourceKey};
use crate::schema::schema;

/// A field that names a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refers {
    /// Field names from the resource downwards; `*` stands for every item of a list or map.
    path: Vec<String>,
    /// Kind of what is named.
    pub kind: Kind,
}

/// The schemas of resources do not nest deeper; this ends the walk where types contain themselves.
const MAX_DEPTH: usize = 24;

impl Refers {
    /// All such fields of a kind.
    pub fn of(kind: Kind) -> &'static [Refers] {
        static ALL: OnceLock<Vec<Vec<Refers>>> = OnceLock::new();
        let all = ALL.get_or_init(|| {
            Kind::ALL
                .iter()
                .map(|kind| {
                    let mut found = Vec::new();
                    let root = schema(*kind);
                    collect(root, root, &mut Vec::new(), &mut found);
                    found
                })
                .collect()
        });
        &all[kind as usize]
    }

    /// What this field names in the JSON form of a resource of namespace `home`. A `namespace` beside the field is that of
    /// what is named; otherwise it is `home`.
    pub fn named(&self, resource: &Value, home: &str) -> Vec<ResourceKey> {
        let mut found = Vec::new();
        self.follow(resource, &self.path, home, &mut found);
        found
    }

    fn follow(&self, value: &Value, path: &[String], namespace: &str, found: &mut Vec<ResourceKey>) {
        let Some((first, rest)) = path.split_first() else {
            found.extend(value.as_str().map(|name| ResourceKey::new(self.kind, namespace, name)));
            return;
        };
        match value {
            Value::Array(items) if first == "*" => {
                items.iter().for_each(|item| self.follow(item, rest, namespace, found));
            }
            Value::Object(fields) if first == "*" => {
                fields.values().for_each(|item| self.follow(item, rest, namespace, found));
            }
            Value::Object(fields) => {
                let beside = fields.get("namespace").and_then(Value::as_str).filter(|_| first == "name");
                if let Some(value) = fields.get(first) {
                    self.follow(value, rest, beside.unwrap_or(namespace), found);
                }
            }
            _ => {}
        }
    }
}

fn collect(root: &Value, schema: &Value, path: &mut Vec<String>, found: &mut Vec<Refers>) {
    if path.len() > MAX_DEPTH {
        return;
    }
    if let Some(kind) = schema["x-refers"].as_str().and_then(|kind| kind.parse().ok()) {
        found.push(Refers { path: path.clone(), kind });
    }
    if let Some(target) = schema["$ref"].as_str().and_then(|name| root.pointer(name.trim_start_matches('#'))) {
        collect(root, target, path, found);
    }
    let mut below = |name: &str, schema: &Value| {
        path.push(name.to_owned());
        collect(root, schema, path, found);
        path.pop();
    };
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        below(name, field);
    }
    for items in ["items", "additionalProperties"] {
        if schema[items].is_object() {
            below("*", &schema[items]);
        }
    }
    for choice in schema["anyOf"].as_array().into_iter().flatten() {
        collect(root, choice, path, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields of text that are no names of resources, though their documentation speaks of some, and those that are looked
    /// at in ways of their own: labels, parents, targets, classes, namespaces, hosts of certificates.
    const OTHERWISE: &[&str] = &[
        "AccessClaim.name",
        "AccessHeader.name",
        "AccessRule.name",
        "AccessSource.namespaces",
        "AccessSource.notNamespaces",
        "AccessSource.notServiceAccounts",
        "AccessSource.serviceAccounts",
        "BackendTlsValidation.wellKnownCACertificates",
        "Endpoint.nodeName",
        "EndpointPort.name",
        "ExternalPort.name",
        "ForZone.name",
        "GatewayClassSpec.controllerName",
        "GatewaySpec.gatewayClassName",
        "GrpcMethodMatch.service",
        "GrpcRouteRule.name",
        "HashCookie.name",
        "HashKey.name",
        "HeaderMatch.name",
        "HealthCheck.service",
        "HttpHeader.name",
        "HttpQueryParamMatch.name",
        "HttpRouteRule.name",
        "JwtHeader.name",
        "JwtProvider.name",
        "Listener.name",
        "MeshSpec.clusterDomain",
        "MeshSpec.scope",
        "ObjectMeta.name",
        "Secret.type",
        "ServicePort.name",
        "ServiceSpec.clusterIP",
        "ServiceSpec.externalName",
        "SessionPersistence.sessionName",
        "StreamRule.name",
        "WorkloadPort.name",
        "WorkloadSpec.addresses",
        "WorkloadSpec.trustDomain",
    ];

    /// Fields that never name a resource alone.
    const PARTS: &[&str] = &["kind", "namespace", "group", "hostname", "hostnames", "sectionName"];

    fn shown(kind: Kind) -> Vec<String> {
        Refers::of(kind).iter().map(|it| format!("{} -> {}", it.path.join("."), it.kind.name())).collect()
    }

    /// Every field of text that could name a resource is marked, stands beside a `kind`, or is known here not to.
    #[test]
    fn no_reference_is_forgotten() {
        let mut seen = std::collections::BTreeSet::new();
        let mut forgotten = std::collections::BTreeSet::new();
        for kind in Kind::ALL {
            let root = schema(*kind);
            let types = root["$defs"].as_object().into_iter().flatten().map(|(name, schema)| (name.as_str(), schema));
            for (owner, schema) in types.chain([(kind.name(), root)]) {
                let fields = schema["properties"].as_object();
                for (name, field) in fields.into_iter().flatten() {
                    if !could_name(name, field) || PARTS.contains(&name.as_str()) || field.get("x-refers").is_some() {
                        continue;
                    }
                    if name == "name" && fields.is_some_and(|fields| fields.contains_key("kind")) {
                        continue;
                    }
                    let place = format!("{owner}.{name}");
                    match OTHERWISE.iter().find(|other| **other == place) {
                        Some(other) => _ = seen.insert(*other),
                        None => _ = forgotten.insert(place),
                    }
                }
            }
        }
        assert!(forgotten.is_empty(), "mark with x-refers, or add to OTHERWISE with thought: {forgotten:#?}");
        let gone: Vec<_> = OTHERWISE.iter().filter(|other| !seen.contains(*other)).collect();
        assert!(gone.is_empty(), "no such fields: {gone:?}");
    }

    /// Text, or a list of it, whose name or documentation is that of a resource.
    fn could_name(name: &str, field: &Value) -> bool {
        let text = |field: &Value| {
            field["type"] == "string" && field.get("enum").is_none() && field["format"].as_str().is_none()
        };
        if !(text(field) || text(&field["items"])) {
            return false;
        }
        let name = name.to_ascii_lowercase();
        let ends = ["name", "names", "ref", "refs", "certificate", "certificates", "secret", "secrets", "configmap"];
        let words = field["description"].as_str().unwrap_or_default();
        let mut words = words.split(|c: char| !c.is_ascii_alphanumeric());
        let kinds = || Kind::ALL.iter().map(|kind| kind.name());
        ends.iter().any(|end| name.ends_with(end))
            || words.any(|word| kinds().any(|kind| word == kind || word.strip_suffix('s') == Some(kind)))
    }

    #[test]
    fn names_are_found_where_they_stand() {
        let external = Kind::find("selvedge.dev", "ExternalService").unwrap();
        assert_eq!(
            shown(external),
            ["spec.ports.*.tls.caCertificate -> ConfigMap", "spec.ports.*.tls.clientCertificate -> Secret"]
        );
        let value = serde_json::json!({"spec": {"ports": [{"tls": {"caCertificate": "ca"}}, {"tls": {}}, {}]}});
        let found = Refers::of(external)[0].named(&value, "shop");
        assert_eq!(found, [ResourceKey::new(Kind::ConfigMap, "shop", "ca")]);
        let mesh = Kind::find("selvedge.dev", "Mesh").unwrap();
        let map = serde_json::json!({"configMap": {"namespace": "trust", "name": "other", "key": "ca.crt"}});
        let value = serde_json::json!({"spec": {"federation": [{"trustDomain": "o", "bundle": map}]}});
        let found: Vec<_> = Refers::of(mesh).iter().flat_map(|refers| refers.named(&value, "")).collect();
        assert_eq!(found, [ResourceKey::new(Kind::ConfigMap, "trust", "other")]);
    }
}
