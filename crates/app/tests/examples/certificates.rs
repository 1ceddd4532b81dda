//! The certificates of the examples. Anyone has their keys: they are for trying things out and nothing else.
//!
//! `UPDATE=1 cargo test -p selvedge --test examples certificates` makes them anew, with the crate `rcgen`.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use std::{fs, path::Path};

const NOTE: &str =
    "# EXAMPLE: anyone has the keys of these certificates. Made by crates/app/tests/examples/certificates.rs.\n";

/// Thirty years.
const FROM: i32 = 2026;
const TO: i32 = 2056;

pub fn write(examples: &Path) {
    let ca = ca();
    let shop = leaf(&ca, "shop.example");
    let client = leaf(&ca, "client.example");
    let backend = leaf(&ca, "backend.example");
    let put = |name: &str, text: String| fs::write(examples.join(name), text).expect("a file");
    for folder in ["tls", "tls-passthrough", "client-certificates"] {
        put(&format!("{folder}/ca.pem"), format!("{NOTE}{}", ca.pem()));
    }
    // `selvedge demo` makes one of its own instead.
    put("demo/certificate.yaml", format!("{NOTE}{}", secret("shop-tls", &leaf(&ca, "shop.localhost"))));
    put("tls/certificates.yaml", format!("{NOTE}{}", secret("shop-cert", &shop)));
    put("tls-passthrough/backend.pem", format!("{NOTE}{}", shop.0));
    put("tls-passthrough/backend.key", format!("{NOTE}{}", shop.1));
    let both = format!("{NOTE}{}---\n{}", secret("shop-cert", &shop), config_map("clients-ca", &ca.pem()));
    put("client-certificates/certificates.yaml", both);
    put("client-certificates/client.pem", format!("{NOTE}{}", client.0));
    put("client-certificates/client.key", format!("{NOTE}{}", client.1));
    put("backend-tls/certificates.yaml", format!("{NOTE}{}", config_map("backend-ca", &ca.pem())));
    put("backend-tls/backend.pem", format!("{NOTE}{}", backend.0));
    put("backend-tls/backend.key", format!("{NOTE}{}", backend.1));
}

fn ca() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = params("Selvedge examples: never trust this");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, key()).expect("a CA certificate")
}

/// Certificate and key, in PEM.
fn leaf(ca: &CertifiedIssuer<'static, KeyPair>, name: &str) -> (String, String) {
    let key = key();
    let mut params = params(name);
    params.subject_alt_names = vec![SanType::DnsName(name.try_into().expect("a name"))];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    (params.signed_by(&key, ca).expect("a certificate").pem(), key.serialize_pem())
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key")
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (date_time_ymd(FROM, 1, 1), date_time_ymd(TO, 1, 1));
    params
}

fn secret(name: &str, (certificate, key): &(String, String)) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
        indented(certificate),
        indented(key)
    )
}

fn config_map(name: &str, ca: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata:\n  ca.crt: |\n{}", indented(ca))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}
