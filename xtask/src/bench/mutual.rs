//! New connections between members of a mesh: TLS 1.3 with certificates on both sides, never resumed, no request.

use super::{authority::Svid, load, process};
use anyhow::{Context, Result, ensure};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

/// The preface of HTTP/2 with empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[derive(clap::Args)]
pub struct Args {
    /// The server.
    #[arg(long)]
    to: SocketAddr,
    /// Own certificates, as PEM.
    #[arg(long)]
    cert: PathBuf,
    /// Own key, as PEM.
    #[arg(long)]
    key: PathBuf,
    /// How long to connect.
    #[arg(long)]
    seconds: u64,
}

/// Runs it as a process of its own, on the core of the load.
pub fn measure(to: SocketAddr, svid: &Svid, seconds: u64) -> Result<load::Seen> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["mutual-handshakes", "--to", &to.to_string(), "--seconds", &seconds.to_string()]);
    command.arg("--cert").arg(&svid.chain).arg("--key").arg(&svid.key);
    load::line(&process::output(&mut command, Duration::from_secs(seconds + 60))?)
}

pub fn run(args: &Args) -> Result<()> {
    let config = config(&Svid { chain: args.cert.clone(), key: args.key.clone() })?;
    let start = Instant::now();
    let (mut times, mut failed) = (Vec::new(), 0u64);
    while start.elapsed() < Duration::from_secs(args.seconds) {
        let began = Instant::now();
        match once(args.to, config.clone()) {
            Ok(()) => times.push(began.elapsed()),
            Err(_) => failed += 1,
        }
    }
    load::print(times, start.elapsed(), failed);
    Ok(())
}

fn once(to: SocketAddr, config: Arc<ClientConfig>) -> Result<()> {
    let socket = TcpStream::connect(to)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut stream = StreamOwned::new(ClientConnection::new(config, ServerName::try_from("bench")?)?, socket);
    // Some servers wait for the start of HTTP/2 (RFC 9113 3.4) before they say theirs.
    stream.write_all(PREFACE)?;
    // Its SETTINGS: the server has accepted our certificate.
    let mut byte = [0];
    stream.read_exact(&mut byte).context("the server has not accepted us")?;
    stream.conn.send_close_notify();
    stream.conn.write_tls(&mut stream.sock)?;
    Ok(())
}

/// Proves who we are, speaks HTTP/2, over X25519 alone: the same key exchange for every peer.
pub fn config(svid: &Svid) -> Result<Arc<ClientConfig>> {
    let provider =
        Arc::new(CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::X25519], ..aws_lc_rs::default_provider() });
    let chain = CertificateDer::pem_file_iter(&svid.chain)?.collect::<Result<Vec<_>, _>>()?;
    ensure!(!chain.is_empty(), "{} has no certificate", svid.chain.display());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&svid.key)?)?;
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Who the server is does not matter to a load: its SPIFFE ID is no DNS name, and what is measured is the server.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
