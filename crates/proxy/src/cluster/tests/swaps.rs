//! Settings and endpoints change in one step, whatever is asked of the cluster meanwhile.

use super::*;
use std::{sync::atomic::AtomicU32, thread};

/// Configurations that are installed one after the other, at least.
const GENERATIONS: u32 = 2000;
/// At most, for readers that get no processor meanwhile.
const MOST_GENERATIONS: u32 = 60_000;
/// Changes that readers must have seen.
const CHANGES: u32 = 10;

/// Settings and endpoints that tell their generation: the one as a limit, the other as a port.
fn generation(number: u32) -> Cluster {
    let port = u16::try_from(1 + number).expect("few");
    let addresses: Vec<SocketAddr> = (1..=3).map(|last| SocketAddr::from(([10, 0, 0, last], port))).collect();
    let mut config = config(&addresses);
    config.connections.max_requests_per_connection = number;
    config.load_balancing.algorithm = match number % 3 {
        0 => Algorithm::RoundRobin,
        1 => Algorithm::Random,
        _ => Algorithm::LeastRequest { choices: 2 },
    };
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_comes_with_the_settings_of_its_own_configuration() {
    let clusters = clusters();
    let cluster = link(&clusters, &generation(0));
    let (done, changes) = (AtomicBool::new(false), AtomicU32::new(0));
    let mut last = 0;
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = 0;
                    while !done.load(Ordering::Acquire) {
                        let picked = cluster.pick(&Pick::default()).expect("an endpoint");
                        let number = picked.config().connections.max_requests_per_connection;
                        assert_eq!(u32::from(picked.address.port()), 1 + number, "endpoint and settings");
                        assert!(number >= seen, "generation {number} after {seen}");
                        changes.fetch_add(u32::from(number > seen), Ordering::Relaxed);
                        seen = number;
                    }
                })
            })
            .collect();
        while last < GENERATIONS || (last < MOST_GENERATIONS && changes.load(Ordering::Relaxed) < CHANGES) {
            last += 1;
            link(&clusters, &generation(last));
        }
        done.store(true, Ordering::Release);
        readers.into_iter().for_each(|reader| reader.join().expect("no mixture"));
    });
    assert!(changes.into_inner() >= CHANGES, "readers saw next to nothing of {last} changes");
    let now = cluster.pick(&Pick::default()).unwrap();
    assert_eq!(now.config().connections.max_requests_per_connection, last);
}

/// The same through everything that rebuilds the endpoints by itself: health, and requests that are told of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rebuilds_endpoints_keeps_the_settings_that_belong_to_them() {
    let clusters = clusters();
    let cluster = link(&clusters, &generation(0));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let rebuilder = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let picked = cluster.pick(&Pick::default()).expect("an endpoint");
                cluster.health_changed(&picked);
                let picked = cluster.pick(&Pick::default()).expect("an endpoint");
                let number = picked.config().connections.max_requests_per_connection;
                assert_eq!(u32::from(picked.address.port()), 1 + number, "endpoint and settings");
            }
        });
        for number in 1..=GENERATIONS {
            link(&clusters, &generation(number));
        }
        done.store(true, Ordering::Release);
        rebuilder.join().expect("no mixture");
    });
}

/// A request that has picked goes on with what it has picked: connections are opened and kept as its settings say.
#[tokio::test]
async fn a_try_is_made_with_the_settings_it_was_picked_with() {
    let server = server(false).await;
    let clusters = clusters();
    let before = config(&[server.address]);
    let cluster = link(&clusters, &before);
    let picked = cluster.pick(&Pick::default()).unwrap();
    // From here on the address speaks HTTP/2, which this server does not.
    let after = link(&clusters, &Cluster { protocol: UpstreamProtocol::Http2, ..before });
    assert!(Arc::ptr_eq(&cluster, &after));
    let response = cluster.send(WorkerId(0), &picked, &mut request("/")).await.expect("by HTTP/1.1, as picked");
    response.into_body().collect().await.expect("a body");
    assert_eq!(cluster.limits().connections.used, 0, "nobody else may use that connection");
}

#[tokio::test]
async fn an_answer_for_a_name_that_is_no_longer_asked_for_changes_nothing() {
    let lookup = Arc::new(Script::default());
    let clusters = Clusters::with_lookup(WorkerCount(1), None, Handle::current(), lookup);
    let named = |host: &str| Cluster { discovery: Discovery::Dns { host: host.to_owned(), port: 80 }, ..config(&[]) };
    let cluster = link(&clusters, &named("old.example"));
    link(&clusters, &named("new.example"));
    let found = |last: u8| Ok(vec![IpAddr::from([10, 0, 0, last])]);
    cluster.resolved(("old.example", 80), found(1), &Handle::current());
    cluster.resolved(("new.example", 81), found(2), &Handle::current());
    assert!(cluster.endpoints().is_empty());
    cluster.resolved(("new.example", 80), found(3), &Handle::current());
    assert_eq!(cluster.pick(&Pick::default()).unwrap().address, "10.0.0.3:80".parse().unwrap());
    link(&clusters, &config(&[]));
    cluster.resolved(("new.example", 80), found(4), &Handle::current());
    assert!(cluster.endpoints().is_empty(), "static now");
}
