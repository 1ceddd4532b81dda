//! Compiling is total: whatever resources come together, and however they are bent, it ends, without panic, and the
//! same resources give the same bytes.

use proptest::prelude::*;
use selvedge_compile::{Compiler, Options, compile, diff, summary};
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

fn read(documents: &[String]) -> Resources {
    let loaded = documents.iter().flat_map(|text| parse("bent", text.as_bytes(), &Limits::default()).loaded);
    loaded.filter_map(|l| l.resource).collect::<Vec<Resource>>().into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_resources_compile(documents in prop::collection::vec(bent(), 0..40)) {
        let options = Options { now: 1_900_000_000, ..Options::default() };
        let resources = read(&documents);
        let compiled = compile(&resources, &options);
        let again = compile(&resources, &options);
        prop_assert_eq!(summary(&compiled), summary(&again));
        prop_assert!(diff(&compiled.snapshot, &again.snapshot).is_empty());
        let json = serde_json::to_string(&(&compiled.snapshot, &compiled.status)).expect("json");
        prop_assert_eq!(json, serde_json::to_string(&(&again.snapshot, &again.status)).expect("json"));
    }

    #[test]
    fn memory_never_shows(steps in prop::collection::vec((bent(), any::<bool>()), 1..10)) {
        let options = Options::default();
        let mut compiler = Compiler::default();
        let mut resources = read(&documents()[..documents().len() / 3]);
        for (document, remove) in steps {
            for resource in parse("bent", document.as_bytes(), &Limits::default()).loaded.into_iter().filter_map(|l| l.resource) {
                if remove {
                    resources.remove(&resource.key());
                } else {
                    resources.upsert(resource);
                }
            }
            let _ = compiler.compile(&resources, &options);
        }
        let with = compiler.compile(&resources, &options);
        let without = compile(&resources, &options);
        prop_assert_eq!(summary(&with), summary(&without));
    }
}
