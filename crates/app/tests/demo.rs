//! The demo as a newcomer meets it: the real binary, every command it prints, and a clean end.

use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use selvedge_testkit::selvedge::free_ports;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio_tungstenite::tungstenite::Message;
use tonic::{client::Grpc, codegen::http::uri::PathAndQuery, transport::Endpoint};
use tonic_prost::ProstCodec;

/// Ports that the demo takes in a row.
const BLOCK: u16 = 20;
/// Longest wait of a socket for an answer.
const PATIENCE: Duration = Duration::from_secs(30);
const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge");

/// A running demo with what it has printed.
struct Demo {
    child: Child,
    base: u16,
    summary: Vec<String>,
    rest: BufReader<std::process::ChildStdout>,
}

impl Demo {
    /// Starts at a block of ports that is for it alone.
    fn start(extra: &[&str]) -> Self {
        for _ in 0..10 {
            let base = free_ports(BLOCK);
            let mut child = demo(base).args(extra).stdout(Stdio::piped()).spawn().expect("the demo starts");
            let mut rest = BufReader::new(child.stdout.take().expect("its output"));
            let mut summary = Vec::new();
            let mut line = String::new();
            while rest.read_line(&mut line).expect("text") > 0 {
                summary.push(line.trim_end().to_owned());
                if line.starts_with("Ctrl-C") {
                    return Self { child, base, summary, rest };
                }
                line.clear();
            }
            child.wait().expect("it has ended");
        }
        panic!("no block of free ports was found");
    }

    fn http(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.base))
    }

    /// The commands it prints.
    fn commands(&self) -> Vec<&str> {
        let commands = self.summary.iter().filter_map(|line| line.strip_prefix("    "));
        commands.filter(|line| !line.starts_with('#')).collect()
    }

    fn folder(&self) -> PathBuf {
        let line = self.summary.iter().find_map(|line| line.trim().strip_prefix("resources")).expect("the folder");
        let resources = line.split_whitespace().next().expect("a path");
        Path::new(resources).parent().expect("a parent").to_owned()
    }

    /// As Ctrl-C does; gives the exit status and what was printed after the summary.
    fn interrupt(mut self) -> (ExitStatus, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("the signal is sent");
        let mut rest = String::new();
        self.rest.read_to_string(&mut rest).expect("text");
        (self.child.wait().expect("it ends"), rest)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn demo(base: u16) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["demo", "--port-base", &base.to_string()]).env_remove("SELVEDGE_LOG");
    command
}

/// Sends a request as it is and reads until the gateway closes.
fn exchange(mut stream: impl Read + Write, request: &str) -> String {
    stream.write_all(format!("{request}\r\nconnection: close\r\n\r\n").as_bytes()).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    String::from_utf8(answer).expect("text")
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the gateway listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

fn get(demo: &Demo, path: &str, headers: &str) -> String {
    exchange(connect(demo.http()), &format!("GET {path} HTTP/1.1\r\nhost: localhost{headers}"))
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("")
}

#[test]
fn every_feature_answers_over_http() {
    let demo = Demo::start(&["--no-traffic"]);
    assert_eq!(status(&get(&demo, "/", "")), "200");
    assert!(get(&demo, "/catalog/2", "").contains("wool blanket"));
    let versions: Vec<bool> = (0..300).map(|_| get(&demo, "/catalog/1", "").contains(r#""version": "v2""#)).collect();
    let canaries = versions.iter().filter(|canary| **canary).count();
    // Of a binomial distribution with 30 of 300; what is farther off comes once in 10^11 runs.
    assert!((1..=75).contains(&canaries), "{canaries} of 300 with a weight of 10");
    assert!(get(&demo, "/catalog/1", "\r\nx-version: v2").contains("new_in_v2"));
    let bare: Vec<String> = (0..4).map(|_| get(&demo, "/cart/flaky-bare", "")).collect();
    assert_eq!(bare.iter().map(|a| status(a)).collect::<Vec<_>>(), ["503", "200", "503", "200"]);
    for _ in 0..4 {
        assert_eq!(status(&get(&demo, "/cart/flaky", "")), "200", "a retry hides the failure");
    }
    assert_eq!(status(&get(&demo, "/cart/slow?ms=9000", "")), "504");
    assert_eq!(status(&get(&demo, "/cart/slow?ms=1", "")), "200");
    let redirect = get(&demo, "/old-shop/3", "").to_lowercase();
    assert_eq!(status(&redirect), "301");
    assert!(redirect.contains(&format!("location: http://localhost:{}/catalog/3\r\n", demo.base)), "{redirect}");
    assert!(get(&demo, "/api/products/3", "").contains("silk scarf"));
    let preflight = "OPTIONS /cart HTTP/1.1\r\nhost: localhost\r\norigin: https://shop.example\r\naccess-control-request-method: POST";
    let preflight = exchange(connect(demo.http()), preflight).to_lowercase();
    assert!(preflight.contains("access-control-allow-origin: https://shop.example"), "{preflight}");
    let added = "POST /cart HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n";
    let mut stream = connect(demo.http());
    stream.write_all(format!("{added}connection: close\r\n\r\n{{\"sku\": 4}}").as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    assert!(answer.contains("cotton apron"), "{answer}");
    let (ended, _) = demo.interrupt();
    assert_eq!(ended.code(), Some(0));
}

#[test]
fn tls_grpc_websocket_and_tcp_pass() {
    let demo = Demo::start(&["--no-traffic"]);
    let authority = CertificateDer::from_pem_file(demo.folder().join("ca.pem")).expect("the authority");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let session = rustls::ClientConnection::new(Arc::new(config), name).expect("a session");
    let https = connect(SocketAddr::from((Ipv4Addr::LOCALHOST, demo.base + 1)));
    let answer = exchange(rustls::StreamOwned::new(session, https), "GET /catalog/1 HTTP/1.1\r\nhost: localhost");
    assert!(answer.contains("linen towel"), "{answer}");

    let mut echo = connect(SocketAddr::from((Ipv4Addr::LOCALHOST, demo.base + 2)));
    echo.write_all(b"over TCP").expect("sent");
    echo.shutdown(std::net::Shutdown::Write).expect("half closed");
    let mut back = String::new();
    echo.read_to_string(&mut back).expect("text");
    assert_eq!(back, "over TCP");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, async {
            assert_eq!(inventory(&demo, "/shop.Inventory/Get").await, [("wool blanket".to_owned(), 114)]);
            assert_eq!(inventory(&demo, "/shop.Inventory/Watch").await.len(), 5);
            let stream = tokio::net::TcpStream::connect(demo.http()).await.expect("connected");
            let (mut chat, _) = tokio_tungstenite::client_async("ws://localhost/chat", stream).await.expect("upgraded");
            chat.send(Message::text("hello")).await.expect("sent");
            let answer = chat.next().await.expect("an answer").expect("a message");
            assert_eq!(answer.to_text().expect("text"), "chat says: hello");
        })
        .await
        .expect("in time");
    });
    drop(runtime);
    let folder = demo.folder();
    let (ended, rest) = demo.interrupt();
    assert_eq!(ended.code(), Some(0), "{rest}");
    assert!(!folder.exists(), "the temporary folder is gone");
}

#[derive(Clone, PartialEq, prost::Message)]
struct StockRequest {
    #[prost(uint32, tag = "1")]
    sku: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Stock {
    #[prost(uint32, tag = "1")]
    sku: u32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint32, tag = "3")]
    count: u32,
}

async fn inventory(demo: &Demo, method: &'static str) -> Vec<(String, u32)> {
    let channel = Endpoint::from_shared(format!("http://{}", demo.http())).expect("a URI").connect().await;
    let mut grpc = Grpc::new(channel.expect("connected"));
    grpc.ready().await.expect("ready");
    let codec: ProstCodec<StockRequest, Stock> = ProstCodec::default();
    let request = tonic::Request::new(StockRequest { sku: 2 });
    let answer = grpc.server_streaming(request, PathAndQuery::from_static(method), codec).await.expect("called");
    let mut stream = answer.into_inner();
    let mut all = Vec::new();
    while let Some(stock) = stream.message().await.expect("a message") {
        all.push((stock.name, stock.count));
    }
    all
}

#[test]
fn every_printed_command_works() {
    let curl = Command::new("curl").arg("--version").output().is_ok_and(|output| output.status.success());
    if !curl {
        selvedge_testkit::left_out("the curl lines that the demo prints, because curl is not installed");
    }
    // No traffic of its own, which would hide the failures that some commands show.
    let demo = Demo::start(&["--svid-ttl", "20", "--no-traffic"]);
    let commands = demo.commands();
    assert!(commands.len() > 15, "{commands:#?}");
    for command in &commands {
        if command.contains("curl") && !curl {
            continue;
        }
        let output = run(command, expected(command));
        let text = String::from_utf8_lossy(&output.stdout);
        // Whether the chat may: it may not.
        let denied = command.contains(" may ") && command.contains("/sa/chat");
        assert_eq!(output.status.success(), !denied, "`{command}`: {output:?}");
        assert!(expected(command).iter().all(|part| text.contains(part)), "`{command}` prints:\n{text}");
    }
    let (ended, _) = demo.interrupt();
    assert_eq!(ended.code(), Some(0));
}

fn sh(command: &str) -> Output {
    Command::new("sh").args(["-c", command]).stdin(Stdio::null()).output().expect("a shell")
}

/// Runs a printed command. Where it looks at what others learn a moment after it has happened, it is waited for: proxies tell the
/// control plane what they have taken in, and a copy of a request comes behind the answer to the request.
fn run(command: &str, expected: &[&str]) -> Output {
    let (act, look) = match command.split_once("; sleep 0.2; ") {
        Some((act, look)) => (Some(act), look),
        None if command.contains(" status ") => (None, command),
        None => return sh(command),
    };
    let acted = act.map_or_else(Vec::new, |act| sh(act).stdout);
    let began = std::time::Instant::now();
    loop {
        let mut output = sh(look);
        output.stdout.splice(0..0, acted.clone());
        let text = String::from_utf8_lossy(&output.stdout);
        if expected.iter().all(|part| text.contains(part)) || began.elapsed() > PATIENCE {
            return output;
        }
    }
}

/// What the answer to a printed command must contain; a command without an entry is a mistake in this test.
fn expected(command: &str) -> &'static [&'static str] {
    const ALL: [(&str, &[&str]); 32] = [
        (" status ", &["9 proxies, 9 in sync", "spiffe://cluster.local/ns/default/sa/gateway"]),
        (" identities ", &["spiffe://cluster.local/ns/default/sa/cart", "ends in"]),
        (" ca show ", &["trust domain cluster.local", "intermediate"]),
        (" rotation ", &["before  spiffe://", "after   spiffe://", " 0 failed"]),
        ("-x http://127.0.8.4", &["200 OK", "linen towel"]),
        ("-x http://127.0.8.6", &["403 Forbidden"]),
        ("/sa/cart", &["allowed  Workload default/catalog-v1-a"]),
        ("/sa/chat", &["denied  Workload default/catalog-v1-a"]),
        ("/fail;", &["500 ", "200 200 200 200"]),
        ("demo grpc --port", &["product 2: wool blanket, 114 in stock"]),
        ("demo ws", &["chat says: hello over WebSocket"]),
        ("demo tcp", &["hello over TCP"]),
        (" explain ", &["catalog"]),
        ("/metrics", &["requests_total"]),
        ("/mend", &["ejected"]),
        ("/clusters", &["catalog-v1"]),
        ("tail ", &["GET /"]),
        ("sed ", &[]),
        ("seq 20", &[r#""version": "v1""#]),
        ("x-version", &["new_in_v2"]),
        ("/cart/flaky-bare", &["503", "200"]),
        ("/cart/flaky;", &["200 200 200 200"]),
        ("/cart/slow", &["504"]),
        ("/old-shop", &["301", "/catalog/3"]),
        ("/api/products", &["silk scarf"]),
        ("OPTIONS", &["access-control-allow-origin: https://shop.example"]),
        ("/checkout", &["ordered", r#""mirrored_orders": 1"#]),
        ("--cacert", &["HTTP/2 200", "linen towel"]),
        ("--compressed", &["content-encoding: "]),
        ("/catalog/2", &["wool blanket"]),
        ("/cart -d", &["wool blanket", "items"]),
        ("/", &["Welcome"]),
    ];
    ALL.iter()
        .find(|(part, _)| command.contains(part))
        .map(|(_, expected)| *expected)
        .unwrap_or_else(|| panic!("{command}"))
}

#[test]
fn nothing_stays_when_a_process_of_the_demo_or_the_demo_itself_dies() {
    let demo = Demo::start(&["--no-traffic"]);
    let children = children(demo.child.id());
    assert_eq!(children.len(), 10, "control plane, gateway and eight sidecars");
    let folder = demo.folder();
    let pid = rustix::process::Pid::from_raw(children[5]).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    let mut demo = demo;
    let ended = demo.child.wait().expect("it ends");
    assert_eq!(ended.code(), Some(1));
    assert!(!folder.exists());
    gone(&children);

    // Killed without a chance to end anything.
    let mut demo = Demo::start(&["--no-traffic"]);
    let (children, folder) = (self::children(demo.child.id()), demo.folder());
    demo.child.kill().expect("killed");
    demo.child.wait().expect("it ends");
    gone(&children);
    std::fs::remove_dir_all(folder).expect("what is left");
}

#[test]
fn programs_in_network_namespaces_are_captured() {
    let base = free_ports(BLOCK);
    let namespaces =
        || Command::new("ip").args(["netns", "list"]).output().map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    let root = rustix::process::geteuid().is_root();
    if !root {
        let output = demo(base).arg("--netns").output().expect("the demo runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("needs root") && error.lines().count() == 1, "{error}");
    }
    let able = root
        .then(|| sh("ip netns add sv-demotest && ip netns delete sv-demotest && nft list tables && curl --version"));
    if !able.as_ref().is_some_and(|o| o.status.success()) {
        return selvedge_testkit::left_out("needs root, ip, nft and curl");
    }
    let mut first = Demo::start(&["--netns"]);
    let left = first.folder();
    // As after a crash: nothing was removed.
    first.child.kill().expect("killed");
    first.child.wait().expect("it ends");
    assert!(namespaces().expect("ip").contains("sv-demo-web"));
    let _ = std::fs::remove_dir_all(left);
    let demo = Demo::start(&["--netns"]);
    for command in demo.commands() {
        let expected: &[&str] = match command {
            c if c.contains("getent") => &["orders.shop"],
            c if c.contains("sv-demo-web curl") => &["\"called_by\": \"spiffe://cluster.local/ns/shop/sa/web\""],
            c if c.contains("sv-demo-guest curl") => &["403 Forbidden"],
            c if c.contains(" may ") => &["denied"],
            c if c.contains("sv-demo-hub") => &["refused"],
            c if c.contains("capture show") => &["these are the rules that the options ask for"],
            _ => &["1 in sync"],
        };
        let output = run(command, expected);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && expected.iter().all(|part| text.contains(part)), "`{command}`: {output:?}");
    }
    let (ended, _) = demo.interrupt();
    assert_eq!(ended.code(), Some(0));
    assert!(!namespaces().expect("ip").contains("sv-demo-"));
}

/// Processes that a process has started.
fn children(of: u32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).expect("Linux");
    text.split_whitespace().map(|pid| pid.parse().expect("a number")).collect()
}

/// Waits until none of the processes lives.
fn gone(processes: &[i32]) {
    let began = std::time::Instant::now();
    let lives = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A zombie waits for whoever inherits it.
        !status.is_empty() && !status.contains(") Z ")
    };
    while processes.iter().any(lives) {
        assert!(began.elapsed() < PATIENCE, "processes stay: {processes:?}");
        std::thread::yield_now();
    }
}

#[test]
fn an_edit_takes_effect_and_a_chosen_folder_stays() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("demo");
    let demo = Demo::start(&["--no-traffic", "--dir", folder.to_str().expect("UTF-8")]);
    let file = folder.join("resources/catalog.yaml");
    let text = std::fs::read_to_string(&file).expect("the file");
    let edited = text.replace("weight: 90", "weight: 0").replace("weight: 10", "weight: 100");
    std::fs::write(&file, edited).expect("written");
    let began = std::time::Instant::now();
    // Each look is a request with its answer; ten in a row are no chance at a weight of ten.
    let mut in_a_row = 0;
    while in_a_row < 10 {
        let canary = get(&demo, "/catalog/1", "").contains("new_in_v2");
        in_a_row = if canary { in_a_row + 1 } else { 0 };
        assert!(began.elapsed() < PATIENCE, "the edit has no effect");
    }
    let (ended, _) = demo.interrupt();
    assert_eq!(ended.code(), Some(0));
    assert!(file.exists());
}

#[test]
fn a_busy_port_is_told_with_the_way_out() {
    let busy = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = busy.local_addr().expect("its address").port();
    let output = demo(port.min(65_500)).output().expect("the demo runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    if port <= 65_500 {
        assert!(error.starts_with(&format!("error: port {port} (HTTP) is busy: ")), "{error}");
        assert!(error.contains("--port-base"), "{error}");
    }
}
