//! Sockets towards upstreams: in which network namespace they are made, and how they are marked.

use crate::{
    hbone::Pool,
    spaces::{self, Spaces},
};
use selvedge_compile::snapshot::Netns;
use selvedge_identity::Identities;
use socket2::SockRef;
use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
};
use tokio::net::{TcpSocket, TcpStream};

/// What the process lends to all connections it makes.
#[derive(Default)]
pub struct Dial {
    pub identities: Arc<Identities>,
    mark: Option<u32>,
    spaces: Option<Arc<dyn Spaces>>,
    /// Tunnels to other members of a mesh.
    pub(crate) tunnels: Pool,
}

impl Dial {
    /// `mark` is the SO_MARK of every socket; to set it needs CAP_NET_ADMIN.
    pub fn new(identities: Arc<Identities>, mark: Option<u32>, spaces: Option<Arc<dyn Spaces>>) -> Self {
        Self { identities, mark, spaces, tunnels: Pool::default() }
    }

    /// SO_MARK of every socket.
    pub fn socket_mark(&self) -> Option<u32> {
        self.mark
    }

    /// How other namespaces are entered.
    pub fn spaces(&self) -> Option<&dyn Spaces> {
        self.spaces.as_deref()
    }

    /// Connects. The caller holds the timer.
    pub async fn tcp(&self, to: SocketAddr, netns: Netns) -> io::Result<TcpStream> {
        let socket = spaces::within(self.spaces.as_deref(), netns, || {
            let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            self.mark(&SockRef::from(&socket))?;
            Ok(socket)
        })?;
        socket.connect(to).await
    }

    /// A socket that only receives from `peer`, and does not block.
    pub fn udp(&self, peer: SocketAddr, netns: Netns) -> io::Result<UdpSocket> {
        let any: IpAddr = if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = spaces::within(self.spaces.as_deref(), netns, || {
            let socket = UdpSocket::bind((any, 0))?;
            self.mark(&SockRef::from(&socket))?;
            Ok(socket)
        })?;
        socket.connect(peer)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    fn mark(&self, socket: &SockRef<'_>) -> io::Result<()> {
        let Some(mark) = self.mark else { return Ok(()) };
        socket.set_mark(mark).map_err(|error| {
            let message = format!("the socket cannot be marked ({mark}), which needs CAP_NET_ADMIN: {error}");
            io::Error::new(error.kind(), message)
        })
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dial(mark {:?}, {:?})", self.mark, self.spaces)
    }
}
