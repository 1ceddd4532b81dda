//! `selvedge run --listen`: the process is the control plane of other proxies too, and its gateway a member of their mesh.
//!
//! The authority and the server for proxies are on a runtime of their own, which can be ended without the rest: while the
//! binary is upgraded nobody may have the store of the authority open but the new process. Proxies that connect meanwhile wait
//! in the backlog of the listening socket, which both processes have.

use crate::{
    authority::{self, Authority},
    fleet,
    plane::{self, Plane},
};
use anyhow::{Context, Result, bail, ensure};
use clap::Args as ClapArgs;
use selvedge_control::{
    Current,
    ca::{Ca, StoreError},
    domain::Domain,
    publish::server::Publisher,
    source::Joined,
};
use selvedge_identity::{Identities, Issued, Issuer, Issuing, NotIssued, Svid, Trust};
use selvedge_mesh::identity::{self, Keeper};
use selvedge_proxy::telemetry::encode::Encoder;
use selvedge_wire::spiffe::SpiffeId;
use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::Duration,
};
use tokio::{
    net::TcpSocket,
    runtime::{Builder, Runtime},
    sync::watch,
};

/// What the gateway is when nobody says: it serves the Gateways of all namespaces, so that it belongs to none of them.
const IDENTITY: &str = "selvedge-system/gateway";
/// The gateway's first certificate is there at once, unless the clock is wrong by years.
const FIRST: Duration = Duration::from_secs(10);
/// How long a process that is ending may keep the store of the authority.
const LOCKED: Duration = Duration::from_secs(5);
/// Between looks at it.
const LOOK: Duration = Duration::from_millis(50);
/// How long the control plane may take to end.
const END: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, ClapArgs)]
#[group(id = "publish")]
pub struct Args {
    /// Be the control plane of other proxies too, which connect here (not moved by --port-offset). The gateway is then a
    /// member of the mesh.
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Identity of the gateway in the mesh; selvedge-system/gateway when not given.
    #[arg(long, value_name = "NAMESPACE/SERVICEACCOUNT", requires = "listen")]
    pub identity: Option<String>,
    /// Name of this control plane, for the logs of its proxies; that of the machine when not given.
    #[arg(long, value_name = "NAME", requires = "listen")]
    pub name: Option<String>,
    #[command(flatten)]
    pub authority: authority::Args,
}

impl Args {
    /// Flags that mean nothing without `--listen` are refused.
    pub fn check(&self) -> Result<()> {
        if self.listen.is_none()
            && let Some(flag) = self.authority.given()
        {
            bail!("{flag} is for a control plane: give --listen too, where its proxies connect");
        }
        Ok(())
    }
}

/// The control plane inside of a process that serves.
pub struct Publishing {
    opening: Opening,
    socket: Socket,
    publisher: Publisher,
    lent: Arc<Lent>,
    domain: Domain,
    running: tokio::sync::Mutex<Option<Aside>>,
}

/// What it takes to open the authority, again after an upgrade that failed.
#[derive(Clone)]
struct Opening {
    authority: authority::Args,
    state: Option<PathBuf>,
    mesh: Option<String>,
}

/// Listens from the first configuration on; one of an old process listens already.
struct Socket {
    bound: Mutex<Option<TcpSocket>>,
    listening: OnceLock<TcpListener>,
}

/// A gateway that is a member.
pub struct Member {
    pub identity: SpiffeId,
    pub identities: Arc<Identities>,
    pub keeper: Arc<Keeper>,
}

impl Publishing {
    /// Opens the authority, and gets the gateway its certificate. Nobody is let in yet. `mesh` is what the Mesh says of the
    /// trust domain, `inherited` the socket of an old process.
    pub async fn open(
        args: &Args,
        listen: SocketAddr,
        state: Option<PathBuf>,
        mesh: Option<String>,
        inherited: Option<TcpListener>,
    ) -> Result<(Self, Member, Joined)> {
        let socket = match inherited {
            Some(socket) => Socket { bound: Mutex::new(None), listening: socket.into() },
            None => Socket { bound: Mutex::new(Some(plane::bind(listen)?)), listening: OnceLock::new() },
        };
        let publisher = Publisher::new(&args.name.clone().unwrap_or_else(fleet::host));
        let joined = Joined::default();
        publisher.share(joined.share());
        let lent = Arc::new(Lent::default());
        let opening = Opening { authority: args.authority.clone(), state, mesh };
        let aside = Aside::start(&opening, &publisher, &lent).await?;
        let domain = aside.domain.clone();
        let member = member(args, &domain, &lent).await?;
        let running = tokio::sync::Mutex::new(Some(aside));
        Ok((Self { opening, socket, publisher, lent, domain, running }, member, joined))
    }

    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// What metrics say of proxies and authority.
    pub fn encode(&self, out: &mut Encoder) {
        plane::encode(&self.publisher, out);
        let ca = self.lent.ca.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        if let Some(ca) = ca {
            plane::encode_ca(&ca, out);
        }
    }

    /// Publishes what is in effect, and lets proxies in.
    pub async fn serve(&self, current: watch::Receiver<Arc<Current>>) -> Result<()> {
        tokio::spawn(self.publisher.clone().follow(current));
        tokio::spawn(self.publisher.clone().run());
        let socket = self.socket.listening()?;
        if let Some(aside) = self.running.lock().await.as_mut() {
            aside.serve(socket)?;
        }
        Ok(())
    }

    /// The socket, once it listens.
    pub fn socket(&self) -> Option<&TcpListener> {
        self.socket.listening.get()
    }

    /// An authority that is kept nowhere ends with its process, and every proxy would have to join again.
    pub fn check_upgrade(&self) -> Result<()> {
        let kept = self.opening.state.is_some() || self.opening.authority.ca_store.is_some();
        ensure!(kept, "with --no-state the certificate authority is in memory only, and cannot be handed over");
        Ok(())
    }

    /// Lets go of the store, and of all proxies, which serve on and wait in the backlog.
    pub async fn pause(&self) {
        let Some(aside) = self.running.lock().await.take() else { return };
        self.lent.give(None);
        aside.end().await;
    }

    /// The other way round: what was to take over is gone.
    pub async fn resume(&self) {
        let resumed = async {
            let mut running = self.running.lock().await;
            let mut aside = Aside::start(&self.opening, &self.publisher, &self.lent).await?;
            aside.serve(self.socket.listening()?)?;
            *running = Some(aside);
            anyhow::Ok(())
        };
        if let Err(error) = resumed.await {
            tracing::error!("proxies cannot be served any more until this process is started again: {error:#}");
        }
    }
}

impl Socket {
    fn listening(&self) -> Result<TcpListener> {
        let bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(bound) = bound {
            // Nobody else sets it.
            let _ = self.listening.set(plane::listen(bound)?.into_std()?);
        }
        self.listening
            .get()
            .context("there is no socket for proxies")?
            .try_clone()
            .context("the socket cannot be duplicated")
    }
}

async fn member(args: &Args, domain: &Domain, lent: &Arc<Lent>) -> Result<Member> {
    let name = args.identity.as_deref().unwrap_or(IDENTITY);
    let Some((namespace, account)) = name.split_once('/') else {
        bail!("--identity {name}: write NAMESPACE/SERVICEACCOUNT");
    };
    let identity =
        SpiffeId::workload(&domain.name, namespace, account).with_context(|| format!("--identity {name}"))?;
    let own = selvedge_identity::control_id(&domain.name)?;
    ensure!(identity != own, "--identity {name}: that is what the control plane is; give the gateway another one");
    let identities = Arc::<Identities>::default();
    // Not kept on disk: the authority is always at hand.
    let keeper = Keeper::new(Arc::clone(&identities), Arc::clone(lent) as _, identity::Options::new(None))?;
    keeper.keep(&identity);
    let ready = tokio::time::timeout(FIRST, keeper.ready(&identity)).await;
    ready.context("the gateway has no certificate; see the log, and the clock of this machine")?;
    Ok(Member { identity, identities, keeper: Arc::new(keeper) })
}

/// The authority and the server, apart from the rest of the process.
struct Aside {
    /// Taken when it ends.
    runtime: Option<Runtime>,
    plane: Option<Arc<Plane>>,
    domain: Domain,
}

impl Drop for Aside {
    fn drop(&mut self) {
        // To be dropped itself a runtime would have to block.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Aside {
    async fn start(opening: &Opening, publisher: &Publisher, lent: &Arc<Lent>) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("selvedge-publish")
            .enable_all()
            .build()
            .context("cannot start the runtime of the control plane")?;
        let (opening, publisher, lent) = (opening.clone(), publisher.clone(), Arc::clone(lent));
        let started = runtime.spawn(async move {
            let authority = opening.open().await?;
            lent.give(Some(&authority));
            let mutual = Some(authority.mutual()?);
            anyhow::Ok(Plane { publisher, authority: Some(authority), mutual })
        });
        let mut aside = Self { runtime: Some(runtime), plane: None, domain: Domain::default() };
        let plane = started.await.context("the control plane cannot start")??;
        aside.domain = plane.domain().unwrap_or_default();
        aside.plane = Some(Arc::new(plane));
        Ok(aside)
    }

    fn serve(&mut self, socket: TcpListener) -> Result<()> {
        let (Some(runtime), Some(plane)) = (&self.runtime, &self.plane) else { return Ok(()) };
        let _inside = runtime.enter();
        let socket = tokio::net::TcpListener::from_std(socket).context("proxies cannot be served")?;
        let plane = Arc::clone(plane);
        runtime.spawn(async move {
            if let Err(error) = plane.serve(socket).await {
                tracing::error!("proxies are not served any more: {error:#}");
            }
        });
        Ok(())
    }

    /// Returns when nothing of it is left.
    async fn end(mut self) {
        self.plane = None;
        if let Some(runtime) = self.runtime.take() {
            let _ = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(END)).await;
        }
    }
}

impl Opening {
    async fn open(&self) -> Result<Authority> {
        let began = tokio::time::Instant::now();
        loop {
            // Those of the control plane, which are not the gateway's.
            let identities = Arc::<Identities>::default();
            let opened = self.authority.open(self.state.as_deref(), &identities, None, self.mesh.clone()).await;
            match opened {
                Err(error) if is_locked(&error) && began.elapsed() < LOCKED => tokio::time::sleep(LOOK).await,
                opened => return opened,
            }
        }
    }
}

fn is_locked(error: &anyhow::Error) -> bool {
    let locked = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref::<StoreError>(), Some(StoreError::Locked { .. }))
    };
    error.chain().any(locked)
}

/// The authority, as the gateway of the same process asks it: it is away while the binary is upgraded.
#[derive(Default)]
struct Lent {
    issuer: Mutex<Option<Arc<dyn Issuer>>>,
    /// For metrics only: it must not keep the store open.
    ca: Mutex<Weak<Ca>>,
    trust: watch::Sender<Option<Arc<Trust>>>,
}

impl Lent {
    /// Takes another authority, or none. To be called on the runtime of that authority.
    fn give(self: &Arc<Self>, authority: Option<&Authority>) {
        let issuer = authority.map(|authority| Arc::new(authority.issuer()));
        if let Some(issuer) = &issuer {
            let (mut told, lent) = (issuer.trust(), Arc::downgrade(self));
            tokio::spawn(async move {
                loop {
                    let trust = told.borrow_and_update().clone();
                    let Some(lent) = lent.upgrade() else { return };
                    if trust.is_some() {
                        lent.trust.send_replace(trust);
                    }
                    drop(lent);
                    if told.changed().await.is_err() {
                        return;
                    }
                }
            });
        }
        let ca = authority.map(|authority| Arc::downgrade(&authority.ca)).unwrap_or_default();
        *self.ca.lock().unwrap_or_else(PoisonError::into_inner) = ca;
        *self.issuer.lock().unwrap_or_else(PoisonError::into_inner) = issuer.map(|issuer| issuer as _);
    }
}

impl Issuer for Lent {
    fn issue(&self, id: &SpiffeId, current: Option<Arc<Svid>>, request: Vec<u8>) -> Issuing {
        let issuer = self.issuer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match issuer {
            Some(issuer) => issuer.issue(id, current, request),
            None => Box::pin(async {
                let why = "the certificate authority is away while the binary is upgraded".to_owned();
                Err::<Issued, _>(NotIssued::Later(why))
            }),
        }
    }

    fn trust(&self) -> watch::Receiver<Option<Arc<Trust>>> {
        self.trust.subscribe()
    }
}
