//! An HTTP/2 echo server on the proxy's codec, for h2spec and h2load: `h2echo 127.0.0.1:0 [--tls]` prints its
//! address. With `--tls` the certificate is made up at start.

use http_body_util::BodyExt;
use selvedge_compile::snapshot::HttpOptions;
use selvedge_proxy::{Body, Error, Request, Response, codec, drain::Drainer, io::Io};
use selvedge_testkit::certs::Ca;
use std::{io::Write as _, sync::Arc};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

struct Echo;

impl codec::Service for Echo {
    async fn call(&self, request: Request) -> Response {
        if request.method() != http::Method::GET {
            return Response::new(request.into_body());
        }
        // h2spec leaves requests open and expects errors about what it sends next: an answer that comes before, and
        // closes the stream, would make those cases a race.
        let _ = request.into_body().collect().await;
        Response::new(Body::full("hello, world"))
    }

    fn rejected(&self, status: http::StatusCode, error: &Error) {
        eprintln!("rejected with {status}: {error}");
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let tls = std::env::args().any(|argument| argument == "--tls").then(acceptor);
    let listener = TcpListener::bind(address).await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    let drainer = Drainer::default();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (drain, tls) = (drainer.subscribe(), tls.clone());
        tokio::spawn(async move {
            let io: Io = match tls {
                None => stream.into(),
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => stream.into(),
                    Err(error) => return eprintln!("handshake: {error}"),
                },
            };
            let options = HttpOptions::default();
            if let Err(error) = codec::h2::serve(io, Arc::new(Echo), &options, drain).await {
                eprintln!("connection ended: {error}");
            }
        });
    }
}

fn acceptor() -> TlsAcceptor {
    let leaf = Ca::new("h2echo").leaf(&["localhost"]);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(leaf.chain, leaf.key)
        .expect("a certificate and its key");
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}
