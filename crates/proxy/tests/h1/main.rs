//! The HTTP/1.1 codec, byte by byte.

mod catalogue;
mod client;
mod limits;
mod server;
mod support;
mod tcp;
mod tls;
