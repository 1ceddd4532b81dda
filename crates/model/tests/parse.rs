//! Files as people and attackers write them.

use std::fmt::Write as _;

use selvedge_model::http::{HttpFilter, PathMatchType};
use selvedge_model::{Code, Kind, Limits, Parsed, Resource, parse};

fn read(text: &str) -> Parsed {
    parse("f.yaml", text.as_bytes(), &Limits::default())
}

/// The one resource of a text that is sound.
fn sound(text: &str) -> Resource {
    let parsed = read(text);
    assert_eq!(parsed.diagnostics, [], "{text}");
    parsed.loaded.into_iter().next().and_then(|loaded| loaded.resource).expect("a resource")
}

/// The diagnostics of a text, one per line, without help.
fn faults(text: &str) -> String {
    read(text).diagnostics.iter().fold(String::new(), |mut out, diagnostic| {
        let mut bare = diagnostic.clone();
        bare.help = None;
        let _ = writeln!(out, "{bare}");
        out
    })
}

fn route(spec: &str) -> String {
    format!("apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: r\nspec:\n{spec}")
}

#[test]
fn every_kind_is_read() {
    let texts = [
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: edge}\nspec: {controllerName: selvedge.dev/gateway}\n",
        "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: Gateway\nmetadata: {name: edge, namespace: infra}\nspec:\n  gatewayClassName: edge\n  addresses: [{type: IPAddress, value: 127.0.0.1}]\n  allowedListeners: {namespaces: {from: All}}\n  infrastructure: {labels: {a: b}}\n  tls:\n    backend: {clientCertificateRef: {name: c}}\n    frontend:\n      default: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}}\n      perPort: [{port: 8443, tls: {validation: {mode: AllowInsecureFallback, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}}}]\n  listeners:\n  - {name: http, port: 80, protocol: HTTP, hostname: '*.example.com', allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {a: b}}}, kinds: [{kind: HTTPRoute}]}}\n  - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}\n  - {name: pass, port: 443, protocol: TLS, hostname: p.example.com, tls: {mode: Passthrough}}\n  - {name: tcp, port: 5000, protocol: TCP}\n",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: more}\nspec:\n  parentRef: {name: edge}\n  listeners: [{name: a, port: 81, protocol: HTTP}]\n",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g}\nspec:\n  parentRefs: [{name: edge}]\n  rules:\n  - matches: [{method: {service: shop.Cart, method: Add}, headers: [{name: a, value: b}]}]\n    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x]}}]\n    backendRefs: [{name: cart, port: 50051, weight: 3}]\n",
        "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TLSRoute\nmetadata: {name: t}\nspec:\n  hostnames: [a.example]\n  rules: [{backendRefs: [{name: t, port: 443}]}]\n",
        "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {name: t}\nspec:\n  rules: [{backendRefs: [{name: t, port: 443}]}]\n",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: UDPRoute\nmetadata: {name: u}\nspec:\n  rules: [{backendRefs: [{name: u, port: 53}]}]\n",
        "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g}\nspec:\n  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]\n  to: [{group: '', kind: Service}]\n",
        "apiVersion: gateway.networking.k8s.io/v1alpha3\nkind: BackendTLSPolicy\nmetadata: {name: b}\nspec:\n  targetRefs: [{group: '', kind: Service, name: s}]\n  validation:\n    hostname: s.example\n    wellKnownCACertificates: System\n    subjectAltNames: [{type: URI, uri: 'spiffe://a/b'}]\n",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: a}}\nspec: {finalizers: [kubernetes]}\nstatus: {phase: Active}\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  type: NodePort\n  clusterIP: 10.0.0.1\n  clusterIPs: [10.0.0.1]\n  ipFamilies: [IPv4]\n  sessionAffinity: None\n  selector: {app: s}\n  ports:\n  - {name: http, port: 80, targetPort: web, nodePort: 30080, appProtocol: kubernetes.io/h2c}\n  - {name: dns, port: 53, targetPort: 5353, protocol: UDP}\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {type: ExternalName, externalName: api.example.com}\n",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s-1, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints:\n- {addresses: [10.0.0.5], conditions: {ready: true}, zone: a, hints: {forZones: [{name: a}]}, nodeName: n, targetRef: {kind: Pod}}\n",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ntype: kubernetes.io/tls\ndata:\n  tls.crt: |\n    aGVs\n    bG8=\nstringData: {tls.key: k}\n",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {ca.crt: x}\nbinaryData: {b: AAE=}\n",
    ];
    for text in texts {
        sound(text);
    }
    let Resource::Secret(secret) = sound(texts[13]) else { panic!("not a Secret") };
    assert_eq!(secret.get("tls.crt"), Some(&b"hello"[..]));
    assert_eq!(secret.get("tls.key"), Some(&b"k"[..]));
    assert!(!format!("{secret:?}").contains("hello"));
}

#[test]
fn every_field_of_an_http_route_is_read() {
    let text = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: all
  namespace: shop
  creationTimestamp: null
  managedFields: [{manager: kubectl}]
spec:
  parentRefs:
  - {name: edge, namespace: infra, sectionName: https, port: 443}
  - {group: "", kind: Service, name: s}
  hostnames: ["*.shop.example", shop.example]
  useDefaultGateways: All
  rules:
  - name: first
    matches:
    - path: {type: Exact, value: /cart}
      method: GET
      headers: [{name: x-a, value: b}, {type: RegularExpression, name: x-c, value: "a|b"}]
      queryParams: [{name: q, value: "1"}]
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], add: [{name: c, value: d}], remove: [e]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: a, value: b}]}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: m, port: 80}, percent: 5}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: m, port: 80}, fraction: {numerator: 1, denominator: 1000}}}
    - {type: CORS, cors: {allowOrigins: ["https://*.shop.example", "http://localhost:3000"], allowMethods: [GET], allowHeaders: ["*"], allowCredentials: true, maxAge: 60}}
    - {type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: auth, port: 80}, http: {path: /check, allowedHeaders: [x]}, forwardBody: {maxSize: 1024}}}
    - {type: ExtensionRef, extensionRef: {group: selvedge.dev, kind: Thing, name: t}}
    - {type: URLRewrite, urlRewrite: {hostname: inner.example, path: {type: ReplaceFullPath, replaceFullPath: /x}}}
    backendRefs:
    - name: a
      port: 80
      weight: 9
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: v, value: "1"}]}}]
    - {name: b, namespace: other, port: 80, weight: 1}
    timeouts: {request: 10s, backendRequest: 2s}
    retry: {attempts: 2, codes: [500, 503], backoff: 100ms}
    sessionPersistence: {sessionName: s, type: Cookie, absoluteTimeout: 1h, idleTimeout: 10m, cookieConfig: {lifetimeType: Permanent}}
  - matches: [{path: {value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: new.example, port: 8443, statusCode: 308, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]
  - backendRefs: []
status: {parents: [anything]}
"#;
    let Resource::HttpRoute(route) = sound(text) else { panic!("not an HTTPRoute") };
    let [first, second, third] = route.spec.rules.as_slice() else { panic!("{} rules", route.spec.rules.len()) };
    assert_eq!(first.backend_refs[0].backend.weight, 9);
    assert_eq!(first.backend_refs[1].backend.namespace.as_deref(), Some("other"));
    assert_eq!(first.filters.iter().filter(|filter| filter.filter().is_some()).count(), 8);
    assert!(matches!(second.filters[0].filter(), Some(HttpFilter::RequestRedirect(r)) if r.status_code == Some(308)));
    assert_eq!(second.matches[0].path.match_type, PathMatchType::PathPrefix);
    assert_eq!(third.matches[0].path.value, "/");
    let again = Resource::from_value(&Resource::HttpRoute(route.clone()).to_value()).expect("sound");
    assert_eq!(again, Resource::HttpRoute(route));
}

#[test]
fn every_setting_of_a_traffic_policy_is_read() {
    // But for `algorithm` and `format`, beside which some of the others have no effect.
    let text = r#"
apiVersion: selvedge.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: all, namespace: shop}
spec:
  targetRefs: [{kind: Gateway, name: edge, sectionName: https}]
  loadBalancing:
    hashKeys: [{type: Header, name: x-user}, {type: Cookie, cookie: {name: c, ttl: 1h, path: /}}, {type: SourceIP}, {type: Query, name: q}, {type: Path}]
    choices: 3
    slowStart: {window: 30s, aggression: 1.5, minPercent: 5}
    panicThreshold: 40
    zone: {preference: Strict, minEndpoints: 2, minHealthyPercent: 60}
    ring: {min: 100, max: 1000}
    maglevTableSize: 65537
  connections:
    connectTimeout: 1s
    maxConnections: 10
    maxPendingRequests: 0
    maxRequests: 100
    maxRetries: 3
    maxRequestsPerConnection: 1000
    idleTimeout: 30s
    maxAge: 1h
    keepalive: {tcp: {time: 10s, interval: 1s, probes: 3}, http2PingInterval: 30s, http2PingTimeout: 5s}
    proxyProtocol: V2
    http2: {maxConcurrentStreams: 10, streamWindow: 65535, connectionWindow: 1048576}
    protocol: HTTP2
  healthChecks:
  - {type: HTTP, interval: 5s, timeout: 1s, path: /healthz, host: a.example, method: HEAD, expectedStatuses: [200, 202-204], unhealthyThreshold: 2, healthyThreshold: 1, port: 8081}
  - {type: GRPC, service: shop.Cart}
  - {type: TCP}
  outlierDetection: {consecutive5xx: 3, consecutiveGatewayErrors: 2, consecutiveLocalOriginFailures: 2, successRate: {minimumHosts: 3, requestVolume: 10, stdevFactor: 1.9}, interval: 1s, baseEjectionTime: 5s, maxEjectionTime: 1m, maxEjectionPercent: 50}
  timeouts: {request: 10s, backendRequest: 1s, streamIdle: 1m}
  retry: {attempts: 2, codes: [429], retryOn: [connect-failure, reset, refused-stream, gateway-error, 5xx, retriable-4xx, grpc-unavailable], methods: [GET], perTryTimeout: 1s, backoff: {base: 10ms, max: 1s}, budget: {percent: 10, minRetriesPerSecond: 1, minConcurrency: 1}, maxBodyBytes: 1000}
  hedging: {delay: 50ms, maxAttempts: 2}
  fault: {delay: {fixed: 1s, percent: 0.5}, abort: {status: 503, percent: 1}}
  compression: {algorithms: [br, gzip, zstd], minBytes: 100, contentTypes: [text/*]}
  requestLimits: {maxBodyBytes: 1000000, maxTargetBytes: 4096}
  listener:
    proxyProtocol: Required
    trustedHops: 1
    maxConnections: 100
    headers: {maxCount: 50, maxBytes: 16384, underscores: Reject}
    timeouts: {handshake: 5s, header: 5s, idle: 1m, bodyMinRate: 500, maxConnectionAge: 1h}
    http2: {maxConcurrentStreams: 50, streamWindow: 65535, connectionWindow: 65535, pingInterval: 1m, pingTimeout: 5s}
    normalization: {mergeSlashes: false, escapedSlashes: Reject}
    maxRequestsPerConnection: 100
  telemetry:
    accessLog: {enabled: true, template: "%REQ(:METHOD)% 100%%", fields: {user: "%REQ(x-user)%"}, path: /tmp/log, condition: {minStatus: 400, minDuration: 1s, errorsOnly: false}, sampling: 12.5}
    tracing: {sampling: 5, followCaller: false, attributes: {env: test}}
"#;
    sound(text);
}

#[test]
fn json_is_read_too() {
    let text = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"ConfigMap\",\n\t\"metadata\": {\"name\": \"a\"},\n\t\"data\": {\"x\": \"\\ud83d\\ude00 \\/ \\u00e9\\n\"}\n}\n";
    let Resource::ConfigMap(map) = sound(text) else { panic!("not a ConfigMap") };
    assert_eq!(map.data["x"], "😀 / é\n");
}

#[test]
fn lists_are_unfolded() {
    for kind in ["List", "ConfigMapList"] {
        let text = format!(
            "apiVersion: v1\nkind: {kind}\nitems:\n- {{apiVersion: v1, kind: ConfigMap, metadata: {{name: a}}}}\n- {{apiVersion: v1, kind: ConfigMap, metadata: {{name: b}}, dta: {{}}}}\n"
        );
        let parsed = read(&text);
        assert_eq!(parsed.loaded.len(), 2);
        assert!(parsed.loaded[0].resource.is_some() && parsed.loaded[1].resource.is_none());
        assert_eq!(parsed.loaded[1].origin.path.to_string(), "items[1]");
        assert_eq!(faults(&text), "f.yaml:5:58: error[SELV0100] ConfigMap default/b dta: unknown field `dta`\n");
    }
}

#[test]
fn anchors_and_merge_keys_are_expanded() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: &base {a: x, b: y}\nbinaryData: {}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: b, labels: &l {a: b}, annotations: {<<: *l, c: d}}\n";
    let parsed = read(text);
    assert_eq!(parsed.diagnostics, []);
    let annotations = &parsed.loaded[1].resource.as_ref().expect("sound").metadata().annotations;
    assert_eq!(annotations["a"], "b");
    assert_eq!(annotations["c"], "d");
}

#[test]
fn a_bad_document_costs_only_itself() {
    let good = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
    let text = format!("%YAML 1.2\n---\n{good}---\nfoo: [\n---\n# nothing\n---\n{good}...\n{good}");
    let parsed = read(&text);
    assert_eq!(parsed.loaded.len(), 3);
    assert!(parsed.loaded.iter().all(|loaded| loaded.resource.is_some()));
    assert_eq!(parsed.diagnostics.len(), 1);
    assert_eq!(parsed.diagnostics[0].code, Code::Syntax);
    let location = parsed.diagnostics[0].location.as_ref().expect("a place");
    assert!((7..=8).contains(&location.line), "{location}");
    assert_eq!(parsed.loaded[2].origin.location.line, 15);
}

#[test]
fn all_faults_of_a_document_are_told_at_once() {
    let text = route(
        "  hostname: [a]\n  rules:\n  - macthes: []\n    backendRefs:\n    - {name: 5, port: '80', weigth: 1}\n    - {port: 70000}\n    timeouts: {request: 10 seconds}\n    filters:\n    - type: RequestRedirct\n    - {type: CORS, cors: {maxAge: 0, allowCredentials: 'yes'}}\n",
    );
    assert_eq!(
        faults(&text),
        "\
f.yaml:6:3: error[SELV0100] HTTPRoute default/r spec.hostname: unknown field `hostname`
f.yaml:8:5: error[SELV0100] HTTPRoute default/r spec.rules[0].macthes: unknown field `macthes`
f.yaml:10:14: error[SELV0101] HTTPRoute default/r spec.rules[0].backendRefs[0].name: expected text, found a number
f.yaml:10:23: error[SELV0101] HTTPRoute default/r spec.rules[0].backendRefs[0].port: expected a whole number, found text
f.yaml:10:29: error[SELV0100] HTTPRoute default/r spec.rules[0].backendRefs[0].weigth: unknown field `weigth`
f.yaml:11:14: error[SELV0104] HTTPRoute default/r spec.rules[0].backendRefs[1].port: 70000 is out of range
f.yaml:11:7: error[SELV0102] HTTPRoute default/r spec.rules[0].backendRefs[1].name: required field `name` is missing
f.yaml:12:25: error[SELV0106] HTTPRoute default/r spec.rules[0].timeouts.request: `10 seconds` is not a duration; write one such as 500ms, 10s or 1h30m
f.yaml:14:13: error[SELV0103] HTTPRoute default/r spec.rules[0].filters[0].type: `RequestRedirct` is not allowed here
f.yaml:15:35: error[SELV0104] HTTPRoute default/r spec.rules[0].filters[1].cors.maxAge: 0 is out of range
f.yaml:15:56: error[SELV0101] HTTPRoute default/r spec.rules[0].filters[1].cors.allowCredentials: expected true or false, found text
"
    );
    let helps: Vec<_> = read(&text).diagnostics.into_iter().filter_map(|diagnostic| diagnostic.help).collect();
    assert!(helps.contains(&"did you mean `hostnames`?".to_owned()), "{helps:?}");
    assert!(helps.contains(&"did you mean `RequestRedirect`?".to_owned()), "{helps:?}");
}

/// What is wrong, with its place, in one line.
#[test]
fn bad_input_of_every_class_is_told_with_its_place() {
    let cases = [
        (
            "kind: Service\nmetadata: {name: a}\n",
            "f.yaml:1:1: error[SELV0102] apiVersion: required field `apiVersion` is missing (`a`)\n",
        ),
        (
            "apiVersion: 1\nkind: Service\n",
            "f.yaml:1:13: error[SELV0101] apiVersion: `apiVersion` must be text, found a number\n",
        ),
        (
            "apiVersion: v1\nkind: Servise\nmetadata: {name: a}\n",
            "f.yaml:2:7: error[SELV0009] kind: unknown kind `Servise` (`a`)\n",
        ),
        (
            "apiVersion: v2\nkind: Service\n",
            "f.yaml:1:13: error[SELV0010] apiVersion: there is no Service in apiVersion `v2`\n",
        ),
        (
            "apiVersion: v1\nkind: HTTPRoute\n",
            "f.yaml:1:13: error[SELV0010] apiVersion: there is no HTTPRoute in apiVersion `v1`\n",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\n",
            "f.yaml:2:7: info[SELV0011] kind: Deployment of `apps/v1` is not used by Selvedge and left alone\n",
        ),
        (
            "hello\n",
            "f.yaml:1:1: error[SELV0007]: expected a resource with apiVersion, kind and metadata, found text\n",
        ),
        (
            "a: b\na: c\n",
            "f.yaml:2:1: error[SELV0006]: `a` is given twice in this object\nf.yaml:1:1: error[SELV0102] apiVersion: required field `apiVersion` is missing\nf.yaml:1:1: error[SELV0102] kind: required field `kind` is missing\n",
        ),
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {x: '???'}\n",
            "f.yaml:4:11: error[SELV0106] Secret default/a data.x: not base64: Invalid symbol 63, offset 0.\n",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: A_b, namespace: c.d}\n",
            "f.yaml:3:18: error[SELV0107] ConfigMap c.d/A_b metadata.name: `A_b` is not a DNS name: lower-case letters, digits, `-` and `.`, each part beginning and ending with a letter or digit, at most 253 characters\nf.yaml:3:34: error[SELV0107] ConfigMap c.d/A_b metadata.namespace: `c.d` is not a DNS label: at most 63 lower-case letters, digits and `-`, beginning and ending with a letter or digit\n",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: []\n",
            "f.yaml:3:11: error[SELV0101] metadata: expected an object, found a list\n",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\n",
            "f.yaml:1:1: error[SELV0102] metadata: required field `metadata` is missing\n",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Values.name }}}\n",
            "f.yaml:3:19: error[SELV0004]: a key must be text, not a list, object or alias\n",
        ),
    ];
    for (text, wanted) in cases {
        assert_eq!(faults(text), wanted, "{text}");
    }
}

#[test]
fn files_that_cannot_be_text_are_refused() {
    let parsed = parse("f", b"a: b\nc: \xff\xfe\n", &Limits::default());
    assert_eq!(
        parsed.diagnostics[0].to_string().lines().next(),
        Some("f:2:4: error[SELV0003]: the file is not UTF-8 text")
    );
    let limits = Limits { file_bytes: 10, ..Limits::default() };
    let parsed = parse("f", b"a: 12345678", &limits);
    assert_eq!(parsed.diagnostics[0].code, Code::FileTooLarge);
    let big = vec![b'['; 100 * 1024 * 1024];
    assert_eq!(parse("f", &big, &Limits::default()).diagnostics[0].code, Code::FileTooLarge);
}

#[test]
fn templates_are_told_apart() {
    for text in ["a: b\n{{- if .Values.x }}\nc: d\n{{- end }}\n", "{{ include \"x\" . }}\n"] {
        let parsed = read(text);
        assert_eq!(parsed.diagnostics[0].code, Code::Syntax, "{:?}", parsed.diagnostics);
        assert!(parsed.diagnostics[0].help.as_deref().is_some_and(|help| help.contains("template")));
    }
}

#[test]
fn bombs_are_refused_quickly() {
    let mut laughs = String::from("a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
    for level in 1..30 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        let _ = writeln!(laughs, "a{level}: &a{level} [{aliases}]");
    }
    let one_big = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 100].join(","));
    let own = "a: &a [*a]\n".to_owned();
    let deep = format!("a: {}{}", "[".repeat(5000), "]".repeat(5000));
    let indented = (0..3000).fold(String::new(), |out, level| format!("{out}{}a:\n", " ".repeat(level)));
    let dashes = format!("{}a\n", "- ".repeat(5000));
    let nested_anchors = format!("{}x{}", "&a [".repeat(90), "]".repeat(90));
    for bomb in [laughs, one_big, own, deep, indented, dashes] {
        let started = std::time::Instant::now();
        let parsed = read(&bomb);
        assert!(parsed.loaded.is_empty());
        let code = parsed.diagnostics[0].code;
        assert!(matches!(code, Code::TooComplex | Code::Syntax), "{code} {}", &bomb[..40]);
        assert!(started.elapsed().as_secs() < 60, "{}", &bomb[..40]);
    }
    read(&nested_anchors);
}

#[test]
fn diagnostics_about_one_file_are_limited() {
    let text = "x\n---\n".repeat(5000);
    let parsed = read(&text);
    assert_eq!(parsed.diagnostics.len(), Limits::default().diagnostics + 1);
    let unknown = (0..1000).fold(String::new(), |out, number| format!("{out}  x{number}: 1\n"));
    assert_eq!(read(&route(&unknown)).diagnostics.len(), 64);
}

#[test]
fn names_without_namespace_get_default_and_cluster_kinds_none() {
    assert_eq!(sound(&route("  hostnames: []\n")).key().to_string(), "HTTPRoute default/r");
    let class = "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: a, namespace: b}\nspec: {controllerName: a.b/c}\n";
    assert_eq!(sound(class).key().to_string(), "GatewayClass a");
}

#[test]
fn ten_thousand_routes_are_read_in_time() {
    let one = |number: usize| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: r{number}\n  namespace: shop\nspec:\n  parentRefs:\n  - name: edge\n  hostnames: [h{number}.example.com]\n  rules:\n  - matches:\n    - path: {{type: PathPrefix, value: /v{number}}}\n    backendRefs:\n    - name: s\n      port: 80\n"
        )
    };
    let text = (0..10_000).map(one).collect::<Vec<_>>().join("---\n");
    let started = std::time::Instant::now();
    let parsed = read(&text);
    assert_eq!(parsed.diagnostics, []);
    assert_eq!(parsed.loaded.len(), 10_000);
    assert!(parsed.loaded.iter().all(|loaded| loaded.resource.as_ref().is_some_and(|r| r.kind() == Kind::HttpRoute)));
    assert!(started.elapsed().as_secs() < 200);
}

#[test]
fn only_documents_that_changed_are_read_again() {
    let document = |name: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n");
    let files = [
        format!("{}---\n{}---\nfoo: [\n", document("a"), document("b")),
        format!("# moved\n---\n{}---\n{}---\nfoo: [\n", document("a"), document("c")),
        format!("---\n{}---\n{}---\n{}", document("c"), document("c"), document("a")),
        String::new(),
        document("a"),
    ];
    let limits = Limits::default();
    let mut reader = selvedge_model::Reader::default();
    let mut maps = Vec::new();
    for file in files {
        let parsed = reader.parse("f.yaml", file.as_bytes(), &limits);
        assert_eq!(parsed, read(&file), "{file}");
        maps.push(parsed.loaded.into_iter().find_map(|loaded| match loaded.resource {
            Some(Resource::ConfigMap(map)) if map.metadata.name == "a" => Some(map),
            _ => None,
        }));
    }
    let same = |one: usize, other: usize| match (&maps[one], &maps[other]) {
        (Some(one), Some(other)) => std::sync::Arc::ptr_eq(one, other),
        _ => false,
    };
    assert!(same(1, 2), "an unchanged document yields the same object");
    reader.retain(|_| false);
    assert_eq!(reader.parse("f.yaml", b"", &limits), Parsed::default());
}
