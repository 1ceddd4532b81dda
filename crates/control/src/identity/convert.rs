//! Bundles in their three forms: of the CA, on the wire, and as TLS needs them.

use crate::{
    ca::{self, Revoked},
    proto::identity as wire,
};
use selvedge_identity::{Bundle, Error, Serial, Trust};

/// Entries of a bundle from the wire that are looked at; a CA has no more (10,000 revocations, some roots).
const MAX_ENTRIES: usize = 20_000;

pub(super) fn to_wire(bundle: &ca::Bundle) -> wire::Bundle {
    let mut out = wire::Bundle {
        trust_domain: bundle.trust_domain.clone(),
        sequence: bundle.sequence,
        roots: bundle.roots.clone(),
        revocation_lists: bundle.crls.clone(),
        ..wire::Bundle::default()
    };
    for revoked in &bundle.revoked {
        match revoked {
            Revoked::Serial { serial, .. } => out.revoked_serials.push(serial.as_bytes().to_vec()),
            Revoked::Identity { id, at } => out
                .revoked_identities
                .push(wire::RevokedIdentity { identity: id.to_string(), not_before_until: at.saturating_sub(1) }),
        }
    }
    out
}

pub(super) fn to_trust(bundle: &ca::Bundle) -> Result<Trust, Error> {
    from_wire(to_wire(bundle))
}

/// Takes all of it or nothing.
pub(super) fn from_wire(bundle: wire::Bundle) -> Result<Trust, Error> {
    let entries = bundle.roots.len() + bundle.revoked_serials.len() + bundle.revoked_identities.len();
    if entries + bundle.revocation_lists.len() > MAX_ENTRIES {
        return Err(Error::Root(format!("it has more than {MAX_ENTRIES} entries")));
    }
    let mut ids = Vec::with_capacity(bundle.revoked_identities.len());
    for revoked in bundle.revoked_identities {
        let id =
            revoked.identity.parse().map_err(|e| Error::Root(format!("a revoked identity cannot be read: {e}")))?;
        ids.push((id, revoked.not_before_until));
    }
    let mut taken = Bundle::new(bundle.roots.into_iter().map(Into::into))?
        .with_revoked(bundle.revoked_serials.iter().map(|s| Serial::new(s)))
        .with_revoked_identities(ids);
    for list in &bundle.revocation_lists {
        taken = taken.with_crl(list)?;
    }
    Ok(Trust { domain: bundle.trust_domain, sequence: bundle.sequence, bundle: taken })
}
