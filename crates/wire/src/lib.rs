//! Sans-IO parsing and writing of the bytes that hostile peers send: no sockets, no clocks, no panics; all fuzzed.
//!
//! Each module takes bytes and gives values back; what is too long, incomplete or ambiguous is an error or "incomplete",
//! never a guess. Everything here has a limit, stated beside it.

#![forbid(unsafe_code)]

pub mod client_hello;
pub mod forwarded;
pub mod grpc;
pub mod hbone;
pub mod hop;
pub mod host;
pub mod http1;
pub mod log_template;
pub mod log_time;
pub mod proxy_protocol;
pub mod spiffe;
pub mod trace;
pub mod uri;
pub mod websocket;
