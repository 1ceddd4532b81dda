//! Certificate signing requests of nodes (RFC 2986). Only the key is taken from them: who it is for, is known otherwise.

use rcgen::SubjectPublicKeyInfo;
use selvedge_wire::spiffe::SpiffeId;
use x509_parser::{
    certification_request::X509CertificationRequest, extensions::GeneralName, extensions::ParsedExtension,
    oid_registry, prelude::FromDer, public_key::PublicKey,
};

/// The longest request that is read, in bytes; one for a P-256 key is about 400.
pub const MAX_LENGTH: usize = 8 * 1024;

/// A request whose signature was checked: whoever made it has the private key.
#[derive(Debug, Clone)]
pub struct Request {
    key: SubjectPublicKeyInfo,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("the certificate request is longer than 8 KiB")]
    TooLong,
    #[error("the certificate request is not PKCS #10 in DER: {0}")]
    Syntax(String),
    #[error("the certificate request is not signed by its own key")]
    Signature,
    #[error("the certificate request has a key of a kind that is not issued for: use ECDSA P-256 or P-384")]
    Key,
    #[error("the certificate request names {asked}, but it is for {id}: leave names out, or name that ID")]
    Name { asked: String, id: SpiffeId },
}

impl Request {
    /// Reads and checks a request for a certificate of `id`. A URI in it must be that ID; all else in it is ignored.
    pub fn read(der: &[u8], id: &SpiffeId) -> Result<Self, Invalid> {
        if der.len() > MAX_LENGTH {
            return Err(Invalid::TooLong);
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|e| Invalid::Syntax(e.to_string()))?;
        if !rest.is_empty() {
            return Err(Invalid::Syntax("something follows it".to_owned()));
        }
        let info = &request.certification_request_info;
        let key = Self::key_of(&info.subject_pki)?;
        request.verify_signature().map_err(|_| Invalid::Signature)?;
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
            for name in &names.general_names {
                if let GeneralName::URI(uri) = name
                    && *uri != id.as_str()
                {
                    let asked: String = uri.chars().filter(|c| !c.is_control()).take(200).collect();
                    return Err(Invalid::Name { asked, id: id.clone() });
                }
            }
        }
        Ok(Self { key })
    }

    fn key_of(info: &x509_parser::x509::SubjectPublicKeyInfo<'_>) -> Result<SubjectPublicKeyInfo, Invalid> {
        let curve = info.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
        let strong = curve.is_some_and(|c| c == oid_registry::OID_EC_P256 || c == oid_registry::OID_NIST_EC_P384);
        let point = matches!(info.parsed(), Ok(PublicKey::EC(_)));
        if !strong || !point {
            return Err(Invalid::Key);
        }
        SubjectPublicKeyInfo::from_der(info.raw).map_err(|_| Invalid::Key)
    }

    pub(super) fn key(&self) -> &SubjectPublicKeyInfo {
        &self.key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    fn id() -> SpiffeId {
        SpiffeId::workload("mesh.example", "shop", "orders").unwrap()
    }

    fn made(names: &[&str], key: &KeyPair) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["ignored.example".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names.extend(names.iter().map(|n| rcgen::SanType::URI((*n).try_into().unwrap())));
        params.serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn what_is_taken() {
        let key = KeyPair::generate().unwrap();
        assert!(Request::read(&made(&[], &key), &id()).is_ok());
        assert!(Request::read(&made(&["spiffe://mesh.example/ns/shop/sa/orders"], &key), &id()).is_ok());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(Request::read(&made(&[], &key), &id()).is_ok());
    }

    #[test]
    fn what_is_refused() {
        let key = KeyPair::generate().unwrap();
        let other = Request::read(&made(&["spiffe://mesh.example/ns/shop/sa/admin"], &key), &id());
        assert!(matches!(other, Err(Invalid::Name { .. })), "{other:?}");
        let weak = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        assert_eq!(Request::read(&made(&[], &weak), &id()).unwrap_err(), Invalid::Key);
        let mut broken = made(&[], &key);
        let last = broken.len() - 1;
        broken[last] ^= 1;
        assert!(matches!(Request::read(&broken, &id()), Err(Invalid::Signature | Invalid::Syntax(_))));
        let mut longer = made(&[], &key);
        longer.push(0);
        assert!(matches!(Request::read(&longer, &id()), Err(Invalid::Syntax(_))));
        assert!(matches!(Request::read(b"", &id()), Err(Invalid::Syntax(_))));
        assert_eq!(Request::read(&vec![0; MAX_LENGTH + 1], &id()).unwrap_err(), Invalid::TooLong);
    }
}
