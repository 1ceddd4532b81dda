//! `selvedge demo --netns`: programs that know nothing of a mesh, each in a network namespace, captured by one proxy.

use super::{
    End, LOOK, START,
    fleet::Fleet,
    paint::Paint,
    ports::Ports,
    spaces::{self, HUB, PROGRAMS},
    summary::{Attempt, listed, program, quoted},
};
use anyhow::{Result, bail};
use std::{
    ffi::OsString,
    fmt::Write,
    net::{Ipv4Addr, SocketAddr},
    time::Instant,
};
use tokio::process::Command;

/// Where each program listens.
const PORT: u16 = 8080;
/// The proxy of the machine, in the logs and the state folder.
const NODE: &str = "node";
/// Where the proxy listens in each namespace, and connections of other members arrive.
const HBONE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15008);

/// Starts it and waits until the end.
pub async fn accompany(fleet: &mut Fleet<'_>, mut end: End) -> Result<()> {
    tokio::select! {
        started = start(fleet) => started?,
        () = end.asked() => return Ok(()),
    }
    super::say(&text(fleet.ports, fleet));
    super::stay(fleet, &mut end).await?;
    super::say("\nEnding: the namespaces are removed.");
    Ok(())
}

async fn start(fleet: &mut Fleet<'_>) -> Result<()> {
    fleet.control()?;
    for (host, name) in PROGRAMS {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &spaces::name(name)]).arg(std::env::current_exe()?);
        command.args(["demo", "serve", name, &spaces::address(host, PORT).to_string()]);
        let log = fleet.folder.log(name);
        fleet.children.run(name, command, &log)?;
    }
    let identities = ["selvedge-system/node", "shop/web", "shop/orders", "shop/guest"];
    fleet.token(NODE, &identities).await?;
    let mut args = fleet.member(NODE, "node", &identities);
    for (_, name) in PROGRAMS {
        args.extend(["--workload".to_owned(), format!("shop/{name}@{}", spaces::name(name))].map(OsString::from));
    }
    let admin = fleet.ports.admin().to_string();
    args.extend(["--capture", "--apply-capture", "--dns", "--drain", "1", "--admin", &admin].map(OsString::from));
    let log = fleet.folder.log(NODE);
    fleet.children.start(NODE, args, &log)?;
    ready(fleet).await
}

/// Waits until the programs and the proxy listen in every namespace.
async fn ready(fleet: &mut Fleet<'_>) -> Result<()> {
    let began = Instant::now();
    let all = PROGRAMS.into_iter().flat_map(|(host, name)| [(name, spaces::address(host, PORT)), (name, HBONE)]);
    for (name, address) in all {
        loop {
            fleet.children.check()?;
            let space = spaces::name(name);
            if tokio::task::spawn_blocking(move || spaces::reaches(&space, address)).await? {
                break;
            }
            if began.elapsed() > START {
                bail!(
                    "nothing listens on {address} in {}; the logs are in {}",
                    spaces::name(name),
                    fleet.folder.logs().display()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

fn text(ports: Ports, fleet: &Fleet<'_>) -> String {
    let paint = Paint::for_stdout();
    let mut out = String::new();
    // Writing to a String cannot fail.
    let title = "Selvedge demo: programs that know nothing of the mesh, each in a network namespace";
    let _ = writeln!(out, "\n{}\n", paint.title(title));
    for (host, name) in PROGRAMS {
        let _ = writeln!(out, "  {:<16}{}", spaces::name(name), spaces::address(host, PORT));
    }
    let _ = writeln!(out, "  {:<16}10.83.0.1, not in the mesh", HUB);
    let _ = writeln!(
        out,
        "  {:<16}{}   (edit them: changes take effect at once)",
        "resources",
        fleet.folder.resources().display()
    );
    let _ = writeln!(out, "  {:<16}{}", "logs", fleet.folder.logs().display());
    let _ = writeln!(out, "\n{}", paint.title("Certificates that the proxy of this machine holds:"));
    out.push_str(&super::identities::table(fleet.folder.path()));
    let _ = writeln!(out, "\n{}", paint.title("Try, in another terminal, as root:"));
    out.push_str(&listed(&paint, attempts(ports, fleet)));
    let _ = write!(out, "\n{}", paint.title("Ctrl-C ends the demo."));
    out
}

fn attempts(ports: Ports, fleet: &Fleet<'_>) -> Vec<Attempt> {
    let inside = |name: &str, command: &str| format!("ip netns exec {name} {command}");
    let (program, resources) = (program(), quoted(&fleet.folder.resources()));
    let orders = spaces::name("orders");
    vec![
        (
            "the name is answered by the mesh, the call goes by mutual TLS, and orders sees who calls",
            vec![
                inside(&spaces::name("web"), "getent hosts orders.shop"),
                inside(&spaces::name("web"), "curl -s http://orders.shop/"),
            ],
        ),
        (
            "access: the guest may not, and why",
            vec![
                inside(&spaces::name("guest"), "curl -si http://orders.shop/"),
                format!(
                    "{program} may -f {resources} spiffe://cluster.local/ns/shop/sa/guest GET http://orders.shop/ || true"
                ),
            ],
        ),
        (
            "who is not in the mesh gets nothing: clear text is refused",
            vec![inside(HUB, &format!("curl -s -m 2 http://{}/ || echo refused", spaces::address(12, PORT)))],
        ),
        (
            "how it is done: rules of the kernel in each namespace",
            vec![
                format!("{program} capture show --netns {orders} --dns"),
                format!("{program} status --control http://{}", ports.control_admin()),
            ],
        ),
    ]
}
