//! Who takes part in the simulation of certificates: control planes with the real certificate authority on a store that
//! they share, and members that verify one another as in a handshake.

use selvedge_control::ca::{
    Bundle, Ca, Current, Error, Issued, Key, Lifetimes, Memory, Options, Revoked, Serial, Store, StoreError,
    store::{Batch, Pending},
};
use selvedge_identity::{Bundle as Trusted, Expect, Identities, KeyPair, Life, Role, Span};
use selvedge_wire::spiffe::SpiffeId;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

pub const DOMAIN: &str = "mesh.example";
/// When it begins, in seconds since 1970.
pub const START: i64 = 1_900_000_000;
const HOUR: Duration = Duration::from_secs(3600);
/// An hour stands for a day of the defaults.
pub const LIVES: Lifetimes = Lifetimes {
    root: Duration::from_secs(5 * 3600),
    intermediate: Duration::from_secs(2 * 3600),
    svid: HOUR,
    overlap: HOUR,
    grace: HOUR,
};

/// A control plane's way to the store: each call takes a turn, so that those of several can come between one another.
#[derive(Debug)]
pub struct Line {
    memory: Arc<Memory>,
    pub cut: AtomicBool,
    /// It can be read, and takes no writes.
    pub full: AtomicBool,
    /// How often something was to be written.
    pub writes: AtomicU64,
}

impl Line {
    pub fn new(memory: Arc<Memory>) -> Self {
        Self { memory, cut: AtomicBool::new(false), full: AtomicBool::new(false), writes: AtomicU64::new(0) }
    }

    fn check(&self) -> Result<(), StoreError> {
        match self.cut.load(Ordering::Relaxed) {
            true => Err(StoreError::Unreachable { place: self.place(), why: "cut off".to_owned() }),
            false => Ok(()),
        }
    }
}

/// Ready at the second look.
struct Turn(bool);

impl Future for Turn {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Store for Line {
    fn read<'a>(&'a self, key: &'a str) -> Pending<'a, Option<Vec<u8>>> {
        Box::pin(async move {
            Turn(false).await;
            self.check()?;
            self.memory.read(key).await
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Pending<'a, Vec<(String, Vec<u8>)>> {
        Box::pin(async move {
            Turn(false).await;
            self.check()?;
            self.memory.list(prefix).await
        })
    }

    fn write(&self, batch: Batch) -> Pending<'_, bool> {
        Box::pin(async move {
            Turn(false).await;
            self.check()?;
            self.writes.fetch_add(1, Ordering::Relaxed);
            if self.full.load(Ordering::Relaxed) {
                return Err(StoreError::Full { place: self.place() });
            }
            self.memory.write(batch).await
        })
    }

    fn place(&self) -> String {
        "simulated".to_owned()
    }
}

/// Runs all, in the order that `next` says, to their ends.
pub fn drive<T>(mut all: Vec<Pin<Box<dyn Future<Output = T> + '_>>>, mut next: impl FnMut(usize) -> usize) -> Vec<T> {
    let mut context = Context::from_waker(Waker::noop());
    let mut done: Vec<Option<T>> = all.iter().map(|_| None).collect();
    loop {
        let open: Vec<usize> = (0..all.len()).filter(|i| done[*i].is_none()).collect();
        if open.is_empty() {
            return done.into_iter().flatten().collect();
        }
        let turn = open[next(open.len())];
        if let Poll::Ready(result) = all[turn].as_mut().poll(&mut context) {
            done[turn] = Some(result);
        }
    }
}

pub fn run<T>(one: impl Future<Output = T>) -> T {
    let mut one = std::pin::pin!(one);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(result) = one.as_mut().poll(&mut context) {
            return result;
        }
    }
}

pub fn id(account: &str) -> SpiffeId {
    SpiffeId::workload(DOMAIN, "shop", account).unwrap_or_else(|e| panic!("{account}: {e}"))
}

/// A certificate in somebody's hands.
#[derive(Clone)]
pub struct Cert {
    pub chain: Vec<CertificateDer<'static>>,
    edges: Edges,
    /// The name of the root that it leads to; no two have the same.
    pub root: String,
    pub current: Current,
    /// When it was issued, by true time.
    pub issued: i64,
}

impl Cert {
    pub fn new(issued: &Issued, at: i64, own: bool) -> Self {
        let mut chain: Vec<CertificateDer<'static>> = issued.leaf.chain.iter().cloned().map(Into::into).collect();
        if own {
            chain.pop();
        }
        let (not_before, not_after) = (issued.leaf.not_before, issued.leaf.not_after);
        let current = Current { id: issued.id.clone(), serial: issued.leaf.serial.clone(), not_before, not_after };
        let mut edges = Edges::of(&chain[1..]);
        edges.0.extend([not_before, not_after + 1].map(|at| i64::try_from(at).unwrap_or(0)));
        edges.0.sort_unstable();
        let root = names(chain.last().unwrap_or_else(|| panic!("an empty chain"))).0;
        Self { edges, root, chain, current, issued: at }
    }

    /// As RFC 5280 section 4.1.2.5 means it: the last second belongs to it.
    pub fn holds(&self, now: i64) -> bool {
        let now = now.unsigned_abs();
        self.current.not_before <= now && now <= self.current.not_after
    }
}

/// The seconds at which something about certificates begins or ends: between two of them a verdict cannot change by time.
#[derive(Clone, Default)]
struct Edges(Vec<i64>);

impl Edges {
    fn of<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> Self {
        let mut all: Vec<i64> = certificates.into_iter().flat_map(dates).collect();
        all.sort_unstable();
        Self(all)
    }

    fn passed(&self, time: i64) -> usize {
        self.0.partition_point(|edge| *edge <= time)
    }
}

/// Who has issued a certificate, and whose it is.
pub fn names(der: &[u8]) -> (String, String) {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).unwrap_or_else(|e| panic!("{e}"));
    (parsed.issuer().to_string(), parsed.subject().to_string())
}

/// When a certificate begins, and when it has ended. Each thread reads a certificate once: there are few, in many chains.
fn dates(der: &CertificateDer<'static>) -> [i64; 2] {
    thread_local!(static READ: RefCell<HashMap<CertificateDer<'static>, [i64; 2]>> = RefCell::default());
    let read = || {
        let (_, parsed) = x509_parser::parse_x509_certificate(der).unwrap_or_else(|e| panic!("{e}"));
        let validity = parsed.validity();
        [validity.not_before.timestamp(), validity.not_after.timestamp() + 1]
    };
    READ.with_borrow_mut(|all| *all.entry(der.clone()).or_insert_with(read))
}

/// What a verdict depends on: the certificate, by its serial, what is known of roots and revocations, and how much of what
/// can change by time has: edges of the chain, edges of the roots, and hours, should there be something else that does.
type Case = (Serial, u64, [usize; 2], i64);

/// Verdicts of all members: each case is judged once, by the member that comes upon it.
#[derive(Clone, Default)]
pub struct Verdicts(Rc<RefCell<HashMap<Case, Result<(), String>>>>);

/// Somebody who has a certificate and verifies those of others.
pub struct Member {
    pub id: SpiffeId,
    /// Seconds by which its clock is ahead.
    pub skew: i64,
    known: Identities,
    /// Tells what it knows from other things that might be known.
    knows: u64,
    edges: Edges,
    verdicts: Verdicts,
    pub bundle: Option<Arc<Bundle>>,
    pub cert: Option<Cert>,
    /// When to ask for the next, as a node's keeper decides it.
    life: Life,
    /// As of when it knows of the roots, at least.
    pub fresh: i64,
}

impl Member {
    pub fn new(id: SpiffeId, verdicts: &Verdicts) -> Self {
        let (known, edges, verdicts) = (Identities::default(), Edges::default(), verdicts.clone());
        Self {
            id,
            skew: 0,
            known,
            knows: 0,
            edges,
            verdicts,
            bundle: None,
            cert: None,
            life: Life::default(),
            fresh: 0,
        }
    }

    pub fn sequence(&self) -> u64 {
        self.bundle.as_ref().map_or(0, |b| b.sequence)
    }

    /// Takes a bundle, unless it is older than what it has.
    pub fn take(&mut self, bundle: &Arc<Bundle>) {
        if self.bundle.is_some() && self.sequence() >= bundle.sequence {
            return;
        }
        self.set(bundle);
    }

    pub fn set(&mut self, bundle: &Arc<Bundle>) {
        if self.bundle.as_ref() == Some(bundle) {
            return;
        }
        let mut ids = Vec::new();
        let mut serials: Vec<Serial> = Vec::new();
        for revoked in &bundle.revoked {
            match revoked {
                Revoked::Serial { serial, .. } => serials.push(serial.clone()),
                Revoked::Identity { id, at } => ids.push((id.clone(), at.saturating_sub(1))),
            }
        }
        let roots: Vec<CertificateDer<'static>> = bundle.roots.iter().cloned().map(Into::into).collect();
        self.edges = Edges::of(&roots);
        let mut hasher = DefaultHasher::new();
        (&bundle.roots, serials.iter().map(ToString::to_string).collect::<Vec<_>>(), &ids).hash(&mut hasher);
        self.knows = hasher.finish();
        let roots = Trusted::new(roots).unwrap_or_else(|e| panic!("{e}"));
        let trusted = roots.with_revoked(serials).with_revoked_identities(ids);
        self.known.set_bundle(DOMAIN, trusted).unwrap_or_else(|e| panic!("{e}"));
        self.bundle = Some(bundle.clone());
    }

    /// Whether it accepts a certificate now, as in a handshake. Signatures are verified anew only when the verdict may be
    /// another than the last time.
    pub fn accepts(&self, cert: &Cert, now: i64) -> Result<(), String> {
        let time = now + self.skew;
        let passed = [&cert.edges, &self.edges].map(|edges| edges.passed(time));
        let case = (cert.current.serial.clone(), self.knows, passed, time / 3600);
        self.verdicts.0.borrow_mut().entry(case).or_insert_with(|| self.judge(&cert.chain, time)).clone()
    }

    fn judge(&self, chain: &[CertificateDer<'static>], time: i64) -> Result<(), String> {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(time.unsigned_abs()));
        self.known.judge(chain, &Expect::Known, Role::Client, time).map(|_| ()).map_err(|e| e.to_string())
    }

    /// By its own clock.
    fn time(&self, now: i64) -> SystemTime {
        second((now + self.skew).unsigned_abs())
    }

    /// Whether it is to ask for a certificate now. What it has may count no more, as the keeper of a node finds out.
    pub fn wants_another(&mut self, now: i64) -> bool {
        let refused = self.cert.as_ref().is_some_and(|cert| self.accepts(cert, now).is_err());
        if refused && self.life.failures() == 0 {
            self.life.renew_now();
        }
        self.life.due(self.time(now)) <= self.time(now)
    }

    /// Uses a certificate, if its peers would accept it as far as it can tell.
    pub fn uses(&mut self, cert: Cert, now: i64, chance: f64) -> Result<(), String> {
        self.accepts(&cert, now)?;
        let span = Span { not_before: second(cert.current.not_before), not_after: second(cert.current.not_after) };
        self.life.renewed(span, self.time(now), chance);
        self.cert = Some(cert);
        Ok(())
    }

    /// None was to be had.
    pub fn failed(&mut self, now: i64, chance: f64) {
        self.life.failed(self.time(now), chance);
    }

    /// It begins anew.
    pub fn forget(&mut self) {
        (self.cert, self.life) = (None, Life::default());
    }
}

fn second(since_1970: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(since_1970)
}

/// Keys of all seeds: what is signed for them differs, and nobody looks at the keys but the one who counts uses of a token.
const KEYS: u64 = 4;

/// The request of an identity with one of its keys.
pub fn request(id: &SpiffeId, number: u64) -> Vec<u8> {
    static MADE: Mutex<BTreeMap<(SpiffeId, u64), Vec<u8>>> = Mutex::new(BTreeMap::new());
    let make = || KeyPair::generate().and_then(|key| key.request(id)).unwrap_or_else(|e| panic!("{e}"));
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    made.entry((id.clone(), number % KEYS)).or_insert_with(make).clone()
}

/// A control plane.
pub struct Authority {
    pub line: Arc<Line>,
    pub ca: Option<Ca>,
    pub leads: watch::Sender<bool>,
    /// Its clock, for the CA.
    pub clock: Arc<AtomicI64>,
    pub member: Member,
}

impl Authority {
    pub fn new(memory: &Arc<Memory>, member: Member, leads: bool) -> Self {
        Self {
            line: Arc::new(Line::new(memory.clone())),
            ca: None,
            leads: watch::Sender::new(leads),
            clock: Arc::new(AtomicI64::new(START)),
            member,
        }
    }

    pub fn start(&mut self, key: &Path) -> Result<(), Error> {
        let options = Options { trust_domain: Some(DOMAIN.to_owned()), mesh: None, lifetimes: LIVES, files: None };
        let hand = self.clock.clone();
        let clock =
            Arc::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(hand.load(Ordering::Relaxed).unsigned_abs()));
        let (key, leads) = (Key::File(key.to_owned()), self.leads.subscribe());
        self.ca = Some(run(Ca::open_shared(self.line.clone() as _, &key, options, clock, leads))?);
        Ok(())
    }

    pub fn is_cut(&self) -> bool {
        self.line.cut.load(Ordering::Relaxed) || self.line.full.load(Ordering::Relaxed)
    }
}
