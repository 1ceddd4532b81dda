//! Mutual TLS between members of a mesh: both sides prove an identity, and nothing else is asked of a certificate.

use super::{
    BUFFER_LIMIT, ClientStream, PeerCertificate, ServerStream,
    server::{Session, describe, handshake_error, read_hello, start},
};
use crate::{
    Error,
    error::{Kind, Side},
};
use bytes::{Bytes, BytesMut};
use rustls::HandshakeKind;
use rustls_pki_types::{ServerName, UnixTime};
use selvedge_identity::{Expect, Identities, Peer, Refused, Role, Svid, refused};
use selvedge_wire::spiffe::SpiffeId;
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{StartHandshake, TlsConnector};

/// A member that came to us.
pub struct Member {
    pub io: Box<ServerStream>,
    /// Who it is, proved.
    pub peer: Arc<Peer>,
    /// `session.alpn` is the protocol that was agreed on.
    pub session: Session,
}

/// Does the handshake on an accepted connection, of which `read` was already read, as `own`. Members of every trust
/// domain that is known are let in: who may do what is for others to decide.
///
/// `alpn` are the protocols served here (see `compile::snapshot::alpn`); the client must ask for one of them.
pub async fn accept(
    identities: &Identities,
    own: &SpiffeId,
    alpn: &[&[u8]],
    (tcp, read): (TcpStream, Bytes),
    deadline: Instant,
) -> Result<Member, Error> {
    match timeout_at(deadline, accepting(identities, own, alpn, tcp, read)).await {
        Ok(result) => result,
        Err(_) => Err(Error::downstream(Kind::Timeout, "the TLS handshake took longer than the handshake timeout")),
    }
}

async fn accepting(
    identities: &Identities,
    own: &SpiffeId,
    alpn: &[&[u8]],
    mut tcp: TcpStream,
    read: Bytes,
) -> Result<Member, Error> {
    let mut raw = BytesMut::from(read.as_ref());
    let sni = read_hello(&mut tcp, &mut raw).await?.server_name;
    let config = identities
        .server_config(own, alpn)
        .map_err(|error| Error::new(Kind::Tls, Side::Us, "mutual TLS cannot be served").with_source(error))?;
    let hello = start(&mut tcp, &raw).await?;
    drop(raw);
    let handshake = StartHandshake::from_parts(hello, tcp)
        .into_stream_with(config, |session| session.set_buffer_limit(Some(BUFFER_LIMIT)));
    let io = handshake.await.map_err(|error| match refused(&error) {
        Some(reason) => Error::downstream(Kind::Tls, format!("a peer's identity is not accepted: {reason}")),
        None => handshake_error(error),
    })?;
    let session = io.get_ref().1;
    if session.alpn_protocol().is_none() {
        let message = "the client named no protocol of a mesh (ALPN) in its TLS handshake";
        return Err(Error::downstream(Kind::Tls, message));
    }
    // A resumed session brings its chain from an earlier handshake: it may have expired since.
    let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
    let chain = session.peer_certificates().unwrap_or_default();
    let peer = identities
        .judge(chain, &Expect::Known, Role::Client, UnixTime::now())
        .map_err(|reason| Error::downstream(Kind::Tls, format!("a peer's identity is not accepted: {reason}")))?;
    let certificate = PeerCertificate::new(chain, true).map(Arc::new);
    let session = Session { identity: Some(peer.id.clone()), ..describe(session, sni, resumed, certificate) };
    Ok(Member { io: Box::new(io), peer: Arc::new(peer), session })
}

/// What a connection to a member was made with.
#[derive(Debug, Clone)]
pub struct Proof {
    pub peer: Arc<Peer>,
    identities: Arc<Identities>,
    /// Ours.
    svid: Option<Arc<Svid>>,
}

impl Proof {
    /// Whether a connection made now would be made with the same: our certificate is the newest, and the peer's has not
    /// ended. Otherwise the connection should take nothing new, so that none lives on by what is out of date, and a
    /// root that goes after its certificates finds nobody.
    pub fn is_current(&self) -> bool {
        let Some(svid) = &self.svid else { return false };
        self.identities.get(svid.id()).is_some_and(|newest| Arc::ptr_eq(&newest, svid))
            // Certificates end with their last second.
            && self.peer.not_after() + Duration::from_secs(1) > SystemTime::now()
    }

    /// Resolves when the peer is accepted no more.
    pub async fn until_refused(&self) -> Refused {
        self.identities.until_refused(&self.peer).await
    }
}

/// Seconds between two warnings that we have no certificate to show.
const WARN_EVERY: u64 = 60;

/// We cannot show who we are, which is the fault of neither side.
fn own_trouble(own: &SpiffeId, what: &str) -> Error {
    static WARNED: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let last = WARNED.load(Relaxed);
    if now.saturating_sub(last) >= WARN_EVERY && WARNED.compare_exchange(last, now, Relaxed, Relaxed).is_ok() {
        tracing::warn!(
            identity = %own, error = what,
            "requests fail since our own certificate cannot be used: look at the connection to the control plane"
        );
    }
    Error::new(Kind::Tls, Side::Us, format!("our own certificate for {own} cannot be used: {what}"))
}

/// Does the handshake as the client `own`; the server must prove to be exactly `expected`, and speak `alpn`. The caller
/// holds the timer.
pub async fn connect(
    identities: &Arc<Identities>,
    own: &SpiffeId,
    expected: &SpiffeId,
    alpn: &[u8],
    tcp: TcpStream,
) -> Result<(ClientStream, Proof), Error> {
    let failed = |what: String| Error::upstream(Kind::Tls, format!("mutual TLS with {expected}: {what}"));
    let expect = Expect::Exactly(expected.clone());
    let svid = identities.get(own);
    let config =
        identities.client_config(own, &expect, &[alpn]).map_err(|error| own_trouble(own, &error.to_string()))?;
    let address = tcp.peer_addr().map_err(|e| Error::upstream(Kind::Reset, "the connection broke").with_source(e))?;
    let name = ServerName::IpAddress(address.ip().into());
    let stream = TlsConnector::from(config)
        .connect_with(name, tcp, |session| session.set_buffer_limit(Some(BUFFER_LIMIT)))
        .await
        .map_err(|error| client_error(&failed, error))?;
    let session = stream.get_ref().1;
    if session.alpn_protocol() != Some(alpn) {
        return Err(failed(format!("it does not speak {} (ALPN)", String::from_utf8_lossy(alpn))));
    }
    let chain = session.peer_certificates().unwrap_or_default();
    let peer =
        identities.judge(chain, &expect, Role::Server, UnixTime::now()).map_err(|reason| failed(reason.to_string()))?;
    Ok((stream, Proof { peer: Arc::new(peer), identities: identities.clone(), svid }))
}

fn client_error(failed: &impl Fn(String) -> Error, error: io::Error) -> Error {
    if let Some(reason) = refused(&error) {
        return failed(reason.to_string());
    }
    match super::tls_error(&error) {
        Some(rustls::Error::AlertReceived(_)) => failed("it refused the handshake".to_owned()).with_source(error),
        Some(_) => failed("the handshake failed".to_owned()).with_source(error),
        None => {
            let message = failed("the connection broke in the handshake".to_owned()).message;
            Error::upstream(Kind::Reset, message).with_source(error)
        }
    }
}

/// A connection to a member that breaks when the member is no longer accepted.
pub struct Guarded {
    stream: ClientStream,
    refused: Pin<Box<dyn Future<Output = Refused> + Send>>,
}

impl Guarded {
    pub fn new(stream: ClientStream, proof: Proof) -> Self {
        Self { stream, refused: Box::pin(async move { proof.until_refused().await }) }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.refused.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(reason) => {
                // For whoever asks again: a future that is done must not be polled.
                self.refused = Box::pin(std::future::ready(reason.clone()));
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, reason))
            }
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Does `work` for as long as the peer's identity is accepted. When it is revoked, or its root is gone, `work` is
/// dropped, and with it the connection.
pub async fn while_accepted<T>(
    identities: &Identities,
    peer: &Peer,
    side: Side,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::select! {
        biased;
        reason = identities.until_refused(peer) => {
            tracing::info!(peer = %peer.id, %reason, "a connection is ended, as its peer is no longer accepted");
            Err(Error::new(Kind::Tls, side, format!("the peer is no longer accepted: {reason}")))
        }
        result = work => result,
    }
}
