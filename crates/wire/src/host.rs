//! The one canonical form of host names, used by routing, policies, SNI comparison and forwarding.
//!
//! Accepted is what DNS and RFC 3986 section 3.2.2 agree on: letters, digits, `-`, `_` and dots, an IPv4 address, or an
//! IPv6 address in brackets. Everything two servers may read differently (user information, lists, escapes, non-ASCII
//! names, IPv6 zones, numbers that only `inet_aton` reads as addresses) is refused.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest DNS name in octets, without the trailing dot (RFC 1035 section 2.3.4).
pub const MAX_NAME: usize = 253;
/// The longest DNS label in octets.
pub const MAX_LABEL: usize = 63;

/// A canonical `host[:port]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority<'a> {
    /// Lower case, without trailing dot; an IPv6 address in its canonical text, in brackets.
    pub host: Cow<'a, str>,
    pub port: Option<u16>,
    /// The address, when the host is one.
    pub ip: Option<IpAddr>,
}

impl Authority<'_> {
    /// The port that is meant: the given one, or the default of the scheme.
    pub fn effective_port(&self, secure: bool) -> u16 {
        self.port.unwrap_or(default_port(secure))
    }

    /// `host`, or `host:port` when the port is not the default of the scheme.
    pub fn text(&self, secure: bool) -> Cow<'_, str> {
        match self.port {
            Some(port) if port != default_port(secure) => Cow::Owned(format!("{}:{port}", self.host)),
            _ => Cow::Borrowed(&self.host),
        }
    }

    /// Whether `:authority` (or the authority of an absolute target) and `Host` name the same origin. When they do not,
    /// the request is refused: policies would judge one and a backend could serve the other.
    pub fn agrees(&self, host: &Authority<'_>, secure: bool) -> bool {
        self.host == host.host && self.effective_port(secure) == host.effective_port(secure)
    }

    pub fn into_owned(self) -> Authority<'static> {
        Authority { host: Cow::Owned(self.host.into_owned()), port: self.port, ip: self.ip }
    }
}

/// 443 or 80.
pub fn default_port(secure: bool) -> u16 {
    if secure { 443 } else { 80 }
}

/// Why a host is refused; all of them are answered 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("the host is empty")]
    Empty,
    #[error("the host is longer than 253 octets, or one of its labels longer than 63")]
    TooLong,
    #[error("the host has a byte that is not allowed: {0:#04x}")]
    Byte(u8),
    #[error("the host has an empty label")]
    EmptyLabel,
    #[error("the host ends in a number but is no IPv4 address")]
    Ipv4,
    #[error("the host is no valid IPv6 address in brackets; zones are not allowed")]
    Ipv6,
    #[error("the port is not a number from 1 to 65535")]
    Port,
}

/// Parses the value of `Host`, of `:authority`, or the authority of a request target.
pub fn parse(authority: &[u8]) -> Result<Authority<'_>, HostError> {
    match authority {
        [] => Err(HostError::Empty),
        [b'[', rest @ ..] => bracketed(rest),
        _ => {
            let colon = authority.iter().position(|&b| b == b':');
            let (name, port) = match colon {
                Some(at) => (&authority[..at], port(&authority[at + 1..])?),
                None => (authority, None),
            };
            let (host, ip) = name_or_ipv4(name)?;
            Ok(Authority { host, port, ip })
        }
    }
}

/// Canonical form of a bare DNS name or IPv4 address without port, as in SNI.
pub fn parse_name(name: &[u8]) -> Result<Cow<'_, str>, HostError> {
    name_or_ipv4(name).map(|(host, _)| host)
}

fn bracketed(rest: &[u8]) -> Result<Authority<'_>, HostError> {
    // The longest text of an IPv6 address has 45 bytes.
    let close = rest.iter().take(46).position(|&b| b == b']').ok_or(HostError::Ipv6)?;
    let text = std::str::from_utf8(&rest[..close]).map_err(|_| HostError::Ipv6)?;
    let ip: Ipv6Addr = text.parse().map_err(|_| HostError::Ipv6)?;
    let port = match &rest[close + 1..] {
        [] => None,
        [b':', digits @ ..] => port(digits)?,
        [b, ..] => return Err(HostError::Byte(*b)),
    };
    Ok(Authority { host: Cow::Owned(format!("[{ip}]")), port, ip: Some(IpAddr::V6(ip)) })
}

/// RFC 3986 section 3.2.3 lets nothing follow the colon, which is as if the colon were not there.
fn port(digits: &[u8]) -> Result<Option<u16>, HostError> {
    if digits.is_empty() {
        return Ok(None);
    }
    if digits.len() > 5 || digits[0] == b'0' {
        return Err(HostError::Port);
    }
    let value = digits.iter().try_fold(0u32, |sum, d| match d {
        b'0'..=b'9' => Some(sum * 10 + u32::from(d - b'0')),
        _ => None,
    });
    value.and_then(|v| u16::try_from(v).ok()).map(Some).ok_or(HostError::Port)
}

fn name_or_ipv4(name: &[u8]) -> Result<(Cow<'_, str>, Option<IpAddr>), HostError> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    if name.is_empty() {
        return Err(HostError::Empty);
    }
    if name.len() > MAX_NAME {
        return Err(HostError::TooLong);
    }
    let upper = check_labels(name)?;
    let text = std::str::from_utf8(name).map_err(|_| HostError::Byte(0x80))?;
    if ends_in_number(name) {
        let ip: Ipv4Addr = text.parse().map_err(|_| HostError::Ipv4)?;
        return Ok((Cow::Borrowed(text), Some(IpAddr::V4(ip))));
    }
    let host = if upper { Cow::Owned(text.to_ascii_lowercase()) } else { Cow::Borrowed(text) };
    Ok((host, None))
}

/// Checks bytes and labels in one pass; says whether there are upper-case letters.
fn check_labels(name: &[u8]) -> Result<bool, HostError> {
    let mut upper = false;
    let mut label = 0usize;
    for &b in name {
        match b {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => label += 1,
            b'A'..=b'Z' => {
                upper = true;
                label += 1;
            }
            b'.' if label == 0 => return Err(HostError::EmptyLabel),
            b'.' => label = 0,
            _ => return Err(HostError::Byte(b)),
        }
        if label > MAX_LABEL {
            return Err(HostError::TooLong);
        }
    }
    if label == 0 { Err(HostError::EmptyLabel) } else { Ok(upper) }
}

/// Whether some resolver would read the name as an IPv4 address (`127.1`, `0x7f000001`): the last label is a number.
fn ends_in_number(name: &[u8]) -> bool {
    let last = name.rsplit(|&b| b == b'.').next().unwrap_or(name);
    let hex = last.strip_prefix(b"0x").or_else(|| last.strip_prefix(b"0X"));
    last.iter().all(u8::is_ascii_digit) || hex.is_some_and(|h| h.iter().all(u8::is_ascii_hexdigit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> Result<(String, Option<u16>), HostError> {
        parse(text.as_bytes()).map(|a| (a.host.into_owned(), a.port))
    }

    #[test]
    fn hosts_become_one_form() {
        for (from, host, port) in [
            ("a", "a", None),
            ("Shop.Example", "shop.example", None),
            ("a.", "a", None),
            ("A.:443", "a", Some(443)),
            ("a:80", "a", Some(80)),
            ("a:", "a", None),
            ("a.:", "a", None),
            ("[::1]:", "[::1]", None),
            ("my_svc.ns", "my_svc.ns", None),
            ("10.0.0.1:8080", "10.0.0.1", Some(8080)),
            ("[::1]", "[::1]", None),
            ("[2001:DB8:0:0::1]:443", "[2001:db8::1]", Some(443)),
            ("xn--bcher-kva.example", "xn--bcher-kva.example", None),
        ] {
            assert_eq!(canonical(from), Ok((host.into(), port)), "{from}");
        }
        assert!(matches!(parse(b"shop.example:80").unwrap().host, Cow::Borrowed(_)));
    }

    #[test]
    fn what_two_servers_may_read_differently_is_refused() {
        for bad in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a..",
            "u@a",
            "a,b",
            "a#b",
            "a b",
            " a",
            "a%2eb",
            "a\0",
            "a/b",
            "a\\b",
            "bücher",
            "a。b",
            ":",
            ":80",
            "a::",
            "a:0",
            "a:065",
            "a:65536",
            "a:1:2",
            "a:+1",
            "a:x",
            "[::1",
            "[::1%25eth0]",
            "[fe80::1%eth0]",
            "[1.2.3.4]",
            "[::1]x",
            "[]",
            "::1",
            "127.1",
            "0x7f000001",
            "256.1.1.1",
            "1.2.3",
            "017.0.0.1",
            "a*",
            "*",
        ] {
            assert!(canonical(bad).is_err(), "{bad:?} {:?}", canonical(bad));
        }
        assert_eq!(canonical(&"a".repeat(64)), Err(HostError::TooLong));
        assert_eq!(canonical(&"a.".repeat(130)), Err(HostError::TooLong));
    }

    #[test]
    fn default_ports_are_dropped_and_agreement_ignores_them() {
        let parse = |t: &'static str| parse(t.as_bytes()).unwrap();
        assert_eq!(parse("a:443").text(true), "a");
        assert_eq!(parse("a:443").text(false), "a:443");
        assert_eq!(parse("[::1]:8080").text(false), "[::1]:8080");
        assert!(parse("A.").agrees(&parse("a:80"), false));
        assert!(!parse("a").agrees(&parse("a:80"), true));
        assert!(!parse("a").agrees(&parse("b"), true));
    }

    proptest! {
        #[test]
        fn the_canonical_form_is_a_fixed_point(text in "[aA0.:\\[\\]%@x1-]{0,20}") {
            if let Ok(once) = parse(text.as_bytes()) {
                let written = once.text(false).into_owned();
                let twice = parse(written.as_bytes()).unwrap();
                prop_assert!(once.agrees(&twice, false), "{} {}", text, written);
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }
    }
}
