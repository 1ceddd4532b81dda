//! An authority and a server certificate for the demo, made at start and gone with it.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Names of this machine that the certificate is good for.
const NAMES: [&str; 2] = ["localhost", "shop.localhost"];
/// Long enough for a demo, short enough for browsers and for a key that lies in a folder.
const VALID: Duration = Duration::from_secs(30 * 24 * 3600);
/// For clients whose clock is behind.
const SKEW: Duration = Duration::from_secs(24 * 3600);

/// In PEM.
pub struct Certificate {
    pub authority: String,
    pub chain: String,
    pub key: String,
}

impl Certificate {
    pub fn generate() -> Result<Self> {
        let mut params = params("Selvedge demo authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let mut params = self::params("Selvedge demo shop");
        for name in NAMES {
            params.subject_alt_names.push(SanType::DnsName(name.try_into()?));
        }
        params.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
        params.subject_alt_names.push(SanType::IpAddress(Ipv6Addr::LOCALHOST.into()));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &authority)?;
        Ok(Self { authority: authority.pem(), chain: leaf.pem(), key: key.serialize_pem() })
    }

    /// The Secret that the HTTPS listener of the demo names.
    pub fn secret(&self) -> String {
        let block = |pem: &str| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
        format!(
            "# Made when the demo started; curl trusts it with `--cacert ca.pem`.\n\
             apiVersion: v1\nkind: Secret\nmetadata: {{name: shop-tls}}\ntype: kubernetes.io/tls\nstringData:\n  \
             tls.crt: |\n{}  tls.key: |\n{}",
            block(&self.chain),
            block(&self.key)
        )
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(SKEW);
    params.not_after = epoch + now + VALID;
    params
}
