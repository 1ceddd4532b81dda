//! Joining with tokens.

use super::*;

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
