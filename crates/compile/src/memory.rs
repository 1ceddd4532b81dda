//! What a [`crate::Compiler`] remembers, so that the change of one route among ten thousand costs one route.
//!
//! A compiled route depends on itself and on its surroundings: every resource but routes, EndpointSlices
//! and Workloads. While the
//! surroundings stay equal, a route whose `Arc` is the same is not compiled again. A cluster depends on the surroundings
//! and on the EndpointSlices and Workloads of its Service. Whatever is remembered holds the `Arc`s that it was made from, so that an
//! address is never taken for another resource that came to lie there.

use crate::{
    Context, Options, ResourceStatus,
    assemble::Clusters,
    backends::{ClusterUse, Origin},
    rules::RouteOutcome,
    snapshot::{Cluster, ClusterId, HttpListener, Rule},
};
use ahash::AHashMap;
use selvedge_model::{Diagnostic, EndpointSlice, GrpcRoute, HttpRoute, ObjectMeta, ResourceKey, Resources, Workload};
use std::{cmp::Ordering, collections::BTreeSet, sync::Arc};

/// Results of the last compilation.
#[derive(Default)]
pub(crate) struct Memory {
    surroundings: Option<(Resources, Options)>,
    /// The EndpointSlices and Workloads are those of the last compilation, too.
    pub(crate) same_endpoints: bool,
    /// Sorted by key.
    pub(crate) http: Vec<Kept<HttpRoute>>,
    /// Sorted by key.
    pub(crate) grpc: Vec<Kept<GrpcRoute>>,
    clusters: AHashMap<ClusterUse, KeptCluster>,
    /// All clusters with the uses of stream routes, and what was said about them.
    pub(crate) all_clusters: Option<Arc<Clusters>>,
    /// For each listener that some HTTP listener was made for.
    pub(crate) listeners: AHashMap<usize, Arc<HttpListener>>,
}

/// A compiled route.
pub(crate) struct Kept<R> {
    pub(crate) route: Arc<R>,
    pub(crate) compiled: Box<CompiledRoute>,
}

/// A route with everything that the snapshot and the status take from it.
pub(crate) struct CompiledRoute {
    pub(crate) key: Arc<ResourceKey>,
    pub(crate) outcome: RouteOutcome,
    pub(crate) status: Option<Arc<ResourceStatus>>,
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// The rules with these final ids of clusters, for each variant.
    rules: Option<(Vec<ClusterId>, Vec<Vec<Arc<Rule>>>)>,
    /// For each attachment: the index of the first of its rules in the router there.
    pub(crate) places: Vec<u32>,
}

/// Routes of one kind as they are now, and what is different from the last compilation.
#[derive(Default)]
pub(crate) struct Routes {
    #[expect(clippy::vec_box, reason = "routes are large and move between lists when others come and go")]
    pub(crate) all: Vec<Box<CompiledRoute>>,
    /// Positions of those that were compiled now, with what they were before.
    pub(crate) changed: Vec<(usize, Option<Box<CompiledRoute>>)>,
    /// Some are gone.
    pub(crate) removed: bool,
}

impl Routes {
    /// Takes over what was compiled from the same `Arc`, and compiles the rest. Both lists are sorted by key.
    pub(crate) fn take<R>(
        &mut self,
        kept: Vec<Kept<R>>,
        routes: &[&Arc<R>],
        meta: impl Fn(&R) -> &ObjectMeta,
        mut compile: impl FnMut(&R) -> CompiledRoute,
    ) {
        let mut kept = kept.into_iter().peekable();
        for &route in routes {
            let mut before = None;
            while let Some(next) = kept.peek() {
                let same = Arc::ptr_eq(&next.route, route);
                let name = |it: &'_ R| (meta(it).namespace.clone(), meta(it).name.clone());
                let order = if same { Ordering::Equal } else { name(&next.route).cmp(&name(route)) };
                if order == Ordering::Greater {
                    break;
                }
                let next = kept.next();
                if order == Ordering::Equal {
                    before = next.map(|kept| (same, kept.compiled));
                    break;
                }
                self.removed = true;
            }
            match before {
                Some((true, compiled)) => self.all.push(compiled),
                before => {
                    self.changed.push((self.all.len(), before.map(|(_, compiled)| compiled)));
                    self.all.push(Box::new(compile(route)));
                }
            }
        }
        self.removed |= kept.next().is_some();
    }
}

struct KeptCluster {
    inputs: Inputs,
    cluster: Arc<Cluster>,
    diagnostics: Vec<Diagnostic>,
}

/// What a cluster is made from besides the surroundings.
pub(crate) struct Inputs {
    slices: Vec<Arc<EndpointSlice>>,
    /// Those that the Service picks, then those at the addresses of its slices.
    workloads: Vec<Arc<Workload>>,
}

impl Inputs {
    pub(crate) fn of(cx: &Context<'_>, wanted: &ClusterUse) -> Self {
        let (mut slices, mut workloads) = (Vec::new(), Vec::new());
        let members = &cx.mesh.members;
        match wanted.origin {
            Origin::Service => {
                let found = cx.index.slices(&wanted.namespace, &wanted.name).unwrap_or_default();
                slices.extend(found.iter().map(|&slice| Arc::clone(slice)));
                if !members.is_empty() {
                    let service = cx.index.service(&wanted.namespace, &wanted.name);
                    workloads.extend(service.into_iter().flat_map(|s| members.of_service(s)).cloned());
                    let texts = slices.iter().flat_map(|s| &s.endpoints).filter_map(|e| e.addresses.first());
                    workloads.extend(texts.filter_map(|t| members.at(t.parse().ok()?)).cloned());
                }
            }
            Origin::Address => workloads.extend(wanted.name.parse().ok().and_then(|ip| members.at(ip)).cloned()),
            Origin::Hostname | Origin::External | Origin::Inbound => {}
        }
        Inputs { slices, workloads }
    }

    fn same(&self, other: &Self) -> bool {
        fn same<T>(a: &[Arc<T>], b: &[Arc<T>]) -> bool {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
        }
        same(&self.slices, &other.slices) && same(&self.workloads, &other.workloads)
    }
}

impl CompiledRoute {
    pub(crate) fn new(key: ResourceKey, outcome: RouteOutcome, diagnostics: Vec<Diagnostic>) -> Self {
        let status = &outcome.status;
        let status = (!status.parents.is_empty()).then(|| Arc::new(ResourceStatus::Route(status.clone())));
        CompiledRoute { key: Arc::new(key), outcome, status, diagnostics, rules: None, places: Vec::new() }
    }

    /// The rules as last numbered, by variant.
    pub(crate) fn rules(&self) -> &[Vec<Arc<Rule>>] {
        self.rules.as_ref().map_or(&[], |(_, rules)| rules)
    }

    /// Gives the rules final ids of clusters. They are made anew, which is told, only when an id has changed.
    pub(crate) fn number(&mut self, ids: Vec<ClusterId>, make: impl Fn(&Rule, &[ClusterId]) -> Rule) -> bool {
        if self.rules.as_ref().is_none_or(|(known, _)| *known != ids) {
            let one = |rules: &Vec<Rule>| rules.iter().map(|rule| Arc::new(make(rule, &ids))).collect();
            let made = self.outcome.variants.iter().map(one).collect();
            self.rules = Some((ids, made));
            return true;
        }
        false
    }
}

impl Memory {
    /// Forgets what other surroundings have made wrong.
    pub(crate) fn prepare(&mut self, resources: &Resources, options: &Options) {
        // The time only makes warnings, which are not remembered.
        let options = Options { now: 0, ..options.clone() };
        let same = self
            .surroundings
            .as_ref()
            .is_some_and(|(old, old_options)| *old_options == options && same_surroundings(old, resources));
        if !same {
            *self = Memory::default();
        }
        self.same_endpoints = self.surroundings.as_ref().is_some_and(|(old, _)| {
            old.endpoint_slices() == resources.endpoint_slices() && old.workloads() == resources.workloads()
        });
        self.surroundings = Some((resources.clone(), options));
    }

    /// The cluster that was built from these very inputs, and what was said about it.
    pub(crate) fn cluster(&self, wanted: &ClusterUse, inputs: &Inputs) -> Option<(Arc<Cluster>, &[Diagnostic])> {
        let kept = self.clusters.get(wanted).filter(|kept| kept.inputs.same(inputs))?;
        Some((Arc::clone(&kept.cluster), kept.diagnostics.as_slice()))
    }

    pub(crate) fn keep_cluster(
        &mut self,
        wanted: &ClusterUse,
        inputs: Inputs,
        cluster: &Arc<Cluster>,
        diagnostics: Vec<Diagnostic>,
    ) {
        self.clusters.insert(wanted.clone(), KeptCluster { inputs, cluster: Arc::clone(cluster), diagnostics });
    }

    /// Forgets clusters that nothing reaches any more.
    pub(crate) fn retain_clusters(&mut self, reached: impl Fn(&ClusterUse) -> bool, count: usize) {
        if self.clusters.len() > count {
            self.clusters.retain(|wanted, _| reached(wanted));
        }
    }
}

fn same_surroundings(old: &Resources, new: &Resources) -> bool {
    old.gateway_classes() == new.gateway_classes()
        && old.gateways() == new.gateways()
        && old.listener_sets() == new.listener_sets()
        && old.reference_grants() == new.reference_grants()
        && old.backend_tls_policies() == new.backend_tls_policies()
        && old.traffic_policies() == new.traffic_policies()
        && old.namespaces() == new.namespaces()
        && old.services() == new.services()
        && old.secrets() == new.secrets()
        && old.meshes() == new.meshes()
        // Whether there are any is told to routes with a Service as parent, and whether a namespace has any to clusters.
        && namespaces_with(old) == namespaces_with(new)
        && old.external_services() == new.external_services()
        && old.config_maps() == new.config_maps()
}

fn namespaces_with(resources: &Resources) -> BTreeSet<&str> {
    resources.workloads().iter().map(|w| w.metadata.namespace.as_str()).collect()
}
