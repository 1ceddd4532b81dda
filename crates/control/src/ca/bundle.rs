//! What every node of a trust domain must know: its roots and what is revoked.

use super::{authority::Der, state::SavedRevocation, time::SKEW};
use selvedge_identity::Serial;
use selvedge_wire::spiffe::SpiffeId;
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
    /// All certificates of an identity that were issued until then (seconds since 1970).
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

    /// Whether it concerns a certificate that says it begins at `not_before`: two minutes before it was issued.
    pub fn concerns(&self, id: &SpiffeId, serial: &Serial, not_before: u64) -> bool {
        match self {
            Self::Serial { serial: revoked, .. } => revoked == serial,
            Self::Identity { id: revoked, at } => revoked == id && not_before + SKEW.as_secs() <= *at,
        }
    }
}

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial { serial, at } => write!(f, "serial {serial}, {at} s after 1970"),
            Self::Identity { id, at } => write!(f, "{id}, certificates issued until {at} s after 1970"),
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
