//! Making connections to endpoints: TCP, or a tunnel to a member of a mesh; the PROXY protocol header; TLS. All within
//! one timeout.

use crate::{
    Error,
    dial::Dial,
    error::{Kind, Side},
    eyeballs,
    hbone::{Pool, Towards},
    io::Io,
    tls::{
        Alpn, Connector,
        mesh::{self, Guarded, Proof},
    },
};
use selvedge_compile::snapshot::{
    Cluster, Connections, Netns, Peer, ProxyProtocolVersion, UpstreamProtocol, Via, alpn,
};
use selvedge_wire::{proxy_protocol, spiffe::SpiffeId};
use socket2::{SockRef, TcpKeepalive};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

/// In a request's extensions: whose connection it came by, for the PROXY protocol towards the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// In a request's extensions: it must go out on a connection that nothing was sent on before. For the replay of a
/// request that died on a connection from the pool: others there may be as dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreshConnection;

/// In a request's extensions: it must go out over HTTP/1.1, even where the endpoint would rather speak HTTP/2. For
/// handshakes that change the protocol of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http1Only;

/// How connections of a cluster are made; prepared once when it is linked.
#[derive(Debug)]
pub struct Plan {
    pub(crate) protocol: UpstreamProtocol,
    tls: Option<Result<Connector, String>>,
    /// For [`Http1Only`], where `tls` would leave the choice to the endpoint.
    tls_http1: Option<Result<Connector, String>>,
    timeout: Duration,
    keepalive: Option<TcpKeepalive>,
    proxy_protocol: Option<ProxyProtocolVersion>,
    netns: Netns,
    /// As whom members of the mesh are called.
    identity: Option<SpiffeId>,
    dial: Arc<Dial>,
}

/// Where a connection leads.
#[derive(Debug, Clone, Copy)]
pub struct To<'a> {
    pub address: SocketAddr,
    /// Of the other family: the same, for all we know, and tried when the address does not answer soon.
    pub others: &'a [SocketAddr],
    /// Who is there, if a member of the mesh is.
    pub peer: Option<&'a Peer>,
}

impl From<SocketAddr> for To<'_> {
    fn from(address: SocketAddr) -> Self {
        Self { address, others: &[], peer: None }
    }
}

/// A connection as it was made.
pub struct Connected {
    pub io: Io,
    /// HTTP/2 was agreed on (by ALPN, or beforehand).
    pub h2: bool,
    /// When a member of a mesh is at the other end.
    pub proof: Option<Proof>,
}

impl Plan {
    pub fn new(config: &Cluster, dial: Arc<Dial>) -> Self {
        let alpn = match config.protocol {
            UpstreamProtocol::Http1 => Alpn::Http1,
            UpstreamProtocol::Http2 => Alpn::Http2,
            UpstreamProtocol::Auto => Alpn::Both,
            UpstreamProtocol::Raw => Alpn::None,
        };
        // A cluster whose TLS cannot be set up refuses every connection, rather than fall back to plaintext.
        let connector = |alpn| {
            config.tls.as_ref().map(|tls| {
                Connector::new(tls, alpn).map_err(|error| {
                    tracing::error!(cluster = config.key, %error, "TLS to this cluster cannot be set up");
                    error.to_string()
                })
            })
        };
        let tls = connector(alpn);
        let tls_http1 = if alpn == Alpn::Both { connector(Alpn::Http1) } else { None };
        let Connections { connect_timeout, proxy_protocol, .. } = config.connections;
        Self {
            protocol: config.protocol,
            tls,
            tls_http1,
            timeout: connect_timeout,
            keepalive: keepalive(&config.connections),
            proxy_protocol,
            netns: config.netns,
            identity: config.identity.clone(),
            dial,
        }
    }

    /// Whether every client needs connections of its own, since they carry its address.
    pub fn is_per_client(&self) -> bool {
        self.proxy_protocol.is_some()
    }

    /// Whether only a handshake will tell which HTTP the endpoints speak.
    pub fn negotiates(&self) -> bool {
        self.protocol == UpstreamProtocol::Auto && self.tls.is_some()
    }

    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A socket for datagrams, which go out in clear text whoever is there: neither HBONE nor our mutual TLS has any.
    pub(crate) fn udp(&self, address: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
        self.dial.udp(address, self.netns)
    }

    /// Connects within the connect timeout.
    pub async fn connect(&self, to: To<'_>, client: Option<ClientAddress>) -> Result<Connected, Error> {
        self.within(to.address, self.establish(to, client, self.tls.as_ref())).await
    }

    /// The same for [`Http1Only`].
    pub(crate) async fn connect_http1(&self, to: To<'_>, client: Option<ClientAddress>) -> Result<Connected, Error> {
        let tls = self.tls_http1.as_ref().or(self.tls.as_ref());
        self.within(to.address, self.establish(to, client, tls)).await
    }

    /// Whether this machine has a route to an address.
    pub(crate) fn reaches(&self, ip: IpAddr) -> bool {
        // Connecting such a socket sends nothing.
        self.dial.udp(SocketAddr::new(ip, 9), self.netns).is_ok()
    }

    async fn within(
        &self,
        address: SocketAddr,
        connecting: impl Future<Output = Result<Connected, Error>>,
    ) -> Result<Connected, Error> {
        match timeout(self.timeout, connecting).await {
            Ok(result) => result,
            Err(_) => {
                let message = format!("no connection to {address} within {:?}", self.timeout);
                Err(Error::upstream(Kind::ConnectTimeout, message))
            }
        }
    }

    async fn establish(
        &self,
        to: To<'_>,
        client: Option<ClientAddress>,
        tls: Option<&Result<Connector, String>>,
    ) -> Result<Connected, Error> {
        let To { address, others, peer } = to;
        let connector = match tls {
            None => None,
            Some(Ok(connector)) => Some(connector),
            Some(Err(reason)) => return Err(Error::new(Kind::Tls, Side::Us, reason.clone())),
        };
        let mut bytes = match (&self.identity, peer) {
            (Some(own), Some(peer)) => {
                let (io, proof) = self.member(own, address, peer, client).await?;
                Bytes::Member(io, proof)
            }
            _ => Bytes::Tcp(self.tcp(address, others).await?),
        };
        if let Some(version) = self.proxy_protocol {
            let header = proxy_header(version, client)?;
            let written = match &mut bytes {
                Bytes::Tcp(tcp) => tcp.write_all(&header).await,
                Bytes::Member(io, _) => io.write_all(&header).await,
            };
            written.map_err(|error| failed(address, error))?;
        }
        let h2 = self.protocol == UpstreamProtocol::Http2;
        match (connector, bytes) {
            (None, Bytes::Tcp(tcp)) => Ok(Connected { io: tcp.into(), h2, proof: None }),
            (None, Bytes::Member(io, proof)) => Ok(Connected { io, h2, proof: Some(proof) }),
            (Some(connector), Bytes::Tcp(tcp)) => {
                let (stream, negotiated) = connector.connect(tcp).await?;
                Ok(Connected { io: stream.into(), h2: negotiated.h2, proof: None })
            }
            (Some(connector), Bytes::Member(io, proof)) => {
                let (stream, negotiated) = connector.over(io).await?;
                Ok(Connected { io: Io::other(stream), h2: negotiated.h2, proof: Some(proof) })
            }
        }
    }

    async fn tcp(&self, address: SocketAddr, others: &[SocketAddr]) -> Result<TcpStream, Error> {
        let connect = |address| self.dial.tcp(address, self.netns);
        let tcp = eyeballs::race(address, others, connect).await.map_err(|error| failed(address, error))?;
        self.set_options(&tcp).map_err(|error| failed(address, error))?;
        Ok(tcp)
    }

    /// Bytes to an address at which a member of the mesh is.
    async fn member(
        &self,
        own: &SpiffeId,
        target: SocketAddr,
        peer: &Peer,
        client: Option<ClientAddress>,
    ) -> Result<(Io, Proof), Error> {
        match peer.via {
            Via::Hbone(via) => {
                let origin = client.map(|client| client.source.ip());
                let to = Towards { own, peer: &peer.identity, via, netns: self.netns, target, origin };
                Pool::open(&self.dial, &to).await
            }
            Via::MutualTls(address) => {
                let tcp = self.tcp(address, &[]).await?;
                let identities = &self.dial.identities;
                let (stream, proof) = mesh::connect(identities, own, &peer.identity, alpn::MUTUAL_TLS, tcp).await?;
                Ok((Io::other(Guarded::new(stream, proof.clone())), proof))
            }
        }
    }

    fn set_options(&self, tcp: &TcpStream) -> std::io::Result<()> {
        tcp.set_nodelay(true)?;
        if let Some(keepalive) = &self.keepalive {
            SockRef::from(tcp).set_tcp_keepalive(keepalive)?;
        }
        Ok(())
    }
}

/// What a connection consists of before TLS of the application.
enum Bytes {
    Tcp(TcpStream),
    Member(Io, Proof),
}

fn failed(address: SocketAddr, error: std::io::Error) -> Error {
    Error::upstream(Kind::Connect, format!("cannot connect to {address}")).with_source(error)
}

/// Probes by the kernel, which counts in whole seconds and takes no zero.
fn keepalive(options: &Connections) -> Option<TcpKeepalive> {
    let least = |time: Duration| time.max(Duration::from_secs(1));
    (!options.tcp_keepalive.is_zero()).then(|| {
        TcpKeepalive::new()
            .with_time(least(options.tcp_keepalive))
            .with_interval(least(options.tcp_keepalive_interval))
            .with_retries(options.tcp_keepalive_probes.max(1))
    })
}

/// The header says LOCAL (v1: UNKNOWN) for connections of our own, such as health checks.
fn proxy_header(version: ProxyProtocolVersion, client: Option<ClientAddress>) -> Result<Vec<u8>, Error> {
    let addresses = client.map(|client| (client.source, client.destination));
    let mut header = Vec::with_capacity(64);
    match version {
        ProxyProtocolVersion::V1 => proxy_protocol::write_v1(addresses, &mut header),
        ProxyProtocolVersion::V2 => {
            proxy_protocol::write_v2(addresses, &proxy_protocol::Tlvs::default(), &mut header)
                .map_err(|error| Error::new(Kind::Internal, Side::Us, format!("PROXY protocol header: {error}")))?;
        }
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvedge_compile::snapshot::{Discovery, LoadBalancing};
    use tokio::{io::AsyncReadExt, net::TcpListener};

    fn plan(connections: Connections) -> Plan {
        Plan::new(
            &Cluster {
                key: "default/echo:80".to_owned(),
                discovery: Discovery::Static(Vec::new()),
                protocol: UpstreamProtocol::Http1,
                tls: None,
                identity: None,
                netns: Default::default(),
                load_balancing: LoadBalancing::default(),
                connections,
                health_checks: Vec::new(),
                outlier_detection: None,
            },
            Arc::default(),
        )
    }

    #[tokio::test]
    async fn the_kernel_is_told_how_to_probe() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = Connections {
            tcp_keepalive: Duration::from_secs(7),
            tcp_keepalive_interval: Duration::from_millis(10),
            tcp_keepalive_probes: 5,
            ..Connections::default()
        };
        let connected = plan(config).connect(listener.local_addr().unwrap().into(), None).await.unwrap();
        let tcp = SockRef::from(connected.io.tcp().unwrap());
        assert!(tcp.keepalive().unwrap());
        assert_eq!(tcp.tcp_keepalive_time().unwrap(), Duration::from_secs(7));
        assert_eq!(tcp.tcp_keepalive_interval().unwrap(), Duration::from_secs(1));
        assert_eq!(tcp.tcp_keepalive_retries().unwrap(), 5);
    }

    #[tokio::test]
    async fn a_refused_connection_says_where() {
        let address = selvedge_testkit::tcp::closed_port().await;
        let error = plan(Connections::default()).connect(address.into(), None).await.err().unwrap();
        assert_eq!(error.kind, Kind::Connect);
        assert!(error.to_string().starts_with(&format!("cannot connect to {address}: ")), "{error}");
    }

    #[tokio::test]
    async fn the_client_is_announced() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = Connections { proxy_protocol: Some(ProxyProtocolVersion::V1), ..Connections::default() };
        let client =
            ClientAddress { source: "192.0.2.1:5000".parse().unwrap(), destination: "192.0.2.9:443".parse().unwrap() };
        let connected = plan(config).connect(address.into(), Some(client)).await.unwrap();
        assert!(!connected.h2 && connected.io.is_plain_tcp());
        drop(connected);
        let mut received = String::new();
        listener.accept().await.unwrap().0.read_to_string(&mut received).await.unwrap();
        assert_eq!(received, "PROXY TCP4 192.0.2.1 192.0.2.9 5000 443\r\n");
    }
}
