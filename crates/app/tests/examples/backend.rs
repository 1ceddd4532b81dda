//! Backends of the examples: they say which one they are and what they were asked.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{
    convert::Infallible,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::mpsc::UnboundedSender,
};
use tokio_rustls::TlsAcceptor;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http,
    /// HTTP over TLS, with `backend.pem` of the example.
    Https,
    /// Each connection begins with a PROXY protocol line.
    HttpAfterProxyLine,
    Grpc,
    WebSocket,
    Tcp,
    Udp,
}

/// What a backend has in hand for its connections.
#[derive(Clone)]
struct Backend {
    /// The port in the example, as a name.
    id: u16,
    requests: Arc<AtomicU32>,
    seen: UnboundedSender<String>,
}

/// Starts a backend that lives as long as the runtime, and returns its port. `seen` gets a line for each request.
pub async fn start(protocol: Protocol, id: u16, folder: &Path, seen: UnboundedSender<String>) -> u16 {
    let backend = Backend { id, requests: Arc::default(), seen };
    if protocol == Protocol::Udp {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let port = socket.local_addr().expect("an address").port();
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
                let answer = [format!("backend {id}: ").as_bytes(), &buffer[..n]].concat();
                let _ = socket.send_to(&answer, from).await;
            }
        });
        return port;
    }
    let tls = (protocol == Protocol::Https).then(|| acceptor(folder));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(backend.clone().connection(protocol, stream, tls.clone()));
        }
    });
    port
}

fn acceptor(folder: &Path) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(folder.join("backend.pem")).expect("a file");
    let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(folder.join("backend.key")).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate and its key");
    TlsAcceptor::from(Arc::new(config))
}

impl Backend {
    async fn connection(self, protocol: Protocol, mut stream: TcpStream, tls: Option<TlsAcceptor>) {
        match protocol {
            Protocol::Http | Protocol::Udp => self.http(stream, String::new()).await,
            Protocol::Https => {
                let Some(tls) = tls else { return };
                let Ok(stream) = tls.accept(stream).await else { return };
                self.http(stream, String::new()).await;
            }
            Protocol::HttpAfterProxyLine => {
                let mut line = Vec::new();
                while !line.ends_with(b"\n") && line.len() < 108 {
                    match stream.read_u8().await {
                        Ok(byte) => line.push(byte),
                        Err(_) => return,
                    }
                }
                self.http(stream, String::from_utf8_lossy(&line).into_owned()).await;
            }
            Protocol::Grpc => {
                let service = service_fn(move |request| grpc(self.id, request));
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
            Protocol::WebSocket => self.web_socket(stream).await,
            Protocol::Tcp => {
                let (mut read, mut write) = stream.split();
                let greeting = format!("backend {}: ", self.id);
                if tokio::io::AsyncWriteExt::write_all(&mut write, greeting.as_bytes()).await.is_ok() {
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                }
            }
        }
    }

    async fn http(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, first_line: String) {
        let service = service_fn(move |request| {
            let (backend, first_line) = (self.clone(), first_line.clone());
            async move { backend.answer(request, &first_line).await }
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(self, request: Request<Incoming>, first_line: &str) -> Result<Response<Full<Bytes>>, Infallible> {
        let path = request.uri().path().to_owned();
        let mut text = format!("backend {}\n{first_line}{} {}\n", self.id, request.method(), request.uri());
        for (name, value) in request.headers() {
            text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
        }
        let _ = self.seen.send(format!("{} {} {path}", self.id, request.method()));
        let _ = request.into_body().collect().await;
        if path.starts_with("/slow") {
            std::future::pending::<()>().await;
        }
        let mut response = Response::new(Full::new(Bytes::from(text)));
        response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain"));
        if path.starts_with("/flaky") && self.requests.fetch_add(1, Ordering::Relaxed) < 2 {
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        }
        Ok(response)
    }

    async fn web_socket(self, stream: TcpStream) {
        use tokio_tungstenite::tungstenite::Message;
        let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
        use futures_util::{SinkExt, StreamExt};
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Text(text) = message {
                let answer = format!("backend {}: {text}", self.id);
                if socket.send(Message::text(answer)).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn grpc(id: u16, request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let text = format!("backend {id} {}", request.uri().path());
    let mut frame = vec![0];
    frame.extend((text.len() as u32).to_be_bytes());
    frame.extend(text.bytes());
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from(frame)).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(BodyExt::boxed(body));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}
