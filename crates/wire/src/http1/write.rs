//! Heads written in one form: always HTTP/1.1, `Host` first, framing and connection fields from the arguments alone, so
//! that nothing of what a peer said about them can slip through.

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, Method, StatusCode, header};

use super::framing::Framing;

/// Whether the connection lives on after the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persist {
    /// Nothing is written; HTTP/1.1 keeps connections by default.
    Keep,
    /// `Connection: keep-alive`, which an HTTP/1.0 client must be told.
    KeepAlive,
    /// `Connection: close`
    Close,
    /// `Connection: upgrade`, and the `Upgrade` of the header map.
    Upgrade,
}

/// Which framing field is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteLength {
    /// None.
    Omit,
    Length(u64),
    Chunked,
    /// The `Content-Length` of the header map: for answers to HEAD and for 304, which announce what they do not carry.
    Keep,
}

impl From<Framing> for WriteLength {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Close | Framing::Tunnel => WriteLength::Omit,
            Framing::Length(length) => WriteLength::Length(length),
            Framing::Chunked => WriteLength::Chunked,
        }
    }
}

/// Writes a request head. `target` must be the normalised path and query (or `*`, or `host:port` for CONNECT), and `host`
/// the canonical authority; the header map's own `Host` is ignored.
pub fn write_request(
    method: &Method,
    target: &str,
    host: &str,
    headers: &HeaderMap,
    length: WriteLength,
    persist: Persist,
    out: &mut BytesMut,
) {
    out.reserve(method.as_str().len() + target.len() + host.len() + estimate(headers));
    out.extend_from_slice(method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    out.extend_from_slice(host.as_bytes());
    out.extend_from_slice(b"\r\n");
    rest(headers, length, persist, true, out);
}

/// Writes a response head.
pub fn write_response(
    status: StatusCode,
    headers: &HeaderMap,
    length: WriteLength,
    persist: Persist,
    out: &mut BytesMut,
) {
    out.reserve(64 + estimate(headers));
    if status == StatusCode::OK {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(status.as_str().as_bytes());
        out.extend_from_slice(b" ");
        out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    rest(headers, length, persist, false, out);
}

/// Writes `100 Continue`.
pub fn write_continue(out: &mut BytesMut) {
    out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
}

fn rest(headers: &HeaderMap, length: WriteLength, persist: Persist, request: bool, out: &mut BytesMut) {
    for (name, value) in headers {
        if !is_ours(name, request) {
            field(name.as_str().as_bytes(), value.as_bytes(), out);
        }
    }
    match length {
        WriteLength::Omit => {}
        WriteLength::Length(length) => {
            field(b"content-length", itoa::Buffer::new().format(length).as_bytes(), out);
        }
        WriteLength::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        WriteLength::Keep => {
            if let Some(value) = headers.get(header::CONTENT_LENGTH) {
                field(b"content-length", value.as_bytes(), out);
            }
        }
    }
    // RFC 9110 section 10.1.4: whoever sends `TE` names it in `Connection`.
    let te = request && headers.contains_key(header::TE);
    match persist {
        Persist::Keep if te => out.extend_from_slice(b"connection: te\r\n"),
        Persist::Keep => {}
        Persist::KeepAlive => out.extend_from_slice(b"connection: keep-alive\r\n"),
        Persist::Close if te => out.extend_from_slice(b"connection: close, te\r\n"),
        Persist::Close => out.extend_from_slice(b"connection: close\r\n"),
        Persist::Upgrade => {
            if let Some(value) = headers.get(header::UPGRADE) {
                let options: &[u8] = if te { b"upgrade, te" } else { b"upgrade" };
                field(b"connection", options, out);
                field(b"upgrade", value.as_bytes(), out);
            }
        }
    }
    out.extend_from_slice(b"\r\n");
}

pub(super) fn field(name: &[u8], value: &[u8], out: &mut BytesMut) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Fields that only the writer decides.
fn is_ours(name: &HeaderName, request: bool) -> bool {
    // Comparing standard names is comparing one byte; the two custom ones are told by their length first.
    *name == header::CONTENT_LENGTH
        || *name == header::TRANSFER_ENCODING
        || *name == header::CONNECTION
        || *name == header::UPGRADE
        || (request && *name == header::HOST)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

fn estimate(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>() + 96
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn requests_carry_only_our_framing() {
        let headers = map(&[
            ("host", "evil"),
            ("content-length", "9"),
            ("transfer-encoding", "gzip"),
            ("connection", "x-a"),
            ("keep-alive", "1"),
            ("upgrade", "websocket"),
            ("a", "1"),
            ("a", "2"),
        ]);
        let mut out = BytesMut::new();
        write_request(&Method::POST, "/p?q", "shop:81", &headers, WriteLength::Length(12), Persist::Keep, &mut out);
        assert_eq!(
            String::from_utf8_lossy(&out),
            "POST /p?q HTTP/1.1\r\nhost: shop:81\r\na: 1\r\na: 2\r\ncontent-length: 12\r\n\r\n"
        );
        out.clear();
        write_request(&Method::GET, "/", "a", &headers, WriteLength::Omit, Persist::Upgrade, &mut out);
        assert_eq!(
            String::from_utf8_lossy(&out),
            "GET / HTTP/1.1\r\nhost: a\r\na: 1\r\na: 2\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        );
    }

    #[test]
    fn responses_carry_only_our_framing() {
        let headers = map(&[("content-length", "9"), ("server", "x")]);
        let write = |status, length, persist| {
            let mut out = BytesMut::new();
            write_response(StatusCode::from_u16(status).unwrap(), &headers, length, persist, &mut out);
            String::from_utf8_lossy(&out).into_owned()
        };
        assert_eq!(
            write(200, WriteLength::Chunked, Persist::KeepAlive),
            "HTTP/1.1 200 OK\r\nserver: x\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n"
        );
        assert_eq!(
            write(404, WriteLength::Keep, Persist::Close),
            "HTTP/1.1 404 Not Found\r\nserver: x\r\ncontent-length: 9\r\nconnection: close\r\n\r\n"
        );
        assert_eq!(write(299, WriteLength::Omit, Persist::Keep), "HTTP/1.1 299 \r\nserver: x\r\n\r\n");
    }
}
