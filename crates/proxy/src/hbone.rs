//! HBONE: connections between members of a mesh as streams of one HTTP/2 connection over mutual TLS, each begun by
//! CONNECT with the target's address as its authority (RFC 9113 section 8.5). Compatible with Istio's ambient mesh.
//!
//! | file | holds |
//! |---|---|
//! | `server` | connections that come: each stream is handed on or refused |
//! | `counts` | what becomes of tunnels to others, counted |
//! | `pool` | connections to others, shared by the streams of a worker |

mod counts;
mod pool;
mod server;

pub(crate) use pool::{Pool, Towards};
pub use server::{Asked, Refusal, Tunnel, Tunnels, serve};

use std::time::Duration;

/// Streams at once on one connection, either way; further ones take another connection.
const MAX_STREAMS: u32 = 100;

/// Bytes on their way in one stream that its reader has not taken.
const STREAM_WINDOW: u32 = 256 * 1024;

/// The same for a connection: what all of its streams may hold, so that readers that are slow never stop the others.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;

/// Payload of a DATA frame that the other side may send: what a tunnel reads at once is one frame, and with its head fills whole
/// records of TLS. With the least that HTTP/2 allows, 16 KiB, each frame would need a second record for its last 9 bytes.
const FRAME: u32 = crate::tunnel::BUFFER as u32;

/// A silent peer is asked whether it is there, and given up without an answer.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
