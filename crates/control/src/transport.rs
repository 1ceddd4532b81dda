//! Connections between control planes and proxies: HTTP/2 over mutual TLS, or in clear text where nothing is proven.

use futures_util::Stream;
use hyper_util::rt::TokioIo;
use selvedge_identity::{Expect, Identities, Peer, Role, refused};
use selvedge_wire::spiffe::SpiffeId;
use socket2::SockRef;
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Sleep,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, rustls};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Endpoint, server::Connected};

use crate::source::stream::{Dial, Dialed};

/// A client that has not finished its handshake by then is cut.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at the same time; more wait in the backlog. A restart with thousands of proxies must not cost the memory of
/// thousands of handshakes at once.
const HANDSHAKES: usize = 128;
/// Connections that have not yet said a word; they do not take the place of a handshake.
const SILENT: usize = 4_096;
/// Connections of clients without a certificate, which may only join: so many at the same time, and each for so long.
const NOBODIES: usize = 1_024;
const NOBODY: Duration = Duration::from_secs(60);
/// What HTTP/2 begins with (RFC 9113 section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of the headers of one call, as RFC 9113 section 6.5.2 counts them; ours need some hundred.
const HEADERS: u32 = 8 * 1024;
/// Calls of one connection at the same time. A proxy has a stream, and a call or two for its certificates.
const CALLS: u32 = 128;
/// A proxy that has just started is given so long to get its first certificate before it says that it has none.
const CERTIFICATE: Duration = Duration::from_secs(3);
/// Both sides ask whether the other is still there, after this much silence.
const ALIVE: Duration = Duration::from_secs(5);

/// Who is at the other end of a connection; an extension of its requests.
#[derive(Clone, Default)]
pub struct PeerInfo {
    pub address: Option<SocketAddr>,
    /// The listener speaks mutual TLS: who has shown no certificate is nobody. Otherwise nobody can prove anything.
    pub proves: bool,
    pub peer: Option<Peer>,
    /// What it has shown instead, leaf first: a certificate of a CA whose certificates are good for joining and nothing
    /// else. The handshake has proved that it has the key.
    pub joins_with: Option<Chain>,
    identities: Option<Arc<Identities>>,
}

impl PeerInfo {
    pub fn identity(&self) -> Option<SpiffeId> {
        self.peer.as_ref().map(|peer| peer.id.clone())
    }

    /// Resolves when its certificate is accepted no more.
    pub async fn until_refused(&self) -> String {
        match (&self.peer, &self.identities) {
            (Some(peer), Some(identities)) => identities.until_refused(peer).await.to_string(),
            _ => std::future::pending().await,
        }
    }
}

/// How a listener proves who it is, and demands the same.
#[derive(Clone)]
pub struct Mutual {
    pub identities: Arc<Identities>,
    pub own: SpiffeId,
    /// Who has no certificate is let in, to ask for one.
    pub joining: bool,
}

/// Accepts connections for a gRPC server. Without `mutual`, in clear text.
pub fn accept(listener: TcpListener, mutual: Option<Mutual>) -> impl Stream<Item = io::Result<Link>> {
    let (accepted, links) = mpsc::channel(HANDSHAKES);
    let (silent, nobodies) = (Arc::new(Semaphore::new(SILENT)), Arc::new(Semaphore::new(NOBODIES)));
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    tokio::spawn(async move {
        loop {
            let Ok(waits) = silent.clone().acquire_owned().await else { return };
            let connection = tokio::select! {
                connection = listener.accept() => connection,
                () = accepted.closed() => return,
            };
            let (stream, address) = match connection {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    // Most likely out of file descriptors: trying at once again would only spin.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (accepted, mutual, places, nobodies) =
                (accepted.clone(), mutual.clone(), places.clone(), nobodies.clone());
            tokio::spawn(async move {
                if !matches!(tokio::time::timeout(HANDSHAKE, stream.readable()).await, Ok(Ok(()))) {
                    return;
                }
                let Ok(place) = places.acquire_owned().await else { return };
                drop(waits);
                match tokio::time::timeout(HANDSHAKE, Link::server(stream, address, mutual, nobodies)).await {
                    Ok(Ok(link)) => _ = accepted.send(Ok(link)).await,
                    Ok(Err(error)) => {
                        let error = refused(&error).map_or_else(|| error.to_string(), ToString::to_string);
                        tracing::info!(%address, %error, "a handshake has failed");
                    }
                    Err(_) => tracing::info!(%address, "a handshake took too long"),
                }
                drop(place);
            });
        }
    });
    ReceiverStream::new(links)
}

/// One connection, at the server.
pub struct Link {
    io: Io,
    info: PeerInfo,
    /// Bytes of the preface that are yet to be read (again).
    preface: usize,
    nobody: Option<Nobody>,
}

/// A client without a certificate, until it is cut.
struct Nobody {
    until: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

/// Its bytes, at either end.
pub enum Io {
    Clear(TcpStream),
    Tls(Box<tokio_rustls::TlsStream<TcpStream>>),
}

impl Link {
    async fn server(
        stream: TcpStream,
        address: SocketAddr,
        mutual: Option<Mutual>,
        nobodies: Arc<Semaphore>,
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let Some(mutual) = mutual else {
            let info = PeerInfo { address: Some(address), ..PeerInfo::default() };
            return Self::begun(Io::Clear(stream), info, None).await;
        };
        let config = match mutual.joining {
            true => mutual.identities.open_server_config(&mutual.own, &[b"h2"]),
            false => mutual.identities.server_config(&mutual.own, &[b"h2"]),
        };
        let config = config.map_err(io::Error::other)?;
        let tls = TlsAcceptor::from(config).accept(stream).await?;
        let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let (peer, joins_with) = if chain.is_empty() { (None, None) } else { shown(&mutual, chain)? };
        let info =
            PeerInfo { address: Some(address), proves: true, peer, joins_with, identities: Some(mutual.identities) };
        let nobody = match info.peer {
            Some(_) => None,
            None => {
                let full =
                    |_| io::Error::other(format!("{NOBODIES} clients without a certificate are connected already"));
                let _place = nobodies.try_acquire_owned().map_err(full)?;
                Some(Nobody { until: Box::pin(tokio::time::sleep(NOBODY)), _place })
            }
        };
        Self::begun(Io::Tls(Box::new(tls.into())), info, nobody).await
    }

    /// Once HTTP/2 has begun: the server below waits for that without a limit.
    async fn begun(mut io: Io, info: PeerInfo, nobody: Option<Nobody>) -> io::Result<Self> {
        let mut preface = [0; PREFACE.len()];
        io.read_exact(&mut preface).await?;
        match preface == *PREFACE {
            true => Ok(Self { io, info, preface: PREFACE.len(), nobody }),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak HTTP/2")),
        }
    }
}

impl Connected for Link {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for Link {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(nobody) = &mut self.nobody
            && nobody.until.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "a client without a certificate stays too long",
            )));
        }
        if self.preface > 0 {
            let rest = &PREFACE[PREFACE.len() - self.preface..];
            let now = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..now]);
            self.preface -= now;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Clear(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Clear(io) => Pin::new(io).poll_write(cx, bytes),
            Self::Tls(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Clear(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Clear(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

type Chain = Arc<[rustls::pki_types::CertificateDer<'static>]>;

/// Who has shown this chain: a member, or a node that joins with a certificate of another CA.
fn shown(
    mutual: &Mutual,
    chain: &[rustls::pki_types::CertificateDer<'static>],
) -> io::Result<(Option<Peer>, Option<Chain>)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = rustls::pki_types::UnixTime::since_unix_epoch(now);
    let why = match mutual.identities.judge(chain, &Expect::Known, Role::Client, now) {
        Ok(peer) if peer.id.trust_domain() == mutual.own.trust_domain() => return Ok((Some(peer), None)),
        // Domains that ours trusts may call its workloads, but have no part in how it is run.
        Ok(peer) => io::Error::other(format!("{} is of another trust domain", peer.id)),
        Err(refused) => io::Error::other(refused),
    };
    match mutual.joining && mutual.identities.judge_join(chain, now).is_ok() {
        true => Ok((None, Some(chain.into()))),
        false => Err(why),
    }
}

/// A gRPC server with the keepalive and the limits that control planes use. Sizes of messages are limits of each service.
pub fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(ALIVE))
        .http2_keepalive_timeout(Some(ALIVE))
        .max_concurrent_streams(Some(CALLS))
        .http2_max_header_list_size(HEADERS)
        .tcp_nodelay(true)
}

/// Reaches control planes: `https://` by mutual TLS, `http://` in clear text.
pub struct Dialer {
    /// Who we are, and whom we trust.
    pub identities: Arc<Identities>,
    pub own: Option<SpiffeId>,
    pub expect: Expect,
}

impl Dial for Dialer {
    fn dial(&self, url: &str) -> Dialed {
        let (identities, own, expect) = (self.identities.clone(), self.own.clone(), self.expect.clone());
        let url = url.to_owned();
        Box::pin(async move {
            let secure = url.starts_with("https://");
            if let (true, Some(own)) = (secure, &own) {
                // What is wrong without one, the handshake tells.
                let _ = tokio::time::timeout(CERTIFICATE, certified(&identities, own)).await;
            }
            // TLS is ours, so that the scheme for tonic is always that of clear text.
            let clear = url.replacen("https://", "http://", 1);
            let endpoint = Endpoint::from_shared(clear).map_err(|e| format!("`{url}` is no URL: {e}"))?;
            let endpoint = endpoint
                .http2_keep_alive_interval(ALIVE)
                .keep_alive_timeout(ALIVE)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(1024 * 1024)
                .initial_connection_window_size(1024 * 1024);
            let connector = Connector { secure, identities, own, expect };
            endpoint.connect_with_connector(connector).await.map_err(|e| causes(&e))
        })
    }
}

/// SO_MARK of connections to control planes; 0 is none.
static MARK: AtomicU32 = AtomicU32::new(0);

/// Marks connections of this process to control planes from now on, so that whoever redirects connections of the machine
/// leaves them alone. Needs CAP_NET_ADMIN.
pub fn mark(mark: Option<u32>) {
    MARK.store(mark.unwrap_or(0), Relaxed);
}

/// Connects to the first address of a host that answers.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mark = MARK.load(Relaxed);
    if mark == 0 {
        return TcpStream::connect((host, port)).await;
    }
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for address in tokio::net::lookup_host((host, port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        SockRef::from(&socket).set_mark(mark)?;
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Resolves when there is a certificate to show.
async fn certified(identities: &Identities, own: &SpiffeId) {
    let mut changed = identities.changed();
    while identities.get(own).is_none() && changed.changed().await.is_ok() {}
}

/// The innermost causes of an error say what is wrong.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
        next = cause.source();
    }
    texts.join(": ")
}

/// What a peer said of a call that failed, or what became of the connection.
pub(crate) fn told(status: &tonic::Status) -> String {
    match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    }
}

struct Connector {
    secure: bool,
    identities: Arc<Identities>,
    own: Option<SpiffeId>,
    expect: Expect,
}

impl tonic::codegen::Service<http::Uri> for Connector {
    type Response = TokioIo<Io>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Io>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        let config = match (self.secure, &self.own) {
            (false, _) => Ok(None),
            (true, Some(own)) => {
                self.identities.client_config(own, &self.expect, &[b"h2"]).map(Some).map_err(io::Error::other)
            }
            (true, None) => Err(io::Error::other("no identity yet to show to the control plane")),
        };
        Box::pin(async move {
            let config = config?;
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let port = uri.port_u16().unwrap_or(if config.is_some() { 443 } else { 80 });
            let stream = connect(&host, port).await?;
            stream.set_nodelay(true)?;
            let Some(config) = config else { return Ok(TokioIo::new(Io::Clear(stream))) };
            let name = rustls::pki_types::ServerName::try_from(host).map_err(io::Error::other)?;
            let tls = TlsConnector::from(config).connect(name, stream).await?;
            Ok(TokioIo::new(Io::Tls(Box::new(tls.into()))))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use tokio::io::AsyncWriteExt;

    async fn client(to: SocketAddr, says: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(says).await.unwrap();
        stream
    }

    #[tokio::test]
    async fn who_does_not_begin_is_cut_and_takes_no_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut links = Box::pin(accept(listener, None));
        let mut silent = Vec::new();
        for _ in 0..HANDSHAKES + 10 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut wrong = client(address, b"GET / HTTP/1.1\r\nhost: control\r\n\r\n").await;
        assert_eq!(wrong.read(&mut [0; 9]).await.unwrap_or(0), 0, "cut");
        let good = client(address, PREFACE).await;
        let mut link = links.next().await.unwrap().unwrap();
        let mut read = [0; PREFACE.len()];
        link.read_exact(&mut read).await.unwrap();
        assert_eq!(read, *PREFACE);
        drop(good);
    }

    #[tokio::test]
    async fn a_client_without_a_certificate_does_not_stay() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = client(listener.local_addr().unwrap(), PREFACE).await;
        let (io, _) = listener.accept().await.unwrap();
        let place = Arc::new(Semaphore::new(1));
        let nobody =
            Nobody { until: Box::pin(tokio::time::sleep(NOBODY)), _place: place.clone().try_acquire_owned().unwrap() };
        let mut link = Link::begun(Io::Clear(io), PeerInfo::default(), Some(nobody)).await.unwrap();
        link.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
        client.write_all(b"x").await.unwrap();
        link.read_exact(&mut [0]).await.unwrap();
        // Nothing is under way any more: time passes as soon as nobody has anything to do.
        tokio::time::pause();
        let error = link.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(link);
        assert_eq!(place.available_permits(), 1);
    }
}
