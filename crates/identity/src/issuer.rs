//! Where SVIDs come from: a certificate authority in this process, or a control plane that has one.

use crate::{Bundle, Svid};
use rustls_pki_types::CertificateDer;
use selvedge_wire::spiffe::{Invalid, SpiffeId};
use std::{future::Future, pin::Pin, sync::Arc};
use tokio::sync::watch;

/// The ID of a trust domain's control planes. Nobody else gets it.
pub fn control_id(trust_domain: &str) -> Result<SpiffeId, Invalid> {
    SpiffeId::workload(trust_domain, "selvedge-system", "control")
}

/// What a trust domain's members must know of it, at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct Trust {
    pub domain: String,
    /// Grows with each change.
    pub sequence: u64,
    pub bundle: Bundle,
}

/// A certificate that was issued.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    pub trust: Arc<Trust>,
}

/// Why none was issued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotIssued {
    /// Trying again helps: the issuer is away or overloaded.
    #[error("{0}")]
    Later(String),
    /// Somebody must do something first: the message says what.
    #[error("{0}")]
    Never(String),
}

/// The result of [`Issuer::issue`], once it is there.
pub type Issuing = Pin<Box<dyn Future<Output = Result<Issued, NotIssued>> + Send>>;

/// Issues certificates for identities that it knows us to have.
pub trait Issuer: Send + Sync {
    /// A certificate of `id` for the key of `request` (PKCS #10, DER). `current` is the SVID that proves us so far.
    fn issue(&self, id: &SpiffeId, current: Option<Arc<Svid>>, request: Vec<u8>) -> Issuing;

    /// The newest bundle of our trust domain; `None` until one is known.
    fn trust(&self) -> watch::Receiver<Option<Arc<Trust>>>;
}
