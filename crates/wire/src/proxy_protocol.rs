//! The PROXY protocol, versions 1 and 2 (haproxy.org/download/3.0/doc/proxy-protocol.txt), read and written.
//!
//! Only a listener that requires it may read it: whoever can send this header says who he is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use memchr::memchr;

/// The longest version 1 header, CRLF included.
pub const MAX_V1: usize = 107;
/// The longest version 2 header read or written. The format allows 64 KiB; nothing in use needs more than this.
pub const MAX_V2: usize = 4096;
/// Type-length-values in one header, nested ones included.
pub const MAX_TLVS: usize = 32;
/// The longest unique id (section 2.2.5).
pub const MAX_UNIQUE_ID: usize = 128;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parse {
    /// More bytes are needed; never with more than [`MAX_V2`] bytes.
    Incomplete,
    /// The connection does not begin with a PROXY header.
    NotProxy,
    /// The header, and how many bytes it took.
    Done(Box<Header>, usize),
}

/// A PROXY header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub version: Version,
    pub command: Command,
    /// The client. `None` for LOCAL and for connections that are not TCP or UDP: the real peer counts. IPv4-mapped
    /// addresses come out as IPv4.
    pub source: Option<SocketAddr>,
    /// What the client connected to.
    pub destination: Option<SocketAddr>,
    pub tlvs: Tlvs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// The proxy opened the connection on its own account, for a health check.
    Local,
    /// On behalf of a client.
    Proxy,
}

/// What a version 2 header says beyond addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tlvs {
    /// The application protocol the client negotiated.
    pub alpn: Option<Vec<u8>>,
    /// The host name the client asked for (SNI); not validated, use [`crate::host::parse_name`].
    pub authority: Option<String>,
    /// Identifies the connection; at most 128 bytes.
    pub unique_id: Option<Vec<u8>>,
    pub ssl: Option<Ssl>,
    pub netns: Option<String>,
    /// Types this module does not know, such as the ones of AWS (0xEA), Google (0xE0) and Azure (0xEE).
    pub other: Vec<(u8, Vec<u8>)>,
}

/// What the proxy in front knows about the client's TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ssl {
    /// Bit 0: TLS was used; bit 1: a certificate came on this connection; bit 2: one came in this session.
    pub client: u8,
    /// Zero if the certificate was verified.
    pub verify: u32,
    /// `TLSv1.3`
    pub version: Option<String>,
    /// The common name of the client certificate.
    pub common_name: Option<String>,
    pub cipher: Option<String>,
    pub signature: Option<String>,
    pub key: Option<String>,
}

/// Why a header is refused; the connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("the PROXY header is longer than its limit (107 bytes in version 1, 4096 in version 2)")]
    TooLong,
    #[error("the PROXY version 1 header is malformed")]
    V1,
    #[error("the PROXY version 2 header has an unknown version, command or address family")]
    V2,
    #[error("the PROXY version 2 header is too short for its addresses")]
    Addresses,
    #[error("a type-length-value of the PROXY header is malformed, repeated, or reaches over the end")]
    Tlv,
    #[error("the checksum of the PROXY header is wrong")]
    Checksum,
}

/// Looks at the first bytes of a connection.
pub fn parse(bytes: &[u8]) -> Result<Parse, ProxyError> {
    const V1: &[u8] = b"PROXY ";
    let begins = |prefix: &[u8]| {
        let seen = bytes.len().min(prefix.len());
        bytes[..seen] == prefix[..seen]
    };
    if begins(V1) {
        if bytes.len() < V1.len() { Ok(Parse::Incomplete) } else { parse_v1(bytes) }
    } else if begins(SIGNATURE) {
        if bytes.len() < 16 { Ok(Parse::Incomplete) } else { parse_v2(bytes) }
    } else {
        Ok(Parse::NotProxy)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Parse, ProxyError> {
    let window = &bytes[..bytes.len().min(MAX_V1)];
    let Some(end) = memchr(b'\n', window) else {
        return if window.len() == MAX_V1 { Err(ProxyError::TooLong) } else { Ok(Parse::Incomplete) };
    };
    let line = window[..end].strip_suffix(b"\r").ok_or(ProxyError::V1)?;
    let line = std::str::from_utf8(line).map_err(|_| ProxyError::V1)?;
    let mut words = line.split(' ').skip(1);
    let family = words.next();
    let (source, destination) = match family {
        // The sender does not know, or is not TCP: the rest of the line is ignored.
        Some("UNKNOWN") => (None, None),
        Some(family @ ("TCP4" | "TCP6")) => {
            let mut address = || {
                let word = words.next()?;
                if family == "TCP4" {
                    word.parse().ok().map(IpAddr::V4)
                } else {
                    word.parse().ok().map(|ip: Ipv6Addr| IpAddr::V6(ip).to_canonical())
                }
            };
            let (source, destination) = address().zip(address()).ok_or(ProxyError::V1)?;
            let mut port = || words.next().and_then(v1_port).ok_or(ProxyError::V1);
            let pair = (SocketAddr::new(source, port()?), SocketAddr::new(destination, port()?));
            if words.next().is_some() {
                return Err(ProxyError::V1);
            }
            (Some(pair.0), Some(pair.1))
        }
        _ => return Err(ProxyError::V1),
    };
    let header = Header { version: Version::V1, command: Command::Proxy, source, destination, tlvs: Tlvs::default() };
    Ok(Parse::Done(Box::new(header), end + 1))
}

/// Decimal, without sign or leading zeros.
fn v1_port(word: &str) -> Option<u16> {
    let plain = word.bytes().all(|b| b.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    if plain { word.parse().ok() } else { None }
}

/// `bytes` holds at least the 16 bytes before the addresses.
fn parse_v2(bytes: &[u8]) -> Result<Parse, ProxyError> {
    let length = 16 + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    let command = match bytes[12] {
        0x20 => Command::Local,
        0x21 => Command::Proxy,
        _ => return Err(ProxyError::V2),
    };
    if length > MAX_V2 {
        return Err(ProxyError::TooLong);
    }
    let Some(header) = bytes.get(..length) else { return Ok(Parse::Incomplete) };
    let body = &header[16..];
    let (addresses, tlv_bytes) = match (command, bytes[13]) {
        // A local connection has no client, and a family without addresses leaves unsaid where its TLVs begin.
        (Command::Local, _) | (_, 0x00) => (None, &body[body.len()..]),
        (_, 0x11 | 0x12) => {
            let (block, rest) = body.split_first_chunk::<12>().ok_or(ProxyError::Addresses)?;
            (Some(v4_block(block)), rest)
        }
        (_, 0x21 | 0x22) => {
            let (block, rest) = body.split_first_chunk::<36>().ok_or(ProxyError::Addresses)?;
            (Some(v6_block(block)), rest)
        }
        // UNIX sockets have names, not addresses.
        (_, 0x31 | 0x32) => (None, body.get(216..).ok_or(ProxyError::Addresses)?),
        _ => return Err(ProxyError::V2),
    };
    let tlvs = parse_tlvs(tlv_bytes, header)?;
    let (source, destination) = addresses.unzip();
    Ok(Parse::Done(Box::new(Header { version: Version::V2, command, source, destination, tlvs }), length))
}

fn v4_block(block: &[u8; 12]) -> (SocketAddr, SocketAddr) {
    let ip = |at: usize| IpAddr::V4(Ipv4Addr::new(block[at], block[at + 1], block[at + 2], block[at + 3]));
    let port = |at: usize| u16::from_be_bytes([block[at], block[at + 1]]);
    (SocketAddr::new(ip(0), port(8)), SocketAddr::new(ip(4), port(10)))
}

fn v6_block(block: &[u8; 36]) -> (SocketAddr, SocketAddr) {
    let ip = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&block[at..at + 16]);
        IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
    };
    let port = |at: usize| u16::from_be_bytes([block[at], block[at + 1]]);
    (SocketAddr::new(ip(0), port(32)), SocketAddr::new(ip(16), port(34)))
}

/// Takes one type-length-value from the front of `rest`. A length that reaches over the end is an error: read on, it
/// would take what the client sent for what the proxy said (CVE-2026-47692).
fn next_tlv<'a>(rest: &mut &'a [u8]) -> Result<(u8, &'a [u8]), ProxyError> {
    let (head, tail) = rest.split_first_chunk::<3>().ok_or(ProxyError::Tlv)?;
    let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
    let (value, tail) = tail.split_at_checked(length).ok_or(ProxyError::Tlv)?;
    *rest = tail;
    Ok((head[0], value))
}

fn parse_tlvs(mut rest: &[u8], header: &[u8]) -> Result<Tlvs, ProxyError> {
    let mut tlvs = Tlvs::default();
    let mut count = 0;
    let mut checked = false;
    while !rest.is_empty() {
        count += 1;
        if count > MAX_TLVS {
            return Err(ProxyError::Tlv);
        }
        let value_end = |rest: &[u8]| header.len() - rest.len();
        let (kind, value) = next_tlv(&mut rest)?;
        match kind {
            0x01 => once(&mut tlvs.alpn, value.to_vec())?,
            0x02 => once(&mut tlvs.authority, text(value)?)?,
            0x03 if !checked => {
                checked = true;
                let sum = value.try_into().map(u32::from_be_bytes).map_err(|_| ProxyError::Tlv)?;
                let at = value_end(rest) - 4;
                if checksum(header, at) != sum {
                    return Err(ProxyError::Checksum);
                }
            }
            0x03 => return Err(ProxyError::Tlv),
            0x04 => {}
            0x05 if value.len() > MAX_UNIQUE_ID => return Err(ProxyError::Tlv),
            0x05 => once(&mut tlvs.unique_id, value.to_vec())?,
            0x20 => once(&mut tlvs.ssl, parse_ssl(value, &mut count)?)?,
            0x30 => once(&mut tlvs.netns, text(value)?)?,
            _ => tlvs.other.push((kind, value.to_vec())),
        }
    }
    Ok(tlvs)
}

fn parse_ssl(value: &[u8], count: &mut usize) -> Result<Ssl, ProxyError> {
    let (head, mut rest) = value.split_first_chunk::<5>().ok_or(ProxyError::Tlv)?;
    let verify = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let mut ssl = Ssl { client: head[0], verify, ..Ssl::default() };
    while !rest.is_empty() {
        *count += 1;
        if *count > MAX_TLVS {
            return Err(ProxyError::Tlv);
        }
        let (kind, value) = next_tlv(&mut rest)?;
        let slot = match kind {
            0x21 => &mut ssl.version,
            0x22 => &mut ssl.common_name,
            0x23 => &mut ssl.cipher,
            0x24 => &mut ssl.signature,
            0x25 => &mut ssl.key,
            _ => continue,
        };
        once(slot, text(value)?)?;
    }
    Ok(ssl)
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), ProxyError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(ProxyError::Tlv),
    }
}

/// UTF-8 without NUL, which would cut a name short for those who read C strings (CVE-2025-66220).
fn text(value: &[u8]) -> Result<String, ProxyError> {
    let text = std::str::from_utf8(value).map_err(|_| ProxyError::Tlv)?;
    if text.contains('\0') { Err(ProxyError::Tlv) } else { Ok(text.to_owned()) }
}

/// CRC-32C of the header with the four bytes at `at` taken as zero.
fn checksum(header: &[u8], at: usize) -> u32 {
    let mut crc = u32::MAX;
    for (i, &b) in header.iter().enumerate() {
        let b = if (at..at + 4).contains(&i) { 0 } else { b };
        crc ^= u32::from(b);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82F6_3B78 & 0u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

/// Writes a version 1 header; `UNKNOWN` without addresses. Mixed families are written as IPv6.
pub fn write_v1(addresses: Option<(SocketAddr, SocketAddr)>, out: &mut Vec<u8>) {
    let line = match addresses.map(|(a, b)| (a.ip().to_canonical(), b.ip().to_canonical(), a.port(), b.port())) {
        None => "PROXY UNKNOWN\r\n".to_owned(),
        Some((IpAddr::V4(from), IpAddr::V4(to), from_port, to_port)) => {
            format!("PROXY TCP4 {from} {to} {from_port} {to_port}\r\n")
        }
        Some((from, to, from_port, to_port)) => {
            format!("PROXY TCP6 {} {} {from_port} {to_port}\r\n", to_v6(from), to_v6(to))
        }
    };
    out.extend_from_slice(line.as_bytes());
}

/// Writes a version 2 header for a TCP connection: PROXY with addresses, LOCAL without. Nothing is written if the values
/// make it longer than [`MAX_V2`].
pub fn write_v2(addresses: Option<(SocketAddr, SocketAddr)>, tlvs: &Tlvs, out: &mut Vec<u8>) -> Result<(), ProxyError> {
    let mut body = Vec::with_capacity(64);
    let (command, family) = match addresses.map(|(a, b)| (a, b, a.ip().to_canonical(), b.ip().to_canonical())) {
        None => (0x20, 0x00),
        Some((a, b, from, to)) => {
            let family = if let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) {
                body.extend_from_slice(&from.octets());
                body.extend_from_slice(&to.octets());
                0x11
            } else {
                body.extend_from_slice(&to_v6(from).octets());
                body.extend_from_slice(&to_v6(to).octets());
                0x21
            };
            body.extend_from_slice(&a.port().to_be_bytes());
            body.extend_from_slice(&b.port().to_be_bytes());
            write_tlvs(tlvs, &mut body)?;
            (0x21, family)
        }
    };
    let length = u16::try_from(body.len()).map_err(|_| ProxyError::TooLong)?;
    if body.len() + 16 > MAX_V2 {
        return Err(ProxyError::TooLong);
    }
    out.extend_from_slice(SIGNATURE);
    out.extend_from_slice(&[command, family]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&body);
    Ok(())
}

fn to_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

fn write_tlvs(tlvs: &Tlvs, out: &mut Vec<u8>) -> Result<(), ProxyError> {
    let known = [
        (0x01, tlvs.alpn.as_deref()),
        (0x02, tlvs.authority.as_deref().map(str::as_bytes)),
        (0x05, tlvs.unique_id.as_deref()),
        (0x30, tlvs.netns.as_deref().map(str::as_bytes)),
    ];
    for (kind, value) in known {
        if let Some(value) = value {
            write_tlv(kind, value, out)?;
        }
    }
    if let Some(ssl) = &tlvs.ssl {
        let mut value = vec![ssl.client];
        value.extend_from_slice(&ssl.verify.to_be_bytes());
        let parts = [&ssl.version, &ssl.common_name, &ssl.cipher, &ssl.signature, &ssl.key];
        for (kind, part) in (0x21..).zip(parts) {
            if let Some(part) = part {
                write_tlv(kind, part.as_bytes(), &mut value)?;
            }
        }
        write_tlv(0x20, &value, out)?;
    }
    for (kind, value) in &tlvs.other {
        write_tlv(*kind, value, out)?;
    }
    Ok(())
}

fn write_tlv(kind: u8, value: &[u8], out: &mut Vec<u8>) -> Result<(), ProxyError> {
    let length = u16::try_from(value.len()).map_err(|_| ProxyError::TooLong)?;
    out.push(kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn done(bytes: &[u8]) -> (Header, usize) {
        match parse(bytes) {
            Ok(Parse::Done(header, length)) => (*header, length),
            other => panic!("{other:?} for {:?}", String::from_utf8_lossy(bytes)),
        }
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend_from_slice(&[command, family]);
        bytes.extend_from_slice(&(body.len() as u16).to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    const V4: [u8; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 0x1f, 0x90, 0, 80];

    #[test]
    fn version_1_is_read() {
        let (header, length) = done(b"PROXY TCP4 1.2.3.4 5.6.7.8 8080 80\r\nGET /");
        assert_eq!((header.source, length), ("1.2.3.4:8080".parse().ok(), 36));
        assert_eq!(header.destination, "5.6.7.8:80".parse().ok());
        let (header, _) = done(b"PROXY TCP6 ::ffff:1.2.3.4 2001:db8::1 1 2\r\n");
        assert_eq!(header.source, "1.2.3.4:1".parse().ok());
        let (header, length) = done(b"PROXY UNKNOWN ffff::1 whatever\r\n");
        assert_eq!((header.source, length), (None, 32));
        assert_eq!(done(b"PROXY UNKNOWN\r\n").0.destination, None);
        for part in ["", "P", "PROXY", "PROXY ", "PROXY TCP4 1.2.3.4", "PROXY UNKNOWN\r"] {
            assert_eq!(parse(part.as_bytes()), Ok(Parse::Incomplete), "{part}");
        }
        assert_eq!(parse(b"GET / HTTP/1.1"), Ok(Parse::NotProxy));
        assert_eq!(parse(format!("PROXY UNKNOWN {}", "a".repeat(100)).as_bytes()), Err(ProxyError::TooLong));
        for bad in [
            "PROXY TCP4 1.2.3.4 5.6.7.8 8080 80\n",
            "PROXY TCP4  1.2.3.4 5.6.7.8 8080 80\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 8080 80 \r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 8080\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 +1 80\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 01 80\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 65536 80\r\n",
            "PROXY TCP4 ::1 ::1 1 80\r\n",
            "PROXY TCP6 1.2.3.4 ::1 1 80\r\n",
            "PROXY tcp4 1.2.3.4 5.6.7.8 8080 80\r\n",
            "PROXY \r\n",
        ] {
            assert_eq!(parse(bad.as_bytes()), Err(ProxyError::V1), "{bad}");
        }
    }

    #[test]
    fn version_2_is_read() {
        let (header, length) = done(&v2(0x21, 0x11, &V4));
        assert_eq!(
            (header.source, header.destination, length),
            ("1.2.3.4:8080".parse().ok(), "5.6.7.8:80".parse().ok(), 28)
        );
        let (header, _) = done(&v2(0x20, 0x11, &V4));
        assert_eq!((header.command, header.source), (Command::Local, None));
        assert_eq!(done(&v2(0x21, 0x00, b"junk")).0.source, None);
        assert_eq!(done(&v2(0x21, 0x31, &[0; 216])).0.source, None);
        let whole = v2(0x21, 0x11, &V4);
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), Ok(Parse::Incomplete));
        }
        assert_eq!(parse(&v2(0x31, 0x11, &V4)), Err(ProxyError::V2));
        assert_eq!(parse(&v2(0x22, 0x11, &V4)), Err(ProxyError::V2));
        assert_eq!(parse(&v2(0x21, 0x41, &V4)), Err(ProxyError::V2));
        assert_eq!(parse(&v2(0x21, 0x11, &V4[..11])), Err(ProxyError::Addresses));
        assert_eq!(parse(&v2(0x21, 0x21, &V4)), Err(ProxyError::Addresses));
        assert_eq!(parse(&v2(0x21, 0x11, &[0; MAX_V2])[..16]), Err(ProxyError::TooLong));
    }

    #[test]
    fn values_never_reach_over_the_end() {
        let with = |tlv: &[u8]| v2(0x21, 0x11, &[&V4[..], tlv].concat());
        for bad in [
            &[0x02, 0, 9, b'a'][..],
            &[0x02, 0],
            &[0x02],
            &[0x02, 0, 1, b'a', 0x02, 0, 1, b'b'],
            &[0x02, 0, 1, 0xff],
            &[0x02, 0, 2, b'a', 0],
            &[0x20, 0, 4, 1, 0, 0, 0],
            &[0x20, 0, 8, 1, 0, 0, 0, 0, 0x22, 0, 1],
            &[0x03, 0, 1, 0],
        ] {
            let mut bytes = with(bad);
            bytes.extend_from_slice(b"client data that must not be read");
            assert_eq!(parse(&bytes), Err(ProxyError::Tlv), "{bad:?}");
        }
        assert_eq!(parse(&with(&[0x03, 0, 4, 1, 2, 3, 4])), Err(ProxyError::Checksum));
        assert_eq!(parse(&with(&[0x04, 0, 0].repeat(MAX_TLVS + 1))), Err(ProxyError::Tlv));
        let mut bytes = with(&[0x03, 0, 4, 0, 0, 0, 0]);
        let at = bytes.len() - 4;
        let sum = checksum(&bytes, at).to_be_bytes();
        bytes[at..].copy_from_slice(&sum);
        assert!(matches!(parse(&bytes), Ok(Parse::Done(..))));
        // The check value of CRC-32C.
        assert_eq!(checksum(b"123456789", 9), 0xE306_9283);
    }

    fn full() -> Tlvs {
        Tlvs {
            alpn: Some(b"h2".to_vec()),
            authority: Some("shop.example".into()),
            unique_id: Some(vec![1, 2, 3]),
            ssl: Some(Ssl {
                client: 7,
                verify: 0,
                version: Some("TLSv1.3".into()),
                common_name: Some("alice".into()),
                ..Ssl::default()
            }),
            netns: None,
            other: vec![(0xea, vec![9])],
        }
    }

    #[test]
    fn ppp_reads_what_is_written() {
        let pair = ("1.2.3.4:8080".parse().unwrap(), "5.6.7.8:80".parse().unwrap());
        let mut out = Vec::new();
        write_v2(Some(pair), &full(), &mut out).unwrap();
        let header = ppp::v2::Header::try_from(&out[..]).unwrap();
        let expected = ppp::v2::IPv4::new([1, 2, 3, 4], [5, 6, 7, 8], 8080, 80);
        assert_eq!(header.addresses, ppp::v2::Addresses::IPv4(expected));
        assert_eq!(header.tlvs().filter_map(Result::ok).count(), 5);
        let mut out = Vec::new();
        write_v1(Some(("[2001:db8::1]:1".parse().unwrap(), "5.6.7.8:2".parse().unwrap())), &mut out);
        let header = ppp::v1::Header::try_from(&out[..]).unwrap();
        assert_eq!(header.protocol(), "TCP6");
        let mut out = Vec::new();
        assert_eq!(
            write_v2(Some(pair), &Tlvs { other: vec![(0xe0, vec![0; 5000])], ..Tlvs::default() }, &mut out),
            Err(ProxyError::TooLong)
        );
        assert!(out.is_empty());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(a: (IpAddr, u16), b: (IpAddr, u16), rest in proptest::collection::vec(any::<u8>(), 0..20)) {
            let pair = (SocketAddr::new(a.0.to_canonical(), a.1), SocketAddr::new(b.0.to_canonical(), b.1));
            let (mut one, mut two) = (Vec::new(), Vec::new());
            write_v1(Some(pair), &mut one);
            write_v2(Some(pair), &full(), &mut two).unwrap();
            for (mut bytes, tlvs) in [(one, Tlvs::default()), (two, full())] {
                let length = bytes.len();
                bytes.extend_from_slice(&rest);
                let (header, consumed) = done(&bytes);
                prop_assert_eq!(consumed, length);
                prop_assert_eq!((header.source, header.destination, header.tlvs), (Some(pair.0), Some(pair.1), tlvs));
            }
        }

        #[test]
        fn version_2_agrees_with_ppp(command in prop::sample::select(vec![0x20u8, 0x21]), family in prop::sample::select(vec![0x11u8, 0x12, 0x21, 0x22, 0x31]), body in proptest::collection::vec(any::<u8>(), 0..260)) {
            let bytes = v2(command, family, &body);
            if let Ok(Parse::Done(ours, length)) = parse(&bytes) && ours.command == Command::Proxy {
                let theirs = ppp::v2::Header::try_from(&bytes[..]).unwrap();
                prop_assert_eq!(theirs.len(), length);
                let source = match theirs.addresses {
                    ppp::v2::Addresses::IPv4(a) => Some(IpAddr::V4(a.source_address)),
                    ppp::v2::Addresses::IPv6(a) => Some(IpAddr::V6(a.source_address).to_canonical()),
                    _ => None,
                };
                prop_assert_eq!(ours.source.map(|s| s.ip()), source);
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
            let _ = parse(&v2(0x21, 0x11, &bytes));
        }
    }
}
