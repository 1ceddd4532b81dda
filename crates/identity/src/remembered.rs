//! Signatures of certificates and revocation lists that were right once.
//!
//! A member meets the same peers with the same certificates again and again, and each handshake would check two or three
//! signatures that were checked before. Whether a signature fits a key and a message never changes, so nothing that can end
//! (dates, roots, revocations) depends on what is remembered: all that is judged anew each time.

use crate::config::provider;
use ahash::AHashSet;
use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use rustls_pki_types::{AlgorithmIdentifier, FipsStatus, InvalidSignature, SignatureVerificationAlgorithm};
use std::{
    mem,
    sync::{LazyLock, Mutex, PoisonError},
};

/// Signatures remembered of late, and as many of before: 256 KiB at most, for a few thousand peers.
const MANY: usize = 4096;

/// The SHA-256 of algorithm, key, message and signature.
type Digest = [u8; SHA256_OUTPUT_LEN];

/// The algorithms of our provider, with a memory. Not for signatures within a handshake, which never come again.
pub(crate) fn algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    static ALGORITHMS: LazyLock<Vec<&'static dyn SignatureVerificationAlgorithm>> = LazyLock::new(|| {
        let all = provider().signature_verification_algorithms.all.iter().enumerate();
        all.map(|(place, of)| &*Box::leak(Box::new(Remembering { place, of: *of })) as _).collect()
    });
    &ALGORITHMS
}

#[derive(Debug)]
struct Remembering {
    /// Among the provider's algorithms.
    place: usize,
    of: &'static dyn SignatureVerificationAlgorithm,
}

impl SignatureVerificationAlgorithm for Remembering {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        static RIGHT: LazyLock<Mutex<Right>> = LazyLock::new(Mutex::default);
        let right = || RIGHT.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = digest(self.place, &[key, message, signature]);
        if right().has(&digest) {
            return Ok(());
        }
        self.of.verify_signature(key, message, signature)?;
        right().add(digest);
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.of.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.of.signature_alg_id()
    }

    fn fips_status(&self) -> FipsStatus {
        self.of.fips_status()
    }
}

/// With the length of each part, so that what belongs to one cannot count as another's.
fn digest(place: usize, parts: &[&[u8]]) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(&place.to_be_bytes());
    for part in parts {
        context.update(&part.len().to_be_bytes());
        context.update(part);
    }
    let mut digest = [0; SHA256_OUTPUT_LEN];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

/// What is used stays: it moves on when the older half is forgotten.
#[derive(Default)]
struct Right {
    late: AHashSet<Digest>,
    before: AHashSet<Digest>,
}

impl Right {
    fn has(&mut self, digest: &Digest) -> bool {
        if self.late.contains(digest) {
            return true;
        }
        let known = self.before.contains(digest);
        if known {
            self.add(*digest);
        }
        known
    }

    fn add(&mut self, digest: Digest) {
        if self.late.len() >= MANY {
            self.before = mem::take(&mut self.late);
        }
        self.late.insert(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
    };

    #[test]
    fn only_the_same_signature_of_the_same_message_by_the_same_key_is_right() {
        let random = SystemRandom::new();
        let key = || {
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).expect("a key");
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref()).expect("the key")
        };
        let (ours, other) = (key(), key());
        let signature = ours.sign(&random, b"a certificate").expect("a signature");
        let (signed, public) = (signature.as_ref(), ours.public_key().as_ref());
        let alone = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
        assert_eq!(algorithms().len(), alone.len());
        let mut fits = 0;
        for (with, without) in algorithms().iter().zip(alone) {
            let mut broken = signed.to_vec();
            *broken.last_mut().expect("bytes") ^= 1;
            // The second round finds what the first has left.
            for _ in 0..2 {
                for (key, message, signature) in [
                    (public, b"a certificate".as_slice(), signed),
                    (public, b"another certificate", signed),
                    (public, b"a certificate", broken.as_slice()),
                    (other.public_key().as_ref(), b"a certificate", signed),
                    (public, b"", b""),
                ] {
                    let expected = without.verify_signature(key, message, signature).is_ok();
                    assert_eq!(with.verify_signature(key, message, signature).is_ok(), expected, "{with:?}");
                    fits += usize::from(expected);
                }
            }
        }
        // P-256 keys go with each of the hashes, and one fits.
        assert_eq!(fits, 2);
    }

    #[test]
    fn parts_are_told_apart() {
        assert_ne!(digest(0, &[b"ab", b"c", b""]), digest(0, &[b"a", b"bc", b""]));
        assert_ne!(digest(0, &[b"a"]), digest(1, &[b"a"]));
    }

    #[test]
    fn what_is_used_stays_and_the_rest_is_forgotten() {
        let mut right = Right::default();
        let one = |n: usize| digest(n, &[]);
        right.add(one(0));
        for n in 1..10 * MANY {
            right.add(one(n));
            assert!(right.has(&one(0)), "{n}");
            assert!(right.late.len() <= MANY && right.before.len() <= MANY);
        }
        assert!(!right.has(&one(1)));
    }
}
