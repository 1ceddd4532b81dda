//! What `explain` and `diff` say.

use http::{HeaderMap, Method};
use selvedge_compile::{
    LocalWorkload, Options, Ports, Position, Request, compile, diff, explain, explain_outbound,
    snapshot::{Netns, Snapshot},
};
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
    assert!(parsed.diagnostics.iter().all(|it| !it.is_error()), "{:?}", parsed.diagnostics);
    let mut resources = Resources::default();
    resources.extend(parsed.loaded.into_iter().filter_map(|l| l.resource));
    compile(&resources, &Options::default()).snapshot
}

fn ask(snapshot: &Snapshot, url: &str) -> selvedge_compile::Explanation {
    let request = Request {
        method: Method::GET,
        url: url.to_owned(),
        headers: HeaderMap::new(),
        from: None,
        identity: None,
        claims: None,
    };
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

const MESH: &str = r#"
apiVersion: selvedge.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec: {egress: RegistryOnly}
---
apiVersion: selvedge.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: shop}
spec: {addresses: [10.0.0.1], serviceAccount: web}
---
apiVersion: selvedge.dev/v1alpha1
kind: Workload
metadata: {name: orders-1, namespace: shop, labels: {app: orders}}
spec: {addresses: [10.0.0.2], serviceAccount: orders}
---
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: orders}, ports: [{name: http, port: 80}, {name: mysql, port: 3306}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: orders, port: 80}]
  rules:
  - matches: [{path: {value: /cart}}]
    backendRefs: [{name: orders, port: 80}]
  - matches: [{path: {value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /new}}}]
"#;

fn beside(text: &str) -> Snapshot {
    let parsed = parse("test", text.as_bytes(), &Limits::default());
    assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
    let mut resources = Resources::default();
    resources.extend(parsed.loaded.into_iter().filter_map(|l| l.resource));
    let local = LocalWorkload {
        namespace: "shop".to_owned(),
        workload: "web".to_owned(),
        own: None,
        netns: Netns::default(),
        ports: Ports { capture: true, ..Ports::default() },
    };
    compile(&resources, &Options { position: Position::Workloads(vec![local]), ..Options::default() }).snapshot
}

fn call(snapshot: &Snapshot, url: &str) -> selvedge_compile::Explanation {
    let request = Request {
        method: Method::GET,
        url: url.to_owned(),
        headers: HeaderMap::new(),
        from: None,
        identity: None,
        claims: None,
    };
    explain_outbound(snapshot, ("shop", "web"), &request)
}

#[test]
fn a_call_of_a_workload_is_explained() {
    let snapshot = beside(MESH);
    let found = call(&snapshot, "http://orders/cart/1");
    let text = found.to_text();
    assert_eq!(found.destination.as_ref().map(|d| d.name.as_str()), Some("shop/orders:80"), "{text}");
    assert_eq!(found.rule.as_ref().map(|r| r.name.as_str()), Some("HTTPRoute shop/orders#0"), "{text}");
    assert_eq!(found.backends[0].to, "shop/orders:80~shop/web", "{text}");
    let endpoint = "10.0.0.2:80 weight 1 spiffe://cluster.local/ns/shop/sa/orders by HBONE at 10.0.0.2:15008";
    assert_eq!(found.backends[0].endpoints, [endpoint], "{text}");
    assert!(text.contains("shop/web calls as spiffe://cluster.local/ns/shop/sa/web"), "{text}");
    let status = |url: &str| call(&snapshot, url).answer.map(|a| (a.status, a.why));
    assert_eq!(status("http://orders.shop.svc.cluster.local/none").map(|a| a.0), Some(404));
    assert_eq!(status("http://elsewhere.example/").map(|a| a.0), Some(502));
    let redirect = status("http://10.96.0.1/old").expect("an answer");
    assert_eq!((redirect.0, redirect.1.as_str()), (302, "redirect to http://10.96.0.1/new"));
    let bytes = call(&snapshot, "http://orders:3306/");
    assert_eq!(bytes.backends[0].to, "shop/orders:3306+tcp~shop/web", "{}", bytes.to_text());
    let request = Request {
        method: Method::GET,
        url: "http://orders/".to_owned(),
        headers: HeaderMap::new(),
        from: None,
        identity: None,
        claims: None,
    };
    assert!(explain_outbound(&snapshot, ("shop", "nobody"), &request).answer.is_some());
}

#[test]
fn changes_of_a_mesh_are_told() {
    let old = beside(MESH);
    assert!(diff(&old, &beside(MESH)).is_empty());
    let strict = MESH.replace("{egress: RegistryOnly}", "{mtls: {mode: Strict}}");
    let told: Vec<String> = diff(&old, &beside(&strict)).iter().map(ToString::to_string).collect();
    assert!(told.iter().any(|t| t == "~ mutual TLS of other ports of shop/web: Permissive becomes Strict"), "{told:?}");
    assert!(told.iter().any(|t| t == "~ unknown destinations of shop/web: Refuse becomes Pass"), "{told:?}");
    let alone = MESH.replace("labels: {app: orders}", "labels: {app: other}");
    let told: Vec<String> = diff(&old, &beside(&alone)).iter().map(ToString::to_string).collect();
    let gone = "~ endpoints of shop/orders:80~shop/web: 10.0.0.2:80 <spiffe://cluster.local/ns/shop/sa/orders by HBONE at 10.0.0.2:15008> becomes none";
    assert!(told.iter().any(|t| t == gone), "{told:?}");
}

fn policed(settings: &str) -> Snapshot {
    let policy = format!(
        "{SHOP}---\napiVersion: selvedge.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: edge}}\nspec:\n  targetRefs: [{{kind: Gateway, name: edge}}]\n{settings}"
    );
    snapshot(&policy)
}

#[test]
fn the_listener_says_how_paths_are_read() {
    let answer = |settings: &str, url: &str| {
        let found = ask(&policed(settings), url);
        (found.final_url.clone(), found.answer.map(|a| a.status))
    };
    let url = "http://shop.example/cart%2F7//x";
    assert_eq!(answer("", url), (None, Some(404)));
    assert_eq!(
        answer("  listener: {normalization: {escapedSlashes: Decode}}\n", url),
        (Some("http://shop.example/v1/7/x".to_owned()), None)
    );
    assert_eq!(
        answer("  listener: {normalization: {mergeSlashes: false}}\n", "http://shop.example/cart//7").0.as_deref(),
        Some("http://shop.example/v1//7")
    );
    assert_eq!(answer("  listener: {normalization: {escapedSlashes: Reject}}\n", url).1, Some(400));
    assert_eq!(answer("  listener: {normalization: {escapedSlashes: Redirect}}\n", url).1, Some(307));
    assert_eq!(answer("  requestLimits: {maxTargetBytes: 64}\n", &format!("{url}{}", "x".repeat(64))).1, Some(414));
}

#[test]
fn the_client_is_who_the_listener_believes() {
    let client = |snapshot: &Snapshot, from: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "6.6.6.6, 203.0.113.7".parse().unwrap());
        let url = "http://shop.example/cart".to_owned();
        let found = explain(
            snapshot,
            &Request { method: Method::GET, url, headers, from: from.parse().ok(), identity: None, claims: None },
        );
        (found.client.map(|c| c.name).unwrap_or_default(), found.settings.join("; "))
    };
    let trusting = policed(
        "  listener: {trustedCidrs: [10.0.0.0/8]}
---
apiVersion: selvedge.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: cart}
spec:
  targetRefs: [{kind: Service, name: cart}]
  loadBalancing: {algorithm: RingHash, hashKeys: [{type: SourceIP}]}
",
    );
    let (name, settings) = client(&trusting, "10.0.0.1");
    assert_eq!(name, "203.0.113.7");
    assert!(settings.contains("by ring hash of the client's address 203.0.113.7"), "{settings}");
    assert_eq!(client(&trusting, "192.0.2.1").0, "192.0.2.1");
    assert_eq!(client(&snapshot(SHOP), "10.0.0.1").0, "10.0.0.1");
}

#[test]
fn settings_are_told_in_words() {
    let text = |old: &Snapshot, new: &Snapshot| diff(old, new).iter().map(ToString::to_string).collect::<Vec<_>>();
    let told = text(&policed(""), &policed("  listener: {maxConnections: 5, headers: {maxCount: 50}}\n"));
    assert_eq!(
        told,
        [
            "~ HTTP of tcp://*:80 for every host: max headers 100 becomes max headers 50",
            "~ HTTP of tcp://*:80 for shop.example: max headers 100 becomes max headers 50",
            "~ connections of tcp://*:80: max connections 10000 becomes max connections 5",
        ]
    );
    let retry = policed("  retry: {attempts: 2, retryOn: [5xx], methods: [GET, POST]}\n");
    let found = ask(&retry, "http://shop.example/cart");
    let wanted = "sent again up to 4 times while no upstream can have seen it; up to 2 times when the connection is reset, or no answer comes in time, or the status is 500 to 599, for GET, POST only";
    assert!(found.settings.iter().any(|s| s == wanted), "{:#?}", found.settings);
    assert_eq!(found.filters, ["rewrites the matched prefix to /v1"]);
}

#[test]
fn streams_of_a_workload_are_explained() {
    let text = "
apiVersion: selvedge.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: shop}
spec: {addresses: [10.0.0.1]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: postgres, port: 5432}, {name: http, port: 80}]}
";
    let parsed = parse("test", text.as_bytes(), &Limits::default());
    let mut resources = Resources::default();
    resources.extend(parsed.loaded.into_iter().filter_map(|l| l.resource));
    let local = LocalWorkload {
        namespace: "shop".into(),
        workload: "web".into(),
        own: None,
        netns: Netns::default(),
        ports: Ports { capture: true, ..Ports::default() },
    };
    let options = Options { position: Position::Workloads(vec![local]), ..Options::default() };
    let snapshot = compile(&resources, &options).snapshot;
    let explained = |url: &str| {
        let (headers, url) = (HeaderMap::new(), url.to_owned());
        let request = Request { method: Method::GET, url, headers, from: None, identity: None, claims: None };
        explain_outbound(&snapshot, ("shop", "web"), &request)
    };
    let db = explained("tcp://db:5432");
    assert_eq!(db.destination.map(|chosen| chosen.name).as_deref(), Some("shop/db:5432"), "{:?}", db.answer);
    assert!(db.rule.is_some() && db.backends.len() == 1, "{:?}", db.answer);
    assert!(explained("tcp://db:80").answer.unwrap().why.contains("declared to speak HTTP"));
    assert!(explained("tcp://db").answer.unwrap().why.contains("name the port"));
}
