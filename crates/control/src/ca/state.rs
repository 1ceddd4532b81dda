//! What the CA remembers, as it is stored (sealed). Times are seconds since 1970.

use super::authority::Der;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

/// The one record with the CA's keys and certificates. It is always written whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    pub trust_domain: String,
    /// Of the bundle: grows with each change of it.
    pub sequence: u64,
    pub roots: Vec<SavedRoot>,
    pub intermediates: Vec<SavedIntermediate>,
    pub revocations: Vec<SavedRevocation>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedRoot {
    pub certificate: String,
    /// None when another CA has it.
    pub authority: Option<SavedAuthority>,
    pub phase: Phase,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedIntermediate {
    pub authority: SavedAuthority,
    /// SHA-256 of its root, in base64.
    pub root: String,
    pub phase: Phase,
    /// The longest life of a certificate under it, in seconds.
    pub longest: u64,
}

/// Where a root or an intermediate is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "is")]
pub enum Phase {
    /// It is in the bundle, and signs from then on.
    Next { from: u64 },
    /// It signs.
    Active,
    /// It is in the bundle for certificates that were signed before; the last one ends by then.
    Retiring { until: u64 },
}

#[derive(Clone, Serialize, Deserialize)]
pub struct SavedAuthority {
    key: String,
    chain: Vec<String>,
}

impl std::fmt::Debug for SavedAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SavedAuthority").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}

/// What is revoked: one certificate, or all that an identity had until then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRevocation {
    /// Hexadecimal.
    pub serial: Option<String>,
    pub identity: Option<String>,
    /// When it was revoked.
    pub at: u64,
    /// When all that it concerns has ended.
    pub until: u64,
}

impl SavedAuthority {
    pub(super) fn new(key: &[u8], chain: &[Der]) -> Self {
        Self { key: BASE64_STANDARD.encode(key), chain: chain.iter().map(|c| BASE64_STANDARD.encode(c)).collect() }
    }

    pub(super) fn parts(&self) -> Option<(Vec<u8>, Vec<Der>)> {
        let chain: Result<Vec<Der>, _> = self.chain.iter().map(|c| BASE64_STANDARD.decode(c)).collect();
        Some((BASE64_STANDARD.decode(&self.key).ok()?, chain.ok()?))
    }
}
