//! What can be wrong with our own identity and trust; what is wrong with a peer's is [`Refused`](crate::Refused).

use crate::{Refused, leaf::When};
use selvedge_wire::spiffe::SpiffeId;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("there is no certificate for {0} yet; see whether its issuer can be reached")]
    NoSvid(SpiffeId),
    #[error(
        "our own certificate for {id} expired at {at}, so nobody would accept it; see whether its issuer can be reached"
    )]
    OwnExpired { id: SpiffeId, at: When },
    #[error("this certificate cannot be ours: {0}")]
    Unusable(#[from] Refused),
    #[error("the key of {0} does not belong to its certificate")]
    WrongKey(SpiffeId),
    #[error("the key of a certificate cannot be used: {0}")]
    Key(String),
    #[error("a key or certificate request cannot be made: {0}")]
    Request(String),
    #[error("a certificate or key is not PEM: {0}")]
    Pem(String),
    #[error("a root of the bundle cannot be used: {0}")]
    Root(String),
    #[error("the bundle has no roots")]
    NoRoots,
    #[error("a list of revoked certificates (CRL) cannot be read: {0}")]
    Crl(String),
    #[error("{0:?} is not the name of a trust domain: lower-case letters, digits, dots, dashes and underscores")]
    TrustDomain(String),
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}
