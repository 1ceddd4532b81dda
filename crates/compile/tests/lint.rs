//! What `selvedge check` finds that only proxies beside workloads run into.

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
    finds(&claims, &["SELV0402", "spec.rules[0].from[0].claims", "tokens"]);
}
