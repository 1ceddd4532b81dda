//! The first connection to a control plane, of which nothing is known but the SHA-256 of its root, from a join token.

use crate::{
    Bundle, Bundles, Error, Expect, Refused, Role,
    config::{provider, tls12, tls13},
    issuer::control_id,
    leaf, verify,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use selvedge_wire::spiffe::SpiffeId;
use std::sync::Arc;

/// A TLS client without a certificate, for the control plane of `trust_domain` whose root has that SHA-256. The server must
/// present the root at the end of its chain, as control planes do.
///
/// # Errors
/// When the name is not one of a trust domain.
pub fn pinned_config(trust_domain: &str, root_sha256: [u8; 32], alpn: &[&[u8]]) -> Result<ClientConfig, Error> {
    let control = control_id(trust_domain).map_err(|_| Error::TrustDomain(trust_domain.to_owned()))?;
    let verifier = Arc::new(Pinned { control, root_sha256 });
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| Error::Tls(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

#[derive(Debug)]
struct Pinned {
    control: SpiffeId,
    root_sha256: [u8; 32],
}

impl Pinned {
    fn judge(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Refused> {
        let presented = leaf::read(chain.first().ok_or(Refused::NoCertificate)?)?.id;
        if presented.trust_domain() != self.control.trust_domain() {
            return Err(Refused::Unexpected { expected: self.control.to_string(), presented });
        }
        let sha256 = |der: &CertificateDer<'_>| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
        let root =
            chain.iter().find(|der| sha256(der).as_ref() == self.root_sha256).ok_or_else(|| Refused::Untrusted {
                id: presented.clone(),
                reason:
                    "its root is not the one of the join token; the token is of another control plane, or the root was \
                     rotated since: make a new token"
                        .to_owned(),
            })?;
        let untrusted = |e: Error| Refused::Untrusted { id: presented.clone(), reason: e.to_string() };
        let bundle = Bundle::new([root.clone().into_owned()]).map_err(untrusted)?;
        let bundles = Bundles::of(self.control.trust_domain(), bundle).map_err(untrusted)?;
        verify::verify(&bundles, chain, &Expect::Exactly(self.control.clone()), Role::Server, now).map(|_| ())
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        self.judge(&chain, now)?;
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
