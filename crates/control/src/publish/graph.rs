//! All resources with what they refer to and what they are found by, so that a change is known to concern those few
//! who can see it.

use super::version::{Version, canonical};
use ahash::AHashMap;
use bytes::Bytes;
use selvedge_model::{Kind, Resource, ResourceKey, core::SERVICE_NAME_LABEL, refers::Refers};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// What resources are found by. Whoever looks something up also hears when the answer changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Token {
    /// The resource of that key.
    Key(ResourceKey),
    /// Routes and ListenerSets attached to it.
    AttachedTo(ResourceKey),
    /// Policies aimed at it.
    PoliciesOf(ResourceKey),
    /// EndpointSlices of the Service `namespace/name`.
    Slices(String, String),
    /// Workloads of a namespace with a label.
    Labelled(String, String, String),
    /// All of one kind in a namespace; of policies, those that have no target and so concern all of it.
    In(Kind, String),
    /// All of one kind.
    All(Kind),
    /// ExternalServices of a host, `*.` in front included.
    Host(String),
    /// Services, Workloads and ExternalServices of an address.
    Address(IpAddr),
    /// EndpointSlices that name an address.
    Endpoint(IpAddr),
}

/// One resource.
#[derive(Debug)]
pub struct Entry {
    pub key: Arc<ResourceKey>,
    pub version: Version,
    /// Canonical JSON.
    pub json: Bytes,
    /// What it is found by.
    provides: BTreeSet<Token>,
    pub links: Links,
}

/// What a resource says about others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Links {
    /// Services, Secrets, ConfigMaps and others that it names, but for parents and targets.
    pub uses: BTreeSet<ResourceKey>,
    /// Of a Gateway.
    pub class: Option<String>,
    /// Labels of Workloads behind a Service.
    pub selector: BTreeMap<String, String>,
    /// Of a Workload.
    pub labels: BTreeMap<String, String>,
    /// Service account of a Workload: with its namespace, its identity.
    pub account: Option<String>,
    /// Addresses of endpoints of a slice.
    pub endpoints: BTreeSet<IpAddr>,
    /// Namespaces that the Mesh gives to everybody.
    pub namespaces: BTreeSet<String>,
    /// Of a ReferenceGrant: kind and namespace from where, kind and maybe name of what may be referred to.
    pub grants: Vec<(String, String, String, Option<String>)>,
}

/// What a change did, besides the content.
#[derive(Debug, Default)]
pub struct Touched {
    /// Nothing at all, not even the content.
    pub same: bool,
    /// What is now found by other tokens.
    pub tokens: Vec<Token>,
    /// It refers to others than before.
    pub relinked: bool,
    /// Of an EndpointSlice that names other addresses, of which none is a Workload's: those that are new. It leads to
    /// nothing else than before, unless a Workload comes to one of them.
    pub appeared: Vec<IpAddr>,
    /// How many addresses it then names no more.
    pub vanished: usize,
}

/// All resources.
#[derive(Default)]
pub struct Graph {
    entries: AHashMap<ResourceKey, Arc<Entry>>,
    index: AHashMap<Token, BTreeSet<ResourceKey>>,
}

impl Graph {
    pub fn get(&self, key: &ResourceKey) -> Option<&Arc<Entry>> {
        self.entries.get(key)
    }

    pub fn find(&self, token: &Token) -> impl Iterator<Item = &ResourceKey> {
        self.index.get(token).into_iter().flatten()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Puts a resource in.
    pub fn upsert(&mut self, resource: &Resource) -> Touched {
        let entry = Entry::new(resource);
        let before = self.entries.get(&*entry.key).cloned();
        if before.as_ref().is_some_and(|before| before.version == entry.version) {
            return Touched { same: true, ..Touched::default() };
        }
        let none = BTreeSet::new();
        let old = before.as_ref().map_or(&none, |before| &before.provides);
        let moved = before.as_ref().and_then(|before| self.moved(&before.links, &entry.links));
        let relinked = moved.is_none() && before.as_ref().is_none_or(|before| before.links != entry.links);
        let (appeared, vanished) = moved.unwrap_or_default();
        let touched = Touched {
            same: false,
            relinked,
            appeared,
            vanished,
            // Nobody is told of who names an address: it is only looked up.
            tokens: old
                .symmetric_difference(&entry.provides)
                .filter(|token| !matches!(token, Token::Endpoint(_)))
                .cloned()
                .collect(),
        };
        for token in old.difference(&entry.provides) {
            self.unindex(token, &entry.key);
        }
        for token in entry.provides.difference(old) {
            self.index.entry(token.clone()).or_default().insert((*entry.key).clone());
        }
        self.entries.insert((*entry.key).clone(), Arc::new(entry));
        touched
    }

    /// Takes a resource out.
    pub fn remove(&mut self, key: &ResourceKey) -> Touched {
        let Some(entry) = self.entries.remove(key) else { return Touched { same: true, ..Touched::default() } };
        for token in &entry.provides {
            self.unindex(token, key);
        }
        Touched { tokens: entry.provides.iter().cloned().collect(), relinked: true, ..Touched::default() }
    }

    /// Endpoints that came, and the number of those that went, when these are all that is other and none is a Workload.
    fn moved(&self, before: &Links, after: &Links) -> Option<(Vec<IpAddr>, usize)> {
        let same = Links { endpoints: after.endpoints.clone(), ..before.clone() } == *after;
        let workload = |address: &IpAddr| self.find(&Token::Address(*address)).any(|k| k.kind.name() == "Workload");
        if !same || before.endpoints.symmetric_difference(&after.endpoints).any(workload) {
            return None;
        }
        let appeared = after.endpoints.difference(&before.endpoints).copied().collect();
        Some((appeared, before.endpoints.difference(&after.endpoints).count()))
    }

    fn unindex(&mut self, token: &Token, key: &ResourceKey) {
        if let Some(keys) = self.index.get_mut(token) {
            keys.remove(key);
            if keys.is_empty() {
                self.index.remove(token);
            }
        }
    }
}

impl Entry {
    fn new(resource: &Resource) -> Self {
        let (json, version) = canonical(resource);
        let key = resource.key();
        let value = resource.to_value();
        let mut reader = Reader { key: &key, provides: BTreeSet::new(), links: Links::default(), targets: 0 };
        reader.read(&value);
        let Reader { provides, links, .. } = reader;
        Self { key: Arc::new(key), version, json, provides, links }
    }
}

/// Finds in the JSON form of a resource what it says about others. It goes by the form that references have in all
/// kinds (a kind with a name), and by the schema where a name stands alone ([`Refers`]), so that a new kind needs nothing
/// here unless it refers in a way of its own.
struct Reader<'a> {
    key: &'a ResourceKey,
    provides: BTreeSet<Token>,
    links: Links,
    targets: usize,
}

/// Where in a resource a reference stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stands {
    Parent,
    Target,
    Elsewhere,
}

impl Reader<'_> {
    fn read(&mut self, value: &Value) {
        let key = self.key;
        self.provides.insert(Token::Key(key.clone()));
        self.provides.insert(Token::All(key.kind));
        let spec = &value["spec"];
        match key.kind.name() {
            "ReferenceGrant" => self.grants(spec),
            "Secret" | "ConfigMap" | "Namespace" => {}
            "EndpointSlice" => self.slice(value),
            _ => self.walk(value, Stands::Elsewhere),
        }
        for refers in Refers::of(key.kind) {
            self.links.uses.extend(refers.named(value, &key.namespace));
        }
        match key.kind.name() {
            "Gateway" => self.links.class = text(&spec["gatewayClassName"]).map(str::to_owned),
            "Service" => {
                self.links.selector = texts(&spec["selector"]);
                self.addresses([&spec["clusterIP"], &spec["clusterIPs"]]);
            }
            "Workload" => {
                self.links.labels = texts(&value["metadata"]["labels"]);
                self.links.account = Some(text(&spec["serviceAccount"]).unwrap_or("default").to_owned());
                for (name, label) in &self.links.labels {
                    self.provides.insert(Token::Labelled(key.namespace.clone(), name.clone(), label.clone()));
                }
                self.addresses([&spec["addresses"]]);
            }
            "ExternalService" => {
                self.addresses([&spec["addresses"]]);
                for host in spec["hosts"].as_array().into_iter().flatten().filter_map(text) {
                    self.provides.insert(Token::Host(host.trim_end_matches('.').to_ascii_lowercase()));
                }
                for tls in spec["ports"].as_array().into_iter().flatten().map(|port| &port["tls"]) {
                    for (field, kind) in [("caCertificate", Kind::ConfigMap), ("clientCertificate", Kind::Secret)] {
                        let name = text(&tls[field]).map(|name| ResourceKey::new(kind, &*key.namespace, name));
                        self.links.uses.extend(name);
                    }
                }
            }
            "Mesh" => self.mesh(spec),
            _ => {}
        }
        let policy = key.kind.name().ends_with("Policy");
        if !policy || self.targets == 0 {
            self.provides.insert(Token::In(key.kind, key.namespace.clone()));
        }
    }

    fn walk(&mut self, value: &Value, stands: Stands) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.walk(item, stands)),
            Value::Object(fields) => {
                // `metadata` and the resource's own kind are no references.
                if let (Some(kind), Some(name)) = (fields.get("kind").and_then(text), fields.get("name").and_then(text))
                    && let Ok(kind) = kind.parse::<Kind>()
                {
                    let namespace = fields.get("namespace").and_then(text).unwrap_or(&self.key.namespace);
                    self.reference(ResourceKey::new(kind, namespace, name), stands);
                }
                for (name, value) in fields {
                    let stands = match name.as_str() {
                        "metadata" => continue,
                        "parentRefs" | "parentRef" => Stands::Parent,
                        "targetRefs" | "targetRef" => Stands::Target,
                        _ => stands,
                    };
                    self.walk(value, stands);
                }
            }
            _ => {}
        }
    }

    fn reference(&mut self, to: ResourceKey, stands: Stands) {
        match stands {
            Stands::Parent => {
                self.provides.insert(Token::AttachedTo(to));
            }
            Stands::Target => {
                self.targets += 1;
                self.provides.insert(Token::PoliciesOf(to));
            }
            Stands::Elsewhere => {
                self.links.uses.insert(to);
            }
        }
    }

    fn slice(&mut self, value: &Value) {
        if let Some(service) = text(&value["metadata"]["labels"][SERVICE_NAME_LABEL]) {
            self.provides.insert(Token::Slices(self.key.namespace.clone(), service.to_owned()));
        }
        let endpoints = value["endpoints"].as_array().into_iter().flatten();
        let addresses = endpoints.flat_map(|e| e["addresses"].as_array().into_iter().flatten());
        self.links.endpoints.extend(addresses.filter_map(|a| text(a)?.parse::<IpAddr>().ok()));
        self.provides.extend(self.links.endpoints.iter().map(|address| Token::Endpoint(*address)));
    }

    fn mesh(&mut self, spec: &Value) {
        let scope = &spec["scope"];
        let namespaces = scope.as_array().or_else(|| scope["namespaces"].as_array());
        self.links.namespaces.extend(namespaces.into_iter().flatten().filter_map(text).map(str::to_owned));
    }

    fn grants(&mut self, spec: &Value) {
        let all = |name: &str| spec[name].as_array().cloned().unwrap_or_default();
        for (from, to) in all("from").iter().flat_map(|from| all("to").into_iter().map(move |to| (from.clone(), to))) {
            let get = |value: &Value, name: &str| text(&value[name]).unwrap_or_default().to_owned();
            let name = text(&to["name"]).map(str::to_owned);
            self.links.grants.push((get(&from, "kind"), get(&from, "namespace"), get(&to, "kind"), name));
        }
    }

    fn addresses<'a>(&mut self, values: impl IntoIterator<Item = &'a Value>) {
        for value in values {
            let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            self.provides.extend(list.iter().filter_map(|a| text(a)?.parse().ok()).map(Token::Address));
        }
    }
}

/// Where resources live that concern the whole mesh.
pub const ROOT_NAMESPACE: &str = "selvedge-system";

fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

fn texts(value: &Value) -> BTreeMap<String, String> {
    let fields = value.as_object().into_iter().flatten();
    fields.filter_map(|(name, value)| Some((name.clone(), text(value)?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::testing::{resource, service, slice};

    #[test]
    fn what_a_route_says_is_found() {
        let mut graph = Graph::default();
        graph.upsert(&resource(
            "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: shop}, spec: {parentRefs: [{name: edge, namespace: infra}], rules: [{backendRefs: [{name: cart, port: 80}], filters: [{type: RequestMirror, requestMirror: {backendRef: {name: spy, port: 80, namespace: ops}}}]}]}}",
        ));
        let route = ResourceKey::new(Kind::HttpRoute, "shop", "r");
        let gateway = ResourceKey::new(Kind::Gateway, "infra", "edge");
        assert_eq!(graph.find(&Token::AttachedTo(gateway)).collect::<Vec<_>>(), [&route]);
        let uses: Vec<_> = graph.get(&route).unwrap().links.uses.iter().map(ToString::to_string).collect();
        assert_eq!(uses, ["Service ops/spy", "Service shop/cart"]);
    }

    #[test]
    fn names_without_a_kind_are_found() {
        let mut graph = Graph::default();
        graph.upsert(&resource(
            "{apiVersion: selvedge.dev/v1alpha1, kind: ExternalService, metadata: {name: pay, namespace: shop}, spec: {hosts: [pay.example], ports: [{port: 443, tls: {caCertificate: ca, clientCertificate: cert}}]}}",
        ));
        graph.upsert(&resource(
            "{apiVersion: selvedge.dev/v1alpha1, kind: Mesh, metadata: {name: default}, spec: {federation: [{trustDomain: other, bundle: {configMap: {namespace: trust, name: other}}}]}}",
        ));
        let uses = |group, kind, namespace, name| -> Vec<String> {
            let key = ResourceKey::new(Kind::find(group, kind).unwrap(), namespace, name);
            graph.get(&key).unwrap().links.uses.iter().map(ToString::to_string).collect()
        };
        assert_eq!(uses("selvedge.dev", "ExternalService", "shop", "pay"), ["Secret shop/cert", "ConfigMap shop/ca"]);
        assert_eq!(uses("selvedge.dev", "Mesh", "", "default"), ["ConfigMap trust/other"]);
    }

    #[test]
    fn a_change_touches_all_by_which_it_was_found_or_is() {
        let mut graph = Graph::default();
        let workload = |app: &str, address: &str| {
            resource(&format!(
                "{{apiVersion: selvedge.dev/v1alpha1, kind: Workload, metadata: {{name: w, namespace: shop, labels: {{app: {app}, at: home}}}}, spec: {{addresses: [{address}], ports: [{{port: 80}}]}}}}"
            ))
        };
        let touched = |touched: Touched| touched.tokens.into_iter().collect::<BTreeSet<_>>();
        let label = |name: &str, value: &str| Token::Labelled("shop".into(), name.into(), value.into());
        let address = |text: &str| Token::Address(text.parse().unwrap());
        let key = workload("a", "10.1.0.1").key();
        let always =
            [Token::Key(key.clone()), Token::In(key.kind, "shop".into()), Token::All(key.kind), label("at", "home")];
        let all = |others: [Token; 2]| always.iter().cloned().chain(others).collect::<BTreeSet<_>>();
        let first = touched(graph.upsert(&workload("a", "10.1.0.1")));
        assert_eq!(first, all([label("app", "a"), address("10.1.0.1")]), "it has come");
        let second = touched(graph.upsert(&workload("b", "10.1.0.1")));
        assert_eq!(second, [label("app", "a"), label("app", "b")].into(), "from one to the other");
        let third = touched(graph.upsert(&workload("b", "10.1.0.2")));
        assert_eq!(third, [address("10.1.0.1"), address("10.1.0.2")].into());
        assert_eq!(touched(graph.upsert(&workload("b", "10.1.0.2"))), [].into(), "nothing is other");
        assert_eq!(touched(graph.remove(&key)), all([label("app", "b"), address("10.1.0.2")]), "it is gone");
        assert_eq!(touched(graph.remove(&key)), [].into());
    }

    #[test]
    fn an_endpoint_that_changes_leads_nowhere_else_unless_it_is_a_workload() {
        let mut graph = Graph::default();
        graph.upsert(&service("shop", "cart", "10.0.0.1"));
        assert!(graph.upsert(&service("shop", "cart", "10.0.0.1")).same);
        let first = graph.upsert(&slice("shop", "cart", &["10.1.0.1"]));
        assert!(first.tokens.contains(&Token::Slices("shop".into(), "cart".into())));
        let second = graph.upsert(&slice("shop", "cart", &["10.1.0.2"]));
        assert!(second.tokens.is_empty() && !second.relinked && !second.same);
        assert_eq!((second.appeared, second.vanished), (vec!["10.1.0.2".parse().unwrap()], 1));
        let workload = "{apiVersion: selvedge.dev/v1alpha1, kind: Workload, metadata: {name: w, namespace: shop}, spec: {addresses: [10.1.0.3], ports: [{port: 80}]}}";
        graph.upsert(&resource(workload));
        assert!(graph.upsert(&slice("shop", "cart", &["10.1.0.3"])).relinked, "it leads to a Workload");
        assert!(graph.upsert(&slice("shop", "cart", &["10.1.0.4"])).relinked, "it did");
        graph.remove(&resource(workload).key());
        graph.remove(&ResourceKey::new(Kind::EndpointSlice, "shop", "cart"));
        graph.remove(&ResourceKey::new(Kind::Service, "shop", "cart"));
        assert!(graph.is_empty() && graph.index.is_empty());
    }
}
