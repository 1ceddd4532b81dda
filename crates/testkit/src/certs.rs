//! Certificates for tests, good and bad.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, CustomExtension, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A certificate authority, or an intermediate below one.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Certificates between this one and the root, this one first; empty for a root.
    intermediates: Vec<CertificateDer<'static>>,
}

/// A leaf with its key and the intermediates above it.
pub struct Leaf {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    chain_pem: String,
    key_pem: String,
}

/// What to put into a leaf. The default is a P-256 certificate for client and server use that is valid today.
#[derive(Clone, Default)]
pub struct Spec {
    dns: Vec<String>,
    uris: Vec<String>,
    rsa: bool,
    validity: Validity,
    usage: Usage,
    padding: usize,
    raw_name: Option<(u8, Vec<u8>)>,
    authority: bool,
    no_usage: bool,
}

#[derive(Clone, Copy, Default)]
enum Validity {
    #[default]
    Now,
    Past,
    Future,
}

#[derive(Clone, Copy, Default)]
enum Usage {
    #[default]
    Both,
    Server,
    Client,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let issuer = CertifiedIssuer::self_signed(ca_params(name), key(false)).expect("a CA certificate");
        Self { issuer, intermediates: Vec::new() }
    }

    /// An authority below this one; leaves bring its certificate in their chain.
    pub fn intermediate(&self, name: &str) -> Self {
        let issuer = CertifiedIssuer::signed_by(ca_params(name), key(false), &self.issuer).expect("an intermediate");
        let mut intermediates = vec![issuer.der().clone()];
        intermediates.extend(self.intermediates.iter().cloned());
        Self { issuer, intermediates }
    }

    pub fn der(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A list (CRL, DER) of revoked certificates of this authority, by their serial numbers.
    pub fn crl(&self, serials: &[&[u8]]) -> Vec<u8> {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from_slice(&[1]),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("a CRL").der().to_vec()
    }

    /// A certificate for servers and clients with these DNS names.
    pub fn leaf(&self, dns: &[&str]) -> Leaf {
        self.issue(&Spec::dns(dns))
    }

    pub fn issue(&self, spec: &Spec) -> Leaf {
        let key = key(spec.rsa);
        let certificate = spec.params().signed_by(&key, &self.issuer).expect("a leaf certificate");
        let mut chain = vec![certificate.der().clone()];
        chain.extend(self.intermediates.iter().cloned());
        Leaf {
            chain_pem: chain.iter().map(|der| pem(der)).collect(),
            chain,
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            key_pem: key.serialize_pem(),
        }
    }
}

impl Leaf {
    /// The chain as in `tls.crt`.
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// The key as in `tls.key`.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }
}

impl Spec {
    pub fn dns(names: &[&str]) -> Self {
        Self { dns: names.iter().map(|n| (*n).to_owned()).collect(), ..Self::default() }
    }

    /// A workload certificate: one URI name, such as `spiffe://cluster.local/ns/a/sa/b`.
    pub fn uri(uri: &str) -> Self {
        Self { uris: vec![uri.to_owned()], ..Self::default() }
    }

    pub fn with_uri(mut self, uri: &str) -> Self {
        self.uris.push(uri.to_owned());
        self
    }

    /// A DNS name of any bytes, NUL included. Replaces all other names.
    pub fn raw_dns(name: &[u8]) -> Self {
        Self { raw_name: Some((2, name.to_vec())), ..Self::default() }
    }

    /// A URI of any bytes, NUL included. Replaces all other names.
    pub fn raw_uri(uri: &[u8]) -> Self {
        Self { raw_name: Some((6, uri.to_vec())), ..Self::default() }
    }

    /// A leaf that may sign others, which none should.
    pub fn authority(mut self) -> Self {
        self.authority = true;
        self
    }

    /// Without the key usage extension.
    pub fn no_usage(mut self) -> Self {
        self.no_usage = true;
        self
    }

    pub fn rsa(mut self) -> Self {
        self.rsa = true;
        self
    }

    pub fn expired(mut self) -> Self {
        self.validity = Validity::Past;
        self
    }

    pub fn not_yet_valid(mut self) -> Self {
        self.validity = Validity::Future;
        self
    }

    pub fn only_server(mut self) -> Self {
        self.usage = Usage::Server;
        self
    }

    pub fn only_client(mut self) -> Self {
        self.usage = Usage::Client;
        self
    }

    /// Makes the certificate this many bytes larger.
    pub fn padded(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, self.dns.first().map_or("leaf", |name| name));
        let dns = self.dns.iter().map(|name| SanType::DnsName(name.clone().try_into().expect("an ASCII name")));
        let uris = self.uris.iter().map(|uri| SanType::URI(uri.clone().try_into().expect("an ASCII URI")));
        params.subject_alt_names = dns.chain(uris).collect();
        (params.not_before, params.not_after) = match self.validity {
            Validity::Now => (date_time_ymd(2020, 1, 1), date_time_ymd(4000, 1, 1)),
            Validity::Past => (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1)),
            Validity::Future => (date_time_ymd(3999, 1, 1), date_time_ymd(4000, 1, 1)),
        };
        if !self.no_usage {
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        }
        if self.authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params.extended_key_usages = match self.usage {
            Usage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        if self.padding > 0 {
            // An OCTET STRING in a private, non-critical extension.
            let oid = [1, 3, 6, 1, 4, 1, 55555, 1];
            params.custom_extensions.push(CustomExtension::from_oid_content(&oid, vec![4; self.padding]));
        }
        if let Some((tag, name)) = &self.raw_name {
            let length = u8::try_from(name.len()).expect("a short name");
            assert!(length < 120, "longer names need another length encoding");
            let content = [&[0x30, length + 2, 0x80 | tag, length], name.as_slice()].concat();
            params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 17], content));
        }
        params
    }
}

fn key(rsa: bool) -> KeyPair {
    KeyPair::generate_for(if rsa { &PKCS_RSA_SHA256 } else { &PKCS_ECDSA_P256_SHA256 }).expect("a key")
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn pem(der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let word = group.iter().fold(0u32, |w, b| w << 8 | u32::from(*b)) << (8 * (3 - group.len()));
            for i in 0..4 {
                let digit = ALPHABET[(word >> (18 - 6 * i) & 63) as usize] as char;
                out.push(if i <= group.len() { digit } else { '=' });
            }
        }
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject;

    #[test]
    fn pem_reads_back() {
        let leaf = Ca::new("root").intermediate("middle").leaf(&["a.example"]);
        let read: Vec<_> =
            CertificateDer::pem_slice_iter(leaf.chain_pem().as_bytes()).map(|c| c.expect("a certificate")).collect();
        assert_eq!(read, leaf.chain);
        assert_eq!(PrivateKeyDer::from_pem_slice(leaf.key_pem().as_bytes()).expect("a key"), leaf.key);
    }
}
