//! One certificate authority: a key and its certificate, root or intermediate, and what it signs.

use super::{
    csr::Request,
    error::Error,
    state::{SavedAuthority, SavedRevocation},
    time::{LAST, SKEW, seconds},
};
use aws_lc_rs::{digest, rand::SecureRandom};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use selvedge_identity::Serial;
use selvedge_wire::spiffe::SpiffeId;
use std::{fmt, time::Duration, time::SystemTime};

/// A certificate in DER.
pub type Der = Vec<u8>;

/// A key that signs certificates, with the certificate that says so.
pub struct Authority {
    issuer: rcgen::Issuer<'static, KeyPair>,
    /// Its own certificate first; for an intermediate, what leads to a root after it.
    chain: Vec<Der>,
    /// Seconds since 1970.
    pub not_after: u64,
}

/// What an authority signed for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The certificate, then the intermediates; the root is not in it.
    pub chain: Vec<Der>,
    pub serial: Serial,
    /// Seconds since 1970, both.
    pub not_before: u64,
    pub not_after: u64,
}

impl Authority {
    /// A new root of `domain` that lives for `life`.
    pub fn root(domain: &str, life: Duration, now: SystemTime) -> Result<Self, Error> {
        let key = KeyPair::generate().map_err(Error::crypto)?;
        let (params, not_after) = authority_params(domain, "root", BasicConstraints::Constrained(1), life, now)?;
        let certificate = params.self_signed(&key).map_err(Error::crypto)?;
        let chain = vec![certificate.der().to_vec()];
        Ok(Self { issuer: rcgen::Issuer::new(params, key), chain, not_after })
    }

    /// A new intermediate below this root; it ends with its root at the latest.
    pub fn intermediate(&self, domain: &str, life: Duration, now: SystemTime) -> Result<Self, Error> {
        let key = KeyPair::generate().map_err(Error::crypto)?;
        let (mut params, not_after) =
            authority_params(domain, "intermediate", BasicConstraints::Constrained(0), life, now)?;
        let not_after = not_after.min(self.not_after);
        validity(&mut params, seconds(now), not_after);
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(Error::crypto)?;
        let chain = vec![certificate.der().to_vec()];
        Ok(Self { issuer: rcgen::Issuer::new(params, key), chain, not_after })
    }

    /// One that exists: its key, its certificate and what leads from there to a root. That key and certificate belong
    /// together and that the certificate may sign is checked.
    pub fn existing(key: KeyPair, chain: Vec<Der>) -> Result<Self, String> {
        let own = chain.first().ok_or("there is no certificate")?;
        let (_, parsed) = x509_parser::parse_x509_certificate(own).map_err(|e| format!("not a certificate: {e}"))?;
        if !parsed.is_ca() {
            return Err("the certificate is not one of a certificate authority (CA:TRUE is missing)".to_owned());
        }
        if parsed.key_usage().ok().flatten().is_some_and(|u| !u.value.key_cert_sign()) {
            return Err("the certificate may not sign certificates (key usage keyCertSign is missing)".to_owned());
        }
        if rcgen::PublicKeyData::subject_public_key_info(&key) != parsed.public_key().raw {
            return Err("key and certificate do not belong together".to_owned());
        }
        let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let issuer = rcgen::Issuer::from_ca_cert_der(&own.as_slice().into(), key).map_err(|e| e.to_string())?;
        Ok(Self { issuer, chain, not_after })
    }

    /// Its own certificate.
    pub fn certificate(&self) -> &Der {
        &self.chain[0]
    }

    /// Whether the end of its chain is signed by that root.
    pub(super) fn leads_to(&self, root: &[u8]) -> bool {
        let Some(last) = self.chain.last() else { return false };
        let parsed = x509_parser::parse_x509_certificate(last).ok().zip(x509_parser::parse_x509_certificate(root).ok());
        parsed.is_some_and(|((_, last), (_, root))| last.verify_signature(Some(root.public_key())).is_ok())
    }

    /// SHA-256 of its certificate.
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(self.certificate())
    }

    /// An X.509 SVID for the key in `request` (X509-SVID sections 2 to 4). It begins two minutes before `from`, and ends with
    /// this authority at the latest.
    pub fn sign(
        &self,
        request: &Request,
        id: &SpiffeId,
        life: Duration,
        (from, now): (SystemTime, SystemTime),
    ) -> Result<Leaf, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = organisation();
        params.subject_alt_names = vec![uri(id.as_str())?];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let serial = random_serial()?;
        params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
        let not_after = seconds(now).saturating_add(life.as_secs()).min(self.not_after);
        let not_before = validity(&mut params, seconds(from), not_after);
        let certificate = params.signed_by(request.key(), &self.issuer).map_err(Error::crypto)?;
        let mut chain = vec![certificate.der().to_vec()];
        chain.extend(self.chain.iter().cloned());
        Ok(Leaf { chain, serial, not_before, not_after })
    }

    /// The revoked certificates of this authority, signed (RFC 5280 section 5).
    pub(super) fn revocation_list(
        &self,
        number: u64,
        revoked: &[&SavedRevocation],
        now: u64,
        next: u64,
    ) -> Result<Der, Error> {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let revoked_certs = revoked.iter().filter_map(|r| {
            Some(RevokedCertParams {
                serial_number: SerialNumber::from_slice(Serial::from_hex(r.serial.as_deref()?)?.as_bytes()),
                revocation_time: epoch + Duration::from_secs(r.at.min(LAST)),
                reason_code: None,
                invalidity_date: None,
            })
        });
        let params = CertificateRevocationListParams {
            this_update: epoch + Duration::from_secs(now.saturating_sub(SKEW.as_secs())),
            next_update: epoch + Duration::from_secs(next.min(LAST)),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).map_err(Error::crypto)?;
        Ok(list.der().to_vec())
    }

    #[cfg(test)]
    pub(super) fn sign_foreign(&self, params: &CertificateParams, key: &KeyPair) -> Der {
        params.signed_by(key, &self.issuer).unwrap().der().to_vec()
    }

    pub(super) fn save(&self) -> SavedAuthority {
        SavedAuthority::new(self.issuer.key().serialized_der(), &self.chain)
    }

    pub(super) fn restore(saved: &SavedAuthority) -> Result<Self, Error> {
        let damaged = |why: String| Error::Damaged { what: "an authority".to_owned(), why };
        let (key, chain) = saved.parts().ok_or_else(|| damaged("it is not base64".to_owned()))?;
        let key = KeyPair::try_from(key).map_err(|e| damaged(e.to_string()))?;
        Self::existing(key, chain).map_err(damaged)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { issuer: _, chain: _, not_after } = self;
        f.debug_struct("Authority").field("not_after", not_after).finish_non_exhaustive()
    }
}

/// 16 random bytes; positive in DER, and of full length whatever follows (RFC 5280 section 4.1.2.2).
fn random_serial() -> Result<Serial, Error> {
    let mut bytes = random::<16>()?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(Serial::new(&bytes))
}

/// SHA-256 of a certificate.
pub fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
    out
}

/// Random bytes from the operating system's generator.
pub(super) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    let generator = aws_lc_rs::rand::SystemRandom::new();
    generator.fill(&mut bytes).map_err(|_| Error::Crypto("the system gives no random bytes".to_owned()))?;
    Ok(bytes)
}

fn authority_params(
    domain: &str,
    what: &str,
    constraints: BasicConstraints,
    life: Duration,
    now: SystemTime,
) -> Result<(CertificateParams, u64), Error> {
    let serial = random_serial()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = organisation();
    // X.509 has room for 64 characters; the serial tells generations apart.
    let shown: String = domain.chars().take(30).collect();
    let generation: String = serial.to_string().chars().take(8).collect();
    params.distinguished_name.push(DnType::CommonName, format!("{shown} {what} {generation}"));
    params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))?];
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    let not_after = seconds(now).saturating_add(life.as_secs()).min(LAST);
    validity(&mut params, seconds(now), not_after);
    Ok((params, not_after))
}

/// From two minutes before `now`. Returns when that is.
fn validity(params: &mut CertificateParams, now: u64, not_after: u64) -> u64 {
    let not_before = now.saturating_sub(SKEW.as_secs());
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(not_before.min(LAST));
    params.not_after = epoch + Duration::from_secs(not_after.min(LAST));
    not_before
}

fn organisation() -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Selvedge");
    name
}

fn uri(text: &str) -> Result<SanType, Error> {
    Ok(SanType::URI(text.to_owned().try_into().map_err(Error::crypto)?))
}
