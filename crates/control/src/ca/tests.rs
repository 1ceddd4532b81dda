//! The authority with a clock that stands still: what its tests share.

mod disk;
mod foreign;
mod joining;
mod machine;
mod planes;
mod steps;

use super::{core::Core, csr::Request, seal::Sealed, state::Phase, time::at, *};
use crate::ca::authority::fingerprint;
use ::core::sync::atomic::{AtomicU64, Ordering};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use selvedge_wire::spiffe::SpiffeId;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use x509_parser::parse_x509_certificate;

const DOMAIN: &str = "mesh.example";
const START: u64 = 1_800_000_000;
const HOUR: u64 = 3600;

fn id(account: &str) -> SpiffeId {
    SpiffeId::workload(DOMAIN, "shop", account).unwrap()
}

fn csr(key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serialize_request(key).unwrap().der().to_vec()
}

fn new_csr() -> Vec<u8> {
    csr(&KeyPair::generate().unwrap())
}

/// A clock that stands still until it is moved.
#[derive(Clone)]
struct Hand(Arc<AtomicU64>);

impl Hand {
    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(START)))
    }

    fn clock(&self) -> Clock {
        let seconds = Arc::clone(&self.0);
        Arc::new(move || at(seconds.load(Ordering::Relaxed)))
    }

    fn forward(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }

    fn back(&self, seconds: u64) {
        self.0.fetch_sub(seconds, Ordering::Relaxed);
    }

    fn now(&self) -> SystemTime {
        at(self.0.load(Ordering::Relaxed))
    }
}

fn options(lifetimes: Lifetimes) -> Options {
    Options { trust_domain: Some(DOMAIN.to_owned()), mesh: None, lifetimes, files: None }
}

fn passphrase() -> Key {
    Key::Passphrase("correct horse battery".to_owned())
}

async fn open(store: &Arc<Memory>, hand: &Hand) -> Result<Ca, Error> {
    Ca::open(Arc::clone(store) as _, &passphrase(), options(Lifetimes::default()), hand.clock()).await
}

/// Whether a chain leads to a root of the bundle and every certificate in it is valid at `now`.
fn verifies(chain: &[Der], bundle: &Bundle, now: SystemTime) -> Result<(), String> {
    let now = i64::try_from(time::seconds(now)).unwrap();
    for (i, der) in chain.iter().enumerate() {
        let (_, certificate) = parse_x509_certificate(der).map_err(|e| e.to_string())?;
        let validity = certificate.validity();
        if now < validity.not_before.timestamp() || now > validity.not_after.timestamp() {
            return Err(format!("certificate {i} is not valid at {now}"));
        }
        let signed_by = |issuer: &Der| {
            let (_, issuer) = parse_x509_certificate(issuer).unwrap();
            certificate.issuer() == issuer.subject() && certificate.verify_signature(Some(issuer.public_key())).is_ok()
        };
        match chain.get(i + 1) {
            Some(issuer) if !signed_by(issuer) => return Err(format!("certificate {i} is not signed by the next")),
            None if !bundle.roots.iter().any(signed_by) => return Err("no root of the bundle has signed it".to_owned()),
            _ => {}
        }
    }
    Ok(())
}

fn order(life: u64, uses: u32) -> Order {
    Order { id: id("orders"), life: Duration::from_secs(life), uses }
}

fn quick() -> Lifetimes {
    Lifetimes {
        root: Duration::from_secs(4000),
        intermediate: Duration::from_secs(1000),
        svid: Duration::from_secs(100),
        overlap: Duration::from_secs(100),
        grace: Duration::ZERO,
    }
}
