use super::*;
use hickory_proto::{
    op::{Edns, MessageType, OpCode, Query},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, SOA, TXT},
    },
};
use proptest::prelude::*;
use std::{
    future::Future,
    pin::Pin,
    sync::{Mutex, OnceLock, atomic::AtomicBool},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

fn names() -> Arc<DnsNames> {
    let names = [
        ("orders.shop.svc.cluster.local", "10.96.0.10 fd00::10"),
        ("db.data.svc.cluster.local", "10.96.0.20"),
        ("api.example.com", "240.240.0.1"),
        ("headless.shop.svc.cluster.local", "10.0.0.1 10.0.0.2 10.0.0.3"),
    ];
    let addresses = |text: &str| text.split(' ').map(|ip| ip.parse().expect("an address")).collect();
    Arc::new(DnsNames {
        names: Arc::new(names.iter().map(|(name, text)| ((*name).to_owned(), addresses(text))).collect()),
        search: ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"].map(str::to_owned).to_vec(),
        ttl: Duration::from_secs(30),
    })
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    message
}

/// An upstream server whose zone is in its code; `big.example.com` fits no datagram.
async fn upstream() -> (SocketAddr, Arc<AtomicU64>) {
    // Of both protocols, which the kernel does not look after.
    let (tcp, address, udp) = loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = tcp.local_addr().expect("an address");
        if let Ok(udp) = UdpSocket::bind(address).await {
            break (tcp, address, udp);
        }
    };
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let Ok((length, peer)) = udp.recv_from(&mut buffer).await else { return };
            counted.fetch_add(1, Relaxed);
            for answer in told(&buffer[..length], false) {
                let _ = udp.send_to(&answer, peer).await;
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut query = vec![0; stream.read_u16().await.expect("a length").into()];
            stream.read_exact(&mut query).await.expect("a query");
            for answer in told(&query, true) {
                let length = u16::try_from(answer.len()).expect("short").to_be_bytes();
                stream.write_all(&[&length[..], &answer].concat()).await.expect("written");
            }
        }
    });
    (address, count)
}

fn told(query: &[u8], stream: bool) -> Vec<Vec<u8>> {
    let query = Message::from_vec(query).expect("a query");
    let name = query.queries[0].name.clone();
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.metadata.recursion_available = true;
    answer.queries = query.queries.clone();
    answer.set_edns(Edns::new());
    let mut answers = Vec::new();
    match name.to_ascii().to_ascii_lowercase().trim_end_matches('.') {
        "big.example.com" if stream => {
            let text = |n: u32| RData::TXT(TXT::new(vec![format!("{n:0200}")]));
            answer.add_answers((0..20).map(|n| Record::from_rdata(name.clone(), 60, text(n))));
        }
        "big.example.com" => answer.metadata.truncation = true,
        "broken.example.com" => answer.metadata.response_code = ResponseCode::ServFail,
        "silent.example.com" => return Vec::new(),
        "forged.example.com" => {
            // Someone who guesses, and guesses wrong; then the right one.
            let mut forged = answer.clone();
            forged.metadata.id = query.metadata.id.wrapping_add(1);
            forged.add_answer(Record::from_rdata(name.clone(), 60, RData::A(A::new(6, 6, 6, 6))));
            answers.push(forged.to_vec().expect("bytes"));
            let mut other = answer.clone();
            other.queries = vec![Query::query(Name::from_ascii("else.").expect("a name"), RecordType::A)];
            answers.push(other.to_vec().expect("bytes"));
            answers.push(b"garbage".to_vec());
            answer.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 1))));
        }
        known if known.ends_with(".example.com") => {
            answer.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 1))));
        }
        _ => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            let soa = SOA::new(Name::root(), Name::root(), 1, 2, 3, 4, 20);
            answer.add_authority(Record::from_rdata(Name::root(), 60, RData::SOA(soa)));
        }
    }
    answers.push(answer.to_vec().expect("bytes"));
    answers
}

async fn start(upstream: &[SocketAddr], discover: Option<Arc<dyn Discover>>) -> Dns {
    let listen = vec!["127.0.0.1:0".parse().expect("an address")];
    Dns::start(Config { listen, upstream: upstream.to_vec(), discover, ..Config::default() }, names())
        .expect("a server")
}

async fn exchange(dns: &Dns, query: &Message) -> Message {
    let bytes = datagram(dns, &query.to_vec().expect("bytes")).await;
    let answer = Message::from_vec(&bytes).expect("an answer");
    assert_eq!(answer.metadata.id, query.metadata.id);
    assert_eq!(answer.queries, query.queries);
    answer
}

async fn datagram(dns: &Dns, bytes: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    socket.send_to(bytes, dns.listening()[0]).await.expect("sent");
    let mut buffer = vec![0; 65_535];
    let received = timeout(Duration::from_secs(60), socket.recv(&mut buffer)).await;
    buffer.truncate(received.expect("in time").expect("an answer"));
    buffer
}

/// Addresses of a name, and the code of the answer.
async fn ask(dns: &Dns, name: &str, kind: RecordType) -> String {
    let answer = exchange(dns, &query(name, kind)).await;
    let mut records: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
    records.sort_unstable();
    format!("{:?} {}", answer.metadata.response_code, records.join(" ")).trim_end().to_owned()
}

#[tokio::test]
async fn names_of_the_mesh_are_answered_in_each_form() {
    let dns = start(&[], None).await;
    for name in [
        "orders.shop.svc.cluster.local.",
        "ORDERS.Shop.svc.cluster.local.",
        "orders.shop.",
        "orders.",
        "orders.shop.svc.",
    ] {
        assert_eq!(ask(&dns, name, RecordType::A).await, "NoError 10.96.0.10", "{name}");
        assert_eq!(ask(&dns, name, RecordType::AAAA).await, "NoError fd00::10", "{name}");
    }
    assert_eq!(ask(&dns, "db.data.", RecordType::A).await, "NoError 10.96.0.20");
    assert_eq!(ask(&dns, "api.example.com.", RecordType::A).await, "NoError 240.240.0.1");
    assert_eq!(ask(&dns, "headless.", RecordType::A).await, "NoError 10.0.0.1 10.0.0.2 10.0.0.3");
    assert_eq!(dns.count(Outcome::Mesh), 13);
}

#[tokio::test]
async fn the_other_family_is_no_data_and_not_no_name() {
    let dns = start(&[], None).await;
    let answer = exchange(&dns, &query("db.data.", RecordType::AAAA)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    assert!(answer.answers.is_empty() && answer.metadata.authoritative);
    assert!(matches!(&answer.authorities[..], [Record { data: RData::SOA(soa), .. }] if soa.minimum == 30), "{answer}");
    assert_eq!(ask(&dns, "orders.", RecordType::TXT).await, "NoError");
    assert_eq!(ask(&dns, "api.example.com.", RecordType::HTTPS).await, "NoError");
    // Nobody to ask: names in our domain do not exist, about others we say nothing.
    assert_eq!(ask(&dns, "none.shop.svc.cluster.local.", RecordType::A).await, "NXDomain");
    assert_eq!(ask(&dns, "example.org.", RecordType::A).await, "Refused");
    assert_eq!(ask(&dns, "api.example.com.", RecordType::MX).await, "Refused");
}

#[tokio::test]
async fn other_names_are_passed_on_and_kept_for_a_while() {
    let (server, count) = upstream().await;
    let dns = start(&[server], None).await;
    for _ in 0..3 {
        assert_eq!(ask(&dns, "www.example.com.", RecordType::A).await, "NoError 192.0.2.1");
        assert_eq!(ask(&dns, "WWW.example.com.", RecordType::A).await, "NoError 192.0.2.1");
        assert_eq!(ask(&dns, "none.example.net.", RecordType::A).await, "NXDomain");
    }
    assert_eq!(count.load(Relaxed), 2);
    assert_eq!((dns.count(Outcome::Forwarded), dns.count(Outcome::Cached)), (2, 7));
    // What belongs to somebody else stays theirs but for addresses.
    assert_eq!(ask(&dns, "api.example.com.", RecordType::MX).await, "NoError 192.0.2.1");
    assert_eq!(ask(&dns, "forged.example.com.", RecordType::A).await, "NoError 192.0.2.1");
}

#[tokio::test]
async fn long_answers_come_by_stream() {
    let (server, _) = upstream().await;
    let dns = start(&[server], None).await;
    let mut asked = query("big.example.com.", RecordType::TXT);
    let short = exchange(&dns, &asked).await;
    assert!(short.metadata.truncation && short.answers.is_empty() && short.edns.is_none(), "{short}");
    asked.set_edns(Edns::new().set_max_payload(4096).clone());
    let answer = datagram(&dns, &asked.to_vec().expect("bytes")).await;
    assert!(answer.len() <= 1232, "{}", answer.len());
    let answer = Message::from_vec(&answer).expect("an answer");
    assert!(answer.metadata.truncation && answer.edns.is_some(), "{answer}");
    let mut stream = TcpStream::connect(dns.listening()[0]).await.expect("a connection");
    for _ in 0..2 {
        let bytes = asked.to_vec().expect("bytes");
        stream.write_u16(bytes.len().try_into().expect("short")).await.expect("written");
        stream.write_all(&bytes).await.expect("written");
        let mut answer = vec![0; stream.read_u16().await.expect("a length").into()];
        stream.read_exact(&mut answer).await.expect("an answer");
        let answer = Message::from_vec(&answer).expect("an answer");
        assert_eq!((answer.answers.len(), answer.metadata.truncation), (20, false));
    }
}

#[tokio::test]
async fn a_server_that_fails_is_followed_by_the_next() {
    let (server, _) = upstream().await;
    let (closed, _held) = selvedge_testkit::tcp::closed_udp_port().await;
    let dns = start(&[closed, server], None).await;
    assert_eq!(ask(&dns, "www.example.com.", RecordType::A).await, "NoError 192.0.2.1");
    assert_eq!(ask(&dns, "broken.example.com.", RecordType::A).await, "ServFail");
    let none = start(&[closed], None).await;
    assert_eq!(ask(&none, "www.example.com.", RecordType::A).await, "ServFail");
    assert_eq!(none.count(Outcome::Failed), 1);
}

#[tokio::test]
async fn a_server_that_is_silent_is_given_up() {
    let (server, count) = upstream().await;
    let dns = start(&[server], None).await;
    assert_eq!(ask(&dns, "silent.example.com.", RecordType::A).await, "ServFail");
    assert_eq!(count.load(Relaxed), 3);
}

#[tokio::test]
async fn what_is_not_served_is_refused() {
    let dns = start(&[], None).await;
    assert_eq!(ask(&dns, "orders.", RecordType::AXFR).await, "Refused");
    let mut versioned = query("orders.", RecordType::A);
    versioned.set_edns(Edns::new().set_version(1).clone());
    let answer = exchange(&dns, &versioned).await;
    assert_eq!((answer.answers.len(), answer.edns.map(|edns| edns.rcode_high())), (0, Some(1)));
    let mut twice = query("orders.", RecordType::A);
    twice.add_query(Query::query(Name::root(), RecordType::A));
    let code = |bytes: &[u8]| bytes[3] & 0xf;
    assert_eq!(code(&datagram(&dns, &twice.to_vec().expect("bytes")).await), 1, "FORMERR");
    let mut cut = query("orders.", RecordType::A).to_vec().expect("bytes");
    cut.truncate(15);
    let answer = datagram(&dns, &cut).await;
    assert_eq!((&answer[..2], code(&answer)), (&cut[..2], 1));
    let mut notify = query("orders.", RecordType::A).to_vec().expect("bytes");
    notify[2] |= 4 << 3;
    assert_eq!(code(&datagram(&dns, &notify).await), 4, "NOTIMP");
    let shared = &dns.shared;
    let mut answer = query("orders.", RecordType::A).to_vec().expect("bytes");
    answer[2] |= 0x80;
    assert!(matches!(shared.hear(&answer, Limits::Datagram), Heard::Nothing), "answers are not answered");
    assert!(matches!(shared.hear(&[0; 11], Limits::Stream), Heard::Nothing));
}

/// Knows two more names when asked for any.
#[derive(Debug, Default)]
struct Knows {
    dns: OnceLock<Arc<Dns>>,
    asked: Mutex<Vec<Wanted>>,
    knows: AtomicBool,
}

impl Discover for Knows {
    fn wanted(&self, what: Wanted) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.asked.lock().expect("not poisoned").push(what);
        if self.knows.load(Relaxed) {
            let mut more = (*names()).clone();
            for name in ["new.shop.svc.cluster.local", "pay.example.com"] {
                Arc::make_mut(&mut more.names).insert(name.into(), vec![[10, 96, 0, 99].into()]);
            }
            self.dns.get().expect("a server").set(Arc::new(more));
        }
        Box::pin(async {})
    }
}

#[tokio::test]
async fn unknown_names_of_the_mesh_are_asked_of_the_control_plane() {
    let (server, queries) = upstream().await;
    let knows = Arc::new(Knows::default());
    let dns = Arc::new(start(&[server], Some(knows.clone())).await);
    knows.dns.set(dns.clone()).expect("once");
    assert_eq!(ask(&dns, "www.example.com.", RecordType::A).await, "NoError 192.0.2.1");
    assert_eq!(ask(&dns, "www.example.com.", RecordType::A).await, "NoError 192.0.2.1");
    assert_eq!(queries.load(Relaxed), 1);
    assert_eq!(ask(&dns, "old.shop.svc.cluster.local.", RecordType::A).await, "NXDomain");
    let answer = exchange(&dns, &query("nix.shop.svc.cluster.local.", RecordType::TXT)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert!(answer.authorities.iter().any(|record| matches!(record.data, RData::SOA(_))), "{answer:?}");
    assert_eq!(queries.load(Relaxed), 1, "names of the mesh are not told upstream");
    knows.knows.store(true, Relaxed);
    assert_eq!(ask(&dns, "New.shop.svc.", RecordType::A).await, "NoError 10.96.0.99");
    let host = |name: &str| Wanted::Host(name.into(), 0);
    // Nobody upstream knows this one.
    assert_eq!(ask(&dns, "db.internal.example.net.", RecordType::A).await, "NXDomain");
    let asked = knows.asked.lock().expect("not poisoned").clone();
    let all = ["www.example.com", "old.shop.svc.cluster.local", "new.shop.svc", "db.internal.example.net"];
    assert_eq!(asked, all.map(host), "what was told upstream is not asked for again while it holds");
}

#[tokio::test]
async fn the_mesh_knows_a_name_better_than_the_world() {
    let (server, _) = upstream().await;
    let knows = Arc::new(Knows { knows: true.into(), ..Knows::default() });
    let dns = Arc::new(start(&[server], Some(knows.clone())).await);
    knows.dns.set(dns.clone()).expect("once");
    assert_eq!(ask(&dns, "pay.example.com.", RecordType::A).await, "NoError 10.96.0.99");
    assert_eq!(ask(&dns, "www.example.com.", RecordType::A).await, "NoError 192.0.2.1");
    // Without an answer of anybody upstream.
    let (closed, _held) = selvedge_testkit::tcp::closed_udp_port().await;
    let knows = Arc::new(Knows { knows: true.into(), ..Knows::default() });
    let dns = Arc::new(start(&[closed], Some(knows.clone())).await);
    knows.dns.set(dns.clone()).expect("once");
    assert_eq!(ask(&dns, "pay.example.com.", RecordType::A).await, "NoError 10.96.0.99");
    assert_eq!(ask(&dns, "www.example.com.", RecordType::A).await, "ServFail");
}

#[tokio::test(start_paused = true)]
async fn answers_are_kept_as_long_as_they_hold() {
    let cache = Cache::default();
    let bytes = query("www.example.com.", RecordType::A).to_vec().expect("bytes");
    let asked = Asked::read(&bytes, Limits::Datagram).expect("a query");
    let message = Message::from_vec(&told(&bytes, false)[0]).expect("an answer");
    cache.put(&asked, &message, Instant::now());
    tokio::time::advance(Duration::from_secs(59)).await;
    let kept = cache.get(&asked, Instant::now()).expect("still there");
    assert_eq!(kept.answers[0].ttl, 1);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(cache.get(&asked, Instant::now()).is_none());
    for n in 0..3000 {
        let bytes = query(&format!("h{n}.example.com."), RecordType::A).to_vec().expect("bytes");
        let asked = Asked::read(&bytes, Limits::Datagram).expect("a query");
        cache.put(&asked, &message, Instant::now());
        assert!(cache.get(&asked, Instant::now()).is_some());
    }
    assert!(cache.len() <= 2048, "{}", cache.len());
}

fn shared() -> Shared {
    Shared {
        names: ArcSwap::new(names()),
        discover: None,
        cache: Cache::default(),
        forwarder: Forwarder::new(Vec::new(), Space::current(), None).expect("no namespace to enter"),
        waiting: Arc::new(Semaphore::new(1)),
        counts: Counts::default(),
    }
}

/// Bytes, and queries with some bytes changed: those get further.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let names = prop_oneof![Just("orders.shop."), Just("api.example.com."), Just("."), Just("www.example.org.")];
    let changed = (names, any::<u16>(), proptest::collection::vec((any::<u16>(), any::<u8>()), 0..6)).prop_map(
        |(name, kind, changes)| {
            let mut asked = query(name, kind.into());
            asked.set_edns(Edns::new());
            let mut bytes = asked.to_vec().expect("bytes");
            let length = bytes.len();
            for (at, byte) in changes {
                bytes[usize::from(at) % length] = byte;
            }
            bytes
        },
    );
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..600), changed]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn no_bytes_bring_it_down(bytes in hostile(), stream in any::<bool>()) {
        let limits = if stream { Limits::Stream } else { Limits::Datagram };
        let shared = shared();
        let max = if stream { 65_535 } else { 1232 };
        match shared.hear(&bytes, limits) {
            Heard::Nothing => prop_assert!(bytes.len() < 12 || bytes[2] & 0x80 != 0),
            Heard::Answer(answer) => {
                prop_assert!(answer.len() >= 12 && answer.len() <= max);
                prop_assert_eq!(&answer[..2], &bytes[..2]);
                prop_assert!(answer[2] & 0x80 != 0);
            }
            Heard::Ask(asked) => {
                // The same bytes as an upstream server's answer.
                prop_assert!(asked.forwarded(1).to_vec().is_ok());
                if let Ok(message) = Message::from_vec(&bytes) {
                    asked.is_answered_by(&message, 1);
                    shared.cache.put(&asked, &message, Instant::now());
                    prop_assert!(asked.answer(message).len() <= max);
                }
                zone::is_likely_of_the_mesh(&names(), &asked.query);
                // Each byte of a name is written in four characters at most.
                prop_assert!(zone::host(&asked.query).is_none_or(|name| name.len() <= 4 * 255));
            }
        }
    }
}
