//! The data plane. It knows neither where configuration came from nor that a mesh exists: it is given
//! [`Snapshot`](selvedge_compile::snapshot::Snapshot)s and serves them. The life of a request, file by file,
//! is told in ARCHITECTURE.md.

pub mod access;
pub mod auth;
pub mod balance;
pub mod body;
pub mod breaker;
pub mod cluster;
pub mod codec;
pub mod connect;
mod connection;
mod detect;
pub mod dial;
pub mod discover;
pub mod drain;
pub mod endpoint;
pub mod error;
mod eyeballs;
mod filters;
mod forward;
pub mod gate;
pub mod hbone;
pub mod health;
mod inbound;
pub mod io;
pub mod jwt;
pub mod l4;
pub mod listener;
mod original;
mod outbound;
pub mod outlier;
pub mod overload;
mod own;
mod passage;
pub mod pool;
mod port;
pub mod proxy;
mod reply;
mod request;
pub mod resolve;
mod scope;
mod serve;
pub mod session_key;
pub mod sniff;
pub mod spaces;
pub mod split;
mod stream;
mod table;
pub mod telemetry;
pub mod tls;
pub mod tunnel;
mod tunnels;
pub mod udp;
mod upstream;
pub mod worker;

pub use body::Body;
pub use error::Error;

/// A request or response as every part of the data plane passes it on.
pub type Request = http::Request<Body>;
pub type Response = http::Response<Body>;
