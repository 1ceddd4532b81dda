//! What finding a route costs with one route and with ten thousand: `cargo run --release -p selvedge-compile --example
//! router_find`. Each number is the best of several rounds, in nanoseconds for one look-up.

use http::{HeaderMap, Method};
use selvedge_compile::{
    router::{Lookup, Router},
    snapshot::Protocol,
};
use selvedge_model::{Limits, Resources, parse};
use std::{fmt::Write, hint::black_box, time::Instant};

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUTES: usize = 10_000;
const LOOKUPS: usize = 200_000;
const ROUNDS: usize = 7;

/// Hostname and path of the `i`th route.
type Shape = fn(usize) -> (String, String);

fn router(routes: usize, shape: Shape) -> Router {
    let mut text = String::from(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: shop}\nspec: {gatewayClassName: selvedge, listeners: [{name: http, port: 80, protocol: HTTP}]}\n",
    );
    for i in 0..routes {
        let (host, path) = shape(i);
        let _ = write!(
            text,
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r{i}, namespace: shop}}\nspec:\n  parentRefs: [{{name: edge}}]\n  hostnames: [{host}]\n  rules:\n  - matches: [{{path: {{value: {path}}}}}]\n"
        );
    }
    let parsed = parse("routes", text.as_bytes(), &Limits::default());
    let resources: Resources = parsed.loaded.into_iter().filter_map(|loaded| loaded.resource).collect();
    assert_eq!(resources.len(), routes + 1, "{:?}", parsed.diagnostics.first());
    let snapshot = selvedge_compile::compile(&resources, &Default::default()).snapshot;
    match &snapshot.listeners[0].protocol {
        Protocol::Http(hosts) => hosts.get_pattern(None).expect("a listener").router.clone(),
        other => panic!("{other:?}"),
    }
}

/// Look-ups of the first `spread` routes in turn.
fn measure(router: &Router, shape: Shape, spread: usize) -> f64 {
    // A stride keeps neighbours in the list from being neighbours in memory.
    let requests: Vec<_> = (0..spread).map(|i| shape(i * 7919 % spread)).collect();
    let headers = HeaderMap::new();
    let round = || {
        let start = Instant::now();
        for (host, path) in requests.iter().cycle().take(LOOKUPS) {
            let lookup = Lookup { host, path, query: None, method: &Method::GET, headers: &headers };
            assert!(black_box(router).find(&lookup).is_some());
        }
        start.elapsed().as_nanos() as f64 / LOOKUPS as f64
    };
    (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
}

fn main() {
    let shapes: [(&str, Shape); 2] = [
        ("a hostname each", |i| (format!("h{i}.example.com"), "/cart".to_owned())),
        ("one hostname, a path each", |i| ("shop.example.com".to_owned(), format!("/p{i}/cart"))),
    ];
    println!(
        "{:<28} {:>8} {:>24} {:>24}",
        "ns for one look-up", "1 route", "10000 routes, one asked", "10000 routes, all asked"
    );
    for (name, shape) in shapes {
        let (one, all) = (router(1, shape), router(ROUTES, shape));
        let numbers = (measure(&one, shape, 1), measure(&all, shape, 1), measure(&all, shape, ROUTES));
        println!("{name:<28} {:>8.0} {:>24.0} {:>24.0}", numbers.0, numbers.1, numbers.2);
    }
}
