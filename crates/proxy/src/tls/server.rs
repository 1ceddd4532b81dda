//! Being a TLS server: the SNI of the ClientHello picks the listener, then the handshake is done with its
//! configuration, or the bytes are handed on untouched (passthrough).

use super::{
    BUFFER_LIMIT, PeerCertificate, ServerStream, Store,
    config::{Config, Offer},
    tls_error,
};
use crate::{
    Error,
    error::{Kind, Side},
    io::Io,
    telemetry::Limit,
};
use bytes::{Bytes, BytesMut};
use rustls::{CipherSuite, CommonState, HandshakeKind, ProtocolVersion};
use rustls_pki_types::CertificateDer;
use selvedge_compile::{
    router::HostMap,
    snapshot::{TlsListener, TlsMode, alpn},
};
use selvedge_wire::{
    client_hello::{self, ClientHello, HelloError, Sniff},
    spiffe::SpiffeId,
};
use std::{io, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::StartHandshake;

/// Bytes read at once while the ClientHello is not complete: most are shorter. Its limit is
/// [`client_hello::MAX_HELLO`]; later handshake messages are limited to 64 KiB by rustls.
const READ: usize = 2048;

/// The TLS side of one socket, built anew when the socket's listeners change.
pub struct Acceptor {
    hosts: HostMap<Entry>,
}

struct Entry {
    listener: Arc<TlsListener>,
    /// `None` for passthrough.
    config: Option<Result<Arc<Config>, ()>>,
}

/// A TLS connection that may be served.
pub enum Accepted {
    Terminated {
        io: Box<ServerStream>,
        listener: Arc<TlsListener>,
        session: Session,
    },
    /// The bytes from the client, beginning with its ClientHello.
    Passthrough {
        io: Io,
        listener: Arc<TlsListener>,
        sni: Option<String>,
    },
}

/// What a handshake has settled.
#[derive(Debug, Clone)]
pub struct Session {
    /// In canonical form.
    pub sni: Option<String>,
    pub alpn: Option<AppProtocol>,
    pub peer: Option<Arc<PeerCertificate>>,
    /// Proved by mutual TLS between members of a mesh, and by nothing else: other authorities may sign any name.
    pub identity: Option<SpiffeId>,
    pub resumed: bool,
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// IANA name.
    pub cipher: &'static str,
    /// Key exchange group by its IANA name, such as `X25519MLKEM768`; unknown for resumed TLS 1.2 sessions.
    pub group: Option<&'static str>,
}

/// What ALPN has settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppProtocol {
    Http1,
    Http2,
    /// Mutual TLS between members of a mesh, around whatever the application speaks.
    Mesh,
}

impl Acceptor {
    /// Links a socket's listeners with keys and configurations. A listener whose certificate cannot be used refuses
    /// its handshakes (`internal_error`) and is told of in the second value; all others work.
    pub fn new(listeners: &HostMap<Arc<TlsListener>>, store: &Store) -> (Self, Vec<Error>) {
        store.prune();
        let mut problems = Vec::new();
        let hosts = listeners.clone().map(|listener| {
            let made = match &listener.mode {
                TlsMode::Http { tls, http } => {
                    let offer = if http.options.http2_enabled { Offer::Http2AndHttp1 } else { Offer::Http1 };
                    Some(store.config(tls, offer))
                }
                TlsMode::Tcp { tls, .. } => Some(store.config(tls, Offer::Nothing)),
                TlsMode::Passthrough { .. } => None,
            };
            let config = made.map(|made| {
                made.map_err(|message| {
                    let message = format!("listener {} cannot serve TLS: {message}", listener.name);
                    problems.push(Error::new(Kind::Tls, Side::Us, message));
                })
            });
            Entry { listener, config }
        });
        (Self { hosts }, problems)
    }

    /// Does the handshake on an accepted connection, of which `read` was already read.
    ///
    /// The most specific listener for the SNI is used; without SNI, the listener without hostname. When there is none,
    /// the client is told `unrecognized_name` (RFC 6066 section 3): to answer with some certificate would only serve
    /// scanners, and would let a client reach a listener whose name it did not ask for.
    pub async fn accept(&self, tcp: TcpStream, read: Bytes, deadline: Instant) -> Result<Accepted, Error> {
        match tokio::time::timeout_at(deadline, self.handshake(tcp, read)).await {
            Ok(result) => result,
            Err(_) => {
                let message = "the TLS handshake took longer than the handshake timeout";
                Err(Error::downstream(Kind::Timeout, message).over(Limit::HandshakeTimeout))
            }
        }
    }

    async fn handshake(&self, mut tcp: TcpStream, read: Bytes) -> Result<Accepted, Error> {
        let mut raw = BytesMut::from(read.as_ref());
        let sni = read_hello(&mut tcp, &mut raw).await?.server_name;
        let entry = match &sni {
            Some(name) => self.hosts.find(name),
            None => self.hosts.get_pattern(None),
        };
        let Some(entry) = entry else {
            alert(&mut tcp, Alert::UnrecognizedName).await;
            let message = match &sni {
                Some(name) => format!("no listener for the server name {name} (SNI)"),
                None => "the client sent no server name (SNI) and every listener has a hostname".to_owned(),
            };
            return Err(Error::downstream(Kind::Tls, message));
        };
        let listener = entry.listener.clone();
        match &entry.config {
            None => {
                let mut io = Io::from(tcp);
                io.unread(raw.freeze());
                Ok(Accepted::Passthrough { io, listener, sni })
            }
            Some(Err(())) => {
                alert(&mut tcp, Alert::InternalError).await;
                let message = format!("listener {} has no usable certificate", listener.name);
                Err(Error::new(Kind::Tls, Side::Us, message))
            }
            Some(Ok(config)) => {
                let hello = start(&mut tcp, &raw).await?;
                drop(raw);
                let (io, session) = terminate(tcp, hello, config, sni).await?;
                Ok(Accepted::Terminated { io: Box::new(io), listener, session })
            }
        }
    }
}

/// Reads until the ClientHello is complete; `raw` then holds it and whatever came behind it. Our own parser reads it
/// and not rustls, so that hellos of clients that rustls would refuse can be passed through.
pub(super) async fn read_hello(tcp: &mut TcpStream, raw: &mut BytesMut) -> Result<ClientHello, Error> {
    loop {
        match client_hello::sniff(raw) {
            Ok(Sniff::Done(hello)) => return Ok(hello),
            Ok(Sniff::Incomplete) => {}
            Ok(Sniff::NotTls) => {
                alert(tcp, Alert::UnexpectedMessage).await;
                let what = if is_http(raw) { "plain HTTP" } else { "another protocol" };
                return Err(Error::downstream(Kind::Tls, format!("the client spoke {what} to a TLS listener")));
            }
            Err(error) => {
                if error == HelloError::TooLong {
                    Limit::InspectedBytes.hit();
                }
                let kind = if error == HelloError::ServerName { Alert::UnrecognizedName } else { Alert::DecodeError };
                alert(tcp, kind).await;
                return Err(Error::downstream(Kind::Tls, error.to_string()));
            }
        }
        raw.reserve(READ);
        match tcp.read_buf(raw).await {
            Ok(0) if raw.is_empty() => {
                return Err(Error::downstream(Kind::Reset, "the client closed the connection before a TLS handshake"));
            }
            Ok(0) => return Err(Error::downstream(Kind::Reset, "the client closed the connection in its ClientHello")),
            Ok(_) => {}
            Err(e) => return Err(Error::downstream(Kind::Reset, "reading the ClientHello").with_source(e)),
        }
    }
}

/// Gives the ClientHello, and what came behind it, to rustls.
pub(super) async fn start(tcp: &mut TcpStream, raw: &[u8]) -> Result<rustls::server::Accepted, Error> {
    let mut parser = rustls::server::Acceptor::default();
    feed(&mut parser, raw)?;
    match parser.accept() {
        Ok(Some(accepted)) => Ok(accepted),
        Ok(None) => {
            alert(tcp, Alert::DecodeError).await;
            Err(Error::downstream(Kind::Tls, "the ClientHello is cut in a way that is not understood"))
        }
        Err((error, bytes)) => Err(refuse(tcp, error, bytes).await),
    }
}

fn feed(parser: &mut rustls::server::Acceptor, mut bytes: &[u8]) -> Result<(), Error> {
    while !bytes.is_empty() {
        let read = parser.read_tls(&mut bytes);
        match read {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) => return Err(Error::downstream(Kind::Tls, "the ClientHello is too long").with_source(e)),
        }
    }
    Ok(())
}

async fn terminate(
    tcp: TcpStream,
    accepted: rustls::server::Accepted,
    config: &Config,
    sni: Option<String>,
) -> Result<(ServerStream, Session), Error> {
    let handshake = StartHandshake::from_parts(accepted, tcp)
        .into_stream_with(config.server.clone(), |session| session.set_buffer_limit(Some(BUFFER_LIMIT)));
    let io = handshake.await.map_err(handshake_error)?;
    let session = io.get_ref().1;
    let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
    let peer = peer(config, session.peer_certificates(), resumed)?;
    let session = describe(session, sni, resumed, peer);
    Ok((io, session))
}

/// The client's certificate, judged. A resumed session brings its certificate from the first handshake, so it is
/// judged again: it may have expired since.
fn peer(
    config: &Config,
    chain: Option<&[CertificateDer<'static>]>,
    resumed: bool,
) -> Result<Option<Arc<PeerCertificate>>, Error> {
    let Some(auth) = &config.auth else { return Ok(None) };
    let chain = chain.unwrap_or_default();
    let verified = if auth.is_fallback() || resumed { auth.verify(chain) } else { Ok(()) };
    match verified {
        Err(error) if !auth.is_fallback() => {
            Err(Error::downstream(Kind::Tls, "the client certificate of a resumed session").with_source(error))
        }
        verified => Ok(PeerCertificate::new(chain, verified.is_ok()).map(Arc::new)),
    }
}

pub(super) fn describe(
    common: &CommonState,
    sni: Option<String>,
    resumed: bool,
    peer: Option<Arc<PeerCertificate>>,
) -> Session {
    Session {
        sni,
        alpn: match common.alpn_protocol() {
            Some(b"h2") => Some(AppProtocol::Http2),
            Some(b"http/1.1") => Some(AppProtocol::Http1),
            Some(alpn::MUTUAL_TLS) => Some(AppProtocol::Mesh),
            _ => None,
        },
        peer,
        identity: None,
        resumed,
        version: match common.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "unknown",
        },
        cipher: common.negotiated_cipher_suite().map_or("unknown", |suite| cipher_name(suite.suite())),
        group: common.negotiated_key_exchange_group().and_then(|g| g.name().as_str()),
    }
}

/// The name at IANA; rustls has one of its own for those of TLS 1.3.
fn cipher_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or("unknown"),
    }
}

pub(super) fn handshake_error(error: io::Error) -> Error {
    let (kind, message) = match tls_error(&error) {
        Some(rustls::Error::NoCertificatesPresented) => (Kind::Tls, "the client sent no certificate"),
        Some(rustls::Error::InvalidCertificate(_)) => (Kind::Tls, "the client's certificate is not accepted"),
        Some(rustls::Error::AlertReceived(_)) => (Kind::Tls, "the client ended the TLS handshake"),
        Some(_) => (Kind::Tls, "the TLS handshake failed"),
        None => (Kind::Reset, "the client closed the connection in the TLS handshake"),
    };
    Error::downstream(kind, message).with_source(error)
}

/// Sends the alert for a ClientHello that is not accepted.
async fn refuse(tcp: &mut TcpStream, error: rustls::Error, mut alert: rustls::server::AcceptedAlert) -> Error {
    let mut bytes = Vec::new();
    if alert.write_all(&mut bytes).is_ok() {
        // The connection ends either way.
        let _ = tcp.write_all(&bytes).await;
    }
    Error::downstream(Kind::Tls, "the ClientHello is not acceptable").with_source(error)
}

fn is_http(raw: &[u8]) -> bool {
    raw.iter().take_while(|b| b.is_ascii_uppercase()).count() >= 3
}

/// Fatal alerts that are sent before there is a session.
#[derive(Clone, Copy)]
enum Alert {
    UnexpectedMessage = 10,
    DecodeError = 50,
    InternalError = 80,
    UnrecognizedName = 112,
}

async fn alert(tcp: &mut TcpStream, alert: Alert) {
    // Record type alert, version TLS 1.2 as all records carry, length 2, level fatal. The connection ends either way.
    let _ = tcp.write_all(&[21, 3, 3, 0, 2, 2, alert as u8]).await;
}
