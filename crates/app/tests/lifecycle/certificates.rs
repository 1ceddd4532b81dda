use crate::support::*;
use selvedge_testkit::{
    backend::Backend,
    certs::{Ca, Leaf},
    http1::Connection,
    selvedge::free_port,
};

fn secret(leaf: &Leaf) -> String {
    let indented = |pem: &str| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: cert}}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
        indented(leaf.chain_pem()),
        indented(leaf.key_pem())
    )
}

#[tokio::test]
async fn a_new_certificate_is_for_new_connections() {
    let backend = Backend::start("app").await;
    let front = free_port();
    let ca = Ca::new("root");
    let (first, second) = (ca.leaf(&[HOST]), ca.leaf(&[HOST]));
    let listener = format!(
        "  - {{name: https, port: {}, protocol: HTTPS, tls: {{certificateRefs: [{{name: cert}}]}}}}\n",
        front.port()
    );
    let selvedge = setup()
        .file("gateway.yaml", &(gateway(&[]) + &listener))
        .file("secret.yaml", &secret(&first))
        .file("service.yaml", &service(&[backend.address]))
        .file("route.yaml", &route(0))
        .start()
        .await;
    let (mut old, shown) = Connection::open_tls(front, HOST, ca.der()).await.expect("a connection");
    assert_eq!(shown, first.chain[0]);
    assert_eq!(old.get(HOST, "/").await.map(|answer| answer.status), Ok(200));
    selvedge.write("secret.yaml", &secret(&second));
    selvedge
        .until("the new certificate", async || {
            let (_, shown) = Connection::open_tls(front, HOST, ca.der()).await.expect("a connection");
            shown == second.chain[0]
        })
        .await;
    let answer = old.get(HOST, "/").await.expect("an answer on the old connection");
    assert!(answer.status == 200 && !answer.is_last());
    // A broken one replaces nothing.
    selvedge.write("secret.yaml", &secret(&second).replace("BEGIN CERTIFICATE", "BEGIN NONSENSE"));
    selvedge.status_has("SELV").await;
    let (_, config) = selvedge.admin_get("/config").await.expect("the resources");
    assert!(config.contains("<redacted>") && !config.contains("PRIVATE KEY"), "{config}");
    assert_eq!(old.get(HOST, "/").await.map(|answer| answer.status), Ok(200));
}
