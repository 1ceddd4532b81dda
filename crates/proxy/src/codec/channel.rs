//! gRPC channels (tonic) by TLS of our own: same cipher suites, same judgement of certificates, same words about them as
//! towards backends.

use crate::tls::{ClientStream, Connector};
use hyper_util::rt::TokioIo;
use std::{
    future::Future,
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::TcpStream;
use tonic::{
    codegen::{Service, http::Uri},
    transport::{Channel, Endpoint},
};

/// A channel to `http://HOST:PORT`, or by TLS to `https://HOST:PORT`. It connects when it is used, and again when its
/// connection has ended. `timeout` is for connecting, handshake included. `ca` is a PEM file of the CAs trusted, read
/// for each connection; without it they are the system's.
pub(crate) fn lazy(url: &str, timeout: Duration, ca: Option<Arc<Path>>) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| format!("it is no URL: {error}"))?;
    let uri = endpoint.uri().clone();
    match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(_)) => Ok(endpoint.connect_timeout(timeout).connect_lazy()),
        (Some("https"), Some(_)) => {
            // tonic refuses a scheme that asks for TLS of its own; requests still say https.
            let clear = url.replacen("https://", "http://", 1);
            let endpoint = Endpoint::from_shared(clear).map_err(|error| format!("it is no URL: {error}"))?;
            let endpoint = endpoint.origin(uri).connect_timeout(timeout);
            Ok(endpoint.connect_with_connector_lazy(Secure { ca }))
        }
        _ => Err("it must begin with http:// or https:// and a host".to_owned()),
    }
}

struct Secure {
    ca: Option<Arc<Path>>,
}

impl Service<Uri> for Secure {
    type Response = TokioIo<ClientStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let ca = self.ca.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
            let connector = Connector::to(host, ca.as_deref()).map_err(io::Error::other)?;
            let tcp = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
            tcp.set_nodelay(true)?;
            let (stream, _) = connector.connect(tcp).await.map_err(io::Error::other)?;
            Ok(TokioIo::new(stream))
        })
    }
}
