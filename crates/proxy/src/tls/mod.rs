//! TLS, both ways. The only module that imports rustls.

pub mod client;
mod client_auth;
mod config;
pub mod mesh;
mod peer;
pub mod server;
#[cfg(test)]
pub(crate) mod tests;

pub use client::{Alpn, Connector, Negotiated};
pub use config::Store;
pub use peer::PeerCertificate;
pub use server::{Accepted, Acceptor, AppProtocol, Session};

use rustls::crypto::CryptoProvider;
use std::{
    io,
    sync::{Arc, OnceLock},
};

/// A connection on which we are the TLS server.
pub type ServerStream = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
/// A connection on which we are the TLS client.
pub type ClientStream = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

/// Plaintext and records a session holds for a peer that does not read, in bytes each: two full records, so that a
/// large write still makes full records while a stalled peer costs little.
const BUFFER_LIMIT: usize = 32 * 1024;

/// aws-lc-rs with X25519MLKEM768 as the first key exchange group, then X25519, P-256 and P-384.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())).clone()
}

/// The TLS error inside what a stream's handshake, read or write gave back.
fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Whether the error says that the peer closed the connection without `close_notify`: common, and for a tunnel the
/// same as a close.
pub fn is_unclean_close(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}
