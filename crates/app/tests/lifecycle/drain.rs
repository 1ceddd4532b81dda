use crate::support::*;
use rustix::process::Signal;
use selvedge_testkit::{
    backend::Backend,
    http1::Connection,
    selvedge::{Selvedge, free_port},
};
use std::net::SocketAddr;

async fn start(backend: &Backend, arguments: &[&str]) -> (Selvedge, SocketAddr) {
    let front = free_port();
    let selvedge = setup()
        .file("gateway.yaml", &gateway(&[front.port()]))
        .file("service.yaml", &service(&[backend.address]))
        .file("route.yaml", &route(0))
        .args(arguments)
        .start()
        .await;
    (selvedge, front)
}

/// A request whose answer is in the middle.
async fn half_answered(front: SocketAddr) -> Connection {
    let mut connection = Connection::open(front).await.expect("a connection");
    connection.send("GET /hold HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
    assert_eq!(connection.head().await.expect("a head").status, 200);
    assert_eq!(connection.chunk().await.expect("a chunk"), Some(b"first ".to_vec()));
    connection
}

#[tokio::test]
async fn a_slow_answer_is_completed() {
    let backend = Backend::start("app").await;
    let (mut selvedge, front) = start(&backend, &[]).await;
    let mut slow = half_answered(front).await;
    let mut idle = Connection::open(front).await.expect("a connection");
    assert!(!idle.get(HOST, "/").await.expect("an answer").is_last());
    selvedge.signal(Signal::TERM);
    selvedge.logged("draining seconds=30", 1).await;
    // A client that is in the middle of its work is told: not yet in the moment in which the log says it.
    while !idle.get(HOST, "/").await.expect("an answer until the last").is_last() {}
    // Not ready, and no longer there for new connections.
    let (status, reason) = selvedge.admin_get("/ready").await.expect("an answer");
    assert!(status == 503 && reason.contains("draining"), "{status} {reason}");
    selvedge.until("a closed port", async || Connection::open(front).await.is_err()).await;
    backend.release.send_replace(true);
    assert_eq!(slow.chunk().await.expect("a chunk"), Some(b"last".to_vec()));
    assert_eq!(slow.chunk().await.expect("the end"), None);
    assert_eq!(selvedge.ended().await.code(), Some(0), "{}", selvedge.log());
}

#[tokio::test]
async fn what_takes_too_long_is_cut_and_said() {
    let backend = Backend::start("app").await;
    let (mut selvedge, front) = start(&backend, &["--drain", "1"]).await;
    let mut slow = half_answered(front).await;
    selvedge.signal(Signal::TERM);
    assert!(slow.chunk().await.is_err(), "the answer was cut");
    assert_eq!(selvedge.ended().await.code(), Some(3), "{}", selvedge.log());
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let backend = Backend::start("app").await;
    let (mut selvedge, front) = start(&backend, &[]).await;
    let _slow = half_answered(front).await;
    selvedge.signal(Signal::INT);
    selvedge.logged("draining seconds=30", 1).await;
    selvedge.signal(Signal::INT);
    assert_eq!(selvedge.ended().await.code(), Some(130), "{}", selvedge.log());
}

#[tokio::test]
async fn load_balancers_have_time_to_notice() {
    let backend = Backend::start("app").await;
    let (mut selvedge, front) = start(&backend, &["--drain-delay", "5"]).await;
    let (status, _) = selvedge.admin_send("POST", "/drain", "").await.expect("an answer");
    assert_eq!(status, 202);
    selvedge.logged("no longer ready", 1).await;
    assert!(matches!(selvedge.admin_get("/ready").await, Ok((503, _))));
    let mut client = Connection::open(front).await.expect("it still accepts");
    assert!(!client.get(HOST, "/").await.expect("an answer").is_last());
    drop(client);
    assert_eq!(selvedge.ended().await.code(), Some(0), "{}", selvedge.log());
}

#[tokio::test]
async fn the_log_level_changes() {
    let backend = Backend::start("app").await;
    let (selvedge, _) = start(&backend, &[]).await;
    let (status, answer) = selvedge.admin_send("PUT", "/log-level", r#"{"level": "error"}"#).await.expect("an answer");
    assert!(status == 200 && answer.contains("error"), "{status} {answer}");
    let (status, answer) = selvedge.admin_send("PUT", "/log-level", r#"{"level": "a=b=c"}"#).await.expect("an answer");
    assert!(status == 400 && answer.contains("not a valid filter"), "{status} {answer}");
    selvedge.signal(Signal::HUP);
    selvedge.write("route.yaml", &route(1));
    selvedge.status_has("\"revision\":2").await;
    assert!(!selvedge.log().contains("SIGHUP"), "{}", selvedge.log());
}
