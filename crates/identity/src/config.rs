//! TLS configurations that always see the newest identities.
//!
//! A configuration is made anew when our SVID or the bundles have changed, and sessions to resume live in the
//! configuration: so none outlives what it was made with. Verifiers read the bundles at each handshake, for the moment
//! between asking for a configuration and using it.

use crate::{Error, Expect, Refused, Role, Svid, join, store::Live, verify};
use ahash::AHashMap;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    server::{
        ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use selvedge_wire::spiffe::SpiffeId;
use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// Configurations kept: one for each peer identity that is spoken to. Beyond this all are made anew as they are needed,
/// which costs microseconds and a full handshake each.
const MAX_CONFIGS: usize = 4096;

/// Sessions kept for resumption per client configuration, by address of the peer.
const MAX_SESSIONS: usize = 64;

/// aws-lc-rs with X25519MLKEM768 as the first key exchange group.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider()))
}

#[derive(Default)]
pub(crate) struct Configs(Mutex<AHashMap<Key, Made>>);

#[derive(PartialEq, Eq, Hash)]
struct Key {
    own: SpiffeId,
    /// `None` for servers.
    expect: Option<Expect>,
    /// Of a server: who has no certificate comes in too.
    open: bool,
    alpn: Vec<Vec<u8>>,
}

/// A configuration and what it was made of.
struct Made {
    svid: Arc<Svid>,
    trust: u64,
    config: Config,
}

#[derive(Clone)]
enum Config {
    Client(Arc<ClientConfig>),
    Server(Arc<ServerConfig>),
}

impl Configs {
    pub(crate) fn client(
        &self,
        live: &Live,
        svid: &Arc<Svid>,
        expect: &Expect,
        alpn: &[&[u8]],
    ) -> Result<Arc<ClientConfig>, Error> {
        let key = Key { own: svid.id().clone(), expect: Some(expect.clone()), open: false, alpn: owned(alpn) };
        let make = || client(live, svid, expect, alpn).map(|config| Config::Client(Arc::new(config)));
        match self.find(live, svid, key, make)? {
            Config::Client(config) => Ok(config),
            Config::Server(_) => Err(Error::Tls("a server's configuration was kept as a client's".to_owned())),
        }
    }

    /// `open`: whoever has no certificate comes in too.
    pub(crate) fn server(
        &self,
        live: &Live,
        svid: &Arc<Svid>,
        open: bool,
        alpn: &[&[u8]],
    ) -> Result<Arc<ServerConfig>, Error> {
        let key = Key { own: svid.id().clone(), expect: None, open, alpn: owned(alpn) };
        let make = || server(live, svid, open, alpn).map(|config| Config::Server(Arc::new(config)));
        match self.find(live, svid, key, make)? {
            Config::Server(config) => Ok(config),
            Config::Client(_) => Err(Error::Tls("a client's configuration was kept as a server's".to_owned())),
        }
    }

    fn find(
        &self,
        live: &Live,
        svid: &Arc<Svid>,
        key: Key,
        make: impl FnOnce() -> Result<Config, Error>,
    ) -> Result<Config, Error> {
        let trust = live.load().trust;
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.get(&key)
            && Arc::ptr_eq(&made.svid, svid)
            && made.trust == trust
        {
            return Ok(made.config.clone());
        }
        if made.len() >= MAX_CONFIGS {
            made.clear();
        }
        let config = make()?;
        made.insert(key, Made { svid: svid.clone(), trust, config: config.clone() });
        Ok(config)
    }
}

fn owned(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.to_vec()).collect()
}

fn client(live: &Live, svid: &Svid, expect: &Expect, alpn: &[&[u8]]) -> Result<ClientConfig, Error> {
    client_of(live, expect, svid.certified().clone(), alpn)
}

/// A client that shows this certificate, whatever it is.
pub(crate) fn client_of(
    live: &Live,
    expect: &Expect,
    shown: Arc<CertifiedKey>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, Error> {
    let verifier = Arc::new(Verifier { live: live.clone(), expect: expect.clone(), open: false });
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| Error::Tls(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    config.alpn_protocols = owned(alpn);
    config.resumption = Resumption::in_memory_sessions(MAX_SESSIONS);
    // Peers are told apart by the certificates they must prove, not by the name we would send.
    config.enable_sni = false;
    Ok(config)
}

fn server(live: &Live, svid: &Svid, open: bool, alpn: &[&[u8]]) -> Result<ServerConfig, Error> {
    let verifier = Arc::new(Verifier { live: live.clone(), expect: Expect::Known, open });
    let resolver: Arc<dyn ResolvesServerCert> = Arc::new(SingleCertAndKey::from(svid.certified().clone()));
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| Error::Tls(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = owned(alpn);
    // With a key of its own, so a ticket is worth nothing to the configuration that follows this one.
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(|e| Error::Tls(format!("no ticket key: {e}")))?;
    // Tickets are not used up by use, so one is enough. 0-RTT stays off: it can be replayed.
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// Judges by the bundles of the moment.
struct Verifier {
    live: Live,
    expect: Expect,
    open: bool,
}

impl Verifier {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), Refused> {
        let chain: Vec<_> = std::iter::once(leaf).chain(rest).cloned().collect();
        let state = self.live.load();
        let member = verify::verify(&state.bundles, &chain, &self.expect, role, now).map(|_| ());
        // Whoever is let in to join may show who it is by a certificate of another CA.
        if let (Err(refused), true) = (&member, self.open && !state.join_cas.is_empty()) {
            return match join::judge(&state.join_cas, &chain, now) {
                Ok(_) => Ok(()),
                // What is said of our own certificates is worth more.
                Err(_) if refused.is_ours(&state.bundles) => member,
                Err(other) => Err(other),
            };
        }
        member
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({:?})", self.expect)
    }
}

pub(crate) fn tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken between members of a mesh".to_owned())
}

pub(crate) fn tls13(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    rustls::crypto::verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(end_entity, intermediates, Role::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        !self.open
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A member has one certificate to show.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(end_entity, intermediates, Role::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
