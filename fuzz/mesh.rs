//! What the fuzz targets of the mesh check. Also compiled into a plain test of `selvedge`, which runs every file of the
//! corpus.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use selvedge_compile::{
    Options,
    access::{Asked, Expression, Layer7, Subject},
    compile,
    snapshot::{Auth, ClaimHeader, DnsNames, JwtAlgorithm, JwtKey, JwtMaterial, JwtProvider},
};
use selvedge_control::{
    ca::{Token, csr},
    proto::discovery::{ControlMessage, Hello, ProxyMessage, proxy_message},
    publish::{hub::Hub, scope::Wanted, version::read_key},
    source::{
        Source,
        etcd::{Client, EtcdSource},
        stream::{
            intake::Intake,
            machine::{Action, Event, Machine, Me},
        },
    },
};
use selvedge_identity::{Bundle, Bundles, Expect, Identities, Role};
use selvedge_mesh::{dns::probe, workload_api};
use selvedge_model::{Limits, Resource, parse};
use selvedge_proxy::jwt;
use selvedge_wire::spiffe::SpiffeId;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

pub type Body = fn(&[u8]);

/// Every target by name.
pub const ALL: [(&str, Body); 9] = [
    ("join_token", join_token),
    ("certificate_request", certificate_request),
    ("peer_certificate", peer_certificate),
    ("mesh_dns", mesh_dns),
    ("discovery_stream", discovery_stream),
    ("authority_rewriter", authority_rewriter),
    ("expression", expression),
    ("etcd_value", etcd_value),
    ("jwt", jwt),
];

const CART: &str = "spiffe://mesh.example/ns/shop/sa/cart";

fn cart() -> SpiffeId {
    CART.parse().expect("an identity")
}

/// The bytes up to the next separator, and what follows it.
fn line(data: &[u8]) -> (&[u8], &[u8]) {
    let end = data.iter().position(|b| *b == b'\n').unwrap_or(data.len());
    (&data[..end], data.get(end + 1..).unwrap_or_default())
}

/// Parts with their length in two bytes before each; the last is cut where the data end.
fn parts(mut data: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let [high, low, rest @ ..] = data
        && found.len() < 24
    {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        found.push(&rest[..length]);
        data = &rest[length..];
    }
    found
}

/// A token that is taken has one text only, and shows its secret to nobody.
pub fn join_token(data: &[u8]) {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    let check = &aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, data).as_ref()[..4].to_vec();
    let sound = format!("svj1_{}", BASE64_URL_SAFE_NO_PAD.encode([data, check].concat()));
    for text in [&*String::from_utf8_lossy(data), &sound] {
        let Ok(token) = text.parse::<Token>() else { continue };
        assert_eq!(token.reveal(), text.trim());
        assert_eq!(token.id().len(), 16);
        assert!(!format!("{token:?}").contains(&token.reveal()));
        assert!(SpiffeId::workload(&token.trust_domain, "shop", "cart").is_ok());
    }
}

/// A sequence, or another value, of DER.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = match length {
        0..0x80 => vec![tag, length as u8],
        0x80..0x100 => vec![tag, 0x81, length as u8],
        _ => vec![tag, 0x82, (length >> 8) as u8, length as u8],
    };
    out.extend_from_slice(content);
    out
}

/// As bytes; and as the attributes of a request whose signature is right.
pub fn certificate_request(data: &[u8]) {
    static KEY: OnceLock<KeyPair> = OnceLock::new();
    let _ = csr::Request::read(data, &cart());
    if data.len() > csr::MAX_LENGTH {
        assert!(csr::Request::read(data, &cart()).is_err());
        return;
    }
    let key = KEY.get_or_init(|| KeyPair::generate().expect("a key"));
    use rcgen::{PublicKeyData, SigningKey};
    let info = [&[2, 1, 0, 0x30, 0][..], &key.subject_public_key_info(), &der(0xa0, data)].concat();
    let info = der(0x30, &info);
    let signature = key.sign(&info).expect("a signature");
    // ecdsa-with-SHA256
    let algorithm = der(0x30, &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]);
    let whole = der(0x30, &[info, algorithm, der(3, &[&[0], &signature[..]].concat())].concat());
    let read = csr::Request::read(&whole, &cart());
    assert!(!matches!(read, Err(csr::Invalid::Signature | csr::Invalid::Key)), "{read:?}");
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    key: KeyPair,
    identities: Identities,
}

fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = || KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key()).expect("a root");
        let identities = Identities::default();
        let bundle = Bundle::new([issuer.der().clone()]).expect("a bundle");
        identities.set_bundles(Bundles::of("mesh.example", bundle).expect("a trust domain"));
        Authority { issuer, key: key(), identities }
    })
}

/// A leaf with one extension of our choice, signed by the root that is trusted.
fn leaf(oid: &[u64], content: &[u8], named: bool, usage: bool) -> Option<CertificateDer<'static>> {
    let authority = authority();
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    if named {
        params.subject_alt_names.push(rcgen::SanType::URI(CART.try_into().ok()?));
    }
    if usage {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    }
    params.custom_extensions.push(CustomExtension::from_oid_content(oid, content.to_vec()));
    Some(params.signed_by(&authority.key, &authority.issuer).ok()?.der().clone())
}

/// Certificates of peers, bundles of roots, lists of revocations: as bytes; and as an extension of a leaf that is signed as it
/// must be. Nobody is accepted as something that does not stand in the certificate.
pub fn peer_certificate(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else { return };
    let identities = &authority().identities;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_900_000_000));
    let judge = |chain: &[CertificateDer<'_>]| {
        let role = if kind & 0x80 == 0 { Role::Client } else { Role::Server };
        identities.judge(chain, &Expect::Known, role, now)
    };
    match kind & 7 {
        0 => {
            let chain: Vec<_> = parts(data).into_iter().map(CertificateDer::from_slice).collect();
            assert!(judge(&chain).is_err(), "a chain to nobody");
        }
        1 => {
            if let Ok(bundle) = Bundle::from_pem(data) {
                assert!(bundle.roots().count() > 0);
                assert!(Bundle::new(bundle.roots().cloned().collect::<Vec<_>>()).is_ok_and(|again| again == bundle));
            }
        }
        2 => {
            let bundle = Bundle::new([authority().issuer.der().clone()]).expect("a bundle");
            _ = bundle.with_crl(data);
            _ = Bundle::new([CertificateDer::from(data.to_vec())]);
        }
        3 | 4 => {
            // Its names.
            let Some(leaf) = leaf(&[2, 5, 29, 17], data, false, true) else { return };
            let Ok(peer) = judge(&[leaf]) else { return };
            let id = peer.id.as_str().as_bytes();
            assert!(data.windows(id.len()).any(|part| part == id), "{}", peer.id);
            assert_eq!(peer.id.trust_domain(), "mesh.example");
        }
        other => {
            // Basic constraints, key usage, extended key usage.
            let oid = [19, 15, 37][usize::from(other - 5)];
            let Some(leaf) = leaf(&[2, 5, 29, oid], data, true, oid != 15) else { return };
            if let Ok(peer) = judge(&[leaf]) {
                assert_eq!(peer.id, cart());
                // An authority says so in one byte.
                assert!(oid != 19 || !matches!(data, [0x30, 3, 1, 1, ca] if *ca != 0), "an authority");
            }
        }
    }
}

fn names() -> &'static DnsNames {
    static NAMES: OnceLock<DnsNames> = OnceLock::new();
    NAMES.get_or_init(|| {
        let many = (1..=200).map(|n| [10, 0, 0, n].into()).collect();
        let names = [
            ("orders.shop.svc.cluster.local", vec![[10, 96, 0, 10].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 1].into()]),
            ("api.example.com", vec![[240, 240, 0, 1].into()]),
            ("many.shop.svc.cluster.local", many),
        ];
        DnsNames {
            names: Arc::new(names.into_iter().map(|(name, addresses)| (name.to_owned(), addresses)).collect()),
            search: ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"].map(str::to_owned).to_vec(),
            ttl: Duration::from_secs(30),
        }
    })
}

/// Queries, and answers of servers: an answer has the number of its query, is an answer, and no longer than may be.
pub fn mesh_dns(data: &[u8]) {
    let parts = parts(data);
    let Some(query) = parts.first() else { return };
    for stream in [false, true] {
        let Some(answer) = probe::heard(names(), query, stream) else { continue };
        assert!(query[2] & 0x80 == 0, "an answer is answered");
        sound(query, &answer, if stream { 65_535 } else { 1232 });
    }
    for told in parts.iter().skip(1) {
        let Some((answer, again)) = probe::relayed(query, told) else { continue };
        sound(query, &answer, 1232);
        if let Some(again) = again {
            sound(query, &again, 1232);
        }
    }
}

fn sound(query: &[u8], answer: &[u8], most: usize) {
    assert!((12..=most).contains(&answer.len()), "{} bytes", answer.len());
    assert_eq!(answer[..2], query[..2]);
    assert!(answer[2] & 0x80 != 0);
}

/// A part begins with what it is: a message of the other side, or something that happens.
pub fn discovery_stream(data: &[u8]) {
    let Some((&side, data)) = data.split_first() else { return };
    if side & 1 == 0 { proxy_side(&parts(data)) } else { control_side(&parts(data)) }
}

/// What control planes send: taken in or refused, each update answered at most once, and as many connections as losses.
fn proxy_side(parts: &[&[u8]]) {
    let me = Me { hello: Hello::default(), urls: vec!["a".to_owned(), "b".to_owned()], seed: 1 };
    let (mut machine, mut intake) = (Machine::new(0, me, BTreeMap::new()), Intake::default());
    let (mut now, mut answered) = (0, BTreeSet::new());
    for part in parts {
        let Some((&kind, rest)) = part.split_first() else { continue };
        now += 100;
        let name = String::from_utf8_lossy(rest).into_owned();
        let event = match kind % 8 {
            0 => Event::Tick,
            1 => Event::Connected,
            2 => Event::Lost(name),
            3 => Event::Want(Wanted::Host(name)),
            4 => Event::Register { key: name.clone(), json: name.into() },
            5 => Event::Withdraw { key: name },
            _ => match ControlMessage::decode(rest) {
                Ok(message) => Event::Message(message),
                Err(_) => continue,
            },
        };
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in machine.step(now, event) {
                match action {
                    Action::Apply(change) => events.push(Event::Applied(applied(&mut intake, change))),
                    Action::Send(ProxyMessage { message: Some(proxy_message::Message::Ack(_)) }) => {
                        assert!(machine.is_open());
                    }
                    Action::Answered(wanted, known) => _ = answered.insert((wanted, known)),
                    _ => {}
                }
            }
        }
        assert!(machine.wakes(now) >= now && !machine.url().is_empty());
    }
}

fn applied(
    intake: &mut Intake,
    change: selvedge_control::source::stream::machine::Change,
) -> selvedge_control::source::stream::machine::Outcome {
    let number = change.number;
    let asked: BTreeSet<_> = change.upserts.iter().filter_map(|(key, ..)| read_key(key)).collect();
    let before: BTreeSet<_> = intake.resources().iter().map(|r| r.key()).collect();
    intake.take_in(change);
    let options = Options { now: 1_900_000_000, ..Options::default() };
    let compiled = compile(intake.resources(), &options);
    if intake.judge(&compiled) {
        let again = compile(intake.resources(), &options);
        assert!(!intake.judge(&again), "a change is judged once");
    }
    let after: Vec<_> = intake.resources().iter().map(|r| r.key()).collect();
    assert!(after.iter().all(|key| before.contains(key) || asked.contains(key)), "what nobody sent is served");
    let outcome = intake.installed(Vec::new()).expect("an answer");
    assert_eq!(outcome.number, number);
    outcome
}

fn services() -> &'static Vec<Resource> {
    static SERVICES: OnceLock<Vec<Resource>> = OnceLock::new();
    SERVICES.get_or_init(|| {
        let text = "{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: shop}, spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}}\n---\n\
                    {apiVersion: v1, kind: Secret, metadata: {name: cart, namespace: other}, stringData: {a: b}}";
        let parsed = parse("fuzz", text.as_bytes(), &Limits::default());
        parsed.loaded.into_iter().filter_map(|l| l.resource).collect()
    })
}

/// What proxies send: whatever a member of one namespace says, it gets no Secret of another.
fn control_side(parts: &[&[u8]]) {
    let mut hub = Hub::new(0);
    hub.resources(0, services().iter().map(|r| (r.key(), Some(r.clone()))).collect());
    hub.connected(0, 1, Some(Some(cart())));
    hub.connected(0, 2, Some(None));
    let mut now = 0;
    for part in parts {
        let Some((&kind, rest)) = part.split_first() else { continue };
        now += 500;
        let node = 1 + u64::from(kind & 1);
        match kind >> 1 & 7 {
            0 => hub.tick(now),
            1 => hub.gone(now, node),
            2 => drop(hub.connected(now, 3, None)),
            _ => match ProxyMessage::decode(rest) {
                Ok(message) => hub.message(now, node, message),
                Err(_) => continue,
            },
        }
        for (_, output) in hub.take_output() {
            if let selvedge_control::publish::hub::Output::Group(group) = output {
                assert!(group.upserts.iter().all(|entry| !entry.key.to_string().starts_with("Secret")));
            }
        }
        hub.take_joined();
    }
}

/// However a stream is cut, it comes out the same; what has come out goes through unchanged, and is not longer than what came.
pub fn authority_rewriter(data: &[u8]) {
    let stream = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], data].concat();
    let whole = workload_api::rewritten([&stream[..]]);
    assert_eq!(whole, workload_api::rewritten(stream.chunks(1)));
    assert_eq!(whole, workload_api::rewritten(stream.chunks(7)));
    assert!(whole.len() <= stream.len());
    assert_eq!(whole, workload_api::rewritten([&whole[..]]));
}

/// Nothing is believed but what the issuer has signed: the bytes as a token, and as header and claims of one that is signed.
pub fn jwt(data: &[u8]) {
    static ISSUER: OnceLock<(Ed25519KeyPair, Auth)> = OnceLock::new();
    let (key, auth) = ISSUER.get_or_init(|| {
        let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a key");
        let material = JwtMaterial::Ed(key.public_key().as_ref().to_vec());
        let keys = vec![JwtKey { id: None, algorithms: vec![JwtAlgorithm::EdDSA], material }];
        let told = ["sub", "a/b"].map(|claim| ClaimHeader {
            header: http::HeaderName::from_static("x-a"),
            claim: claim.split('/').map(str::to_owned).collect(),
        });
        let provider = JwtProvider {
            name: "a".to_owned(),
            issuer: "i".to_owned(),
            audiences: vec!["shop".to_owned()],
            keys: Arc::new(keys),
            skew: Duration::from_secs(60),
            claim_headers: told.to_vec(),
            forward: true,
        };
        let auth = Auth {
            name: "a/a".to_owned(),
            optional: false,
            providers: vec![provider],
            places: Vec::new(),
            strip: Vec::new(),
            broken: None,
            digest: [0; 32],
        };
        (key, auth)
    });
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    if let Ok(token) = std::str::from_utf8(data) {
        let _ = jwt::verify(auth, &[0], token, now);
    }
    let (header, claims) = line(data);
    let text = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
    let message = format!("{}.{}", text(header), text(claims));
    let token = format!("{message}.{}", text(key.sign(message.as_bytes()).as_ref()));
    if let Ok(proof) = jwt::verify(auth, &[0], &token, now) {
        assert!(proof.claims["iss"] == "i" && proof.until > now);
        let mut forged = token.into_bytes();
        let last = forged.len() - 10;
        forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(forged).expect("ASCII");
        assert!(jwt::verify(auth, &[0], &forged, now).is_err());
    }
}

/// An expression that is taken says the same each time, and within its limits.
pub fn expression(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(expression) = Expression::compile(text) else { return };
    let mut headers = http::HeaderMap::new();
    for value in ["a", "b", "\u{fc}"] {
        headers.append("x-a", http::HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
    }
    let id = cart();
    let asked =
        Asked { method: "GET", host: "orders.shop", path: "/orders/7", query: Some("a=b"), headers: Some(&headers) };
    for layer7 in [Layer7::Request(asked), Layer7::Bytes] {
        let address = [10, 0, 0, 1].into();
        let (identity, port) = (Some(&id), 80);
        let said = Value::from_iter([("sub", "anna"), ("aud", "shop")]);
        let subject = Subject {
            identity,
            mtls: true,
            peer: address,
            client: address,
            port,
            claims: Some(&said),
            preflight: false,
            layer7,
        };
        assert_eq!(expression.says(&subject), expression.says(&subject));
    }
}

/// Lines of a path, and below each a value up to a NUL; a value that begins with `-` is removed. Only what is written there is
/// served, and in the end nothing.
pub fn etcd_value(data: &[u8]) {
    let client = Client::new(Vec::new(), "/selvedge");
    let mut source = EtcdSource::new(&client);
    let mut written = BTreeSet::new();
    for part in data.split(|b| *b == 0).take(16) {
        let (path, value) = line(part);
        let keep = !value.starts_with(b"-");
        source.told(path, keep.then(|| value.to_vec()));
        written.insert(path.to_vec());
        let keys: BTreeSet<_> = written.iter().filter_map(|p| client.key(&String::from_utf8_lossy(p))).collect();
        assert!(source.resources().iter().all(|r| keys.contains(&r.key())));
        let mut diagnostics = source.diagnostics();
        source.locate(&mut diagnostics);
    }
    written.iter().for_each(|path| source.told(path, None));
    assert_eq!(source.resources().iter().count(), 0);
    assert!(source.diagnostics().is_empty());
}
