//! What a [`crate::Compiler`] remembers, so that the change of one route among ten thousand costs one route.
//!
//! A compiled route depends on itself and on its surroundings: every resource but routes and EndpointSlices. While the
//! surroundings stay equal, a route whose `Arc` is the same is not compiled again. A cluster depends on the surroundings
//! and on the EndpointSlices of its Service. Whatever is remembered holds the `Arc`s that it was made from, so that an
//! address is never taken for another resource that came to lie there.

use crate::{
    Options, ResourceStatus,
    backends::ClusterUse,
    rules::RouteOutcome,
    snapshot::{Cluster, ClusterId, Rule},
};
use ahash::AHashMap;
use selvedge_model::{Diagnostic, EndpointSlice, GrpcRoute, HttpRoute, ResourceKey, Resources};
use std::sync::Arc;

/// Results of the last compilation.
#[derive(Default)]
pub(crate) struct Memory {
    surroundings: Option<(Resources, Options)>,
    pub(crate) http: AHashMap<usize, Kept<HttpRoute>>,
    pub(crate) grpc: AHashMap<usize, Kept<GrpcRoute>>,
    clusters: AHashMap<ClusterUse, KeptCluster>,
}

/// A compiled route.
pub(crate) struct Kept<R> {
    /// Keeps the address, which is the key, taken.
    pub(crate) route: Arc<R>,
    pub(crate) compiled: CompiledRoute,
}

/// A route with everything that the snapshot and the status take from it.
pub(crate) struct CompiledRoute {
    pub(crate) key: ResourceKey,
    pub(crate) outcome: RouteOutcome,
    pub(crate) status: Option<Arc<ResourceStatus>>,
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// The rules with these final ids of clusters, for each variant.
    rules: Option<(Vec<ClusterId>, Vec<Vec<Arc<Rule>>>)>,
}

struct KeptCluster {
    slices: Vec<Arc<EndpointSlice>>,
    cluster: Arc<Cluster>,
    diagnostics: Vec<Diagnostic>,
}

impl CompiledRoute {
    pub(crate) fn new(key: ResourceKey, outcome: RouteOutcome, diagnostics: Vec<Diagnostic>) -> Self {
        let status = &outcome.status;
        let status = (!status.parents.is_empty()).then(|| Arc::new(ResourceStatus::Route(status.clone())));
        CompiledRoute { key, outcome, status, diagnostics, rules: None }
    }

    /// The rules with final ids of clusters; made anew only when an id has changed.
    pub(crate) fn rules(
        &mut self,
        ids: Vec<ClusterId>,
        make: impl Fn(&Rule, &[ClusterId]) -> Rule,
    ) -> &[Vec<Arc<Rule>>] {
        if self.rules.as_ref().is_none_or(|(known, _)| *known != ids) {
            let one = |rules: &Vec<Rule>| rules.iter().map(|rule| Arc::new(make(rule, &ids))).collect();
            let made = self.outcome.variants.iter().map(one).collect();
            self.rules = Some((ids, made));
        }
        self.rules.as_ref().map_or(&[], |(_, rules)| rules)
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
        self.surroundings = Some((resources.clone(), options));
    }

    /// The cluster that was built from these very slices, and what was said about it.
    pub(crate) fn cluster(
        &self,
        wanted: &ClusterUse,
        slices: &[&Arc<EndpointSlice>],
    ) -> Option<(Arc<Cluster>, &[Diagnostic])> {
        let kept = self.clusters.get(wanted)?;
        let same = kept.slices.len() == slices.len() && kept.slices.iter().zip(slices).all(|(a, b)| Arc::ptr_eq(a, b));
        same.then(|| (Arc::clone(&kept.cluster), kept.diagnostics.as_slice()))
    }

    pub(crate) fn keep_cluster(
        &mut self,
        wanted: &ClusterUse,
        slices: &[&Arc<EndpointSlice>],
        cluster: &Arc<Cluster>,
        diagnostics: Vec<Diagnostic>,
    ) {
        let slices = slices.iter().map(|slice| Arc::clone(slice)).collect();
        self.clusters.insert(wanted.clone(), KeptCluster { slices, cluster: Arc::clone(cluster), diagnostics });
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
        && old.config_maps() == new.config_maps()
}
