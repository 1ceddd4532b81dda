use crate::support::*;
use rustix::process::Signal;
use selvedge_testkit::{backend::Backend, http1, load::Load, selvedge::free_port};

#[tokio::test]
async fn a_hundred_reloads_under_load_lose_nothing() {
    let backend = Backend::start("app").await;
    let front = free_port();
    let selvedge = setup()
        .file("gateway.yaml", &gateway(&[front.port()]))
        .file("service.yaml", &service(&[backend.address]))
        .file("route.yaml", &route(0))
        .start()
        .await;
    let (http1, http2) = (Load::http1(front, HOST, 4), Load::http2(front, HOST, 2));
    let websocket = Load::websocket(front, HOST, 2);
    let mut probe = http1::Connection::open(front).await.expect("a connection");
    for revision in 1..=100 {
        selvedge.write("route.yaml", &route(revision));
        if revision % 10 == 0 {
            selvedge.signal(Signal::HUP);
        }
        let expected = revision.to_string();
        loop {
            let answer = probe.get(HOST, "/probe").await.expect("an answer on the connection of before");
            assert_eq!(answer.status, 200);
            if answer.header("x-revision") == Some(&expected) {
                break;
            }
        }
    }
    // Each has had an answer after the last of them.
    tokio::join!(http1.more(20), http2.more(20), websocket.more(20));
    let (http1, http2, websocket) = tokio::join!(http1.stop(), http2.stop(), websocket.stop());
    http1.assert_nothing_failed("HTTP/1.1");
    http2.assert_nothing_failed("HTTP/2");
    websocket.assert_nothing_failed("WebSocket");
    assert_eq!((http1.connections, http2.connections, websocket.connections), (4, 2, 2), "connections were replaced");
    selvedge.metrics_have("selvedge_config_revision 101").await;
}
