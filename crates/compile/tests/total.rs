//! Compiling is total: whatever resources come together, and however they are bent, it ends, without panic, and the
//! same resources give the same bytes.

use proptest::prelude::*;
use selvedge_compile::{
    Compiler, FixedPort, LocalWorkload, Options, Ports, Position, compile, diff, snapshot::Netns, summary,
};
use selvedge_model::{Limits, Resource, Resources, parse};
use std::{fs, path::PathBuf, sync::OnceLock};

/// Every document of every golden case.
fn documents() -> &'static [String] {
    static ALL: OnceLock<Vec<String>> = OnceLock::new();
    ALL.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata");
        let mut paths: Vec<PathBuf> =
            fs::read_dir(folder).expect("testdata").map(|e| e.expect("entry").path()).collect();
        paths.sort();
        let texts = paths.iter().map(|path| fs::read_to_string(path).expect("case"));
        let inputs = texts.map(|text| text.split("---expect---").next().unwrap_or_default().to_owned());
        let mut all: Vec<String> =
            inputs.flat_map(|i| i.split("---\n").map(str::to_owned).collect::<Vec<_>>()).collect();
        all.sort();
        all.dedup();
        all
    })
}

/// Words that mean something somewhere; putting one in place of another keeps documents readable.
const WORDS: &[&str] = &[
    "infra",
    "shop",
    "edge",
    "web",
    "set",
    "cert",
    "ca",
    "http",
    "Gateway",
    "ListenerSet",
    "HTTPRoute",
    "Service",
    "example.com",
    "80",
    "443",
    "8080",
    "All",
    "Same",
    "None",
    "Selector",
    "PathPrefix",
    "Exact",
    "RegularExpression",
    "TCP",
    "UDP",
    "HTTP",
    "HTTPS",
    "TLS",
    "Passthrough",
    "Terminate",
    "\"*.example.com\"",
    "/",
    "\"(\"",
    "Workload",
    "10.0.0.1",
    "10.0.0.2",
    "10.96.0.1",
    "HBONE",
    "orders",
    "echo",
    "client",
    "Originate",
    "Static",
    "Strict",
    "\"\"",
    "0",
    "1",
    "{}",
    "[]",
];

fn bent() -> impl Strategy<Value = String> {
    let count = documents().len();
    let bend = prop::option::weighted(0.3, (0..WORDS.len(), 0..WORDS.len()));
    (0..count, bend).prop_map(|(i, bend)| match bend {
        Some((from, to)) => documents()[i].replacen(WORDS[from], WORDS[to], 2),
        None => documents()[i].clone(),
    })
}

/// At a gateway, at one that is a member of the mesh, and beside workloads that are in the golden cases.
fn positions() -> Vec<Options> {
    let local = |namespace: &str, workload: &str, netns| LocalWorkload {
        namespace: namespace.to_owned(),
        workload: workload.to_owned(),
        own: None,
        netns: Netns(netns),
        ports: Ports {
            capture: true,
            hbone: Some(([0, 0, 0, 0], 15008).into()),
            http_proxy: Some(([127, 0, 0, 1], 15080).into()),
            fixed: vec![FixedPort { listen: ([127, 0, 0, 1], 9001).into(), host: "orders".to_owned(), port: 80 }],
        },
    };
    let locals = vec![local("shop", "web", 0), local("client", "app", 1), local("shop", "orders-1", 2)];
    vec![
        Options::default(),
        Options {
            identity: "spiffe://cluster.local/ns/infra/sa/edge".parse().ok(),
            zone: Some("a".to_owned()),
            now: 1_900_000_000,
            ..Options::default()
        },
        Options { position: Position::Workloads(locals), region: Some("eu".to_owned()), ..Options::default() },
    ]
}

fn read(documents: &[String]) -> Resources {
    let loaded = documents.iter().flat_map(|text| parse("bent", text.as_bytes(), &Limits::default()).loaded);
    loaded.filter_map(|l| l.resource).collect::<Vec<Resource>>().into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_resources_compile(documents in prop::collection::vec(bent(), 0..40)) {
        let resources = read(&documents);
        for options in positions() {
            let compiled = compile(&resources, &options);
            let again = compile(&resources, &options);
            prop_assert_eq!(summary(&compiled), summary(&again));
            prop_assert!(diff(&compiled.snapshot, &again.snapshot).is_empty());
            let json = serde_json::to_string(&(&compiled.snapshot, &compiled.status)).expect("json");
            prop_assert_eq!(json, serde_json::to_string(&(&again.snapshot, &again.status)).expect("json"));
        }
    }

    #[test]
    fn memory_never_shows(steps in prop::collection::vec((bent(), any::<bool>()), 1..10)) {
        let positions = positions();
        let mut compilers: Vec<Compiler> = positions.iter().map(|_| Compiler::default()).collect();
        let mut resources = read(&documents()[..documents().len() / 3]);
        for (document, remove) in steps {
            for resource in parse("bent", document.as_bytes(), &Limits::default()).loaded.into_iter().filter_map(|l| l.resource) {
                if remove {
                    resources.remove(&resource.key());
                } else {
                    resources.upsert(resource);
                }
            }
            for (compiler, options) in compilers.iter_mut().zip(&positions) {
                let _ = compiler.compile(&resources, options);
            }
        }
        for (compiler, options) in compilers.iter_mut().zip(&positions) {
            let with = compiler.compile(&resources, options);
            let without = compile(&resources, options);
            prop_assert_eq!(summary(&with), summary(&without));
        }
    }
}

/// Workloads that come, change and go make other endpoints, and nothing else is remembered wrongly.
#[test]
fn workloads_come_and_go() {
    let case = |name: &str| {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
        let text = fs::read_to_string(path).expect("case");
        parse(name, text.split("---expect---").next().unwrap_or_default().as_bytes(), &Limits::default())
    };
    let loaded = ["mesh_basic.case", "mesh_policies_and_zones.case"].into_iter().flat_map(|name| case(name).loaded);
    let merged: Resources = loaded.filter_map(|l| l.resource).collect();
    let all: Vec<Resource> = merged.iter().collect();
    for options in positions() {
        let mut compiler = Compiler::default();
        let mut resources: Resources = all.iter().cloned().collect();
        let check = |compiler: &mut Compiler, resources: &Resources| {
            let with = summary(&compiler.compile(resources, &options));
            assert_eq!(with, summary(&compile(resources, &options)));
            with
        };
        let whole = check(&mut compiler, &resources);
        for resource in &all {
            resources.remove(&resource.key());
            check(&mut compiler, &resources);
            resources.upsert(resource.clone());
            assert_eq!(check(&mut compiler, &resources), whole, "{}", resource.key());
        }
    }
}
