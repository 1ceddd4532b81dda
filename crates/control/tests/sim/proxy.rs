//! One proxy of the simulation: the real stream machine, intake and compiler.

use crate::control::{ConnId, Sight};
use crate::plan::{Millis, Spec};
use selvedge_compile::{
    Compiled, Compiler, LocalWorkload, Options, Ports, Position,
    snapshot::{Action, Discovery, HttpListener, Netns, Protocol, Snapshot, Target},
};
use selvedge_control::proto::discovery::{Hello, Role as Says, Source};
use selvedge_control::publish::{
    scope::{Interest, Role, Wanted},
    version::{Version, canonical},
};
use selvedge_control::source::stream::{
    intake::Intake,
    machine::{Change, Machine, Me, Outcome},
};
use selvedge_model::{ResourceKey, Resources};
use selvedge_wire::spiffe::SpiffeId;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// See the module.
pub struct Proxy {
    pub spec: Spec,
    pub boot: u32,
    pub up: bool,
    pub machine: Machine,
    pub intake: Intake,
    pub conn: Option<ConnId>,
    pub dials: u64,
    pub dialed: Millis,
    pub tick: Millis,
    /// Updates that are yet to be made effective; the first is under way.
    pub queue: VecDeque<(ConnId, Change)>,
    /// Those that are in effect.
    pub applied: BTreeSet<(ConnId, String)>,
    /// Last state on disk, and how new it is.
    pub disk: Resources,
    pub marked: Option<Source>,
    /// How new that is what is in effect.
    pub mark: Option<Source>,
    pub table: Table,
    /// All that it was sent and has not been told to forget.
    pub has: Sight,
    /// Where in the history of each resource it is.
    pub reached: BTreeMap<ResourceKey, usize>,
    /// The newest commit that a control plane of its knew, when it told of what is in effect.
    pub seen: usize,
    options: usize,
}

/// What requests are served with: loaded once by each.
#[derive(Clone, Default)]
pub struct Table {
    pub resources: Resources,
    pub versions: Sight,
    pub compiled: Arc<Compiled>,
}

/// What an update brought.
pub struct News {
    pub upserts: Vec<(ResourceKey, Version)>,
    pub removals: Vec<ResourceKey>,
    /// What was refused before.
    pub refused: BTreeMap<ResourceKey, Version>,
}

/// Stream and nonce of an update, what it brought, and what became of it.
pub type Applied = ((ConnId, String), News, Outcome);

/// Compiles for all proxies; each state once.
#[derive(Default)]
pub struct Shop {
    options: Vec<Options>,
    compilers: Vec<Compiler>,
    done: HashMap<(usize, u64), Arc<Compiled>>,
    pub compiled: usize,
}

impl Shop {
    fn order(&mut self, options: Options) -> usize {
        if let Some(found) = self.options.iter().position(|o| *o == options) {
            return found;
        }
        self.options.push(options);
        self.compilers.push(Compiler::default());
        self.options.len() - 1
    }

    fn compile(&mut self, options: usize, table: &Table) -> Arc<Compiled> {
        let mut hasher = DefaultHasher::new();
        for (key, version) in &table.versions {
            (key.to_string(), version.0).hash(&mut hasher);
        }
        let id = (options, hasher.finish());
        if let Some(done) = self.done.get(&id) {
            return done.clone();
        }
        self.compiled += 1;
        let compiled = Arc::new(self.compilers[options].compile(&table.resources, &self.options[options]));
        self.done.insert(id, compiled.clone());
        compiled
    }

    /// Whether compiling step by step has led to what compiling at once leads to.
    pub fn is_whole(&self, proxy: &Proxy) -> bool {
        let whole = selvedge_compile::compile(&proxy.table.resources, &self.options[proxy.options]);
        let text = |c: &Compiled| serde_json::to_string(&c.snapshot).unwrap_or_default();
        text(&whole) == text(&proxy.table.compiled)
    }
}

impl Proxy {
    pub fn new(spec: Spec, controls: usize, shop: &mut Shop) -> Self {
        let options = shop.order(options(&spec));
        let me = me(&spec, controls, 0);
        Self {
            boot: 0,
            up: false,
            machine: Machine::new(0, me, BTreeMap::new()),
            intake: Intake::default(),
            conn: None,
            dials: 0,
            dialed: 0,
            tick: 0,
            queue: VecDeque::new(),
            applied: BTreeSet::new(),
            disk: Resources::default(),
            marked: None,
            mark: None,
            table: Table::default(),
            has: Sight::new(),
            reached: BTreeMap::new(),
            seen: 0,
            options,
            spec,
        }
    }

    pub fn identity(&self) -> SpiffeId {
        let text = format!("spiffe://cluster.local/ns/{}/sa/{}", self.spec.namespace, self.spec.account);
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    pub fn interest(&self, wanted: &BTreeSet<Wanted>) -> Interest {
        let names = |list: &[String]| {
            list.iter().filter_map(|n| n.split_once('/')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
        };
        Interest {
            role: self.spec.role,
            proven: Some((self.spec.namespace.clone(), self.spec.account.clone())),
            workloads: names(self.spec.workload.as_slice()),
            gateways: names(&self.spec.gateways),
            wanted: wanted.clone(),
        }
    }

    /// Begins with what is on disk.
    pub fn start(&mut self, now: Millis, controls: usize, shop: &mut Shop) {
        self.boot += 1;
        (self.up, self.conn, self.tick) = (true, None, 0);
        self.queue.clear();
        self.applied.clear();
        self.reached.clear();
        self.table = Table::default();
        self.intake = Intake::default();
        self.intake.remember(self.disk.clone());
        self.compile(shop);
        let mut me = me(&self.spec, controls, self.boot);
        me.hello.source.clone_from(&self.marked);
        self.seen = self.marked.as_ref().map_or(0, |mark| usize::try_from(mark.revision).unwrap_or(0));
        self.mark = self.marked.clone();
        self.machine = Machine::new(now, me, self.intake.have());
        self.has = self.table.versions.clone();
    }

    /// Makes the first of the queue effective.
    pub fn apply(&mut self, shop: &mut Shop) -> Option<Applied> {
        let (conn, change) = self.queue.pop_front()?;
        for (key, version, _) in &change.upserts {
            self.has.extend(read(key).map(|key| (key, *version)));
        }
        for key in change.removals.iter().filter_map(|key| read(key)) {
            self.has.remove(&key);
            self.reached.remove(&key);
        }
        let news = News {
            upserts: change.upserts.iter().filter_map(|(key, version, _)| Some((read(key)?, *version))).collect(),
            removals: change.removals.iter().filter_map(|key| read(key)).collect(),
            refused: rejected(&self.intake),
        };
        let nonce = change.nonce.clone();
        self.mark.clone_from(&change.source);
        self.intake.take_in(change);
        self.compile(shop);
        let outcome = self.intake.installed(Vec::new())?;
        self.applied.insert((conn, nonce.clone()));
        Some(((conn, nonce), news, outcome))
    }

    /// As the engine does it.
    fn compile(&mut self, shop: &mut Shop) {
        let mut table = self.next_table();
        table.compiled = shop.compile(self.options, &table);
        if self.intake.judge(&table.compiled) {
            table = self.next_table();
            table.compiled = shop.compile(self.options, &table);
        }
        self.table = table;
    }

    fn next_table(&self) -> Table {
        let resources = self.intake.resources().clone();
        let mut versions = self.table.versions.clone();
        for (key, _) in self.table.resources.delta(&resources) {
            match resources.get(&key) {
                Some(resource) => _ = versions.insert(key, canonical(&resource).1),
                None => _ = versions.remove(&key),
            }
        }
        Table { resources, versions, compiled: Arc::default() }
    }
}

pub fn read(key: &str) -> Option<ResourceKey> {
    selvedge_control::publish::version::read_key(key)
}

fn me(spec: &Spec, controls: usize, boot: u32) -> Me {
    let mut hasher = DefaultHasher::new();
    (&spec.id, boot).hash(&mut hasher);
    let role = match spec.role {
        Role::Gateway => Says::Gateway,
        Role::Sidecar => Says::Sidecar,
        Role::Node => Says::Node,
    };
    let hello = Hello {
        id: spec.id.clone(),
        role: role.into(),
        workloads: spec.workload.iter().cloned().collect(),
        gateways: spec.gateways.clone(),
        ..Hello::default()
    };
    Me { hello, urls: (0..controls).map(|c| c.to_string()).collect(), seed: hasher.finish() }
}

fn options(spec: &Spec) -> Options {
    let Some((namespace, name)) = spec.workload.as_deref().and_then(|w| w.split_once('/')) else {
        return Options::default();
    };
    let ports = Ports { capture: true, hbone: None, http_proxy: None, fixed: Vec::new() };
    let local =
        LocalWorkload { namespace: namespace.to_owned(), workload: name.to_owned(), own: None, netns: Netns(0), ports };
    Options { position: Position::Workloads(vec![local]), ..Options::default() }
}

/// A request for what only works when all of it is of one version. Says what is wrong.
pub fn request(snapshot: &Snapshot) -> Option<String> {
    let mut listeners: Vec<&HttpListener> = Vec::new();
    for listener in &snapshot.listeners {
        match &listener.protocol {
            Protocol::Http(hosts) => listeners.extend(hosts.values().map(|l| &**l)),
            Protocol::Outbound(outbound) => {
                let destinations = outbound.destinations.names.values();
                listeners.extend(destinations.filter(|d| d.name.contains("/pair:")).filter_map(|d| d.http.as_deref()));
            }
            _ => {}
        }
    }
    listeners.into_iter().flat_map(|l| l.router.rules()).find_map(|rule| {
        let is_pair = rule.name.route == "pair";
        match &rule.action {
            Action::Fixed { status, reason } if is_pair => Some(format!("{}: {status} {reason}", rule.name)),
            Action::Forward(split) if is_pair => split.backends.iter().find_map(|backend| match &backend.target {
                Target::Invalid { reason, .. } => Some(format!("{}: {reason}", rule.name)),
                Target::Cluster(id) => {
                    let cluster = snapshot.cluster(*id);
                    let Discovery::Static(endpoints) = &cluster.discovery else { return Some("DNS".to_owned()) };
                    let port = cluster.key.rsplit(':').next().and_then(|p| p.split('~').next()?.parse().ok());
                    let fits = endpoints.len() == 1 && port == Some(endpoints[0].address.port());
                    (!fits).then(|| format!("{} leads to {} at {endpoints:?}", rule.name, cluster.key))
                }
            }),
            _ => None,
        }
    })
}

/// What a proxy does not serve, as it says.
pub fn rejected(intake: &Intake) -> BTreeMap<ResourceKey, Version> {
    intake.rejected().map(|(key, version)| (key.clone(), version)).collect()
}
