use crate::support::*;
use selvedge_testkit::{
    backend::Backend,
    load::Load,
    selvedge::{Selvedge, free_port},
};
use std::net::SocketAddr;

async fn start(backends: &[SocketAddr]) -> (Selvedge, SocketAddr) {
    let front = free_port();
    let selvedge = setup()
        .file("gateway.yaml", &gateway(&[front.port()]))
        .file("service.yaml", &service(backends))
        .file("route.yaml", &route(0))
        .start()
        .await;
    (selvedge, front)
}

/// Restarts on the same port, one after the other, without a word to the proxy.
#[tokio::test]
async fn restarts_on_the_same_port_fail_no_request() {
    for killed in [false, true] {
        let (mut one, mut two) = (Backend::start("one").await, Backend::start("two").await);
        let (_selvedge, front) = start(&[one.address, two.address]).await;
        let (http1, http2) = (Load::http1(front, HOST, 4), Load::http2(front, HOST, 1));
        for _ in 0..5 {
            for (backend, name) in [(&mut one, "one"), (&mut two, "two")] {
                let spare = Backend::start("spare").await;
                let address = backend.address;
                let old = std::mem::replace(backend, spare);
                if killed {
                    old.kill().await
                } else {
                    old.stop().await
                }
                tokio::join!(http1.more(40), http2.more(20));
                *backend = Backend::start_at(address, name).await;
                tokio::join!(http1.more(40), http2.more(20));
            }
        }
        let (http1, http2) = tokio::join!(http1.stop(), http2.stop());
        http1.assert_nothing_failed(&format!("HTTP/1.1, killed: {killed}"));
        http2.assert_nothing_failed(&format!("HTTP/2, killed: {killed}"));
    }
}

/// As an orchestrator does it: a new endpoint is added, an old one removed, then stopped.
#[tokio::test]
async fn endpoints_that_are_replaced_fail_no_request() {
    let (mut one, mut two) = (Backend::start("one").await, Backend::start("two").await);
    let (selvedge, front) = start(&[one.address, two.address]).await;
    let (http1, http2) = (Load::http1(front, HOST, 4), Load::http2(front, HOST, 1));
    for round in 0..10 {
        let new = Backend::start("new").await;
        selvedge.write("service.yaml", &service(&[two.address, new.address]));
        let old = std::mem::replace(&mut one, std::mem::replace(&mut two, new));
        selvedge.status_has(&format!("\"revision\":{},", round + 2)).await;
        old.stop().await;
        tokio::join!(http1.more(40), http2.more(20));
    }
    let (http1, http2) = tokio::join!(http1.stop(), http2.stop());
    http1.assert_nothing_failed("HTTP/1.1");
    http2.assert_nothing_failed("HTTP/2");
}
