//! The pure parts of an HTTP/1 codec (RFC 9112): heads, body framing, chunked coding, writing. Stricter than the RFC asks:
//! what two implementations might read differently is refused and the connection closed, so that nothing ambiguous
//! reaches a backend. Bodies and values are slices of the read buffer; nothing is copied that need not be.
//!
//! A connection reads like this: [`HeadReader::request`], then [`request_framing`], then as many body bytes as the framing
//! says ([`ChunkedDecoder`] when chunked); it writes with [`write_request`] or [`write_response`], which alone emit
//! `Content-Length`, `Transfer-Encoding` and `Connection`.

mod chunked;
mod framing;
mod head;
mod names;
mod write;

pub use chunked::{
    ChunkError, ChunkedDecoder, Decoded, MAX_EXTENSIONS, MAX_TRAILER_BYTES, chunk_prefix, is_forbidden_trailer,
    strip_request_trailers, strip_trailers, write_last_chunk,
};
pub use framing::{
    ConnectionOptions, Expectation, Framing, FramingError, connection_options, expectation, persistent,
    request_framing, request_framing_with, response_framing,
};
pub use head::{
    HeadError, HeadLimits, HeadReader, MOST_HEADERS, Preface, RequestHead, ResponseHead, UnderscoreNames, preface,
};
pub use names::imitates_framing;
pub use write::{Persist, WriteLength, write_continue, write_request, write_response};
