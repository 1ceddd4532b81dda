//! What `selvedge check` finds that no compilation for one proxy can tell, or only one for proxies beside workloads.

use selvedge_compile::{Options, check};
use selvedge_model::{Limits, Resources, parse};

fn findings(text: &str) -> Vec<String> {
    let parsed = parse("test", text.as_bytes(), &Limits::default());
    let mut found: Vec<String> = parsed.diagnostics.iter().map(ToString::to_string).collect();
    let mut resources = Resources::default();
    resources.extend(parsed.loaded.into_iter().filter_map(|l| l.resource));
    let compiled = check(&resources, &Options::default());
    found.extend(compiled.diagnostics.iter().map(ToString::to_string));
    found
}

#[track_caller]
fn finds(text: &str, parts: &[&str]) {
    let found = findings(text);
    assert!(found.iter().any(|line| parts.iter().all(|part| line.contains(part))), "{parts:?} not in {found:#?}");
}

const PAY: &str = "
apiVersion: selvedge.dev/v1alpha1
kind: ExternalService
metadata: {name: pay, namespace: shop}
spec: {hosts: [pay.example], ports: [{port: 443, tls: {caCertificate: nope}}]}
";

const WEB: &str = "---
apiVersion: selvedge.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: shop}
spec: {addresses: [10.0.0.1]}
";

#[test]
fn certificates_of_external_services_are_looked_for_with_and_without_workloads() {
    let parts = ["SELV0302", "ExternalService shop/pay", "spec.ports[0].tls", "ConfigMap shop/nope does not exist"];
    finds(PAY, &parts);
    finds(&format!("{PAY}{WEB}"), &parts);
    let both = findings(&format!("{PAY}{WEB}"));
    assert_eq!(both.iter().filter(|line| line.contains("nope")).count(), 1, "once: {both:#?}");
}

#[test]
fn a_sound_mesh_has_no_findings() {
    let service = "---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}
";
    let mesh = "---\napiVersion: selvedge.dev/v1alpha1\nkind: Mesh\nmetadata: {name: default}\nspec: {}\n";
    let labelled = WEB.replace("namespace: shop}", "namespace: shop, labels: {app: web}}");
    assert_eq!(findings(&format!("{mesh}{labelled}{service}")), [""; 0]);
}

#[test]
fn what_no_proxy_alone_can_know_is_found() {
    let foreign = WEB.replace("[10.0.0.1]", "[10.0.0.1], trustDomain: other.example");
    finds(&foreign, &["SELV0225", "Workload shop/web spec.trustDomain", "other.example"]);
    let federated = "---
apiVersion: selvedge.dev/v1alpha1
kind: Mesh
metadata: {name: main}
spec: {federation: [{trustDomain: other.example, bundle: {configMap: {namespace: trust, name: other}}}]}
";
    let found = findings(&format!("{foreign}{federated}"));
    assert!(!found.iter().any(|line| line.contains("SELV0225")), "{found:#?}");
    finds(federated, &["SELV0221", "Mesh main", "default"]);
    let service = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\n"
        )
    };
    finds(&format!("{WEB}{}{}", service("a"), service("b")), &["SELV0223", "Service shop/b", "10.96.0.1", "shop/a"]);
}

#[test]
fn policies_that_cannot_do_what_they_say_are_found() {
    let policy = |spec: &str| {
        format!(
            "{WEB}---\napiVersion: selvedge.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let target = policy("{targetRefs: [{kind: Workload, name: gone}], action: Allow, rules: [{}]}");
    finds(&target, &["SELV0400", "AccessPolicy shop/p", "Workload shop/gone"]);
    let service = policy("{targetRefs: [{kind: Service, name: gone}], action: Allow, rules: [{}]}");
    finds(&service, &["SELV0400", "AccessPolicy shop/p", "Service shop/gone"]);
    let method = policy("{action: Allow, rules: [{to: [{methods: [get]}]}]}");
    finds(&method, &["SELV0402", "spec.rules[0].to[0].methods[0]", "GET"]);
    let claims = policy("{action: Allow, rules: [{from: [{claims: [{name: group, values: [admin]}]}]}]}");
    finds(&claims, &["SELV0402", "spec.rules[0].from[0].claims", "no AuthPolicy holds"]);
}

#[test]
fn endpoints_without_a_service_are_found() {
    let slice = |labels: &str, ports: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: cart-1, namespace: shop{labels}}}\naddressType: IPv4\nports: {ports}\n"
        )
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {ports: [{name: web, port: 80}, {name: admin, port: 81}]}\n";
    let named = |name: &str| format!(", labels: {{kubernetes.io/service-name: {name}}}");
    let find = |labels: &str, ports: &str, parts: &[&str]| finds(&format!("{service}{}", slice(labels, ports)), parts);
    find("", "[]", &["warning[SELV0228]", "EndpointSlice shop/cart-1 metadata", "add the label"]);
    find(
        &named("crat"),
        "[]",
        &["warning[SELV0228]", "metadata.labels", "Service shop/crat does not exist", "did you mean cart?"],
    );
    let port = "[{name: web, port: 1}, {name: admn, port: 2}]";
    find(&named("cart"), port, &["warning[SELV0228]", "ports[1].name", "`admn`; it has: web, admin"]);
    let sound = slice(&named("cart"), "[{name: web, port: 1}, {name: admin, port: 2}]");
    assert_eq!(findings(&format!("{service}{sound}")), [""; 0]);
}

#[test]
fn what_is_for_nobody_is_found() {
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec: {hostnames: [a.example]}\n";
    finds(route, &["warning[SELV0200]", "HTTPRoute shop/r spec", "parentRefs"]);
    let class = |controller: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: c}}\nspec: {{controllerName: {controller}}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: shop}}\nspec: {{gatewayClassName: c, listeners: [{{name: a, port: 80, protocol: HTTP}}]}}\n"
        )
    };
    finds(
        &class("selvedge.dev/gatway"),
        &["warning[SELV0210]", "GatewayClass c", "did you mean `selvedge.dev/gateway`?"],
    );
    finds(
        &class("example.com/other"),
        &["info[SELV0210]", "Gateway shop/g spec.gatewayClassName", "example.com/other"],
    );
    let port = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: shop}\nspec:\n  gatewayClassName: selvedge\n  listeners: [{name: a, port: 80, protocol: HTTP}]\n  tls: {frontend: {default: {}, perPort: [{port: 443, tls: {}}]}}\n";
    finds(port, &["warning[SELV0402]", "spec.tls.frontend.perPort[0].port", "no listener ends TLS on port 443"]);
}

#[test]
fn settings_that_miss_another_everywhere_are_found() {
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: shop}\nspec: {gatewayClassName: selvedge, listeners: [{name: a, port: 80, protocol: HTTP}]}\n";
    let policy = |name: &str, kind: &str, target: &str, spec: &str| {
        format!(
            "---\napiVersion: selvedge.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{targetRefs: [{{kind: {kind}, name: {target}}}], {spec}}}\n"
        )
    };
    for (missing, met, path) in [
        ("hedging: {maxAttempts: 3}", "hedging: {delay: 1s}", "spec.hedging"),
        (
            "loadBalancing: {algorithm: RingHash}",
            "loadBalancing: {hashKeys: [{type: SourceIP}]}",
            "spec.loadBalancing.algorithm",
        ),
        (
            "loadBalancing: {hashKeys: [{type: SourceIP}]}",
            "loadBalancing: {algorithm: Maglev}",
            "spec.loadBalancing.hashKeys",
        ),
        (
            "loadBalancing: {slowStart: {minPercent: 5}}",
            "loadBalancing: {slowStart: {window: 5s}}",
            "spec.loadBalancing.slowStart",
        ),
        ("listener: {forwardedHeader: Forwarded}", "listener: {trustedHops: 1}", "spec.listener.forwardedHeader"),
        (
            "telemetry: {accessLog: {template: '%PROTOCOL%'}}",
            "telemetry: {accessLog: {format: Text}}",
            "spec.telemetry.accessLog.template",
        ),
    ] {
        let alone = format!("{gateway}{}", policy("a", "Gateway", "g", missing));
        finds(&alone, &["warning[SELV0402]", "TrafficPolicy shop/a", path]);
        let both = format!("{alone}{}", policy("b", "Gateway", "g", met));
        let found = findings(&both);
        let doubt = format!("TrafficPolicy shop/a {path}: ");
        assert!(!found.iter().any(|line| line.contains(&doubt)), "{found:#?}");
    }
}
