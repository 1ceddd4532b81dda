//! Control planes that share a store.

use super::*;
use tokio::sync::watch;

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
