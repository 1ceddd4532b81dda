//! An intermediate: what signs the certificates of workloads.

use super::validity;
use crate::ca::{
    authority::Authority,
    error::Error,
    state::{Phase, SavedIntermediate},
    time::seconds,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use std::{sync::Arc, time::SystemTime};

#[derive(Debug, Clone)]
pub(super) struct Intermediate {
    pub(super) authority: Arc<Authority>,
    pub(super) not_before: u64,
    pub(super) root: [u8; 32],
    pub(super) phase: Phase,
    pub(super) longest: u64,
    /// Whether its key is the user's, in files, and not stored here.
    pub(super) from_files: bool,
}

impl Intermediate {
    pub(super) fn valid(&self, now: SystemTime) -> bool {
        (self.not_before..self.authority.not_after).contains(&seconds(now))
    }

    pub(super) fn save(&self) -> SavedIntermediate {
        SavedIntermediate {
            authority: self.authority.save(),
            root: BASE64_STANDARD.encode(self.root),
            phase: self.phase,
            longest: self.longest,
        }
    }

    pub(super) fn restore(saved: &SavedIntermediate) -> Result<Self, Error> {
        let authority = Arc::new(Authority::restore(&saved.authority)?);
        let root = BASE64_STANDARD.decode(&saved.root).ok().and_then(|r| r.try_into().ok());
        let damaged = || Error::Damaged { what: "an intermediate".to_owned(), why: "its root is unknown".to_owned() };
        let not_before = validity(authority.certificate())?.0;
        let root = root.ok_or_else(damaged)?;
        Ok(Self { authority, not_before, root, phase: saved.phase, longest: saved.longest, from_files: false })
    }
}
