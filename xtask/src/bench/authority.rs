//! A certificate authority of the benchmark: for Envoy, for the control plane, and for loads that play a member of the mesh.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

pub const TRUST_DOMAIN: &str = "cluster.local";

/// A root with an intermediate, which signs; both as PEM files.
pub struct Authority {
    intermediate: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
    pub root: PathBuf,
    /// The intermediate alone.
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// A certificate with a SPIFFE ID: its chain, and its key.
#[derive(Clone)]
pub struct Svid {
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// The ID of a workload of the namespace `bench`.
pub fn id(account: &str) -> String {
    spiffe("bench", account)
}

fn spiffe(namespace: &str, account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}")
}

impl Authority {
    pub fn new(dir: &Path) -> Result<Self> {
        let dir = dir.join("authority");
        fs::create_dir_all(&dir)?;
        let root = CertifiedIssuer::self_signed(params("root")?, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let key_pem = key.serialize_pem();
        let intermediate = CertifiedIssuer::signed_by(params("intermediate")?, key, &root)?;
        let made = Self {
            root: dir.join("root.pem"),
            chain: dir.join("intermediate.pem"),
            key: dir.join("intermediate.key"),
            intermediate,
            dir,
        };
        fs::write(&made.root, root.pem())?;
        fs::write(&made.chain, made.intermediate.pem())?;
        fs::write(&made.key, key_pem)?;
        Ok(made)
    }

    /// A certificate of a workload of the namespace `bench`, or of a control plane (`control`).
    pub fn issue(&self, account: &str) -> Result<Svid> {
        let namespace = if account == "control" { "selvedge-system" } else { "bench" };
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(spiffe(namespace, account).try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.intermediate).context("cannot sign a certificate")?;
        let svid =
            Svid { chain: self.dir.join(format!("{account}.pem")), key: self.dir.join(format!("{account}.key")) };
        fs::write(&svid.chain, format!("{}{}", leaf.pem(), self.intermediate.pem()))?;
        fs::write(&svid.key, key.serialize_pem())?;
        Ok(svid)
    }
}

fn params(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("bench {name}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // A signing certificate names its trust domain (X.509-SVID 3.2).
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{TRUST_DOMAIN}").try_into()?)];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}
