//! How new a state of a source is.

use crate::proto::discovery;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A place in the order of states of one origin. Versions of resources are hashes of their content and have no order: this
/// tells who is behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Whose states these are: those of two origins cannot be compared.
    pub origin: Arc<str>,
    /// Grows with each change.
    pub revision: u64,
    /// How often all of it was read by this process. Who has read it twice since it was told of something newer is not
    /// behind, for the second time began after that: the source itself has gone back, as by a backup.
    #[serde(skip)]
    pub looks: u64,
}

impl Mark {
    /// Whether it is known that `other` is newer.
    pub fn is_behind(&self, other: &Self) -> bool {
        self.origin == other.origin && self.revision < other.revision
    }

    pub fn to_wire(&self) -> discovery::Source {
        discovery::Source { origin: self.origin.to_string(), revision: self.revision }
    }

    pub fn from_wire(source: &discovery::Source) -> Self {
        Self { origin: source.origin.as_str().into(), revision: source.revision, looks: 0 }
    }
}
