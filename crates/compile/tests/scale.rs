//! Ten thousand routes: a compiler with memory gives the same as one without, and a change costs little.

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

use selvedge_compile::{Compiler, Options, compile};
use selvedge_model::{Limits, Resources, parse};
use std::time::Instant;

const ROUTES: usize = 10_000;

fn route(i: usize, path: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r{i}, namespace: shop}}\nspec:\n  parentRefs: [{{name: edge}}]\n  hostnames: [h{i}.example.com]\n  rules:\n  - matches: [{{path: {{value: {path}}}, headers: [{{name: x-a, value: b}}]}}]\n    backendRefs: [{{name: s{i}, port: 80}}]\n"
    )
}

fn service(i: usize) -> String {
    let (a, b) = (i / 250, i % 250 + 1);
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{i}, namespace: shop}}\nspec: {{ports: [{{port: 80}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{i}, namespace: shop, labels: {{kubernetes.io/service-name: s{i}}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{{addresses: [10.0.{a}.{b}]}}]\n"
    )
}

fn read(text: &str) -> Vec<selvedge_model::Resource> {
    let parsed = parse("scale", text.as_bytes(), &Limits::default());
    assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics.first());
    parsed.loaded.into_iter().filter_map(|l| l.resource).collect()
}

#[test]
fn one_change_among_ten_thousand_routes() {
    let mut text = String::from(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: shop}\nspec: {gatewayClassName: selvedge, listeners: [{name: http, port: 80, protocol: HTTP}]}\n",
    );
    for i in 0..ROUTES {
        text.push_str("---\n");
        text.push_str(&route(i, "/"));
        text.push_str("---\n");
        text.push_str(&service(i));
    }
    let mut resources = Resources::default();
    resources.extend(read(&text));
    let options = Options::default();
    let mut compiler = Compiler::default();
    let timed = |compiler: &mut Compiler, resources: &Resources, what: &str| {
        let start = Instant::now();
        let compiled = compiler.compile(resources, &options);
        eprintln!("{what}: {:?}", start.elapsed());
        compiled
    };
    let first = timed(&mut compiler, &resources, "from scratch");
    assert!(first.diagnostics.is_empty());
    assert_eq!(first.snapshot.clusters.len(), ROUTES);

    resources.extend(read(&route(17, "/changed")));
    let second = timed(&mut compiler, &resources, "one route changed");
    let fresh = compile(&resources, &options);
    let json = |it: &selvedge_compile::Compiled| serde_json::to_string(&it.snapshot).expect("json");
    assert!(json(&second) == json(&fresh), "memory must not change the result");
    assert!(second.status == fresh.status && second.diagnostics == fresh.diagnostics);
    assert!(json(&second) != json(&first));

    // A route and its Service go: every id behind it moves.
    for key in first.status.resources.keys().filter(|k| k.name == "r5000") {
        resources.remove(key);
    }
    let third = timed(&mut compiler, &resources, "one route gone");
    assert!(json(&third) == json(&compile(&resources, &options)));

    let slice = service(18).split("---\n").nth(1).expect("slice").replace("10.0.", "10.9.");
    resources.extend(read(&slice));
    let fourth = timed(&mut compiler, &resources, "one endpoint changed");
    assert!(json(&fourth) == json(&compile(&resources, &options)));
    assert!(json(&fourth) != json(&third));

    // A cluster goes with its last use, and comes back with a new route: every id behind it moves, twice.
    let moved = route(19, "/moved").replace("name: s19,", "name: s20,");
    let (shared, added) = (route(21, "/").replace("h21.", "h22."), route(19, "/").replace("name: r19,", "name: new,"));
    for (text, what) in [(moved, "one backend gone"), (shared, "one hostname shared"), (added, "one route added")] {
        resources.extend(read(&text));
        let compiled = timed(&mut compiler, &resources, what);
        let fresh = compile(&resources, &options);
        assert!(json(&compiled) == json(&fresh), "{what}");
        assert!(compiled.status == fresh.status && compiled.diagnostics == fresh.diagnostics, "{what}");
    }
}
