//! The chunked transfer coding (RFC 9112 section 7.1), read strictly and without copying.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, header};
use memchr::memchr;

use super::head::{HeadError, HeadLimits, HeadReader, UnderscoreNames, header_map};

/// Bytes of chunk extensions in one body. They carry nothing anyone uses, but flood servers (CVE-2023-39326).
pub const MAX_EXTENSIONS: usize = 4 * 1024;
/// Bytes of a trailer section.
pub const MAX_TRAILER_BYTES: usize = 8 * 1024;
/// Fields of a trailer section.
const MAX_TRAILERS: usize = 64;

/// Why a chunked body is refused. The connection must be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    #[error("a chunk size is not 1 to 16 hex digits followed by CRLF or `;`")]
    Size,
    #[error("a chunk extension has a control character, or a line end that is not CRLF")]
    Extension,
    #[error("the chunk extensions are longer than 4 KiB in all")]
    ExtensionsTooLong,
    #[error("the data of a chunk is not followed by CRLF")]
    DataEnd,
    #[error("the trailer section is malformed: {0}")]
    Trailers(HeadError),
}

/// What came out of the buffer.
#[derive(Debug)]
pub enum Decoded {
    /// Body bytes, a slice of the buffer. Never empty.
    Data(Bytes),
    /// The end, with the trailers that may be passed on. After it, the buffer begins with the next message.
    Done(Option<HeaderMap>),
    /// More bytes are needed.
    Incomplete,
}

/// Decodes one chunked body.
#[derive(Debug, Default)]
pub struct ChunkedDecoder {
    state: State,
    extensions: usize,
    trailers: HeadReader,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    Done,
}

impl ChunkedDecoder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece from the front of `buffer`. Call until it says `Incomplete` or `Done`.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, ChunkError> {
        loop {
            match self.state {
                State::Size => match self.size_line(buffer)? {
                    None => return Ok(Decoded::Incomplete),
                    Some(0) => self.state = State::Trailers,
                    Some(size) => self.state = State::Data(size),
                },
                State::Data(left) => {
                    if buffer.is_empty() {
                        return Ok(Decoded::Incomplete);
                    }
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                    let left = left - take as u64;
                    self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                    return Ok(Decoded::Data(buffer.split_to(take).freeze()));
                }
                State::DataEnd => match &buffer[..] {
                    [b'\r', b'\n', ..] => {
                        buffer.advance(2);
                        self.state = State::Size;
                    }
                    [] | [b'\r'] => return Ok(Decoded::Incomplete),
                    _ => return Err(ChunkError::DataEnd),
                },
                State::Trailers => return self.trailer_section(buffer),
                State::Done => return Ok(Decoded::Done(None)),
            }
        }
    }

    /// Whether the whole body has been read.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes a size line; `None` if it is not complete.
    fn size_line(&mut self, buffer: &mut BytesMut) -> Result<Option<u64>, ChunkError> {
        let digits = buffer.iter().take(17).take_while(|b| b.is_ascii_hexdigit()).count();
        if digits == 17 || (digits == 0 && !buffer.is_empty()) {
            return Err(ChunkError::Size);
        }
        let rest = &buffer[digits..];
        let length = match rest {
            [] | [b'\r'] => return Ok(None),
            [b'\r', b'\n', ..] => digits + 2,
            [b';', ..] => match self.extension(rest)? {
                Some(extension) => digits + extension,
                None => return Ok(None),
            },
            _ => return Err(ChunkError::Size),
        };
        let size = buffer[..digits].iter().fold(0u64, |size, &d| size << 4 | u64::from(hex(d)));
        if size > i64::MAX as u64 {
            return Err(ChunkError::Size);
        }
        buffer.advance(length);
        Ok(Some(size))
    }

    /// The length of the extension that `rest` begins with, with its CRLF.
    fn extension(&mut self, rest: &[u8]) -> Result<Option<usize>, ChunkError> {
        let room = MAX_EXTENSIONS - self.extensions;
        let window = &rest[..rest.len().min(room + 2)];
        let end = memchr(b'\n', window);
        // Everything before the CRLF must be tab, space, visible or obs-text.
        let text = match end {
            Some(at) => window[..at].strip_suffix(b"\r").ok_or(ChunkError::Extension)?,
            None => window.strip_suffix(b"\r").unwrap_or(window),
        };
        if text.iter().any(|&b| (b < 0x20 && b != b'\t') || b == 0x7f) {
            return Err(ChunkError::Extension);
        }
        match end {
            Some(at) => {
                self.extensions += text.len();
                Ok(Some(at + 1))
            }
            None if rest.len() >= room + 2 => Err(ChunkError::ExtensionsTooLong),
            None => Ok(None),
        }
    }

    fn trailer_section(&mut self, buffer: &mut BytesMut) -> Result<Decoded, ChunkError> {
        let trailers = match &buffer[..] {
            [b'\r', b'\n', ..] if !self.trailers.is_partial() => {
                buffer.advance(2);
                None
            }
            [] | [b'\r'] => return Ok(Decoded::Incomplete),
            _ => {
                let limits = HeadLimits { max_bytes: MAX_TRAILER_BYTES, ..HeadLimits::default() };
                let found = self.trailers.find_end(buffer, &limits);
                let Some(end) = found.map_err(|e| match e {
                    HeadError::TargetTooLong => ChunkError::Trailers(HeadError::TooLarge),
                    e => ChunkError::Trailers(e),
                })?
                else {
                    return Ok(Decoded::Incomplete);
                };
                let section = buffer.split_to(end).freeze();
                Some(parse_trailers(&section).map_err(ChunkError::Trailers)?)
            }
        };
        self.state = State::Done;
        Ok(Decoded::Done(trailers.filter(|t| !t.is_empty())))
    }
}

fn parse_trailers(section: &Bytes) -> Result<HeaderMap, HeadError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILERS];
    let fields = match httparse::parse_headers(section, &mut fields) {
        Ok(httparse::Status::Complete((length, fields))) if length == section.len() => fields,
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyHeaders),
        _ => return Err(HeadError::Malformed("trailer field")),
    };
    let allowed: Vec<_> = fields.iter().copied().filter(|f| !forbidden(f.name)).collect();
    header_map(section, &allowed, UnderscoreNames::Drop)
}

/// Whether a trailer field is dropped: framing, routing, authentication, content and control fields must come first
/// (RFC 9110 section 6.5.1); merged into the head they would change what was judged already.
pub fn is_forbidden_trailer(name: &HeaderName) -> bool {
    forbidden(name.as_str())
}

/// Removes from the trailers of a request what may not come there: besides [`is_forbidden_trailer`] everything that only
/// a trusted peer may say of a client, and names that CGI-style servers read as another. Servers that merge trailers into
/// the head would believe it.
pub fn strip_request_trailers(trailers: &mut HeaderMap) {
    remove(trailers, |name| {
        is_forbidden_trailer(name) || crate::forwarded::is_internal(name) || name.as_str().contains('_')
    });
}

/// Removes what may not come in the trailers of any message.
pub fn strip_trailers(trailers: &mut HeaderMap) {
    remove(trailers, is_forbidden_trailer);
}

fn remove(trailers: &mut HeaderMap, refused: impl Fn(&HeaderName) -> bool) {
    let found: Vec<HeaderName> = trailers.keys().filter(|name| refused(name)).cloned().collect();
    for name in found {
        trailers.remove(name);
    }
}

fn forbidden(name: &str) -> bool {
    FORBIDDEN.iter().any(|f| f.as_str().eq_ignore_ascii_case(name))
        || name.get(..3).is_some_and(|p| p.eq_ignore_ascii_case("if-"))
        || name.get(..12).is_some_and(|p| p.eq_ignore_ascii_case("x-forwarded-"))
        || name.get(..9).is_some_and(|p| p.eq_ignore_ascii_case("forwarded"))
}

static FORBIDDEN: [HeaderName; 29] = [
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::HOST,
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::EXPECT,
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::WWW_AUTHENTICATE,
    header::COOKIE,
    header::SET_COOKIE,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::CONTENT_RANGE,
    header::CONTENT_DISPOSITION,
    header::CACHE_CONTROL,
    header::PRAGMA,
    header::MAX_FORWARDS,
    header::RANGE,
    header::AGE,
    header::EXPIRES,
    header::DATE,
    header::LOCATION,
    header::RETRY_AFTER,
    header::VARY,
    header::WARNING,
];

/// The line before the data of a chunk of `length` bytes; the data is followed by CRLF.
pub fn chunk_prefix(length: usize, out: &mut BytesMut) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut line = [0u8; 18];
    let mut at = 16;
    line[16..].copy_from_slice(b"\r\n");
    let mut left = length;
    while at > 0 {
        at -= 1;
        line[at] = HEX[left & 15];
        left >>= 4;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(&line[at..]);
}

/// The last chunk and the trailers that may be sent.
pub fn write_last_chunk(trailers: Option<&HeaderMap>, out: &mut BytesMut) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten().filter(|(name, _)| !is_forbidden_trailer(name)) {
        super::write::field(name.as_str().as_bytes(), value.as_bytes(), out);
    }
    out.extend_from_slice(b"\r\n");
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20).wrapping_sub(b'a').wrapping_add(10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything decoded, the trailers, and what is left in the buffer; `None` if incomplete.
    fn decode(bytes: &[u8]) -> Result<Option<(Vec<u8>, Option<HeaderMap>, Vec<u8>)>, ChunkError> {
        let mut buffer = BytesMut::from(bytes);
        let mut decoder = ChunkedDecoder::new();
        let mut body = Vec::new();
        loop {
            match decoder.decode(&mut buffer)? {
                Decoded::Data(data) => body.extend_from_slice(&data),
                Decoded::Done(trailers) => return Ok(Some((body, trailers, buffer.to_vec()))),
                Decoded::Incomplete => return Ok(None),
            }
        }
    }

    #[test]
    fn bodies_are_decoded() {
        let (body, trailers, rest) = decode(b"3\r\nabc\r\n00A\r\n0123456789\r\n0\r\n\r\nnext").unwrap().unwrap();
        assert_eq!((&body[..], trailers.is_none(), &rest[..]), (&b"abc0123456789"[..], true, &b"next"[..]));
        let (body, _, _) = decode(b"3;a=b;c=\"d\"\r\nabc\r\n0;x\r\n\r\n").unwrap().unwrap();
        assert_eq!(body, b"abc");
    }

    #[test]
    fn trailers_are_kept_but_never_the_dangerous_ones() {
        // Catalogue item 13.
        let bytes = b"0\r\nGrpc-Status: 0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: b\r\nAuthorization: x\r\nX-Forwarded-For: 1\r\n\r\n";
        let (_, trailers, _) = decode(bytes).unwrap().unwrap();
        let trailers = trailers.unwrap();
        assert_eq!((trailers.len(), &trailers["grpc-status"]), (1, &"0".parse().unwrap()));
        assert!(matches!(decode(b"0\r\nA: b\nC: d\r\n\r\n"), Err(ChunkError::Trailers(HeadError::BareLf))));
        assert!(decode(b"0\r\nA : b\r\n\r\n").is_err());
        assert!(decode(b"0\r\nA: b\r\n c\r\n\r\n").is_err());
        assert!(decode(b"0\r\n\n").is_err());
        let long = format!("0\r\nA: {}\r\n\r\n", "b".repeat(MAX_TRAILER_BYTES));
        assert_eq!(decode(long.as_bytes()).unwrap_err(), ChunkError::Trailers(HeadError::TooLarge));
        let many = format!("0\r\n{}\r\n", "a: b\r\n".repeat(65));
        assert_eq!(decode(many.as_bytes()).unwrap_err(), ChunkError::Trailers(HeadError::TooManyHeaders));
    }

    #[test]
    fn malformed_chunks_are_refused() {
        // Catalogue item 6.
        for bad in [
            &b"0x2\r\nab\r\n0\r\n\r\n"[..],
            b"+2\r\nab\r\n0\r\n\r\n",
            b"-0\r\n\r\n",
            b"0_2e\r\n",
            b" 2\r\nab\r\n0\r\n\r\n",
            b"2 \r\nab\r\n0\r\n\r\n",
            b"2\t;a\r\nab\r\n0\r\n\r\n",
            b"\r\nab",
            b";a\r\n",
            b"00000000000000002\r\nab\r\n0\r\n\r\n",
            b"ffffffffffffffff\r\n",
            b"2\nab\r\n0\r\n\r\n",
            b"2\r\r\nab\r\n0\r\n\r\n",
            b"2;a\nab\r\n0\r\n\r\n",
            b"2\r\r;a\r\nab\r\n0\r\n\r\n",
            b"2;a\rb\r\nab\r\n0\r\n\r\n",
            b"2;a\0\r\nab\r\n0\r\n\r\n",
            b"2\r\nabXY0\r\n\r\n",
            b"2\r\nab\n0\r\n\r\n",
            b"2\r\nab\r\n\r\n0\r\n\r\n",
            b"2\r\nabc\r\n0\r\n\r\n",
            b"\xc3\xa9\r\n",
        ] {
            assert!(decode(bad).is_err(), "{:?} {:?}", String::from_utf8_lossy(bad), decode(bad));
        }
        for part in
            [&b""[..], b"2", b"2\r", b"2\r\na", b"2\r\nab\r", b"2\r\nab\r\n0\r\n", b"2;a", b"0\r\n\r", b"0\r\nA: b\r\n"]
        {
            assert!(decode(part).unwrap().is_none(), "{:?}", String::from_utf8_lossy(part));
        }
    }

    #[test]
    fn extensions_are_limited_in_all() {
        let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(MAX_EXTENSIONS));
        assert_eq!(decode(long.as_bytes()).unwrap_err(), ChunkError::ExtensionsTooLong);
        let many = "1;xxxxxxx\r\na\r\n".repeat(MAX_EXTENSIONS / 8 + 1);
        assert_eq!(decode(many.as_bytes()).unwrap_err(), ChunkError::ExtensionsTooLong);
        let fits = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(MAX_EXTENSIONS - 1));
        assert!(decode(fits.as_bytes()).unwrap().is_some());
    }

    #[test]
    fn prefixes_are_hex() {
        for length in [0, 1, 15, 16, 255, 4096, usize::MAX] {
            let mut out = BytesMut::new();
            chunk_prefix(length, &mut out);
            assert_eq!(&out[..], format!("{length:x}\r\n").as_bytes());
        }
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_body(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6), step in 1usize..9) {
            let mut wire = BytesMut::new();
            for chunk in &chunks {
                chunk_prefix(chunk.len(), &mut wire);
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            write_last_chunk(Some(&trailers), &mut wire);
            let (mut decoder, mut buffer, mut body, mut done) = (ChunkedDecoder::new(), BytesMut::new(), Vec::new(), None);
            for part in wire.chunks(step) {
                buffer.extend_from_slice(part);
                loop {
                    match decoder.decode(&mut buffer).unwrap() {
                        Decoded::Data(data) => body.extend_from_slice(&data),
                        Decoded::Done(t) => { done = done.or(t); break }
                        Decoded::Incomplete => break,
                    }
                }
            }
            prop_assert_eq!(body, chunks.concat());
            prop_assert_eq!(done, Some(trailers));
            prop_assert!(decoder.is_done() && buffer.is_empty());
        }
    }

    #[test]
    fn trailers_of_requests_say_nothing_about_the_client() {
        let mut trailers = HeaderMap::new();
        for name in ["x-real-ip", "x-original-url", "x-forwarded-for", "remote-user", "x_real_ip", "if-match", "x-sum"]
        {
            trailers.insert(HeaderName::from_static(name), http::HeaderValue::from_static("x"));
        }
        strip_request_trailers(&mut trailers);
        assert_eq!(trailers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-sum"]);
    }
}
