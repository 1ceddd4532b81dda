//! What the demo prints: where everything is and what to try. Every command works when it is pasted.

use super::{fleet, folder::Folder, identities, paint::Paint, ports::Ports};
use std::{fmt::Write, path::Path};

/// The whole text. Lines that begin with four spaces and no `#` are commands.
pub fn text(ports: Ports, folder: &Folder) -> String {
    let paint = Paint::for_stdout();
    let mut out = String::new();
    let resources = folder.resources();
    let place = |name: &str, what: &str| format!("  {name:<10}{what}\n");
    let _ =
        writeln!(out, "\n{}\n", paint.title("Selvedge demo: a small shop in a mesh, and the gateway in front of it"));
    out.push_str(&place("HTTP", &format!("http://{}", ports.http())));
    out.push_str(&place("HTTPS", &format!("https://localhost:{}", ports.https().port())));
    out.push_str(&place("TCP", &ports.tcp().to_string()));
    out.push_str(&place("admin", &format!("http://{}", ports.admin())));
    out.push_str(&place("resources", &format!("{}   (edit them: changes take effect at once)", resources.display())));
    out.push_str(&place("logs", &folder.logs().display().to_string()));
    let _ = writeln!(out, "\n{}", paint.title("Members of the mesh, each a process with a certificate of its own:"));
    out.push_str(&identities::table(folder.path()));
    let _ = writeln!(out, "\n{}", paint.title("Try, in another terminal:"));
    out.push_str(&listed(&paint, attempts(ports, folder)));
    let _ = write!(out, "\n{}", paint.title("Ctrl-C ends the demo."));
    out
}

/// Titles with the commands below them.
pub fn listed(paint: &Paint, attempts: Vec<Attempt>) -> String {
    let mut out = String::new();
    for (title, commands) in attempts {
        let _ = writeln!(out, "\n    {}", paint.remark(&format!("# {title}")));
        for command in commands {
            let _ = writeln!(out, "    {}", paint.command(&command));
        }
    }
    out
}

/// A title and commands below it.
pub type Attempt = (&'static str, Vec<String>);

fn attempts(ports: Ports, folder: &Folder) -> Vec<Attempt> {
    let http = format!("http://{}", ports.http());
    let mut all = routing(&http);
    all.extend(resilience(&http));
    all.extend(answers_of_its_own(&http));
    all.extend(other_protocols(ports, folder));
    all.extend(mesh(ports, folder));
    all.extend(operation(ports, folder));
    all
}

fn mesh(ports: Ports, folder: &Folder) -> Vec<Attempt> {
    let (program, path) = (program(), quoted(folder.path()));
    let (resources, state) = (quoted(&folder.resources()), quoted(&folder.state(fleet::CONTROL)));
    let from =
        |name: &str| format!("curl -si -x http://{} http://catalog-v1/catalog/1", ports.place(name).http_proxy());
    let may = |name: &str| {
        format!(
            "{program} may -f {resources} spiffe://cluster.local/ns/default/sa/{name} GET http://catalog-v1/catalog/1"
        )
    };
    let failing = ports.place("catalog-v1-b").service;
    let clusters = format!("curl -s http://{}/clusters", ports.admin());
    let (http, port) = (format!("http://{}", ports.http()), ports.http().port());
    vec![
        (
            "mesh: is every proxy up to date, and who is it?",
            vec![
                format!("{program} status --control http://{}", ports.control_admin()),
                format!("{program} demo identities {path}"),
                format!("{program} ca show --state {state}"),
            ],
        ),
        (
            "access: the cart may ask the catalogue, by the proxy beside it; the chat may not",
            vec![from("cart"), from("chat")],
        ),
        ("access: which rule decides?", vec![may("cart"), may("chat")]),
        (
            "circuit breaker: one of two instances fails; after three failures its breaker opens, and it gets no more requests",
            vec![
                format!(
                    "curl -s -X POST http://{failing}/fail; for i in $(seq 20); do curl -s -o /dev/null -w '%{{http_code}} ' {http}/api/products/1; done; echo"
                ),
                format!("{clusters} | grep -oE '\"state\":\"ejected\"'; curl -s -X POST http://{failing}/mend"),
            ],
        ),
        (
            "certificates: the gateway's is renewed while requests go on",
            vec![format!("{program} demo rotation --port {port} {path} gateway")],
        ),
    ]
}

fn routing(http: &str) -> Vec<Attempt> {
    vec![
        (
            "routing: the gateway's own page, the catalogue, the cart",
            vec![
                format!("curl -s {http}/"),
                format!("curl -s {http}/catalog/2"),
                format!("curl -s {http}/cart -d '{{\"sku\": 2}}'"),
            ],
        ),
        ("canary: 9 of 10 requests go to version 1, the rest to version 2", vec![count(http)]),
        ("canary: a header asks for version 2", vec![format!("curl -s -H 'x-version: v2' {http}/catalog/1")]),
    ]
}

fn resilience(http: &str) -> Vec<Attempt> {
    let codes =
        |path: &str| format!("for i in 1 2 3 4; do curl -s -o /dev/null -w '%{{http_code}} ' {http}{path}; done; echo");
    vec![
        (
            "retries: the service fails every other call; first without, then with retries",
            vec![codes("/cart/flaky-bare"), codes("/cart/flaky")],
        ),
        (
            "timeout: the service takes 3 s, the gateway waits 0.5 s and says 504",
            vec![format!("curl -si '{http}/cart/slow?ms=3000'")],
        ),
        (
            "mirror: an order goes to the cart, and a copy to the audit service",
            vec![format!("curl -s -X POST {http}/cart/checkout; sleep 0.2; curl -s {http}/audit")],
        ),
    ]
}

fn answers_of_its_own(http: &str) -> Vec<Attempt> {
    let preflight = "-H 'origin: https://shop.example' -H 'access-control-request-method: POST'";
    vec![
        (
            "redirect, and rewrite of the path",
            vec![format!("curl -si {http}/old-shop/3"), format!("curl -s {http}/api/products/3")],
        ),
        (
            "CORS: the gateway answers the preflight of a browser",
            vec![format!("curl -si -X OPTIONS {preflight} {http}/cart")],
        ),
        (
            "compression: by the gateway, when the client accepts it",
            vec![format!("curl -s --compressed -D - -o /dev/null {http}/catalog")],
        ),
    ]
}

fn other_protocols(ports: Ports, folder: &Folder) -> Vec<Attempt> {
    let (program, port, tcp) = (program(), ports.http().port(), ports.tcp().port());
    let (authority, https) = (quoted(&folder.authority()), ports.https().port());
    vec![
        (
            "TLS with the certificate made at start, HTTP/2 by ALPN",
            vec![format!("curl -si --cacert {authority} https://localhost:{https}/catalog/1")],
        ),
        (
            "gRPC: one answer, then a stream",
            vec![
                format!("{program} demo grpc --port {port} 2"),
                format!("{program} demo grpc --port {port} 2 --watch"),
            ],
        ),
        (
            "WebSocket and TCP",
            vec![
                format!("{program} demo ws --port {port} 'hello over WebSocket'"),
                format!("{program} demo tcp --port {tcp} 'hello over TCP'"),
            ],
        ),
    ]
}

fn operation(ports: Ports, folder: &Folder) -> Vec<Attempt> {
    let (http, admin) = (format!("http://{}", ports.http()), format!("http://{}", ports.admin()));
    let (program, resources) = (program(), quoted(&folder.resources()));
    let catalog = quoted(&folder.resources().join("catalog.yaml"));
    vec![
        (
            "what the gateway knows: metrics, endpoints, access log",
            vec![
                format!("curl -s {admin}/metrics | grep '^selvedge_upstream_requests_total'"),
                format!("curl -s {admin}/clusters | grep -oE '\"(key|address|state)\":\"[^\"]*\"'"),
                format!("tail -n 5 {}", quoted(&folder.access_log())),
            ],
        ),
        ("why a request goes where it goes", vec![format!("{program} explain -f {resources} GET {http}/catalog/1")]),
        (
            "change it while it runs: half of the requests to each version",
            vec![
                format!("sed -i -e 's/weight: 90/weight: 50/' -e 's/weight: 10/weight: 50/' {catalog}; sleep 1"),
                count(&http),
            ],
        ),
    ]
}

/// Twenty requests, counted by the version that answers.
fn count(http: &str) -> String {
    format!("for i in $(seq 20); do curl -s {http}/catalog/1 | grep version; done | sort | uniq -c")
}

/// How this program was called, so that pasted lines find it.
pub fn program() -> String {
    std::env::args_os().next().map_or_else(|| "selvedge".to_owned(), |name| quoted(Path::new(&name)))
}

/// A path as one word of a shell.
pub fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=@%,:".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_one_word() {
        assert_eq!(quoted(Path::new("/tmp/selvedge-demo-a1/ca.pem")), "/tmp/selvedge-demo-a1/ca.pem");
        assert_eq!(quoted(Path::new("/tmp/it's here")), r"'/tmp/it'\''s here'");
    }
}
