//! Each rule that one resource alone can break, broken once. The Gateway API carries most of them in CEL.

use selvedge_model::{Limits, parse};

/// Codes and paths of what is wrong, such as `0109 spec.rules[0]`.
fn faults(text: &str) -> Vec<String> {
    parse("f", text.as_bytes(), &Limits::default())
        .diagnostics
        .iter()
        .map(|diagnostic| format!("{:04} {}", diagnostic.code.number(), diagnostic.path))
        .collect()
}

fn check(head: &str, cases: &[(&str, &str)]) {
    for (text, wanted) in cases {
        let found = faults(&format!("{head}{text}\n")).join("\n");
        assert_eq!(found, *wanted, "{text}");
    }
}

const HTTP: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec:\n";
const GRPC: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: r}\nspec:\n";
const TLS: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {name: r}\nspec:\n";
const GATEWAY: &str =
    "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n  gatewayClassName: c\n";
const TRAFFIC: &str =
    "apiVersion: selvedge.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n";
const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n";

#[test]
fn parents_and_hostnames() {
    check(
        HTTP,
        &[
            ("  parentRefs: [{name: a, sectionName: x}, {name: a, sectionName: y}, {name: b}]", ""),
            ("  parentRefs: [{name: a, port: 1}, {name: a, port: 2}]", ""),
            ("  parentRefs: [{name: a}, {name: a}]", "0112 spec.parentRefs[1]"),
            ("  parentRefs: [{name: a}, {name: a, sectionName: x}]", "0112 spec.parentRefs[1]"),
            ("  parentRefs: [{name: a, sectionName: x}, {name: a, port: 1}]", "0112 spec.parentRefs[1]"),
            ("  parentRefs: [{name: a, sectionName: x}, {name: a, sectionName: x}]", "0112 spec.parentRefs[1]"),
            ("  parentRefs: [{name: a, kind: Gatewai}]", "0103 spec.parentRefs[0].kind"),
            ("  parentRefs: [{name: a, port: 0}]", "0104 spec.parentRefs[0].port"),
            (
                "  hostnames: [a.b, '*.b', 1.2.3.4, A.b, 'a:80']",
                "0108 spec.hostnames[2]\n0108 spec.hostnames[3]\n0108 spec.hostnames[4]",
            ),
            ("  rules: [{name: a}, {name: a}]", "0112 spec.rules[1].name"),
            ("  rules: []", "0105 spec.rules"),
        ],
    );
}

#[test]
fn http_matches() {
    check(
        &format!("{HTTP}  rules:\n  - matches:\n    - "),
        &[
            ("path: {value: a}", "0109 spec.rules[0].matches[0].path.value"),
            ("path: {type: Exact, value: /a//b}", "0109 spec.rules[0].matches[0].path.value"),
            ("path: {type: Exact, value: ''}", "0109 spec.rules[0].matches[0].path.value"),
            ("path: {type: RegularExpression, value: '/a('}", "0115 spec.rules[0].matches[0].path.value"),
            ("path: {type: RegularExpression, value: '/a//b'}", ""),
            ("path: {type: Suffix, value: /}", "0103 spec.rules[0].matches[0].path.type"),
            ("headers: [{name: a b, value: c}]", "0110 spec.rules[0].matches[0].headers[0].name"),
            ("headers: [{name: a, value: c}, {name: a, value: d}]", "0112 spec.rules[0].matches[0].headers[1]"),
            (
                "headers: [{name: a, value: '[', type: RegularExpression}]",
                "0115 spec.rules[0].matches[0].headers[0].value",
            ),
            ("headers: [{name: a, value: ''}]", "0105 spec.rules[0].matches[0].headers[0].value"),
            ("queryParams: [{name: a, value: c}, {name: a, value: d}]", "0112 spec.rules[0].matches[0].queryParams[1]"),
            ("method: get", "0103 spec.rules[0].matches[0].method"),
        ],
    );
    let rule = format!("  - matches: [{}]\n", vec!["{}"; 60].join(", "));
    check(HTTP, &[(&format!("  rules:\n{}", rule.repeat(3)), "0105 spec.rules")]);
}

#[test]
fn http_filters() {
    check(
        &format!("{HTTP}  rules:\n  - filters:\n    - "),
        &[
            ("type: RequestHeaderModifier", "0113 spec.rules[0].filters[0].requestHeaderModifier"),
            (
                "{type: CORS, cors: {allowOrigins: ['*']}, requestMirror: {backendRef: {name: a, port: 1}}}",
                "0113 spec.rules[0].filters[0].requestMirror",
            ),
            (
                "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}, {name: A, value: c}], remove: ['b c']}}",
                "0112 spec.rules[0].filters[0].requestHeaderModifier.set[1]\n0110 spec.rules[0].filters[0].requestHeaderModifier.remove[0]",
            ),
            (
                "{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: a, value: \"b\\r\\nc\"}, {name: b, value: ' c'}]}}",
                "0111 spec.rules[0].filters[0].responseHeaderModifier.add[0].value\n0111 spec.rules[0].filters[0].responseHeaderModifier.add[1].value",
            ),
            (
                "{type: RequestMirror, requestMirror: {backendRef: {name: a}, percent: 1, fraction: {numerator: 3, denominator: 2}}}",
                "0102 spec.rules[0].filters[0].requestMirror.backendRef.port\n0114 spec.rules[0].filters[0].requestMirror.fraction\n0104 spec.rules[0].filters[0].requestMirror.fraction.numerator",
            ),
            (
                "{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 1}, percent: 101}}",
                "0104 spec.rules[0].filters[0].requestMirror.percent",
            ),
            (
                "{type: RequestRedirect, requestRedirect: {statusCode: 300}}",
                "0103 spec.rules[0].filters[0].requestRedirect.statusCode",
            ),
            (
                "{type: RequestRedirect, requestRedirect: {hostname: '*.a', scheme: ftp}}",
                "0103 spec.rules[0].filters[0].requestRedirect.scheme",
            ),
            (
                "{type: RequestRedirect, requestRedirect: {hostname: '*.a'}}",
                "0108 spec.rules[0].filters[0].requestRedirect.hostname",
            ),
            (
                "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replacePrefixMatch: /a}}}",
                "0113 spec.rules[0].filters[0].urlRewrite.path.replaceFullPath\n0113 spec.rules[0].filters[0].urlRewrite.path.replacePrefixMatch",
            ),
            (
                "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: '/a b'}}}",
                "0109 spec.rules[0].filters[0].urlRewrite.path.replaceFullPath",
            ),
            ("{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /a}}}", ""),
            (
                "{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /a}}}\n    matches: [{}, {}]",
                "0114 spec.rules[0].filters[0]",
            ),
            (
                "{type: URLRewrite, urlRewrite: {hostname: a}}\n    - {type: RequestRedirect, requestRedirect: {hostname: a}}",
                "0114 spec.rules[0].filters[1]",
            ),
            (
                "{type: CORS, cors: {allowOrigins: ['*']}}\n    - {type: CORS, cors: {allowOrigins: ['*']}}",
                "0112 spec.rules[0].filters[1]",
            ),
            (
                "{type: RequestRedirect, requestRedirect: {hostname: a}}\n    backendRefs: [{name: a, port: 1}]",
                "0114 spec.rules[0].backendRefs",
            ),
            (
                "{type: CORS, cors: {allowOrigins: ['*', 'https://a'], allowMethods: [FOO]}}",
                "0114 spec.rules[0].filters[0].cors.allowOrigins\n0103 spec.rules[0].filters[0].cors.allowMethods[0]",
            ),
            (
                "{type: CORS, cors: {allowOrigins: ['a.b', 'https://a/b', 'ftp://a', 'https://a*.b', 'https://*:443']}}",
                "0106 spec.rules[0].filters[0].cors.allowOrigins[0]\n0106 spec.rules[0].filters[0].cors.allowOrigins[1]\n0106 spec.rules[0].filters[0].cors.allowOrigins[2]\n0106 spec.rules[0].filters[0].cors.allowOrigins[3]",
            ),
            (
                "{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: a, port: 1}, http: {}}}",
                "0113 spec.rules[0].filters[0].externalAuth.grpc\n0113 spec.rules[0].filters[0].externalAuth.http",
            ),
        ],
    );
}

#[test]
fn http_rules() {
    check(
        &format!("{HTTP}  rules:\n  - "),
        &[
            ("backendRefs: [{name: a}]", "0102 spec.rules[0].backendRefs[0].port"),
            ("backendRefs: [{name: a, group: x.y, kind: Z}]", ""),
            ("backendRefs: [{name: a, port: 1, weight: 1000001}]", "0104 spec.rules[0].backendRefs[0].weight"),
            ("backendRefs: [{name: a, port: 1, weight: -1}]", "0104 spec.rules[0].backendRefs[0].weight"),
            ("backendRefs: [{name: a, port: 1, kind: 'a/b'}]", "0106 spec.rules[0].backendRefs[0].kind"),
            ("timeouts: {request: 1s, backendRequest: 2s}", "0119 spec.rules[0].timeouts.backendRequest"),
            ("timeouts: {request: 0s, backendRequest: 2s}", ""),
            ("timeouts: {request: 1d}", "0106 spec.rules[0].timeouts.request"),
            (
                "retry: {attempts: 0, codes: [200]}",
                "0104 spec.rules[0].retry.attempts\n0104 spec.rules[0].retry.codes[0]",
            ),
            ("retry: {codes: [500, 500]}", "0112 spec.rules[0].retry.codes[1]"),
            (
                "sessionPersistence: {cookieConfig: {lifetimeType: Permanent}}",
                "0102 spec.rules[0].sessionPersistence.absoluteTimeout",
            ),
            (
                "sessionPersistence: {type: Header, cookieConfig: {}}",
                "0113 spec.rules[0].sessionPersistence.cookieConfig",
            ),
        ],
    );
}

#[test]
fn grpc_and_tls_routes() {
    check(
        &format!("{GRPC}  rules:\n  - "),
        &[
            ("matches: [{method: {}}]", "0102 spec.rules[0].matches[0].method"),
            (
                "matches: [{method: {service: 'a b', method: 1a}}]",
                "0106 spec.rules[0].matches[0].method.service\n0106 spec.rules[0].matches[0].method.method",
            ),
            (
                "matches: [{method: {service: 'a b', method: c-d}}]",
                "0106 spec.rules[0].matches[0].method.service\n0106 spec.rules[0].matches[0].method.method",
            ),
            (
                "matches: [{method: {type: RegularExpression, service: 'a('}}]",
                "0115 spec.rules[0].matches[0].method.service",
            ),
            ("filters: [{type: ExtensionRef}]", "0113 spec.rules[0].filters[0].extensionRef"),
            ("filters: [{type: URLRewrite}]", "0103 spec.rules[0].filters[0].type"),
        ],
    );
    check(
        TLS,
        &[
            (
                "  hostnames: ['*']\n  rules: [{backendRefs: [{name: a}]}]",
                "0108 spec.hostnames[0]\n0102 spec.rules[0].backendRefs[0].port",
            ),
            ("  hostnames: [a]", "0102 spec.rules"),
            ("  hostnames: [a]\n  rules: [{backendRefs: []}]", "0105 spec.rules[0].backendRefs"),
        ],
    );
}

#[test]
fn gateways() {
    check(
        &format!("{GATEWAY}  listeners:\n  - "),
        &[
            ("{name: a, port: 80, protocol: HTTP}", ""),
            ("{name: a, port: 80, protocol: example.com/FOO}", ""),
            ("{name: a, port: 80, protocol: 'HT TP'}", "0103 spec.listeners[0].protocol"),
            ("{name: a, port: 0, protocol: HTTP}", "0104 spec.listeners[0].port"),
            ("{name: a, port: 80, protocol: HTTP, tls: {mode: Passthrough}}", "0118 spec.listeners[0].tls"),
            ("{name: a, port: 80, protocol: TLS}", "0118 spec.listeners[0].tls"),
            ("{name: a, port: 80, protocol: TLS, tls: {mode: Passthrough}}", ""),
            ("{name: a, port: 80, protocol: HTTPS, tls: {mode: Passthrough}}", "0118 spec.listeners[0].tls.mode"),
            ("{name: a, port: 80, protocol: HTTPS, tls: {}}", "0118 spec.listeners[0].tls"),
            ("{name: a, port: 80, protocol: TCP, hostname: a.b}", "0114 spec.listeners[0].hostname"),
            ("{name: a, port: 80, protocol: HTTP, hostname: '*'}", "0108 spec.listeners[0].hostname"),
            ("{name: a, port: 80, protocol: HTTP}\n  - {name: a, port: 81, protocol: HTTP}", "0112 spec.listeners[1]"),
            ("{name: a, port: 80, protocol: HTTP}\n  - {name: b, port: 80, protocol: HTTP}", "0112 spec.listeners[1]"),
            (
                "{name: a, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: None}}}",
                "0103 spec.listeners[0].allowedRoutes.namespaces.from",
            ),
            (
                "{name: a, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchExpressions: [{key: a, operator: In}]}}}}",
                "0117 spec.listeners[0].allowedRoutes.namespaces.selector.matchExpressions[0].values",
            ),
        ],
    );
    check(
        &format!("{GATEWAY}  listeners: [{{name: a, port: 80, protocol: HTTP}}]\n"),
        &[
            ("  addresses: [{value: 1.2.3}]", "0116 spec.addresses[0].value"),
            ("  addresses: [{value: 1.2.3.4}, {value: 1.2.3.4}]", "0112 spec.addresses[1]"),
            ("  addresses: [{type: IPAddress}, {value: ''}]", ""),
            ("  infrastructure: {labels: {'a b': c}}", "0117 spec.infrastructure.labels[\"a b\"]"),
            (
                "  tls: {frontend: {default: {}, perPort: [{port: 1, tls: {}}, {port: 1, tls: {}}]}}",
                "0112 spec.tls.frontend.perPort[1]",
            ),
        ],
    );
    let class =
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: c}\nspec: {controllerName: ";
    check(class, &[("a.b/c}", ""), ("a}", "0107 spec.controllerName"), ("A/b}", "0107 spec.controllerName")]);
}

#[test]
fn backend_tls_policies() {
    let head = "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: b}\nspec:\n";
    let target = "{group: '', kind: Service, name: s}";
    check(
        &format!("{head}  targetRefs: [{target}]\n  validation: "),
        &[
            ("{hostname: a}", "0102 spec.validation"),
            ("{hostname: '*.a', wellKnownCACertificates: System}", "0108 spec.validation.hostname"),
            (
                "{hostname: a, wellKnownCACertificates: System, caCertificateRefs: [{group: '', kind: ConfigMap, name: c}]}",
                "0114 spec.validation.wellKnownCACertificates",
            ),
            (
                "{hostname: a, wellKnownCACertificates: System, subjectAltNames: [{type: Hostname, uri: 'a://b'}, {type: URI, uri: x}]}",
                "0113 spec.validation.subjectAltNames[0].hostname\n0113 spec.validation.subjectAltNames[0].uri\n0106 spec.validation.subjectAltNames[1].uri",
            ),
        ],
    );
    check(
        &format!("{head}  validation: {{hostname: a, wellKnownCACertificates: System}}\n  targetRefs: "),
        &[
            (&format!("[{target}, {target}]"), "0112 spec.targetRefs[1]"),
            (
                "[{group: '', kind: Service, name: s, sectionName: a}, {group: '', kind: Service, name: s, sectionName: b}]",
                "",
            ),
            (
                "[{group: '', kind: Service, name: s, sectionName: a}, {group: '', kind: Service, name: s, sectionName: a}]",
                "0112 spec.targetRefs[1]",
            ),
            ("[]", "0105 spec.targetRefs"),
        ],
    );
}

#[test]
fn services_and_endpoints() {
    check(
        SERVICE,
        &[
            ("  ports: [{port: 80}, {port: 81, name: a}]", "0102 spec.ports[0].name"),
            ("  ports: [{port: 80, name: a}, {port: 80, name: a}]", "0112 spec.ports[1].name\n0112 spec.ports[1].port"),
            ("  ports: [{port: 80, name: a}, {port: 80, name: b, protocol: UDP}]", ""),
            ("  ports: [{port: 80, targetPort: 0}]", "0104 spec.ports[0].targetPort"),
            ("  ports: [{port: 80, targetPort: A}]", "0107 spec.ports[0].targetPort"),
            ("  type: ExternalName", "0102 spec.externalName"),
            ("  {type: ExternalName, externalName: 'a b'}", "0108 spec.externalName"),
            ("  clusterIP: nowhere", "0116 spec.clusterIP"),
            ("  {clusterIP: None, type: Clusterip}", "0103 spec.type"),
        ],
    );
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e}\n";
    check(
        slice,
        &[
            ("addressType: IPv4\nendpoints: [{addresses: ['::1', 127.0.0.1]}]", "0116 endpoints[0].addresses[0]"),
            ("addressType: FQDN\nendpoints: [{addresses: [a.b]}]", ""),
            (
                "addressType: IPv4\nendpoints: [{addresses: []}]\nports: [{port: 1}, {port: 2}]",
                "0105 endpoints[0].addresses",
            ),
            ("addressType: IPv4\nports: [{port: 1}, {port: 2}]", "0112 ports[1]"),
        ],
    );
}

#[test]
fn traffic_policies() {
    check(
        TRAFFIC,
        &[
            ("  targetRefs: []", "0105 spec.targetRefs"),
            ("  targetRefs: [{kind: Namespace, name: other}]", "0120 spec.targetRefs[0].name\n0402 spec"),
            (
                "  targetRefs: [{kind: Namespace, name: shop, sectionName: a}]",
                "0120 spec.targetRefs[0].sectionName\n0402 spec",
            ),
            ("  targetRefs: [{kind: HTTPRoute, group: apps, name: a}]", "0120 spec.targetRefs[0].group\n0402 spec"),
            (
                "  targetRefs: [{kind: Service, name: a}]\n  listener: {}\n  directResponse: {status: 200}",
                "0120 spec.listener\n0120 spec.directResponse",
            ),
            ("  targetRefs: [{kind: TCPRoute, name: a}]\n  retry: {}\n  timeouts: {}", "0120 spec.retry"),
        ],
    );
    check(
        &format!("{TRAFFIC}  targetRefs: [{{kind: Service, name: a}}]\n"),
        &[
            ("  loadBalancing: {algorithm: RoundRobbin}", "0103 spec.loadBalancing.algorithm"),
            ("  loadBalancing: {maglevTableSize: 100}", "0104 spec.loadBalancing.maglevTableSize"),
            ("  loadBalancing: {ring: {min: 10, max: 5}}", "0104 spec.loadBalancing.ring.min"),
            ("  loadBalancing: {algorithm: Random, hashKeys: [{type: SourceIP}]}", "0114 spec.loadBalancing.hashKeys"),
            (
                "  loadBalancing: {hashKeys: [{type: Header}, {type: SourceIP, name: a}, {type: Cookie, cookie: {name: 'a b'}}]}",
                "0113 spec.loadBalancing.hashKeys[0].name\n0113 spec.loadBalancing.hashKeys[1].name\n0106 spec.loadBalancing.hashKeys[2].cookie.name",
            ),
            ("  connections: {connectTimeout: 0s, maxConnections: 0}", "0104 spec.connections.maxConnections"),
            ("  connections: {connectTimeout: 0s}", "0104 spec.connections.connectTimeout"),
            (
                "  healthChecks: [{type: TCP, path: /}, {path: a}, {interval: 0s}, {expectedStatuses: [2xx]}]",
                "0106 spec.healthChecks[3].expectedStatuses[0]",
            ),
            (
                "  healthChecks: [{type: TCP, path: /}, {path: a}, {interval: 0s}]",
                "0113 spec.healthChecks[0].path\n0109 spec.healthChecks[1].path\n0104 spec.healthChecks[2].interval",
            ),
            (
                "  outlierDetection: {baseEjectionTime: 10s, maxEjectionTime: 5s}",
                "0119 spec.outlierDetection.baseEjectionTime",
            ),
            ("  retry: {codes: [399], retryOn: [sometimes]}", "0104 spec.retry.codes[0]\n0103 spec.retry.retryOn[0]"),
            (
                "  retry: {retryOn: [reset, reset], backoff: {base: 2s, max: 1s}}",
                "0112 spec.retry.retryOn[1]\n0119 spec.retry.backoff.base",
            ),
            ("  fault: {abort: {}}", "0114 spec.fault.abort"),
            ("  fault: {delay: {fixed: 1s, percent: 101}}", "0104 spec.fault.delay.percent"),
            ("  timeouts: {request: 1s, backendRequest: 2s}", "0119 spec.timeouts.backendRequest"),
            ("  compression: {algorithms: [gzip, gzip]}", "0112 spec.compression.algorithms[1]"),
            (
                "  telemetry: {accessLog: {template: '%METHOD', fields: {a: '%%'}}}",
                "0121 spec.telemetry.accessLog.template",
            ),
        ],
    );
}

#[test]
fn metadata() {
    let head = "apiVersion: v1\nkind: ConfigMap\nmetadata: ";
    check(
        head,
        &[
            ("{name: ''}", "0105 metadata.name"),
            ("{name: a_b}", "0107 metadata.name"),
            ("{name: a, labels: {'a b': c}}", "0117 metadata.labels[\"a b\"]"),
            ("{name: a, labels: {a: 1}}", "0101 metadata.labels.a"),
            ("{name: a, nmespace: b}", "0100 metadata.nmespace"),
        ],
    );
}

const MESH: &str = "apiVersion: selvedge.dev/v1alpha1\nkind: Mesh\nmetadata: {name: default}\nspec:\n";
const WORKLOAD: &str = "apiVersion: selvedge.dev/v1alpha1\nkind: Workload\nmetadata: {name: w}\nspec:\n";
const EXTERNAL: &str = "apiVersion: selvedge.dev/v1alpha1\nkind: ExternalService\nmetadata: {name: e}\nspec:\n";

#[test]
fn meshes() {
    check(
        MESH,
        &[
            ("  trustDomain: prod.example.com", ""),
            ("  trustDomain: Prod", "0107 spec.trustDomain"),
            ("  trustDomain: a/b", "0107 spec.trustDomain"),
            ("  clusterDomain: A.b", "0108 spec.clusterDomain"),
            ("  mtls: {mode: Lax}", "0103 spec.mtls.mode"),
            ("  egress: RegistryOnly", ""),
            ("  scope: [a, a]", "0112 spec.scope[1]"),
            ("  federation: [{trustDomain: b, bundle: {configMap: {namespace: n, name: c}}}]", ""),
            ("  federation: [{trustDomain: b, bundle: {}}]", "0102 spec.federation[0].bundle"),
            ("  federation: [{trustDomain: b, bundle: {pem: x}}]", "0106 spec.federation[0].bundle.pem"),
            (
                "  federation: [{trustDomain: cluster.local, bundle: {configMap: {namespace: n, name: c}}}]",
                "0112 spec.federation[0].trustDomain",
            ),
        ],
    );
}

#[test]
fn workloads() {
    check(
        WORKLOAD,
        &[
            ("  addresses: [10.0.0.1, 'fd00::1']\n  ports: [{name: http, port: 80}, {port: 81}]", ""),
            ("  addresses: []", "0105 spec.addresses"),
            ("  addresses: [10.0.0.1, 10.0.0.2]", "0116 spec.addresses[1]"),
            ("  addresses: [0.0.0.0]", "0116 spec.addresses[0]"),
            ("  addresses: [web]", "0116 spec.addresses[0]"),
            ("  addresses: [10.0.0.1]\n  ports: [{port: 80}, {port: 80}]", "0112 spec.ports[1].port"),
            ("  addresses: [10.0.0.1]\n  ports: [{name: a, port: 80}, {name: a, port: 81}]", "0112 spec.ports[1].name"),
            ("  addresses: [10.0.0.1]\n  ports: [{port: 80, mtls: {mode: Strict}}]", ""),
            ("  addresses: [10.0.0.1]\n  serviceAccount: A", "0107 spec.serviceAccount"),
            ("  addresses: [10.0.0.1]\n  tunnel: {protocol: None, port: 1}", "0113 spec.tunnel"),
            ("  addresses: [10.0.0.1]\n  tunnel: {address: x.y}", "0116 spec.tunnel.address"),
        ],
    );
}

#[test]
fn external_services() {
    check(
        EXTERNAL,
        &[
            ("  hosts: [api.example.com]\n  ports: [{port: 443}]", ""),
            ("  hosts: ['*.example.com']\n  ports: [{port: 443}]", ""),
            ("  hosts: [1.2.3.4]\n  ports: [{port: 443}]", "0108 spec.hosts[0]"),
            ("  hosts: [a.b, a.b]\n  ports: [{port: 443}]", "0112 spec.hosts[1]"),
            ("  hosts: [a.b]\n  ports: []", "0105 spec.ports"),
            ("  hosts: ['*.b']\n  ports: [{port: 80, tls: {}}]", "0102 spec.ports[0].tls.sni"),
            ("  hosts: [a.b]\n  ports: [{port: 80, tls: {mode: None, sni: a.b}}]", "0113 spec.ports[0].tls"),
            ("  hosts: [a.b]\n  ports: [{port: 80}]\n  endpoints: [{address: 10.0.0.1}]", "0114 spec.endpoints"),
            ("  hosts: [a.b]\n  ports: [{port: 80}]\n  resolution: Static", "0102 spec.endpoints"),
        ],
    );
}
