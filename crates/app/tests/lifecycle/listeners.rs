use crate::support::*;
use selvedge_testkit::{backend::Backend, http1::Connection, load::Load, selvedge::free_port};
use std::net::{SocketAddr, TcpListener};

async fn serves(front: SocketAddr) -> bool {
    let Ok(mut connection) = Connection::open(front).await else { return false };
    connection.get(HOST, "/").await.is_ok_and(|answer| answer.status == 200)
}

#[tokio::test]
async fn listeners_come_and_go_beside_one_that_stays() {
    let backend = Backend::start("app").await;
    let (stays, one, two) = (free_port(), free_port(), free_port());
    let selvedge = setup()
        .file("gateway.yaml", &gateway(&[stays.port()]))
        .file("service.yaml", &service(&[backend.address]))
        .file("route.yaml", &route(0))
        .start()
        .await;
    let load = Load::http1(stays, HOST, 2);
    // Added.
    selvedge.write("gateway.yaml", &gateway(&[stays.port(), one.port()]));
    selvedge.until("a new listener", async || serves(one).await).await;
    let mut old = Connection::open(one).await.expect("a connection");
    assert_eq!(old.get(HOST, "/").await.map(|answer| answer.status), Ok(200));
    // Moved: connections of before are told to go.
    selvedge.write("gateway.yaml", &gateway(&[stays.port(), two.port()]));
    while !old.get(HOST, "/").await.expect("an answer until the last").is_last() {}
    selvedge.until("a moved listener", async || serves(two).await && Connection::open(one).await.is_err()).await;
    // Moved back, and to an address of the same port.
    let narrow = gateway(&[one.port()]).replace("  listeners:", "  addresses: [{value: 127.0.0.1}]\n  listeners:");
    selvedge.write("narrow.yaml", &narrow.replace("name: edge", "name: narrow"));
    selvedge.write("route.yaml", &route(1).replace("[{name: edge}]", "[{name: edge}, {name: narrow}]"));
    selvedge.until("a listener of one address", async || serves(one).await).await;
    selvedge.write("narrow.yaml", "");
    selvedge.write("gateway.yaml", &gateway(&[stays.port(), one.port()]));
    selvedge
        .until("a listener of every address", async || {
            serves(one).await
                && selvedge.admin_get("/listeners").await.is_ok_and(|(_, l)| l.contains(&format!("*:{}", one.port())))
        })
        .await;
    // Removed.
    selvedge.write("gateway.yaml", &gateway(&[stays.port()]));
    selvedge.until("a closed listener", async || Connection::open(one).await.is_err()).await;
    load.more(20).await;
    let load = load.stop().await;
    load.assert_nothing_failed("the listener that stays");
    assert_eq!(load.connections, 2);
    assert!(!selvedge.log().contains("cannot listen"), "{}", selvedge.log());
}

#[tokio::test]
async fn a_port_that_is_taken_is_tried_again() {
    let backend = Backend::start("app").await;
    let front = free_port();
    let port = free_port().port();
    let taken = TcpListener::bind(("0.0.0.0", port)).expect("a port");
    let selvedge = setup()
        .file("gateway.yaml", &gateway(&[front.port(), port]))
        .file("service.yaml", &service(&[backend.address]))
        .file("route.yaml", &route(0))
        .start()
        .await;
    assert!(serves(front).await, "the other listener serves");
    selvedge.status_has("cannot listen on").await;
    drop(taken);
    let again = SocketAddr::from(([127, 0, 0, 1], port));
    selvedge.until("the port that became free", async || serves(again).await).await;
    selvedge.status_has("\"problems\":[]").await;
    selvedge.status_has("\"revision\":1,").await;
}
