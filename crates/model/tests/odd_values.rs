//! Values that the schema allows and that make no sense, or do nothing: none may be taken in silence.

use selvedge_model::{Limits, Severity, parse};

/// What is said, such as `warning 0402 spec.fault`.
fn said(text: &str) -> Vec<String> {
    let told = parse("f", text.as_bytes(), &Limits::default()).diagnostics;
    assert!(told.iter().all(|it| it.location.as_ref().is_some_and(|at| at.line > 1)), "a place for each: {told:?}");
    told.iter()
        .map(|it| {
            let severity = if it.severity == Severity::Error { "error" } else { "warning" };
            format!("{severity} {:04} {}", it.code.number(), it.path)
        })
        .collect()
}

fn check(head: &str, cases: &[(&str, &str)]) {
    for (text, wanted) in cases {
        assert_eq!(said(&format!("{head}{text}\n")).join("\n"), *wanted, "{text}");
    }
}

const HTTP: &str =
    "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec:\n  rules:\n  - ";
const GATEWAY: &str =
    "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n  gatewayClassName: c\n";
const GRANT: &str =
    "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: shop}\nspec:\n";
const TRAFFIC: &str = "apiVersion: selvedge.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  targetRefs: [{kind: Gateway, name: a}]\n";
const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n";

#[test]
fn names_of_sessions() {
    let head = format!("{HTTP}sessionPersistence: ");
    let name = "spec.rules[0].sessionPersistence.sessionName";
    let at = |severity: &str| format!("{severity} {name}");
    check(
        &head,
        &[
            ("{sessionName: shop-session}", ""),
            ("{sessionName: 'my session'}", &at("error 0106")),
            ("{sessionName: 'a;b'}", &at("error 0106")),
            ("{sessionName: ''}", &at("error 0105")),
            ("{sessionName: \"a\\r\\nb\"}", &at("error 0106")),
            ("{type: Header, sessionName: 'x session'}", &at("error 0110")),
            ("{type: Header, sessionName: Content-Length}", &at("error 0110")),
            ("{type: Header, sessionName: x-session}", ""),
            ("{absoluteTimeout: 500ms}", "error 0104 spec.rules[0].sessionPersistence.absoluteTimeout"),
            ("{absoluteTimeout: 1m, idleTimeout: 1h}", "error 0119 spec.rules[0].sessionPersistence.idleTimeout"),
        ],
    );
    let grpc = "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: r}\nspec:\n  rules:\n  - sessionPersistence: ";
    check(grpc, &[("{sessionName: 'a b'}", &at("error 0106"))]);
}

#[test]
fn matches_that_never_hold() {
    let head = format!("{HTTP}matches: [");
    let header = "spec.rules[0].matches[0].headers";
    check(
        &head,
        &[
            ("{headers: [{name: X-A, value: a}, {name: x-a, value: b}]}]", &format!("warning 0112 {header}[1]")),
            ("{headers: [{name: x-a, value: \"a\\nb\"}]}]", &format!("error 0111 {header}[0].value")),
            ("{headers: [{name: x-a, value: 'a '}]}]", &format!("error 0111 {header}[0].value")),
            ("{headers: [{name: Connection, value: close}]}]", &format!("warning 0110 {header}[0].name")),
            ("{path: {type: RegularExpression, value: 'api/.*'}}]", "warning 0109 spec.rules[0].matches[0].path.value"),
            ("{path: {type: RegularExpression, value: '.*/api'}}]", ""),
        ],
    );
}

#[test]
fn filters_that_do_nothing() {
    let head = format!("{HTTP}filters: [");
    let at = "spec.rules[0].filters[0]";
    check(
        &head,
        &[
            (
                "{type: RequestHeaderModifier, requestHeaderModifier: {}}]",
                &format!("warning 0402 {at}.requestHeaderModifier"),
            ),
            ("{type: RequestRedirect, requestRedirect: {}}]", &format!("warning 0402 {at}.requestRedirect")),
            (
                "{type: RequestRedirect, requestRedirect: {statusCode: 301}}]",
                &format!("warning 0402 {at}.requestRedirect"),
            ),
            ("{type: RequestRedirect, requestRedirect: {scheme: https}}]", ""),
            ("{type: URLRewrite, urlRewrite: {}}]", &format!("warning 0402 {at}.urlRewrite")),
            (
                "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: abc}}}]",
                &format!("error 0109 {at}.urlRewrite.path.replaceFullPath"),
            ),
            ("{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: ''}}}]", ""),
            ("{type: CORS, cors: {}}]", &format!("warning 0402 {at}.cors.allowOrigins")),
            (
                "{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: a, port: 1}, http: {allowedHeaders: ['a b']}}}]",
                &format!("error 0110 {at}.externalAuth.http.allowedHeaders[0]"),
            ),
        ],
    );
}

#[test]
fn selectors_and_options() {
    let head = format!("{GATEWAY}  listeners: [{{name: a, port: 80, protocol: ");
    let at = "spec.listeners[0].allowedRoutes.namespaces.selector";
    check(
        &head,
        &[
            ("HTTP, allowedRoutes: {namespaces: {from: Selector}}}]", &format!("error 0102 {at}")),
            ("HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {}}}}]", ""),
            ("HTTP, allowedRoutes: {namespaces: {from: All, selector: {}}}}]", &format!("warning 0402 {at}")),
            (
                "HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {'a b': c, d: 'e f'}}}}}]",
                &format!("error 0117 {at}.matchLabels[\"a b\"]\nerror 0117 {at}.matchLabels.d"),
            ),
            (
                "HTTPS, tls: {certificateRefs: [{name: c}], options: {min: '1'}}}]",
                "warning 0402 spec.listeners[0].tls.options.min",
            ),
        ],
    );
    check(
        &format!("{GATEWAY}  listeners: [{{name: a, port: 80, protocol: HTTP}}]\n"),
        &[(
            "  allowedListeners: {namespaces: {from: Selector}}",
            "error 0102 spec.allowedListeners.namespaces.selector",
        )],
    );
}

#[test]
fn grants() {
    let from = "from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: web}]";
    let to = "to: [{group: '', kind: Service}]";
    check(
        GRANT,
        &[
            (&format!("  {from}\n  {to}"), ""),
            (&format!("  {from}\n  to: [{{group: '', kind: Sevice}}]"), "warning 0206 spec.to[0].kind"),
            (&format!("  {from}\n  to: [{{group: core, kind: Secret}}]"), "warning 0206 spec.to[0].group"),
            (
                &format!("  from: [{{group: '', kind: HTTPRoute, namespace: web}}]\n  {to}"),
                "warning 0206 spec.from[0].group",
            ),
            (
                &format!("  from: [{{group: gateway.networking.k8s.io, kind: Ingress, namespace: web}}]\n  {to}"),
                "warning 0206 spec.from[0].kind",
            ),
            (
                &format!("  from: [{{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}}]\n  {to}"),
                "warning 0402 spec.from[0].namespace",
            ),
        ],
    );
}

#[test]
fn logs_and_collectors() {
    let log = "spec.telemetry.accessLog";
    let trace = "spec.telemetry.tracing.otlp";
    check(
        TRAFFIC,
        &[
            ("  telemetry: {tracing: {otlp: 'https://collector.example:4317'}}", ""),
            ("  telemetry: {tracing: {otlp: 'http://[fd00::1]:4317/'}}", ""),
            ("  telemetry: {tracing: {otlp: 'collector:4317'}}", &format!("error 0106 {trace}")),
            ("  telemetry: {tracing: {otlp: 'grpc://collector:4317'}}", &format!("error 0106 {trace}")),
            ("  telemetry: {tracing: {otlp: 'http://'}}", &format!("error 0106 {trace}")),
            ("  telemetry: {tracing: {otlp: 'http://a b:4317'}}", &format!("error 0106 {trace}")),
            ("  telemetry: {tracing: {otlp: 'http://collector'}}", &format!("warning 0106 {trace}")),
            ("  telemetry: {tracing: {otlp: 'http://c:4318/v1/traces'}}", &format!("warning 0106 {trace}")),
            ("  telemetry: {accessLog: {otlp: 'c:1'}}", &format!("error 0106 {log}.otlp")),
            ("  telemetry: {accessLog: {otlp: 'http://c:1', path: /tmp/a}}", &format!("warning 0402 {log}.path")),
            (
                "  telemetry: {accessLog: {format: Text, fields: {a: '%PROTOCOL%'}}}",
                &format!("warning 0402 {log}.fields"),
            ),
            (
                "  telemetry: {accessLog: {format: Json, template: '%PROTOCOL%'}}",
                &format!("warning 0402 {log}.template"),
            ),
            ("  telemetry: {accessLog: {path: /var/log/}}", &format!("error 0106 {log}.path")),
            ("  telemetry: {accessLog: {fields: {'': '%PROTOCOL%'}}}", &format!("error 0105 {log}.fields[\"\"]")),
        ],
    );
}

#[test]
fn policies() {
    check(
        TRAFFIC,
        &[
            ("", "warning 0402 spec"),
            ("  loadBalancing: {algorithm: RoundRobin, choices: 3}", "warning 0114 spec.loadBalancing.choices"),
            ("  loadBalancing: {algorithm: Maglev, ring: {min: 2}}", "warning 0114 spec.loadBalancing.ring"),
            ("  loadBalancing: {algorithm: Maglev, hashKeys: []}", "warning 0105 spec.loadBalancing.hashKeys"),
            ("  loadBalancing: {ring: {max: 100}}", "error 0104 spec.loadBalancing.ring.max"),
            ("  loadBalancing: {zone: {preference: Off, minEndpoints: 2}}", "warning 0114 spec.loadBalancing.zone"),
            (
                "  loadBalancing: {hashKeys: [{type: Cookie, cookie: {name: a, ttl: 0s, path: '/; Domain=x'}}]}",
                "error 0106 spec.loadBalancing.hashKeys[0].cookie.path",
            ),
            (
                "  connections: {keepalive: {http2PingTimeout: 0s, tcp: {interval: 0s}}}",
                "error 0104 spec.connections.keepalive.http2PingTimeout\nerror 0104 spec.connections.keepalive.tcp.interval",
            ),
            ("  connections: {protocol: HTTP1, http2: {}}", "warning 0402 spec.connections.http2"),
            ("  healthChecks: [{host: \"a.b:80\\r\\nX: y\"}]", "error 0108 spec.healthChecks[0].host"),
            ("  healthChecks: [{host: 'a.b:99999'}]", "error 0108 spec.healthChecks[0].host"),
            ("  healthChecks: [{host: 'a.b:8080', path: '/a?b=c%20d'}]", ""),
            ("  healthChecks: [{path: '/a?b c'}]", "error 0109 spec.healthChecks[0].path"),
            ("  healthChecks: [{method: get}]", "warning 0106 spec.healthChecks[0].method"),
            ("  healthChecks: [{expectedStatuses: []}]", "error 0105 spec.healthChecks[0].expectedStatuses"),
            ("  outlierDetection: {maxEjectionTime: 0s}", "error 0104 spec.outlierDetection.maxEjectionTime"),
            ("  retry: {methods: [get]}", "warning 0106 spec.retry.methods[0]"),
            ("  retry: {methods: [GET, GET]}", "error 0112 spec.retry.methods[1]"),
            ("  retry: {perTryTimeout: 9s}\n  timeouts: {request: 1s}", "error 0119 spec.retry.perTryTimeout"),
            ("  hedging: {delay: 0s}", "error 0104 spec.hedging.delay"),
            ("  fault: {}", "warning 0402 spec.fault"),
            ("  fault: {delay: {fixed: 0s}}", "warning 0402 spec.fault.delay.fixed"),
            ("  compression: {contentTypes: [json]}", "error 0106 spec.compression.contentTypes[0]"),
            (
                "  compression: {contentTypes: ['*/*', Text/html]}",
                "error 0106 spec.compression.contentTypes[0]\nerror 0106 spec.compression.contentTypes[1]",
            ),
            ("  compression: {contentTypes: ['text/*', 'application/x-*', '*']}", ""),
            ("  listener: {timeouts: {handshake: 0s}}", "error 0104 spec.listener.timeouts.handshake"),
            ("  listener: {http2: {pingTimeout: 0s}}", "error 0104 spec.listener.http2.pingTimeout"),
            ("  listener: {trustedHops: 1, trustedCidrs: [10.0.0.0/8]}", "warning 0402 spec.listener.trustedHops"),
        ],
    );
    let route = "apiVersion: selvedge.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  targetRefs: [{kind: HTTPRoute, name: a}]\n  directResponse: ";
    let kind = "error 0111 spec.directResponse.contentType";
    check(
        route,
        &[
            ("{status: 200, contentType: application/json}", ""),
            ("{status: 200, contentType: 'text/html; charset=utf-8'}", ""),
            ("{status: 200, contentType: \"text/plain\\nX-Evil: 1\"}", kind),
            ("{status: 200, contentType: json}", kind),
            ("{status: 200, contentType: \"text/caf\u{e9}\"}", kind),
            ("{status: 204, body: hello}", "warning 0402 spec.directResponse.body"),
        ],
    );
}

#[test]
fn backends() {
    check(
        SERVICE,
        &[
            ("  clusterIPs: [10.0.0.1, abc]", "error 0116 spec.clusterIPs[1]"),
            ("  externalName: a.example", "warning 0402 spec.externalName"),
            ("  trafficDistribution: PreferClosee", "warning 0103 spec.trafficDistribution"),
            ("  ports: [{port: 80, appProtocol: htpp}]", "warning 0103 spec.ports[0].appProtocol"),
            ("  ports: [{port: 80, appProtocol: kubernetes.io/hc2}]", "warning 0103 spec.ports[0].appProtocol"),
            ("  ports: [{port: 80, appProtocol: mysql}]", ""),
            ("  ports: [{port: 80, appProtocol: example.com/http}]", ""),
        ],
    );
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e}\naddressType: IPv4\n";
    check(
        slice,
        &[
            ("endpoints: [{addresses: [0.0.0.0]}]", "error 0116 endpoints[0].addresses[0]"),
            ("endpoints: [{addresses: [224.0.0.1]}]", "error 0116 endpoints[0].addresses[0]"),
            ("ports: [{port: 0}]", "error 0104 ports[0].port"),
        ],
    );
    let external = "apiVersion: selvedge.dev/v1alpha1\nkind: ExternalService\nmetadata: {name: e}\nspec:\n  hosts: [a.example]\n  ports: ";
    check(
        external,
        &[
            ("[{port: 443, appProtocol: htps}]", "warning 0103 spec.ports[0].appProtocol"),
            ("[{port: 443, appProtocol: https, tls: {}}]", "warning 0114 spec.ports[0].tls"),
            ("[{port: 443, appProtocol: http, tls: {}}]", ""),
        ],
    );
    let tls = "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: b}\nspec:\n  targetRefs: [{group: '', kind: Service, name: s}]\n  validation: {hostname: a, wellKnownCACertificates: System}\n";
    check(tls, &[("  options: {a: b}", "warning 0402 spec.options.a")]);
}

#[test]
fn ages() {
    let head = "apiVersion: v1\nkind: ConfigMap\nmetadata: ";
    check(
        head,
        &[
            ("{name: a, creationTimestamp: 2026-01-31T12:00:00Z}", ""),
            ("{name: a, creationTimestamp: null}", ""),
            ("{name: a, creationTimestamp: yesterday}", "error 0106 metadata.creationTimestamp"),
            ("{name: a, creationTimestamp: '2026-01-31T12:00:00+02:00'}", "error 0106 metadata.creationTimestamp"),
        ],
    );
}
