//! Which resources a proxy needs, and may see. Pure: the graph and the interest decide.

use super::graph::{Entry, Graph, ROOT_NAMESPACE, Token};
use ahash::AHashSet;
use selvedge_model::{Kind, ResourceKey};
use std::{
    collections::{BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
};

/// What a proxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Gateway,
    /// Beside one workload.
    Sidecar,
    /// Beside all workloads of a machine.
    Node,
}

impl Role {
    pub const fn name(self) -> &'static str {
        match self {
            Role::Gateway => "gateway",
            Role::Sidecar => "sidecar",
            Role::Node => "node",
        }
    }
}

/// What a proxy asks for on demand.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Wanted {
    Key(ResourceKey),
    /// In lower case, without trailing dot.
    Host(String),
    Address(IpAddr),
}

/// Everything that decides what a proxy gets. Proxies with equal interests share one view.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Interest {
    pub role: Role,
    /// Namespace and service account that it has proven; `None` when nothing need be proven.
    pub proven: Option<(String, String)>,
    /// Workloads beside it.
    pub workloads: BTreeSet<(String, String)>,
    /// Gateways that it serves; all that it may serve when empty.
    pub gateways: BTreeSet<(String, String)>,
    pub wanted: BTreeSet<Wanted>,
}

impl Interest {
    /// Namespaces whose consumer routes, policies and Secrets concern it.
    fn home(&self) -> BTreeSet<&str> {
        let workloads = self.workloads.iter().map(|(namespace, _)| namespace.as_str());
        workloads.chain(self.proven.iter().map(|(namespace, _)| namespace.as_str())).collect()
    }

    /// A gateway serves the Gateways of its own namespace; one of the root namespace serves all.
    pub fn may_serve(&self, namespace: &str) -> bool {
        self.proven.as_ref().is_none_or(|(proven, _)| proven == namespace || proven == ROOT_NAMESPACE)
    }

    /// Whether a workload is its own: same identity. The proxy of a machine, an identity of the root namespace, stands
    /// beside all.
    pub fn may_be(&self, workload: &ResourceKey, account: Option<&str>) -> bool {
        let Some((namespace, proven)) = &self.proven else { return true };
        (self.role == Role::Node && namespace == ROOT_NAMESPACE)
            || (*namespace == workload.namespace && account.is_none_or(|account| account == proven))
    }
}

/// What a proxy gets, and what this depends on.
#[derive(Default, Debug)]
pub struct Scope {
    pub keys: AHashSet<Arc<ResourceKey>>,
    pub tokens: AHashSet<Token>,
    /// Of what was wanted: what there is.
    pub known: BTreeSet<Wanted>,
}

/// In which way a resource is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum As {
    /// With what it refers to.
    Plain,
    /// Something that is reached by name or address, with its routes.
    Destination,
    /// Something that routes lead to.
    Backend,
    /// Served here: a Gateway, or the workload beside the proxy.
    Own,
    /// Itself and the policies for it, but not its endpoints.
    Shallow,
}

/// Finds all that an interest needs.
pub fn scope(graph: &Graph, interest: &Interest) -> Scope {
    let mut walk = Walk { graph, interest, scope: Scope::default(), seen: AHashSet::new(), open: VecDeque::new() };
    walk.roots();
    while let Some((key, way)) = walk.open.pop_front() {
        walk.visit(&key, way);
    }
    walk.scope
}

struct Walk<'a> {
    graph: &'a Graph,
    interest: &'a Interest,
    scope: Scope,
    seen: AHashSet<(Arc<ResourceKey>, As)>,
    open: VecDeque<(Arc<ResourceKey>, As)>,
}

impl<'a> Walk<'a> {
    fn roots(&mut self) {
        if let Some(mesh) = Kind::find("selvedge.dev", "Mesh") {
            self.add_all(Token::All(mesh), As::Plain);
        }
        let interest = self.interest;
        match interest.role {
            Role::Gateway if interest.gateways.is_empty() => {
                for gateway in self.find(Token::All(Kind::Gateway)) {
                    if interest.may_serve(&gateway.namespace) {
                        self.add(&gateway, As::Own);
                    }
                }
            }
            Role::Gateway => {
                for (namespace, name) in &interest.gateways {
                    self.add(&ResourceKey::new(Kind::Gateway, namespace, name), As::Own);
                }
            }
            Role::Sidecar | Role::Node => {
                if let Some(workload) = Kind::find("selvedge.dev", "Workload") {
                    for (namespace, name) in &interest.workloads {
                        let key = ResourceKey::new(workload, namespace, name);
                        let account = self.graph.get(&key).and_then(|w| w.links.account.as_deref());
                        if interest.may_be(&key, account) {
                            self.add(&key, As::Own);
                        }
                        self.scope.tokens.insert(Token::Key(key));
                    }
                }
            }
        }
        // A gateway needs what its Gateways lead to. What it asked for besides would be served with its Secrets, whosoever
        // they are.
        let on_demand = interest.wanted.iter().filter(|_| interest.role != Role::Gateway);
        for wanted in on_demand {
            let found = self.wanted(wanted);
            if found {
                self.scope.known.insert(wanted.clone());
            }
        }
    }

    /// Adds what was asked for; whether there is such a thing.
    fn wanted(&mut self, wanted: &Wanted) -> bool {
        match wanted {
            Wanted::Key(key) => self.may_ask(key) && self.add(key, As::Destination),
            Wanted::Host(host) => self.host(host),
            Wanted::Address(address) => {
                let found = self.find(Token::Address(*address));
                found.iter().for_each(|key| _ = self.add(key, As::Destination));
                !found.is_empty()
            }
        }
    }

    /// By key anything may be asked for but what holds secrets, or makes the proxy something else.
    fn may_ask(&self, key: &ResourceKey) -> bool {
        !matches!(key.kind, Kind::Secret | Kind::ConfigMap | Kind::Gateway)
    }

    /// `name`, `name.namespace`, `name.namespace.svc…` of a Service, or a host of an ExternalService.
    fn host(&mut self, host: &str) -> bool {
        let labels: Vec<&str> = host.split('.').collect();
        let services: Vec<ResourceKey> = match labels[..] {
            [name] => self.interest.home().iter().map(|home| ResourceKey::new(Kind::Service, *home, name)).collect(),
            [name, namespace] | [name, namespace, "svc", ..] => vec![ResourceKey::new(Kind::Service, namespace, name)],
            _ => Vec::new(),
        };
        let mut found = false;
        for service in services {
            found |= self.add(&service, As::Destination);
        }
        let mut names = vec![host.to_owned()];
        names.extend((1..labels.len()).map(|i| format!("*.{}", labels[i..].join("."))));
        for name in names {
            for key in self.find(Token::Host(name)) {
                found |= self.add(&key, As::Destination);
            }
        }
        found
    }

    fn find(&mut self, token: Token) -> Vec<ResourceKey> {
        let found = self.graph.find(&token).cloned().collect();
        self.scope.tokens.insert(token);
        found
    }

    fn add_all(&mut self, token: Token, way: As) {
        for key in self.find(token) {
            self.add(&key, way);
        }
    }

    /// Adds a resource if there is one of that key.
    fn add(&mut self, key: &ResourceKey, way: As) -> bool {
        self.scope.tokens.insert(Token::Key(key.clone()));
        let Some(entry) = self.graph.get(key) else { return false };
        if self.seen.insert((entry.key.clone(), way)) {
            self.scope.keys.insert(entry.key.clone());
            self.open.push_back((entry.key.clone(), way));
        }
        true
    }

    fn visit(&mut self, key: &ResourceKey, way: As) {
        let Some(entry) = self.graph.get(key) else { return };
        match key.kind.name() {
            "Gateway" => self.gateway(entry),
            "ListenerSet" => self.attached(entry),
            "Service" => self.service(entry, way),
            "EndpointSlice" => self.slice(entry),
            "Workload" => self.workload(entry, way),
            "ExternalService" if way == As::Destination => self.attached_for_mesh(entry),
            "Mesh" => self.mesh(entry),
            _ => {}
        }
        if key.kind.namespaced() && !matches!(key.kind, Kind::Secret | Kind::ConfigMap | Kind::EndpointSlice) {
            self.namespace(&key.namespace);
            let guarded = way != As::Destination && way != As::Backend;
            self.policies(Token::PoliciesOf(key.clone()), guarded);
        }
        self.uses(entry);
    }

    /// The Namespace, whose labels selectors look at, and the policies for all of it.
    fn namespace(&mut self, namespace: &str) {
        let key = ResourceKey::new(Kind::Namespace, "", namespace);
        self.add(&key, As::Plain);
        self.policies(Token::PoliciesOf(key), false);
    }

    /// Policies aimed at something. How callers prove who they are, and the keys for that, concern those alone who guard it:
    /// a Gateway with its routes, the proxy beside a workload.
    fn policies(&mut self, token: Token, guarded: bool) {
        for policy in self.find(token) {
            if guarded || policy.kind != Kind::AuthPolicy {
                self.add(&policy, As::Plain);
            }
        }
    }

    fn gateway(&mut self, entry: &Entry) {
        if let Some(class) = &entry.links.class {
            self.add(&ResourceKey::new(Kind::GatewayClass, "", class), As::Plain);
        }
        self.attached(entry);
        self.access(&entry.key.namespace);
    }

    fn attached(&mut self, entry: &Entry) {
        self.add_all(Token::AttachedTo((*entry.key).clone()), As::Plain);
    }

    /// Routes of the Service's namespace (for all), and of the own namespaces (for them alone); GEP-1426.
    fn attached_for_mesh(&mut self, entry: &Entry) {
        let home = self.interest.home();
        for route in self.find(Token::AttachedTo((*entry.key).clone())) {
            if route.namespace == entry.key.namespace || home.contains(route.namespace.as_str()) {
                self.add(&route, As::Plain);
            }
        }
    }

    fn service(&mut self, entry: &Entry, way: As) {
        if way == As::Destination && self.interest.role != Role::Gateway {
            self.attached_for_mesh(entry);
        }
        if way == As::Shallow {
            return;
        }
        let key = &entry.key;
        self.add_all(Token::Slices(key.namespace.clone(), key.name.clone()), As::Plain);
        for workload in self.selected(&key.namespace, &entry.links.selector) {
            self.add(&workload, As::Backend);
        }
    }

    /// Workloads that have all labels.
    fn selected(&mut self, namespace: &str, selector: &std::collections::BTreeMap<String, String>) -> Vec<ResourceKey> {
        let mut labels = selector.iter();
        let Some((name, label)) = labels.next() else { return Vec::new() };
        let token = |name: &str, label: &str| Token::Labelled(namespace.to_owned(), name.to_owned(), label.to_owned());
        let mut found = self.find(token(name, label));
        for (name, label) in labels {
            self.scope.tokens.insert(token(name, label));
            found.retain(|key| self.graph.get(key).is_some_and(|w| w.links.labels.get(name) == Some(label)));
        }
        found
    }

    fn slice(&mut self, entry: &Entry) {
        for address in &entry.links.endpoints {
            for key in self.find(Token::Address(*address)) {
                if key.kind.name() == "Workload" {
                    self.add(&key, As::Backend);
                }
            }
        }
    }

    fn workload(&mut self, entry: &Entry, way: As) {
        if way != As::Own {
            return;
        }
        let namespace = entry.key.namespace.clone();
        self.access(&namespace);
        for service in self.find(Token::In(Kind::Service, namespace)) {
            let selector = self.graph.get(&service).map(|s| &s.links.selector);
            let selects = |s: &std::collections::BTreeMap<String, String>| {
                !s.is_empty() && s.iter().all(|(name, label)| entry.links.labels.get(name) == Some(label))
            };
            if selector.is_some_and(selects) {
                self.add(&service, As::Shallow);
            }
        }
    }

    /// Policies about who may come: those of the namespace and of the whole mesh.
    fn access(&mut self, namespace: &str) {
        for kind in [Kind::AccessPolicy, Kind::AuthPolicy] {
            for namespace in [namespace, ROOT_NAMESPACE] {
                self.add_all(Token::In(kind, namespace.to_owned()), As::Plain);
            }
        }
        self.policies(Token::PoliciesOf(ResourceKey::new(Kind::Namespace, "", namespace)), true);
    }

    fn mesh(&mut self, entry: &Entry) {
        if self.interest.role == Role::Gateway {
            return;
        }
        let external = Kind::find("selvedge.dev", "ExternalService");
        for namespace in &entry.links.namespaces {
            for kind in [Some(Kind::Service), external].into_iter().flatten() {
                self.add_all(Token::In(kind, namespace.clone()), As::Destination);
            }
        }
    }

    fn uses(&mut self, entry: &Entry) {
        for used in &entry.links.uses {
            if used.namespace != entry.key.namespace && !used.namespace.is_empty() {
                self.add_all(Token::In(Kind::ReferenceGrant, used.namespace.clone()), As::Plain);
            }
            if used.kind != Kind::Secret || self.may_see(entry, used) {
                self.add(used, As::Backend);
            }
        }
    }

    /// Secrets go only to those whose own resources refer to them: a gateway that serves the Gateway, a proxy beside a
    /// workload of the namespace. Those of another namespace need a ReferenceGrant there.
    fn may_see(&mut self, from: &Entry, secret: &ResourceKey) -> bool {
        // Keys by which the whole mesh verifies tokens; they are public ones.
        let of_all = from.key.kind == Kind::AuthPolicy && from.key.namespace == ROOT_NAMESPACE;
        if self.interest.role != Role::Gateway && !of_all && !self.interest.home().contains(from.key.namespace.as_str())
        {
            return false;
        }
        if secret.namespace == from.key.namespace {
            return true;
        }
        let granted = |(kind, namespace, to, name): &(String, String, String, Option<String>)| {
            *kind == from.key.kind.name()
                && *namespace == from.key.namespace
                && to == "Secret"
                && name.as_ref().is_none_or(|name| *name == secret.name)
        };
        let grants = self.find(Token::In(Kind::ReferenceGrant, secret.namespace.clone()));
        grants.iter().filter_map(|key| self.graph.get(key)).any(|grant| grant.links.grants.iter().any(granted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::testing::{gateway, resource, route, secret, service, slice};
    use selvedge_model::Resource;

    fn interest(role: Role, namespace: &str) -> Interest {
        Interest {
            role,
            proven: Some((namespace.to_owned(), "default".to_owned())),
            workloads: BTreeSet::new(),
            gateways: BTreeSet::new(),
            wanted: BTreeSet::new(),
        }
    }

    fn graph(resources: &[Resource]) -> Graph {
        let mut graph = Graph::default();
        resources.iter().for_each(|resource| _ = graph.upsert(resource));
        graph
    }

    fn names(scope: &Scope) -> Vec<String> {
        let mut names: Vec<_> = scope.keys.iter().map(ToString::to_string).collect();
        names.sort();
        names
    }

    fn shop() -> Graph {
        graph(&[
            gateway("shop", "edge", Some("cert")),
            gateway("other", "edge", Some("cert")),
            secret("shop", "cert"),
            secret("shop", "unused"),
            secret("other", "cert"),
            route("shop", "r", ("Gateway", "edge"), "cart"),
            service("shop", "cart", "10.0.0.1"),
            slice("shop", "cart", &["10.1.0.1"]),
            service("shop", "alone", "10.0.0.2"),
            route("shop", "mesh", ("Service", "cart"), "cart2"),
            service("shop", "cart2", "10.0.0.3"),
            slice("shop", "cart2", &["10.1.0.2"]),
            resource("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}"),
        ])
    }

    #[test]
    fn a_gateway_gets_what_its_gateways_reach_and_only_their_secrets() {
        let scope = scope(&shop(), &interest(Role::Gateway, "shop"));
        let expected = [
            "EndpointSlice shop/cart",
            "Gateway shop/edge",
            "HTTPRoute shop/r",
            "Namespace shop",
            "Secret shop/cert",
            "Service shop/cart",
        ];
        assert_eq!(names(&scope), expected);
    }

    #[test]
    fn a_gateway_may_serve_no_gateways_of_other_namespaces_unless_it_is_of_the_root() {
        let all = scope(&shop(), &interest(Role::Gateway, ROOT_NAMESPACE));
        assert!(names(&all).contains(&"Gateway other/edge".to_owned()));
        let none = scope(&shop(), &interest(Role::Gateway, "elsewhere"));
        assert_eq!(names(&none), [""; 0]);
    }

    #[test]
    fn external_services_bring_what_their_tls_needs_and_keys_stay_in_their_namespace() {
        let graph = graph(&[
            resource(
                "{apiVersion: selvedge.dev/v1alpha1, kind: ExternalService, metadata: {name: api, namespace: shop}, spec: {hosts: \
                 [api.example.com], ports: [{port: 443, tls: {caCertificate: roots, clientCertificate: key}}]}}",
            ),
            resource("{apiVersion: v1, kind: ConfigMap, metadata: {name: roots, namespace: shop}, data: {a: b}}"),
            secret("shop", "key"),
        ]);
        for (namespace, expected) in [
            ("shop", &["ConfigMap shop/roots", "ExternalService shop/api", "Secret shop/key"][..]),
            ("other", &["ConfigMap shop/roots", "ExternalService shop/api"]),
        ] {
            let mut interest = interest(Role::Sidecar, namespace);
            interest.wanted.insert(Wanted::Host("api.example.com".to_owned()));
            assert_eq!(names(&scope(&graph, &interest)), expected, "{namespace}");
        }
    }

    #[test]
    fn keys_for_tokens_reach_only_those_who_verify_them() {
        let auth = |namespace: &str, name: &str, target: &str, keys: &str| {
            resource(&format!(
                "{{apiVersion: selvedge.dev/v1alpha1, kind: AuthPolicy, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{{target} \
                 jwt: {{providers: [{{name: a, issuer: i, jwks: {{secretRef: {{name: {keys}}}}}}}]}}}}}}"
            ))
        };
        let workload = |name: &str, address: &str| {
            resource(&format!(
                "{{apiVersion: selvedge.dev/v1alpha1, kind: Workload, metadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}, \
                 spec: {{addresses: [{address}]}}}}"
            ))
        };
        let graph = graph(&[
            auth("shop", "users", "targetRefs: [{kind: Service, name: cart}],", "users"),
            auth("shop", "edge", "targetRefs: [{kind: Gateway, name: edge}],", "edge"),
            auth("other", "whole", "targetRefs: [{kind: Namespace, name: other}],", "other"),
            auth(ROOT_NAMESPACE, "all", "", "all"),
            secret("shop", "users"),
            secret("shop", "edge"),
            secret("other", "other"),
            secret(ROOT_NAMESPACE, "all"),
            gateway("shop", "edge", Some("cert")),
            route("shop", "r", ("Gateway", "edge"), "cart"),
            resource(
                "{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: shop}, spec: {selector: {app: cart}, ports: [{port: 80}]}}",
            ),
            service("other", "far", "10.0.0.9"),
            workload("cart", "10.1.0.1"),
            workload("web", "10.1.0.2"),
        ]);
        let secrets = |interest: &Interest| -> Vec<String> {
            let scope = scope(&graph, interest);
            names(&scope).into_iter().filter(|name| name.starts_with("Secret")).collect()
        };
        assert_eq!(secrets(&interest(Role::Gateway, "shop")), ["Secret selvedge-system/all", "Secret shop/edge"]);
        let beside = |name: &str, wanted: &[&str]| Interest {
            workloads: [("shop".to_owned(), name.to_owned())].into(),
            wanted: wanted.iter().map(|host| Wanted::Host((*host).to_owned())).collect(),
            ..interest(Role::Sidecar, "shop")
        };
        assert_eq!(secrets(&beside("cart", &[])), ["Secret selvedge-system/all", "Secret shop/users"]);
        assert_eq!(secrets(&beside("web", &["cart.shop", "far.other"])), ["Secret selvedge-system/all"]);
    }

    #[test]
    fn a_gateway_cannot_ask_for_the_secrets_of_others() {
        let graph = graph(&[
            resource(
                "{apiVersion: gateway.networking.k8s.io/v1, kind: ListenerSet, metadata: {name: set, namespace: other}, spec: {parentRef: {name: edge}, listeners: [{name: web, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}]}}",
            ),
            secret("other", "cert"),
        ]);
        let set = ResourceKey::new(Kind::ListenerSet, "other", "set");
        for role in [Role::Gateway, Role::Sidecar, Role::Node] {
            let interest = Interest { wanted: [Wanted::Key(set.clone())].into(), ..interest(role, "shop") };
            assert!(!scope(&graph, &interest).keys.contains(&secret("other", "cert").key()), "{role:?}");
        }
    }

    #[test]
    fn a_secret_of_another_namespace_needs_a_grant() {
        let mut graph = graph(&[
            resource(
                "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: edge, namespace: shop}, spec: {gatewayClassName: selvedge, listeners: [{name: web, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert, namespace: vault}]}}]}}",
            ),
            secret("vault", "cert"),
        ]);
        let interest = interest(Role::Gateway, "shop");
        assert_eq!(names(&scope(&graph, &interest)), ["Gateway shop/edge"]);
        graph.upsert(&resource(
            "{apiVersion: gateway.networking.k8s.io/v1beta1, kind: ReferenceGrant, metadata: {name: g, namespace: vault}, spec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}], to: [{group: \"\", kind: Secret}]}}",
        ));
        let expected = ["Gateway shop/edge", "ReferenceGrant vault/g", "Secret vault/cert"];
        assert_eq!(names(&scope(&graph, &interest)), expected);
    }

    #[test]
    fn a_sidecar_gets_what_it_uses_with_all_that_this_needs() {
        let mut interest = interest(Role::Sidecar, "shop");
        assert_eq!(names(&scope(&shop(), &interest)), [""; 0]);
        let expected = [
            "EndpointSlice shop/cart",
            "EndpointSlice shop/cart2",
            "HTTPRoute shop/mesh",
            "Namespace shop",
            "Service shop/cart",
            "Service shop/cart2",
        ];
        for host in ["cart", "cart.shop", "cart.shop.svc", "cart.shop.svc.cluster.local"] {
            interest.wanted = [Wanted::Host(host.into())].into();
            let scope = scope(&shop(), &interest);
            assert_eq!(names(&scope), expected, "{host}");
            assert_eq!(scope.known, interest.wanted);
        }
        interest.wanted = [Wanted::Address("10.0.0.1".parse().unwrap())].into();
        assert_eq!(names(&scope(&shop(), &interest)), expected);
        interest.wanted = [Wanted::Host("nobody".into()), Wanted::Key(secret("shop", "cert").key())].into();
        let nothing = scope(&shop(), &interest);
        assert_eq!((names(&nothing), nothing.known.len()), (Vec::new(), 0));
        assert!(nothing.tokens.contains(&Token::Key(ResourceKey::new(Kind::Service, "shop", "nobody"))));
    }
}
