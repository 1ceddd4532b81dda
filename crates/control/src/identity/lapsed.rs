//! The proof of a node that was away until after the end of its certificate: a signature by the certificate's key over the
//! request for the next one. Whoever replays it gets a certificate for a key that only the node has.

use crate::{
    ca::{Ca, Current, time::seconds},
    proto::identity::ComeBackRequest,
};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use selvedge_identity::{Bundles, Expect, Identities, Role};
use std::time::Duration;

const CONTEXT: &[u8] = b"selvedge.identity.v1.ComeBack\0";

/// What is signed.
pub(super) fn message(request: &[u8]) -> Vec<u8> {
    [CONTEXT, request].concat()
}

/// Whose certificate it is, if it was one of ours until it ended, and whoever asks has its key.
pub(super) fn prove(ca: &Ca, asked: &ComeBackRequest) -> Result<Current, String> {
    let leaf = asked.chain.first().ok_or("no certificate is shown")?;
    let unreadable = |_| "the certificate cannot be read".to_owned();
    let (_, read) = x509_parser::parse_x509_certificate(leaf).map_err(unreadable)?;
    let not_after = u64::try_from(read.validity().not_after.timestamp()).map_err(|_| "it ended before 1970")?;
    // It is judged as of its last second; whether that is too long ago, the CA decides.
    let then = Duration::from_secs(not_after.min(seconds(ca.now())));
    let trust = super::convert::to_trust(&ca.bundle()).map_err(|e| e.to_string())?;
    let known = Identities::default();
    known.set_bundles(Bundles::of(&trust.domain, trust.bundle).map_err(|e| e.to_string())?);
    let chain: Vec<_> = asked.chain.iter().map(|der| der.as_slice().into()).collect();
    let then = tokio_rustls::rustls::pki_types::UnixTime::since_unix_epoch(then);
    let peer = known.judge(&chain, &Expect::Known, Role::Client, then).map_err(|e| e.to_string())?;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &read.public_key().subject_public_key.data[..]);
    key.verify(&message(&asked.certificate_request), &asked.signature)
        .map_err(|_| "the signature is not by the key of the certificate")?;
    super::service::current(&peer).ok_or_else(|| "the certificate cannot be read".to_owned())
}
