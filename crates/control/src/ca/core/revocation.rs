//! Certificates and identities that are good no more, and what those may not have again.

use super::Core;
use crate::ca::{
    bundle::Revoked,
    error::Error,
    state::SavedRevocation,
    time::{SKEW, seconds},
};
use selvedge_identity::Serial;
use selvedge_wire::spiffe::SpiffeId;
use std::time::{Duration, SystemTime};

/// How many revocations are kept; the oldest ones go.
pub const MAX_REVOCATIONS: usize = 10_000;

impl Core {
    /// Whether the holder of this certificate may have another one.
    pub fn may_renew(
        &self,
        id: &SpiffeId,
        serial: &Serial,
        not_before: u64,
        not_after: u64,
        now: SystemTime,
    ) -> Result<(), Error> {
        self.may_have_another(id, serial, not_before, (not_after, SKEW), now)
    }

    /// As [`Self::may_renew`], for who was away when the certificate ended.
    pub fn may_return(
        &self,
        id: &SpiffeId,
        serial: &Serial,
        not_before: u64,
        not_after: u64,
        now: SystemTime,
    ) -> Result<(), Error> {
        self.may_have_another(id, serial, not_before, (not_after, self.lifetimes.grace), now)
    }

    fn may_have_another(
        &self,
        id: &SpiffeId,
        serial: &Serial,
        not_before: u64,
        (not_after, grace): (u64, Duration),
        now: SystemTime,
    ) -> Result<(), Error> {
        let now = seconds(now);
        if now > not_after.saturating_add(grace.as_secs()) {
            return Err(Error::Expired { ago: now - not_after });
        }
        match self.bundle.revoked.iter().find(|r| r.concerns(id, serial, not_before)) {
            Some(revoked) => Err(Error::Revoked { id: id.to_string(), since: revoked.at() }),
            None => Ok(()),
        }
    }

    /// Whether a certificate of another CA, that began then, may still become `id`. Who was revoked, or had a certificate
    /// with which it could join again, needs a new one.
    pub fn may_join(&self, id: &SpiffeId, serial: &Serial, not_before: u64) -> Result<(), Error> {
        let concerns = |revoked: &&Revoked| match revoked {
            Revoked::Serial { serial: revoked, .. } => revoked == serial,
            Revoked::Identity { id: revoked, at } => revoked == id && not_before <= *at,
        };
        match self.bundle.revoked.iter().find(concerns) {
            Some(revoked) => Err(Error::JoinRevoked { id: id.to_string(), since: revoked.at() }),
            None => Ok(()),
        }
    }

    /// Revocations from now on are remembered until then at least.
    pub fn remembering(&mut self, until: u64) -> &mut Self {
        self.remember = until;
        self
    }

    /// Revokes one certificate, whoever has it.
    pub fn revoke_serial(&mut self, serial: &Serial, now: SystemTime) -> Result<(), Error> {
        self.revoke([(Some(serial.to_string()), None)], now)
    }

    /// Revokes all certificates that `id` has; `serials` are those known, for the CRL.
    pub fn revoke_identity(&mut self, id: &SpiffeId, serials: &[Serial], now: SystemTime) -> Result<(), Error> {
        if id.trust_domain() != self.domain {
            return Err(Error::Foreign { id: id.to_string(), domain: self.domain.clone() });
        }
        let known = serials.iter().map(|s| (Some(s.to_string()), Some(id.to_string())));
        self.revoke(known.chain([(None, Some(id.to_string()))]), now)
    }

    fn revoke(
        &mut self,
        what: impl IntoIterator<Item = (Option<String>, Option<String>)>,
        now: SystemTime,
    ) -> Result<(), Error> {
        // What has ended may come back in the grace, and must be known as revoked then.
        let until = (self.last_end(now) + self.lifetimes.grace.as_secs()).max(self.remember);
        let now_seconds = seconds(now);
        for (serial, identity) in what {
            let same = |r: &SavedRevocation| (&r.serial, &r.identity) == (&serial, &identity);
            // Who joins between two revocations in one second, or by clocks that differ, is not to outlive the second.
            let recent = |r: &&SavedRevocation| (now_seconds..=now_seconds + SKEW.as_secs()).contains(&r.at);
            let before = self.revocations.iter().filter(|r| same(r)).find(recent).map(|r| r.at + 1);
            self.revocations.retain(|r| !same(r));
            self.revocations.push(SavedRevocation { serial, identity, at: before.unwrap_or(now_seconds), until });
        }
        if self.revocations.len() > MAX_REVOCATIONS {
            return Err(Error::Revocation(format!(
                "there are {MAX_REVOCATIONS} revocations already: rotate the root instead, which ends all certificates"
            )));
        }
        self.renew_bundle(now)
    }
}
