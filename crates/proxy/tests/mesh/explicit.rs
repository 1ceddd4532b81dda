//! A workload that calls us as its HTTP proxy, or through a port for one destination.

use crate::support::{Make, at, counted, exchange, install, metrics, request, start, until};
use selvedge_compile::snapshot::{Destination, Destinations, Find, Speaks, Unknown};
use selvedge_proxy::{
    discover::{Discover, Wanted},
    proxy::{Proxy, Settings},
};
use selvedge_testkit::{backend::Backend, tcp::Server};
use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, Weak},
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

const PROXY: &str = "127.0.0.1";
const FIXED: &str = "127.0.0.2";

/// `web` answers HTTP, `mail` speaks first; both undeclared.
fn snapshot(web: SocketAddr, mail: SocketAddr, unknown: Unknown) -> Make {
    let mut make = Make::default();
    let mut to = Destinations::default();
    let web_port = web.port();
    let web = make.destination("shop/web:80", Speaks::Undeclared, web);
    let mail = make.destination("shop/mail:25", Speaks::Undeclared, mail);
    to.names.insert(("web".to_owned(), 80), web.clone());
    to.names.insert(("mail".to_owned(), 25), mail);
    // As an ExternalService without addresses: allowed, and passed on.
    let passed = Destination {
        name: "shop/any".to_owned(),
        speaks: Speaks::Http,
        http: None,
        tcp: None,
        streams: web.streams.clone(),
    };
    to.names.insert(("localhost".to_owned(), web_port), passed.into());
    let proxy = make.outbound(Find::HttpProxy, to, unknown);
    make.listen(PROXY.parse().ok(), 0, proxy);
    let fixed = make.outbound(Find::Fixed(web), Destinations::default(), unknown);
    make.listen(FIXED.parse().ok(), 0, fixed);
    make
}

async fn world(unknown: Unknown) -> (Proxy, Backend, Server) {
    let (web, mail) = (Backend::start("web").await, Server::echo("220 mail\r\n").await);
    let proxy = start(Settings::default());
    install(&proxy, snapshot(web.address, mail.address, unknown));
    (proxy, web, mail)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_absolute_form_go_where_their_target_says() {
    let (proxy, web, _mail) = world(Unknown::Refuse).await;
    let to = at(&proxy, PROXY);
    let answer = request(to, "http://web/path", "something.else").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("web"), "{answer}");
    // Names are not case sensitive, and a final dot is one name.
    assert!(request(to, "http://WEB.:80/", "web").await.starts_with("HTTP/1.1 200 "));
    let passed = request(to, &format!("http://localhost:{}/", web.address.port()), "x").await;
    assert!(passed.starts_with("HTTP/1.1 200 "), "{passed}");
    let refused = request(to, "/path", "web").await;
    assert!(refused.starts_with("HTTP/1.1 400 ") && refused.contains("absolute form"), "{refused}");
    let unknown = request(to, "http://nowhere/", "nowhere").await;
    assert!(unknown.starts_with("HTTP/1.1 502 ") && unknown.contains("nowhere:80"), "{unknown}");
    let https = request(to, "https://web/", "web").await;
    assert!(https.starts_with("HTTP/1.1 400 ") && https.contains("CONNECT"), "{https}");
    for reason in ["form", "unknown_destination"] {
        let line = format!("selvedge_mesh_refused_total{{listener=\"shop/cart/outbound\",reason=\"{reason}\"}}");
        assert!(counted(&proxy, &line), "{}", metrics(&proxy));
    }
}

async fn connect(to: SocketAddr, target: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(to).await.expect("a connection");
    let head = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("write");
    let answer = until(&mut stream, "\r\n\r\n").await;
    (stream, answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_carries_http_and_what_is_not() {
    let (proxy, _web, _mail) = world(Unknown::Refuse).await;
    let to = at(&proxy, PROXY);
    let (mut stream, answer) = connect(to, "web:80").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n").await.expect("write");
    assert!(until(&mut stream, "web").await.starts_with("HTTP/1.1 200 "));
    let (mut stream, answer) = connect(to, "mail:25").await;
    // The greeting may come with the answer.
    if !answer.contains("220 mail") {
        until(&mut stream, "220 mail\r\n").await;
    }
    stream.write_all(b"QUIT\r\n").await.expect("write");
    until(&mut stream, "QUIT").await;
    let (_stream, answer) = connect(to, "web:81").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    let (_stream, answer) = connect(to, "web").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    // What is inside is accounted for, and nothing twice.
    let line = "selvedge_http_requests_total{listener=\"shop/cart/outbound\",route=\"shop/all#0\",code=\"200\"";
    assert!(counted(&proxy, line), "{}", metrics(&proxy));
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_destinations_are_passed_on_where_that_is_allowed() {
    let (proxy, web, mail) = world(Unknown::Pass).await;
    let to = at(&proxy, PROXY);
    let answer = request(to, &format!("http://{}/", web.address), "x").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("web"), "{answer}");
    let answer = request(to, &format!("http://localhost:{}/", web.address.port()), "x").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let (mut stream, answer) = connect(to, &mail.address.to_string()).await;
    if !answer.contains("220 mail") {
        until(&mut stream, "220 mail\r\n").await;
    }
    let closed = selvedge_testkit::tcp::closed_port().await;
    let answer = request(to, &format!("http://{closed}/"), "x").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(counted(&proxy, "selvedge_mesh_passed_total{listener=\"shop/cart/outbound\"} 3"), "{}", metrics(&proxy));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fixed_port_detects_what_is_spoken() {
    let (proxy, _web, mail) = world(Unknown::Refuse).await;
    let to = at(&proxy, FIXED);
    assert!(request(to, "/", "any").await.contains("web"));
    // Prior knowledge of HTTP/2: the server's first frame is its settings.
    let mut h2 = TcpStream::connect(to).await.expect("a connection");
    h2.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("write");
    let mut frame = [0; 9];
    tokio::io::AsyncReadExt::read_exact(&mut h2, &mut frame).await.expect("settings");
    assert_eq!(frame[3], 4);
    // The same port, with a server behind it that speaks first.
    install(&proxy, snapshot(mail.address, mail.address, Unknown::Refuse));
    let start = Instant::now();
    let mut stream = TcpStream::connect(to).await.expect("a connection");
    until(&mut stream, "220 mail\r\n").await;
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(exchange(to, "\x16\x03\x01 no hello").await.expect("an echo"), "220 mail\r\n\x16\x03\x01 no hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_reaches_connections_that_are_open() {
    let (proxy, web, mail) = world(Unknown::Refuse).await;
    let second = Backend::start("second").await;
    for (address, target) in [(FIXED, "/"), (PROXY, "http://web/")] {
        install(&proxy, snapshot(web.address, mail.address, Unknown::Refuse));
        let mut stream = TcpStream::connect(at(&proxy, address)).await.expect("a connection");
        let head = format!("GET {target} HTTP/1.1\r\nhost: web\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("write");
        until(&mut stream, "web").await;
        install(&proxy, snapshot(second.address, mail.address, Unknown::Refuse));
        stream.write_all(head.as_bytes()).await.expect("write");
        until(&mut stream, "second").await;
    }
    assert!(
        counted(
            &proxy,
            "selvedge_http_requests_total{listener=\"shop/cart/outbound\",route=\"shop/all#0\",code=\"200\",protocol=\"http/1\"} 4"
        ),
        "{}",
        metrics(&proxy)
    );
}

/// Installs a snapshot in which the destination is known.
#[derive(Debug, Default)]
struct Found {
    asked: Mutex<Vec<Wanted>>,
    proxy: OnceLock<Weak<Proxy>>,
    web: OnceLock<SocketAddr>,
}

impl Discover for Found {
    fn wanted(&self, what: Wanted) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.asked.lock().expect("a list").push(what.clone());
        let known = what == Wanted::Host("web".to_owned(), 80);
        if let (true, Some(proxy), Some(web)) = (known, self.proxy.get().and_then(Weak::upgrade), self.web.get()) {
            install(&proxy, snapshot(*web, *web, Unknown::Refuse));
        }
        Box::pin(std::future::ready(()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_known_is_asked_for_once() {
    let web = Backend::start("web").await;
    let found = Arc::new(Found::default());
    let proxy = Arc::new(start(Settings { discover: Some(found.clone()), ..Settings::default() }));
    let mut make = Make::default();
    let empty = make.outbound(Find::HttpProxy, Destinations::default(), Unknown::Refuse);
    make.listen(PROXY.parse().ok(), 0, empty);
    install(&proxy, make);
    found.web.set(web.address).expect("once");
    found.proxy.set(Arc::downgrade(&proxy)).expect("once");
    let to = at(&proxy, PROXY);
    assert!(request(to, "http://web/", "web").await.contains("web"));
    assert!(request(to, "http://web/", "web").await.starts_with("HTTP/1.1 200 "));
    assert!(request(to, "http://nowhere:8080/", "x").await.starts_with("HTTP/1.1 502 "));
    let asked = found.asked.lock().expect("a list").clone();
    assert_eq!(asked, [Wanted::Host("web".to_owned(), 80), Wanted::Host("nowhere".to_owned(), 8080)]);
    for outcome in ["found", "unknown"] {
        let line =
            format!("selvedge_mesh_discoveries_total{{listener=\"shop/cart/outbound\",outcome=\"{outcome}\"}} 1");
        assert!(counted(&proxy, &line), "{}", metrics(&proxy));
    }
}

/// A connection that is kept outlives what is known of where it goes.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_no_more_is_asked_for_anew_or_passed_on() {
    let web = Backend::start("web").await;
    let found = Arc::new(Found::default());
    let proxy = Arc::new(start(Settings { discover: Some(found.clone()), ..Settings::default() }));
    found.web.set(web.address).expect("once");
    found.proxy.set(Arc::downgrade(&proxy)).expect("once");
    let outside = format!("localhost:{}", web.address.port());
    let known = |unknown| {
        let mut make = Make::default();
        let mut to = Destinations::default();
        let web_port = make.destination("shop/web:80", Speaks::Http, web.address);
        to.names.insert(("web".to_owned(), 80), web_port.clone());
        to.names.insert(("localhost".to_owned(), web.address.port()), web_port);
        let proxy = make.outbound(Find::HttpProxy, to, unknown);
        make.listen(PROXY.parse().ok(), 0, proxy);
        make
    };
    let nothing = |unknown| {
        let mut make = Make::default();
        let proxy = make.outbound(Find::HttpProxy, Destinations::default(), unknown);
        make.listen(PROXY.parse().ok(), 0, proxy);
        make
    };
    for (target, then, status) in
        [("web:80", Unknown::Refuse, "200"), (&outside, Unknown::Pass, "200"), (&outside, Unknown::Refuse, "502")]
    {
        install(&proxy, known(then));
        let (mut stream, answer) = connect(at(&proxy, PROXY), target).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let head = "GET / HTTP/1.1\r\nhost: any\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("write");
        until(&mut stream, "web").await;
        install(&proxy, nothing(then));
        stream.write_all(head.as_bytes()).await.expect("write");
        let expected = if status == "200" { "web" } else { "RegistryOnly" };
        let answer = until(&mut stream, expected).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    let line = "selvedge_mesh_passed_total{listener=\"shop/cart/outbound\"} 1";
    assert!(counted(&proxy, line), "{}", metrics(&proxy));
}
