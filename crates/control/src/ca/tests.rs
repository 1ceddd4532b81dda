use super::{core::Core, csr::Request, seal::Sealed, state::Phase, time::at, *};
use crate::ca::authority::fingerprint;
use ::core::sync::atomic::{AtomicU64, Ordering};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use selvedge_wire::spiffe::SpiffeId;
use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;
use x509_parser::{extensions::GeneralName, parse_x509_certificate, prelude::FromDer, revocation_list};

const DOMAIN: &str = "mesh.example";
const START: u64 = 1_800_000_000;
const HOUR: u64 = 3600;

fn id(account: &str) -> SpiffeId {
    SpiffeId::workload(DOMAIN, "shop", account).unwrap()
}

fn csr(key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serialize_request(key).unwrap().der().to_vec()
}

fn new_csr() -> Vec<u8> {
    csr(&KeyPair::generate().unwrap())
}

/// A clock that stands still until it is moved.
#[derive(Clone)]
struct Hand(Arc<AtomicU64>);

impl Hand {
    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(START)))
    }

    fn clock(&self) -> Clock {
        let seconds = Arc::clone(&self.0);
        Arc::new(move || at(seconds.load(Ordering::Relaxed)))
    }

    fn forward(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }

    fn back(&self, seconds: u64) {
        self.0.fetch_sub(seconds, Ordering::Relaxed);
    }

    fn now(&self) -> SystemTime {
        at(self.0.load(Ordering::Relaxed))
    }
}

fn options(lifetimes: Lifetimes) -> Options {
    Options { trust_domain: Some(DOMAIN.to_owned()), mesh: None, lifetimes, files: None }
}

fn passphrase() -> Key {
    Key::Passphrase("correct horse battery".to_owned())
}

async fn open(store: &Arc<Memory>, hand: &Hand) -> Result<Ca, Error> {
    Ca::open(Arc::clone(store) as _, &passphrase(), options(Lifetimes::default()), hand.clock()).await
}

/// Whether a chain leads to a root of the bundle and every certificate in it is valid at `now`.
fn verifies(chain: &[Der], bundle: &Bundle, now: SystemTime) -> Result<(), String> {
    let now = i64::try_from(time::seconds(now)).unwrap();
    for (i, der) in chain.iter().enumerate() {
        let (_, certificate) = parse_x509_certificate(der).map_err(|e| e.to_string())?;
        let validity = certificate.validity();
        if now < validity.not_before.timestamp() || now > validity.not_after.timestamp() {
            return Err(format!("certificate {i} is not valid at {now}"));
        }
        let signed_by = |issuer: &Der| {
            let (_, issuer) = parse_x509_certificate(issuer).unwrap();
            certificate.issuer() == issuer.subject() && certificate.verify_signature(Some(issuer.public_key())).is_ok()
        };
        match chain.get(i + 1) {
            Some(issuer) if !signed_by(issuer) => return Err(format!("certificate {i} is not signed by the next")),
            None if !bundle.roots.iter().any(signed_by) => return Err("no root of the bundle has signed it".to_owned()),
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn an_svid_is_as_the_standard_wants_it() {
    let now = at(START);
    let core = Core::create(DOMAIN, Lifetimes::default(), None, now).unwrap();
    let request = Request::read(&new_csr(), &id("orders")).unwrap();
    let leaf = core.issue(&id("orders"), &request, None, now).unwrap();
    assert_eq!((leaf.not_before, leaf.not_after), (START - 120, START + 24 * HOUR));
    assert_eq!(leaf.chain.len(), 2);
    verifies(&leaf.chain, core.bundle(), now).unwrap();
    let (_, certificate) = parse_x509_certificate(&leaf.chain[0]).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, [GeneralName::URI("spiffe://mesh.example/ns/shop/sa/orders")]);
    let usage = certificate.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && extended.server_auth);
    assert!(!certificate.is_ca());
    assert_eq!(certificate.raw_serial(), leaf.serial.as_bytes());
    let (_, intermediate) = parse_x509_certificate(&leaf.chain[1]).unwrap();
    let constraints = intermediate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca && constraints.value.path_len_constraint == Some(0));
    let usage = intermediate.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
    assert_eq!(intermediate.validity().not_after.timestamp(), i64::try_from(START + 365 * 24 * HOUR).unwrap());
    let short = core.issue(&id("orders"), &request, Some(Duration::from_secs(5)), now).unwrap();
    assert_eq!(short.not_after, START + 5);
    let foreign = SpiffeId::workload("other.example", "shop", "orders").unwrap();
    assert!(matches!(core.issue(&foreign, &request, None, now), Err(Error::Foreign { .. })));
    let domain: SpiffeId = "spiffe://mesh.example".parse().unwrap();
    assert!(matches!(core.issue(&domain, &request, None, now), Err(Error::Foreign { .. })));
}

fn quick() -> Lifetimes {
    Lifetimes {
        root: Duration::from_secs(4000),
        intermediate: Duration::from_secs(1000),
        svid: Duration::from_secs(100),
        overlap: Duration::from_secs(100),
        grace: Duration::ZERO,
    }
}

/// Nodes renew at half of their life and take a bundle with it; each pair of nodes must accept each other at any time,
/// through many generations of intermediates and roots, also across restarts of the CA.
#[test]
fn rotation_never_parts_nodes() {
    let mut core = Core::create(DOMAIN, quick(), None, at(START)).unwrap();
    let request = Request::read(&new_csr(), &id("orders")).unwrap();
    let mut nodes = Vec::new();
    for _ in 0..5 {
        let leaf = core.issue(&id("orders"), &request, None, at(START)).unwrap();
        nodes.push((leaf, Arc::clone(core.bundle())));
    }
    let (mut roots, mut intermediates) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    let mut sequence = core.bundle().sequence;
    for second in (0..30_000).step_by(10) {
        let now = at(START + second);
        core.tick(now, true).unwrap();
        assert!(core.bundle().sequence >= sequence);
        sequence = core.bundle().sequence;
        if second % 700 == 0 {
            core = Core::restore(&core.save(), DOMAIN, quick(), None, now).unwrap();
        }
        let turn = usize::try_from(second / 10 % 5).unwrap();
        nodes[turn] = (core.issue(&id("orders"), &request, None, now).unwrap(), Arc::clone(core.bundle()));
        for (leaf, bundle) in &nodes {
            for (leaf, bundle) in [(leaf, &nodes[turn].1), (&nodes[turn].0, bundle)] {
                verifies(&leaf.chain, bundle, now).unwrap_or_else(|why| panic!("second {second}: {why}"));
            }
        }
        roots.extend(core.bundle().roots.iter().map(|r| fingerprint(r)));
        intermediates.insert(fingerprint(&nodes[0].0.chain[1]));
        assert!(core.bundle().roots.len() <= 2 && core.authorities().len() <= 6, "{:?}", core.authorities());
    }
    assert!(roots.len() >= 8 && intermediates.len() >= 30, "{} roots, {}", roots.len(), intermediates.len());
}

#[test]
fn rotation_by_command() {
    let mut core = Core::create(DOMAIN, Lifetimes::default(), None, at(START)).unwrap();
    let first = core.bundle().roots.clone();
    core.rotate(Rotate::Intermediate, at(START)).unwrap();
    assert_eq!((core.bundle().roots.clone(), core.authorities().len()), (first.clone(), 3));
    core.rotate(Rotate::Root { at_once: false }, at(START + 10)).unwrap();
    assert_eq!(core.bundle().roots.len(), 2);
    assert_eq!(core.root_of_issue(at(START + 10)).unwrap(), &first[0]);
    let again = core.rotate(Rotate::Root { at_once: false }, at(START + 20));
    assert!(matches!(again, Err(Error::Rotating { at }) if at == START + 10 + 24 * HOUR), "{again:?}");
    core.tick(at(START + 10 + 24 * HOUR), true).unwrap();
    assert_ne!(core.root_of_issue(at(START + 10 + 24 * HOUR)).unwrap(), &first[0]);
    assert_eq!(core.bundle().roots.len(), 2);
    core.tick(at(START + 10 + 73 * HOUR), true).unwrap();
    assert_eq!(core.bundle().roots.len(), 1);
    core.rotate(Rotate::Root { at_once: true }, at(START + 100 * HOUR)).unwrap();
    let active = core.authorities().into_iter().filter(|a| a.root && a.phase == Phase::Active).count();
    assert_eq!((active, core.bundle().roots.len()), (1, 2));
}

/// A clock that jumps a year ahead and back, or beyond the root's end, never leaves the CA without a root or its nodes
/// without one they know.
#[test]
fn a_jumping_clock_does_not_end_the_ca() {
    let mut core = Core::create(DOMAIN, Lifetimes::default(), None, at(START)).unwrap();
    let request = Request::read(&new_csr(), &id("orders")).unwrap();
    let first = core.bundle().roots[0].clone();
    core.tick(at(START + 400 * 24 * HOUR), true).unwrap();
    core.tick(at(START + HOUR), true).unwrap();
    let leaf = core.issue(&id("orders"), &request, None, at(START + HOUR)).unwrap();
    verifies(&leaf.chain, core.bundle(), at(START + HOUR)).unwrap();
    assert!(core.bundle().roots.contains(&first));
    let late = at(START + 4000 * 24 * HOUR);
    core.tick(late, true).unwrap();
    let leaf = core.issue(&id("orders"), &request, None, late).unwrap();
    verifies(&leaf.chain, core.bundle(), late).unwrap();
}

#[test]
fn revocation_of_a_certificate_and_of_an_identity() {
    let mut core = Core::create(DOMAIN, Lifetimes::default(), None, at(START)).unwrap();
    let request = Request::read(&new_csr(), &id("orders")).unwrap();
    let one = core.issue(&id("orders"), &request, None, at(START)).unwrap();
    let two = core.issue(&id("orders"), &request, None, at(START)).unwrap();
    let may = |core: &Core, leaf: &Leaf, now: u64| {
        core.may_renew(&id("orders"), &leaf.serial, leaf.not_before, leaf.not_after, at(now))
    };
    core.revoke_serial(&one.serial, at(START + 10)).unwrap();
    assert!(matches!(may(&core, &one, START + 11), Err(Error::Revoked { since, .. }) if since == START + 10));
    may(&core, &two, START + 11).unwrap();
    let bundle = Arc::clone(core.bundle());
    let (_, list) = revocation_list::CertificateRevocationList::from_der(&bundle.crls[0]).unwrap();
    assert_eq!(list.iter_revoked_certificates().next().unwrap().raw_serial(), one.serial.as_bytes());
    let (_, intermediate) = parse_x509_certificate(&one.chain[1]).unwrap();
    list.verify_signature(intermediate.public_key()).unwrap();
    core.revoke_identity(&id("orders"), std::slice::from_ref(&two.serial), at(START + 20)).unwrap();
    assert!(matches!(may(&core, &two, START + 21), Err(Error::Revoked { .. })));
    let at_once = core.issue(&id("orders"), &request, None, at(START + 20)).unwrap();
    may(&core, &at_once, START + 21).unwrap();
    assert_eq!((at_once.not_before, at_once.not_after), (START + 20, START + 20 + 24 * HOUR));
    let mut again = core.clone();
    again.revoke_identity(&id("orders"), &[], at(START + 20)).unwrap();
    assert!(matches!(may(&again, &at_once, START + 21), Err(Error::Revoked { .. })), "twice in one second");
    // Of another control plane, whose clock is fast, from before the revocation; and a new one of one that is late.
    let fast = Core::create(DOMAIN, Lifetimes::default(), None, at(START)).unwrap();
    let before = fast.issue(&id("orders"), &request, None, at(START + 19 + 120)).unwrap();
    assert!(matches!(may(&core, &before, START + 21), Err(Error::Revoked { .. })));
    let late = core.issue(&id("orders"), &request, None, at(START + 25 - 120)).unwrap();
    may(&core, &late, START + 25).unwrap();
    let usual = core.issue(&id("orders"), &request, None, at(START + 20 + 300)).unwrap();
    assert_eq!(usual.not_before, START + 20 + 180);
    let later = core.issue(&id("orders"), &request, None, at(START + 21)).unwrap();
    may(&core, &later, START + 22).unwrap();
    may(&core, &later, START + 25 * HOUR).unwrap_err();
    assert!(core.bundle().revoked.iter().all(|r| !r.concerns(&id("cart"), &later.serial, START - 120)));
    let number = core.bundle().sequence;
    // A day until the end of the last one, and seven in which one that has ended may come back.
    assert!(!core.clone().tick(at(START + 20 + 3 * 24 * HOUR), true).unwrap());
    let ended = at(START + 20 + (8 * 24 + 1) * HOUR);
    core.clone().tick(ended, false).unwrap();
    assert!(core.tick(ended, true).unwrap());
    assert!(core.bundle().revoked.is_empty() && core.bundle().crls.is_empty() && core.bundle().sequence > number);
}

#[tokio::test]
async fn a_ca_is_the_same_after_a_restart() {
    let (store, hand) = (Arc::new(Memory::new()), Hand::new());
    let ca = open(&store, &hand).await.unwrap();
    let bundle = ca.bundle();
    ca.rotate(Rotate::Root { at_once: false }).await.unwrap();
    let rotated = ca.bundle();
    assert_eq!((bundle.roots.len(), rotated.roots.len()), (1, 2));
    drop(ca);
    let ca = open(&store, &hand).await.unwrap();
    assert_eq!((&ca.bundle().roots, ca.bundle().sequence), (&rotated.roots, rotated.sequence));
    let raw: Vec<u8> = store.list("").await.unwrap().into_iter().flat_map(|(_, value)| value).collect();
    assert!(!raw.windows(DOMAIN.len()).any(|w| w == DOMAIN.as_bytes()), "something is stored in the clear");
    let unnamed =
        |mesh: &str| Options { trust_domain: None, mesh: Some(mesh.to_owned()), ..options(Lifetimes::default()) };
    let found = Ca::open(Arc::clone(&store) as _, &passphrase(), unnamed("fresh.example"), hand.clock()).await.unwrap();
    assert_eq!(found.trust_domain(), DOMAIN, "that of the store");
    drop(found);
    let fresh = |options| {
        let (store, hand) = (Arc::new(Memory::new()), hand.clone());
        async move { Ca::open(store as _, &passphrase(), options, hand.clock()).await }
    };
    assert_eq!(fresh(unnamed("fresh.example")).await.unwrap().trust_domain(), "fresh.example");
    let both = Options { trust_domain: Some(DOMAIN.to_owned()), ..unnamed("fresh.example") };
    let refused = fresh(both).await.unwrap_err().to_string();
    assert!(refused.contains(DOMAIN) && refused.contains("the Mesh says fresh.example"), "{refused}");
    let other = Options { trust_domain: Some("other.example".to_owned()), ..options(Lifetimes::default()) };
    let refused = Ca::open(Arc::clone(&store) as _, &passphrase(), other, hand.clock()).await;
    assert!(
        matches!(&refused, Err(Error::OtherDomain { stored, wanted }) if stored == DOMAIN && wanted == "other.example")
    );
    let wrong = Key::Passphrase("correct horse batterz".to_owned());
    let refused = Ca::open(Arc::clone(&store) as _, &wrong, options(Lifetimes::default()), hand.clock()).await;
    assert!(matches!(refused, Err(Error::Store(StoreError::WrongKey { .. }))), "{refused:?}");
    let short = Key::Passphrase("short".to_owned());
    let refused = Sealed::open(Arc::new(Memory::new()), &short).await;
    assert!(matches!(refused, Err(Error::Store(StoreError::Key { .. }))), "{refused:?}");
}

/// With a full disk nothing is half done: what was stays in use, and the step is made when there is room.
#[tokio::test]
async fn a_full_disk_loses_nothing() {
    let (store, hand) = (Arc::new(Memory::new()), Hand::new());
    store.set_full(true);
    let none = open(&store, &hand).await;
    assert!(matches!(none, Err(Error::Store(StoreError::Full { .. }))), "{none:?}");
    store.set_full(false);
    let ca = open(&store, &hand).await.unwrap();
    let (before, mut seen) = (ca.bundle(), ca.bundles());
    let token = ca.create_token(&order(HOUR, 1)).await.unwrap().reveal();
    store.set_full(true);
    let full = |result: Result<(), Error>| matches!(result, Err(Error::Store(StoreError::Full { .. })));
    assert!(full(ca.rotate(Rotate::Root { at_once: true }).await));
    assert!(full(ca.revoke_identity(&id("orders")).await));
    assert!(full(ca.join(&token, None, &new_csr()).await.map(|_| ())), "a token must not be taken without a trace");
    assert_eq!((ca.bundle(), seen.has_changed().unwrap()), (Arc::clone(&before), false));
    store.set_full(false);
    ca.join(&token, None, &new_csr()).await.unwrap();
    ca.rotate(Rotate::Root { at_once: true }).await.unwrap();
    assert_eq!(seen.borrow_and_update().roots.len(), 2);
}

fn order(life: u64, uses: u32) -> Order {
    Order { id: id("orders"), life: Duration::from_secs(life), uses }
}

fn refusal(result: Result<Issued, Error>) -> tokens::Refused {
    match result {
        Err(Error::Token(refused)) => refused,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn joining_with_a_token() {
    let (store, hand) = (Arc::new(Memory::new()), Hand::new());
    let ca = open(&store, &hand).await.unwrap();
    let token = ca.create_token(&order(HOUR, 1)).await.unwrap();
    assert_eq!((token.root, token.trust_domain.as_str()), (fingerprint(&ca.bundle().roots[0]), DOMAIN));
    let text = token.reveal();
    assert_eq!(text.parse::<Token>().unwrap(), token);
    let cart = id("cart");
    let other = refusal(ca.join(&text, Some(&cart), &new_csr()).await);
    assert!(matches!(other, tokens::Refused::Identity { .. }));
    assert!(matches!(ca.join(&text, None, b"no request").await, Err(Error::Request(_))));
    let key = KeyPair::generate().unwrap();
    let issued = ca.join(&text, Some(&id("orders")), &csr(&key)).await.unwrap();
    assert_eq!(issued.id, id("orders"));
    verifies(&issued.leaf.chain, &issued.bundle, hand.now()).unwrap();
    // The same node again, whose answer was lost; and another one.
    ca.join(&text, None, &csr(&key)).await.unwrap();
    assert!(matches!(refusal(ca.join(&text, None, &new_csr()).await), tokens::Refused::Used { .. }));
    hand.forward(HOUR);
    assert_eq!(refusal(ca.join(&text, None, &csr(&key)).await), tokens::Refused::Expired { ago: 0 });
    hand.forward(25 * HOUR);
    let three = ca.create_token(&order(60, 3)).await.unwrap().reveal();
    assert_eq!(refusal(ca.join(&text, None, &csr(&key)).await), tokens::Refused::Unknown, "forgotten after a day");
    for _ in 0..3 {
        ca.join(&three, None, &new_csr()).await.unwrap();
    }
    assert!(matches!(refusal(ca.join(&three, None, &new_csr()).await), tokens::Refused::Used { .. }));
    let listed = ca.list_tokens().await.unwrap();
    assert_eq!((listed.len(), listed[0].used, listed[0].uses), (1, 3, 3));
    assert!(ca.delete_token(&listed[0].id).await.unwrap() && !ca.delete_token(&listed[0].id).await.unwrap());
    assert_eq!(refusal(ca.join(&three, None, &new_csr()).await), tokens::Refused::Unknown);
}

#[tokio::test]
async fn tokens_that_are_none() {
    let (store, hand) = (Arc::new(Memory::new()), Hand::new());
    let ca = open(&store, &hand).await.unwrap();
    let text = ca.create_token(&order(HOUR, 1)).await.unwrap().reveal();
    for wrong in ["", "hello", "svj2_AAAA", &"x".repeat(5000)] {
        assert_eq!(refusal(ca.join(wrong, None, &new_csr()).await), tokens::Refused::Malformed);
    }
    let cut = &text[..text.len() - 3];
    assert_eq!(refusal(ca.join(cut, None, &new_csr()).await), tokens::Refused::Damaged);
    let elsewhere = Options { trust_domain: Some("other.example".to_owned()), ..options(Lifetimes::default()) };
    let other = Ca::open(Arc::new(Memory::new()), &passphrase(), elsewhere, hand.clock()).await.unwrap();
    assert!(matches!(refusal(other.join(&text, None, &new_csr()).await), tokens::Refused::OtherDomain { .. }));
    let fresh = open(&Arc::new(Memory::new()), &hand).await.unwrap();
    assert_eq!(refusal(fresh.join(&text, None, &new_csr()).await), tokens::Refused::Unknown);
    let foreign = Order { id: SpiffeId::workload("other.example", "a", "b").unwrap(), ..order(HOUR, 1) };
    assert!(matches!(ca.create_token(&foreign).await, Err(Error::Foreign { .. })));
}

#[tokio::test]
async fn renewing() {
    let (store, hand) = (Arc::new(Memory::new()), Hand::new());
    let ca = open(&store, &hand).await.unwrap();
    let token = ca.create_token(&order(HOUR, 1)).await.unwrap().reveal();
    let issued = ca.join(&token, None, &new_csr()).await.unwrap();
    let leaf = &issued.leaf;
    let (serial, not_before, not_after) = (leaf.serial.clone(), leaf.not_before, leaf.not_after);
    let current = Current { id: issued.id.clone(), serial, not_before, not_after };
    hand.forward(12 * HOUR);
    let next = ca.renew(&current, &new_csr()).unwrap();
    assert_eq!((next.id.clone(), next.leaf.not_after), (current.id.clone(), leaf.not_after + 12 * HOUR));
    ca.revoke_identity(&id("orders")).await.unwrap();
    assert!(matches!(ca.renew(&current, &new_csr()), Err(Error::Revoked { .. })));
    let bundle = ca.bundle();
    let (_, list) = revocation_list::CertificateRevocationList::from_der(&bundle.crls[0]).unwrap();
    assert_eq!(list.iter_revoked_certificates().count(), 2, "both certificates that were issued are in the CRL");
    hand.forward(13 * HOUR);
    assert!(matches!(ca.renew(&current, &new_csr()), Err(Error::Expired { ago }) if ago == HOUR));
    let own = ca.issue_own(&id("control"), &new_csr()).unwrap();
    assert_eq!(own.leaf.chain.last(), ca.bundle().roots.first());
}

/// Who has stolen a token, or a node's key with the token that it joined by, does not come back after a revocation.
#[tokio::test]
async fn a_revoked_identity_cannot_join_again_by_an_old_token() {
    let (store, hand) = (Arc::new(Memory::new()), Hand::new());
    let ca = open(&store, &hand).await.unwrap();
    let (used, unused) =
        (ca.create_token(&order(HOUR, 1)).await.unwrap(), ca.create_token(&order(HOUR, 1)).await.unwrap());
    let other = Order { id: id("cart"), ..order(HOUR, 1) };
    let other = ca.create_token(&other).await.unwrap();
    let stolen = KeyPair::generate().unwrap();
    ca.join(&used.reveal(), None, &csr(&stolen)).await.unwrap();
    hand.forward(600);
    ca.revoke_identity(&id("orders")).await.unwrap();
    for token in [used, unused] {
        assert_eq!(refusal(ca.join(&token.reveal(), None, &csr(&stolen)).await), tokens::Refused::Unknown);
    }
    ca.join(&other.reveal(), None, &new_csr()).await.unwrap();
    let token = ca.create_token(&order(HOUR, 1)).await.unwrap();
    ca.join(&token.reveal(), None, &new_csr()).await.unwrap();
}

/// Two control planes with one store never tread on each other, and each sees what the other did.
#[tokio::test]
async fn two_control_planes_share_a_store() {
    let (store, hand) = (Arc::new(Memory::new()), Hand::new());
    let one = open(&store, &hand).await.unwrap();
    let two = open(&store, &hand).await.unwrap();
    assert_eq!(one.bundle().roots, two.bundle().roots);
    one.rotate(Rotate::Root { at_once: true }).await.unwrap();
    two.revoke_identity(&id("orders")).await.unwrap();
    one.tick().await.unwrap();
    assert_eq!((one.bundle().roots.len(), one.bundle().revoked.len()), (2, 1));
    assert_eq!((&one.bundle().roots, one.bundle().sequence), (&two.bundle().roots, two.bundle().sequence));
    let token = one.create_token(&order(HOUR, 1)).await.unwrap().reveal();
    let (a, b) = (new_csr(), new_csr());
    let (a, b) = tokio::join!(one.join(&token, None, &a), two.join(&token, None, &b));
    assert!(a.is_ok() != b.is_ok(), "one of them may use the token: {a:?} {b:?}");
}

async fn open_file(folder: &Path, hand: &Hand) -> Result<Ca, Error> {
    let store = File::open(&folder.join("ca.redb"))?;
    let key = Key::File(folder.join("ca.key"));
    Ca::open(Arc::new(store), &key, options(Lifetimes::default()), hand.clock()).await
}

#[tokio::test]
async fn a_store_in_a_file() {
    let (folder, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let (path, key) = (folder.path().join("ca.redb"), folder.path().join("ca.key"));
    let ca = open_file(folder.path(), &hand).await.unwrap();
    let roots = ca.bundle().roots.clone();
    let token = ca.create_token(&order(HOUR, 1)).await.unwrap().reveal();
    for file in [&path, &key] {
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    let second = open_file(folder.path(), &hand).await;
    assert!(matches!(second, Err(Error::Store(StoreError::Locked { .. }))), "{second:?}");
    drop(ca);
    let ca = open_file(folder.path(), &hand).await.unwrap();
    assert_eq!(ca.bundle().roots, roots);
    ca.join(&token, None, &new_csr()).await.unwrap();
    drop(ca);

    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let open_to_all = open_file(folder.path(), &hand).await.unwrap_err().to_string();
    assert!(open_to_all.contains("chmod 600"), "{open_to_all}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let right = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let missing = open_file(folder.path(), &hand).await;
    assert!(matches!(missing, Err(Error::Store(StoreError::KeyMissing { .. }))), "{missing:?}");
    assert!(!key.exists(), "a missing key is not made anew");
    std::fs::write(&key, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n").unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let wrong = open_file(folder.path(), &hand).await;
    assert!(matches!(wrong, Err(Error::Store(StoreError::WrongKey { .. }))), "{wrong:?}");
    std::fs::write(&key, "not a key").unwrap();
    assert!(matches!(open_file(folder.path(), &hand).await, Err(Error::Store(StoreError::Key { .. }))));
    std::fs::write(&key, right).unwrap();
    open_file(folder.path(), &hand).await.unwrap();
}

/// Whatever happens to the bytes of the file, it is an error that says so, or the records are intact.
#[tokio::test]
async fn a_damaged_file() {
    let (folder, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let path = folder.path().join("ca.redb");
    let ca = open_file(folder.path(), &hand).await.unwrap();
    let roots = ca.bundle().roots.clone();
    drop(ca);
    let right = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for turn in 0..40_usize {
        let mut bytes = right.clone();
        match turn {
            0 => bytes = b"something else".to_vec(),
            1 => bytes.truncate(100),
            2 => bytes.truncate(right.len() / 2),
            _ => {
                // Within what is used; the rest of the file is empty pages.
                let place = turn * 4096 / 7 % right.len();
                bytes[place] ^= 0xff;
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        match open_file(folder.path(), &hand).await {
            Ok(ca) => assert_eq!(ca.bundle().roots, roots, "turn {turn}"),
            Err(Error::Store(StoreError::Corrupt { .. } | StoreError::Newer { .. } | StoreError::WrongKey { .. }))
            | Err(Error::Damaged { .. }) => refused += 1,
            Err(other) => panic!("turn {turn}: {other:?}"),
        }
    }
    assert!(refused >= 3, "{refused}");
}

#[tokio::test]
async fn a_store_of_a_newer_version() {
    let store = Arc::new(Memory::new());
    let put = vec![("format".to_owned(), b"2".to_vec())];
    store.write(store::Batch { put, ..Default::default() }).await.unwrap();
    let newer = open(&store, &Hand::new()).await;
    assert!(matches!(newer, Err(Error::Store(StoreError::Newer { .. }))), "{newer:?}");
}

/// What `openssl` or Vault would write.
fn write_files(folder: &Path, root: &authority::Authority, root_file: bool) -> Files {
    write_files_of(folder, root, root_file, (2020, 2050))
}

/// From the beginning of one year until that of another.
fn write_files_of(folder: &Path, root: &authority::Authority, root_file: bool, years: (i32, i32)) -> Files {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
    params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
    let certificate = root.sign_foreign(&params, &key);
    let pem = |der: &[u8]| {
        use base64::Engine;
        let text = base64::prelude::BASE64_STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    };
    let files = Files {
        chain: folder.join("tls.crt"),
        key: folder.join("tls.key"),
        roots: root_file.then(|| folder.join("ca.crt")),
    };
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    match &files.roots {
        Some(path) => {
            std::fs::write(path, pem(root.certificate())).unwrap();
            std::fs::write(&files.chain, pem(&certificate)).unwrap();
        }
        None => std::fs::write(&files.chain, pem(&certificate) + &pem(root.certificate())).unwrap(),
    }
    files
}

#[tokio::test]
async fn an_intermediate_from_files() {
    let (folder, hand, store) = (tempfile::tempdir().unwrap(), Hand::new(), Arc::new(Memory::new()));
    let life = Duration::from_secs(9 * 365 * 24 * HOUR);
    let first = authority::Authority::root(DOMAIN, life, at(START)).unwrap();
    let second = authority::Authority::root(DOMAIN, life, at(START)).unwrap();
    let files = write_files(folder.path(), &first, true);
    let with = Options { files: Some(files), ..options(Lifetimes::default()) };
    let ca = Ca::open(Arc::clone(&store) as _, &passphrase(), with.clone(), hand.clock()).await.unwrap();
    let issue = || ca.issue_own(&id("orders"), &new_csr()).unwrap().leaf.chain;
    assert_eq!(
        (issue()[2].clone(), ca.bundle().roots.clone()),
        (first.certificate().clone(), vec![first.certificate().clone()])
    );
    verifies(&issue()[..2], &ca.bundle(), hand.now()).unwrap();
    assert!(matches!(ca.rotate(Rotate::Intermediate).await, Err(Error::FromFiles)));

    let before = issue()[1].clone();
    write_files(folder.path(), &first, true);
    ca.tick().await.unwrap();
    assert_ne!(issue()[1], before, "an intermediate of the same root is used at once");
    let alarms = || ca.expiries().iter().map(|e| (e.name(), e.alarm)).collect::<Vec<_>>();
    assert_eq!(
        (ca.files_unusable(), alarms()),
        (Some(false), vec![("root", Alarm::None), ("intermediate", Alarm::None)])
    );
    std::fs::write(folder.path().join("tls.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    ca.tick().await.unwrap();
    assert_eq!(ca.files_unusable(), Some(true), "until they fit again");
    write_files_of(folder.path(), &first, true, (2020, 2021));
    ca.tick().await.unwrap();
    assert_eq!((ca.files_unusable(), alarms()[1].1), (Some(true), Alarm::None), "one that has ended is not taken");
    verifies(&issue()[..2], &ca.bundle(), hand.now()).unwrap();

    write_files(folder.path(), &second, true);
    ca.tick().await.unwrap();
    assert_eq!(ca.bundle().roots.len(), 2);
    assert_eq!(&issue()[2], first.certificate(), "nodes must know the new root before it counts");
    hand.forward(24 * HOUR);
    ca.tick().await.unwrap();
    assert_eq!(&issue()[2], second.certificate());
    hand.forward(26 * HOUR);
    ca.tick().await.unwrap();
    assert_eq!(ca.bundle().roots.len(), 2, "the clock may be wrong");
    hand.forward(HOUR);
    ca.tick().await.unwrap();
    assert_eq!(ca.bundle().roots, [second.certificate().clone()]);

    let chain = issue()[..2].to_vec();
    let own =
        Ca::open(Arc::clone(&store) as _, &passphrase(), options(Lifetimes::default()), hand.clock()).await.unwrap();
    verifies(&chain, &own.bundle(), hand.now()).unwrap();
    assert_eq!(own.bundle().roots.len(), 2, "back to an own root, with the former one in the bundle");
}

/// Control planes that share files: what one of them stores does not bring the other's new intermediate forward.
#[tokio::test]
async fn a_new_root_from_files_waits_at_all_control_planes() {
    let (hand, store) = (Hand::new(), Arc::new(Memory::new()));
    let life = Duration::from_secs(9 * 365 * 24 * HOUR);
    let first = authority::Authority::root(DOMAIN, life, at(START)).unwrap();
    let second = authority::Authority::root(DOMAIN, life, at(START)).unwrap();
    let (folder, leads) = (tempfile::tempdir().unwrap(), tokio::sync::watch::Sender::new(true));
    let with = Options { files: Some(write_files(folder.path(), &first, true)), ..options(Lifetimes::default()) };
    let shared = async |leads: &tokio::sync::watch::Sender<bool>| {
        let (store, clock) = (Arc::clone(&store) as _, hand.clock());
        Ca::open_shared(store, &passphrase(), with.clone(), clock, leads.subscribe()).await.unwrap()
    };
    let one = shared(&leads).await;
    let two = shared(&tokio::sync::watch::Sender::new(false)).await;
    let root = |ca: &Ca| ca.issue_own(&id("orders"), &new_csr()).unwrap().leaf.chain[2].clone();
    write_files(folder.path(), &second, true);
    for ca in [&one, &two, &one] {
        ca.tick().await.unwrap();
    }
    one.revoke_identity(&id("cart")).await.unwrap();
    two.tick().await.unwrap();
    assert_eq!((root(&one), root(&two)), (first.certificate().clone(), first.certificate().clone()));
    assert_eq!(two.bundle(), one.bundle());
    hand.forward(25 * HOUR);
    for ca in [&one, &two] {
        ca.tick().await.unwrap();
    }
    assert_eq!((root(&one), root(&two)), (second.certificate().clone(), second.certificate().clone()));
}

#[tokio::test]
async fn a_clock_that_jumps_and_comes_back_forgets_nothing() {
    let (hand, store) = (Hand::new(), Arc::new(Memory::new()));
    let ca = open(&store, &hand).await.unwrap();
    ca.tick().await.unwrap();
    ca.revoke_identity(&id("orders")).await.unwrap();
    let year = 400 * 24 * HOUR;
    hand.forward(year);
    for _ in 0..10 {
        hand.forward(60);
        ca.tick().await.unwrap();
    }
    assert!(!ca.bundle().revoked.is_empty(), "the clock may be wrong");
    hand.back(year);
    ca.tick().await.unwrap();
    assert!(!ca.bundle().revoked.is_empty());
    hand.forward(year);
    for _ in 0..=61 {
        hand.forward(60);
        ca.tick().await.unwrap();
    }
    assert!(ca.bundle().revoked.is_empty(), "it is right, as nobody has mended it");
}

#[tokio::test]
async fn files_that_cannot_be_used() {
    let (folder, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let life = Duration::from_secs(9 * 365 * 24 * HOUR);
    let root = authority::Authority::root(DOMAIN, life, at(START)).unwrap();
    let files = write_files(folder.path(), &root, false);
    let open = async |files: &Files| {
        let with = Options { files: Some(files.clone()), ..options(Lifetimes::default()) };
        Ca::open(Arc::new(Memory::new()), &passphrase(), with, hand.clock())
            .await
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    open(&files).await.unwrap();
    let chain = std::fs::read_to_string(&files.chain).unwrap();
    let leaf_only = chain.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
    std::fs::write(&files.chain, leaf_only).unwrap();
    assert!(open(&files).await.unwrap_err().contains("append the root"));
    let wrong_root = Files { roots: Some(folder.path().join("ca.crt")), ..files.clone() };
    assert!(open(&wrong_root).await.unwrap_err().contains("No such file"));
    std::fs::write(&files.chain, "nothing").unwrap();
    assert!(open(&files).await.unwrap_err().contains("there is no certificate"));
    std::fs::write(&files.chain, chain).unwrap();
    std::fs::write(&files.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(open(&files).await.unwrap_err().contains("do not belong together"));
    std::fs::write(&files.key, "").unwrap();
    assert!(open(&files).await.unwrap_err().contains("no private key"));
}

/// What is due by time is done by who leads; the others take it over, and lead on when they are asked to.
#[tokio::test]
async fn only_the_leader_rotates() {
    let (store, hand) = (Arc::new(Memory::new()), Hand::new());
    let open = async |leads: &watch::Sender<bool>| {
        let store = Arc::clone(&store) as _;
        Ca::open_shared(store, &passphrase(), options(quick()), hand.clock(), leads.subscribe()).await.unwrap()
    };
    let (first, second) = (watch::Sender::new(true), watch::Sender::new(false));
    let (one, two) = (open(&first).await, open(&second).await);
    let before = two.authorities();
    assert_eq!(one.bundle().roots, two.bundle().roots);
    hand.forward(700);
    two.tick().await.unwrap();
    assert_eq!(two.authorities(), before, "it is due, and not for this one to do");
    one.tick().await.unwrap();
    assert_ne!(one.authorities(), before);
    two.tick().await.unwrap();
    assert_eq!(two.authorities(), one.authorities());
    first.send_replace(false);
    second.send_replace(true);
    hand.forward(700);
    let before = one.authorities();
    one.tick().await.unwrap();
    assert_eq!(one.authorities(), before);
    two.tick().await.unwrap();
    one.tick().await.unwrap();
    assert_ne!(one.authorities(), before);
    assert_eq!(two.authorities(), one.authorities());
}

/// A node that was away gets its next certificate until the grace is over; one that was revoked never.
#[tokio::test]
async fn coming_back_in_the_grace() {
    let hand = Hand::new();
    let ca = open(&Arc::new(Memory::new()), &hand).await.unwrap();
    let held = |account: &str| {
        let leaf = ca.issue_local(&id(account), &new_csr()).unwrap().leaf;
        Current { id: id(account), serial: leaf.serial, not_before: leaf.not_before, not_after: leaf.not_after }
    };
    let (orders, cart) = (held("orders"), held("cart"));
    ca.revoke_identity(&id("cart")).await.unwrap();
    for day in 1..=8 {
        hand.forward(24 * HOUR);
        ca.tick().await.unwrap();
        let back = ca.come_back(&orders, &new_csr());
        assert!(back.is_ok(), "day {day}: {back:?}");
        let revoked = ca.come_back(&cart, &new_csr());
        assert!(matches!(revoked, Err(Error::Revoked { .. })), "day {day}: {revoked:?}");
        assert_eq!(ca.renew(&orders, &new_csr()).is_ok(), day == 1, "day {day}: by mutual TLS");
    }
    hand.forward(HOUR);
    assert!(matches!(ca.come_back(&orders, &new_csr()), Err(Error::Expired { .. })));
    assert!(matches!(ca.come_back(&cart, &new_csr()), Err(Error::Expired { .. })));
}

/// A control plane that the store does not reach cannot know: what it renews is still what was revoked.
#[tokio::test]
async fn a_renewal_where_a_revocation_is_unknown_does_not_undo_it() {
    let (store, hand) = (Arc::new(Memory::new()), Hand::new());
    let open = async |leads: bool| {
        let (store, leads) = (Arc::clone(&store) as _, watch::Sender::new(leads).subscribe());
        Ca::open_shared(store, &passphrase(), options(Lifetimes::default()), hand.clock(), leads).await.unwrap()
    };
    let (one, two) = (open(true).await, open(false).await);
    let current = |issued: Issued| {
        let (leaf, id) = (issued.leaf, issued.id);
        Current { id, serial: leaf.serial, not_before: leaf.not_before, not_after: leaf.not_after }
    };
    let held = current(one.issue_local(&id("orders"), &new_csr()).unwrap());
    two.tick().await.unwrap();
    hand.forward(HOUR);
    one.revoke_identity(&id("orders")).await.unwrap();
    hand.forward(HOUR);
    let renewed = two.renew(&held, &new_csr()).unwrap();
    assert_eq!(renewed.leaf.not_after, START + 26 * HOUR, "that it begins earlier makes it no shorter");
    let renewed = current(renewed);
    assert!(matches!(one.renew(&renewed, &new_csr()), Err(Error::Revoked { .. })));
    two.tick().await.unwrap();
    assert!(matches!(two.renew(&renewed, &new_csr()), Err(Error::Revoked { .. })));
    // Who joins anew is somebody else, wherever that is.
    let token = one.create_token(&order(HOUR, 1)).await.unwrap();
    let again = current(two.join(&token.reveal(), None, &new_csr()).await.unwrap());
    assert!(one.renew(&again, &new_csr()).is_ok());
}

#[test]
fn a_clock_that_is_set_back_for_a_moment_replaces_no_root() {
    let mut core = Core::create(DOMAIN, Lifetimes::default(), None, at(START)).unwrap();
    let roots = core.bundle().roots.clone();
    let early = at(START - HOUR);
    core.tick(early, false).unwrap();
    assert_eq!(core.bundle().roots, roots);
    core.tick(early, true).unwrap();
    assert_ne!(core.bundle().roots, roots, "it was made by a clock that was wrong");
    core.tick(at(START + 30 * 24 * HOUR), true).unwrap();
    assert!(core.bundle().roots.contains(&roots[0]), "or this one was: others have certificates under it");
}
