//! The offline commands of the real binary: what they print for broken input, and their exit codes.

use selvedge_testkit::certs::{Ca, Leaf, Spec};
use std::{
    fs,
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
};

struct Out {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Out {
    /// Asserts the exit code and a line of standard output.
    #[track_caller]
    fn says(&self, code: i32, line: &str) {
        assert!(self.stdout.lines().any(|l| l == line), "no line `{line}` in:\n{}\n{}", self.stdout, self.stderr);
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
    }
}

fn selvedge(dir: &Path, args: &[&str], stdin: &str) -> Out {
    let mut child = Command::new(env!("CARGO_BIN_EXE_selvedge"))
        .args(args)
        .current_dir(dir)
        .env_remove("CLICOLOR_FORCE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    // A command that reads no input may have ended already.
    let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
    let out = child.wait_with_output().expect("an end");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Out { code: out.status.code().expect("no signal"), stdout: text(out.stdout), stderr: text(out.stderr) }
}

/// Runs `check` on a folder with these files.
fn check(files: &[(&str, &str)]) -> Out {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        fs::create_dir_all(dir.path().join("conf")).expect("a folder");
        fs::write(dir.path().join("conf").join(name), text).expect("a file");
    }
    selvedge(dir.path(), &["check", "-f", "conf"], "")
}

const GATEWAY: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  gatewayClassName: selvedge
  listeners:
  - {name: http, port: 8080, protocol: HTTP}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {ports: [{port: 80, targetPort: 9001}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: cart-1, namespace: shop, labels: {kubernetes.io/service-name: cart}}
addressType: IPv4
ports: [{port: 9001}]
endpoints: [{addresses: [127.0.0.1]}]
";

/// A route whose rules begin in line 7.
fn route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: cart, namespace: shop}}\nspec:\n  parentRefs: [{{name: edge}}]\n  rules:\n{rules}"
    )
}

const TO_CART: &str = "  - backendRefs: [{name: cart, port: 80}]\n";

#[test]
fn sound_resources_are_told_to_be_sound() {
    let out = check(&[("a.yaml", GATEWAY), ("b.yaml", &route(TO_CART))]);
    assert_eq!((out.code, out.stdout.as_str()), (0, "4 resources, 0 errors, 0 warnings\n"), "{}", out.stderr);
}

#[test]
fn unknown_fields_come_with_their_place_and_the_nearest_name() {
    let text = route("  - backendRefs:\n    - name: cart\n      prot: 80\n");
    let out = check(&[("a.yaml", GATEWAY), ("b.yaml", &text)]);
    out.says(
        1,
        "conf/b.yaml:9:7: error[SELV0100] HTTPRoute shop/cart spec.rules[0].backendRefs[0].prot: unknown field `prot`",
    );
    out.says(1, "  help: did you mean `port`?");
    out.says(1, "4 resources, 1 error, 0 warnings");
}

#[test]
fn broken_documents_are_told_with_their_places() {
    let twice = route("  - backendRefs: [{name: cart, port: 80, name: web}]\n");
    let cases = [
        (
            route("  - backendRefs: [{name: cart, port: eighty}]\n"),
            "conf/b.yaml:7:38: error[SELV0101] HTTPRoute shop/cart spec.rules[0].backendRefs[0].port: expected a whole number, found text",
        ),
        (twice, "conf/b.yaml:7:42: error[SELV0006]: `name` is given twice"),
        (
            route("  - backendRefs: [{name: crat, port: 80}]\n"),
            "conf/b.yaml:7:26: error[SELV0204] HTTPRoute shop/cart spec.rules[0].backendRefs[0].name: Service shop/crat does not exist; did you mean cart?",
        ),
        (
            route(&format!("{TO_CART}    matches: [{{path: {{type: RegularExpression, value: \"/(\"}}}}]\n")),
            "conf/b.yaml:8:55: error[SELV0115] HTTPRoute shop/cart spec.rules[0].matches[0].path.value: ",
        ),
        (format!("{}---\nkind: [\n", route(TO_CART)), "conf/b.yaml:9:7: error[SELV0004]: unclosed bracket"),
    ];
    for (text, line) in cases {
        let out = check(&[("a.yaml", GATEWAY), ("b.yaml", &text)]);
        assert!(out.stdout.lines().any(|l| l.starts_with(line)), "no `{line}` in:\n{}", out.stdout);
        assert_eq!(out.code, 1);
    }
}

#[test]
fn two_resources_of_one_name_are_told_with_both_places() {
    let out = check(&[("a.yaml", GATEWAY), ("b.yaml", &route(TO_CART)), ("c.yaml", &format!("\n{}", route(TO_CART)))]);
    out.says(
        1,
        "conf/c.yaml:2:1: error[SELV0008] HTTPRoute shop/cart: HTTPRoute shop/cart is given twice: here and at conf/b.yaml:1:1",
    );
    let out = check(&[("a.yaml", &format!("{GATEWAY}---\n{0}---\n{0}", route(TO_CART)))]);
    out.says(
        1,
        "conf/a.yaml:29:1: error[SELV0008] HTTPRoute shop/cart: HTTPRoute shop/cart is given twice: here and at conf/a.yaml:21:1",
    );
}

#[test]
fn what_misses_a_broken_resource_blames_it() {
    let gateway = GATEWAY.replace("spec: {ports:", "spec: {prots:");
    let out = check(&[("a.yaml", &gateway), ("b.yaml", &route(TO_CART))]);
    out.says(1, "  help: did you mean `ports`?");
    out.says(
        1,
        "  help: Service shop/cart is there but has errors: mend it first, the first of them at conf/a.yaml:12:8: unknown field `prots`",
    );
}

/// A Gateway with TLS and the Secret of its certificate.
fn tls(certificate: &Leaf, key: &Leaf) -> String {
    let indented = |text: &str| text.lines().map(|l| format!("    {l}\n")).collect::<String>();
    format!(
        "{}---\napiVersion: v1\nkind: Secret\nmetadata: {{name: cert, namespace: shop}}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
        GATEWAY.replace(
            "protocol: HTTP}",
            "protocol: HTTPS, hostname: shop.example, tls: {certificateRefs: [{name: cert}]}}"
        ),
        indented(certificate.chain_pem()),
        indented(key.key_pem())
    )
}

#[test]
fn certificates_are_looked_into() {
    let ca = Ca::new("test");
    let (one, other) = (ca.leaf(&["shop.example"]), ca.leaf(&["shop.example"]));
    let out = check(&[("a.yaml", &tls(&one, &other)), ("b.yaml", &route(TO_CART))]);
    assert_eq!(out.code, 1, "{}", out.stdout);
    assert!(out.stdout.contains("error[SELV0301] "), "{}", out.stdout);
    assert!(!out.stdout.contains("BEGIN"), "no key in the output: {}", out.stdout);
    let expired = ca.issue(&Spec::dns(&["shop.example"]).expired());
    let files = [("a.yaml", tls(&expired, &expired)), ("b.yaml", route(TO_CART))];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let out = check(&files);
    out.says(
        0,
        "conf/a.yaml:7:95: warning[SELV0303] Gateway shop/edge spec.listeners[0].tls.certificateRefs[0]: the certificate of Secret shop/cert is expired: clients will refuse it",
    );
    let out = selvedge(Path::new("/"), &["check", "--warnings-as-errors", "-f", "-"], &tls(&expired, &expired));
    assert_eq!(out.code, 1, "{}", out.stdout);
    assert!(out.stdout.starts_with("<stdin>:"), "{}", out.stdout);
}

#[test]
fn hostile_files_are_refused_in_time() {
    let dir = tempfile::tempdir().expect("a folder");
    let large = fs::File::create(dir.path().join("large.yaml")).expect("a file");
    large.set_len(100 << 20).expect("a sparse file");
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..12 {
        let all = vec![format!("*a{}", i - 1); 10].join(", ");
        bomb += &format!("a{i}: &a{i} [{all}]\n");
    }
    fs::write(dir.path().join("bomb.yaml"), bomb).expect("a file");
    fs::write(dir.path().join("deep.json"), "[".repeat(100_000)).expect("a file");
    fs::write(dir.path().join("bytes.yaml"), b"kind: \xff\n").expect("a file");
    let out = selvedge(dir.path(), &["check", "-f", "."], "");
    let line = |start: &str| {
        assert!(out.stdout.lines().any(|l| l.starts_with(start)), "no `{start}` in:\n{}", out.stdout);
    };
    line("./large.yaml:1:1: error[SELV0002]: the file has 104857600 bytes; at most 33554432 are read");
    line("./bomb.yaml:");
    line("./deep.json:");
    line("./bytes.yaml:1:7: error[SELV0003]: ");
    assert_eq!(out.stdout.matches("error[SELV0005]").count(), 2, "{}", out.stdout);
    assert_eq!(out.code, 1);
}

#[test]
fn what_cannot_be_read_at_all_is_said_at_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = selvedge(dir.path(), &["check", "-f", "nowhere"], "");
    assert_eq!((out.code, out.stdout.as_str()), (1, ""));
    assert!(out.stderr.starts_with("error: cannot read nowhere: No such file"), "{}", out.stderr);
    let out = selvedge(dir.path(), &["check", "-f", "."], "");
    assert_eq!(out.code, 1);
    assert!(out.stderr.contains("there is no .yaml, .yml or .json file in ."), "{}", out.stderr);
}

#[test]
fn findings_can_be_read_by_programs() {
    let text = route("  - backendRefs: [{name: crat, port: 80}]\n");
    let all = format!("{GATEWAY}---\n{text}");
    let out = selvedge(Path::new("/"), &["check", "-f", "-", "--format", "json"], &all);
    let found: serde_json::Value = serde_json::from_str(&out.stdout).expect("JSON");
    assert_eq!(
        found,
        serde_json::json!([{
            "severity": "error",
            "code": "SELV0204",
            "resource": {"kind": "HTTPRoute", "namespace": "shop", "name": "cart"},
            "path": "spec.rules[0].backendRefs[0].name",
            "message": "Service shop/crat does not exist; did you mean cart?",
            "help": null,
            "location": {"file": "<stdin>", "line": 27, "column": 26}
        }])
    );
    assert_eq!(out.code, 1);
    let out = selvedge(Path::new("/"), &["check", "-f", "-", "--format", "github"], &all);
    out.says(
        1,
        "::error file=<stdin>,line=27,col=26,title=SELV0204::HTTPRoute shop/cart spec.rules[0].backendRefs[0].name: Service shop/crat does not exist; did you mean cart?",
    );
}

#[test]
fn requests_are_explained() {
    let rules = "  - matches: [{path: {value: /cart}, headers: [{name: x-beta, value: '1'}]}]\n    backendRefs: [{name: cart, port: 80}]\n    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /c}}}]\n  - matches: [{path: {value: /cart}}]\n    backendRefs: [{name: cart, port: 80}]\n";
    let all = format!("{GATEWAY}---\n{}", route(rules));
    let explain = |args: &[&str]| selvedge(Path::new("/"), &[&["explain", "-f", "-"], args].concat(), &all);
    let out = explain(&["GET", "http://shop.example:8080//cart/%7Ea?x=1", "-H", "X-Beta: 1", "--from", "10.0.0.1"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    for text in [
        "GET http://shop.example:8080//cart/%7Ea?x=1 from 10.0.0.1\n",
        "listener   shop/edge/http\n",
        "rule       HTTPRoute shop/cart#0\n",
        "backends   shop/cart:80\n             127.0.0.1:9001 weight 1\n",
        "asks for   http://shop.example/c/~a?x=1\n",
        "not        HTTPRoute shop/cart#1 (/cart/*)\n           because it matches too, but it matches on fewer headers\n",
    ] {
        assert!(out.stdout.contains(text), "no `{text}` in:\n{}", out.stdout);
    }
    let out = explain(&["http://shop.example:8080/other"]);
    assert_eq!(out.code, 2, "{}", out.stdout);
    assert!(out.stdout.contains("answers    404 "), "{}", out.stdout);
    let out = explain(&["http://shop.example:8080/cart", "--format", "json"]);
    let explained: serde_json::Value = serde_json::from_str(&out.stdout).expect("JSON");
    assert_eq!(explained["rule"]["name"], "HTTPRoute shop/cart#1");
    assert_eq!(explain(&["http://shop.example:8080/a b"]).code, 2);
    assert_eq!(explain(&["GET", "http://a:8080/", "-H", "nonsense"]).code, 1);
}

#[test]
fn a_call_in_a_mesh_is_explained_to_its_end() {
    let mesh = include_str!("../../../examples/mesh/config.yaml");
    let policy = "---\napiVersion: selvedge.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: carts, namespace: shop}\nspec:\n  \
                  targetRefs: [{kind: Service, name: orders}]\n  action: Deny\n  rules:\n  - name: no-deletes\n    \
                  from: [{identities: ['spiffe://prod.example.com/ns/shop/sa/web']}]\n    to: [{methods: [DELETE], paths: ['/cart/*']}]\n";
    let all = format!("{mesh}{policy}");
    let explain = |args: &[&str]| {
        selvedge(Path::new("/"), &[&["explain", "-f", "-", "--workload", "shop/web"], args].concat(), &all)
    };
    let out = explain(&["DELETE", "http://orders/cart/1"]);
    let denied =
        "there      denied by Workload shop/orders-1\n           denied by rule no-deletes of policy shop/carts\n";
    assert!(out.stdout.contains(denied), "{}{}", out.stdout, out.stderr);
    assert_eq!(out.code, 0);
    let out = explain(&["GET", "http://orders/cart/1", "--format", "json"]);
    let explained: serde_json::Value = serde_json::from_str(&out.stdout).expect("JSON");
    assert_eq!(explained["identity"], "spiffe://prod.example.com/ns/shop/sa/web");
    assert_eq!(explained["admission"][0]["allowed"], true);
    assert_eq!(explained["admission"][0]["place"], "Workload shop/orders-1");
}

#[test]
fn codes_are_explained() {
    let out = selvedge(Path::new("/"), &["explain", "SELV0204"], "");
    out.says(0, "SELV0204: Backend does not exist");
    let out = selvedge(Path::new("/"), &["explain", "SELV0999"], "");
    assert_eq!(out.code, 1);
    assert!(out.stderr.starts_with("error: there is no diagnostic SELV0999"), "{}", out.stderr);
}

#[test]
fn differences_for_traffic_are_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("a file");
    write("old.yaml", &format!("{GATEWAY}---\n{}", route(TO_CART)));
    write("same.yaml", &format!("{}---\n# moved\n{GATEWAY}", route(TO_CART)));
    write("new.yaml", &format!("{GATEWAY}---\n{}", route(TO_CART)).replace("127.0.0.1", "127.0.0.2"));
    write("bad.yaml", &format!("{GATEWAY}---\n{}", route("  - backendRefs: 1\n")));
    let diff =
        |new: &str, format: &str| selvedge(dir.path(), &["diff", "-f", "old.yaml", "-f", new, "--format", format], "");
    diff("same.yaml", "text").says(0, "nothing changes for traffic");
    let out = diff("new.yaml", "text");
    out.says(1, "~ endpoints of shop/cart:80");
    out.says(1, "1 change for traffic");
    let changes: serde_json::Value = serde_json::from_str(&diff("new.yaml", "json").stdout).expect("JSON");
    assert_eq!(changes[0]["before"], "127.0.0.1:9001");
    assert_eq!(diff("bad.yaml", "text").code, 2);
    assert_eq!(diff("nowhere", "text").code, 2);
}

#[test]
fn schemas_are_printed() {
    let out = selvedge(Path::new("/"), &["schema", "httproute"], "");
    let schema: serde_json::Value = serde_json::from_str(&out.stdout).expect("JSON");
    assert_eq!(schema["title"], "HTTPRoute");
    assert_eq!(selvedge(Path::new("/"), &["schema"], "").code, 0);
    let out = selvedge(Path::new("/"), &["schema", "HTTPRuote"], "");
    assert_eq!((out.code, out.stderr.as_str()), (1, "error: there is no kind HTTPRuote; did you mean HTTPRoute?\n"));
}

#[test]
fn colours_are_for_terminals_only() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(
        dir.path().join("a.yaml"),
        "kind: Secret\napiVersion: v1\nmetadata: {name: s}\nstringdata: {password: hunter2}\n",
    )
    .expect("a file");
    let run = |name: &str, value: &str| {
        let out = Command::new(env!("CARGO_BIN_EXE_selvedge"))
            .args(["check", "-f", "a.yaml"])
            .current_dir(dir.path())
            .env_remove("NO_COLOR")
            .env(name, value)
            .output()
            .expect("the binary");
        String::from_utf8(out.stdout).expect("UTF-8")
    };
    assert!(!run("TERM", "xterm").contains('\x1b'), "a pipe is no terminal");
    let coloured = run("CLICOLOR_FORCE", "1");
    assert!(coloured.contains("\x1b[1;31merror[SELV0100]\x1b[0m"), "{coloured}");
    assert!(!coloured.contains("hunter2"), "{coloured}");
}

/// A process that would heed the signal, and one that is a selvedge of another kind.
#[test]
fn only_what_can_be_upgraded_is_asked_to() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut other = Command::new("sh")
        .args(["-c", "trap 'exit 7' USR2; echo ready; read line; exit 0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a shell");
    let mut ready = [0; 6];
    other.stdout.as_mut().expect("piped").read_exact(&mut ready).expect("ready");
    let out = selvedge(dir.path(), &["upgrade", "--pid", &other.id().to_string()], "");
    assert!(out.code == 1 && out.stderr.contains("is not a selvedge: it runs /"), "{}", out.stderr);
    drop(other.stdin.take());
    assert_eq!(other.wait().expect("an end").code(), Some(0), "it was not signalled");

    fs::create_dir(dir.path().join("conf")).expect("a folder");
    let mut control = Command::new(env!("CARGO_BIN_EXE_selvedge"))
        .args(["check", "-f", "-"])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary");
    let out = selvedge(dir.path(), &["upgrade", "--pid", &control.id().to_string()], "");
    assert!(out.code == 1 && out.stderr.contains("neither `selvedge run` nor"), "{}", out.stderr);
    control.kill().expect("killed");
    control.wait().expect("an end");

    let out = selvedge(dir.path(), &["upgrade", "--pid", &i32::MAX.to_string()], "");
    assert!(out.code == 1 && out.stderr.contains("there is no process"), "{}", out.stderr);
}

#[test]
fn odd_values_are_told_with_their_places() {
    let policy = |target: &str, spec: &str| {
        format!(
            "apiVersion: selvedge.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n  targetRefs: [{target}]\n  {spec}\n"
        )
    };
    let gateway = "{kind: Gateway, name: edge}";
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: c, namespace: shop, labels: {kubernetes.io/service-name: crat}}\naddressType: IPv4\n";
    let cases = [
        (
            route(&format!("{TO_CART}    sessionPersistence: {{sessionName: my session}}\n")),
            1,
            "conf/b.yaml:8:39: error[SELV0106] HTTPRoute shop/cart spec.rules[0].sessionPersistence.sessionName: `my session` is not a name that a cookie can have: write letters,",
        ),
        (
            policy(gateway, "telemetry: {tracing: {otlp: \"collector:4317\"}}"),
            1,
            "conf/b.yaml:6:31: error[SELV0106] TrafficPolicy shop/p spec.telemetry.tracing.otlp: `collector:4317` does not begin with http:// or https://; write `http://HOST:4317` or `https://HOST:4317`",
        ),
        (
            policy(gateway, "hedging: {maxAttempts: 3}"),
            0,
            "conf/b.yaml:6:3: warning[SELV0402] TrafficPolicy shop/p spec.hedging: nothing is hedged without `delay`,",
        ),
        (
            policy("{kind: Service, name: cart}", "healthChecks: [{expectedStatuses: [2xx]}]"),
            1,
            "  help: did you mean `200-299`?",
        ),
        (
            route("  - backendRefs: [{name: cart, port: 80, weight: 0}]\n"),
            0,
            "conf/b.yaml:7:5: warning[SELV0227] HTTPRoute shop/cart spec.rules[0].backendRefs: all backends of the rule have weight 0: requests are answered with 500",
        ),
        (
            slice.to_owned(),
            0,
            "conf/b.yaml:3:75: warning[SELV0228] EndpointSlice shop/c metadata.labels[\"kubernetes.io/service-name\"]: Service shop/crat does not exist, so that these endpoints get no traffic; did you mean cart?",
        ),
    ];
    for (text, code, line) in cases {
        let out = check(&[("a.yaml", GATEWAY), ("b.yaml", &text)]);
        assert!(out.stdout.lines().any(|l| l.starts_with(line)), "no `{line}` in:\n{}", out.stdout);
        assert_eq!(out.code, code, "{}", out.stdout);
    }
}
