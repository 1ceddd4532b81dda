//! HTTP/1.1: own connection code over the strict parsers of `selvedge_wire::http1`.
//!
//! The server ([`serve`]) and the client ([`Connection::send`]) are state machines that are polled by whoever waits for
//! them: no task and no channel per request. A small message costs one read and one write; buffers exist only while a
//! message is under way.

mod client;
pub(super) mod date;
mod incoming;
mod input;
mod link;
mod out;
mod pump;
mod reject;
mod server;
mod timer;
mod watch;

pub use client::{ClientOptions, Connection, Home};
pub use server::serve;

use bytes::Bytes;

/// In a request's extensions when its target cannot be held by [`http::Uri`] byte for byte: the target as sent. The
/// URI of such a request is `/` and must not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawTarget(pub Bytes);
