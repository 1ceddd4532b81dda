//! Everything that signs, has signed or will sign, for people and for alarms.

use super::Core;
use crate::ca::{alarm::Life, authority::fingerprint, state::Phase, time::at};
use std::time::SystemTime;

/// One root or intermediate, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthorityStatus {
    pub root: bool,
    pub phase: Phase,
    pub not_after: SystemTime,
    pub fingerprint: [u8; 32],
}

impl Core {
    /// Everything that signs, has signed or will sign.
    pub(in crate::ca) fn lives(&self) -> Vec<Life> {
        let roots = self.roots.iter().map(|r| Life {
            root: true,
            from_files: r.authority.is_none(),
            phase: r.phase,
            not_before: r.not_before,
            not_after: r.not_after,
        });
        let intermediates = self.intermediates.iter().map(|i| Life {
            root: false,
            from_files: i.from_files,
            phase: i.phase,
            not_before: i.not_before,
            not_after: i.authority.not_after,
        });
        roots.chain(intermediates).collect()
    }

    /// For `status`: each root and intermediate with its phase, its end, and the SHA-256 of its certificate.
    pub fn authorities(&self) -> Vec<AuthorityStatus> {
        let roots = self.roots.iter().map(|r| AuthorityStatus {
            root: true,
            phase: r.phase,
            not_after: at(r.not_after),
            fingerprint: fingerprint(&r.certificate),
        });
        let intermediates = self.intermediates.iter().map(|i| AuthorityStatus {
            root: false,
            phase: i.phase,
            not_after: at(i.authority.not_after),
            fingerprint: i.authority.fingerprint(),
        });
        roots.chain(intermediates).collect()
    }
}
