//! Certificates and trust.

use serde::Serialize;
use std::{fmt, sync::Arc};

pub type CertificateRef = Arc<Certificate>;

/// A certificate chain with its key. The compiler has checked that the PEM parses and that the key fits the leaf.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// `namespace/name` of the Secret.
    pub secret: String,
    /// SHA-256 of the leaf, hexadecimal: a changed certificate is a changed snapshot.
    pub fingerprint: String,
    /// DNS names of the leaf's SAN, lower case.
    pub names: Vec<String>,
    /// Seconds since the epoch.
    pub not_before: i64,
    pub not_after: i64,
    #[serde(skip)]
    pub chain: Vec<rustls_pki_types::CertificateDer<'static>>,
    /// DER of the key with its encoding; never serialised.
    #[serde(skip)]
    pub key: Arc<KeyDer>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({} {})", self.secret, self.fingerprint)
    }
}

/// A private key, kept out of `Debug` and `Serialize`.
#[derive(PartialEq, Eq)]
pub struct KeyDer(pub rustls_pki_types::PrivateKeyDer<'static>);

impl fmt::Debug for KeyDer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDer(redacted)")
    }
}

/// Certificate authorities to trust.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Trust {
    /// The operating system's roots (`wellKnownCACertificates: System`).
    System,
    Roots(Arc<CaBundle>),
}

#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct CaBundle {
    /// Where they came from, for messages: `ConfigMap default/ca`.
    pub origin: String,
    /// SHA-256 over all, hexadecimal.
    pub fingerprint: String,
    #[serde(skip)]
    pub certificates: Vec<rustls_pki_types::CertificateDer<'static>>,
}

impl fmt::Debug for CaBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaBundle({} {})", self.origin, self.fingerprint)
    }
}

/// Gateway frontend validation: what a client certificate must satisfy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClientValidation {
    /// `None`: the references are broken, so no certificate can be valid (fails closed).
    pub trust: Option<Arc<CaBundle>>,
    /// `AllowInsecureFallback`: a missing or invalid certificate is accepted (and marked unverified).
    pub insecure_fallback: bool,
}

/// How we are a TLS client (BackendTLSPolicy).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UpstreamTls {
    /// SNI to send, and the name to verify when `subject_alt_names` is empty.
    pub sni: String,
    pub trust: Trust,
    /// When not empty, the certificate must carry at least one of these instead of `sni`.
    pub subject_alt_names: Vec<SubjectAltName>,
    pub client_certificate: Option<CertificateRef>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum SubjectAltName {
    Hostname(String),
    Uri(String),
}
