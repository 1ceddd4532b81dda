//! Every folder of `examples/` is sound, and does what it says when the real binary runs it.

mod backend;
mod certificates;
mod gateway;

use backend::Protocol::{self, *};
use futures_util::{SinkExt, StreamExt};
use gateway::{Gateway, binary, examples};
use http::Method;
use std::{collections::BTreeSet, fs, process::Command};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UdpSocket,
};

/// Every example, with its backends. Each has a test of its name below.
const EXAMPLES: &[(&str, &[(u16, Protocol)])] = &[
    ("access-log", &[(9001, Http)]),
    ("access-policy", &[(9001, Http)]),
    ("backend-tls", &[(9001, Https)]),
    ("basic", &[(9001, Http), (9002, Http)]),
    ("canary", &[(9001, Http), (9002, Http)]),
    ("client-certificates", &[(9001, Http)]),
    ("cors-compression", &[(9001, Http)]),
    ("grpc", &[(9001, Grpc), (9002, Grpc)]),
    ("jwt", &[(9001, Http)]),
    ("mirror", &[(9001, Http), (9002, Http)]),
    ("proxy-protocol", &[(9001, Http), (9002, HttpAfterProxyLine)]),
    ("redirect-rewrite", &[(9001, Http)]),
    ("retries-timeouts", &[(9001, Http)]),
    ("session-persistence", &[(9001, Http), (9002, Http)]),
    ("tcp-udp", &[(9001, Tcp), (9002, Tcp), (9003, Udp)]),
    ("tls", &[(9001, Http)]),
    ("tls-passthrough", &[(9001, Https)]),
    ("traffic-policy", &[(9001, Http), (9002, Http)]),
    ("websocket", &[(9001, WebSocket)]),
];

/// Without a Gateway, or (`demo`) served by `selvedge demo` and tested with it: only checked here.
const CHECKED: &[&str] = &["demo", "external-service", "mesh", "workload"];

async fn start(example: &str) -> Gateway {
    let (_, backends) = EXAMPLES.iter().find(|(name, _)| *name == example).expect("an example of the table");
    Gateway::start(example, backends).await
}

#[test]
fn certificates_are_there() {
    if std::env::var_os("UPDATE").is_some() {
        certificates::write(&examples());
    }
    assert!(examples().join("tls/certificates.yaml").exists(), "UPDATE=1 makes them");
}

#[test]
fn every_example_is_known_and_sound() {
    let folders = fs::read_dir(examples()).expect("examples").map(|e| e.expect("an entry"));
    let folders: BTreeSet<String> =
        folders.filter(|e| e.path().is_dir()).map(|e| e.file_name().into_string().expect("a name")).collect();
    let names = || EXAMPLES.iter().map(|(name, _)| *name).chain(CHECKED.iter().copied());
    let known: BTreeSet<String> = names().map(str::to_owned).collect();
    assert_eq!(folders, known);
    for name in names() {
        let out = Command::new(binary())
            .args(["check", "--warnings-as-errors", "-f", name])
            .current_dir(examples())
            .output()
            .expect("the binary");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    }
}

/// A command in a comment prints what stands behind it.
#[test]
fn commands_of_the_examples_print_what_is_said_of_them() {
    let root = examples().join("..");
    let folder = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink(binary(), folder.path().join("selvedge")).expect("a link");
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").expect("a path"));
    let mut ran = 0;
    for name in EXAMPLES.iter().map(|(name, _)| *name).chain(CHECKED.iter().copied()) {
        let files =
            fs::read_dir(examples().join(name)).expect("the example").map(|entry| entry.expect("an entry").path());
        for file in files.filter(|file| file.extension().is_some_and(|e| e == "yaml")) {
            let text = fs::read_to_string(&file).expect("an example");
            let asks = |line: &&str| {
                ["explain", "may", "check", "diff"].iter().any(|c| line.starts_with(&format!("selvedge {c} ")))
            };
            for line in text.lines().filter_map(|line| line.strip_prefix('#')).map(str::trim).filter(asks) {
                let (command, says) = line.rsplit_once(" # ").unwrap_or((line, ""));
                let out = Command::new("sh").args(["-c", command]).env("PATH", &path).current_dir(&root).output();
                let out = out.expect("a shell");
                let printed = String::from_utf8_lossy(&out.stdout);
                assert!(out.status.success(), "{line}: {printed}{}", String::from_utf8_lossy(&out.stderr));
                assert!(printed.contains(says), "{line}: {printed}");
                ran += 1;
            }
        }
    }
    assert!(ran >= 5, "only {ran} commands were found");
}

#[tokio::test]
async fn access_log() {
    let gateway = start("access-log").await;
    gateway.get("http://shop.example:8080/a?b=1").header("user-agent", "example/1").send().await.is(200);
    let dir = gateway.end().await;
    let log = fs::read_to_string(dir.path().join("access.log")).expect("a log");
    assert!(log.starts_with("GET /a?b=1 200 \"example/1\" ") && log.ends_with("ms\n"), "{log}");
}

#[tokio::test]
async fn access_policy() {
    let gateway = start("access-policy").await;
    gateway.get("http://shop.example:8080/").send().await.is(200);
    gateway.ask(Method::POST, "http://shop.example:8080/").send().await.is(200);
    gateway.get("http://shop.example:8080/admin").send().await.is(403).has("access denied");
    gateway.get("http://shop.example:8080/x/..%2fadmin").header("x-token", "wrong").send().await.is(403);
    gateway.get("http://shop.example:8080/admin").header("x-token", "secret").send().await.is(200);
}

#[tokio::test]
async fn backend_tls() {
    let gateway = start("backend-tls").await;
    gateway.get("http://shop.example:8080/").send().await.is(200).has("backend 9001");
}

#[tokio::test]
async fn basic() {
    let gateway = start("basic").await;
    gateway.get("http://shop.example:8080/cart/items").send().await.is(200).has("backend 9002").has("x-service: cart");
    gateway.get("http://shop.example:8080/cartoon").send().await.is(200).has("backend 9001");
    let beta = gateway.get("http://shop.example:8080/search?q=tea").header("x-beta", "1").send().await;
    assert_eq!(beta.is(200).has("backend 9002").header("x-served-by"), "beta");
    gateway.get("http://shop.example:8080/search?q=tea").send().await.is(200).has("backend 9001");
    gateway.get("http://other.example:8080/").send().await.is(404);
}

#[tokio::test]
async fn canary() {
    let gateway = start("canary").await;
    gateway.get("http://shop.example:8080/").header("x-canary", "always").send().await.is(200).has("backend 9002");
    let mut old = 0;
    for _ in 0..200 {
        old +=
            usize::from(gateway.get("http://shop.example:8080/").send().await.is(200).text().contains("backend 9001"));
    }
    // Of a binomial distribution with 180 of 200; less happens once in 10^11 runs.
    assert!(old >= 140, "{old} of 200 went to the old version");
}

#[tokio::test]
async fn client_certificates() {
    let gateway = start("client-certificates").await;
    gateway.get("https://shop.example:8443/").identity().send().await.is(200).has("backend 9001");
    assert!(gateway.get("https://shop.example:8443/").try_send().await.is_err());
}

#[tokio::test]
async fn cors_compression() {
    let gateway = start("cors-compression").await;
    let asked = gateway
        .ask(Method::OPTIONS, "http://shop.example:8080/")
        .header("origin", "https://www.shop.example")
        .header("access-control-request-method", "POST")
        .send()
        .await;
    assert!(asked.status < 300, "{asked:?}");
    assert_eq!(asked.header("access-control-allow-origin"), "https://www.shop.example");
    assert_eq!(asked.header("access-control-max-age"), "600");
    let answer = gateway
        .get("http://shop.example:8080/")
        .header("origin", "https://shop.example")
        .header("accept-encoding", "gzip")
        .header("x-filler", &"x".repeat(500))
        .send()
        .await;
    assert_eq!(answer.is(200).header("content-encoding"), "gzip");
    assert_eq!(answer.header("access-control-allow-origin"), "https://shop.example");
    assert!(answer.body.starts_with(&[0x1f, 0x8b]) && answer.body.len() < 500, "{answer:?}");
}

#[tokio::test]
async fn grpc() {
    let gateway = start("grpc").await;
    let call = |path| {
        let ask = gateway.ask(Method::POST, path).http2();
        ask.header("content-type", "application/grpc").header("te", "trailers").body(vec![0; 5])
    };
    let answer = call("http://shop.example:8080/shop.Cart/List").send().await;
    answer.is(200).has("backend 9001 /shop.Cart/List");
    assert_eq!(answer.trailers["grpc-status"], "0");
    call("http://shop.example:8080/shop.Cart/Add").header("x-beta", "1").send().await.is(200).has("backend 9002");
    let none = call("http://shop.example:8080/shop.Other/List").send().await;
    assert_eq!(none.is(200).header("grpc-status"), "12", "UNIMPLEMENTED: {none:?}");
}

#[tokio::test]
async fn jwt() {
    let gateway = start("jwt").await;
    let token = |who: &str| {
        let token = fs::read_to_string(examples().join(format!("jwt/{who}.jwt"))).expect("a token");
        format!("Bearer {}", token.trim())
    };
    gateway.get("http://shop.example:8080/").send().await.is(401).has("a token is needed");
    let ask =
        |url: &'static str, who: &str| gateway.get(url).header("authorization", &token(who)).header("x-user", "root");
    ask("http://shop.example:8080/", "bert").send().await.is(200).has("x-user: bert");
    ask("http://shop.example:8080/admin", "bert").send().await.is(403).has("access denied");
    ask("http://shop.example:8080/admin", "anna").send().await.is(200).has("x-user: anna");
}

#[tokio::test]
async fn mirror() {
    let mut gateway = start("mirror").await;
    gateway.get("http://shop.example:8080/a").send().await.is(200).has("backend 9001");
    let seen = BTreeSet::from([gateway.seen.recv().await, gateway.seen.recv().await]);
    assert_eq!(seen, ["9001 GET /a", "9002 GET /a"].map(|s| Some(s.to_owned())).into());
}

#[tokio::test]
async fn proxy_protocol() {
    let gateway = start("proxy-protocol").await;
    let line = "PROXY TCP4 203.0.113.7 127.0.0.1 4711 8080\r\n";
    gateway.get("http://shop.example:8080/").preface(line).send().await.is(200).has("x-forwarded-for: 203.0.113.7");
    let told = gateway.get("http://shop.example:8080/told").preface(line).send().await;
    told.is(200).has("backend 9002").has("PROXY TCP4 203.0.113.7 ");
    assert!(gateway.get("http://shop.example:8080/").try_send().await.is_err(), "without the header");
}

#[tokio::test]
async fn redirect_rewrite() {
    let gateway = start("redirect-rewrite").await;
    let moved = gateway.get("http://shop.example:8080/old/item?a=1").send().await;
    let port = gateway.port(8080);
    assert_eq!(moved.is(308).header("location"), format!("http://new.example:{port}/new/item?a=1"));
    let answer = gateway.get("http://shop.example:8080/api/v1/items?a=1").send().await;
    answer.is(200).has("GET /items?a=1\n").has("host: backend.example\n");
}

#[tokio::test]
async fn retries_timeouts() {
    let gateway = start("retries-timeouts").await;
    gateway.get("http://shop.example:8080/flaky").send().await.is(200).has("backend 9001");
    gateway.get("http://shop.example:8080/slow").send().await.is(504);
    gateway.get("http://shop.example:8080/").send().await.is(200);
}

#[tokio::test]
async fn session_persistence() {
    let gateway = start("session-persistence").await;
    let first = gateway.get("http://shop.example:8080/").send().await;
    let cookie = first.is(200).header("set-cookie").split(';').next().unwrap_or_default().to_owned();
    assert!(cookie.starts_with("shop-session="), "{first:?}");
    let backend = first.text().lines().next().unwrap_or_default().to_owned();
    for _ in 0..10 {
        gateway.get("http://shop.example:8080/").header("cookie", &cookie).send().await.is(200).has(&backend);
    }
}

#[tokio::test]
async fn tcp_udp() {
    let gateway = start("tcp-udp").await;
    let mut stream = gateway.connect(8081).await;
    stream.write_all(b"hello").await.expect("written");
    stream.shutdown().await.expect("half closed");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("an echo");
    assert_eq!(text, "backend 9001: hello");
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    socket.connect(("127.0.0.1", gateway.port(8053))).await.expect("an address");
    socket.send(b"who?").await.expect("sent");
    let mut buffer = [0; 100];
    let n = socket.recv(&mut buffer).await.expect("an answer");
    assert_eq!(&buffer[..n], b"backend 9003: who?");
}

#[tokio::test]
async fn tls() {
    let gateway = start("tls").await;
    gateway.get("https://shop.example:8443/").send().await.is(200).has("backend 9001").has("x-forwarded-proto: https");
    let moved = gateway.get("http://shop.example:8080/a").send().await;
    let port = gateway.port(8443);
    assert_eq!(moved.is(301).header("location"), format!("https://shop.example:{port}/a"));
}

#[tokio::test]
async fn tls_passthrough() {
    let gateway = start("tls-passthrough").await;
    gateway.get("https://shop.example:8443/").send().await.is(200).has("backend 9001");
}

#[tokio::test]
async fn traffic_policy() {
    let gateway = start("traffic-policy").await;
    // The choice settles once the first health check of each endpoint is done; chance does not agree 24 times.
    let (mut backend, mut agreed) = (String::new(), 0);
    while agreed < 24 {
        let answer = gateway.get("http://shop.example:8080/").header("x-user", "anna").send().await;
        let now = answer.is(200).text().lines().next().unwrap_or_default().to_owned();
        agreed = if now == backend { agreed + 1 } else { 0 };
        backend = now;
    }
    gateway.get("http://shop.example:8080/teapot").send().await.is(418).has("I am a teapot");
    gateway.get("http://shop.example:8080/broken").send().await.is(503);
    gateway.ask(Method::POST, "http://shop.example:8080/").body(vec![b'x'; 1001]).send().await.is(413);
    gateway.get("http://shop.example:8080/a%2Fb").send().await.is(400);
    gateway.get("http://shop.example:8080/").header("x_y", "1").send().await.is(400);
}

#[tokio::test]
async fn websocket() {
    let gateway = start("websocket").await;
    let stream = gateway.connect(8080).await;
    let (mut socket, answer) =
        tokio_tungstenite::client_async("ws://shop.example/live", stream).await.expect("a handshake");
    assert_eq!(answer.status(), 101);
    socket.send("hello".into()).await.expect("sent");
    let message = socket.next().await.expect("a message").expect("a message");
    assert_eq!(message.to_text().expect("text"), "backend 9001: hello");
}
