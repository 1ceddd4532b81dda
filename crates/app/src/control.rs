//! `selvedge control`: a control plane.

use crate::{
    authority::{self, Shared},
    fleet::{self, Files},
    logging::{self, Level},
    plane::{self, Plane},
    run::{
        admin::{self, Address},
        service_manager,
        signals::{Asked, Signals},
    },
};
use anyhow::{Context, Result, ensure};
use clap::Args as ClapArgs;
use selvedge_admin::{AdminState, Readiness};
use selvedge_compile::Options;
use selvedge_control::{
    Current, Engine,
    ca::Ca,
    domain,
    publish::server::Publisher,
    saved,
    source::{
        FolderSource, Source,
        etcd::{Client, EtcdSource, Keeper},
    },
};
use selvedge_identity::Identities;
use selvedge_mesh::identity;
use selvedge_proxy::{telemetry::Telemetry, worker::WorkerCount};
use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
};

#[derive(Debug, Clone, ClapArgs)]
pub struct Args {
    /// Folder or file of YAML or JSON resources; may be given several times.
    #[arg(short = 'f', long = "file", required_unless_present = "etcd", value_name = "DIR")]
    pub files: Vec<PathBuf>,
    /// Take resources from etcd instead, which several control planes may share.
    #[arg(long, value_name = "URL", value_delimiter = ',', conflicts_with = "files")]
    pub etcd: Vec<String>,
    /// Where in etcd everything is.
    #[arg(long, default_value = "/selvedge", value_name = "PATH")]
    pub prefix: String,
    /// Where proxies connect.
    #[arg(long, default_value = "127.0.0.1:15012", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Name of this control plane, for the logs of its proxies; that of the machine when not given.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    #[command(flatten)]
    pub identity: Files,
    #[command(flatten)]
    pub authority: authority::Args,
    /// Speak clear text to proxies and believe whatever they say they are. Only for trying things out.
    #[arg(long)]
    pub insecure: bool,
    /// Where the last good configuration is kept, for a start with broken files.
    #[arg(long, default_value = ".selvedge-control", value_name = "DIR")]
    pub state: PathBuf,
    /// Keep no last good configuration on disk.
    #[arg(long)]
    pub no_state: bool,
    /// Address of the admin listener, or `off`.
    #[arg(long, default_value = "127.0.0.1:15014", value_name = "ADDRESS")]
    pub admin: Address,
}

pub fn run(args: &Args, log: &str) -> Result<ExitCode> {
    let level = logging::start(log)?;
    let saved = !args.no_state && args.state.join(saved::FILE).exists();
    for path in &args.files {
        ensure!(path.exists() || saved, "{} does not exist, and no last good configuration is kept", path.display());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("selvedge-control")
        .enable_all()
        .build()
        .context("cannot start the control runtime")?;
    let code = runtime.block_on(serve(args, level));
    runtime.shutdown_background();
    code
}

async fn serve(args: &Args, level: Level) -> Result<ExitCode> {
    let drain = Arc::new(Notify::new());
    let mut signals = Signals::new(drain.clone()).context("signals cannot be received")?;
    let identities = Arc::<Identities>::default();
    let state = (!args.no_state).then(|| args.state.clone());
    let name = args.name.clone().unwrap_or_else(fleet::host);
    let shared = (!args.etcd.is_empty()).then(|| etcd(args, &name));
    // Who knows nothing yet would tell proxies that all they have is gone: nobody listens until it knows.
    let socket = plane::bind(args.listen)?;
    let publisher = Publisher::new(&name);
    let source: Box<dyn Source> = match &shared {
        None => Box::new(FolderSource::new(args.files.clone())),
        Some(shared) => {
            let sharing = shared.keeper.clone();
            publisher.share(Box::new(move |key, json| sharing.joined(key, json)));
            Box::new(EtcdSource::new(&shared.client))
        }
    };
    // What is compiled here is never served: it is how resources are judged.
    let (domain, judged) = (watch::Sender::new(None), Box::new(|_: &_| Vec::new()));
    let engine = Engine::of_domain(source, state.clone(), Options::default(), judged, domain.subscribe());
    let (mut current, reload) = (engine.current(), Arc::new(Notify::new()));
    tokio::spawn(engine.run(reload.clone()));
    // Who brings no certificate gets a certificate authority.
    let opened = async {
        if args.identity.cert.is_some() || args.insecure {
            return Ok(None);
        }
        let mesh = declared(args, &mut current).await?;
        args.authority.open(state.as_deref(), &identities, shared.as_ref(), mesh).await.map(Some)
    };
    // It may wait for etcd.
    let authority = tokio::select! {
        opened = opened => opened?,
        () = ended(&mut signals) => return Ok(ExitCode::SUCCESS),
    };
    let mutual = match &authority {
        Some(authority) => Some(authority.mutual()?),
        None => fleet::mutual(&args.identity, args.insecure, &identities)?,
    };
    let issuing = authority.as_ref().map(|a| (a.keeper.clone(), a.ca.clone()));
    let plane = Plane { publisher, authority, mutual };
    domain.send_replace(plane.domain());
    let (publisher, look) = (plane.publisher.clone(), reload.clone());
    publisher.look(Box::new(move || look.notify_one()));
    tokio::spawn(publisher.clone().run());
    let mut known = current.clone();
    serve_admin(args, &publisher, current, drain, level, issuing)?;
    service_manager::ready();
    let server = async move {
        // A Mesh of another trust domain must not get out.
        let told = domain.borrow().as_ref().map(|domain| domain.name.clone());
        let heeded = |current: &Arc<Current>| current.spoken && (told.is_none() || current.domain == told);
        if !known.borrow().spoken {
            tracing::warn!("nothing is known yet of what etcd holds; proxies are let in once it is");
        }
        let _ = known.wait_for(heeded).await;
        tokio::spawn(publisher.follow(known));
        plane.serve(plane::listen(socket)?).await
    };
    let mut server = std::pin::pin!(server);
    loop {
        tokio::select! {
            result = &mut server => {
                result?;
                return Ok(ExitCode::FAILURE);
            }
            asked = signals.next() => match asked {
                Asked::Reload => {
                    tracing::info!("SIGHUP: looking at the resources");
                    reload.notify_one();
                }
                Asked::Upgrade => tracing::warn!("SIGUSR2: a control plane is restarted instead; its proxies serve on"),
                // Proxies serve on, and connect to another or to this one again: there is nothing to wait for.
                Asked::End => {
                    service_manager::stopping();
                    tracing::info!("ending");
                    return Ok(ExitCode::SUCCESS);
                }
            },
        }
    }
}

/// Until the process is asked to end.
async fn ended(signals: &mut Signals) {
    while !matches!(signals.next().await, Asked::End) {}
}

/// How long etcd may take to answer at the start before the log says what it is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the Mesh says of the trust domain. Where that is for the authority to know, it is waited for.
async fn declared(args: &Args, current: &mut watch::Receiver<Arc<Current>>) -> Result<Option<String>> {
    if args.authority.trust_domain.is_none() {
        let mut spoken = std::pin::pin!(current.wait_for(|current| current.spoken));
        let waited = match tokio::time::timeout(PATIENCE, &mut spoken).await {
            Ok(spoken) => spoken,
            Err(_) => {
                tracing::warn!(
                    "the Mesh in etcd, which may name the trust domain, is waited for; no proxy is let in before \
                     (--trust-domain would say it)"
                );
                spoken.await
            }
        };
        waited.context("the resources are not followed any more")?;
    }
    Ok(domain::declared(&current.borrow().resources).map(str::to_owned))
}

/// Keeps in etcd what this control plane holds, from now on.
fn etcd(args: &Args, name: &str) -> Shared {
    let client = Client::new(args.etcd.clone(), &args.prefix);
    let keeper = Keeper::new(&client, name);
    tokio::spawn(keeper.clone().run());
    Shared { client, keeper }
}

fn serve_admin(
    args: &Args,
    publisher: &Publisher,
    current: watch::Receiver<Arc<Current>>,
    drain: Arc<Notify>,
    level: Level,
    issuing: Option<(Arc<identity::Keeper>, Arc<Ca>)>,
) -> Result<()> {
    let Some(socket) = args.admin.open(0)? else { return Ok(()) };
    let socket = TcpListener::from_std(socket).context("the admin listener cannot be served")?;
    tracing::info!(address = %socket.local_addr()?, "admin listener");
    let (status, config, known, publisher) = (current.clone(), current.clone(), current, publisher.clone());
    let telemetry = Telemetry::on(WorkerCount(1), Some(tokio::runtime::Handle::current()), None);
    if let Some((keeper, ca)) = issuing {
        telemetry.registry.collect(move |out| keeper.encode(out));
        telemetry.registry.collect(move |out| plane::encode_ca(&ca, out));
    }
    let counted = publisher.clone();
    telemetry.registry.collect(move |out| plane::encode(&counted, out));
    let state = AdminState {
        telemetry,
        readiness: Arc::new(move || match known.borrow().spoken {
            true => Readiness::yes(),
            false => Readiness::no("nothing is known yet of what etcd holds"),
        }),
        status: Arc::new(move || admin::status(Some(&status.borrow()))),
        config: Arc::new(move || config.borrow().resources.to_value()),
        clusters: Arc::new(Vec::new),
        listeners: Arc::new(Vec::new),
        nodes: Arc::new(move || publisher.all_nodes()),
        drain: Arc::new(move || drain.notify_one()),
        log_level: admin::log_level(level),
    };
    tokio::spawn(async move {
        if let Err(error) = selvedge_admin::serve(socket, state, std::future::pending()).await {
            tracing::error!(%error, "the admin listener has ended");
        }
    });
    Ok(())
}
