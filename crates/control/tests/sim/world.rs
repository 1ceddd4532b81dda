//! What there is to configure, and how it changes: resources of a few namespaces, and an editor that adds, changes,
//! breaks, mends and deletes them.

use crate::rng::Rng;
use selvedge_control::publish::version::{Version, canonical};
use selvedge_model::{Kind, Resource, ResourceKey};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub const NAMESPACES: [&str; 2] = ["shop", "pay"];
pub const ROOT: &str = "selvedge-system";

pub type Change = (ResourceKey, Option<Resource>);

/// The port of generation 0 of what changes together.
const PAIR: u64 = 20_000;

/// Who may change what there is. Knows all that there ever was.
pub struct Editor {
    pub now: BTreeMap<ResourceKey, Resource>,
    /// Each version of each resource that was committed, in order.
    pub ever: BTreeMap<ResourceKey, Vec<Version>>,
    /// Versions that no proxy may serve in the place of a good one.
    pub broken: BTreeSet<(ResourceKey, Version)>,
    pub services: usize,
    generation: u64,
}

pub fn resource(value: &Value) -> Resource {
    Resource::from_value(value).unwrap_or_else(|findings| panic!("{value}: {findings:?}"))
}

fn named(api: &str, kind: &str, namespace: &str, name: &str, spec: Value) -> Resource {
    let mut value = json!({"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": spec});
    if !namespace.is_empty() {
        value["metadata"]["namespace"] = namespace.into();
    }
    resource(&value)
}

const GATEWAY: &str = "gateway.networking.k8s.io/v1";
const OWN: &str = "selvedge.dev/v1alpha1";

fn octets(namespace: &str, number: usize) -> String {
    let third = NAMESPACES.iter().position(|n| *n == namespace).unwrap_or(9);
    format!("{third}.{}", number % 250 + 1)
}

pub fn service(namespace: &str, number: usize, port: u64) -> Resource {
    let spec = json!({
        "clusterIP": format!("10.9.{}", octets(namespace, number)),
        "selector": {"app": format!("s{number}")},
        "ports": [{"name": "http", "port": port, "appProtocol": "http"}],
    });
    named("v1", "Service", namespace, &format!("s{number}"), spec)
}

fn slice(namespace: &str, service: &str, port: u64, addresses: &[String]) -> Resource {
    let endpoints: Vec<Value> = addresses.iter().map(|a| json!({"addresses": [a]})).collect();
    resource(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": service, "namespace": namespace, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": port}], "endpoints": endpoints,
    }))
}

/// With TLS by the Secret `cert` of a namespace.
fn gateway(namespace: &str, secret: Option<&str>) -> Resource {
    let mut listeners = vec![json!({"name": "web", "port": 80, "protocol": "HTTP"})];
    if let Some(of) = secret {
        let tls = json!({"certificateRefs": [{"name": "cert", "namespace": of}]});
        listeners.push(json!({"name": "tls", "port": 443, "protocol": "HTTPS", "tls": tls}));
    }
    named(GATEWAY, "Gateway", namespace, "edge", json!({"gatewayClassName": "selvedge", "listeners": listeners}))
}

fn secret(namespace: &str, name: &str, generation: u64) -> Resource {
    resource(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace},
        "stringData": {"text": generation.to_string()},
    }))
}

/// What lets Gateways of another namespace use the Secret `cert`.
pub fn grant(namespace: &str) -> ResourceKey {
    ResourceKey::new(Kind::ReferenceGrant, namespace, "cert")
}

fn granted(namespace: &str, from: &str) -> Resource {
    let from = json!([{"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": from}]);
    let to = json!([{"group": "", "kind": "Secret", "name": "cert"}]);
    named("gateway.networking.k8s.io/v1beta1", "ReferenceGrant", namespace, "cert", json!({"from": from, "to": to}))
}

/// Outside of the mesh, and called with the certificate of a namespace: `ext.<namespace>.example`.
fn external(namespace: &str) -> Resource {
    let spec = json!({
        "hosts": [format!("ext.{namespace}.example")],
        "ports": [{"port": 443, "tls": {"clientCertificate": "cert"}}],
    });
    named(OWN, "ExternalService", namespace, "ext", spec)
}

/// A route of `namespace/edge`, or of a Service, to a Service. A broken one has a filter that nobody knows.
fn route(
    namespace: &str,
    name: &str,
    parent: Option<&str>,
    to: (&str, u64),
    generation: u64,
    broken: bool,
) -> Resource {
    let parent = match parent {
        Some(service) => json!({"group": "", "kind": "Service", "name": service}),
        None => json!({"name": "edge"}),
    };
    let path = json!({"type": "PathPrefix", "value": format!("/{name}/{generation}")});
    let unknown = json!({"type": "ExtensionRef", "extensionRef": {"group": "example.com", "kind": "No", "name": "no"}});
    let filters = if broken { vec![unknown] } else { Vec::new() };
    let to = json!([{"name": to.0, "port": to.1}]);
    let rules = json!([{"matches": [{"path": path}], "filters": filters, "backendRefs": to}]);
    named(GATEWAY, "HTTPRoute", namespace, name, json!({"parentRefs": [parent], "rules": rules}))
}

pub fn workload(namespace: &str, name: &str, number: usize) -> Value {
    json!({
        "apiVersion": OWN, "kind": "Workload",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": format!("s{}", number % 3)}},
        "spec": {
            "addresses": [format!("10.7.{}.{}", number / 200, number % 200 + 1)],
            "ports": [{"name": "http", "port": 80}],
            "serviceAccount": name,
        },
    })
}

/// A Service, its slice and a route that only work together: their ports say of which generation they are.
fn pair(namespace: &str, generation: u64) -> [Resource; 3] {
    let port = PAIR + generation % 20_000;
    let mut service = service(namespace, 99, port).to_value();
    service["metadata"]["name"] = "pair".into();
    service["spec"]["selector"] = json!({});
    let address = format!("10.8.{}", octets(namespace, 0));
    [
        resource(&service),
        slice(namespace, "pair", port, &[address]),
        route(namespace, "pair", None, ("pair", port), 0, false),
    ]
}

impl Editor {
    pub fn new(services: usize, wide: bool, rng: &mut Rng) -> Self {
        let (now, ever, broken) = Default::default();
        let mut editor = Self { now, ever, broken, services, generation: 0 };
        let mut all = Vec::new();
        for namespace in NAMESPACES {
            all.push(resource(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})));
            all.push(gateway(namespace, (namespace == "pay").then_some("pay")));
            all.push(external(namespace));
            all.push(secret(namespace, "cert", 0));
            all.push(secret(namespace, "private", 0));
            all.extend(pair(namespace, 0));
            for number in 0..services {
                all.push(service(namespace, number, 80));
                all.push(editor.endpoints(namespace, number, rng));
                if number % 2 == 0 {
                    let to = format!("s{number}");
                    all.push(route(namespace, &format!("r{number}"), None, (&to, 80), 0, false));
                }
            }
        }
        if wide {
            all.push(named(OWN, "Mesh", "", "default", json!({"scope": NAMESPACES})));
        }
        editor.commit(all.into_iter().map(|r| (r.key(), Some(r))).collect());
        editor
    }

    /// Writes down what is to be committed.
    fn commit(&mut self, changes: Vec<Change>) -> Vec<Change> {
        for (key, resource) in &changes {
            match resource {
                Some(resource) => {
                    self.ever.entry(key.clone()).or_default().push(canonical(resource).1);
                    self.now.insert(key.clone(), resource.clone());
                }
                None => _ = self.now.remove(key),
            }
        }
        changes
    }

    fn endpoints(&self, namespace: &str, number: usize, rng: &mut Rng) -> Resource {
        let count = rng.between(0, 4);
        let addresses: Vec<String> = (0..count)
            .map(|_| format!("10.6.{}", octets(namespace, rng.index(240))))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        slice(namespace, &format!("s{number}"), 80, &addresses)
    }

    /// One commit of one or more changes.
    pub fn edit(&mut self, rng: &mut Rng) -> Vec<Change> {
        self.generation += 1;
        let generation = self.generation;
        let namespace = rng.pick(&NAMESPACES).unwrap_or(ROOT);
        let number = rng.index(self.services);
        let to = format!("s{number}");
        let up = |resource: Resource| vec![(resource.key(), Some(resource))];
        let changes = match rng.below(14) {
            0..=3 => up(self.endpoints(namespace, number, rng)),
            4 => pair(namespace, generation).into_iter().map(|r| (r.key(), Some(r))).collect(),
            5 | 6 => up(route(namespace, &format!("r{number}"), None, (&to, 80), generation, false)),
            7 => {
                let parent = rng.percent(50).then_some(to.as_str());
                let name = if parent.is_some() { format!("m{number}") } else { format!("r{number}") };
                let broken = route(namespace, &name, parent, (&to, 80), generation, true);
                self.broken.insert((broken.key(), canonical(&broken).1));
                up(broken)
            }
            8 => up(route(namespace, &format!("m{number}"), Some(&to), (&to, 80), generation, false)),
            9 => self.delete(rng),
            10 => up(self.policy(namespace, generation, rng)),
            11 => match rng.below(2) {
                0 => up(secret(namespace, "cert", generation)),
                _ => up(service(namespace, number, 80)),
            },
            _ => self.tls(namespace, generation, rng),
        };
        self.commit(changes)
    }

    /// The certificate of a Gateway: none, its own, that of another namespace, and whether it may have that.
    fn tls(&self, namespace: &'static str, generation: u64, rng: &mut Rng) -> Vec<Change> {
        let other = NAMESPACES.into_iter().find(|n| *n != namespace).unwrap_or(ROOT);
        let up = |resource: Resource| (resource.key(), Some(resource));
        match rng.below(5) {
            0 => vec![up(gateway(namespace, None))],
            1 => vec![up(gateway(namespace, Some(other)))],
            2 if self.now.contains_key(&grant(other)) => vec![(grant(other), None)],
            2 => vec![up(granted(other, namespace))],
            // Nothing of it can be used, as the Gateway is the first to say: the Secret is refused, until it is looked at
            // again.
            _ => vec![up(gateway(namespace, Some(namespace))), up(secret(namespace, "cert", generation))],
        }
    }

    fn policy(&self, namespace: &str, generation: u64, rng: &mut Rng) -> Resource {
        let place = if rng.percent(20) { ROOT } else { namespace };
        let rules = json!([{"from": [{"namespaces": [namespace, format!("g{generation}")]}]}]);
        named(OWN, "AccessPolicy", place, &format!("p{}", rng.below(3)), json!({"action": "Allow", "rules": rules}))
    }

    fn delete(&mut self, rng: &mut Rng) -> Vec<Change> {
        let may_go = |key: &&ResourceKey| {
            matches!(key.kind.name(), "HTTPRoute" | "AccessPolicy" | "Service" | "EndpointSlice") && key.name != "pair"
        };
        let keys: Vec<ResourceKey> = self.now.keys().filter(may_go).cloned().collect();
        rng.pick(&keys).into_iter().map(|key| (key, None)).collect()
    }
}
