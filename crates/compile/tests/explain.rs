//! What `explain` and `diff` say.

use http::{HeaderMap, Method};
use selvedge_compile::{Options, Request, compile, diff, explain, snapshot::Snapshot};
use selvedge_model::{Limits, Resources, parse};

const SHOP: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: selvedge
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - {name: shop, port: 80, protocol: HTTP, hostname: shop.example}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart}
spec:
  parentRefs: [{name: edge}]
  hostnames: [shop.example]
  rules:
  - matches: [{path: {value: /cart}, headers: [{name: x-beta, value: "1"}]}]
    backendRefs: [{name: beta, port: 80}]
  - name: main
    matches: [{path: {value: /cart}}]
    filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /v1}}}
    backendRefs: [{name: cart, port: 80, weight: 9}, {name: beta, port: 80, weight: 1}]
    timeouts: {request: 2s}
  - matches: [{path: {value: /old}}]
    filters:
    - {type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301}}
---
apiVersion: v1
kind: Service
metadata: {name: cart}
spec: {ports: [{port: 80}], clusterIP: 10.0.0.1}
---
apiVersion: v1
kind: Service
metadata: {name: beta}
spec: {ports: [{port: 80}], clusterIP: 10.0.0.2}
"#;

fn snapshot(text: &str) -> Snapshot {
    let parsed = parse("test", text.as_bytes(), &Limits::default());
    assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
    let mut resources = Resources::default();
    resources.extend(parsed.loaded.into_iter().filter_map(|l| l.resource));
    compile(&resources, &Options::default()).snapshot
}

fn ask(snapshot: &Snapshot, url: &str) -> selvedge_compile::Explanation {
    let request = Request { method: Method::GET, url: url.to_owned(), headers: HeaderMap::new(), from: None, identity: None };
    explain(snapshot, &request)
}

#[test]
fn a_request_is_explained() {
    let snapshot = snapshot(SHOP);
    let found = ask(&snapshot, "http://Shop.Example/cart/7?x=1");
    let text = found.to_text();
    assert_eq!(found.listener.as_ref().map(|l| l.name.as_str()), Some("default/edge/shop"), "{text}");
    assert_eq!(found.rule.as_ref().map(|r| r.name.as_str()), Some("HTTPRoute default/cart#main"), "{text}");
    assert_eq!(found.final_url.as_deref(), Some("http://shop.example/v1/7?x=1"), "{text}");
    assert_eq!(found.backends[0].weight, 9, "{text}");
    assert_eq!(found.backends[0].endpoints, ["10.0.0.1:80 weight 1"], "{text}");
    assert!(found.settings.iter().any(|s| s == "request timeout 2s"), "{text}");
    assert!(text.contains("the header x-beta does not match"), "{text}");
    assert!(text.contains("which is less specific"), "{text}");
    assert!(found.to_json().contains("\"finalUrl\"") || found.to_json().contains("\"final_url\""));
}

#[test]
fn what_is_not_served_is_explained_too() {
    let snapshot = snapshot(SHOP);
    let redirect = ask(&snapshot, "http://shop.example/old/x");
    let answer = redirect.answer.as_ref().expect("answer");
    assert_eq!((answer.status, answer.why.as_str()), (301, "redirect to https://shop.example/old/x"));
    let path = ask(&snapshot, "http://shop.example/nothing");
    assert_eq!(path.answer.as_ref().map(|a| a.status), Some(404));
    assert!(path.to_text().contains("the path /nothing does not match"), "{}", path.to_text());
    let host = ask(&snapshot, "http://other.example/cart");
    assert!(host.to_text().contains("it has no route for other.example"), "{}", host.to_text());
    let port = ask(&snapshot, "https://shop.example:8443/");
    assert!(port.to_text().contains("nothing listens on port 8443"), "{}", port.to_text());
    for bad in ["", "nonsense", "http://", "ftp://x/", "http://a b/", "/path", "http://[::1/"] {
        assert_eq!(ask(&snapshot, bad).answer.map(|a| a.status), Some(400), "{bad}");
    }
}

#[test]
fn changes_are_told_in_words_about_traffic() {
    let old = snapshot(SHOP);
    assert!(diff(&old, &snapshot(SHOP)).is_empty());
    let new =
        SHOP.replace("weight: 9", "weight: 4").replace("10.0.0.2", "10.0.0.3").replace("value: /old", "value: /older");
    let text: Vec<String> = diff(&old, &snapshot(&new)).iter().map(ToString::to_string).collect();
    let has = |part: &str| assert!(text.iter().any(|line| line.contains(part)), "{part}: {text:#?}");
    has("~ endpoints of default/beta:80: 10.0.0.2:80 becomes 10.0.0.3:80");
    has("default/cart:80 9/10");
    has("+ shop.example /older/* on tcp://*:80");
    has("- shop.example /old/* on tcp://*:80");
}
