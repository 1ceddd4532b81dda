//! What active health checks cost: connections.

use super::*;

/// Lets checks go on until so many requests came.
async fn checked(server: &Server, count: usize) {
    until("checks", || server.shop.requests.load(Ordering::SeqCst) >= count).await;
}

fn often(check_: Check) -> Vec<HealthCheck> {
    vec![HealthCheck { interval: Duration::from_millis(100), ..check(check_) }]
}

#[tokio::test]
async fn a_check_keeps_its_connection() {
    let (one, two) = (server(false).await, server(true).await);
    let grpc = Check::Grpc { service: "up".to_owned() };
    let cases = [
        (&one, UpstreamProtocol::Http1, http_check("/")),
        (&two, UpstreamProtocol::Http2, http_check("/")),
        (&two, UpstreamProtocol::Http1, grpc),
    ];
    for (server, protocol, check_) in cases {
        let (accepted, before) = (server.accepted(), server.shop.requests.load(Ordering::SeqCst));
        let clusters = clusters();
        let config = Cluster { protocol, health_checks: often(check_), ..config(&[server.address]) };
        let cluster = link(&clusters, &config);
        checked(server, before + 5).await;
        assert_eq!(server.accepted() - accepted, 1, "five checks by one connection");
        // The endpoint may close it between two checks: it is no less healthy for that.
        server.close_connections().await;
        checked(server, server.shop.requests.load(Ordering::SeqCst) + 3).await;
        assert_eq!(server.accepted() - accepted, 2);
        assert_eq!(cluster.endpoints()[0].health.summary(), Summary::Healthy);
        assert_eq!(cluster.counters.health_check_failures.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn a_failed_check_is_repeated_on_a_new_connection() {
    let server = server(false).await;
    let clusters = clusters();
    let config = Cluster { health_checks: often(http_check("/status/503")), ..config(&[server.address]) };
    let _cluster = link(&clusters, &config);
    checked(&server, 3).await;
    assert!(server.accepted() >= 3);
}
