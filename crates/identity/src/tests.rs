use super::*;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use selvedge_testkit::certs::{Ca, Leaf, Spec};
use selvedge_wire::spiffe::{Invalid, SpiffeId};
use std::{sync::Arc, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

const CART: &str = "spiffe://mesh.example/ns/shop/sa/cart";
const ORDERS: &str = "spiffe://mesh.example/ns/shop/sa/orders";

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn bundle(ca: &Ca) -> Bundle {
    Bundle::new([ca.der()]).unwrap()
}

fn bundles(ca: &Ca) -> Bundles {
    Bundles::of("mesh.example", bundle(ca)).unwrap()
}

fn svid(leaf: Leaf) -> Svid {
    Svid::new(leaf.chain, leaf.key).unwrap()
}

fn member(ca: &Ca, id: &str) -> Identities {
    let identities = Identities::default();
    identities.set(svid(ca.issue(&Spec::uri(id))));
    identities.set_bundles(bundles(ca));
    identities
}

/// What a store that trusts `ca` says to a chain.
fn judged(ca: &Ca, chain: &[CertificateDer<'_>], expect: &Expect) -> Result<Peer, Refused> {
    let identities = Identities::default();
    identities.set_bundles(bundles(ca));
    identities.judge(chain, expect, Role::Client, UnixTime::now())
}

#[test]
fn a_peer_that_proves_itself() {
    let ca = Ca::new("root");
    for leaf in [ca.issue(&Spec::uri(CART)), ca.intermediate("a").intermediate("b").issue(&Spec::uri(CART))] {
        let peer = judged(&ca, &leaf.chain, &Expect::Known).unwrap();
        assert_eq!(peer.id, id(CART));
        assert_eq!(peer.chain.len(), leaf.chain.len());
        judged(&ca, &leaf.chain, &Expect::Exactly(id(CART))).unwrap();
        judged(&ca, &leaf.chain, &Expect::AnyOf([id(ORDERS), id(CART)].into())).unwrap();
    }
    // DNS names may be there beside the one URI.
    judged(&ca, &ca.issue(&Spec::dns(&["cart.shop"]).with_uri(CART)).chain, &Expect::Known).unwrap();
}

#[test]
fn certificates_that_prove_nothing() {
    let ca = Ca::new("root");
    let refused = |spec: &Spec| judged(&ca, &ca.issue(spec).chain, &Expect::Known).unwrap_err();
    assert_eq!(refused(&Spec::dns(&["a.example"])), Refused::NoUri);
    assert_eq!(refused(&Spec::uri(CART).with_uri(CART)), Refused::ManyUris(2));
    let not_an_id = |uri: &str, why| Refused::NotAnId { uri: uri.to_owned(), why };
    assert_eq!(refused(&Spec::uri("https://mesh.example/a")), not_an_id("https://mesh.example/a", Invalid::Scheme));
    let nul = format!("{CART}\0.evil");
    assert_eq!(refused(&Spec::raw_uri(nul.as_bytes())), not_an_id(&nul.escape_debug().to_string(), Invalid::Path));
    assert_eq!(refused(&Spec::raw_uri(b"spiffe://mesh.example/\xff")), Refused::Malformed);
    assert_eq!(refused(&Spec::uri(CART).authority()), Refused::Authority { id: id(CART) });
    assert_eq!(refused(&Spec::uri(CART).no_usage()), Refused::Usage { id: id(CART) });
    let other = "spiffe://other.example/ns/shop/sa/cart";
    assert_eq!(refused(&Spec::uri(other)), Refused::UnknownDomain { id: id(other) });
    assert_eq!(judged(&ca, &[], &Expect::Known).unwrap_err(), Refused::NoCertificate);
    assert_eq!(judged(&ca, &[CertificateDer::from(vec![1, 2, 3])], &Expect::Known).unwrap_err(), Refused::Malformed);
    // An authority's own certificate is no identity either.
    assert!(judged(&ca, &[ca.der()], &Expect::Known).is_err());
}

#[test]
fn refusals_say_what_and_when() {
    let ca = Ca::new("root");
    let text = |chain: &[CertificateDer<'_>], expect: &Expect| judged(&ca, chain, expect).unwrap_err().to_string();
    let leaf = ca.issue(&Spec::uri(CART));
    let message = text(&leaf.chain, &Expect::Exactly(id(ORDERS)));
    assert!(message.contains(ORDERS) && message.contains(&format!("presented {CART}")), "{message}");
    let message = text(&ca.issue(&Spec::uri(CART).expired()).chain, &Expect::Known);
    assert!(message.contains(CART) && message.contains("expired at 2001-01-01T00:00:00Z"), "{message}");
    let message = text(&ca.issue(&Spec::uri(CART).not_yet_valid()).chain, &Expect::Known);
    assert!(message.contains("not valid before 3999-01-01T00:00:00Z"), "{message}");
    let message = text(&Ca::new("stranger").issue(&Spec::uri(CART)).chain, &Expect::Known);
    assert!(message.contains("none that we trust"), "{message}");
    let message = text(&ca.issue(&Spec::uri(CART).only_server()).chain, &Expect::Known);
    assert!(message.contains("extended key usage"), "{message}");
    // Without its intermediate a leaf leads nowhere.
    let below = ca.intermediate("middle").issue(&Spec::uri(CART));
    assert!(matches!(judged(&ca, &below.chain[..1], &Expect::Known), Err(Refused::Untrusted { .. })));
}

/// The roots of one trust domain say nothing about identities of another.
#[test]
fn domains_do_not_vouch_for_each_other() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let mut both = bundles(&ours);
    both.insert("other.example", bundle(&theirs)).unwrap();
    let identities = Identities::default();
    identities.set_bundles(both);
    let judge = |leaf: &Leaf| identities.judge(&leaf.chain, &Expect::Known, Role::Server, UnixTime::now());
    judge(&ours.issue(&Spec::uri(CART))).unwrap();
    judge(&theirs.issue(&Spec::uri("spiffe://other.example/a"))).unwrap();
    assert!(judge(&theirs.issue(&Spec::uri(CART))).is_err());
    assert!(judge(&ours.issue(&Spec::uri("spiffe://other.example/a"))).is_err());
    assert!(Bundles::of("Not A Domain", bundle(&ours)).is_err());
}

#[test]
fn roots_take_each_others_place() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let identities = Identities::default();
    let judge = |leaf: &Leaf| identities.judge(&leaf.chain, &Expect::Known, Role::Client, UnixTime::now());
    let (of_old, of_new) = (old.issue(&Spec::uri(CART)), new.issue(&Spec::uri(CART)));
    identities.set_bundles(bundles(&old));
    let peer = judge(&of_old).unwrap();
    assert!(judge(&of_new).is_err());
    identities.set_bundles(Bundles::of("mesh.example", Bundle::new([old.der(), new.der()]).unwrap()).unwrap());
    judge(&of_old).unwrap();
    judge(&of_new).unwrap();
    identities.still_accepts(&peer).unwrap();
    identities.set_bundles(bundles(&new));
    assert!(judge(&of_old).is_err());
    assert!(matches!(identities.still_accepts(&peer), Err(Refused::Untrusted { .. })));
    judge(&of_new).unwrap();
}

#[test]
fn roots_expire() {
    let ca = Ca::new("root");
    let leaf = ca.issue(&Spec::uri(CART));
    let expired = Bundle::new([ca.issue(&Spec::uri(CART).authority().expired()).chain.remove(0)]).unwrap();
    let identities = Identities::default();
    identities.set_bundles(Bundles::of("mesh.example", expired).unwrap());
    let judged = identities.judge(&leaf.chain, &Expect::Known, Role::Client, UnixTime::now());
    assert_eq!(judged.unwrap_err(), Refused::RootsExpired { id: id(CART) });
    assert!(matches!(Bundle::new([]), Err(Error::NoRoots)));
    assert!(Bundle::new([CertificateDer::from(vec![0])]).is_err());
}

#[test]
fn revocation_by_number_and_by_list() {
    let (ca, stranger) = (Ca::new("root"), Ca::new("root"));
    let (leaf, other) = (ca.issue(&Spec::uri(CART)), ca.issue(&Spec::uri(ORDERS)));
    let identities = Identities::default();
    identities.set_bundles(bundles(&ca));
    let judge = |leaf: &Leaf| identities.judge(&leaf.chain, &Expect::Known, Role::Client, UnixTime::now());
    let peer = judge(&leaf).unwrap();
    let by_number = bundle(&ca).with_revoked([peer.serial.clone()]);
    let by_list = bundle(&ca).with_crl(&ca.crl(&[peer.serial.as_bytes()])).unwrap();
    for revoked in [by_number, by_list] {
        identities.set_bundles(Bundles::of("mesh.example", revoked).unwrap());
        let refused = Refused::Revoked { id: id(CART), serial: peer.serial.clone() };
        assert_eq!(judge(&leaf).unwrap_err(), refused);
        assert_eq!(identities.still_accepts(&peer).unwrap_err(), refused);
        judge(&other).unwrap();
        identities.set_bundles(bundles(&ca));
        judge(&leaf).unwrap();
    }
    // A list that another has signed counts for nothing: not for leaves it could name, nor as if they were fine.
    let forged = bundle(&ca).with_crl(&stranger.crl(&[peer.serial.as_bytes()])).unwrap();
    identities.set_bundles(Bundles::of("mesh.example", forged).unwrap());
    assert!(!matches!(judge(&leaf), Err(Refused::Revoked { .. })));
    assert!(bundle(&ca).with_crl(b"no list").is_err());
}

#[test]
fn serials_are_written_and_read() {
    let serial = Serial::new(&[0, 0, 0x0a, 0xff]);
    assert_eq!(serial.to_string(), "0aff");
    for text in ["0aff", "0A:FF", "aff", "000aff"] {
        assert_eq!(Serial::from_hex(text), Some(serial.clone()), "{text}");
    }
    assert_eq!(Serial::from_hex(""), None);
    assert_eq!(Serial::from_hex("xy"), None);
}

#[test]
fn our_own_certificate_must_be_one() {
    let ca = Ca::new("root");
    let (cart, orders) = (ca.issue(&Spec::uri(CART)), ca.issue(&Spec::uri(ORDERS)));
    assert!(matches!(Svid::new(cart.chain.clone(), orders.key.clone_key()), Err(Error::WrongKey(_))));
    assert!(matches!(Svid::new(Vec::new(), cart.key.clone_key()), Err(Error::Unusable(Refused::NoCertificate))));
    let dns = ca.leaf(&["a.example"]);
    assert!(matches!(Svid::new(dns.chain, dns.key), Err(Error::Unusable(Refused::NoUri))));
    let read = Svid::from_pem(cart.chain_pem().as_bytes(), cart.key_pem().as_bytes()).unwrap();
    assert_eq!((read.id(), read.chain()), (&id(CART), cart.chain.as_slice()));
    assert!(!format!("{read:?}").contains("PRIVATE"));
    let identities = Identities::default();
    let expect = Expect::Known;
    let missing = identities.client_config(&id(CART), &expect, &[b"h2"]).unwrap_err();
    assert!(matches!(missing, Error::NoSvid(_)));
    identities.set(svid(ca.issue(&Spec::uri(CART).expired())));
    let expired = identities.server_config(&id(CART), &[b"h2"]).unwrap_err();
    assert!(expired.to_string().contains("expired at 2001-01-01T00:00:00Z"), "{expired}");
}

#[test]
fn a_key_asks_for_its_certificate() {
    use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};
    let key = KeyPair::generate().unwrap();
    let request = key.request(&id(CART)).unwrap();
    let (_, parsed) = X509CertificationRequest::from_der(&request).unwrap();
    let names = format!("{:?}", parsed.requested_extensions().unwrap().collect::<Vec<_>>());
    assert!(names.contains(CART), "{names}");
    assert_ne!(key.private_key(), KeyPair::generate().unwrap().private_key());
}

struct Pair {
    client: client::TlsStream<DuplexStream>,
    server: server::TlsStream<DuplexStream>,
}

/// A handshake between two members over a pipe; a byte each way, so that the tickets arrive.
async fn handshake(from: &Identities, to: &Identities, expect: &Expect) -> std::io::Result<Pair> {
    let (a, b) = duplex(64 * 1024);
    let connector = TlsConnector::from(from.client_config(&id(CART), expect, &[b"h2"]).unwrap());
    let acceptor = TlsAcceptor::from(to.server_config(&id(ORDERS), &[b"h2", b"selvedge"]).unwrap());
    let client = async {
        let mut client = connector.connect(ServerName::try_from("10.0.0.1").unwrap(), a).await?;
        client.write_all(b"x").await?;
        client.read_exact(&mut [0]).await?;
        Ok::<_, std::io::Error>(client)
    };
    let server = async {
        let mut server = acceptor.accept(b).await?;
        server.read_exact(&mut [0]).await?;
        server.write_all(b"y").await?;
        Ok::<_, std::io::Error>(server)
    };
    let (client, server) = tokio::join!(client, server);
    // The side that judged knows why.
    match (client, server) {
        (Ok(client), Ok(server)) => Ok(Pair { client, server }),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
        (Err(a), Err(b)) => Err(if refused(&a).is_some() { a } else { b }),
    }
}

fn resumed(pair: &Pair) -> bool {
    pair.client.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
}

#[tokio::test]
async fn both_prove_themselves_with_the_newest_tls() {
    let ca = Ca::new("root");
    let (cart, orders) = (member(&ca, CART), member(&ca, ORDERS));
    let pair = handshake(&cart, &orders, &Expect::Exactly(id(ORDERS))).await.unwrap();
    let (client, server) = (pair.client.get_ref().1, pair.server.get_ref().1);
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(client.alpn_protocol(), Some(&b"h2"[..]));
    let peer = orders.judge(server.peer_certificates().unwrap(), &Expect::Known, Role::Client, UnixTime::now());
    assert_eq!(peer.unwrap().id, id(CART));
}

#[tokio::test]
async fn both_sides_refuse() {
    let (ca, other) = (Ca::new("root"), Ca::new("other"));
    let (cart, orders) = (member(&ca, CART), member(&ca, ORDERS));
    let error = handshake(&cart, &orders, &Expect::Exactly(id(CART))).await.err().unwrap();
    assert!(matches!(refused(&error), Some(Refused::Unexpected { .. })), "{error}");
    // The server refuses a client of a root that it does not know, and the other way round.
    let stranger = member(&other, CART);
    stranger.set_bundles(bundles(&ca));
    let error = handshake(&stranger, &orders, &Expect::Known).await.err().unwrap();
    assert!(matches!(refused(&error), Some(Refused::Untrusted { .. })), "{error}");
    let stranger = member(&other, ORDERS);
    stranger.set_bundles(bundles(&ca));
    let error = handshake(&cart, &stranger, &Expect::Known).await.err().unwrap();
    assert!(matches!(refused(&error), Some(Refused::Untrusted { .. })), "{error}");
}

#[tokio::test]
async fn sessions_are_resumed_within_the_same_trust_only() {
    let ca = Ca::new("root");
    let (cart, orders) = (member(&ca, CART), member(&ca, ORDERS));
    let expect = Expect::Exactly(id(ORDERS));
    let again = async || resumed(&handshake(&cart, &orders, &expect).await.unwrap());
    assert!(!again().await);
    assert!(again().await);
    assert!(!resumed(&handshake(&cart, &orders, &Expect::Known).await.unwrap()), "not for another expectation");
    for change in 0..4 {
        match change {
            0 => cart.set(svid(ca.issue(&Spec::uri(CART)))),
            1 => orders.set(svid(ca.issue(&Spec::uri(ORDERS)))),
            2 => cart.set_bundles(Bundles::of("mesh.example", bundle(&ca).with_revoked([Serial::new(&[1])])).unwrap()),
            _ => {
                orders.set_bundles(Bundles::of("mesh.example", bundle(&ca).with_revoked([Serial::new(&[1])])).unwrap())
            }
        }
        assert!(!again().await, "change {change}");
        assert!(again().await, "change {change}");
    }
    // What is the same is no change.
    let version = *cart.changed().borrow();
    cart.set_bundles((*cart.bundles()).clone());
    assert_eq!(*cart.changed().borrow(), version);
    assert!(again().await);
}

/// A configuration asked for before a revocation does not let the revoked in after it.
#[tokio::test]
async fn a_handshake_sees_the_newest_bundles() {
    let ca = Ca::new("root");
    let (cart, orders) = (member(&ca, CART), member(&ca, ORDERS));
    let acceptor = TlsAcceptor::from(orders.server_config(&id(ORDERS), &[b"h2"]).unwrap());
    let serial = cart.get(&id(CART)).unwrap().serial().clone();
    orders.set_bundles(Bundles::of("mesh.example", bundle(&ca).with_revoked([serial])).unwrap());
    let (a, b) = duplex(64 * 1024);
    let connector = TlsConnector::from(cart.client_config(&id(CART), &Expect::Known, &[b"h2"]).unwrap());
    let connect = connector.connect(ServerName::try_from("10.0.0.1").unwrap(), a);
    let (_, accepted) = tokio::join!(connect, acceptor.accept(b));
    let error = accepted.err().unwrap();
    assert!(matches!(refused(&error), Some(Refused::Revoked { .. })), "{error}");
}

#[tokio::test(start_paused = true)]
async fn live_connections_hear_of_a_revocation() {
    let ca = Ca::new("root");
    let identities = Arc::new(member(&ca, ORDERS));
    let leaf = ca.issue(&Spec::uri(CART));
    let peer = identities.judge(&leaf.chain, &Expect::Known, Role::Client, UnixTime::now()).unwrap();
    let waiting = tokio::spawn({
        let (identities, peer) = (identities.clone(), peer.clone());
        async move { identities.until_refused(&peer).await }
    });
    // A new certificate of ours, and a bundle that still has the root, end nothing.
    identities.set(svid(ca.issue(&Spec::uri(ORDERS))));
    let both = Bundle::new([ca.der(), Ca::new("next").der()]).unwrap();
    identities.set_bundles(Bundles::of("mesh.example", both).unwrap());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished());
    let revoked = bundle(&ca).with_revoked([peer.serial.clone()]);
    identities.set_bundles(Bundles::of("mesh.example", revoked).unwrap());
    assert_eq!(waiting.await.unwrap(), Refused::Revoked { id: id(CART), serial: peer.serial });
}
