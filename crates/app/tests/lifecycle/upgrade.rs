use crate::support::*;
use rustix::process::Signal;
use selvedge_testkit::{
    backend::Backend,
    http1::{self, Connection},
    load::Load,
    selvedge::{Selvedge, free_port},
};
use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt};

async fn start(backend: &Backend) -> (Selvedge, SocketAddr) {
    let front = free_port();
    let selvedge = setup()
        .file("gateway.yaml", &gateway(&[front.port()]))
        .file("service.yaml", &service(&[backend.address]))
        .file("route.yaml", &route(0))
        .start()
        .await;
    (selvedge, front)
}

/// Connections that are made anew for each request.
async fn fresh_connections(front: SocketAddr, mut until: tokio::sync::watch::Receiver<bool>) -> usize {
    for done in 0.. {
        if *until.borrow_and_update() {
            return done;
        }
        let answer = http1::request(front, "GET", "/fresh", "").await;
        assert_eq!(answer.map(|answer| answer.status), Ok(200), "request {done}");
    }
    unreachable!("it returns")
}

#[tokio::test]
async fn ten_upgrades_under_load_lose_nothing() {
    let backend = Backend::start("app").await;
    let (mut selvedge, front) = start(&backend).await;
    let (http1, http2) = (Load::http1(front, HOST, 4), Load::http2(front, HOST, 2));
    // These stay with the process that took them.
    let websocket = Load::websocket(front, HOST, 2);
    websocket.more(2).await;
    let end = tokio::sync::watch::Sender::new(false);
    let fresh = tokio::spawn(fresh_connections(front, end.subscribe()));
    for _ in 0..10 {
        selvedge.upgrade().await;
        tokio::join!(http1.more(20), http2.more(20), websocket.more(20));
        let (status, _) = selvedge.admin_get("/ready").await.expect("an answer of the new process");
        assert_eq!(status, 200);
    }
    end.send_replace(true);
    let fresh = fresh.await.expect("no failed request");
    let (http1, http2) = tokio::join!(http1.stop(), http2.stop());
    http1.assert_nothing_failed("HTTP/1.1");
    http2.assert_nothing_failed("HTTP/2");
    assert!(fresh > 0 && http1.connections > 4 && http2.connections > 2);
    let websocket = websocket.stop().await;
    websocket.assert_nothing_failed("WebSocket");
    assert_eq!(websocket.connections, 2, "WebSockets live on in the old process");
    assert!(selvedge.ended().await.success(), "{}", selvedge.log());
}

#[tokio::test]
async fn a_request_is_finished_by_the_old_process() {
    let backend = Backend::start("app").await;
    let (mut selvedge, front) = start(&backend).await;
    let mut slow = Connection::open(front).await.expect("a connection");
    slow.send("GET /hold HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
    assert_eq!(slow.head().await.expect("a head").status, 200);
    assert_eq!(slow.chunk().await.expect("a chunk"), Some(b"first ".to_vec()));
    selvedge.upgrade().await;
    backend.release.send_replace(true);
    assert_eq!(slow.chunk().await.expect("a chunk"), Some(b"last".to_vec()));
    assert_eq!(slow.chunk().await.expect("the end"), None);
    assert!(selvedge.ended().await.success());
}

#[tokio::test]
async fn a_binary_that_does_not_start_changes_nothing() {
    let backend = Backend::start("app").await;
    let (selvedge, front) = start(&backend).await;
    let load = Load::http1(front, HOST, 2);
    fs::remove_file(selvedge.binary()).expect("removed");
    for (count, (script, reason)) in
        [("#!/bin/sh\nexit 1\n", "it ended instead of serving"), ("#!/no/such/interpreter\n", "cannot start")]
            .into_iter()
            .enumerate()
    {
        // Renamed into place: a file that is open for writing cannot be executed.
        let new = selvedge.config().join(".new");
        fs::write(&new, script).expect("a script");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("executable");
        fs::rename(new, selvedge.binary()).expect("renamed");
        selvedge.signal(Signal::USR2);
        selvedge.logged("the upgrade has failed, this process serves on", count + 1).await;
        selvedge.logged(reason, 1).await;
        load.more(20).await;
    }
    let load = load.stop().await;
    load.assert_nothing_failed("HTTP/1.1");
    assert_eq!(load.connections, 2);
    assert!(matches!(selvedge.admin_get("/ready").await, Ok((200, _))));
}
