//! The conformance suite `h2spec`, when it is installed (`go install github.com/summerwind/h2spec/cmd/h2spec@latest`):
//! found by `H2SPEC` or in `PATH`.

mod h2_common;

use h2_common::service;
use http_body_util::BodyExt;
use selvedge_compile::snapshot::HttpOptions;
use selvedge_proxy::{Body, Response, codec, drain::Drainer, io::Io};
use selvedge_testkit::certs::Ca;
use std::sync::Arc;
use tokio::{net::TcpListener, process::Command};
use tokio_rustls::TlsAcceptor;

fn h2spec() -> Command {
    Command::new(std::env::var_os("H2SPEC").unwrap_or_else(|| "h2spec".into()))
}

async fn conforms(tls: Option<TlsAcceptor>, arguments: &[&str]) {
    if h2spec().arg("--version").output().await.is_err() {
        selvedge_testkit::left_out("h2spec is not installed");
        return;
    }
    // h2spec leaves requests open and expects errors about what it sends next: an answer that comes before, and
    // closes the stream, would make those cases a race.
    let hello = service(|request| async move {
        let _ = request.into_body().collect().await;
        Response::new(Body::full("hello, world"))
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let drainer = Drainer::default();
    let server = async {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (tls, hello, drain) = (tls.clone(), hello.clone(), drainer.subscribe());
            tokio::spawn(async move {
                let io: Io = match tls {
                    None => stream.into(),
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => stream.into(),
                        Err(_) => return,
                    },
                };
                // The errors are what is asked for.
                let _ = codec::h2::serve(io, hello, &HttpOptions::default(), drain).await;
            });
        }
    };
    let mut spec = h2spec();
    spec.args(["-h", "127.0.0.1", "-p", &port, "-o", "10", "--strict"]).args(arguments).kill_on_drop(true);
    tokio::select! {
        output = spec.output() => {
            let output = output.unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{text}");
            eprintln!("{}", text.trim_end().lines().last().unwrap_or_default());
        }
        () = server => {}
    }
}

#[tokio::test]
async fn h2spec_in_plaintext() {
    conforms(None, &[]).await;
}

#[tokio::test]
async fn h2spec_over_tls() {
    let leaf = Ca::new("h2spec").leaf(&["localhost"]);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(leaf.chain, leaf.key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    conforms(Some(TlsAcceptor::from(Arc::new(config))), &["-t", "-k"]).await;
}
