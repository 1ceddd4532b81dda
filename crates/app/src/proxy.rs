//! `selvedge proxy`: the data plane of a fleet.

pub mod beside;
mod discover;
mod register;

use crate::{
    fleet::{self, Files},
    join,
    run::{self, Common, Feed},
};
use anyhow::{Context, Result, bail, ensure};
use beside::{Beside, Local, local};
use clap::{Args as ClapArgs, ValueEnum};
use discover::OnDemand;
use register::Registration;
use selvedge_compile::{FixedPort, LocalWorkload, Options, Ports, Position, snapshot::Netns};
use selvedge_control::{
    proto::discovery::{Hello, Role as WireRole},
    publish::scope::Wanted,
    source::stream::{StreamSource, machine::Me},
    transport::Dialer,
};
use selvedge_identity::Identities;
use selvedge_proxy::{dial::Dial, discover::Discover};
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

#[derive(Debug, Clone, ClapArgs)]
pub struct Args {
    /// Control planes: one is used at a time, the others when it is away.
    #[arg(long, required = true, value_name = "URL", value_delimiter = ',')]
    pub control: Vec<String>,
    /// What this proxy does.
    #[arg(long, value_enum)]
    pub role: Role,
    /// Name of this proxy, unique in the fleet; role and machine when not given.
    #[arg(long, value_name = "NAME")]
    pub id: Option<String>,
    /// Workload beside this proxy, with its network namespace when it has one of its own (a name as in `ip netns list`, the
    /// path of a namespace file, or a process id); may be given several times for role node.
    #[arg(long, value_name = "NAMESPACE/NAME[@NETNS]", value_parser = local)]
    pub workload: Vec<Local>,
    /// Gateway to serve; all that its identity may serve when not given.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub gateway: Vec<String>,
    /// A Workload that joins the mesh with this proxy and leaves with it; its health check decides whether it takes
    /// traffic.
    #[arg(long, value_name = "FILE")]
    pub register: Option<PathBuf>,
    #[command(flatten)]
    pub ports: PortArgs,
    #[command(flatten)]
    pub beside: beside::Args,
    #[command(flatten)]
    pub certificate: Files,
    #[command(flatten)]
    pub join: join::Args,
    /// Service account of the control planes in the namespace selvedge-system.
    #[arg(long, default_value = "control", value_name = "NAME")]
    pub control_account: String,
    #[command(flatten)]
    pub common: Common,
}

/// Where a proxy beside workloads takes their connections.
#[derive(Debug, Clone, ClapArgs)]
pub struct PortArgs {
    /// Take connections that `selvedge capture` redirects: those that leave on port 15001, those that come on 15006.
    #[arg(long)]
    pub capture: bool,
    /// Where connections of other members of the mesh arrive (HBONE), or `off`.
    #[arg(long, default_value = "0.0.0.0:15008", value_name = "ADDRESS", value_parser = hbone)]
    pub hbone: Hbone,
    /// Where the workload can use this proxy as an HTTP proxy.
    #[arg(long, value_name = "ADDRESS")]
    pub http_proxy: Option<SocketAddr>,
    /// A port of this proxy that leads to one destination: `127.0.0.1:9000=orders.shop:80`; may be given several times.
    #[arg(long, value_name = "LISTEN=HOST:PORT", value_parser = fixed)]
    pub to: Vec<FixedPort>,
}

#[derive(Debug, Clone, Copy)]
pub struct Hbone(Option<SocketAddr>);

fn hbone(text: &str) -> Result<Hbone, String> {
    match text {
        "off" => Ok(Hbone(None)),
        _ => {
            text.parse().map(|at| Hbone(Some(at))).map_err(|_| "is neither an address with a port nor `off`".to_owned())
        }
    }
}

fn fixed(text: &str) -> Result<FixedPort, String> {
    let form = "has the form LISTEN=HOST:PORT, such as 127.0.0.1:9000=orders.shop:80";
    let (listen, to) = text.split_once('=').ok_or(form)?;
    let (host, port) = to.rsplit_once(':').ok_or(form)?;
    let listen = listen.parse().map_err(|_| form)?;
    let port = port.parse().map_err(|_| form)?;
    Ok(FixedPort { listen, host: host.trim_matches(['[', ']']).to_ascii_lowercase(), port })
}

impl PortArgs {
    fn ports(&self) -> Ports {
        let Self { capture, hbone, http_proxy, to } = self;
        Ports { capture: *capture, hbone: hbone.0, http_proxy: *http_proxy, fixed: to.clone() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Serves Gateways, at the edge.
    Gateway,
    /// Stands beside one workload.
    Sidecar,
    /// Stands beside all workloads of a machine.
    Node,
}

pub fn run(args: &Args, log: &str) -> Result<ExitCode> {
    for url in &args.control {
        ensure!(
            url.starts_with("https://") || url.starts_with("http://"),
            "--control {url}: write https://HOST:PORT, or http://HOST:PORT for one without mutual TLS"
        );
    }
    if args.role != Role::Gateway && args.workload.is_empty() && args.register.is_none() {
        bail!("a proxy beside workloads needs to know them: give --workload NAMESPACE/NAME, or --register FILE");
    }
    if args.role == Role::Gateway {
        let idle = beside_only(args);
        ensure!(
            idle.is_empty(),
            "--role gateway serves Gateways, not workloads, so that {} would do nothing: use --role sidecar, or leave {} out",
            idle.join(", "),
            if idle.len() == 1 { "it" } else { "them" }
        );
    }
    let registration = args.register.as_deref().map(Registration::read).transpose()?;
    run::process(&args.common, log, async |_| feed(args, registration))
}

/// Options that only a proxy beside workloads can honour.
fn beside_only(args: &Args) -> Vec<&'static str> {
    let given = [
        ("--workload", !args.workload.is_empty()),
        ("--register", args.register.is_some()),
        ("--capture", args.ports.capture),
        ("--http-proxy", args.ports.http_proxy.is_some()),
        ("--to", !args.ports.to.is_empty()),
        ("--netns", args.beside.has_netns()),
        ("--dns", args.beside.has_dns()),
    ];
    given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
}

fn feed(args: &Args, registration: Option<Registration>) -> Result<Feed> {
    let identities = Arc::<Identities>::default();
    let state = (!args.common.no_state).then_some(args.common.state.as_path());
    let (own, keeper) = match args.join.keep(&args.control, state, args.certificate.trust.as_deref(), &identities)? {
        Some((own, keeper)) => (Some(own), Some(keeper)),
        None => (args.certificate.follow(&identities)?, None),
    };
    args.join.serve_workloads(&identities, own.as_ref().map(|id| id.trust_domain()))?;
    ensure!(
        own.is_some() || args.control.iter().all(|url| url.starts_with("http://")),
        "mutual TLS needs an identity: give --identity and --join-token-file (or --join-cert, --join-key and --trust), or \
         --cert, --key and --trust"
    );
    let mut locals = args.workload.clone();
    if let Some(name) = registration.as_ref().map(Registration::name)
        && !locals.iter().any(|local| local.name == name)
    {
        locals.push(Local::named(name));
    }
    let (mut beside, numbers) = Beside::open(&args.beside, &args.ports, &locals)?;
    let workloads: Vec<String> = locals.into_iter().map(|local| local.name).collect();
    let names = workloads.clone();
    let host = fleet::host();
    let role = args.role.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
    let hello = Hello {
        id: args.id.clone().unwrap_or_else(|| match workloads.first() {
            Some(workload) if args.role == Role::Sidecar => workload.clone(),
            _ => format!("{role}/{host}"),
        }),
        role: match args.role {
            Role::Gateway => WireRole::Gateway,
            Role::Sidecar => WireRole::Sidecar,
            Role::Node => WireRole::Node,
        }
        .into(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        workloads,
        gateways: args.gateway.clone(),
        subscriptions: Vec::new(),
        host,
        source: None,
    };
    let options = Options {
        position: position(args, hello.workloads.iter().zip(&numbers), registration.as_ref()),
        identity: own.clone().filter(|_| args.role == Role::Gateway),
        trust_domain: own.as_ref().map(|own| own.trust_domain().to_owned()),
        kept: own.as_ref().map(|own| args.join.kept(own)),
        ..args.common.options()
    };
    // What a port always leads to is in use from the start.
    let fixed: Vec<Wanted> = args
        .ports
        .to
        .iter()
        .map(|to| match to.host.parse() {
            Ok(address) => Wanted::Address(address),
            Err(_) => Wanted::Host(to.host.clone()),
        })
        .collect();
    let expect = fleet::control_plane(own.as_ref(), &args.control_account).context("--control-account")?;
    let dialer = Dialer { identities: identities.clone(), own, expect };
    // Seeded by the operating system: proxies that start at once must not come at once.
    let seed = RandomState::new().build_hasher().finish();
    let source = StreamSource::new(Me { hello, urls: args.control.clone(), seed }, Arc::new(dialer));
    let handle = source.handle();
    if let Some(registration) = registration {
        let place = names.iter().position(|name| *name == registration.name());
        let netns = place.and_then(|at| numbers.get(at)).copied().unwrap_or_default();
        let dial = Dial::new(Arc::default(), beside.mark, Some(beside.spaces.clone()));
        tokio::spawn(registration.keep(handle.clone(), netns, Arc::new(dial)));
    }
    for wanted in fixed {
        tokio::spawn(handle.want(wanted));
    }
    let leaving = handle.clone();
    let discover: Arc<dyn Discover> = Arc::new(OnDemand::new(handle));
    beside.start(&args.beside, &args.ports, &numbers, &discover)?;
    let release = beside.release();
    Ok(Feed {
        source: Box::new(source),
        options,
        identities,
        discover: Some(discover),
        keeper,
        beside,
        leave: Some(Box::pin(async move {
            let released = tokio::task::spawn_blocking(release);
            leaving.leave().await;
            let _ = released.await;
        })),
        publishing: None,
    })
}

fn position<'a>(
    args: &Args,
    workloads: impl Iterator<Item = (&'a String, &'a Netns)>,
    registration: Option<&Registration>,
) -> Position {
    if args.role == Role::Gateway {
        return Position::Gateway;
    }
    let local = workloads.filter_map(|(workload, netns)| {
        let (namespace, name) = workload.split_once('/')?;
        Some(LocalWorkload {
            namespace: namespace.to_owned(),
            workload: name.to_owned(),
            own: registration.filter(|r| r.name() == *workload).map(Registration::workload),
            netns: *netns,
            ports: args.ports.ports(),
        })
    });
    Position::Workloads(local.collect())
}
