//! The CA's service for proxies, the client of it, and the CA as an issuer for its own process.

mod convert;
mod local;

pub use local::LocalIssuer;
