//! A root: the end of a chain, which every node knows.

use super::validity;
use crate::ca::{
    authority::{Authority, Der},
    error::Error,
    state::{Phase, SavedRoot},
    time::seconds,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use std::{sync::Arc, time::SystemTime};

#[derive(Debug, Clone)]
pub(super) struct Root {
    pub(super) certificate: Der,
    pub(super) not_before: u64,
    pub(super) not_after: u64,
    /// None when another CA has its key.
    pub(super) authority: Option<Arc<Authority>>,
    pub(super) phase: Phase,
}

impl Root {
    pub(super) fn foreign(certificate: &Der) -> Result<Self, Error> {
        let (not_before, not_after) = validity(certificate)?;
        Ok(Self { certificate: certificate.clone(), not_before, not_after, authority: None, phase: Phase::Active })
    }

    pub(super) fn valid(&self, now: SystemTime) -> bool {
        (self.not_before..self.not_after).contains(&seconds(now))
    }

    pub(super) fn save(&self) -> SavedRoot {
        SavedRoot {
            certificate: BASE64_STANDARD.encode(&self.certificate),
            authority: self.authority.as_ref().map(|a| a.save()),
            phase: self.phase,
        }
    }

    pub(super) fn restore(saved: &SavedRoot) -> Result<Self, Error> {
        let certificate = BASE64_STANDARD.decode(&saved.certificate);
        let certificate = certificate.map_err(|e| Error::Damaged { what: "a root".to_owned(), why: e.to_string() })?;
        let (not_before, not_after) = validity(&certificate)?;
        let authority = saved.authority.as_ref().map(Authority::restore).transpose()?.map(Arc::new);
        Ok(Self { certificate, not_before, not_after, authority, phase: saved.phase })
    }
}
