//! Listening sockets: opening, accepting, closing without losing what waits in the backlog.

use crate::{
    connection,
    drain::Drainer,
    proxy::Shared,
    spaces::{self, Spaces},
    table::{ListenerTable, LiveProtocol},
    telemetry::Limit,
    udp,
    worker::WorkerId,
};
use arc_swap::ArcSwap;
use selvedge_compile::snapshot::{Bind, L4Listener, Transport};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::watch;

/// A socket that is open, with the table its connections read. It outlives tables: a reload swaps `table`.
pub struct OpenListener {
    pub bind: Bind,
    pub local: SocketAddr,
    /// Gone as soon as nothing is accepted any more: connections outlive it.
    socket: Mutex<Option<OpenSocket>>,
    /// Notified when `socket` is gone.
    gone: Condvar,
    table: ArcSwap<ListenerTable>,
    pub drainer: Drainer,
    stop: watch::Sender<Stop>,
    /// Tasks that accept.
    accepting: AtomicUsize,
    pub active: AtomicUsize,
    pub accepted: AtomicU64,
    pub refused: AtomicU64,
}

/// Kept as std sockets so that they can be handed to a new process.
pub enum OpenSocket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// Whether to go on accepting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stop {
    #[default]
    No,
    /// The socket closes once its backlog has been accepted.
    Close,
    /// Another process has the socket too, and accepts what waits.
    HandOver,
}

/// What `/listeners` shows.
#[derive(Debug, Clone)]
pub struct ListenerStatus {
    pub bind: Bind,
    /// `http`, `tls`, `tcp` or `udp`.
    pub protocol: &'static str,
    /// Listeners of Gateways, `namespace/gateway/section`.
    pub names: Vec<String>,
    /// Connections (not of UDP) open now.
    pub connections: usize,
    pub accepted: u64,
    /// Nothing is accepted any more.
    pub draining: bool,
}

/// Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Opens the socket of a [`Bind`], in its network namespace.
pub fn open(bind: Bind, spaces: Option<&dyn Spaces>) -> io::Result<OpenSocket> {
    spaces::within(spaces, bind.netns, || open_here(bind))
}

fn open_here(bind: Bind) -> io::Result<OpenSocket> {
    let (address, dual) = match bind.address {
        Some(address) => (address, false),
        None => (IpAddr::V6(Ipv6Addr::UNSPECIFIED), true),
    };
    match socket(bind, address, dual) {
        // Hosts without IPv6.
        Err(e) if dual && matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
            socket(bind, IpAddr::V4(Ipv4Addr::UNSPECIFIED), false)
        }
        other => other,
    }
}

fn socket(bind: Bind, address: IpAddr, dual: bool) -> io::Result<OpenSocket> {
    let domain = if address.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    let (kind, protocol) = match bind.transport {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
    };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(!dual)?;
    }
    if bind.transport == Transport::Tcp {
        // Old connections in TIME_WAIT must not keep a restart from binding.
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(SocketAddr::new(address, bind.port)))?;
    Ok(match bind.transport {
        Transport::Tcp => {
            socket.listen(BACKLOG)?;
            OpenSocket::Tcp(socket.into())
        }
        Transport::Udp => OpenSocket::Udp(socket.into()),
    })
}

impl OpenListener {
    pub fn new(bind: Bind, socket: OpenSocket, table: Arc<ListenerTable>) -> io::Result<Arc<Self>> {
        let local = match &socket {
            OpenSocket::Tcp(s) => s.local_addr()?,
            OpenSocket::Udp(s) => s.local_addr()?,
        };
        Ok(Arc::new(Self {
            bind,
            local,
            socket: Mutex::new(Some(socket)),
            gone: Condvar::new(),
            table: ArcSwap::new(table),
            drainer: Drainer::default(),
            stop: watch::Sender::default(),
            accepting: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }))
    }

    /// The table as of now. A request loads it once.
    pub fn table(&self) -> Arc<ListenerTable> {
        self.table.load_full()
    }

    /// What new UDP sessions are served with; `first` stands in should the protocol ever differ.
    fn udp_table(&self, first: Arc<L4Listener>) -> udp::Current {
        let table = self.table();
        match &table.protocol {
            LiveProtocol::Udp(listener) => table.udp(listener),
            _ => table.udp(&first),
        }
    }

    /// Serves by this table from now on. Returns the one before, which requests in progress may still hold.
    pub fn set_table(&self, table: Arc<ListenerTable>) -> Arc<ListenerTable> {
        self.table.swap(table)
    }

    /// Starts accepting on every worker.
    pub fn start(self: &Arc<Self>, shared: &Arc<Shared>) -> io::Result<()> {
        match &*self.socket() {
            Some(OpenSocket::Tcp(socket)) => {
                let sockets = shared.workers.ids().map(|_| socket.try_clone()).collect::<io::Result<Vec<_>>>()?;
                self.accepting.store(sockets.len(), Relaxed);
                for (worker, socket) in shared.workers.ids().zip(sockets) {
                    let (this, stop, shared) = (self.clone(), self.stop.subscribe(), shared.clone());
                    shared.workers.handle(worker).clone().spawn(async move {
                        match tokio::net::TcpListener::from_std(socket) {
                            Ok(socket) => this.accept(socket, worker, &shared, stop).await,
                            Err(error) => {
                                tracing::error!(listener = %this.bind, %error, "cannot accept on this worker")
                            }
                        }
                        this.stopped(worker, &shared);
                    });
                }
            }
            Some(OpenSocket::Udp(socket)) => {
                let socket = socket.try_clone()?;
                let (this, drain) = (self.clone(), self.drainer.subscribe());
                let LiveProtocol::Udp(first) = &self.table().protocol else {
                    return Err(io::Error::other("a UDP socket with a listener of another protocol"));
                };
                let first = first.clone();
                // One worker reads a UDP socket: sessions are kept there.
                let worker = WorkerId(usize::from(self.bind.port) % shared.workers.count().0);
                shared.workers.handle(worker).clone().spawn(async move {
                    match tokio::net::UdpSocket::from_std(socket) {
                        Ok(socket) => udp::serve(socket, worker, move || this.udp_table(first.clone()), drain).await,
                        Err(error) => tracing::error!(listener = %this.bind, %error, "cannot read this UDP socket"),
                    }
                });
            }
            None => {}
        }
        Ok(())
    }

    /// Stops accepting, after whatever waits in the backlog has been accepted, and tells connections to finish.
    pub fn close(&self) {
        self.end(Stop::Close);
    }

    /// Stops accepting at once, for another process that has the socket too, and tells connections to finish.
    pub fn hand_over(&self) {
        self.end(Stop::HandOver);
    }

    fn end(&self, stop: Stop) {
        self.stop.send_if_modified(|now| *now == Stop::No && std::mem::replace(now, stop) != stop);
        self.drainer.start();
        // Sessions keep a UDP socket for their answers; a TCP socket is dropped by the last who accepts.
        if self.bind.transport == Transport::Udp {
            self.drop_socket();
        }
    }

    /// Waits until the socket of a closing listener is closed, so that its address is free; at most for `limit`.
    pub fn wait_gone(&self, limit: Duration) {
        let socket = self.socket();
        drop(self.gone.wait_timeout_while(socket, limit, |socket| socket.is_some()));
    }

    /// Another descriptor of the socket, to be passed to another process; `None` when it is closed.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn duplicate(&self) -> io::Result<Option<OwnedFd>> {
        let socket = self.socket();
        let Some(socket) = &*socket else { return Ok(None) };
        let fd = match socket {
            OpenSocket::Tcp(socket) => socket.as_fd(),
            OpenSocket::Udp(socket) => socket.as_fd(),
        };
        fd.try_clone_to_owned().map(Some)
    }

    pub fn status(&self) -> ListenerStatus {
        let (protocol, names) = self.table().names();
        ListenerStatus {
            bind: self.bind,
            protocol,
            names,
            connections: self.active.load(Relaxed),
            accepted: self.accepted.load(Relaxed),
            draining: *self.stop.borrow() != Stop::No,
        }
    }

    fn socket(&self) -> MutexGuard<'_, Option<OpenSocket>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_socket(&self) {
        *self.socket() = None;
        self.gone.notify_all();
    }

    /// One task accepts no more. The last one takes the rest of the backlog, with no task of another worker in between,
    /// and closes the socket.
    fn stopped(self: &Arc<Self>, worker: WorkerId, shared: &Arc<Shared>) {
        if self.accepting.fetch_sub(1, Relaxed) > 1 {
            return;
        }
        let mut socket = self.socket();
        if let (Some(OpenSocket::Tcp(socket)), Stop::Close) = (&*socket, *self.stop.borrow()) {
            for _ in 0..BACKLOG {
                let Ok((stream, peer)) = socket.accept() else { break };
                let stream = stream.set_nonblocking(true).and_then(|()| tokio::net::TcpStream::from_std(stream));
                if let Ok(stream) = stream {
                    self.admit(stream, peer, worker, shared);
                }
            }
        }
        *socket = None;
        drop(socket);
        self.gone.notify_all();
    }

    async fn accept(
        self: &Arc<Self>,
        socket: tokio::net::TcpListener,
        worker: WorkerId,
        shared: &Arc<Shared>,
        mut stop: watch::Receiver<Stop>,
    ) {
        loop {
            let accepted = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop != Stop::No) => return,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer, worker, shared),
                Err(error) => self.survive(error).await,
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: tokio::net::TcpStream, peer: SocketAddr, here: WorkerId, shared: &Arc<Shared>) {
        self.accepted.fetch_add(1, Relaxed);
        let Some(permit) = shared.overload.connection() else {
            self.refused.fetch_add(1, Relaxed);
            self.table().socket.rejected(here, crate::telemetry::Rejected::ProcessLimit);
            return;
        };
        let (worker, load) = shared.workers.place(here);
        let (this, owned, drain) = (self.clone(), shared.clone(), self.drainer.subscribe());
        if worker == here {
            tokio::spawn(async move {
                connection::run(stream, peer, this, owned, worker, drain).await;
                drop((permit, load));
            });
            return;
        }
        let Ok(stream) = stream.into_std() else { return };
        shared.workers.handle(worker).spawn(async move {
            if let Ok(stream) = tokio::net::TcpStream::from_std(stream) {
                connection::run(stream, peer, this, owned, worker, drain).await;
            }
            drop((permit, load));
        });
    }

    /// Errors of one connection are passed over at once; when descriptors or memory run out the loop must neither
    /// end nor spin.
    async fn survive(&self, error: io::Error) {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                tracing::warn!(listener = %self.bind, %error, "cannot accept: raise the limit of open files (ulimit -n) or lower max_connections");
                self.refused.fetch_add(1, Relaxed);
                Limit::OpenFiles.hit();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            _ => tracing::debug!(listener = %self.bind, %error, "a connection was gone before it could be accepted"),
        }
    }
}
