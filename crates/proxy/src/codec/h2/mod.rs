//! HTTP/2 (RFC 9113, RFC 8441) on the `h2` crate, with the limits of a hostile edge.
//!
//! | file | holds |
//! |---|---|
//! | `server` | a client's connection: handshake, accepting, drain, abuse |
//! | `exchange` | one stream of it: service, interim responses, response, tunnel |
//! | `head` | the checks of a request head that `h2` leaves to its user |
//! | `client` | a connection to an upstream and the requests on it |
//! | `pump` | a [`Body`](crate::Body) into a stream, under flow control |
//! | `incoming` | a stream into a [`Body`](crate::Body) |
//! | `duplex` | a stream as an [`Io`](crate::io::Io), for tunnels |
//! | `wire` | what can be seen of a connection below `h2`: activity, stalled header blocks, lingering close |
//! | `keepalive` | PING |
//!
//! What bounds the memory of one connection (defaults): 100 streams, 60 KiB and 100 fields of header each, 1 MiB of
//! received data in all (connection window), [`DATA_FRAME_BUDGET`] of framing overhead, [`MAX_SEND_BUFFER`] of
//! unsent response per stream, 20 resets waiting to be seen.

mod client;
mod duplex;
mod exchange;
mod head;
mod incoming;
mod keepalive;
mod pump;
mod server;
mod wire;

pub use client::{ClientOptions, Connection, connect};
pub use server::serve;

use crate::{
    codec::h1::date,
    error::{Error, Kind, Side},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use std::time::Duration;

/// Bytes of a body that wait in one stream for the connection to write them. Worst case of a connection whose peer
/// grants windows but does not read: this times the number of streams (12.5 MiB).
const MAX_SEND_BUFFER: usize = 128 * 1024;

/// What DATA frames under 256 bytes may cost before they are read, at (256 - length) each. A stream window full of
/// the smallest gRPC messages (6 bytes) costs 2.7 MiB of it, so several slow streams of them fit (the default of `h2`,
/// half the connection window, would end the connection of one). A buffered frame really takes 350 to 750 bytes, so
/// this bounds the memory of a flood at 25 MiB.
const DATA_FRAME_BUDGET: usize = 8 * 1024 * 1024 + 512 * 1024;

/// Streams that we had to reset because of the peer's errors, over a connection's life; then ENHANCE_YOUR_CALM
/// (CVE-2025-8671).
const MAX_LOCAL_RESETS: usize = 1024;

/// Streams that we reset and that are remembered for a second, to ignore what was on its way.
const MAX_REMEMBERED_RESETS: usize = 128;

/// The peer must have shown its preface (server) or taken ours (client) by then.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Above the limit of the options up to which a header block still reaches us, so that its refusal is ours and on
/// record; beyond it `h2` answers 431 itself, and ends the connection at four times the limit.
const HEADER_LIST_SLACK: u32 = 16 * 1024;

/// Fields that belong to one HTTP/1.1 connection (RFC 9113 section 8.2.2).
const CONNECTION_FIELDS: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Removes what must not be in HTTP/2: connection fields, those that `connection` names, and `te` except `trailers`.
fn strip_connection_fields(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            // `connection: te` is how HTTP/1.1 says that its `te: trailers` is meant for us.
            .filter(|name| name != header::TE)
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &CONNECTION_FIELDS {
        headers.remove(name);
    }
    if let Some(first) = headers.get(header::TE) {
        let only_trailers = first == "trailers" && headers.get_all(header::TE).iter().count() == 1;
        if !only_trailers {
            let trailers = headers.get_all(header::TE).iter().any(|value| {
                value.to_str().is_ok_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("trailers")))
            });
            headers.remove(header::TE);
            if trailers {
                headers.insert(header::TE, HeaderValue::from_static("trailers"));
            }
        }
    }
}

/// A final response without content that is made here.
fn bare(status: StatusCode) -> http::Response<()> {
    let mut response = http::Response::new(());
    *response.status_mut() = status;
    response.headers_mut().insert(header::DATE, date::now());
    response
}

/// Whether a value has blanks at its ends, which makes a message malformed (RFC 9113 section 8.2.1): what HTTP/1.1 would
/// take away stays here, and what compares as another value now becomes the same behind us.
fn has_outer_blanks(headers: &HeaderMap) -> bool {
    let blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    headers.values().any(|value| blank(value.as_bytes().first()) || blank(value.as_bytes().last()))
}

/// The length that `content-length` announces; `Err` when it is not one number.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, ()> {
    let mut found = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        let text = value.to_str().map_err(|_| ())?;
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(());
        }
        let length = text.parse::<u64>().map_err(|_| ())?;
        if found.is_some_and(|other| other != length) {
            return Err(());
        }
        found = Some(length);
    }
    Ok(found)
}

/// An error of `h2` on a stream or connection with `side`.
fn error_of(error: h2::Error, side: Side, what: &'static str) -> Error {
    let kind = match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) if error.is_remote() => Kind::Refused,
        Some(_) if error.is_library() => Kind::Protocol { status: if side == Side::Upstream { 502 } else { 400 } },
        Some(h2::Reason::CANCEL) if side == Side::Downstream => Kind::Cancelled,
        _ => Kind::Reset,
    };
    Error::new(kind, side, what).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_fields_and_what_they_name_go() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret, te"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("accept", "*/*"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip_connection_fields(&mut headers);
        let left: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        assert_eq!(left, [("accept", "*/*"), ("te", "trailers")]);
    }

    #[test]
    fn content_length_is_one_number_or_nothing() {
        let parse = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_LENGTH, HeaderValue::from_static(value));
            }
            content_length(&headers)
        };
        assert_eq!(parse(&[]), Ok(None));
        assert_eq!(parse(&["12"]), Ok(Some(12)));
        assert_eq!(parse(&["12", "12"]), Ok(Some(12)));
        for bad in [&["12", "13"][..], &["+1"], &["-1"], &[""], &["1,1"], &["18446744073709551616"]] {
            assert_eq!(parse(bad), Err(()), "{bad:?}");
        }
    }
}
