//! `selvedge proxy`: the data plane of a fleet.

mod discover;
mod register;

use crate::{
    fleet::{self, Files},
    run::{self, Common, Feed},
};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args as ClapArgs, ValueEnum};
use discover::OnDemand;
use register::Registration;
use selvedge_control::{
    proto::discovery::{Hello, Role as WireRole},
    source::stream::{StreamSource, machine::Me},
    transport::Dialer,
};
use selvedge_identity::Identities;
use std::{
    hash::{BuildHasher, Hasher, RandomState},
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
    /// Workload beside this proxy; may be given several times for role node.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub workload: Vec<String>,
    /// Gateway to serve; all that its identity may serve when not given.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub gateway: Vec<String>,
    /// A Workload that joins the mesh with this proxy and leaves with it; its health check decides whether it takes
    /// traffic.
    #[arg(long, value_name = "FILE")]
    pub register: Option<PathBuf>,
    #[command(flatten)]
    pub identity: Files,
    /// Service account of the control planes in the namespace selvedge-system.
    #[arg(long, default_value = "control", value_name = "NAME")]
    pub control_account: String,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    Gateway,
    Sidecar,
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
    let registration = args.register.as_deref().map(Registration::read).transpose()?;
    run::process(&args.common, log, || feed(args, registration))
}

fn feed(args: &Args, registration: Option<Registration>) -> Result<Feed> {
    let identities = Arc::<Identities>::default();
    let own = args.identity.follow(&identities)?;
    ensure!(
        own.is_some() || args.control.iter().all(|url| url.starts_with("http://")),
        "mutual TLS needs an identity: give --cert, --key and --trust"
    );
    let mut workloads = args.workload.clone();
    workloads.extend(registration.as_ref().map(Registration::name));
    workloads.dedup();
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
    };
    let expect = fleet::control_plane(own.as_ref(), &args.control_account).context("--control-account")?;
    let dialer = Dialer { identities: identities.clone(), own, expect };
    // Seeded by the operating system: proxies that start at once must not come at once.
    let seed = RandomState::new().build_hasher().finish();
    let source = StreamSource::new(Me { hello, urls: args.control.clone(), seed }, Arc::new(dialer));
    let handle = source.handle();
    if let Some(registration) = registration {
        tokio::spawn(registration.keep(handle.clone()));
    }
    let leaving = handle.clone();
    Ok(Feed {
        source: Box::new(source),
        options: args.common.options(),
        identities,
        discover: Some(Arc::new(OnDemand::new(handle))),
        leave: Some(Box::pin(async move { leaving.leave().await })),
    })
}
