//! A new key and the request for its certificate.

use crate::Error;
use rcgen::{CertificateParams, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use selvedge_wire::spiffe::SpiffeId;
use std::fmt;

/// An ECDSA key on P-256, made here; it leaves the process only where its owner stores it.
pub struct KeyPair(rcgen::KeyPair);

impl KeyPair {
    pub fn generate() -> Result<Self, Error> {
        rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(|e| Error::Request(e.to_string()))
    }

    /// A key that was made here before, as [`private_key`](Self::private_key) gave it out.
    ///
    /// # Errors
    /// When it is none, or not one on P-256.
    pub fn from_private_key(key: &PrivateKeyDer<'_>) -> Result<Self, Error> {
        let PrivateKeyDer::Pkcs8(pkcs8) = key else {
            return Err(Error::Request("the key is not in PKCS #8".to_owned()));
        };
        let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(pkcs8, &PKCS_ECDSA_P256_SHA256);
        key.map(Self).map_err(|e| Error::Request(e.to_string()))
    }

    /// A PKCS #10 request (RFC 2986, DER) for a certificate of this identity, signed by this key.
    pub fn request(&self, id: &SpiffeId) -> Result<Vec<u8>, Error> {
        let failed = |e: rcgen::Error| Error::Request(e.to_string());
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(failed)?)];
        Ok(params.serialize_request(&self.0).map_err(failed)?.der().to_vec())
    }

    /// PKCS #8.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()))
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair")
    }
}
