//! With store and clock: steps that are stored before they count.

use super::*;
use x509_parser::{prelude::FromDer, revocation_list};

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
