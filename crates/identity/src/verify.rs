//! Whether a peer is who it must be.

use crate::{
    Bundle, Bundles, Serial,
    leaf::{self, When},
    remembered,
};
use rustls::{CertificateError, OtherError};
use rustls_pki_types::{CertificateDer, UnixTime};
use selvedge_wire::spiffe::{Invalid, SpiffeId};
use std::{io, sync::Arc, time::SystemTime};
use webpki::{EndEntityCert, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy};

/// Whom we want to speak to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Expect {
    Exactly(SpiffeId),
    AnyOf(Arc<[SpiffeId]>),
    /// Anybody in a trust domain whose roots we have.
    Known,
}

impl Expect {
    fn includes(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exactly(expected) => expected == id,
            Self::AnyOf(expected) => expected.contains(id),
            Self::Known => true,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Exactly(id) => id.to_string(),
            Self::AnyOf(ids) if ids.len() == 1 => ids[0].to_string(),
            Self::AnyOf(ids) => format!(
                "one of {} identities, {} the first of them",
                ids.len(),
                ids.first().map_or("none", |id| id.as_str())
            ),
            Self::Known => "any identity".to_owned(),
        }
    }
}

/// What the peer is in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Server,
    Client,
}

/// A peer that has proved its identity.
#[derive(Debug, Clone)]
pub struct Peer {
    pub id: SpiffeId,
    pub serial: Serial,
    /// Leaf first, as it was presented.
    pub chain: Arc<[CertificateDer<'static>]>,
    role: Role,
    not_after: When,
    /// When it was verified, in seconds since 1970.
    at: u64,
}

impl Peer {
    /// When its certificate ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after.time()
    }
}

/// Why a certificate is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("no certificate was presented")]
    NoCertificate,
    #[error("the certificate cannot be read")]
    Malformed,
    #[error("the certificate has no SPIFFE ID (a URI among its subject alternative names)")]
    NoUri,
    #[error("the certificate has {0} URIs among its subject alternative names where an SVID has exactly one")]
    ManyUris(usize),
    #[error("the certificate's URI \"{uri}\" is no SPIFFE ID: {why}")]
    NotAnId { uri: String, why: Invalid },
    #[error("the certificate of {id} is one that signs others, which no workload may present")]
    Authority { id: SpiffeId },
    #[error("the certificate of {id} is not for signatures (key usage digitalSignature)")]
    Usage { id: SpiffeId },
    #[error("expected {expected}, but the peer presented {presented}")]
    Unexpected { expected: String, presented: SpiffeId },
    #[error("{id} is of trust domain {}, of which we have no roots", id.trust_domain())]
    UnknownDomain { id: SpiffeId },
    #[error("the certificate of {id} expired at {at}")]
    Expired { id: SpiffeId, at: When },
    #[error("the certificate of {id} is not valid before {from}; compare the clocks of both machines")]
    NotYetValid { id: SpiffeId, from: When },
    #[error("the certificate of {id} (serial {serial}) is revoked")]
    Revoked { id: SpiffeId, serial: Serial },
    #[error("all roots of trust domain {} have expired, or are not yet valid", id.trust_domain())]
    RootsExpired { id: SpiffeId },
    #[error("the certificate of {id} does not lead to a root of its trust domain: {reason}")]
    Untrusted { id: SpiffeId, reason: String },
    #[error("a certificate to join with is not accepted: {reason}")]
    Join { reason: String },
}

impl Refused {
    /// Whether it is about an identity of a trust domain whose roots we have.
    pub(crate) fn is_ours(&self, bundles: &Bundles) -> bool {
        match self {
            Self::Authority { id }
            | Self::Usage { id }
            | Self::Expired { id, .. }
            | Self::NotYetValid { id, .. }
            | Self::Revoked { id, .. }
            | Self::RootsExpired { id }
            | Self::Untrusted { id, .. } => bundles.of_id(id).is_some(),
            _ => false,
        }
    }
}

/// Judges a chain, leaf first, at a moment. The signature by the leaf's key is the handshake's to check.
pub(crate) fn verify(
    bundles: &Bundles,
    chain: &[CertificateDer<'_>],
    expect: &Expect,
    role: Role,
    now: UnixTime,
) -> Result<Peer, Refused> {
    let (first, intermediates) = chain.split_first().ok_or(Refused::NoCertificate)?;
    let leaf = leaf::read(first)?;
    let id = leaf.id;
    if !expect.includes(&id) {
        return Err(Refused::Unexpected { expected: expect.text(), presented: id });
    }
    if now.as_secs() > leaf.not_after.0 {
        return Err(Refused::Expired { id, at: leaf.not_after });
    }
    if now.as_secs() < leaf.not_before.0 {
        return Err(Refused::NotYetValid { id, from: leaf.not_before });
    }
    trusted(bundles, first, intermediates, (&id, &leaf.serial), role, now)?;
    Ok(Peer {
        id,
        serial: leaf.serial,
        chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
        role,
        not_after: leaf.not_after,
        at: now.as_secs(),
    })
}

/// Whether the newest bundles still accept a peer: a revocation and a root that is gone end live connections, the end
/// of a certificate does not, for the peer had it when it came.
pub(crate) fn still(bundles: &Bundles, peer: &Peer) -> Result<(), Refused> {
    let (first, intermediates) = peer.chain.split_first().ok_or(Refused::NoCertificate)?;
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(peer.at));
    trusted(bundles, first, intermediates, (&peer.id, &peer.serial), peer.role, at)
}

/// Not revoked, and the chain leads to a root of its own trust domain.
fn trusted(
    bundles: &Bundles,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    (id, serial): (&SpiffeId, &Serial),
    role: Role,
    now: UnixTime,
) -> Result<(), Refused> {
    let bundle = bundles.of_id(id).ok_or_else(|| Refused::UnknownDomain { id: id.clone() })?;
    let revoked = || Refused::Revoked { id: id.clone(), serial: serial.clone() };
    if bundle.has_revoked(serial) {
        return Err(revoked());
    }
    if let Some(until) = bundle.revoked_until(id)
        && leaf::validity(leaf)?.0 <= until
    {
        return Err(revoked());
    }
    let usage = match role {
        Role::Server => KeyUsage::server_auth(),
        Role::Client => KeyUsage::client_auth(),
    };
    path(bundle, leaf, intermediates, usage, RevocationCheckDepth::EndEntity, now).map_err(|why| match why {
        Broken::Unreadable => Refused::Malformed,
        Broken::RootsExpired => Refused::RootsExpired { id: id.clone() },
        Broken::Revoked => revoked(),
        Broken::Other(reason) => Refused::Untrusted { id: id.clone(), reason },
    })
}

/// Why no path leads to a root.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the certificate cannot be read")]
    Unreadable,
    #[error("its roots have expired, or are not yet valid")]
    RootsExpired,
    #[error("it is revoked")]
    Revoked,
    #[error("{0}")]
    Other(String),
}

/// Whether a chain leads to one of these roots, and all of it is valid now.
pub(crate) fn path(
    bundle: &Bundle,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    usage: KeyUsage,
    depth: RevocationCheckDepth,
    now: UnixTime,
) -> Result<(), Broken> {
    // webpki takes a root's word for as long as it is there, so we look at the dates.
    let valid = |root: &&crate::bundle::Root| (root.not_before.0..=root.not_after.0).contains(&now.as_secs());
    let anchors: Vec<_> = bundle.roots.iter().filter(valid).map(|root| root.anchor.clone()).collect();
    if anchors.is_empty() {
        return Err(Broken::RootsExpired);
    }
    let lists: Vec<_> = bundle.crls.iter().map(|crl| &crl.list).collect();
    // Without lists there are no options. A list that is silent about an issuer does not speak against its leaves.
    let options = RevocationOptionsBuilder::new(&lists)
        .ok()
        .map(|options| options.with_depth(depth).with_status_policy(UnknownStatusPolicy::Allow).build());
    let parsed = EndEntityCert::try_from(leaf).map_err(|_| Broken::Unreadable)?;
    match parsed.verify_for_usage(remembered::algorithms(), &anchors, intermediates, now, usage, options, None) {
        Ok(_) => Ok(()),
        Err(webpki::Error::CertRevoked) => Err(Broken::Revoked),
        Err(error) => Err(Broken::Other(reason(&error))),
    }
}

fn reason(error: &webpki::Error) -> String {
    match error {
        webpki::Error::UnknownIssuer => "its issuer is none that we trust there".to_owned(),
        webpki::Error::InvalidSignatureForPublicKey => "a signature in its chain is wrong".to_owned(),
        // Of the leaf of a member this was told before.
        webpki::Error::CertExpired { .. } => "it, or an intermediate, has expired".to_owned(),
        webpki::Error::CertNotValidYet { .. } => "it, or an intermediate, is not valid yet".to_owned(),
        webpki::Error::RequiredEkuNotFoundContext(_) => {
            "it is not for this side of a connection (extended key usage)".to_owned()
        }
        other => other.to_string(),
    }
}

impl From<Refused> for rustls::Error {
    fn from(refused: Refused) -> Self {
        CertificateError::Other(OtherError(Arc::new(refused))).into()
    }
}

/// Why our verifier refused, inside what a TLS stream's handshake gave back.
pub fn refused(error: &io::Error) -> Option<&Refused> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) => reason.downcast_ref(),
        _ => None,
    }
}
