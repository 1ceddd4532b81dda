//! `selvedge run --listen`: gateway, control plane and certificate authority in one process, with sidecars that join it.

use rustix::process::Signal;
use selvedge_testkit::{
    backend::Backend,
    http1,
    load::Load,
    process::Process,
    selvedge::{Selvedge, Setup, free_port},
};
use serde_json::Value;
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Output},
};
use tempfile::TempDir;

const JOINED: &str = "a node has joined";
const HOST: &str = "orders.shop";

/// A shop of two workloads that take nothing but mutual TLS, `orders` only from whom its policy names.
struct Shop {
    folder: TempDir,
    main: Selvedge,
    /// Where proxies connect.
    listen: SocketAddr,
    /// The gateway, and the port of `cart` that leads to `orders`.
    front: SocketAddr,
    to_orders: SocketAddr,
    orders: SocketAddr,
    hbone: SocketAddr,
    _backend: Backend,
}

fn selvedge(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_selvedge"));
    command.args(arguments);
    command
}

fn at(last: u8) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), free_port().port()))
}

fn mesh(trust_domain: &str) -> String {
    format!(
        "apiVersion: selvedge.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: default}}\nspec: {{trustDomain: {trust_domain}, mtls: {{mode: Strict}}, access: {{default: Deny}}}}\n"
    )
}

fn policy(accounts: &str) -> String {
    format!(
        "apiVersion: selvedge.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: orders, namespace: shop}}\nspec:\n  targetRefs: [{{kind: Service, name: orders}}]\n  rules: [{{from: [{{serviceAccounts: [{accounts}]}}]}}]\n---\napiVersion: selvedge.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: gateway, namespace: shop}}\nspec:\n  targetRefs: [{{kind: Gateway, name: edge}}]\n  rules: [{{}}]\n"
    )
}

fn shop(front: SocketAddr, orders: SocketAddr, hbone: SocketAddr) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, namespace: shop}}
spec:
  gatewayClassName: selvedge
  listeners: [{{name: http, port: {front}, protocol: HTTP}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: orders, namespace: shop}}
spec:
  parentRefs: [{{name: edge}}]
  rules: [{{backendRefs: [{{name: orders, port: 80}}]}}]
---
apiVersion: v1
kind: Service
metadata: {{name: orders, namespace: shop}}
spec: {{selector: {{app: orders}}, ports: [{{name: http, port: 80, targetPort: {port}}}]}}
---
apiVersion: selvedge.dev/v1alpha1
kind: Workload
metadata: {{name: cart, namespace: shop, labels: {{app: cart}}}}
spec: {{addresses: [127.0.0.2], serviceAccount: cart, tunnel: {{protocol: None}}}}
---
apiVersion: selvedge.dev/v1alpha1
kind: Workload
metadata: {{name: orders-1, namespace: shop, labels: {{app: orders}}}}
spec:
  addresses: [{ip}]
  serviceAccount: orders
  ports: [{{name: http, port: {port}}}]
  tunnel: {{port: {hbone}}}
",
        front = front.port(),
        port = orders.port(),
        ip = orders.ip(),
        hbone = hbone.port()
    )
}

impl Shop {
    async fn open(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (listen, front, to_orders) = (free_port(), free_port(), free_port());
        let (orders, hbone) = (at(3), at(3));
        let backend = Backend::start_at(orders, "orders").await;
        let main = Setup::new(env!("CARGO_BIN_EXE_selvedge"))
            .file("shop.yaml", &shop(front, orders, hbone))
            .file("mesh.yaml", &mesh("shop.example"))
            .file("access.yaml", &policy("cart, selvedge-system/gateway"))
            .args(&["--listen", &listen.to_string()])
            .args(more)
            .start()
            .await;
        Self { folder, main, listen, front, to_orders, orders, hbone, _backend: backend }
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        selvedge(arguments).output().expect("the binary starts")
    }

    fn token(&self, identity: &str) -> PathBuf {
        let state = self.main.state().to_string_lossy().into_owned();
        let made = self.ask(&["token", "create", "--identity", identity, "--state", &state]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let file = self.folder.path().join(format!("{}.token", identity.replace('/', "-")));
        fs::write(&file, made.stdout).expect("written");
        file
    }

    /// One that joins by a token, and never again.
    fn sidecar(&self, name: &str, account: &str, more: &[&str]) -> Process {
        let mut command = selvedge(&["proxy", "--role", "sidecar", "--admin", "off", "--workers", "1", "--id", name]);
        command.args(["--control", &format!("https://{}", self.listen), "--identity", account]).args(more);
        command.arg("--join-token-file").arg(self.token(account));
        command.arg("--state").arg(self.folder.path().join(format!("{name}.state")));
        Process::start(self.folder.path(), name, &mut command)
    }

    fn cart(&self) -> Process {
        let to = format!("{}=orders.shop:80", self.to_orders);
        self.sidecar("cart", "shop/cart", &["--workload", "shop/cart", "--hbone", "off", "--to", &to])
    }

    fn orders(&self) -> Process {
        let hbone = self.hbone.to_string();
        self.sidecar("orders", "shop/orders", &["--workload", "shop/orders-1", "--hbone", &hbone])
    }

    /// What `selvedge status` says.
    fn nodes(&self) -> Vec<Value> {
        let output = self.ask(&["status", "--json", "--control", &self.main.admin.to_string()]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    async fn in_sync(&self, names: &[&str]) {
        let found = || {
            let nodes = self.nodes();
            names.iter().all(|name| nodes.iter().any(|node| node["id"] == *name && node["state"] == "in_sync"))
        };
        self.main.until(&format!("{names:?} are in sync"), async || found()).await;
    }

    async fn becomes(&self, at: SocketAddr, status: u16) {
        self.becomes_for(HOST, at, status).await;
    }

    async fn becomes_for(&self, host: &str, at: SocketAddr, status: u16) {
        let asked = async || {
            let Ok(mut connection) = http1::Connection::open(at).await else { return false };
            connection.get(host, "/").await.is_ok_and(|answer| answer.status == status)
        };
        self.main.until(&format!("{status} at {at}"), asked).await;
    }
}

#[tokio::test]
async fn a_fleet_outlives_the_all_in_one_and_comes_back_to_it() {
    let mut shop = Shop::open(&[]).await;
    let (cart, orders) = (shop.cart(), shop.orders());
    shop.in_sync(&["cart", "orders"]).await;
    shop.becomes(shop.to_orders, 200).await;
    // The gateway is a member: it reaches who takes nothing but mutual TLS, as who it is.
    shop.becomes(shop.front, 200).await;
    shop.main.write("access.yaml", &policy("cart"));
    shop.becomes(shop.front, 403).await;
    shop.main.write("access.yaml", &policy("cart, selvedge-system/gateway"));
    shop.becomes(shop.front, 200).await;
    assert_eq!(shop.main.log().matches(JOINED).count(), 2, "{}", shop.main.log());
    // What answers is really behind the sidecar.
    assert_eq!(shop.orders.ip(), Ipv4Addr::new(127, 0, 0, 3));

    let load = Load::http1(shop.to_orders, HOST, 2);
    load.more(50).await;
    shop.main.kill();
    cart.says("no stream from the control plane", 1).await;
    orders.says("no stream from the control plane", 1).await;
    load.more(200).await;
    shop.main.restart().await;
    shop.in_sync(&["cart", "orders"]).await;
    shop.becomes(shop.front, 200).await;
    load.more(50).await;
    load.stop().await.assert_nothing_failed("the all-in-one killed");
    assert_eq!(shop.main.log().matches(JOINED).count(), 2, "nobody joins again: {}", shop.main.log());
}

#[tokio::test]
async fn an_upgrade_hands_proxies_over_and_loses_no_request() {
    let mut shop = Shop::open(&[]).await;
    let (cart, _orders) = (shop.cart(), shop.orders());
    shop.in_sync(&["cart", "orders"]).await;
    shop.becomes(shop.to_orders, 200).await;
    shop.becomes(shop.front, 200).await;
    let (through, beside) = (Load::http1(shop.front, HOST, 2), Load::http1(shop.to_orders, HOST, 2));
    for _ in 0..3 {
        shop.main.upgrade().await;
        tokio::join!(through.more(50), beside.more(50));
        shop.in_sync(&["cart", "orders"]).await;
    }
    // Who does not start takes over nothing, and the control plane is back.
    let (binary, new) = (shop.main.binary(), shop.main.config().join(".new"));
    fs::remove_file(&binary).expect("removed");
    fs::write(&new, "#!/bin/sh\nexit 1\n").expect("a script");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("executable");
    fs::rename(new, &binary).expect("renamed");
    shop.main.signal(Signal::USR2);
    shop.main.logged("the upgrade has failed, this process serves on", 1).await;
    tokio::join!(through.more(50), beside.more(50));
    shop.main.write("access.yaml", &policy("selvedge-system/gateway"));
    let load = through.stop().await;
    load.assert_nothing_failed("through the gateway");
    beside.stop().await;
    shop.becomes(shop.to_orders, 403).await;
    shop.in_sync(&["cart", "orders"]).await;
    assert_eq!(shop.main.log().matches(JOINED).count(), 2, "nobody joins again: {}", cart.log());
}

#[tokio::test]
async fn the_trust_domain_of_the_mesh_stays() {
    let mut shop = Shop::open(&[]).await;
    let state = shop.main.state().to_string_lossy().into_owned();
    let shown = shop.ask(&["ca", "show", "--state", &state]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("trust domain shop.example"), "{shown}");
    let (_cart, _orders) = (shop.cart(), shop.orders());
    shop.becomes(shop.to_orders, 200).await;
    let load = Load::http1(shop.to_orders, HOST, 1);
    shop.main.write("mesh.yaml", &mesh("other.example").replace("Deny", "Allow"));
    shop.main.status_has("SELV0224").await;
    let (_, status) = shop.main.admin_get("/status").await.expect("a status");
    for said in
        ["the Mesh says other.example", "ca.redb is of trust domain shop.example", "mesh.yaml", "\"last_good\":true"]
    {
        assert!(status.contains(said), "{said}: {status}");
    }
    load.more(50).await;
    shop.becomes(shop.front, 200).await;
    // Nor does a restart let it in.
    shop.main.kill();
    shop.main.restart().await;
    shop.main.status_has("SELV0224").await;
    shop.becomes(shop.front, 200).await;
    shop.main.write("mesh.yaml", &mesh("shop.example"));
    shop.main.status_has("\"last_good\":false").await;
    load.more(50).await;
    load.stop().await.assert_nothing_failed("a Mesh of another trust domain");
}

/// The gateway learns of them from the control plane beside it, as other proxies do.
#[tokio::test]
async fn workloads_that_join_are_reached_by_the_gateway_too() {
    let shop = Shop::open(&[]).await;
    let late = at(4);
    let _backend = Backend::start_at(late, "late").await;
    shop.main.write(
        "late.yaml",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: late, namespace: shop}}\nspec: {{selector: {{app: late}}, ports: [{{port: 80, targetPort: {}}}]}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: late, namespace: shop}}\nspec:\n  parentRefs: [{{name: edge}}]\n  hostnames: [late.example]\n  rules: [{{backendRefs: [{{name: late, port: 80}}]}}]\n",
            late.port()
        ),
    );
    shop.becomes_for("late.example", shop.front, 503).await;
    let file = shop.folder.path().join("late.yaml");
    let workload = "apiVersion: selvedge.dev/v1alpha1\nkind: Workload\nmetadata: {name: late-1, namespace: shop, labels: {app: late}}\nspec: {addresses: [127.0.0.4], serviceAccount: late, tunnel: {protocol: None}}\n";
    fs::write(&file, workload).expect("written");
    let beside = shop.sidecar("late", "shop/late", &["--hbone", "off", "--register", &file.to_string_lossy()]);
    shop.becomes_for("late.example", shop.front, 200).await;
    drop(beside);
    shop.becomes_for("late.example", shop.front, 503).await;
}

/// A contradiction at the first start is told before anything is made.
#[test]
fn flag_and_mesh_must_agree() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("mesh.yaml"), mesh("shop.example")).expect("written");
    let config = folder.path().to_string_lossy().into_owned();
    let state = folder.path().join("state").to_string_lossy().into_owned();
    let listen = free_port().to_string();
    let common = ["-f", &config, "--state", &state, "--listen", &listen, "--admin", "off"];
    for command in ["run", "control"] {
        let mut ask = selvedge(&[command]);
        let output = ask.args(common).args(["--trust-domain", "other.example"]).output().expect("the binary starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        assert!(
            said.contains("--trust-domain says other.example") && said.contains("the Mesh says shop.example"),
            "{said}"
        );
    }
    let output = selvedge(&["run", "-f", &config, "--svid-ttl", "1h"]).output().expect("the binary starts");
    assert!(String::from_utf8_lossy(&output.stderr).contains("give --listen too"));
}
