//! What every node of a trust domain must know: its roots and what is revoked.

use super::{authority::Der, state::SavedRevocation};
use selvedge_identity::Serial;
use selvedge_wire::{log_time::rfc3339, spiffe::SpiffeId};
use std::fmt;

/// The trust bundle at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    pub trust_domain: String,
    /// Grows with each change.
    pub sequence: u64,
    /// In DER; more than one while the root is rotated.
    pub roots: Vec<Der>,
    pub revoked: Vec<Revoked>,
    /// Revoked serials as CRLs in DER, one for each intermediate (RFC 5280 section 5); none when nothing is revoked.
    pub crls: Vec<Der>,
}

/// Something that is revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revoked {
    /// One certificate.
    Serial { serial: Serial, at: u64 },
    /// All certificates of an identity that begin before then (seconds since 1970).
    Identity { id: SpiffeId, at: u64 },
}

impl Revoked {
    pub(super) fn from_saved(saved: &SavedRevocation) -> Option<Self> {
        match (&saved.serial, &saved.identity) {
            (Some(serial), _) => Some(Self::Serial { serial: Serial::from_hex(serial)?, at: saved.at }),
            (None, Some(id)) => Some(Self::Identity { id: id.parse().ok()?, at: saved.at }),
            (None, None) => None,
        }
    }

    /// When it was revoked.
    pub fn at(&self) -> u64 {
        match self {
            Self::Serial { at, .. } | Self::Identity { at, .. } => *at,
        }
    }

    /// Whether it concerns a certificate that begins at `not_before`: two minutes before its issue, by the clock of the
    /// control plane that issued it. That one may have been fast by as much, so that all count which begin before the
    /// revocation; who joins later gets one that begins with it, or after.
    pub fn concerns(&self, id: &SpiffeId, serial: &Serial, not_before: u64) -> bool {
        match self {
            Self::Serial { serial: revoked, .. } => revoked == serial,
            Self::Identity { id: revoked, at } => revoked == id && not_before < *at,
        }
    }
}

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial { serial, at } => write!(f, "serial {serial}, at {}", rfc3339(*at)),
            Self::Identity { id, at } => write!(f, "{id}, certificates that begin before {}", rfc3339(*at)),
        }
    }
}

impl Bundle {
    pub(super) fn empty(trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            sequence: 0,
            roots: Vec::new(),
            revoked: Vec::new(),
            crls: Vec::new(),
        }
    }
}
