//! Who takes part in the simulation of certificates: control planes with the real certificate authority on a store that
//! they share, and members that verify one another as in a handshake.

use selvedge_control::ca::{
    Bundle, Ca, Current, Error, Issued, Key, Lifetimes, Memory, Options, Revoked, Serial, Store, StoreError,
    store::{Batch, Pending},
    time::SKEW,
};
use selvedge_identity::{Bundle as Trusted, Expect, Identities, KeyPair, Role};
use selvedge_wire::spiffe::SpiffeId;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
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
}

impl Line {
    pub fn new(memory: Arc<Memory>) -> Self {
        Self { memory, cut: AtomicBool::new(false) }
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
        Self { chain, current, issued: at }
    }

    /// As RFC 5280 section 4.1.2.5 means it: the last second belongs to it.
    pub fn holds(&self, now: i64) -> bool {
        let now = now.unsigned_abs();
        self.current.not_before <= now && now <= self.current.not_after
    }
}

/// Somebody who has a certificate and verifies those of others.
pub struct Member {
    pub id: SpiffeId,
    /// Seconds by which its clock is ahead.
    pub skew: i64,
    known: Identities,
    pub bundle: Option<Arc<Bundle>>,
    pub cert: Option<Cert>,
    /// When to ask for the next, by its own clock.
    pub due: i64,
    /// As of when it knows of the roots, at least.
    pub fresh: i64,
}

impl Member {
    pub fn new(id: SpiffeId) -> Self {
        Self { id, skew: 0, known: Identities::default(), bundle: None, cert: None, due: 0, fresh: 0 }
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
        let roots = Trusted::new(bundle.roots.iter().cloned().map(Into::into)).unwrap_or_else(|e| panic!("{e}"));
        let trusted = roots.with_revoked(serials).with_revoked_identities(ids);
        self.known.set_bundle(DOMAIN, trusted).unwrap_or_else(|e| panic!("{e}"));
        self.bundle = Some(bundle.clone());
    }

    /// Whether it accepts a certificate now, as in a handshake.
    pub fn accepts(&self, chain: &[CertificateDer<'static>], now: i64) -> Result<(), String> {
        let time = UnixTime::since_unix_epoch(Duration::from_secs((now + self.skew).unsigned_abs()));
        self.known.judge(chain, &Expect::Known, Role::Client, time).map(|_| ()).map_err(|e| e.to_string())
    }

    /// Uses a certificate, if its peers would accept it as far as it can tell.
    pub fn uses(&mut self, cert: Cert, now: i64, chance: i64) -> Result<(), String> {
        self.accepts(&cert.chain, now)?;
        let begin = i64::try_from(cert.current.not_before + SKEW.as_secs()).unwrap_or(0);
        let life = i64::try_from(cert.current.not_after).unwrap_or(0) - begin;
        // As the keeper does: at half of its life, give or take a tenth.
        self.due = begin + life * (40 + chance) / 100;
        self.cert = Some(cert);
        Ok(())
    }
}

pub fn request(id: &SpiffeId) -> Vec<u8> {
    KeyPair::generate().and_then(|key| key.request(id)).unwrap_or_else(|e| panic!("{e}"))
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
    pub fn new(memory: &Arc<Memory>, id: SpiffeId, leads: bool) -> Self {
        Self {
            line: Arc::new(Line::new(memory.clone())),
            ca: None,
            leads: watch::Sender::new(leads),
            clock: Arc::new(AtomicI64::new(START)),
            member: Member::new(id),
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
        self.line.cut.load(Ordering::Relaxed)
    }
}
