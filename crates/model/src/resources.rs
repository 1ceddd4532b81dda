//! The set of all resources of a source, or of all sources.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::meta::{Kind, ResourceKey};
use crate::resource::{Object, Resource};
use crate::{
    AccessPolicy, AuthPolicy, BackendTlsPolicy, ConfigMap, EndpointSlice, ExternalService, Gateway, GatewayClass,
    GrpcRoute, HttpRoute, ListenerSet, Mesh, Namespace, ReferenceGrant, Secret, Service, TcpRoute, TlsRoute,
    TrafficPolicy, UdpRoute, Workload,
};

/// Resources of one kind by namespace, then name. Objects are shared, and so are whole namespaces until they change.
#[derive(Debug)]
pub struct Set<T> {
    namespaces: BTreeMap<Arc<str>, Arc<BTreeMap<Arc<str>, Arc<T>>>>,
}

/// What putting a resource into a set did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upserted {
    /// There was none of that name.
    Added,
    /// There was another one of that name.
    Changed,
    /// There was an equal one, which stays.
    Same,
}

/// What became of one resource between two sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Delta {
    /// It is new.
    Added,
    /// It is another than before.
    Changed,
    /// It is gone.
    Removed,
}

impl<T> Clone for Set<T> {
    fn clone(&self) -> Self {
        Set { namespaces: self.namespaces.clone() }
    }
}

impl<T> Default for Set<T> {
    fn default() -> Self {
        Set { namespaces: BTreeMap::new() }
    }
}

impl<T: PartialEq> PartialEq for Set<T> {
    fn eq(&self, other: &Self) -> bool {
        self.namespaces.len() == other.namespaces.len()
            && self.namespaces.iter().zip(&other.namespaces).all(|((name, ours), (other_name, theirs))| {
                name == other_name && (Arc::ptr_eq(ours, theirs) || same_objects(ours, theirs))
            })
    }
}

fn same_objects<T: PartialEq>(ours: &BTreeMap<Arc<str>, Arc<T>>, theirs: &BTreeMap<Arc<str>, Arc<T>>) -> bool {
    ours.len() == theirs.len()
        && ours.iter().zip(theirs).all(|((name, ours), (other_name, theirs))| {
            name == other_name && (Arc::ptr_eq(ours, theirs) || ours == theirs)
        })
}

impl<T: Object> Set<T> {
    /// The one of that name; the namespace is empty for kinds that belong to none.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<T>> {
        self.namespaces.get(namespace)?.get(name)
    }

    /// All, sorted by namespace, then name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.namespaces.values().flat_map(|objects| objects.values())
    }

    /// Those of one namespace, sorted by name.
    pub fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<T>> {
        self.namespaces.get(namespace).into_iter().flat_map(|objects| objects.values())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.namespaces.values().map(|objects| objects.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
    }

    /// Puts one in; an equal one stays as it is.
    pub fn upsert(&mut self, object: Arc<T>) -> Upserted {
        let metadata = object.metadata();
        let namespace = if T::KIND.namespaced() { metadata.namespace.as_str() } else { "" };
        let before = self.get(namespace, &metadata.name);
        let upserted = match before {
            Some(before) if Arc::ptr_eq(before, &object) || *before == object => {
                return Upserted::Same;
            }
            Some(_) => Upserted::Changed,
            None => Upserted::Added,
        };
        if !self.namespaces.contains_key(namespace) {
            self.namespaces.insert(namespace.into(), Arc::default());
        }
        if let Some(objects) = self.namespaces.get_mut(namespace) {
            Arc::make_mut(objects).insert(metadata.name.as_str().into(), object);
        }
        upserted
    }

    /// Takes one out.
    pub fn remove(&mut self, namespace: &str, name: &str) -> Option<Arc<T>> {
        self.get(namespace, name)?;
        let objects = self.namespaces.get_mut(namespace)?;
        let removed = Arc::make_mut(objects).remove(name);
        if objects.is_empty() {
            self.namespaces.remove(namespace);
        }
        removed
    }

    fn delta(&self, newer: &Self, into: &mut Vec<(ResourceKey, Delta)>) {
        for (namespace, objects) in &newer.namespaces {
            let before = self.namespaces.get(namespace);
            if before.is_some_and(|before| Arc::ptr_eq(before, objects)) {
                continue;
            }
            for (name, object) in objects.iter() {
                let delta = match before.and_then(|before| before.get(name)) {
                    None => Delta::Added,
                    Some(before) if Arc::ptr_eq(before, object) || before == object => continue,
                    Some(_) => Delta::Changed,
                };
                into.push((ResourceKey::new(T::KIND, &**namespace, &**name), delta));
            }
        }
        for (namespace, objects) in &self.namespaces {
            let after = newer.namespaces.get(namespace);
            if after.is_some_and(|after| Arc::ptr_eq(after, objects)) {
                continue;
            }
            for name in objects.keys().filter(|name| !after.is_some_and(|after| after.contains_key(*name))) {
                into.push((ResourceKey::new(T::KIND, &**namespace, &**name), Delta::Removed));
            }
        }
    }
}

macro_rules! resources {
    ($($kind:ident, $all:ident, $one:ident;)+) => {
        /// All resources. Cloning shares every object.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Resources {
            $($all: Set<$kind>,)+
        }

        impl Resources {
            $(
                #[doc = concat!("All resources of kind [`", stringify!($kind), "`].")]
                pub fn $all(&self) -> &Set<$kind> {
                    &self.$all
                }
            )+

            resources!(@one $($kind, $all, $one, { Kind::$kind.namespaced() };)+);

            /// Puts a resource in; an equal one stays as it is.
            pub fn upsert(&mut self, resource: Resource) -> Upserted {
                match resource { $(Resource::$kind(object) => self.$all.upsert(object),)+ }
            }

            /// Takes a resource out.
            pub fn remove(&mut self, key: &ResourceKey) -> Option<Resource> {
                match key.kind {
                    $(Kind::$kind => self.$all.remove(&key.namespace, &key.name).map(Resource::$kind),)+
                }
            }

            /// The resource of that key.
            pub fn get(&self, key: &ResourceKey) -> Option<Resource> {
                match key.kind {
                    $(Kind::$kind => self.$all.get(&key.namespace, &key.name).cloned().map(Resource::$kind),)+
                }
            }

            /// All resources, by kind, namespace and name.
            pub fn iter(&self) -> impl Iterator<Item = Resource> {
                std::iter::empty()$(.chain(self.$all.iter().cloned().map(Resource::$kind)))+
            }

            /// How many resources there are.
            pub fn len(&self) -> usize {
                0 $(+ self.$all.len())+
            }

            /// What became of each resource from this set to a newer one; empty when they are equal.
            pub fn delta(&self, newer: &Resources) -> Vec<(ResourceKey, Delta)> {
                let mut deltas = Vec::new();
                $(self.$all.delta(&newer.$all, &mut deltas);)+
                deltas
            }
        }
    };
    (@one $($kind:ident, $all:ident, $one:ident, $namespaced:block;)+) => {
        $(
            #[doc = concat!("The [`", stringify!($kind), "`] of that name; the namespace does not matter for kinds that belong to none.")]
            pub fn $one(&self, namespace: &str, name: &str) -> Option<&Arc<$kind>> {
                self.$all.get(if $namespaced { namespace } else { "" }, name)
            }
        )+
    };
}

resources! {
    GatewayClass, gateway_classes, gateway_class;
    Gateway, gateways, gateway;
    ListenerSet, listener_sets, listener_set;
    HttpRoute, http_routes, http_route;
    GrpcRoute, grpc_routes, grpc_route;
    TlsRoute, tls_routes, tls_route;
    TcpRoute, tcp_routes, tcp_route;
    UdpRoute, udp_routes, udp_route;
    ReferenceGrant, reference_grants, reference_grant;
    BackendTlsPolicy, backend_tls_policies, backend_tls_policy;
    TrafficPolicy, traffic_policies, traffic_policy;
    Mesh, meshes, mesh;
    Workload, workloads, workload;
    ExternalService, external_services, external_service;
    AccessPolicy, access_policies, access_policy;
    AuthPolicy, auth_policies, auth_policy;
    Namespace, namespaces, namespace;
    Service, services, service;
    EndpointSlice, endpoint_slices, endpoint_slice;
    Secret, secrets, secret;
    ConfigMap, config_maps, config_map;
}

impl Resources {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts all resources of another set in; on the same name the other's wins.
    pub fn merge(&mut self, other: &Resources) {
        for resource in other.iter() {
            self.upsert(resource);
        }
    }

    /// All resources as one Kubernetes `List`, Secrets included: what is kept on disk, and a file that can be read again.
    pub fn to_value(&self) -> Value {
        let items: Vec<Value> = self.iter().map(|resource| resource.to_value()).collect();
        json!({ "apiVersion": "v1", "kind": "List", "items": items })
    }
}

impl FromIterator<Resource> for Resources {
    fn from_iter<I: IntoIterator<Item = Resource>>(resources: I) -> Self {
        let mut set = Resources::default();
        set.extend(resources);
        set
    }
}

impl Extend<Resource> for Resources {
    fn extend<I: IntoIterator<Item = Resource>>(&mut self, resources: I) {
        for resource in resources {
            self.upsert(resource);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ObjectMeta;

    fn route(namespace: &str, name: &str, host: &str) -> Resource {
        let mut route = HttpRoute {
            metadata: ObjectMeta { name: name.into(), namespace: namespace.into(), ..ObjectMeta::default() },
            spec: Default::default(),
        };
        route.spec.hostnames.push(host.into());
        route.into()
    }

    #[test]
    fn equal_resources_are_dropped() {
        let mut resources = Resources::default();
        assert_eq!(resources.upsert(route("shop", "cart", "a.example")), Upserted::Added);
        assert_eq!(resources.upsert(route("shop", "cart", "a.example")), Upserted::Same);
        assert_eq!(resources.upsert(route("shop", "cart", "b.example")), Upserted::Changed);
        let other = route("shop", "cart", "b.example");
        assert_eq!(resources.get(&other.key()), Some(other.clone()));
        assert_eq!(resources.remove(&other.key()), Some(other.clone()));
        assert_eq!(resources.remove(&other.key()), None);
        assert_eq!(resources, Resources::default());
    }

    #[test]
    fn names_without_namespace_are_found_from_anywhere() {
        let mut resources = Resources::default();
        let metadata = ObjectMeta { name: "shop".into(), namespace: "stray".into(), ..ObjectMeta::default() };
        resources.upsert(Namespace { metadata }.into());
        assert!(resources.namespace("", "shop").is_some());
        assert!(resources.namespace("other", "shop").is_some());
    }

    #[test]
    fn one_change_among_ten_thousand_is_found_and_shares_the_rest() {
        let old: Resources = (0..10_000).map(|i| route("shop", &format!("r{i}"), "a.example")).collect();
        let mut new = old.clone();
        new.upsert(route("shop", "r17", "b.example"));
        new.upsert(route("other", "x", "b.example"));
        new.remove(&route("shop", "r9999", "").key());
        let mut deltas = old.delta(&new);
        deltas.sort();
        let key = |namespace: &str, name: &str| ResourceKey::new(Kind::HttpRoute, namespace, name);
        assert_eq!(
            deltas,
            vec![
                (key("other", "x"), Delta::Added),
                (key("shop", "r17"), Delta::Changed),
                (key("shop", "r9999"), Delta::Removed),
            ]
        );
        let shared = |set: &Resources| set.http_route("shop", "r5").map(Arc::as_ptr);
        assert_eq!(shared(&old), shared(&new));
    }
}
