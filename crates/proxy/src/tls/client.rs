//! Being a TLS client (BackendTLSPolicy): whom to trust, which name to demand, what to show.

use super::{BUFFER_LIMIT, ClientStream, peer, provider, tls_error};
use crate::{
    Error,
    error::{Kind, Side},
};
use ahash::AHashMap;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::WebPkiSupportedAlgorithms,
    server::ParsedCertificate,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use selvedge_compile::snapshot::{CaBundle, Certificate, SubjectAltName, Trust, UpstreamTls};
use std::{
    fmt, io,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

/// Sessions kept for resumption per upstream configuration.
const MAX_SESSIONS: usize = 256;

/// What to offer an upstream by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    Http1,
    /// Only HTTP/2: an upstream that does not choose it is an error.
    Http2,
    /// HTTP/2 preferred.
    Both,
    /// Bytes that are not HTTP.
    None,
}

/// What a handshake with an upstream has settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    pub h2: bool,
}

/// Makes TLS connections to the endpoints of one cluster. Cheap to clone; equal ones share their sessions.
#[derive(Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    alpn: Alpn,
}

impl Connector {
    /// Checks and loads everything that does not depend on the endpoint. May read the system's roots from disk once.
    pub fn new(tls: &UpstreamTls, alpn: Alpn) -> Result<Self, Error> {
        let name = ServerName::try_from(tls.sni.clone())
            .map_err(|_| config_error(format!("{:?} is not a host name that can be sent as SNI", tls.sni)))?;
        Ok(Self { config: shared_config(tls, alpn)?, name, alpn })
    }

    /// To a server of HTTP/2 by its host name or address. `ca` is a PEM file of the CAs that are trusted instead of the
    /// system's.
    pub(crate) fn to(host: &str, ca: Option<&Path>) -> Result<Self, Error> {
        let trust = ca.map_or(Ok(Trust::System), |file| bundle(file).map(|bundle| Trust::Roots(Arc::new(bundle))))?;
        let tls = UpstreamTls { sni: host.to_owned(), trust, subject_alt_names: Vec::new(), client_certificate: None };
        Self::new(&tls, Alpn::Http2)
    }

    /// Does the handshake. The caller holds the timer.
    pub async fn connect(&self, tcp: TcpStream) -> Result<(ClientStream, Negotiated), Error> {
        self.over(tcp).await
    }

    /// The same on any stream of bytes.
    pub async fn over<S>(&self, bytes: S) -> Result<(TlsStream<S>, Negotiated), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = TlsConnector::from(self.config.clone())
            .connect_with(self.name.clone(), bytes, |session| session.set_buffer_limit(Some(BUFFER_LIMIT)))
            .await
            .map_err(|e| self.handshake_error(e))?;
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        if self.alpn == Alpn::Http2 && !h2 {
            let message = format!(
                "the upstream {} did not choose HTTP/2 (ALPN h2); enable it there or set another appProtocol",
                self.name.to_str()
            );
            return Err(Error::upstream(Kind::Tls, message));
        }
        Ok((stream, Negotiated { h2 }))
    }

    fn handshake_error(&self, error: io::Error) -> Error {
        let name = self.name.to_str();
        let (kind, what) = match tls_error(&error) {
            Some(rustls::Error::InvalidCertificate(CertificateError::Other(reason)))
                // webpki's own, which this crate cannot name.
                if reason.0.to_string() == "CaUsedAsEndEntity" =>
            {
                (Kind::Tls, "its certificate is a CA's, and not one that is trusted as such")
            }
            Some(rustls::Error::InvalidCertificate(CertificateError::Other(reason))) => {
                return Error::upstream(Kind::Tls, format!("TLS to upstream {name}: {}", reason.0));
            }
            Some(rustls::Error::InvalidCertificate(reason)) => (Kind::Tls, certificate_error(reason)),
            Some(rustls::Error::NoApplicationProtocol) => {
                (Kind::Tls, "it speaks none of the protocols we offered by ALPN")
            }
            Some(rustls::Error::AlertReceived(_)) => (Kind::Tls, "it refused the handshake"),
            Some(_) => (Kind::Tls, "the handshake failed"),
            None => (Kind::Reset, "the connection broke in the handshake"),
        };
        Error::upstream(kind, format!("TLS to upstream {name}: {what}")).with_source(error)
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connector({} {:?})", self.name.to_str(), self.alpn)
    }
}

fn certificate_error(reason: &CertificateError) -> &'static str {
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "its certificate has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet"
        }
        CertificateError::UnknownIssuer => "its certificate comes from an issuer that is not trusted",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another name"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not for servers"
        }
        _ => "its certificate is not accepted",
    }
}

fn config_error(message: String) -> Error {
    Error::new(Kind::Tls, Side::Us, message)
}

/// Configurations in use, by content: clusters that differ only in their endpoints share one, and a reload keeps it
/// together with its sessions.
fn shared_config(tls: &UpstreamTls, alpn: Alpn) -> Result<Arc<ClientConfig>, Error> {
    static CONFIGS: OnceLock<Mutex<AHashMap<String, Weak<ClientConfig>>>> = OnceLock::new();
    let content = content(tls, alpn);
    let mut configs = CONFIGS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(config) = configs.get(&content).and_then(Weak::upgrade) {
        return Ok(config);
    }
    // Bounded by what is in use: entries of dropped connectors leave before the map would grow.
    if configs.len() == configs.capacity() {
        configs.retain(|_, config| config.strong_count() > 0);
    }
    let config = Arc::new(client_config(tls, alpn)?);
    configs.insert(content, Arc::downgrade(&config));
    Ok(config)
}

fn content(tls: &UpstreamTls, alpn: Alpn) -> String {
    let trust = match &tls.trust {
        Trust::System => "system",
        Trust::Roots(bundle) => bundle.fingerprint.as_str(),
    };
    let own = tls.client_certificate.as_ref().map(|c| {
        let chain: Vec<_> = c.chain.iter().map(|der| xxhash_rust::xxh3::xxh3_128(der)).collect();
        (&c.fingerprint, chain)
    });
    format!("{alpn:?} {:?} {trust} {:?} {own:?}", tls.sni, tls.subject_alt_names)
}

fn client_config(tls: &UpstreamTls, alpn: Alpn) -> Result<ClientConfig, Error> {
    let provider = provider();
    let verifier = Verifier {
        roots: roots(&tls.trust)?,
        pinned: match &tls.trust {
            Trust::System => Vec::new(),
            Trust::Roots(bundle) => bundle.certificates.clone(),
        },
        names: tls.subject_alt_names.clone(),
        algorithms: provider.signature_verification_algorithms,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|e| config_error(format!("the TLS versions cannot be used: {e}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &tls.client_certificate {
        Some(certificate) => with_client_certificate(builder, certificate)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = match alpn {
        Alpn::Http1 => vec![b"http/1.1".to_vec()],
        Alpn::Http2 => vec![b"h2".to_vec()],
        Alpn::Both => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        Alpn::None => Vec::new(),
    };
    config.resumption = Resumption::in_memory_sessions(MAX_SESSIONS);
    Ok(config)
}

fn with_client_certificate(
    builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
    certificate: &Certificate,
) -> Result<ClientConfig, Error> {
    builder.with_client_auth_cert(certificate.chain.clone(), certificate.key.0.clone_key()).map_err(|e| {
        config_error(format!("the client certificate of Secret {} cannot be used: {e}", certificate.secret))
    })
}

fn roots(trust: &Trust) -> Result<Arc<RootCertStore>, Error> {
    match trust {
        Trust::System => system_roots(),
        Trust::Roots(bundle) => {
            let mut roots = RootCertStore::empty();
            let (added, bad) = roots.add_parsable_certificates(bundle.certificates.iter().cloned());
            if added == 0 {
                let message = format!("{} has no usable CA certificate ({bad} could not be read)", bundle.origin);
                return Err(config_error(message));
            }
            Ok(Arc::new(roots))
        }
    }
}

/// The certificates of a PEM file.
fn bundle(file: &Path) -> Result<CaBundle, Error> {
    let text = std::fs::read(file)
        .map_err(|error| config_error(format!("the CA file {} cannot be read", file.display())).with_source(error))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| config_error(format!("the CA file {} is broken PEM: {error}", file.display())))?;
    let fingerprint = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&text));
    Ok(CaBundle { origin: format!("the CA file {}", file.display()), fingerprint, certificates })
}

/// The operating system's roots, read once: they change with the system's packages, not with our configuration.
fn system_roots() -> Result<Arc<RootCertStore>, Error> {
    static SYSTEM: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = SYSTEM.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    if roots.is_empty() {
        return Err(config_error(
            "this system has no CA certificates; install them (Debian: ca-certificates), set SSL_CERT_FILE, or name a \
             CA (for backends in the BackendTLSPolicy, for a collector by --otlp-ca)"
                .to_owned(),
        ));
    }
    Ok(roots.clone())
}

/// Verifies the chain as webpki does, then demands the SNI, or one of the names given instead of it.
///
/// A server may show the very certificate that is trusted, most often a self-signed one. webpki refuses it where it is a CA
/// as well, which is what most tools make; here it needs no chain, as with OpenSSL, but everything else is demanded of it.
struct Verifier {
    roots: Arc<RootCertStore>,
    /// What is trusted, byte for byte; nothing with the system's roots.
    pinned: Vec<CertificateDer<'static>>,
    names: Vec<SubjectAltName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({:?})", self.names)
    }
}

/// That a certificate without chain is valid now, and for servers: what webpki checks of an end entity besides its chain.
fn verify_alone(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < parsed.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet);
    }
    if now > parsed.validity().not_after.timestamp() {
        return Err(CertificateError::Expired);
    }
    match parsed.extended_key_usage().map_err(|_| CertificateError::BadEncoding)? {
        Some(usage) if !usage.value.server_auth && !usage.value.any => Err(CertificateError::InvalidPurpose),
        _ => Ok(()),
    }
}

impl Verifier {
    fn verify_names(&self, leaf: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let (dns, uris) = peer::names(&parsed);
        let matches = self.names.iter().any(|name| match name {
            SubjectAltName::Uri(uri) => uris.contains(uri),
            SubjectAltName::Hostname(host) => dns.iter().any(|presented| hostname_matches(host, presented)),
        });
        if matches {
            return Ok(());
        }
        let presented = dns.into_iter().chain(uris).collect::<Vec<_>>().join(", ");
        Err(CertificateError::Other(rustls::OtherError(Arc::new(NameMismatch {
            wanted: self.names.iter().map(text).collect::<Vec<_>>().join(", "),
            presented,
        })))
        .into())
    }
}

fn text(name: &SubjectAltName) -> &str {
    match name {
        SubjectAltName::Hostname(name) | SubjectAltName::Uri(name) => name,
    }
}

/// None of the names a policy demands is in the certificate.
#[derive(Debug, thiserror::Error)]
#[error("its certificate carries none of {wanted}; it carries {presented:?}")]
struct NameMismatch {
    wanted: String,
    presented: String,
}

/// Whether a certificate's DNS name satisfies a demanded host name. A wildcard on either side stands for exactly one
/// label; equal wildcards match.
fn hostname_matches(wanted: &str, presented: &str) -> bool {
    let wanted = wanted.to_ascii_lowercase();
    let parent = |name: &str| name.split_once('.').map(|(_, parent)| parent.to_owned());
    let wild =
        |pattern: &str, name: &str| pattern.strip_prefix("*.").is_some_and(|p| parent(name).as_deref() == Some(p));
    wanted == presented || wild(presented, &wanted) || wild(&wanted, presented)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        if self.pinned.iter().any(|pinned| pinned == end_entity) {
            verify_alone(end_entity, now)?;
        } else {
            verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, self.algorithms.all)?;
        }
        if self.names.is_empty() {
            verify_server_name(&parsed, server_name)?;
        } else {
            self.verify_names(end_entity)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
