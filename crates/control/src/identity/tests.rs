use super::*;
use crate::{
    ca::{self, Ca, Lifetimes, Memory, Order, Rotate},
    proto::identity::{ComeBackRequest, RenewRequest, WatchBundleRequest},
    transport::{self, Mutual},
};
use selvedge_identity::{Identities, Issued, Issuer, KeyPair, NotIssued, Svid, control_id};
use selvedge_testkit::certs::{self, Spec};
use selvedge_wire::spiffe::SpiffeId;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::net::TcpListener;

const DOMAIN: &str = "mesh.example";

fn id(account: &str) -> SpiffeId {
    SpiffeId::workload(DOMAIN, "shop", account).unwrap()
}

/// A control plane on a port of loopback, in real time.
struct Control {
    ca: Arc<Ca>,
    identities: Arc<Identities>,
    joins: Arc<JoinCas>,
    url: String,
    folder: tempfile::TempDir,
}

impl Control {
    async fn new(domain: &str) -> Self {
        let past = Arc::new(AtomicU64::new(0));
        Self::since(domain, &past, async |_| {}).await
    }

    /// Whose clock is so many seconds late, and right after `first`.
    async fn since(domain: &str, past: &Arc<AtomicU64>, first: impl AsyncFnOnce(&Arc<Ca>)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = ca::Options {
            trust_domain: Some(domain.to_owned()),
            mesh: None,
            lifetimes: Lifetimes::default(),
            files: None,
        };
        let key = ca::Key::File(folder.path().join("key"));
        let late = Arc::clone(past);
        let clock = Arc::new(move || SystemTime::now() - Duration::from_secs(late.load(Ordering::Relaxed)));
        let ca = Arc::new(Ca::open(Arc::new(Memory::new()), &key, options, clock).await.unwrap());
        first(&ca).await;
        past.store(0, Ordering::Relaxed);
        let identities = Arc::<Identities>::default();
        let own = control_id(domain).unwrap();
        let issuer = LocalIssuer::new(Arc::clone(&ca));
        obtain(&issuer, &identities, &own).await.unwrap();
        let mut news = issuer.trust();
        let followed = Arc::clone(&identities);
        tokio::spawn(async move {
            let _issuer = issuer;
            while news.changed().await.is_ok() {
                let trust = news.borrow_and_update().clone().unwrap();
                followed.set_bundle(&trust.domain, trust.bundle.clone()).unwrap();
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let mutual = Mutual { identities: Arc::clone(&identities), own, joining: true };
        let file = folder.path().join("join.yaml");
        std::fs::write(&file, "cas: []").unwrap();
        let joins = Arc::new(JoinCas::open(&file, domain, &identities).unwrap());
        let service = IdentityService::server(Arc::clone(&ca), Some(Arc::clone(&joins)));
        let server = transport::server().add_service(service);
        tokio::spawn(server.serve_with_incoming(transport::accept(listener, Some(mutual))));
        Self { ca, identities, joins, url, folder }
    }

    async fn token(&self, id: &SpiffeId, uses: u32) -> ca::Token {
        let order = Order { id: id.clone(), life: Duration::from_secs(3600), uses };
        self.ca.create_token(&order).await.unwrap()
    }

    fn node(&self, tokens: Vec<ca::Token>) -> (RemoteIssuer, Arc<Identities>) {
        let identities = Arc::<Identities>::default();
        let joining = Joining { control: vec![self.url.clone()], tokens: JoinTokens::Given(tokens) };
        (RemoteIssuer::new(DOMAIN, joining, Arc::clone(&identities)).unwrap(), identities)
    }
}

/// As the keeper of a node does it.
async fn obtain(issuer: &dyn Issuer, identities: &Identities, id: &SpiffeId) -> Result<Arc<Svid>, NotIssued> {
    let key = KeyPair::generate().unwrap();
    let Issued { chain, trust } = issuer.issue(id, identities.get(id), key.request(id).unwrap()).await?;
    identities.set_bundle(&trust.domain, trust.bundle.clone()).unwrap();
    identities.set(Svid::new(chain, key.private_key()).unwrap());
    Ok(identities.get(id).unwrap())
}

fn never(result: Result<Arc<Svid>, NotIssued>) -> String {
    match result {
        Err(NotIssued::Never(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn joining_renewing_and_hearing_of_changes() {
    let control = Control::new(DOMAIN).await;
    let other = control.token(&id("cart"), 1).await;
    let token = control.token(&id("orders"), 1).await;
    let (issuer, identities) = control.node(vec![other, token]);
    let first = obtain(&issuer, &identities, &id("orders")).await.unwrap();
    let second = obtain(&issuer, &identities, &id("orders")).await.unwrap();
    assert_ne!(first.serial(), second.serial(), "the second time by mutual TLS, for the token is used up");

    let mut trust = issuer.trust();
    let known = trust.borrow_and_update().clone().unwrap();
    let issuer = Arc::new(issuer);
    let following = Arc::clone(&issuer);
    tokio::spawn(async move { following.follow(&id("orders")).await });
    control.ca.rotate(Rotate::Root { at_once: false }).await.unwrap();
    trust.changed().await.unwrap();
    let now = trust.borrow_and_update().clone().unwrap();
    assert!(now.sequence > known.sequence && now.bundle.roots().count() == 2);
    control.ca.revoke_identity(&id("orders")).await.unwrap();
    trust.changed().await.unwrap();
    assert_eq!(trust.borrow().as_ref().unwrap().bundle.revoked_identities().count(), 1);
    let refused = obtain(&*issuer, &identities, &id("orders")).await;
    assert!(refused.is_err(), "{refused:?}");
}

#[tokio::test]
async fn tokens_that_do_not_work() {
    let control = Control::new(DOMAIN).await;
    let token = control.token(&id("orders"), 1).await;
    let (issuer, identities) = control.node(vec![token.clone()]);
    let why = never(obtain(&issuer, &identities, &id("cart")).await);
    assert!(why.contains("the join token is for spiffe://mesh.example/ns/shop/sa/orders"), "{why}");
    obtain(&issuer, &identities, &id("orders")).await.unwrap();
    let (issuer, identities) = control.node(vec![token.clone()]);
    let why = never(obtain(&issuer, &identities, &id("orders")).await);
    assert!(why.contains("was used already"), "{why}");
    let (issuer, identities) = control.node(Vec::new());
    let why = never(obtain(&issuer, &identities, &id("orders")).await);
    assert!(why.contains("selvedge token create"), "{why}");
    let joining = Joining { control: vec![control.url.clone()], tokens: JoinTokens::Given(vec![token]) };
    let why = RemoteIssuer::new("other.example", joining, Arc::default()).err().unwrap().to_string();
    assert!(why.contains("the join token is of trust domain mesh.example"), "{why}");
}

/// A revoked certificate opens no connection; a token that is written into the file while the node runs does.
#[tokio::test]
async fn who_was_revoked_comes_back_by_a_new_token() {
    let control = Control::new(DOMAIN).await;
    let file = control.folder.path().join("token");
    let write = async || std::fs::write(&file, control.token(&id("orders"), 1).await.reveal()).unwrap();
    write().await;
    let identities = Arc::<Identities>::default();
    let joining = Joining { control: vec![control.url.clone()], tokens: JoinTokens::File(file.clone()) };
    let issuer = RemoteIssuer::new(DOMAIN, joining, Arc::clone(&identities)).unwrap();
    let first = obtain(&issuer, &identities, &id("orders")).await.unwrap();
    control.ca.revoke_identity(&id("orders")).await.unwrap();
    let why = never(obtain(&issuer, &identities, &id("orders")).await);
    assert!(why.contains("and by the join token"), "{why}");
    write().await;
    let second = obtain(&issuer, &identities, &id("orders")).await.unwrap();
    assert_ne!(first.serial(), second.serial());
    std::fs::write(&file, "nonsense").unwrap();
    let renewed = obtain(&issuer, &identities, &id("orders")).await;
    assert!(renewed.is_ok(), "the file is only read when it is needed: {renewed:?}");
}

/// A node never shows its token to a control plane that is not the token's.
#[tokio::test]
async fn another_control_plane() {
    let (control, twin) = (Control::new(DOMAIN).await, Control::new(DOMAIN).await);
    let foreign = Control::new("other.example").await;
    for (elsewhere, what) in [(&twin, "is not the one of the join token"), (&foreign, "other.example")] {
        let token = control.token(&id("orders"), 1).await;
        let identities = Arc::<Identities>::default();
        let joining = Joining { control: vec![elsewhere.url.clone()], tokens: JoinTokens::Given(vec![token]) };
        let issuer = RemoteIssuer::new(DOMAIN, joining, Arc::clone(&identities)).unwrap();
        let why = obtain(&issuer, &identities, &id("orders")).await.unwrap_err().to_string();
        assert!(why.contains(what), "{why}");
        assert!(elsewhere.ca.list_tokens().await.unwrap().is_empty());
    }
    assert!(control.ca.list_tokens().await.unwrap().iter().all(|t| t.used == 0));
}

#[tokio::test]
async fn one_control_plane_of_two_is_away() {
    let control = Control::new(DOMAIN).await;
    let token = control.token(&id("orders"), 1).await;
    let away = format!("https://{}", selvedge_testkit::selvedge::free_port());
    let identities = Arc::<Identities>::default();
    let joining = Joining { control: vec![away.clone(), control.url.clone()], tokens: JoinTokens::Given(vec![token]) };
    let issuer = RemoteIssuer::new(DOMAIN, joining, Arc::clone(&identities)).unwrap();
    obtain(&issuer, &identities, &id("orders")).await.unwrap();
    let joining = Joining { control: vec![away], tokens: JoinTokens::Given(vec![control.token(&id("cart"), 1).await]) };
    let issuer = RemoteIssuer::new(DOMAIN, joining, Arc::default()).unwrap();
    let failed = obtain(&issuer, &Identities::default(), &id("cart")).await;
    assert!(matches!(&failed, Err(NotIssued::Later(why)) if why.contains("refused")), "{failed:?}");
}

#[tokio::test]
async fn one_control_plane_of_two_refuses() {
    let control = Control::new(DOMAIN).await;
    // As one that lags behind, or is older: it has no certificate authority.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let without = format!("https://{}", listener.local_addr().unwrap());
    let own = control_id(DOMAIN).unwrap();
    let mutual = Mutual { identities: Arc::clone(&control.identities), own, joining: true };
    let server = transport::server().add_service(crate::publish::server::Publisher::new("old").service());
    tokio::spawn(server.serve_with_incoming(transport::accept(listener, Some(mutual))));
    let identities = Arc::<Identities>::default();
    let tokens = JoinTokens::Given(vec![control.token(&id("orders"), 1).await]);
    let joining = Joining { control: vec![without.clone(), control.url.clone()], tokens };
    let issuer = RemoteIssuer::new(DOMAIN, joining, Arc::clone(&identities)).unwrap();
    obtain(&issuer, &identities, &id("orders")).await.unwrap();
    let tokens = JoinTokens::Given(vec![control.token(&id("cart"), 1).await]);
    let joining = Joining { control: vec![without], tokens };
    let issuer = RemoteIssuer::new(DOMAIN, joining, Arc::default()).unwrap();
    let why = never(obtain(&issuer, &Identities::default(), &id("cart")).await);
    assert!(why.contains("no certificate authority"), "{why}");
}

#[tokio::test]
async fn the_administrator() {
    use crate::proto::identity::{
        CreateTokenRequest, ListTokensRequest, RevokeRequest, ShowRequest, revoke_request::What,
    };
    let control = Control::new(DOMAIN).await;
    let socket = control.folder.path().join("state/ca.sock");
    let absent = administrator(&socket).await.unwrap_err();
    assert!(absent.contains("--state"), "{absent}");
    let (ca, path) = (Arc::clone(&control.ca), socket.clone());
    let serving = tokio::spawn(async move { administer(ca, &path).await });
    let mut client = loop {
        match administrator(&socket).await {
            Ok(client) => break client,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let (namespace, service_account) = ("shop".to_owned(), "orders".to_owned());
    let request = CreateTokenRequest { namespace, service_account, seconds: 60, uses: 1 };
    let made = client.create_token(request).await.unwrap().into_inner();
    let (issuer, identities) = control.node(vec![made.token.parse().unwrap()]);
    obtain(&issuer, &identities, &id("orders")).await.unwrap();
    let listed = client.list_tokens(ListTokensRequest {}).await.unwrap().into_inner().tokens;
    assert_eq!((listed[0].id.as_str(), listed[0].used), (made.id.as_str(), 1));
    let what = Some(What::Identity("shop/orders".to_owned()));
    client.revoke(RevokeRequest { what }).await.unwrap();
    let shown = client.show(ShowRequest {}).await.unwrap().into_inner();
    assert_eq!((shown.trust_domain.as_str(), shown.authorities.len(), shown.revoked.len()), (DOMAIN, 2, 2));
    let second = administer(Arc::clone(&control.ca), &socket).await;
    assert!(second.unwrap_err().to_string().contains("another control plane"));
    serving.abort();
}

/// What a node has that was away until after the end of its certificate.
async fn away(days: u64) -> (Control, RemoteIssuer, Arc<Identities>) {
    let past = Arc::new(AtomicU64::new(days * 24 * 3600));
    let identities = Arc::<Identities>::default();
    let got = Arc::clone(&identities);
    let control = Control::since(DOMAIN, &past, async move |ca: &Arc<Ca>| {
        let key = KeyPair::generate().unwrap();
        let issued = ca.issue_local(&id("orders"), &key.request(&id("orders")).unwrap()).unwrap();
        let trust = convert::to_trust(&issued.bundle).unwrap();
        got.set_bundle(&trust.domain, trust.bundle).unwrap();
        let chain = issued.leaf.chain.into_iter().map(Into::into).collect();
        got.set(Svid::new(chain, key.private_key()).unwrap());
    })
    .await;
    let joining = Joining { control: vec![control.url.clone()], tokens: JoinTokens::Given(Vec::new()) };
    let issuer = RemoteIssuer::new(DOMAIN, joining, Arc::clone(&identities)).unwrap();
    (control, issuer, identities)
}

#[tokio::test]
async fn a_node_comes_back_after_the_end_of_its_certificate() {
    let (_control, issuer, identities) = away(3).await;
    let before = identities.get(&id("orders")).unwrap();
    assert!(before.not_after() < SystemTime::now());
    let back = obtain(&issuer, &identities, &id("orders")).await.unwrap();
    assert!(back.not_after() > SystemTime::now());
    let next = obtain(&issuer, &identities, &id("orders")).await.unwrap();
    assert_ne!(back.serial(), next.serial(), "by mutual TLS again");
}

#[tokio::test]
async fn who_does_not_come_back() {
    // A certificate lives for a day, and the grace is seven.
    let (_control, issuer, identities) = away(9).await;
    let why = never(obtain(&issuer, &identities, &id("orders")).await);
    assert!(why.contains("join again with a new token"), "{why}");

    let (control, issuer, identities) = away(3).await;
    control.ca.revoke_identity(&id("orders")).await.unwrap();
    let why = never(obtain(&issuer, &identities, &id("orders")).await);
    assert!(why.contains("revoked"), "{why}");

    // With a certificate that is somebody else's.
    let (control, _issuer, identities) = away(3).await;
    let request = KeyPair::generate().unwrap().request(&id("orders")).unwrap();
    let svid = identities.get(&id("orders")).unwrap();
    let chain: Vec<Vec<u8>> = svid.chain().iter().map(|der| der.to_vec()).collect();
    for signature in [Vec::new(), svid.sign(b"something else").unwrap(), svid.sign(&request).unwrap()] {
        let asked = ComeBackRequest { chain: chain.clone(), certificate_request: request.clone(), signature };
        assert!(lapsed::prove(&control.ca, &asked).unwrap_err().contains("not by the key"));
    }
    let signature = svid.sign(&lapsed::message(&request)).unwrap();
    let asked = ComeBackRequest { chain, certificate_request: request, signature };
    assert_eq!(lapsed::prove(&control.ca, &asked).unwrap().id, id("orders"));
    let other = Control::new(DOMAIN).await;
    assert!(lapsed::prove(&other.ca, &asked).is_err(), "of another CA");
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

impl Control {
    /// Takes certificates of `other` by this rule from now on.
    fn takes(&self, other: &certs::Ca, rule: &str) {
        std::fs::write(self.folder.path().join("other.pem"), other.pem()).unwrap();
        let text = format!("cas:\n- {{name: other, roots: other.pem, allow: [{rule}]}}\n");
        std::fs::write(self.folder.path().join("join.yaml"), text).unwrap();
        self.joins.look();
    }

    /// A node that has this certificate and nothing else.
    fn guest(&self, leaf: &certs::Leaf) -> (RemoteIssuer, Arc<Identities>) {
        let path = |name: &str| self.folder.path().join(name);
        std::fs::write(path("node.crt"), leaf.chain_pem()).unwrap();
        std::fs::write(path("node.key"), leaf.key_pem()).unwrap();
        let roots: String = self.ca.bundle().roots.iter().map(|der| pem("CERTIFICATE", der)).collect();
        std::fs::write(path("trust.pem"), roots).unwrap();
        let files = JoinFiles { chain: path("node.crt"), key: path("node.key"), trust: path("trust.pem") };
        let (issuer, identities) = self.node(Vec::new());
        (issuer.with_certificate(files), identities)
    }

    async fn joins(&self, leaf: &certs::Leaf, account: &str) -> Result<Arc<Svid>, NotIssued> {
        let (issuer, identities) = self.guest(leaf);
        obtain(&issuer, &identities, &id(account)).await
    }
}

const RULE: &str = "{dns: orders.vm.example, identity: shop/orders}";

#[tokio::test]
async fn a_certificate_of_another_ca_joins_as_who_it_may_be() {
    let (control, other) = (Control::new(DOMAIN).await, certs::Ca::new("other"));
    control.takes(&other, RULE);
    for spec in [Spec::dns(&["orders.vm.example"]), Spec::dns(&["Orders.VM.example"]).rsa().only_client()] {
        let leaf = other.intermediate("below").issue(&spec);
        let (issuer, identities) = control.guest(&leaf);
        let first = obtain(&issuer, &identities, &id("orders")).await.unwrap();
        assert_eq!(first.id(), &id("orders"));
        std::fs::remove_file(control.folder.path().join("node.crt")).unwrap();
        let second = obtain(&issuer, &identities, &id("orders")).await.unwrap();
        assert_ne!(first.serial(), second.serial(), "from then on by its own");
    }
    control.takes(&other, "{spiffeId: 'spiffe://old.example/vm/7', identity: shop/cart}");
    let leaf = other.issue(&Spec::uri("spiffe://old.example/vm/7"));
    assert_eq!(control.joins(&leaf, "cart").await.unwrap().id(), &id("cart"));
    // The file is read when it changes, and what cannot be used changes nothing.
    std::fs::write(control.folder.path().join("join.yaml"), "cas: 7").unwrap();
    control.joins.look();
    control.joins(&leaf, "cart").await.unwrap();
    control.takes(&certs::Ca::new("new"), "{spiffeId: 'spiffe://old.example/vm/7', identity: shop/cart}");
    assert!(control.joins(&leaf, "cart").await.is_err());
}

#[tokio::test]
async fn certificates_of_other_cas_that_do_not_join() {
    let (control, other) = (Control::new(DOMAIN).await, certs::Ca::new("other"));
    let good = Spec::dns(&["orders.vm.example"]);
    let told = control.joins(&other.issue(&good), "orders").await.unwrap_err().to_string();
    assert!(told.contains("its log says why"), "nobody is named: {told}");
    control.takes(&other, RULE);
    let told = control.joins(&other.issue(&good), "cart").await.unwrap_err().to_string();
    assert!(told.contains("may be spiffe://mesh.example/ns/shop/sa/orders, not"), "{told}");
    let told = control.joins(&other.issue(&Spec::dns(&["cart.vm.example"])), "orders").await.unwrap_err().to_string();
    assert!(told.contains("no rule") && told.contains("cart.vm.example"), "{told}");
    // By a name that a rule gives to it, but of another trust domain, or with a SPIFFE ID beside it.
    for uri in ["spiffe://mesh.example/ns/shop/sa/orders", "spiffe://old.example/ns/shop/sa/orders"] {
        let told = control.joins(&other.issue(&good.clone().with_uri(uri)), "orders").await.unwrap_err().to_string();
        assert!(told.contains("no rule") && told.contains(uri), "{told}");
    }
    let refused = [
        good.clone().expired(),
        good.clone().not_yet_valid(),
        good.clone().only_server(),
        good.clone().authority(),
        good.clone().with_uri("spiffe://a.example/x").with_uri("spiffe://a.example/y"),
        good.clone().with_uri("spiffe:/a.example/x"),
        Spec::raw_dns(b"orders.vm.example\0"),
    ];
    for (number, spec) in refused.iter().enumerate() {
        assert!(control.joins(&other.issue(spec), "orders").await.is_err(), "{number}");
    }
    let stranger = certs::Ca::new("other");
    assert!(control.joins(&stranger.issue(&good), "orders").await.is_err(), "another CA of the same name");
    // The key of another certificate.
    let (issuer, identities) = control.guest(&other.issue(&good));
    std::fs::write(control.folder.path().join("node.key"), other.issue(&good).key_pem()).unwrap();
    let why = never(obtain(&issuer, &identities, &id("orders")).await);
    assert!(why.contains("does not belong to the certificate"), "{why}");
}

#[tokio::test]
async fn who_was_revoked_does_not_come_back_by_the_certificate_that_brought_it() {
    let (control, other) = (Control::new(DOMAIN).await, certs::Ca::new("other"));
    control.takes(&other, RULE);
    let leaf = other.issue(&Spec::dns(&["orders.vm.example"]));
    control.joins(&leaf, "orders").await.unwrap();
    control.ca.revoke_identity(&id("orders")).await.unwrap();
    let why = never(control.joins(&leaf, "orders").await);
    assert!(why.contains("this certificate began before"), "{why}");
    // What its CA has revoked.
    let (control, other) = (Control::new(DOMAIN).await, certs::Ca::new("other"));
    control.takes(&other, RULE);
    let good = other.issue(&Spec::dns(&["orders.vm.example"]));
    control.joins(&good, "orders").await.unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&good.chain[0]).unwrap();
    let list = other.crl(&[parsed.raw_serial()]);
    let text = format!("{}{}", other.pem(), pem("X509 CRL", &list));
    std::fs::write(control.folder.path().join("other.pem"), text).unwrap();
    control.joins.look();
    control.joins(&good, "orders").await.unwrap_err();
}

/// A certificate to join with is good for nothing else.
#[tokio::test]
async fn who_joins_by_a_certificate_is_no_member() {
    let (control, other) = (Control::new(DOMAIN).await, certs::Ca::new("other"));
    control.takes(&other, RULE);
    let leaf = other.issue(&Spec::dns(&["orders.vm.example"]));
    let (roots, pems) = (control.ca.bundle(), (leaf.chain_pem().as_bytes(), leaf.key_pem().as_bytes()));
    let roots = selvedge_identity::Bundle::new(roots.roots.iter().map(|der| der.clone().into())).unwrap();
    let config = selvedge_identity::joining_config(DOMAIN, roots, pems, &[b"h2"]).unwrap();
    let mut client = client::raw(&control.url, config).await;
    let request = KeyPair::generate().unwrap().request(&id("orders")).unwrap();
    let renewed = client.renew(RenewRequest { certificate_request: request }).await.unwrap_err();
    assert_eq!(renewed.code(), tonic::Code::Unauthenticated);
    let watched = client.watch_bundle(WatchBundleRequest { sequence: 0 }).await.unwrap_err();
    assert_eq!(watched.code(), tonic::Code::Unauthenticated);
}
