use super::*;
use rustls_pki_types::UnixTime;
use selvedge_control::{
    ca::{self, Ca, Lifetimes, Memory, Rotate},
    identity::LocalIssuer,
};
use selvedge_identity::Issuing;
use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
};
use tokio::time::Instant;

const DOMAIN: &str = "mesh.example";

fn id(account: &str) -> SpiffeId {
    SpiffeId::workload(DOMAIN, "shop", account).unwrap()
}

/// The time of the paused runtime, and how far a clock is off.
#[derive(Clone)]
struct Time {
    start: Instant,
    off: Arc<AtomicI64>,
}

impl Time {
    fn new() -> Self {
        Self { start: Instant::now(), off: Arc::default() }
    }

    fn true_time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.start.elapsed()
    }

    /// Of the node; the CA's is right.
    fn now(&self) -> SystemTime {
        let off = self.off.load(Ordering::Relaxed);
        let by = Duration::from_secs(off.unsigned_abs());
        if off < 0 { self.true_time() - by } else { self.true_time() + by }
    }

    fn jump(&self, seconds: i64) {
        self.off.fetch_add(seconds, Ordering::Relaxed);
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// With certificates of that many seconds.
async fn new_ca(svid: u64, time: &Time) -> Arc<Ca> {
    let lifetimes = Lifetimes {
        root: seconds(svid * 16),
        intermediate: seconds(svid * 4),
        svid: seconds(svid),
        overlap: seconds(svid),
        grace: Duration::ZERO,
    };
    let options = ca::Options { trust_domain: Some(DOMAIN.to_owned()), mesh: None, lifetimes, files: None };
    let key = ca::Key::Passphrase("correct horse battery".to_owned());
    let clock = time.clone();
    let clock: ca::Clock = Arc::new(move || clock.true_time());
    let ca = Arc::new(Ca::open(Arc::new(Memory::new()), &key, options, clock).await.unwrap());
    let running = Arc::clone(&ca);
    tokio::spawn(async move { running.run().await });
    ca
}

/// A control plane that may be away.
struct Flaky {
    inner: LocalIssuer,
    away: AtomicBool,
    asked: AtomicU64,
}

impl Flaky {
    fn new(ca: &Arc<Ca>) -> Arc<Self> {
        let inner = LocalIssuer::new(Arc::clone(ca));
        Arc::new(Self { inner, away: AtomicBool::new(false), asked: AtomicU64::new(0) })
    }

    fn away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }
}

impl Issuer for Flaky {
    fn issue(&self, id: &SpiffeId, current: Option<Arc<Svid>>, request: Vec<u8>) -> Issuing {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.away.load(Ordering::Relaxed) {
            return Box::pin(async { Err(NotIssued::Later("connection refused".to_owned())) });
        }
        self.inner.issue(id, current, request)
    }

    fn trust(&self) -> watch::Receiver<Option<Arc<Trust>>> {
        self.inner.trust()
    }
}

struct Node {
    identities: Arc<Identities>,
    keeper: Keeper,
    time: Time,
}

impl Node {
    fn new(issuer: Arc<dyn Issuer>, time: &Time, state: Option<&Path>) -> Self {
        let clock = time.clone();
        let options = Options {
            state: state.map(Path::to_owned),
            clock: Arc::new(move || clock.now()),
            chance: Arc::new(rand::random::<f64>),
        };
        let identities = Arc::new(Identities::default());
        let keeper = Keeper::new(Arc::clone(&identities), issuer, options).unwrap();
        Self { identities, keeper, time: time.clone() }
    }

    /// Whether this node accepts what that one shows, now.
    fn accepts(&self, other: &Self, id: &SpiffeId) -> Result<(), String> {
        let svid = other.identities.get(id).ok_or("no certificate")?;
        self.judges(&svid)
    }

    fn judges(&self, svid: &Svid) -> Result<(), String> {
        let id = svid.id();
        let now = self.time.now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let judged = self.identities.judge(
            svid.chain(),
            &Expect::Exactly(id.clone()),
            Role::Client,
            UnixTime::since_unix_epoch(now),
        );
        judged.map(|_| ()).map_err(|e| e.to_string())
    }

    fn status(&self) -> IdentityStatus {
        self.keeper.statuses().into_iter().next().unwrap()
    }
}

/// Issues, and loses its first answer.
struct Lossy {
    inner: LocalIssuer,
    keys: Mutex<Vec<Vec<u8>>>,
}

impl Issuer for Lossy {
    fn issue(&self, id: &SpiffeId, current: Option<Arc<Svid>>, request: Vec<u8>) -> Issuing {
        // A point on P-256, uncompressed, in a bit string.
        let at = request.windows(4).position(|w| w == [3, 66, 0, 4]).expect("a public key");
        let mut keys = self.keys.lock().unwrap();
        keys.push(request[at..at + 68].to_vec());
        let (lost, issuing) = (keys.len() == 1, self.inner.issue(id, current, request));
        Box::pin(async move {
            let issued = issuing.await?;
            if lost { Err(NotIssued::Later("no answer within 10 s".to_owned())) } else { Ok(issued) }
        })
    }

    fn trust(&self) -> watch::Receiver<Option<Arc<Trust>>> {
        self.inner.trust()
    }
}

/// A join token is used up by the first answer; for the same key it counts again.
#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_asked_for_with_the_same_key() {
    let time = Time::new();
    let ca = new_ca(20, &time).await;
    let issuer = Arc::new(Lossy { inner: LocalIssuer::new(Arc::clone(&ca)), keys: Mutex::default() });
    let node = Node::new(issuer.clone(), &time, None);
    node.keeper.keep(&id("orders"));
    node.keeper.ready(&id("orders")).await;
    while node.status().renewals < 2 {
        tokio::time::sleep(seconds(1)).await;
    }
    let keys = issuer.keys.lock().unwrap().clone();
    assert_eq!(keys[0], keys[1], "the same again");
    assert_ne!(keys[1], keys[2], "each certificate has a key of its own");
}

/// Whom a token for one use lets in: the first key, and that again. Its first answer comes when nobody waits any more.
struct OneUse {
    lossy: Lossy,
    asked: watch::Sender<usize>,
}

impl OneUse {
    fn new(ca: &Arc<Ca>) -> Arc<Self> {
        let lossy = Lossy { inner: LocalIssuer::new(Arc::clone(ca)), keys: Mutex::default() };
        Arc::new(Self { lossy, asked: watch::Sender::new(0) })
    }

    /// Resolves when it was asked that often.
    async fn asked(&self, times: usize) {
        self.asked.subscribe().wait_for(|count| *count >= times).await.unwrap();
    }
}

impl Issuer for OneUse {
    fn issue(&self, id: &SpiffeId, current: Option<Arc<Svid>>, request: Vec<u8>) -> Issuing {
        let joins = current.is_none();
        let issuing = self.lossy.issue(id, current, request);
        let keys = self.lossy.keys.lock().unwrap();
        self.asked.send_replace(keys.len());
        let same = keys.first() == keys.last();
        match keys.len() {
            1 => Box::pin(std::future::pending()),
            _ if joins && !same => {
                Box::pin(async { Err(NotIssued::Never("the join token was used already".to_owned())) })
            }
            _ => issuing,
        }
    }

    fn trust(&self) -> watch::Receiver<Option<Arc<Trust>>> {
        self.lossy.trust()
    }
}

/// Killed after its token was used up and before its certificate was there: the key is on disk, and is asked for again.
#[tokio::test(start_paused = true)]
async fn a_process_that_is_killed_while_it_joins_joins_after_its_restart() {
    let (time, folder) = (Time::new(), tempfile::tempdir().unwrap());
    let ca = new_ca(1000, &time).await;
    let files = |ending: &str| -> Vec<std::path::PathBuf> {
        let all = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.extension().is_some_and(|it| it == ending)).collect()
    };
    let issuer = OneUse::new(&ca);
    let node = Node::new(issuer.clone(), &time, Some(folder.path()));
    node.keeper.keep(&id("orders"));
    issuer.asked(1).await;
    drop(node);
    assert_eq!((files("key").len(), files("pem").len()), (1, 0));
    let mode = std::fs::metadata(&files("key")[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    let node = Node::new(issuer.clone(), &time, Some(folder.path()));
    node.keeper.keep(&id("orders"));
    let svid = node.keeper.ready(&id("orders")).await;
    assert_eq!((files("key").len(), files("pem").len()), (0, 1), "key and certificate are one file now");
    // Killed between saving the certificate and removing the key.
    drop(node);
    std::fs::write(files("pem")[0].with_extension("key"), "of before").unwrap();
    let node = Node::new(issuer.clone(), &time, Some(folder.path()));
    node.keeper.keep(&id("orders"));
    assert_eq!(node.keeper.ready(&id("orders")).await.serial(), svid.serial());
    assert_eq!(files("key").len(), 0);
    drop(node);
    // Without the folder it is somebody else; with a damaged key too, and that is said.
    let stranger = Node::new(issuer.clone(), &time, None);
    stranger.keeper.keep(&id("orders"));
    issuer.asked(3).await;
    tokio::time::sleep(seconds(1)).await;
    assert!(stranger.status().last_error.unwrap().contains("used already"));
    let issuer = OneUse::new(&ca);
    std::fs::remove_file(&files("pem")[0]).unwrap();
    let node = Node::new(issuer.clone(), &time, Some(folder.path()));
    node.keeper.keep(&id("orders"));
    issuer.asked(1).await;
    drop(node);
    std::fs::write(&files("key")[0], "damaged").unwrap();
    let node = Node::new(issuer.clone(), &time, Some(folder.path()));
    node.keeper.keep(&id("orders"));
    issuer.asked(2).await;
    tokio::time::sleep(seconds(1)).await;
    assert!(node.status().last_error.unwrap().contains("used already"));
}

#[tokio::test(start_paused = true)]
async fn a_hundred_rotations_and_never_a_gap() {
    let time = Time::new();
    let ca = new_ca(20, &time).await;
    let issuer = Flaky::new(&ca);
    let nodes = [Node::new(issuer.clone(), &time, None), Node::new(issuer.clone(), &time, None)];
    for node in &nodes {
        node.keeper.keep(&id("orders"));
        node.keeper.ready(&id("orders")).await;
    }
    let (mut roots, mut serials) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    while nodes[0].status().renewals < 100 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for (one, other) in [(0, 1), (1, 0), (0, 0)] {
            let accepted = nodes[one].accepts(&nodes[other], &id("orders"));
            accepted.unwrap_or_else(|why| panic!("after {:?}: {why}", time.start.elapsed()));
        }
        serials.insert(nodes[0].identities.get(&id("orders")).unwrap().serial().clone());
        roots.extend(nodes[0].identities.bundles().get(DOMAIN).unwrap().roots().map(|r| r.to_vec()));
    }
    let (elapsed, status) = (time.start.elapsed(), nodes[0].status());
    assert!(elapsed > seconds(850) && elapsed < seconds(1200), "renewed at half of the life: {elapsed:?}");
    assert_eq!((status.failures, status.alarm), (0, Alarm::None));
    assert!(serials.len() >= 100 && roots.len() >= 4, "{} certificates, {} roots", serials.len(), roots.len());
}

#[tokio::test(start_paused = true)]
async fn control_away() {
    let time = Time::new();
    let ca = new_ca(1000, &time).await;
    let issuer = Flaky::new(&ca);
    let node = Node::new(issuer.clone(), &time, None);
    node.keeper.keep(&id("orders"));
    let first = node.keeper.ready(&id("orders")).await;
    issuer.away(true);
    let asked = issuer.asked.load(Ordering::Relaxed);
    tokio::time::sleep(seconds(650)).await;
    assert_eq!((node.status().alarm, node.status().last_error.as_deref()), (Alarm::Half, Some("connection refused")));
    tokio::time::sleep(seconds(200)).await;
    assert_eq!(node.status().alarm, Alarm::Urgent);
    assert_eq!(node.identities.get(&id("orders")).unwrap().serial(), first.serial(), "the old one is kept");
    node.accepts(&node, &id("orders")).unwrap();
    let tries = issuer.asked.load(Ordering::Relaxed) - asked;
    assert!((8..40).contains(&tries), "{tries} tries in 350 s");
    issuer.away(false);
    tokio::time::sleep(seconds(60)).await;
    assert_eq!((node.status().alarm, node.status().failures), (Alarm::None, 0));
    assert_ne!(node.identities.get(&id("orders")).unwrap().serial(), first.serial());
    // Beyond the end nothing is proved, until control is back.
    issuer.away(true);
    tokio::time::sleep(seconds(1100)).await;
    assert_eq!(node.status().alarm, Alarm::Without);
    assert!(node.accepts(&node, &id("orders")).unwrap_err().contains("expired"));
    issuer.away(false);
    tokio::time::sleep(seconds(151)).await;
    node.accepts(&node, &id("orders")).unwrap();
    assert_eq!(node.status().alarm, Alarm::None);
}

#[tokio::test(start_paused = true)]
async fn a_restart_while_control_is_away() {
    let (time, folder) = (Time::new(), tempfile::tempdir().unwrap());
    let ca = new_ca(1000, &time).await;
    let issuer = Flaky::new(&ca);
    let node = Node::new(issuer.clone(), &time, Some(folder.path()));
    node.keeper.keep(&id("orders"));
    let first = node.keeper.ready(&id("orders")).await;
    drop(node);
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    // Nothing is to be had of it: neither certificates nor the bundle.
    struct Gone(watch::Sender<Option<Arc<Trust>>>);
    impl Issuer for Gone {
        fn issue(&self, _: &SpiffeId, _: Option<Arc<Svid>>, _: Vec<u8>) -> Issuing {
            Box::pin(std::future::pending())
        }
        fn trust(&self) -> watch::Receiver<Option<Arc<Trust>>> {
            self.0.subscribe()
        }
    }
    let node = Node::new(Arc::new(Gone(watch::Sender::new(None))), &time, Some(folder.path()));
    node.keeper.keep(&id("orders"));
    let svid = node.identities.get(&id("orders")).expect("at once");
    assert_eq!(svid.serial(), first.serial());
    node.accepts(&node, &id("orders")).unwrap();
    drop(node);
    let mut files = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path());
    let file = files.find(|p| p.extension().is_some_and(|e| e == "pem")).unwrap();
    std::fs::write(&file, "damaged").unwrap();
    let node = Node::new(issuer.clone(), &time, Some(folder.path()));
    node.keeper.keep(&id("orders"));
    assert_ne!(node.keeper.ready(&id("orders")).await.serial(), first.serial(), "a damaged file is no obstacle");
}

#[tokio::test(start_paused = true)]
async fn root_rotation_and_revocation_count_at_once() {
    let time = Time::new();
    let ca = new_ca(1000, &time).await;
    let issuer = Flaky::new(&ca);
    let node = Node::new(issuer.clone(), &time, None);
    node.keeper.keep(&id("orders"));
    node.keeper.keep(&id("cart"));
    let orders = node.keeper.ready(&id("orders")).await;
    let cart = node.keeper.ready(&id("cart")).await;
    let mut changed = node.identities.changed();
    changed.mark_unchanged();
    let before = time.start.elapsed();
    ca.rotate(Rotate::Root { at_once: true }).await.unwrap();
    changed.changed().await.unwrap();
    assert_eq!(node.identities.bundles().get(DOMAIN).unwrap().roots().count(), 2);
    ca.revoke_identity(&id("orders")).await.unwrap();
    changed.changed().await.unwrap();
    assert!(time.start.elapsed() - before < Duration::from_millis(100));
    // The next certificate may be there already.
    assert!(node.judges(&orders).unwrap_err().contains("revoked"));
    node.accepts(&node, &id("cart")).unwrap();
    tokio::time::sleep(seconds(10)).await;
    node.accepts(&node, &id("orders")).unwrap();
    assert_ne!(node.identities.get(&id("orders")).unwrap().serial(), orders.serial());
    assert_eq!(node.identities.get(&id("cart")).unwrap().serial(), cart.serial());
    ca.revoke_serial(cart.serial()).await.unwrap();
    tokio::time::sleep(seconds(10)).await;
    assert_ne!(node.identities.get(&id("cart")).unwrap().serial(), cart.serial());
    node.accepts(&node, &id("cart")).unwrap();
}

/// Two minutes do not matter; a day fails closed, and mends itself with the clock.
#[tokio::test(start_paused = true)]
async fn clocks_that_are_wrong() {
    let time = Time::new();
    let ca = new_ca(86_400, &time).await;
    for off in [-119, 119] {
        let skewed = Time { off: Arc::new(AtomicI64::new(off)), ..time.clone() };
        let node = Node::new(Flaky::new(&ca), &skewed, None);
        node.keeper.keep(&id("orders"));
        node.keeper.ready(&id("orders")).await;
        node.accepts(&node, &id("orders")).unwrap();
        assert_eq!(node.status().alarm, Alarm::None);
    }
    let node = Node::new(Flaky::new(&ca), &time, None);
    node.keeper.keep(&id("orders"));
    let first = node.keeper.ready(&id("orders")).await;
    time.jump(25 * 3600);
    tokio::time::sleep(seconds(600)).await;
    let status = node.status();
    assert_eq!(status.alarm, Alarm::Without);
    assert!(status.last_error.clone().unwrap().contains("compare the clocks"), "{status:?}");
    assert!(node.accepts(&node, &id("orders")).is_err());
    time.jump(-25 * 3600);
    tokio::time::sleep(seconds(20)).await;
    assert_eq!(node.status().alarm, Alarm::None);
    node.accepts(&node, &id("orders")).unwrap();
    assert_eq!(node.identities.get(&id("orders")).unwrap().serial(), first.serial());
}
