//! Resources sorted and looked up the way compiling needs them.

use crate::grants::Grants;
use ahash::AHashMap;
use selvedge_model::{
    AccessPolicy, AuthPolicy, BackendTlsPolicy, ConfigMap, EndpointSlice, ExternalService, Gateway, GatewayClass,
    GrpcRoute, HttpRoute, Kind, ListenerSet, Mesh, Namespace, Object, ObjectMeta, Resources, Secret, Service, TcpRoute,
    TlsRoute, TrafficPolicy, UdpRoute, Workload, gateway::FromNamespaces, refs::LabelSelector, resources::Set,
};
use std::{cell::OnceCell, collections::BTreeMap, sync::Arc};

/// Namespace and name.
pub(crate) type Name<'a> = (&'a str, &'a str);

/// All resources of one compilation. Lists are sorted by age where the standard lets the older win, else by name.
pub(crate) struct Index<'a> {
    resources: &'a Resources,
    pub(crate) classes: BTreeMap<&'a str, &'a GatewayClass>,
    pub(crate) gateways: Vec<&'a Gateway>,
    pub(crate) listener_sets: Vec<&'a ListenerSet>,
    pub(crate) http_routes: Vec<&'a Arc<HttpRoute>>,
    pub(crate) grpc_routes: Vec<&'a Arc<GrpcRoute>>,
    pub(crate) tls_routes: Vec<&'a TlsRoute>,
    pub(crate) tcp_routes: Vec<&'a TcpRoute>,
    pub(crate) udp_routes: Vec<&'a UdpRoute>,
    pub(crate) backend_tls: Vec<&'a BackendTlsPolicy>,
    pub(crate) traffic: Vec<&'a TrafficPolicy>,
    pub(crate) access: Vec<&'a Arc<AccessPolicy>>,
    pub(crate) auth: Vec<&'a Arc<AuthPolicy>>,
    pub(crate) namespaces: AHashMap<&'a str, &'a Namespace>,
    /// By the Service they belong to; made when somebody asks, as a change of a route mostly does not.
    slices: OnceCell<AHashMap<Name<'a>, Vec<&'a Arc<EndpointSlice>>>>,
    pub(crate) secrets: AHashMap<Name<'a>, &'a Arc<Secret>>,
    pub(crate) config_maps: AHashMap<Name<'a>, &'a Arc<ConfigMap>>,
    pub(crate) grants: Grants<'a>,
}

impl<'a> Index<'a> {
    pub(crate) fn new(resources: &'a Resources) -> Self {
        Index {
            resources,
            classes: resources.gateway_classes().iter().map(|it| (it.metadata.name.as_str(), &**it)).collect(),
            gateways: by_age(resources.gateways().iter(), |it| &it.metadata),
            listener_sets: by_age(resources.listener_sets().iter(), |it| &it.metadata),
            http_routes: resources.http_routes().iter().collect(),
            grpc_routes: resources.grpc_routes().iter().collect(),
            tls_routes: by_age(resources.tls_routes().iter(), |it| &it.metadata),
            tcp_routes: by_age(resources.tcp_routes().iter(), |it| &it.metadata),
            udp_routes: by_age(resources.udp_routes().iter(), |it| &it.metadata),
            backend_tls: by_age(resources.backend_tls_policies().iter(), |it| &it.metadata),
            traffic: by_age(resources.traffic_policies().iter(), |it| &it.metadata),
            access: resources.access_policies().iter().collect(),
            auth: {
                let mut list: Vec<_> = resources.auth_policies().iter().collect();
                list.sort_by(|a, b| age(&a.metadata).cmp(&age(&b.metadata)));
                list
            },
            namespaces: resources.namespaces().iter().map(|it| (it.metadata.name.as_str(), &**it)).collect(),
            slices: OnceCell::new(),
            secrets: resources.secrets().iter().map(|it| (name(&it.metadata), it)).collect(),
            config_maps: resources.config_maps().iter().map(|it| (name(&it.metadata), it)).collect(),
            grants: Grants::new(resources.reference_grants().iter().map(|it| &**it)),
        }
    }

    pub(crate) fn workloads(&self) -> &'a Set<Workload> {
        self.resources.workloads()
    }

    pub(crate) fn external_services(&self) -> &'a Set<ExternalService> {
        self.resources.external_services()
    }

    pub(crate) fn services(&self) -> &'a Set<Service> {
        self.resources.services()
    }

    pub(crate) fn meshes(&self) -> Vec<&'a Mesh> {
        by_age(self.resources.meshes().iter(), |it| &it.metadata)
    }

    /// Whether these are resources of a mesh.
    pub(crate) fn is_mesh(&self) -> bool {
        !self.resources.meshes().is_empty() || !self.resources.workloads().is_empty()
    }

    pub(crate) fn service(&self, namespace: &str, name: &str) -> Option<&'a Arc<Service>> {
        self.resources.services().get(namespace, name)
    }

    /// Names of the Services of a namespace.
    pub(crate) fn service_names(&self, namespace: &str) -> impl Iterator<Item = &'a str> {
        self.resources.services().of_namespace(namespace).map(|it| it.metadata.name.as_str())
    }

    /// Names of what policies and references name, of one kind in one namespace.
    pub(crate) fn names(&self, kind: Kind, namespace: &str) -> Vec<&'a str> {
        fn of<'a, T: Object>(set: &'a Set<T>, namespace: &str, meta: impl Fn(&T) -> &ObjectMeta) -> Vec<&'a str> {
            set.of_namespace(namespace).map(|it| meta(it).name.as_str()).collect()
        }
        let all = self.resources;
        match kind {
            Kind::Gateway => of(all.gateways(), namespace, |it| &it.metadata),
            Kind::ListenerSet => of(all.listener_sets(), namespace, |it| &it.metadata),
            Kind::HttpRoute => of(all.http_routes(), namespace, |it| &it.metadata),
            Kind::GrpcRoute => of(all.grpc_routes(), namespace, |it| &it.metadata),
            Kind::TlsRoute => of(all.tls_routes(), namespace, |it| &it.metadata),
            Kind::TcpRoute => of(all.tcp_routes(), namespace, |it| &it.metadata),
            Kind::UdpRoute => of(all.udp_routes(), namespace, |it| &it.metadata),
            Kind::Service => of(all.services(), namespace, |it| &it.metadata),
            Kind::ExternalService => of(all.external_services(), namespace, |it| &it.metadata),
            Kind::Secret => of(all.secrets(), namespace, |it| &it.metadata),
            Kind::ConfigMap => of(all.config_maps(), namespace, |it| &it.metadata),
            _ => Vec::new(),
        }
    }

    /// The EndpointSlices of a Service.
    pub(crate) fn slices<'s>(&'s self, namespace: &'s str, name: &'s str) -> Option<&'s [&'s Arc<EndpointSlice>]> {
        let slices = self.slices.get_or_init(|| {
            let mut slices: AHashMap<Name<'a>, Vec<&'a Arc<EndpointSlice>>> = AHashMap::new();
            for slice in self.resources.endpoint_slices().iter() {
                if let Some(service) = slice.service_name() {
                    slices.entry((&slice.metadata.namespace, service)).or_default().push(slice);
                }
            }
            slices
        });
        slices.get(&(namespace, name)).map(Vec::as_slice)
    }

    /// Whether something of namespace `from` may join something of namespace `own` (allowedRoutes, allowedListeners).
    pub(crate) fn namespace_allowed(
        &self,
        rule: FromNamespaces,
        selector: Option<&LabelSelector>,
        own: &str,
        from: &str,
    ) -> bool {
        match rule {
            FromNamespaces::All => true,
            FromNamespaces::Same => own == from,
            FromNamespaces::None => false,
            FromNamespaces::Selector => selector.is_some_and(|s| self.selects(s, from)),
        }
    }

    /// Kubernetes gives every namespace its name as a label; folders need no Namespace resource for that.
    fn selects(&self, selector: &LabelSelector, namespace: &str) -> bool {
        const NAME: &str = "kubernetes.io/metadata.name";
        match self.namespaces.get(namespace) {
            Some(it) if it.metadata.labels.contains_key(NAME) => selector.matches(&it.metadata.labels),
            it => {
                let mut labels = it.map(|it| it.metadata.labels.clone()).unwrap_or_default();
                labels.insert(NAME.to_owned(), namespace.to_owned());
                selector.matches(&labels)
            }
        }
    }
}

fn by_age<'a, T>(all: impl Iterator<Item = &'a Arc<T>>, meta: impl Fn(&T) -> &ObjectMeta) -> Vec<&'a T> {
    let mut list: Vec<&'a T> = all.map(|it| &**it).collect();
    list.sort_by(|a, b| age(meta(a)).cmp(&age(meta(b))));
    list
}

/// Namespace and name of a resource.
pub(crate) fn name(meta: &ObjectMeta) -> Name<'_> {
    (&meta.namespace, &meta.name)
}

/// Sort key by which the older resource comes first (Gateway API "conflict resolution": creation time, then
/// `namespace/name`). A resource of unknown age is the youngest.
pub(crate) fn age(meta: &ObjectMeta) -> (bool, &str, &str, &str) {
    let created = meta.creation_timestamp.as_deref().unwrap_or("");
    (created.is_empty(), created, &meta.namespace, &meta.name)
}
