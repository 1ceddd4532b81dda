//! Listening sockets: opening, accepting, closing without losing what waits in the backlog.

use crate::{
    connection,
    drain::Drainer,
    proxy::Shared,
    table::{ListenerTable, LiveProtocol},
    udp,
    worker::WorkerId,
};
use arc_swap::ArcSwap;
use selvedge_compile::snapshot::{Bind, L4Listener, Transport};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::watch;

/// A socket that is open, with the table its connections read. It outlives tables: a reload swaps `table`.
pub struct OpenListener {
    pub bind: Bind,
    pub local: SocketAddr,
    pub socket: OpenSocket,
    table: ArcSwap<ListenerTable>,
    pub drainer: Drainer,
    stop: watch::Sender<bool>,
    pub active: AtomicUsize,
    pub accepted: AtomicU64,
    pub refused: AtomicU64,
}

/// Kept as std sockets so that they can be handed to a new process.
pub enum OpenSocket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Opens the socket of a [`Bind`].
pub fn open(bind: Bind) -> io::Result<OpenSocket> {
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
            socket,
            table: ArcSwap::new(table),
            drainer: Drainer::default(),
            stop: watch::Sender::new(false),
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

    pub fn set_table(&self, table: Arc<ListenerTable>) {
        self.table.store(table);
    }

    /// Starts accepting on every worker.
    pub fn start(self: &Arc<Self>, shared: &Arc<Shared>) -> io::Result<()> {
        match &self.socket {
            OpenSocket::Tcp(socket) => {
                for worker in shared.workers.ids() {
                    let socket = socket.try_clone()?;
                    let (this, stop, shared) = (self.clone(), self.stop.subscribe(), shared.clone());
                    shared.workers.handle(worker).clone().spawn(async move {
                        match tokio::net::TcpListener::from_std(socket) {
                            Ok(socket) => this.accept(socket, worker, &shared, stop).await,
                            Err(error) => tracing::error!(listener = %this.bind, %error, "cannot accept on this worker"),
                        }
                    });
                }
            }
            OpenSocket::Udp(socket) => {
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
        }
        Ok(())
    }

    /// Stops accepting, after whatever waits in the backlog has been accepted, and tells connections to finish.
    pub fn close(&self) {
        self.stop.send_replace(true);
        self.drainer.start();
    }

    async fn accept(
        self: Arc<Self>,
        socket: tokio::net::TcpListener,
        worker: WorkerId,
        shared: &Arc<Shared>,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = socket.accept() => accepted,
                _ = stop.wait_for(|stop| *stop) => return,
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
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            _ => tracing::debug!(listener = %self.bind, %error, "a connection was gone before it could be accepted"),
        }
    }
}
