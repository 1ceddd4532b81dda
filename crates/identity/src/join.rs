//! Certificates of other CAs with which a node may ask for its first SVID: at the control plane, whether one is to be
//! believed; at the node, the TLS configuration that shows it. Who it may be is not decided here.

use crate::{
    Bundle, Bundles, Error, Expect, Identities, Refused, Serial,
    config::{self, provider},
    issuer::control_id,
    leaf, verify,
};
use rustls::{ClientConfig, InconsistentKeys, client::Resumption, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem::PemObject};
use selvedge_wire::spiffe::SpiffeId;
use std::sync::Arc;
use webpki::RevocationCheckDepth;

/// A CA of somebody else whose certificates are believed of nodes that join, and for nothing else.
#[derive(Debug, Clone, PartialEq)]
pub struct JoinCa {
    pub name: String,
    pub bundle: Bundle,
}

/// A certificate of a [`JoinCa`] that is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinCertificate {
    /// Names of the CAs that it leads to.
    pub cas: Vec<String>,
    /// The SPIFFE ID that it names. A certificate with a `spiffe://` URI that is none, or with another URI beside it, is
    /// refused.
    pub id: Option<SpiffeId>,
    /// DNS names among its subject alternative names, in lower case; none with an asterisk.
    pub dns: Vec<String>,
    pub serial: Serial,
    /// Seconds since 1970, both.
    pub not_before: u64,
    pub not_after: u64,
}

impl JoinCa {
    /// From PEM: roots, and CRLs if there are any.
    pub fn from_pem(name: &str, pem: &[u8]) -> Result<Self, Error> {
        let mut bundle = Bundle::from_pem(pem)?;
        for list in CertificateRevocationListDer::pem_slice_iter(pem) {
            bundle = bundle.with_crl(&list.map_err(|e| Error::Pem(e.to_string()))?)?;
        }
        Ok(Self { name: name.to_owned(), bundle })
    }

    /// When the last of its roots ends, and with it all that it has signed. Seconds since 1970.
    pub fn ends(&self) -> u64 {
        self.bundle.roots.iter().map(|root| root.not_after.0).max().unwrap_or(0)
    }
}

impl JoinCertificate {
    /// What it names, for people.
    pub fn names(&self) -> String {
        match &self.id {
            Some(id) => id.to_string(),
            None if self.dns.is_empty() => "neither a SPIFFE ID nor a DNS name".to_owned(),
            None => self.dns.iter().take(10).map(|name| name.escape_debug().to_string()).collect::<Vec<_>>().join(", "),
        }
    }
}

/// Judges a chain, leaf first. The signature by the leaf's key is the handshake's to check.
pub(crate) fn judge(cas: &[JoinCa], chain: &[CertificateDer<'_>], now: UnixTime) -> Result<JoinCertificate, Refused> {
    let (first, intermediates) = chain.split_first().ok_or(Refused::NoCertificate)?;
    let mut certificate = leaf::read_join(first)?;
    let mut why = "no CA is named whose certificates may join (--join-ca)".to_owned();
    for ca in cas {
        let verified = verify::path(
            &ca.bundle,
            first,
            intermediates,
            webpki::KeyUsage::client_auth(),
            RevocationCheckDepth::Chain,
            now,
        );
        match verified {
            Ok(()) => certificate.cas.push(ca.name.clone()),
            Err(reason) => why = format!("{}: {reason}", ca.name),
        }
    }
    match certificate.cas.is_empty() {
        true => Err(Refused::Join { reason: why }),
        false => Ok(certificate),
    }
}

/// A TLS client for the control plane of `trust_domain`, known by its roots, that shows a certificate of another CA.
/// `chain` and `key` are PEM; the key may be of any kind that TLS 1.3 can use.
///
/// # Errors
/// When they cannot be read, or do not belong to each other.
pub fn joining_config(
    trust_domain: &str,
    roots: Bundle,
    (chain, key): (&[u8], &[u8]),
    alpn: &[&[u8]],
) -> Result<ClientConfig, Error> {
    let control = control_id(trust_domain).map_err(|_| Error::TrustDomain(trust_domain.to_owned()))?;
    let chain =
        CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>().map_err(|e| Error::Pem(e.to_string()))?;
    if chain.is_empty() {
        return Err(Error::Pem("there is no certificate in it".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| Error::Pem(e.to_string()))?;
    let signing = provider().key_provider.load_private_key(key).map_err(|e| Error::Key(e.to_string()))?;
    let shown = CertifiedKey::new(chain, signing);
    if let Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) = shown.keys_match() {
        return Err(Error::Key("it does not belong to the certificate".to_owned()));
    }
    let trust = Identities::default();
    trust.set_bundles(Bundles::of(trust_domain, roots)?);
    let mut config = config::client_of(trust.live(), &Expect::Exactly(control), Arc::new(shown), alpn)?;
    config.resumption = Resumption::disabled();
    Ok(config)
}
