//! What a TLS ClientHello says, read without answering it: for routing connections that are passed through.
//! RFC 8446 sections 4.1.2 and 5.1, RFC 6066 section 3, RFC 7301.

use std::borrow::Cow;

use crate::host;

/// Bytes of a ClientHello. One with post-quantum key shares takes about 2 KiB.
pub const MAX_HELLO: usize = 16 * 1024;
/// Bytes a caller must be able to buffer: the hello with the headers of its records.
pub const MAX_BYTES: usize = MAX_HELLO + 5 * MAX_RECORDS;
/// Protocols in an ALPN list.
pub const MAX_ALPN: usize = 32;
/// Records one hello may be cut into.
const MAX_RECORDS: usize = 64;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sniff {
    /// More bytes are needed; never with more than [`MAX_BYTES`] bytes.
    Incomplete,
    /// The connection does not begin with a TLS ClientHello.
    NotTls,
    Done(ClientHello),
}

/// The parts of a ClientHello that routing looks at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The canonical host name; `None` if none was sent, or an IP address, which RFC 6066 does not allow.
    pub server_name: Option<String>,
    /// In the client's order of preference; at most 32.
    pub alpn: Vec<Vec<u8>>,
    /// Such as 0x0304 for TLS 1.3, in the client's order, GREASE left out.
    pub versions: Vec<u16>,
}

/// Why a connection that looked like TLS is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    #[error("the ClientHello is longer than 16 KiB")]
    TooLong,
    #[error("the ClientHello is malformed: {0}")]
    Malformed(&'static str),
    #[error("the server name of the ClientHello is no valid host name")]
    ServerName,
}

/// Looks at the first bytes of a connection.
pub fn sniff(bytes: &[u8]) -> Result<Sniff, HelloError> {
    // A handshake record of SSL 3 to TLS 1.3, then a ClientHello.
    let head: [(usize, u8); 3] = [(0, 22), (1, 3), (5, 1)];
    if head.iter().any(|&(at, expected)| bytes.get(at).is_some_and(|&b| b != expected)) {
        return Ok(Sniff::NotTls);
    }
    match handshake(bytes)? {
        Some(message) => parse(&message).map(Sniff::Done),
        None => Ok(Sniff::Incomplete),
    }
}

/// The body of the first handshake message, put together from records; `None` if it is not complete.
fn handshake(bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, HelloError> {
    let mut rest = bytes;
    let mut message: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    for _ in 0..MAX_RECORDS {
        let Some((head, tail)) = rest.split_first_chunk::<5>() else { return Ok(None) };
        if head[0] != 22 || head[1] != 3 {
            return Err(HelloError::Malformed("another record inside the ClientHello"));
        }
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if length == 0 || length > 1 << 14 {
            return Err(HelloError::Malformed("record length"));
        }
        let (fragment, tail) = tail.split_at(length.min(tail.len()));
        match &mut message {
            Cow::Borrowed([]) => message = Cow::Borrowed(fragment),
            more => more.to_mut().extend_from_slice(fragment),
        }
        if let Some(&[kind, a, b, c]) = message.first_chunk::<4>() {
            let body = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if kind != 1 {
                return Err(HelloError::Malformed("not a ClientHello"));
            }
            if body + 4 > MAX_HELLO {
                return Err(HelloError::TooLong);
            }
            if message.len() >= body + 4 {
                return Ok(Some(match message {
                    Cow::Borrowed(whole) => Cow::Borrowed(&whole[4..body + 4]),
                    Cow::Owned(whole) => Cow::Owned(whole[4..body + 4].to_vec()),
                }));
            }
        }
        if fragment.len() < length {
            return Ok(None);
        }
        rest = tail;
    }
    Err(HelloError::TooLong)
}

/// Reads length-prefixed fields from the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], HelloError> {
        let (taken, rest) =
            self.0.split_at_checked(length).ok_or(HelloError::Malformed("a field reaches over the end"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<usize, HelloError> {
        Ok(usize::from(self.take(1)?[0]))
    }

    fn u16(&mut self) -> Result<u16, HelloError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vec8(&mut self) -> Result<Reader<'a>, HelloError> {
        let length = self.u8()?;
        self.take(length).map(Reader)
    }

    fn vec16(&mut self) -> Result<Reader<'a>, HelloError> {
        let length = usize::from(self.u16()?);
        self.take(length).map(Reader)
    }

    fn end(&self) -> Result<(), HelloError> {
        if self.0.is_empty() { Ok(()) } else { Err(HelloError::Malformed("bytes after the end")) }
    }
}

fn parse(message: &[u8]) -> Result<ClientHello, HelloError> {
    let mut reader = Reader(message);
    let legacy_version = reader.u16()?;
    reader.take(32)?;
    let session = reader.vec8()?;
    if session.0.len() > 32 {
        return Err(HelloError::Malformed("session id"));
    }
    let ciphers = reader.vec16()?;
    if ciphers.0.len() < 2 || ciphers.0.len() % 2 != 0 {
        return Err(HelloError::Malformed("cipher suites"));
    }
    if reader.vec8()?.0.is_empty() {
        return Err(HelloError::Malformed("compression methods"));
    }
    let mut hello = ClientHello::default();
    // Before TLS 1.2, a hello could end here.
    if !reader.0.is_empty() {
        let mut extensions = reader.vec16()?;
        reader.end()?;
        let (mut names, mut protocols, mut versions) = (false, false, false);
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let body = extensions.vec16()?;
            let seen = match kind {
                0 => &mut names,
                16 => &mut protocols,
                43 => &mut versions,
                _ => continue,
            };
            if std::mem::replace(seen, true) {
                return Err(HelloError::Malformed("a repeated extension"));
            }
            match kind {
                0 => hello.server_name = server_name(body)?,
                16 => hello.alpn = alpn(body)?,
                _ => hello.versions = supported_versions(body)?,
            }
        }
    }
    if hello.versions.is_empty() {
        hello.versions.push(legacy_version);
    }
    Ok(hello)
}

fn server_name(mut body: Reader<'_>) -> Result<Option<String>, HelloError> {
    let mut list = body.vec16()?;
    body.end()?;
    let mut found = None;
    while !list.0.is_empty() {
        let kind = list.u8()?;
        let name = list.vec16()?.0;
        if kind != 0 {
            continue;
        }
        if found.is_some() {
            return Err(HelloError::Malformed("two host names"));
        }
        found = Some(name);
    }
    let name = found.ok_or(HelloError::Malformed("an empty server name list"))?;
    // Some clients send the address they connect to; TLS libraries take that for no name at all, and so do we.
    if std::str::from_utf8(name).is_ok_and(|text| text.parse::<std::net::IpAddr>().is_ok()) {
        return Ok(None);
    }
    host::parse_name(name).map(|name| Some(name.into_owned())).map_err(|_| HelloError::ServerName)
}

fn alpn(mut body: Reader<'_>) -> Result<Vec<Vec<u8>>, HelloError> {
    let mut list = body.vec16()?;
    body.end()?;
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let protocol = list.vec8()?.0;
        if protocol.is_empty() || protocols.len() == MAX_ALPN {
            return Err(HelloError::Malformed("ALPN"));
        }
        protocols.push(protocol.to_vec());
    }
    if protocols.is_empty() { Err(HelloError::Malformed("ALPN")) } else { Ok(protocols) }
}

fn supported_versions(mut body: Reader<'_>) -> Result<Vec<u16>, HelloError> {
    let mut list = body.vec8()?;
    body.end()?;
    let mut versions = Vec::new();
    while !list.0.is_empty() {
        let version = list.u16()?;
        // GREASE values (RFC 8701) are there to be ignored.
        if version & 0x0f0f != 0x0a0a {
            versions.push(version);
        }
    }
    Ok(versions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &(body.len() as u16).to_be_bytes(), body].concat()
    }

    fn sni(name: &[u8]) -> Vec<u8> {
        let entry = [&[0][..], &(name.len() as u16).to_be_bytes(), name].concat();
        extension(0, &[&(entry.len() as u16).to_be_bytes()[..], &entry].concat())
    }

    fn hello(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend_from_slice(&[7; 32]);
        body.extend_from_slice(&[0, 0, 2, 0x13, 1, 1, 0]);
        body.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
        body.extend_from_slice(extensions);
        let mut message = vec![1, 0];
        message.extend_from_slice(&(body.len() as u16).to_be_bytes());
        message.extend_from_slice(&body);
        message
    }

    /// The message cut into records of `size` bytes.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let record = |part: &[u8]| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
        message.chunks(size).flat_map(record).collect()
    }

    fn done(bytes: &[u8]) -> ClientHello {
        match sniff(bytes) {
            Ok(Sniff::Done(hello)) => hello,
            other => panic!("{other:?}"),
        }
    }

    fn full() -> Vec<u8> {
        let alpn = extension(16, b"\0\x0c\x02h2\x08http/1.1");
        let versions = extension(43, &[6, 0x1a, 0x1a, 3, 4, 3, 3]);
        hello(&[sni(b"Shop.Example"), extension(10, &[0, 2, 0, 29]), alpn, versions].concat())
    }

    #[test]
    fn hellos_are_read_however_they_are_cut() {
        let expected = ClientHello {
            server_name: Some("shop.example".into()),
            alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            versions: vec![0x0304, 0x0303],
        };
        let message = full();
        assert_eq!(done(&records(&message, 1 << 14)), expected);
        for size in [3, 4, 10, 100] {
            let bytes = records(&message, size);
            assert_eq!(done(&bytes), expected);
            for length in 0..bytes.len() {
                assert_eq!(sniff(&bytes[..length]), Ok(Sniff::Incomplete), "{length}");
            }
        }
        assert_eq!(done(&records(&hello(&[]), 99)), ClientHello { versions: vec![0x0303], ..Default::default() });
    }

    #[test]
    fn other_protocols_are_not_tls() {
        for bytes in [&b"GET / HTTP/1.1"[..], b"\x16\x02", b"\x16\x03\x01\0\x05\x02", b"\x15\x03"] {
            assert_eq!(sniff(bytes), Ok(Sniff::NotTls));
        }
    }

    #[test]
    fn names_follow_the_rules() {
        let name = |text: &[u8]| sniff(&records(&hello(&sni(text)), 999));
        let is = |text: &[u8]| match name(text) {
            Ok(Sniff::Done(hello)) => hello.server_name,
            other => panic!("{other:?}"),
        };
        assert_eq!(is(b"A.example."), Some("a.example".into()));
        assert_eq!(is(b"10.0.0.1"), None);
        assert_eq!(is(b"::1"), None);
        for bad in [&b""[..], b"a b", b"a\0.example", b"a:443", b"*.a", b"\xff", b"a..b"] {
            assert_eq!(name(bad), Err(HelloError::ServerName), "{bad:?}");
        }
    }

    #[test]
    fn malformed_hellos_are_refused() {
        let bad = |message: &[u8]| sniff(&records(message, 1 << 14)).unwrap_err();
        bad(&hello(&[sni(b"a"), sni(b"b")].concat()));
        bad(&hello(&extension(16, b"\0\x03\x02h2x")));
        bad(&hello(&extension(16, b"\0\x01\0")));
        bad(&hello(&extension(16, b"\0\0")));
        bad(&hello(&extension(0, b"\0\0")));
        bad(&hello(&extension(43, &[3, 3, 4, 3])));
        bad(&hello(&[0, 0, 0, 99]));
        assert_eq!(sniff(&[22, 3, 1, 0, 4, 1, 0, 0xff, 0xff]), Err(HelloError::TooLong));
        assert_eq!(sniff(&[22, 3, 1, 0x40, 1, 1]), Err(HelloError::Malformed("record length")));
        assert_eq!(sniff(&[22, 3, 1, 0, 0, 1]), Err(HelloError::Malformed("record length")));
        assert_eq!(sniff(&records(&full(), 1)), Err(HelloError::TooLong));
        let mut mixed = records(&full()[..50], 50);
        mixed.extend_from_slice(&[21, 3, 1, 0, 2, 1, 0]);
        assert!(sniff(&mixed).is_err());
    }

    proptest! {
        #[test]
        fn any_change_is_survived(at in any::<prop::sample::Index>(), b in any::<u8>(), size in 1usize..300) {
            let mut bytes = records(&full(), size);
            let at = at.index(bytes.len());
            bytes[at] = b;
            let _ = sniff(&bytes);
        }
    }
}
