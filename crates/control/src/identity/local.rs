//! The CA as an issuer for its own process: the control plane itself, and everything in `selvedge run`.

use super::convert;
use crate::ca::{self, Ca};
use selvedge_identity::{Issued, Issuer, Issuing, NotIssued, Svid, Trust, control_id};
use selvedge_wire::spiffe::SpiffeId;
use std::sync::Arc;
use tokio::sync::watch;

/// Issues for any identity of the trust domain, for who is in this process is trusted with all of them.
pub struct LocalIssuer {
    ca: Arc<Ca>,
    trust: watch::Receiver<Option<Arc<Trust>>>,
}

impl LocalIssuer {
    /// To be called on a runtime: a task follows the CA's bundle until this is dropped.
    pub fn new(ca: Arc<Ca>) -> Self {
        let mut bundles = ca.bundles();
        let first = trust(&bundles.borrow_and_update());
        let (sender, receiver) = watch::channel(first);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    changed = bundles.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
                let next = trust(&bundles.borrow_and_update());
                if next.is_some() {
                    sender.send_replace(next);
                }
            }
        });
        Self { ca, trust: receiver }
    }

    fn issue_now(ca: &Ca, id: &SpiffeId, request: &[u8]) -> Result<Issued, ca::Error> {
        // Nodes that join know only the root's SHA-256, so the control plane shows the root too.
        let control = control_id(ca.trust_domain()).is_ok_and(|control| control == *id);
        let issued = if control { ca.issue_own(id, request)? } else { ca.issue_local(id, request)? };
        let trust = convert::to_trust(&issued.bundle).map_err(|e| ca::Error::Crypto(e.to_string()))?;
        let chain = issued.leaf.chain.into_iter().map(Into::into).collect();
        Ok(Issued { chain, trust: Arc::new(trust) })
    }
}

fn trust(bundle: &ca::Bundle) -> Option<Arc<Trust>> {
    let trust = convert::to_trust(bundle);
    trust.inspect_err(|error| tracing::error!(%error, "the CA's bundle cannot be used")).ok().map(Arc::new)
}

impl Issuer for LocalIssuer {
    fn issue(&self, id: &SpiffeId, _: Option<Arc<Svid>>, request: Vec<u8>) -> Issuing {
        let issued = Self::issue_now(&self.ca, id, &request).map_err(|error| match error {
            ca::Error::Foreign { .. } | ca::Error::Request(_) => NotIssued::Never(error.to_string()),
            _ => NotIssued::Later(error.to_string()),
        });
        Box::pin(async { issued })
    }

    fn trust(&self) -> watch::Receiver<Option<Arc<Trust>>> {
        self.trust.clone()
    }
}
