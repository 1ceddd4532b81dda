//! TLS, both ways. The only module that imports rustls.

/// A connection on which we are the TLS server.
pub type ServerStream = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
/// A connection on which we are the TLS client.
pub type ClientStream = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;
