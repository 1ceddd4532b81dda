//! Mutual TLS by identity: X.509 SVIDs, trust bundles, and the TLS configurations made of them
//! (X509-SVID and SPIFFE Trust Domain and Bundle of the SPIFFE standard).
//!
//! | file | holds |
//! |---|---|
//! | `store` | [`Identities`]: what this process is and whom it trusts, live |
//! | `svid` | [`Svid`]: one identity of ours, with its key |
//! | `key` | [`KeyPair`]: a new key and the request for its certificate |
//! | `bundle` | [`Bundle`], [`Bundles`]: roots and revocations by trust domain |
//! | `verify` | whether a peer is who it must be: [`Expect`], [`Peer`], [`Refused`] |
//! | `remembered` | signatures of certificates that need not be checked again |
//! | `leaf` | what the certificate of an identity says |
//! | `life` | when to renew a certificate, and when to raise the alarm: [`Life`] |
//! | `issuer` | [`Issuer`]: where SVIDs come from |
//! | `pin` | the first connection to a control plane, by its root's SHA-256 |
//! | `join` | certificates of other CAs that a node joins with: [`JoinCa`], [`JoinCertificate`] |
//! | `config` | TLS configurations that always see the newest of all that |

#![forbid(unsafe_code)]

mod bundle;
mod config;
mod error;
mod issuer;
mod join;
mod key;
mod leaf;
mod life;
mod pin;
mod remembered;
mod store;
mod svid;
#[cfg(test)]
mod tests;
mod verify;

pub use bundle::{Bundle, Bundles};
pub use error::Error;
pub use issuer::{Issued, Issuer, Issuing, NotIssued, Trust, control_id};
pub use join::{JoinCa, JoinCertificate, joining_config};
pub use key::KeyPair;
pub use leaf::Serial;
pub use life::{Alarm, Life, Span};
pub use pin::pinned_config;
pub use store::Identities;
pub use svid::Svid;
pub use verify::{Expect, Peer, Refused, Role, refused};
