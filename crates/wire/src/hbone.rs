//! What is in the head of an HBONE stream: CONNECT whose authority is an address (RFC 9113 section 8.5), with whom it is
//! for in `forwarded` (RFC 7239) and what is told about the caller in `baggage` (W3C Baggage), as Istio's ambient mesh
//! has it. Only the certificate of the connection proves anything; the fields are hearsay of a proven peer.

use crate::forwarded::{self, Source, Trust};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The longest authority: a bracketed IPv6 address with an embedded IPv4 one, and a port.
pub const MAX_AUTHORITY: usize = 53;

/// Members of a baggage that are read, and the bytes of its fields together (W3C Baggage section 3.3.2).
pub const MAX_MEMBERS: usize = 64;
pub const MAX_BAGGAGE: usize = 8192;

pub static BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// Why an authority is no target of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAuthority {
    #[error("a tunnel's authority is an IP address and a port, such as 10.0.0.1:80 or [fd00::1]:80")]
    NoAddress,
    #[error("a tunnel's authority has more than {MAX_AUTHORITY} bytes")]
    TooLong,
    #[error("a tunnel cannot lead to port 0")]
    NoPort,
    #[error("a tunnel leads to one host, which {0} is not the address of")]
    NotUnicast(IpAddr),
}

/// The target of a stream. IPv4-mapped addresses come out as IPv4.
pub fn authority(text: &str) -> Result<SocketAddr, BadAuthority> {
    if text.len() > MAX_AUTHORITY {
        return Err(BadAuthority::TooLong);
    }
    // `SocketAddr` reads zone ids, which mean something on one machine only, and ports with leading zeros.
    let port = text.rsplit_once(':').map(|(_, port)| port).ok_or(BadAuthority::NoAddress)?;
    if text.contains('%') || (port.len() > 1 && port.starts_with('0')) {
        return Err(BadAuthority::NoAddress);
    }
    let address: SocketAddr = text.parse().map_err(|_| BadAuthority::NoAddress)?;
    let ip = address.ip().to_canonical();
    if address.port() == 0 {
        return Err(BadAuthority::NoPort);
    }
    if ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Err(BadAuthority::NotUnicast(ip));
    }
    Ok(SocketAddr::new(ip, address.port()))
}

/// Whom the peer says it speaks for: the last address in `forwarded`.
pub fn origin(headers: &HeaderMap) -> Option<IpAddr> {
    // What is no address leaves the walk at its start, which is nobody's.
    let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    Some(forwarded::client_ip(nobody, headers, Source::Forwarded, &Trust::Hops(1))).filter(|ip| *ip != nobody)
}

/// The value of `forwarded` for whom we speak for.
pub fn forwarded(origin: IpAddr) -> HeaderValue {
    let text = match origin.to_canonical() {
        IpAddr::V4(ip) => format!("for={ip}"),
        IpAddr::V6(ip) => format!("for=\"[{ip}]\""),
    };
    // Digits, letters and punctuation only.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("for=unknown"))
}

/// What is told about the caller, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Baggage(Vec<(String, String)>);

impl Baggage {
    /// Reads all `baggage` fields. Members that are not `key=value` are left out, their properties too; nothing is
    /// read beyond [`MAX_MEMBERS`] and [`MAX_BAGGAGE`].
    pub fn read(headers: &HeaderMap) -> Self {
        let (mut members, mut left) = (Vec::new(), MAX_BAGGAGE);
        for line in headers.get_all(&BAGGAGE) {
            if line.len() > left {
                break;
            }
            left -= line.len();
            let fitting = line.as_bytes().split(|b| *b == b',').filter_map(member);
            members.extend(fitting.take(MAX_MEMBERS - members.len()));
        }
        Self(members)
    }

    /// The first of that name.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The field's value for these members; `None` when there is none, or they do not fit.
    pub fn write<'a>(members: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<HeaderValue> {
        let mut text = String::new();
        for (key, value) in members.into_iter().take(MAX_MEMBERS) {
            if !is_key(key.as_bytes()) {
                return None;
            }
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(key);
            text.push('=');
            for byte in value.bytes() {
                if is_plain(byte) {
                    text.push(char::from(byte));
                } else {
                    text.push('%');
                    text.push(char::from(HEX[usize::from(byte >> 4)]));
                    text.push(char::from(HEX[usize::from(byte & 15)]));
                }
            }
        }
        if text.is_empty() || text.len() > MAX_BAGGAGE {
            return None;
        }
        HeaderValue::try_from(text).ok()
    }
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

fn member(text: &[u8]) -> Option<(String, String)> {
    let text = text.split(|b| *b == b';').next()?.trim_ascii();
    let equals = text.iter().position(|b| *b == b'=')?;
    let (key, value) = (text[..equals].trim_ascii(), text[equals + 1..].trim_ascii());
    if !is_key(key) || !value.iter().all(|b| is_plain(*b) || *b == b'%') {
        return None;
    }
    Some((String::from_utf8(key.to_vec()).ok()?, decoded(value)?))
}

/// A token (RFC 9110 section 5.6.2).
fn is_key(text: &[u8]) -> bool {
    let fits = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    !text.is_empty() && text.iter().all(fits)
}

/// Stands for itself in a value: `baggage-octet` without the percent sign.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\' | b'%')
}

/// Percent-decodes; `None` where that yields no text, or control characters, which have no place in a log.
fn decoded(value: &[u8]) -> Option<String> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value.iter();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let digit = |b: Option<&u8>| char::from(*b?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            other => *other,
        };
        out.push(byte);
    }
    String::from_utf8(out).ok().filter(|text| !text.chars().any(char::is_control))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_addresses() {
        for (text, target) in [
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[fd00::1]:8080", "[fd00::1]:8080"),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
            ("127.0.0.1:65535", "127.0.0.1:65535"),
        ] {
            assert_eq!(authority(text).unwrap().to_string(), target);
        }
        for bad in [
            "",
            ":",
            "80",
            "10.0.0.1",
            "10.0.0.1:",
            "10.0.0.1:080",
            "10.0.0.1:+80",
            "10.0.0.1:65536",
            "010.0.0.1:80",
            "10.1:80",
            "fd00::1:80",
            "[fd00::1]",
            "[fe80::1%eth0]:80",
            "[fe80::1%1]:80",
            "orders.shop:80",
            "user@10.0.0.1:80",
            "10.0.0.1:80/",
            "10.0.0.1 :80",
            "10.0.0.1:80\0",
            "10.0.0.1:80,10.0.0.2:80",
        ] {
            assert_eq!(authority(bad), Err(BadAuthority::NoAddress), "{bad}");
        }
        assert_eq!(authority("10.0.0.1:0"), Err(BadAuthority::NoPort));
        assert!(matches!(authority("0.0.0.0:80"), Err(BadAuthority::NotUnicast(_))));
        assert!(matches!(authority("[::ffff:0.0.0.0]:80"), Err(BadAuthority::NotUnicast(_))));
        assert!(matches!(authority("[ff02::1]:80"), Err(BadAuthority::NotUnicast(_))));
        assert!(matches!(authority("255.255.255.255:80"), Err(BadAuthority::NotUnicast(_))));
        assert_eq!(authority(&"1".repeat(54)), Err(BadAuthority::TooLong));
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn the_origin_is_the_last_that_is_told() {
        for (value, ip) in [
            ("for=192.0.2.7", Some("192.0.2.7")),
            ("for=198.51.100.1, for=\"[2001:db8::1]:5000\";by=10.0.0.1", Some("2001:db8::1")),
            ("for=unknown", None),
            ("by=10.0.0.1", None),
            ("for=1.2.3.4, nonsense", None),
        ] {
            assert_eq!(origin(&headers(&[("forwarded", value)])), ip.map(|ip| ip.parse().unwrap()), "{value}");
        }
        assert_eq!(origin(&HeaderMap::new()), None);
        for ip in ["192.0.2.7", "2001:db8::1"] {
            let ip: IpAddr = ip.parse().unwrap();
            let mut map = HeaderMap::new();
            map.insert("forwarded", forwarded(ip));
            assert_eq!(origin(&map), Some(ip));
        }
    }

    #[test]
    fn baggage_is_read_and_written() {
        let written = Baggage::write([("k8s.namespace.name", "shop"), ("service.name", "a b,ü%")]).unwrap();
        assert_eq!(written, "k8s.namespace.name=shop,service.name=a%20b%2C%C3%BC%25");
        let read = Baggage::read(&headers(&[
            ("baggage", written.to_str().unwrap()),
            ("baggage", " x = y ;property;p=1 , =no, no, a=%zz, b=%00, c=\"q\", d="),
        ]));
        let all: Vec<_> = read.iter().collect();
        assert_eq!(all, [("k8s.namespace.name", "shop"), ("service.name", "a b,ü%"), ("x", "y"), ("d", "")]);
        assert_eq!(read.get("service.name"), Some("a b,ü%"));
        assert_eq!(Baggage::write([("no good", "x")]), None);
        assert_eq!(Baggage::write([]), None);
    }

    #[test]
    fn baggage_has_limits() {
        let many: Vec<String> = (0..100).map(|i| format!("k{i}=v")).collect();
        assert_eq!(Baggage::read(&headers(&[("baggage", &many.join(","))])).iter().count(), MAX_MEMBERS);
        let long = format!("k={}", "v".repeat(MAX_BAGGAGE));
        assert_eq!(Baggage::read(&headers(&[("baggage", "a=b"), ("baggage", &long)])).iter().count(), 1);
        assert_eq!(Baggage::write([("k", "v".repeat(MAX_BAGGAGE).as_str())]), None);
    }
}
