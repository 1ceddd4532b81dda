//! Judging client certificates (Gateway frontend validation).

use super::provider;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::WebPkiSupportedAlgorithms,
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, UnixTime};
use selvedge_compile::snapshot::ClientValidation;
use std::sync::Arc;

/// One listener's rule for client certificates.
///
/// Strict: a certificate is required and must verify. With `AllowInsecureFallback` any certificate or none passes the
/// handshake, and [`ClientAuth::verify`] tells afterwards which it was. In both cases the client must prove that it has
/// the certificate's key. Without usable trust no certificate verifies, so strict listeners refuse everybody.
#[derive(Debug)]
pub(super) struct ClientAuth {
    trusted: Option<Arc<dyn ClientCertVerifier>>,
    fallback: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientAuth {
    pub(super) fn new(validation: &ClientValidation) -> Arc<Self> {
        let provider = provider();
        let trusted = validation.trust.as_ref().and_then(|bundle| {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(bundle.certificates.iter().cloned());
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().ok()
        });
        Arc::new(Self {
            trusted,
            fallback: validation.insecure_fallback,
            algorithms: provider.signature_verification_algorithms,
        })
    }

    /// Whether a chain satisfies the trust of this listener now.
    pub(super) fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let unknown = || rustls::Error::from(CertificateError::UnknownIssuer);
        let trusted = self.trusted.as_ref().ok_or_else(unknown)?;
        let (leaf, rest) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        trusted.verify_client_cert(leaf, rest, UnixTime::now()).map(|_| ())
    }

    pub(super) fn is_fallback(&self) -> bool {
        self.fallback
    }
}

impl ClientCertVerifier for ClientAuth {
    fn client_auth_mandatory(&self) -> bool {
        !self.fallback
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // With the fallback a client shall show whatever it has, so it is given no hint to choose by.
        match &self.trusted {
            Some(trusted) if !self.fallback => trusted.root_hint_subjects(),
            _ => &[],
        }
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if self.fallback {
            return Ok(ClientCertVerified::assertion());
        }
        match &self.trusted {
            Some(trusted) => trusted.verify_client_cert(end_entity, intermediates, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
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
