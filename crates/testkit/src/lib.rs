//! For tests only: certificates, servers and clients on loopback.

pub mod certs;
pub mod tcp;
