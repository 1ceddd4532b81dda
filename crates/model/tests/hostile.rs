//! Whatever a file holds, reading it ends and never panics.

use proptest::prelude::*;
use selvedge_model::{Collected, Limits, Locator, fill_locations, parse};

const SAMPLE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: &m {name: cart, namespace: shop, labels: {a: b}}
spec:
  parentRefs: [{name: edge}]
  hostnames: ["*.shop.example"]
  rules:
  - matches: [{path: {type: Exact, value: /a}, headers: [{type: RegularExpression, name: x, value: "a+"}]}]
    filters:
    - type: CORS
      cors: {allowOrigins: ["https://*"], maxAge: 5}
    - type: RequestMirror
      requestMirror: {backendRef: {name: m, port: 1}, percent: 5}
    backendRefs:
    - name: a
      port: 80
    timeouts: {request: 1h30m}
---
apiVersion: selvedge.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: p, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: a}]
  loadBalancing: {algorithm: Maglev, maglevTableSize: 101, hashKeys: [{type: SourceIP}]}
  healthChecks: [{type: HTTP, expectedStatuses: [200, 300-399], path: /h}]
---
apiVersion: v1
kind: Secret
metadata: {name: s}
data: {a: aGk=}
"#;

fn read(text: &[u8]) {
    let limits = Limits::default();
    let parsed = parse("f", text, &limits);
    for diagnostic in &parsed.diagnostics {
        let _ = diagnostic.to_string();
        assert!(diagnostic.location.is_some());
    }
    let mut collected = Collected::from_files([parsed]);
    for diagnostic in &mut collected.diagnostics {
        diagnostic.location = None;
    }
    fill_locations(&mut collected.diagnostics, &collected.origins, &limits, |_| Some(text.to_vec()));
    let value = collected.resources.to_value();
    let (again, findings) = selvedge_model::Resources::from_value(&value);
    assert!(findings.is_empty(), "{findings:?}");
    assert_eq!(again, collected.resources);
    let _ = Locator::new("f", text, &limits);
}

/// One change of a text.
#[derive(Clone, Debug)]
enum Change {
    Remove(usize, usize),
    Insert(usize, String),
    Copy(usize, usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let piece = prop_oneof![
        "[ \\-:{}\\[\\],&*!|>'\"%@`#?~\n\t]{1,4}",
        Just("*m".to_owned()),
        Just("null".to_owned()),
        Just("---\n".to_owned()),
        Just("999999999999999999999".to_owned()),
        Just("-1".to_owned()),
        Just("\u{feff}".to_owned()),
        Just("<<: *m\n".to_owned()),
        Just("{{ x }}".to_owned()),
        ".{1,5}",
    ];
    let place = 0..SAMPLE.len();
    prop_oneof![
        (place.clone(), 1usize..40).prop_map(|(at, length)| Change::Remove(at, length)),
        (place.clone(), piece).prop_map(|(at, text)| Change::Insert(at, text)),
        (place.clone(), place, 1usize..80).prop_map(|(from, to, length)| Change::Copy(from, to, length)),
    ]
}

fn apply(mut bytes: Vec<u8>, change: &Change) -> Vec<u8> {
    let length = bytes.len();
    let clip = |at: usize| at.min(length);
    match change {
        Change::Remove(at, count) => {
            bytes.drain(clip(*at)..clip(at + count));
        }
        Change::Insert(at, text) => {
            let at = clip(*at);
            bytes.splice(at..at, text.bytes());
        }
        Change::Copy(from, to, count) => {
            let piece = bytes[clip(*from)..clip(from + count)].to_vec();
            let to = clip(*to);
            bytes.splice(to..to, piece);
        }
    }
    bytes
}

#[test]
fn the_sample_is_sound() {
    assert_eq!(parse("f", SAMPLE.as_bytes(), &Limits::default()).diagnostics, []);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        read(&bytes);
    }

    #[test]
    fn arbitrary_yaml_like_text(text in "[ \\-:{}\\[\\],&*!|>'\"%@#?a-c0-9\n]{0,200}") {
        read(text.as_bytes());
    }

    #[test]
    fn changed_samples(changes in proptest::collection::vec(change(), 1..6)) {
        read(&changes.iter().fold(SAMPLE.as_bytes().to_vec(), apply));
    }
}
