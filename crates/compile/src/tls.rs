//! Certificates, keys and CA bundles out of Secrets and ConfigMaps.

use crate::snapshot::{CaBundle, Certificate, KeyDer};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use selvedge_model::{ConfigMap, Secret};
use std::{fmt::Write, sync::Arc};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Longest chain that is served, and most certificates in a CA bundle: more is a mistake and slows each handshake.
const MAX_CHAIN: usize = 16;
const MAX_CA: usize = 1024;

/// The certificate and key of a Secret of type `kubernetes.io/tls`.
pub(crate) fn certificate(secret: &Secret) -> Result<Certificate, String> {
    let pem = secret.get("tls.crt").ok_or("the Secret has no `tls.crt`: put the certificate chain there, as PEM")?;
    let key = secret.get("tls.key").ok_or("the Secret has no `tls.key`: put the private key there, as PEM")?;
    let chain = certificates(pem, "tls.crt")?;
    if chain.len() > MAX_CHAIN {
        return Err(format!("`tls.crt` holds {} certificates, at most {MAX_CHAIN} are served", chain.len()));
    }
    let leaf = chain.first().ok_or("`tls.crt` holds no certificate")?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|e| format!("`tls.crt` is no X.509 certificate: {e}"))?;
    if is_encrypted(key) {
        return Err("the private key in `tls.key` is encrypted, which is not supported: decrypt it \
                    (`openssl pkey -in tls.key -out plain.key`) and put the result there"
            .to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("`tls.key` is no PEM private key: {e}"))?;
    check_pair(&key, &parsed)?;
    let name = &secret.metadata;
    Ok(Certificate {
        secret: format!("{}/{}", name.namespace, name.name),
        fingerprint: fingerprint(std::iter::once(leaf)),
        names: dns_names(&parsed),
        not_before: parsed.validity().not_before.timestamp(),
        not_after: parsed.validity().not_after.timestamp(),
        chain,
        key: Arc::new(KeyDer(key)),
    })
}

/// Whether a PEM holds a key that needs a password: PKCS#8 (RFC 5958), or the older form of OpenSSL (RFC 1421 headers).
fn is_encrypted(pem: &[u8]) -> bool {
    let holds = |text: &[u8]| pem.windows(text.len()).any(|part| part == text);
    holds(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || holds(b"Proc-Type: 4,ENCRYPTED")
}

/// CA certificates of a ConfigMap (`ca.crt`).
pub(crate) fn ca_of_config_map(map: &ConfigMap) -> Result<CaBundle, String> {
    ca(map.get("ca.crt"), format!("ConfigMap {}/{}", map.metadata.namespace, map.metadata.name), "ca.crt")
}

/// CA certificates of a Secret (`ca.crt`).
pub(crate) fn ca_of_secret(secret: &Secret) -> Result<CaBundle, String> {
    ca(secret.get("ca.crt"), format!("Secret {}/{}", secret.metadata.namespace, secret.metadata.name), "ca.crt")
}

/// The CA certificates that an entry of a resource holds as PEM.
pub(crate) fn ca(pem: Option<&[u8]>, origin: String, entry: &str) -> Result<CaBundle, String> {
    let pem = pem.ok_or_else(|| format!("{origin} has no `{entry}`: put the CA certificates there, as PEM"))?;
    let certificates = certificates(pem, entry).map_err(|e| format!("{origin}: {e}"))?;
    for der in &certificates {
        X509Certificate::from_der(der)
            .map_err(|e| format!("{origin}: `{entry}` has what is no X.509 certificate: {e}"))?;
    }
    match certificates.len() {
        0 => Err(format!("{origin}: `{entry}` holds no certificate")),
        n if n > MAX_CA => Err(format!("{origin}: `{entry}` holds {n} certificates, at most {MAX_CA} are used")),
        _ => Ok(CaBundle { origin, fingerprint: fingerprint(certificates.iter()), certificates }),
    }
}

/// Several bundles as one, duplicates removed.
pub(crate) fn join(bundles: Vec<Arc<CaBundle>>) -> Option<Arc<CaBundle>> {
    if bundles.len() < 2 {
        return bundles.into_iter().next();
    }
    let origin = bundles.iter().map(|b| b.origin.as_str()).collect::<Vec<_>>().join(", ");
    let mut certificates: Vec<CertificateDer<'static>> = Vec::new();
    for der in bundles.iter().flat_map(|b| &b.certificates) {
        if !certificates.contains(der) {
            certificates.push(der.clone());
        }
    }
    Some(Arc::new(CaBundle { origin, fingerprint: fingerprint(certificates.iter()), certificates }))
}

fn certificates(pem: &[u8], field: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem)
        .take(MAX_CA + 1)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("`{field}` is not PEM: {e}"))
}

/// Whether the key signs for the certificate, by its public half. Loading the key also proves that it is usable.
fn check_pair(key: &PrivateKeyDer<'_>, leaf: &X509Certificate<'_>) -> Result<(), String> {
    let public = keys::public_key(key).ok_or(
        "`tls.key` is no key that TLS can use: RSA of 2048 bits or more, ECDSA P-256, P-384 or P-521, or Ed25519",
    )?;
    let certified = &leaf.public_key().subject_public_key.data;
    if public != certified.as_ref() {
        return Err(
            "`tls.key` does not belong to the first certificate of `tls.crt`: put the leaf first, with its own key"
                .to_owned(),
        );
    }
    Ok(())
}

/// DNS names and IP addresses of the SAN, lower case.
fn dns_names(leaf: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(san)) = leaf.subject_alternative_name() else { return Vec::new() };
    let names = san.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(dns) => Some(dns.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => address(bytes),
        _ => None,
    });
    names.collect()
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string())
}

fn fingerprint<'a>(ders: impl Iterator<Item = &'a CertificateDer<'static>>) -> String {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for der in ders {
        context.update(der);
    }
    context.finish().as_ref().iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

mod keys {
    //! The public half of a private key, as the bits of SubjectPublicKeyInfo.

    use aws_lc_rs::{
        rsa,
        signature::{
            ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
            EcdsaKeyPair, Ed25519KeyPair, KeyPair,
        },
    };
    use rustls_pki_types::PrivateKeyDer;

    pub(super) fn public_key(key: &PrivateKeyDer<'_>) -> Option<Vec<u8>> {
        rsa_key(key).or_else(|| ecdsa_key(key)).or_else(|| ed25519_key(key))
    }

    fn rsa_key(key: &PrivateKeyDer<'_>) -> Option<Vec<u8>> {
        let pair = match key {
            PrivateKeyDer::Pkcs1(der) => rsa::KeyPair::from_der(der.secret_pkcs1_der()),
            PrivateKeyDer::Pkcs8(der) => rsa::KeyPair::from_pkcs8(der.secret_pkcs8_der()),
            _ => return None,
        };
        pair.ok().map(|pair| pair.public_key().as_ref().to_vec())
    }

    fn ecdsa_key(key: &PrivateKeyDer<'_>) -> Option<Vec<u8>> {
        let curves =
            [&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P384_SHA384_ASN1_SIGNING, &ECDSA_P521_SHA512_ASN1_SIGNING];
        curves.into_iter().find_map(|curve| {
            let pair = match key {
                PrivateKeyDer::Sec1(der) => EcdsaKeyPair::from_private_key_der(curve, der.secret_sec1_der()),
                PrivateKeyDer::Pkcs8(der) => EcdsaKeyPair::from_private_key_der(curve, der.secret_pkcs8_der()),
                _ => return None,
            };
            pair.ok().map(|pair| pair.public_key().as_ref().to_vec())
        })
    }

    fn ed25519_key(key: &PrivateKeyDer<'_>) -> Option<Vec<u8>> {
        let PrivateKeyDer::Pkcs8(der) = key else { return None };
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).ok()?;
        Some(pair.public_key().as_ref().to_vec())
    }
}
