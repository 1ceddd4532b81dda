//! What the admin listener shows, read off the running parts.

use crate::logging::Level;
use anyhow::{Context, Result};
use selvedge_admin::{AdminState, LogLevel, Readiness};
use selvedge_control::{Current, publish::server::Publisher};
use selvedge_proxy::{listener::OpenListener, proxy::Proxy, telemetry};
use std::{
    future::Future,
    net::{SocketAddr, TcpListener},
    str::FromStr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
};
use tokio::sync::{Notify, watch};

/// Where the admin listener is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    Off,
    At(SocketAddr),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse()
            .map(Self::At)
            .map_err(|_| "is neither an address with a port, such as 127.0.0.1:15000, nor `off`".to_owned())
    }
}

impl Address {
    /// Opens it, moved by `offset` ports; a port of 0 is chosen by the system.
    pub fn open(self, offset: u16) -> Result<Option<TcpListener>> {
        let Self::At(mut address) = self else { return Ok(None) };
        if address.port() > 0 {
            let port =
                address.port().checked_add(offset).context("the port of --admin plus --port-offset is over 65535")?;
            address.set_port(port);
        }
        if !address.ip().to_canonical().is_loopback() {
            tracing::warn!(%address, "the admin listener is not on loopback: whoever reaches it can read the configuration and end the process");
        }
        let socket = TcpListener::bind(address).with_context(|| {
            format!(
                "the admin listener cannot listen on {address}. If another instance has it, give this one an address of \
                 its own (`--admin 127.0.0.1:0` lets the system choose and logs the port), move all of its ports with \
                 --port-offset, or do without: `--admin off`"
            )
        })?;
        socket.set_nonblocking(true)?;
        Ok(Some(socket))
    }
}

/// Whether traffic is welcome.
#[derive(Debug, Default)]
pub struct Phase(AtomicU8);

const SERVING: u8 = 1;
const ENDING: u8 = 2;

impl Phase {
    pub fn serving(&self) {
        self.0.store(SERVING, Relaxed);
    }

    pub fn ending(&self) {
        self.0.store(ENDING, Relaxed);
    }

    fn readiness(&self) -> Readiness {
        match self.0.load(Relaxed) {
            SERVING => Readiness::yes(),
            ENDING => Readiness::no("the process is draining"),
            _ => Readiness::no("no configuration has been installed yet"),
        }
    }
}

/// What the admin listener needs to know of the process.
#[derive(Clone)]
pub struct Parts {
    pub proxy: Arc<Proxy>,
    pub phase: Arc<Phase>,
    /// Set when the first configuration is in effect.
    pub current: Arc<OnceLock<watch::Receiver<Arc<Current>>>>,
    /// Of a process that is a control plane too.
    pub publisher: Option<Publisher>,
    pub drain: Arc<Notify>,
    pub level: Level,
}

impl Parts {
    fn current(&self) -> Option<Arc<Current>> {
        self.current.get().map(|current| current.borrow().clone())
    }

    /// Serves on `socket` until `end`.
    pub fn serve(&self, socket: TcpListener, end: impl Future<Output = ()> + Send + 'static) -> Result<()> {
        let socket = tokio::net::TcpListener::from_std(socket).context("the admin listener cannot be served")?;
        tracing::info!(address = %socket.local_addr()?, "admin listener");
        let state = self.state();
        tokio::spawn(async move {
            if let Err(error) = selvedge_admin::serve(socket, state, end).await {
                tracing::error!(%error, "the admin listener has ended");
            }
        });
        Ok(())
    }

    fn state(&self) -> AdminState {
        let (phase, level) = (self.phase.clone(), self.level.clone());
        let (status, config, drain) = (self.clone(), self.clone(), self.drain.clone());
        let (clusters, listeners) = (self.proxy.clone(), self.proxy.clone());
        AdminState {
            telemetry: self.proxy.shared().telemetry.clone(),
            readiness: Arc::new(move || phase.readiness()),
            status: Arc::new(move || status.status()),
            config: Arc::new(move || config.current().unwrap_or_default().resources.to_value()),
            clusters: Arc::new(move || {
                let mut all = Vec::new();
                clusters.shared().clusters.for_each(|cluster| all.push(cluster.status()));
                all
            }),
            listeners: Arc::new(move || {
                let open = listeners.listeners().into_iter().chain(listeners.closing());
                open.map(|listener| describe(&listener)).collect()
            }),
            nodes: {
                let publisher = self.publisher.clone();
                Arc::new(move || publisher.as_ref().map(Publisher::all_nodes).unwrap_or_default())
            },
            drain: Arc::new(move || drain.notify_one()),
            log_level: log_level(level),
        }
    }

    fn status(&self) -> selvedge_admin::Status {
        status(self.current().as_deref())
    }
}

/// The filter of the log, to be read and changed.
pub fn log_level(level: Level) -> LogLevel {
    let get = level.clone();
    LogLevel { get: Arc::new(move || get.get()), set: Arc::new(move |filter| level.set(filter)) }
}

/// What is in effect, as `/status` shows it.
pub fn status(current: Option<&Current>) -> selvedge_admin::Status {
    let status = selvedge_admin::Status { version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() };
    let Some(current) = current else { return status };
    let problem = |p: &selvedge_control::Problem| selvedge_admin::Problem {
        listener: p.listener.clone(),
        message: p.message.clone(),
    };
    selvedge_admin::Status {
        revision: current.revision,
        installed: current.installed,
        took_ms: u64::try_from(current.took.as_millis()).unwrap_or(u64::MAX),
        last_good: current.last_good,
        problems: current.problems.iter().map(problem).collect(),
        ..status
    }
    .with_diagnostics(&current.diagnostics)
    .with_resources(&current.status())
}

fn describe(listener: &OpenListener) -> selvedge_admin::Listener {
    let status = listener.status();
    selvedge_admin::Listener {
        bind: status.bind.to_string(),
        protocol: status.protocol.to_owned(),
        listeners: status.names,
        connections: status.connections as u64,
        accepted: status.accepted,
        draining: status.draining,
    }
}

/// Keeps the metrics about the configuration, for as long as there is a configuration.
pub async fn measure(proxy: Arc<Proxy>, mut current: watch::Receiver<Arc<Current>>) {
    let registry = proxy.shared().telemetry.registry.clone();
    let served = current.clone();
    registry.collect(move |out| {
        let current = served.borrow().clone();
        telemetry::encode_certificates(current.compiled.snapshot.listeners.iter().map(|l| &**l), out);
    });
    drop(proxy);
    let mut revision = 0;
    let mut last_good = false;
    loop {
        let now = current.borrow_and_update().clone();
        if now.revision != revision {
            revision = now.revision;
            registry.process.installed(revision);
        }
        if now.last_good && !last_good {
            registry.process.reload_failed();
        }
        last_good = now.last_good;
        registry.process.set_last_good(last_good);
        if current.changed().await.is_err() {
            return;
        }
    }
}
