//! The CA's services, for proxies and for the administrator, their clients, and the CA as an issuer for its own process.

mod authority;
mod client;
mod convert;
mod joins;
mod lapsed;
mod limit;
mod local;
mod service;
#[cfg(test)]
mod tests;

pub use authority::{administer, administrator};
pub use client::{JoinFiles, JoinTokens, Joining, RemoteIssuer};
pub use joins::JoinCas;
pub use local::LocalIssuer;
pub use service::IdentityService;
