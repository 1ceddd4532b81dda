//! Control planes and proxies as processes of their own, with mutual TLS.

use rustix::process::{Pid, Signal, kill_process};
use selvedge_testkit::{
    backend::Backend,
    certs::{Ca, Spec},
    etcd::Etcd,
    http1,
    load::Load,
    selvedge::free_port,
};
use serde_json::Value;
use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const HOST: &str = "shop.example";
const LIMIT: Duration = Duration::from_secs(60);

/// A folder with resources and certificates.
struct Home {
    folder: TempDir,
    ca: Ca,
}

/// A process of ours; killed at the end.
struct Process {
    child: Child,
    log: std::path::PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Process {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    async fn logged(&self, text: &str) {
        until(&format!("`{text}` in {}", self.log()), async || self.log().contains(text)).await;
    }
}

async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !so().await {
        assert!(Instant::now() < limit, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("config")).expect("a folder");
        let home = Self { folder, ca: Ca::new("mesh root") };
        fs::write(home.path().join("trust.pem"), home.ca.pem()).expect("written");
        for (name, account) in [
            ("control", "ns/selvedge-system/sa/control"),
            ("edge", "ns/shop/sa/edge"),
            ("app", "ns/shop/sa/app"),
            ("other", "ns/other/sa/app"),
        ] {
            home.certificate(name, &home.ca, &format!("spiffe://cluster.local/{account}"));
        }
        home
    }

    fn certificate(&self, name: &str, ca: &Ca, id: &str) {
        let leaf = ca.issue(&Spec::uri(id));
        fs::write(self.path().join(format!("{name}.pem")), leaf.chain_pem()).expect("written");
        fs::write(self.path().join(format!("{name}.key")), leaf.key_pem()).expect("written");
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// As an editor does it: never half of a file.
    fn resources(&self, text: &str) {
        let (new, file) = (self.path().join("config/.new"), self.path().join("config/all.yaml"));
        fs::write(&new, text).expect("written");
        fs::rename(new, file).expect("moved");
    }

    fn start(&self, name: &str, identity: &str, arguments: &[&str]) -> Process {
        let path = |file: String| self.path().join(file);
        let log = path(format!("{name}.log"));
        let output = fs::File::options().create(true).append(true).open(&log).expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_selvedge"))
            .args(arguments)
            .arg("--cert")
            .arg(path(format!("{identity}.pem")))
            .arg("--key")
            .arg(path(format!("{identity}.key")))
            .arg("--trust")
            .arg(path("trust.pem".to_owned()))
            .arg("--state")
            .arg(path(format!("{name}.state")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .expect("the binary starts");
        Process { child, log }
    }

    async fn control(&self, name: &str, listen: SocketAddr, admin: SocketAddr) -> Process {
        let config = self.path().join("config");
        let (listen, at, config) = (listen.to_string(), admin.to_string(), config.to_string_lossy().into_owned());
        let process = self.start(
            name,
            "control",
            &["control", "-f", &config, "--listen", &listen, "--admin", &at, "--name", name],
        );
        ready(admin, &process).await;
        process
    }

    async fn proxy(&self, name: &str, identity: &str, controls: &[SocketAddr], more: &[&str]) -> Process {
        let urls: Vec<String> = controls.iter().map(|c| format!("https://{c}")).collect();
        let (urls, admin) = (urls.join(","), free_port());
        let at = admin.to_string();
        let mut arguments =
            vec!["proxy", "--control", &urls, "--id", name, "--admin", &at, "--workers", "1", "--drain", "0"];
        arguments.extend(more);
        let process = self.start(name, identity, &arguments);
        ready(admin, &process).await;
        process
    }
}

async fn ready(admin: SocketAddr, process: &Process) {
    let answers = async || http1::request(admin, "GET", "/ready", "").await.is_ok_and(|answer| answer.status == 200);
    until(&format!("ready: {}", process.log()), answers).await;
}

/// What `selvedge status` says of a control plane's proxies; none when it is away.
fn nodes(admin: SocketAddr) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_selvedge"))
        .args(["status", "--json", "--control", &admin.to_string()])
        .output()
        .expect("the binary starts");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

async fn in_sync(admin: SocketAddr, id: &str) -> Value {
    let found = || nodes(admin).into_iter().find(|node| node["id"] == id && node["state"] == "in_sync");
    until(&format!("{id} is in sync"), async || found().is_some()).await;
    found().unwrap_or_default()
}

fn shop(port: u16, backend: SocketAddr, revision: usize) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, namespace: shop}}
spec:
  gatewayClassName: selvedge
  listeners: [{{name: web, port: {port}, protocol: HTTP}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: app, namespace: shop}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
  - filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier: {{set: [{{name: x-revision, value: \"{revision}\"}}]}}
    backendRefs: [{{name: app, port: 80}}]
---
apiVersion: v1
kind: Service
metadata: {{name: app, namespace: shop}}
spec: {{ports: [{{port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: app, namespace: shop, labels: {{kubernetes.io/service-name: app}}}}
addressType: IPv4
ports: [{{port: {}}}]
endpoints: [{{addresses: [{}]}}]
",
        backend.port(),
        backend.ip()
    )
}

async fn serves(front: SocketAddr, revision: usize) {
    until(&format!("revision {revision} is served"), async || {
        let Ok(mut connection) = http1::Connection::open(front).await else { return false };
        let answer = connection.get(HOST, "/").await;
        answer.is_ok_and(|a| a.status == 200 && a.header("x-revision") == Some(revision.to_string().as_str()))
    })
    .await;
}

#[tokio::test]
async fn no_request_is_lost_whichever_part_dies() {
    let (home, backend, front) = (Home::new(), Backend::start("app").await, free_port());
    home.resources(&shop(front.port(), backend.address, 1));
    let (one, two) = ((free_port(), free_port()), (free_port(), free_port()));
    let mut controls =
        vec![Some(home.control("one", one.0, one.1).await), Some(home.control("two", two.0, two.1).await)];
    let admins = [one.1, two.1];
    let proxy = home.proxy("edge", "edge", &[one.0, two.0], &["--role", "gateway"]).await;
    serves(front, 1).await;
    let load = Load::http1(front, HOST, 4);
    // The control plane that is used is killed: the other takes over, and changes arrive.
    let used = usize::from(nodes(admins[0]).is_empty());
    let node = in_sync(admins[used], "edge").await;
    assert_eq!(
        (node["identity"].as_str(), node["role"].as_str()),
        (Some("spiffe://cluster.local/ns/shop/sa/edge"), Some("gateway"))
    );
    controls[used] = None;
    let node = in_sync(admins[1 - used], "edge").await;
    assert_eq!(node["sent"], 0, "it had everything: {node}");
    home.resources(&shop(front.port(), backend.address, 2));
    serves(front, 2).await;
    load.more(200).await;
    // All are killed, the configuration changes, one comes back.
    controls[1 - used] = None;
    proxy.logged("Connection refused").await;
    load.more(200).await;
    home.resources(&shop(front.port(), backend.address, 3));
    controls[0] = Some(home.control("one", one.0, one.1).await);
    serves(front, 3).await;
    load.more(200).await;
    load.stop().await.assert_nothing_failed("control planes killed");
    // The proxy starts while all of them are away: it serves what it knew.
    controls.clear();
    let saved = home.path().join("edge.state/last-good.json");
    until("saved", async || fs::read_to_string(&saved).is_ok_and(|text| text.contains("\"value\":\"3\""))).await;
    drop(proxy);
    let _proxy = home.proxy("edge", "edge", &[one.0, two.0], &["--role", "gateway"]).await;
    serves(front, 3).await;
}

/// A control plane with nothing on its disk whose etcd is away knows nothing: it must not say that there is nothing.
#[tokio::test]
async fn who_knows_nothing_takes_nothing_away() {
    let Some(mut etcd) = Etcd::start() else { return };
    let (home, backend, front) = (Home::new(), Backend::start("app").await, free_port());
    let apply = |etcd: &Etcd, revision| {
        home.resources(&shop(front.port(), backend.address, revision));
        let mut command = Command::new(env!("CARGO_BIN_EXE_selvedge"));
        command.args(["apply", "--etcd", &etcd.url(), "-f"]).arg(home.path().join("config"));
        let output = command.output().expect("the binary starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let (listen, admin) = (free_port(), free_port());
    let (listens, at, url) = (listen.to_string(), admin.to_string(), etcd.url());
    let arguments = ["control", "--etcd", &url, "--listen", &listens, "--admin", &at];
    apply(&etcd, 1);
    let control = home.start("before", "control", &arguments);
    ready(admin, &control).await;
    let proxy = home.proxy("edge", "edge", &[listen], &["--role", "gateway"]).await;
    serves(front, 1).await;
    let load = Load::http1(front, HOST, 4);
    drop(control);
    etcd.stop();
    proxy.logged("Connection refused").await;
    let control = home.start("after", "control", &arguments);
    control.logged("nothing is known yet of what etcd holds").await;
    load.more(200).await;
    assert!(!control.log().contains("serving proxies"), "{}", control.log());
    etcd.restart();
    in_sync(admin, "edge").await;
    apply(&etcd, 2);
    serves(front, 2).await;
    load.stop().await.assert_nothing_failed("a control plane that knew nothing");
}

#[tokio::test]
async fn proxies_are_what_they_prove_to_be() {
    let (home, backend, front) = (Home::new(), Backend::start("app").await, free_port());
    let workload = "---\napiVersion: selvedge.dev/v1alpha1\nkind: Workload\nmetadata: {name: app-1, namespace: shop}\nspec: {addresses: [127.0.0.9], serviceAccount: app}\n";
    home.resources(&(shop(front.port(), backend.address, 1) + workload));
    let (listen, admin) = (free_port(), free_port());
    let control = home.control("control", listen, admin).await;
    let quiet = ["--role", "sidecar", "--hbone", "off", "--workload", "shop/app-1"];
    let wrong = home.proxy("wrong", "edge", &[listen], &quiet).await;
    wrong.logged("may not stand beside Workload shop/app-1").await;
    let foreign = home.proxy("foreign", "other", &[listen], &["--role", "gateway", "--gateway", "shop/edge"]).await;
    foreign.logged("may not serve Gateway shop/edge").await;
    // A gateway that names none gets those of its namespace: none.
    let none = home.proxy("none", "other", &[listen], &["--role", "gateway"]).await;
    assert_eq!(in_sync(admin, "none").await["resources"], 0);
    drop((wrong, foreign, none));
    let _right = home.proxy("right", "app", &[listen], &quiet).await;
    assert_eq!(in_sync(admin, "right").await["workloads"][0], "shop/app-1");
    // Another root, another trust domain, and a control plane that is none.
    home.certificate("fake", &Ca::new("another root"), "spiffe://cluster.local/ns/shop/sa/edge");
    let fake = home.proxy("fake", "fake", &[listen], &["--role", "gateway"]).await;
    fake.logged("no stream from the control plane").await;
    home.certificate("abroad", &home.ca, "spiffe://elsewhere.example/ns/selvedge-system/sa/control");
    let abroad = home.proxy("abroad", "abroad", &[listen], &["--role", "gateway"]).await;
    abroad.logged("no stream from the control plane").await;
    let careful = home.proxy("careful", "edge", &[listen], &["--role", "gateway", "--control-account", "other"]).await;
    careful.logged("no stream from the control plane").await;
    let ids = || -> Vec<String> {
        let here = nodes(admin).into_iter().filter(|n| n["gone_since"].is_null());
        here.map(|n| n["id"].as_str().unwrap_or_default().to_owned()).collect()
    };
    until(&format!("only `right` is there: {}", control.log()), async || ids() == ["right"]).await;
}

#[tokio::test]
async fn a_workload_joins_and_is_gone_when_it_dies() {
    let (home, backend, front) = (Home::new(), Backend::start("app").await, free_port());
    let before = shop(front.port(), backend.address, 1);
    let (before, _) = before.split_once("---\napiVersion: discovery").expect("a slice");
    home.resources(&before.replace(
        "spec: {ports: [{port: 80}]}",
        &format!("spec: {{selector: {{app: app}}, ports: [{{port: 80, targetPort: {}}}]}}", backend.address.port()),
    ));
    let (listen, admin) = (free_port(), free_port());
    let _control = home.control("control", listen, admin).await;
    let _edge = home.proxy("edge", "edge", &[listen], &["--role", "gateway"]).await;
    let without = in_sync(admin, "edge").await["resources"].as_u64().expect("a number");
    let file = home.path().join("workload.yaml");
    let workload = format!(
        "apiVersion: selvedge.dev/v1alpha1\nkind: Workload\nmetadata: {{name: app-1, namespace: shop, labels: {{app: app}}}}\nspec:\n  addresses: [127.0.0.1]\n  serviceAccount: app\n  ports: [{{port: {}}}]\n  tunnel: {{protocol: None}}\n  healthCheck: {{type: TCP, interval: 100ms, unhealthyThreshold: 1, healthyThreshold: 1}}\n",
        backend.address.port()
    );
    fs::write(&file, workload).expect("written");
    let file = file.to_string_lossy().into_owned();
    let more = ["--role", "sidecar", "--hbone", "off", "--register", &file];
    let sidecar = home.proxy("app-1", "app", &[listen], &more).await;
    serves(front, 1).await;
    let sees = || nodes(admin).iter().find(|n| n["id"] == "edge").and_then(|n| n["resources"].as_u64());
    until("it is there", async || sees() == Some(without + 1)).await;
    // Unwell, and well again.
    let address = backend.address;
    backend.stop().await;
    until("it is unwell", async || sees() == Some(without)).await;
    let _backend = Backend::start_at(address, "app").await;
    serves(front, 1).await;
    // Killed.
    sidecar.signal(Signal::KILL);
    let killed = Instant::now();
    until("it is gone", async || sees() == Some(without)).await;
    // At once; only who says nothing any more is waited for, and not for long.
    assert!(killed.elapsed() < Duration::from_secs(8), "{:?}", killed.elapsed());
    drop(sidecar);
    // It says nothing any more, and its connections stay open: as when a machine vanishes.
    let sidecar = home.proxy("app-1", "app", &[listen], &more).await;
    serves(front, 1).await;
    sidecar.signal(Signal::STOP);
    let stopped = Instant::now();
    until("it is given up", async || sees() == Some(without)).await;
    println!("out {:?} after it was stopped", stopped.elapsed());
    assert!(stopped.elapsed() < Duration::from_secs(15), "{:?}", stopped.elapsed());
    sidecar.signal(Signal::CONT);
    until("it is back", async || sees() == Some(without + 1)).await;
    // Asked to end: at once.
    drop(sidecar);
    until("it is gone again", async || sees() == Some(without)).await;
    let sidecar = home.proxy("app-1", "app", &[listen], &more).await;
    serves(front, 1).await;
    sidecar.signal(Signal::TERM);
    let asked = Instant::now();
    until("it has left", async || sees() == Some(without)).await;
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
}
