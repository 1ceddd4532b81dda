//! Destinations before the clusters have their numbers: those depend on all that anything reaches.

use crate::{
    backends::{Caller, ClusterUse},
    router::{Entry, RouterBuilder},
    routers,
    snapshot::{
        AccessLog, Action, Backend, ClusterId, Destination, HttpListener, HttpOptions, L4Options, L4Route,
        ListenerName, Rule, RuleName, Speaks, Split, Target, Tracing,
    },
};
use ahash::AHashMap;
use std::{borrow::Cow, sync::Arc};

/// Numbers uses of clusters in the order in which they come.
#[derive(Default)]
pub(super) struct Uses {
    ids: AHashMap<Arc<ClusterUse>, u32>,
    pub(super) list: Vec<Arc<ClusterUse>>,
}

impl Uses {
    pub(super) fn id(&mut self, wanted: ClusterUse) -> u32 {
        if let Some(known) = self.ids.get(&wanted) {
            return *known;
        }
        let id = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        let wanted = Arc::new(wanted);
        self.ids.insert(Arc::clone(&wanted), id);
        self.list.push(wanted);
        id
    }

    /// Those of a route, called by somebody in particular.
    pub(super) fn ids(&mut self, uses: &[ClusterUse], caller: &Arc<Caller>) -> Vec<u32> {
        uses.iter().map(|wanted| self.id(ClusterUse { caller: Some(Arc::clone(caller)), ..wanted.clone() })).collect()
    }
}

/// Some rules with their matches; clusters in them are positions in `ids`.
pub(super) struct RuleSet<'r> {
    pub(super) rules: Cow<'r, [Rule]>,
    /// `Entry::rule` is a position in `rules`.
    pub(super) entries: Cow<'r, [Entry]>,
    pub(super) ids: Vec<u32>,
}

/// A stream route; clusters in it are positions in `ids`.
pub(super) struct StreamPlan<'r> {
    pub(super) route: Cow<'r, L4Route>,
    pub(super) ids: Vec<u32>,
}

/// A destination to be.
pub(super) struct Plan<'r> {
    pub(super) name: String,
    pub(super) speaks: Speaks,
    /// Rules for HTTP; empty where nothing is known of HTTP.
    pub(super) http: Vec<RuleSet<'r>>,
    pub(super) tcp: Option<StreamPlan<'r>>,
}

/// What all listeners of one local workload share.
pub(super) struct Shared {
    pub(super) name: ListenerName,
    pub(super) options: Arc<HttpOptions>,
    pub(super) streams: Arc<L4Options>,
    pub(super) access_log: Vec<Arc<AccessLog>>,
    pub(super) tracing: Option<Arc<Tracing>>,
}

impl Shared {
    pub(super) fn http(&self, sets: &[RuleSet<'_>], numbers: &[ClusterId]) -> Arc<HttpListener> {
        let mut router = RouterBuilder::default();
        for set in sets {
            let ids = of(&set.ids, numbers);
            let mut first = None;
            for rule in set.rules.iter() {
                let index = router.rule(Arc::new(routers::with_ids(rule.clone(), &ids)));
                first.get_or_insert(index);
            }
            let first = first.unwrap_or(0);
            for entry in set.entries.iter() {
                router.entry(None, Entry { rule: first + entry.rule, ..entry.clone() });
            }
        }
        Arc::new(HttpListener {
            name: self.name.clone(),
            hostname: None,
            router: router.build(),
            access: None,
            options: Arc::clone(&self.options),
            access_log: self.access_log.clone(),
            tracing: self.tracing.clone(),
        })
    }

    pub(super) fn destination(&self, plan: &Plan<'_>, numbers: &[ClusterId]) -> Destination {
        Destination {
            name: plan.name.clone(),
            speaks: plan.speaks,
            http: (!plan.http.is_empty()).then(|| self.http(&plan.http, numbers)),
            tcp: plan.tcp.as_ref().map(|stream| Arc::new(l4(stream, numbers))),
            streams: Arc::clone(&self.streams),
        }
    }
}

pub(super) fn l4(plan: &StreamPlan<'_>, numbers: &[ClusterId]) -> L4Route {
    let mut route = plan.route.clone().into_owned();
    if let Some(split) = &mut route.split {
        routers::number(&mut split.backends, &of(&plan.ids, numbers));
    }
    route
}

fn of(ids: &[u32], numbers: &[ClusterId]) -> Vec<ClusterId> {
    ids.iter().map(|&id| numbers.get(id as usize).copied().unwrap_or(ClusterId(u32::MAX))).collect()
}

/// All to one cluster, the first of some ids.
pub(super) fn all_to(position: u32) -> Split {
    let target = Target::Cluster(ClusterId(position));
    Split { backends: vec![Backend { weight: 1, target, filters: Vec::new() }], total: 1 }
}

/// A rule that forwards to one cluster.
pub(super) fn forward(name: RuleName, grpc: bool, position: u32) -> Rule {
    Rule {
        name,
        grpc,
        filters: Vec::new(),
        action: Action::Forward(all_to(position)),
        timeouts: Default::default(),
        retry: None,
        hedging: None,
        session: None,
    }
}
