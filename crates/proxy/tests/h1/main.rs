//! The HTTP/1.1 codec, byte by byte.

mod client;
mod server;
mod support;
