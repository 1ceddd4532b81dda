//! An intermediate of another CA, from files, in the place of what signs here.

use super::{Core, intermediate::Intermediate, root::Root, validity};
use crate::ca::{
    authority::{Authority, Der, fingerprint},
    error::Error,
    state::Phase,
    time::seconds,
};
use selvedge_wire::log_time::rfc3339;
use std::{sync::Arc, time::SystemTime};

/// An intermediate of another CA, with its root.
#[derive(Debug, Clone)]
pub struct FromFiles {
    pub authority: Arc<Authority>,
    pub roots: Vec<Der>,
}

impl FromFiles {
    /// Why it cannot sign now.
    pub(in crate::ca) fn unusable(&self, now: SystemTime) -> Option<String> {
        let (not_before, not_after) = validity(self.authority.certificate()).ok()?;
        match seconds(now) {
            now if now < not_before => Some(format!("it is not valid before {}", rfc3339(not_before))),
            now if now >= not_after => Some(format!("it has ended at {}", rfc3339(not_after))),
            _ => None,
        }
    }
}

impl Core {
    /// Takes an intermediate from files, in the place of what signs now.
    pub fn take_files(&mut self, files: &FromFiles, now: SystemTime) -> Result<(), Error> {
        self.change_to_files(files, now)?;
        self.advance(now, false)?;
        self.renew_bundle(now)
    }

    /// Whether they were not in use already.
    pub(super) fn change_to_files(&mut self, files: &FromFiles, now: SystemTime) -> Result<bool, Error> {
        let leads = |certificate: &Der| files.authority.leads_to(certificate);
        let own = files.roots.iter().find(|r| leads(r)).ok_or_else(|| Error::Files {
            file: "the roots".to_owned(),
            why: "none of them has signed the intermediate (or the last certificate of its chain)".to_owned(),
        })?;
        let own = fingerprint(own);
        let same = |i: &Intermediate| i.from_files && i.authority.certificate() == files.authority.certificate();
        if self.intermediates.iter().any(same) {
            return Ok(false);
        }
        // A root that nobody knows yet must be known before it counts, unless nothing else is there to sign.
        let first = !self.intermediates.iter().any(|i| i.phase == Phase::Active && i.valid(now));
        let from = seconds(now) + self.lifetimes.overlap.as_secs();
        let known = self.roots.iter().find(|r| fingerprint(&r.certificate) == own).map(|r| r.phase);
        let phase = match known {
            _ if first => Phase::Active,
            // Another control plane has brought it, not long ago.
            Some(Phase::Next { from }) => Phase::Next { from },
            Some(_) => Phase::Active,
            None => Phase::Next { from },
        };
        let until = self.last_end(now);
        if phase == Phase::Active {
            self.retire_intermediates(until);
        }
        for root in &mut self.roots {
            if !files.roots.contains(&root.certificate) && !matches!(root.phase, Phase::Retiring { .. }) {
                root.phase = Phase::Retiring { until: until + self.lifetimes.overlap.as_secs() };
            }
        }
        for certificate in &files.roots {
            match self.roots.iter_mut().find(|r| r.certificate == *certificate) {
                Some(root) => root.phase = phase,
                None => self.roots.push(Root { phase, ..Root::foreign(certificate)? }),
            }
        }
        self.intermediates.push(Intermediate {
            not_before: validity(files.authority.certificate())?.0,
            authority: Arc::clone(&files.authority),
            root: own,
            phase,
            longest: self.lifetimes.svid.as_secs(),
            from_files: true,
        });
        Ok(true)
    }

    /// Without files: an own root, if there is none.
    pub(super) fn leave_files(&mut self, now: SystemTime) -> Result<bool, Error> {
        if self.active_root().is_some() {
            return Ok(false);
        }
        let until = self.last_end(now);
        for root in &mut self.roots {
            root.phase = Phase::Retiring { until };
        }
        self.prepare_root(now)?;
        self.activate_next_root(now, true)
    }
}
