//! TLS clients of our own: many new connections without resumption, and many idle ones.
//!
//! wrk and h2load resume sessions or not as OpenSSL sees fit; this client never does. It offers X25519 alone, so that
//! every peer pays for the same key exchange: OpenSSL 3.0 has no X25519MLKEM768, which Selvedge would choose.

use super::load;
use anyhow::{Context, Result, bail, ensure};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    client::Resumption,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// The name in the certificate of the benchmark.
pub const NAME: &str = "bench.example";

#[derive(clap::Args)]
pub struct Args {
    /// The server.
    #[arg(long)]
    to: SocketAddr,
    /// Its certificate, as PEM.
    #[arg(long)]
    ca: PathBuf,
    /// How long to connect.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Connections in flight, a thread each.
    #[arg(long, default_value_t = 8)]
    clients: usize,
}

pub type Tls = StreamOwned<ClientConnection, TcpStream>;

pub fn run(args: &Args) -> Result<()> {
    let config = config(&args.ca)?;
    let start = Instant::now();
    let end = start + Duration::from_secs(args.seconds);
    let threads: Vec<_> = (0..args.clients)
        .map(|_| {
            let (config, to) = (config.clone(), args.to);
            thread::spawn(move || {
                let (mut times, mut failed) = (Vec::new(), 0u64);
                while Instant::now() < end {
                    let began = Instant::now();
                    match once(to, config.clone()) {
                        Ok(()) => times.push(began.elapsed()),
                        Err(_) => failed += 1,
                    }
                }
                (times, failed)
            })
        })
        .collect();
    let (mut times, mut failed) = (Vec::new(), 0);
    for thread in threads {
        let (t, f) = thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
        times.extend(t);
        failed += f;
    }
    load::print(times, start.elapsed(), failed);
    Ok(())
}

/// TLS 1.3 over X25519 without resumption, trusting one certificate.
pub fn config(ca: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(ca).with_context(|| format!("cannot read {}", ca.display()))?;
    roots.add(certificate).context("the certificate is not fit to be trusted")?;
    let provider = rustls::crypto::CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

pub fn connect(to: SocketAddr, config: Arc<ClientConfig>) -> Result<Tls> {
    let socket = TcpStream::connect(to)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let client = ClientConnection::new(config, ServerName::try_from(NAME)?)?;
    Ok(StreamOwned::new(client, socket))
}

fn once(to: SocketAddr, config: Arc<ClientConfig>) -> Result<()> {
    let mut stream = connect(to, config)?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    // Some servers end the connection without a close_notify; the answer is whole by its content-length.
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
        Err(error) => bail!(error),
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "not a 200");
    Ok(())
}

/// Sends one request that keeps the connection and reads the whole answer.
pub fn keep_alive<S: Read + Write>(stream: &mut S) -> Result<String> {
    get(stream, "/")
}

/// One request over a kept connection; returns the head of the answer, having read its body by content-length.
pub fn get<S: Read + Write>(stream: &mut S, path: &str) -> Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\n\r\n").as_bytes())?;
    let (mut answer, mut chunk) = (Vec::new(), [0u8; 4096]);
    loop {
        let read = stream.read(&mut chunk)?;
        ensure!(read > 0, "the connection ended within an answer");
        answer.extend_from_slice(&chunk[..read]);
        ensure!(answer.len() < 64 * 1024, "an answer is larger than expected");
        let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let length: usize = head
            .lines()
            .find_map(|l| l.strip_prefix("content-length:"))
            .and_then(|v| v.trim().parse().ok())
            .context("an answer has no content-length")?;
        if answer.len() >= end + 4 + length {
            return Ok(head);
        }
    }
}
