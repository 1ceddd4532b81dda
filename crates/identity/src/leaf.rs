//! What the certificate of an identity says (X509-SVID sections 2 to 4).

use crate::{JoinCertificate, Refused};
use rustls_pki_types::CertificateDer;
use selvedge_wire::{log_time::rfc3339, spiffe::SpiffeId};
use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, time::ASN1Time};

/// The serial number of a certificate: big-endian, without leading zeros.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(Box<[u8]>);

impl Serial {
    pub fn new(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        Self(bytes[zeros..].into())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads what `Display` writes; colons between bytes are allowed.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut digits: Vec<u8> =
            text.chars().filter(|c| *c != ':').map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
        if digits.is_empty() {
            return None;
        }
        if digits.len() % 2 == 1 {
            digits.insert(0, 0);
        }
        Some(Self::new(&digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect::<Vec<u8>>()))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A moment in a certificate, in seconds since 1970 (earlier moments are 1970).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct When(pub(crate) u64);

impl When {
    fn of(time: ASN1Time) -> Self {
        Self(u64::try_from(time.timestamp()).unwrap_or(0))
    }

    pub fn time(self) -> SystemTime {
        // Certificates end in the year 9999 at the latest.
        UNIX_EPOCH.checked_add(Duration::from_secs(self.0)).unwrap_or(UNIX_EPOCH)
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&rfc3339(self.0))
    }
}

/// What matters of a leaf.
#[derive(Debug, Clone)]
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    pub(crate) serial: Serial,
    pub(crate) not_before: When,
    pub(crate) not_after: When,
}

/// From when until when a certificate, a root say, is valid.
pub(crate) fn validity(der: &CertificateDer<'_>) -> Result<(When, When), Refused> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| Refused::Malformed)?;
    Ok((When::of(certificate.validity().not_before), When::of(certificate.validity().not_after)))
}

/// Reads a leaf and checks all that a leaf itself shows: one SPIFFE ID, and that it is no authority.
pub(crate) fn read(der: &CertificateDer<'_>) -> Result<Leaf, Refused> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| Refused::Malformed)?;
    let id = id(&certificate)?;
    let authority = certificate
        .basic_constraints()
        .map_err(|_| Refused::Malformed)?
        .is_some_and(|constraints| constraints.value.ca);
    let usage = certificate.key_usage().map_err(|_| Refused::Malformed)?;
    if authority || usage.as_ref().is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign()) {
        return Err(Refused::Authority { id });
    }
    if !usage.is_some_and(|usage| usage.value.digital_signature()) {
        return Err(Refused::Usage { id });
    }
    Ok(Leaf {
        id,
        serial: Serial::new(certificate.raw_serial()),
        not_before: When::of(certificate.validity().not_before),
        not_after: When::of(certificate.validity().not_after),
    })
}

/// Reads a certificate of another CA that somebody joins with; which CA is not known yet.
pub(crate) fn read_join(der: &CertificateDer<'_>) -> Result<JoinCertificate, Refused> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| Refused::Malformed)?;
    let refuse = |reason: &str| Refused::Join { reason: reason.to_owned() };
    let constraints = certificate.basic_constraints().map_err(|_| Refused::Malformed)?;
    let usage = certificate.key_usage().map_err(|_| Refused::Malformed)?.map(|usage| usage.value);
    let signs_others = usage.is_some_and(|usage| usage.key_cert_sign() || usage.crl_sign());
    if constraints.is_some_and(|constraints| constraints.value.ca) || signs_others {
        return Err(refuse("it is one that signs others"));
    }
    if usage.is_some_and(|usage| !usage.digital_signature()) {
        return Err(refuse("it is not for signatures (key usage digitalSignature)"));
    }
    let (mut dns, mut uris) = (Vec::new(), Vec::new());
    let names = certificate.subject_alternative_name().map_err(|_| Refused::Malformed)?;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::DNSName(name) if !name.contains('*') => dns.push(name.to_ascii_lowercase()),
            GeneralName::Invalid(..) => return Err(Refused::Malformed),
            _ => {}
        }
    }
    let is_spiffe = |uri: &&str| uri.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:"));
    let id = match uris.iter().any(is_spiffe) {
        false => None,
        true => Some(id(&certificate)?),
    };
    Ok(JoinCertificate {
        cas: Vec::new(),
        id,
        dns,
        serial: Serial::new(certificate.raw_serial()),
        not_before: When::of(certificate.validity().not_before).0,
        not_after: When::of(certificate.validity().not_after).0,
    })
}

fn id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, Refused> {
    // An error also when the extension is there twice.
    let names = certificate.subject_alternative_name().map_err(|_| Refused::Malformed)?.ok_or(Refused::NoUri)?;
    let mut uris = Vec::new();
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            // A URI whose bytes are no text ends here.
            GeneralName::Invalid(..) => return Err(Refused::Malformed),
            _ => {}
        }
    }
    match uris.as_slice() {
        [] => Err(Refused::NoUri),
        [uri] => uri.parse().map_err(|why| Refused::NotAnId { uri: shown(uri), why }),
        many => Err(Refused::ManyUris(many.len())),
    }
}

/// A hostile text for a message: escaped, and not long.
fn shown(text: &str) -> String {
    text.chars().take(120).collect::<String>().escape_debug().to_string()
}
