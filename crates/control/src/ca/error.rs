//! Why the certificate authority did not do what was asked. Every message says what to do.

use super::{csr, store::StoreError, tokens::Refused};
use selvedge_wire::log_time::rfc3339;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot issue a certificate: {0}")]
    Request(#[from] csr::Invalid),
    #[error("cannot join: {0}")]
    Token(#[from] Refused),
    #[error("cryptography failed: {0}")]
    Crypto(String),
    #[error(
        "{what} in the CA's store is damaged: {why}; restore the store from a backup, or move it away to begin a new CA \
         (every node must join again)"
    )]
    Damaged { what: String, why: String },
    #[error(
        "the CA's store belongs to trust domain {stored}, but --trust-domain says {wanted}: leave it out, or name the right \
         store; another trust domain needs a store of its own"
    )]
    OtherDomain { stored: String, wanted: String },
    #[error(
        "--trust-domain says {flag}, but the trustDomain of the Mesh says {mesh}: leave out one of them, or make them the \
         same; it stays for the life of the mesh"
    )]
    Contradiction { flag: String, mesh: String },
    #[error(
        "{0} is not the name of a trust domain: use 1 to 255 lower-case letters, digits, dots, dashes and underscores"
    )]
    Domain(String),
    #[error("this control plane is of trust domain {domain} and issues nothing for {id}")]
    Foreign { id: String, domain: String },
    #[error("{0}")]
    Lifetimes(&'static str),
    #[error(
        "{id} is revoked since {}: it cannot be renewed; if the workload is trusted again, make a join \
         token for it (`selvedge token create`) and join anew",
        rfc3339(*since)
    )]
    Revoked { id: String, since: u64 },
    #[error(
        "{id} is revoked since {}, and this certificate began before: join with one that was issued later, \
         or with a token (`selvedge token create`)",
        rfc3339(*since)
    )]
    JoinRevoked { id: String, since: u64 },
    #[error("the certificate that should be renewed ended {ago} s ago: join again with a new token")]
    Expired { ago: u64 },
    #[error("no authority is valid now ({why}): check the clock of this machine; else rotate the CA")]
    NoAuthority { why: String },
    #[error("cannot use the CA from files: {file}: {why}")]
    Files { file: String, why: String },
    #[error("there is nothing to rotate: root and intermediate come from files; replace the files instead")]
    FromFiles,
    #[error("a root is being rotated already; it signs from {} on; to switch now, force it (`--at-once`)", rfc3339(*at))]
    Rotating { at: u64 },
    #[error("nothing is revoked: {0}")]
    Revocation(String),
}

impl Error {
    pub(super) fn crypto(error: impl std::fmt::Display) -> Self {
        Self::Crypto(error.to_string())
    }
}
