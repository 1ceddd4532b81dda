//! For tests only: certificates, servers and clients on loopback.

pub mod backend;
pub mod certs;
pub mod etcd;
pub mod http1;
pub mod load;
pub mod process;
pub mod selvedge;
pub mod tcp;
pub mod websocket;
