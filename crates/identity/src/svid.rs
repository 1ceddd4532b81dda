//! One identity of ours.

use crate::{
    Error, Refused, Serial,
    config::provider,
    leaf::{self, Leaf, When},
};
use rustls::{InconsistentKeys, SignatureScheme, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use selvedge_wire::spiffe::SpiffeId;
use std::{fmt, sync::Arc, time::SystemTime};

/// An X.509 SVID with its key: what we show to others.
pub struct Svid {
    leaf: Leaf,
    key: PrivateKeyDer<'static>,
    certified: Arc<CertifiedKey>,
}

impl Svid {
    /// `chain` is the leaf and the intermediates above it, without the root.
    ///
    /// # Errors
    /// When the leaf is not an SVID, or the key does not belong to it. Whether it is valid now is not looked at.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, Error> {
        let leaf = leaf::read(chain.first().ok_or(Refused::NoCertificate)?)?;
        let signing =
            provider().key_provider.load_private_key(key.clone_key()).map_err(|e| Error::Key(e.to_string()))?;
        let certified = CertifiedKey::new(chain, signing);
        if let Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) = certified.keys_match() {
            return Err(Error::WrongKey(leaf.id));
        }
        Ok(Self { leaf, key, certified: Arc::new(certified) })
    }

    /// From PEM texts of the chain and the key (PKCS #8, SEC1 or PKCS #1).
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, Error> {
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| Error::Pem(e.to_string()))?;
        Self::new(chain, PrivateKeyDer::from_pem_slice(key).map_err(|e| Error::Pem(e.to_string()))?)
    }

    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    pub fn serial(&self) -> &Serial {
        &self.leaf.serial
    }

    pub fn not_before(&self) -> SystemTime {
        self.leaf.not_before.time()
    }

    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after.time()
    }

    /// Leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// For the Workload API and for storing it; never for a log.
    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// Signs with the key, to prove that it is ours where no TLS connection does. ECDSA on P-256 with SHA-256, ASN.1.
    ///
    /// # Errors
    /// When the key is of another kind.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signer = self.certified.key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]);
        let signer = signer.ok_or_else(|| Error::Key("it is not an ECDSA key on P-256".to_owned()))?;
        signer.sign(message).map_err(|e| Error::Key(e.to_string()))
    }

    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    pub(crate) fn expired(&self, now: u64) -> Option<When> {
        (now > self.leaf.not_after.0).then_some(self.leaf.not_after)
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Svid({} serial {} until {})", self.leaf.id, self.leaf.serial, self.leaf.not_after)
    }
}
