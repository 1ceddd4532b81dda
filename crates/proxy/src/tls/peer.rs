//! The certificate a client showed.

use aws_lc_rs::digest;
use http::HeaderValue;
use rustls_pki_types::CertificateDer;
use std::{fmt::Write, sync::Arc};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

/// Names taken over from one certificate; more are left out. Nobody's policy lists that many.
const MAX_NAMES: usize = 256;

/// Names of a certificate that backends are told.
const MAX_FORWARDED: usize = 16;

/// A client certificate, with the names policies and records look at.
#[derive(Debug, Clone)]
pub struct PeerCertificate {
    /// Leaf first, as the client sent it.
    pub chain: Arc<[CertificateDer<'static>]>,
    /// It chains to the listener's trust, is in its validity period and may be used by a client. `false` only on
    /// listeners with `AllowInsecureFallback`: whoever decides by the names must look here first.
    pub verified: bool,
    /// RFC 4514-like text of the subject; empty when the certificate cannot be parsed.
    pub subject: String,
    pub dns_names: Vec<String>,
    /// URI names, such as a SPIFFE ID.
    pub uris: Vec<String>,
}

impl PeerCertificate {
    pub(super) fn new(chain: &[CertificateDer<'static>], verified: bool) -> Option<Self> {
        let leaf = chain.first()?;
        let mut peer =
            Self { chain: chain.into(), verified, subject: String::new(), dns_names: Vec::new(), uris: Vec::new() };
        if let Ok((_, certificate)) = X509Certificate::from_der(leaf) {
            peer.subject = certificate.subject().to_string();
            (peer.dns_names, peer.uris) = names(&certificate);
        }
        Some(peer)
    }

    /// What backends are told of a client whose certificate is valid, as Envoy writes it in `x-forwarded-client-cert`: the SHA-256
    /// of the certificate, its subject and its names.
    pub fn forwarded(&self) -> Option<HeaderValue> {
        let leaf = self.chain.first().filter(|_| self.verified)?;
        let mut text = "Hash=".to_owned();
        for byte in digest::digest(&digest::SHA256, leaf).as_ref() {
            let _ = write!(text, "{byte:02x}");
        }
        let _ = write!(text, ";Subject=\"{}\"", self.subject.replace('\\', "\\\\").replace('"', "\\\""));
        let (uris, dns) = (self.uris.iter().map(|name| ("URI", name)), self.dns_names.iter().map(|name| ("DNS", name)));
        for (kind, name) in uris.chain(dns).take(MAX_FORWARDED) {
            // A name may have the bytes that separate values here.
            match name.contains([',', ';', '=', '"', '\\']) {
                true => _ = write!(text, ";{kind}=\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"")),
                false => _ = write!(text, ";{kind}={name}"),
            }
        }
        HeaderValue::try_from(text).ok()
    }

    /// The SPIFFE ID: the only URI name, if it has that scheme (SPIFFE X509-SVID section 2 allows exactly one URI).
    pub fn spiffe_id(&self) -> Option<&str> {
        match self.uris.as_slice() {
            [uri] if uri.starts_with("spiffe://") => Some(uri),
            _ => None,
        }
    }
}

/// DNS and URI names of the leaf. A name with a byte that has no place in it (NUL, control, space, non-ASCII) is left
/// out rather than shortened, so that `good.example\0.evil.example` never reads as `good.example`.
pub(super) fn names(certificate: &X509Certificate<'_>) -> (Vec<String>, Vec<String>) {
    let (mut dns, mut uris) = (Vec::new(), Vec::new());
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return (dns, uris) };
    for name in extension.value.general_names.iter().take(MAX_NAMES) {
        match name {
            GeneralName::DNSName(name) if is_clean(name) => dns.push(name.to_ascii_lowercase()),
            GeneralName::URI(uri) if is_clean(uri) => uris.push((*uri).to_owned()),
            _ => {}
        }
    }
    (dns, uris)
}

fn is_clean(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic())
}
