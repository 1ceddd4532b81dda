//! Who the client is: `X-Forwarded-For`, `Forwarded` (RFC 7239), and the fields that only a trusted peer may send.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use ipnet::IpNet;

/// Addresses looked at in one request, from the nearest hop on. A client can make the list as long as a head allows.
pub const MAX_HOPS: usize = 64;

pub static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub static X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
pub static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Which of the proxies in front of us are believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Trust {
    /// None: the peer is the client. Right when clients connect directly.
    #[default]
    Nobody,
    /// So many proxies stand in front of us, whatever their addresses. 1 means that the peer is one and the last address
    /// it wrote is the client.
    Hops(u8),
    /// Proxies are known by their addresses. Being in a private network alone earns no trust (CVE-2024-45806).
    Networks(Vec<IpNet>),
}

impl Trust {
    /// Whether what `peer` says about the client is believed, and its internal fields are kept.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        match self {
            Trust::Nobody => false,
            Trust::Hops(hops) => *hops > 0,
            Trust::Networks(networks) => {
                let peer = peer.to_canonical();
                networks.iter().any(|network| network.contains(&peer))
            }
        }
    }
}

/// Which field lists the addresses. Only one is read: a proxy that sets one passes the other on as the client sent it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Source {
    #[default]
    XForwardedFor,
    Forwarded,
}

/// `X-Forwarded-For` and `Forwarded` name different clients, and nobody can tell which one the proxy wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "X-Forwarded-For and Forwarded name different clients, {x_forwarded_for} and {forwarded}: set listener.forwardedHeader to the \
     one that the proxies in front write"
)]
pub struct Contradiction {
    pub x_forwarded_for: IpAddr,
    pub forwarded: IpAddr,
}

/// The client, by the field that the trusted proxies are said to write; what the other says is taken out then, for it comes
/// from a client. Without a word on that, either is read, and both only while they agree: a proxy that writes one of them
/// passes the other on as a client may have made it up.
pub fn client(
    peer: IpAddr,
    headers: &mut HeaderMap,
    written: Option<Source>,
    trust: &Trust,
) -> Result<IpAddr, Contradiction> {
    let peer = peer.to_canonical();
    if !trust.trusts(peer) {
        return Ok(peer);
    }
    match written {
        Some(Source::XForwardedFor) => {
            headers.remove(header::FORWARDED);
            Ok(client_ip(peer, headers, Source::XForwardedFor, trust))
        }
        Some(Source::Forwarded) => {
            let client = client_ip(peer, headers, Source::Forwarded, trust);
            headers.remove(&X_FORWARDED_FOR);
            if client != peer {
                // Backends that read nothing else learn it too.
                set(headers, &X_FORWARDED_FOR, client.to_string().as_bytes());
            }
            Ok(client)
        }
        None => {
            let x_forwarded_for = client_ip(peer, headers, Source::XForwardedFor, trust);
            if !headers.contains_key(header::FORWARDED) {
                return Ok(x_forwarded_for);
            }
            let forwarded = client_ip(peer, headers, Source::Forwarded, trust);
            if headers.contains_key(&X_FORWARDED_FOR) && x_forwarded_for != forwarded {
                return Err(Contradiction { x_forwarded_for, forwarded });
            }
            Ok(forwarded)
        }
    }
}

/// The address of the client: the rightmost one that no trusted proxy is known by. What the client itself wrote stands
/// further left and is never reached.
pub fn client_ip(peer: IpAddr, headers: &HeaderMap, source: Source, trust: &Trust) -> IpAddr {
    let peer = peer.to_canonical();
    if !trust.trusts(peer) {
        return peer;
    }
    match source {
        Source::XForwardedFor => {
            let lines = headers.get_all(&X_FORWARDED_FOR).iter().rev();
            let addresses = lines.flat_map(|line| line.as_bytes().rsplit(|&b| b == b',')).map(address);
            rightmost_untrusted(peer, addresses, trust)
        }
        Source::Forwarded => {
            let mut hops = Vec::new();
            for line in headers.get_all(header::FORWARDED) {
                elements(line.as_bytes(), &mut |element| {
                    hops.push(parameter(element, b"for").and_then(|node| address(&node)));
                });
            }
            rightmost_untrusted(peer, hops.into_iter().rev(), trust)
        }
    }
}

/// `hops` come nearest first; `None` stands for what is no address.
fn rightmost_untrusted(peer: IpAddr, hops: impl Iterator<Item = Option<IpAddr>>, trust: &Trust) -> IpAddr {
    let mut hops = hops.take(MAX_HOPS);
    match trust {
        Trust::Nobody => peer,
        Trust::Hops(count) => hops.nth(usize::from(*count).saturating_sub(1)).flatten().unwrap_or(peer),
        Trust::Networks(_) => {
            let mut client = peer;
            // Every hop up to here was written by a trusted proxy. One that is no address ends the walk: the proxy that
            // wrote it is the last thing known.
            while trust.trusts(client) {
                match hops.next() {
                    Some(Some(hop)) => client = hop,
                    _ => break,
                }
            }
            client
        }
    }
}

/// An address with or without port, brackets and quotes; IPv4-mapped ones come out as IPv4 (CVE-2026-27624).
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = text.trim_ascii();
    let text = text.strip_prefix(b"\"").and_then(|t| t.strip_suffix(b"\"")).unwrap_or(text);
    // The longest form is a bracketed IPv6 address of 45 bytes with a port.
    if text.len() > 53 {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    let ip = match text.strip_prefix('[') {
        Some(rest) => {
            let (ip, port) = rest.split_once(']')?;
            if !(port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok())) {
                return None;
            }
            IpAddr::V6(ip.parse().ok()?)
        }
        None => match text.parse::<IpAddr>() {
            Ok(ip) => ip,
            Err(_) => text.parse::<SocketAddr>().ok()?.ip(),
        },
    };
    Some(ip.to_canonical())
}

/// Calls `found` with each element of a `Forwarded` line, minding quotes.
fn elements(line: &[u8], found: &mut dyn FnMut(&[u8])) {
    split_quoted(line, b',', found);
}

fn split_quoted(text: &[u8], separator: u8, found: &mut dyn FnMut(&[u8])) {
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (at, &b) in text.iter().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if b == separator && !quoted => {
                found(text.get(start..at).unwrap_or_default());
                start = at + 1;
            }
            _ => {}
        }
    }
    found(text.get(start..).unwrap_or_default());
}

/// The value of a parameter of one `Forwarded` element, unquoted. A repeated parameter makes the element worthless.
fn parameter(element: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let mut value = None;
    let mut repeated = false;
    split_quoted(element, b';', &mut |pair| {
        let pair = pair.trim_ascii();
        let Some(equals) = pair.iter().position(|&b| b == b'=') else { return };
        let (key, text) = (&pair[..equals], &pair[equals + 1..]);
        if key.eq_ignore_ascii_case(name) {
            repeated |= value.is_some();
            value = Some(unquote(text));
        }
    });
    value.filter(|_| !repeated)
}

fn unquote(text: &[u8]) -> Vec<u8> {
    match text.strip_prefix(b"\"").and_then(|t| t.strip_suffix(b"\"")) {
        Some(inner) => {
            let mut escaped = false;
            let keep = |b: &u8| {
                escaped = *b == b'\\' && !escaped;
                !escaped
            };
            inner.iter().copied().filter(keep).collect()
        }
        None => text.to_vec(),
    }
}

/// What we tell backends about the connection a request came on.
#[derive(Debug, Clone, Copy)]
pub struct Hop<'a> {
    /// The peer of the connection, not the client it speaks for.
    pub peer: IpAddr,
    /// The host the client asked for, canonical.
    pub host: &'a str,
    pub secure: bool,
    /// The port the client connected to.
    pub port: u16,
}

/// Appends the peer to `X-Forwarded-For`, merging its lines into one.
pub fn append_for(headers: &mut HeaderMap, peer: IpAddr) {
    let peer = peer.to_canonical().to_string();
    let mut value = Vec::with_capacity(peer.len());
    for line in headers.get_all(&X_FORWARDED_FOR) {
        value.extend_from_slice(line.as_bytes());
        value.extend_from_slice(b", ");
    }
    value.extend_from_slice(peer.as_bytes());
    set(headers, &X_FORWARDED_FOR, &value);
}

/// Writes `X-Forwarded-For`, `-Proto`, `-Host` and `-Port`. What an untrusted peer said must have been removed before
/// ([`strip_internal`]); what a trusted one said about proto, host and port is kept.
pub fn write_x_forwarded(headers: &mut HeaderMap, hop: &Hop<'_>) {
    append_for(headers, hop.peer);
    if !headers.contains_key(&X_FORWARDED_PROTO) {
        let proto = if hop.secure { "https" } else { "http" };
        headers.insert(X_FORWARDED_PROTO.clone(), HeaderValue::from_static(proto));
    }
    if !headers.contains_key(&X_FORWARDED_HOST) {
        set(headers, &X_FORWARDED_HOST, hop.host.as_bytes());
    }
    if !headers.contains_key(&X_FORWARDED_PORT) {
        headers.insert(X_FORWARDED_PORT.clone(), HeaderValue::from(hop.port));
    }
}

/// Appends an element to `Forwarded` (RFC 7239), merging its lines into one.
pub fn append_forwarded(headers: &mut HeaderMap, hop: &Hop<'_>) {
    let mut value = Vec::with_capacity(96);
    for line in headers.get_all(header::FORWARDED) {
        value.extend_from_slice(line.as_bytes());
        value.extend_from_slice(b", ");
    }
    let node = match hop.peer.to_canonical() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("\"[{ip}]\""),
    };
    let proto = if hop.secure { "https" } else { "http" };
    let quote = if hop.host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) { "" } else { "\"" };
    let host: String = hop.host.chars().filter(|c| !matches!(c, '"' | '\\')).collect();
    value.extend_from_slice(format!("for={node};host={quote}{host}{quote};proto={proto}").as_bytes());
    set(headers, &header::FORWARDED, &value);
}

fn set(headers: &mut HeaderMap, name: &HeaderName, value: &[u8]) {
    // The parts were header values or hosts already, so this cannot fail; if it did, saying nothing is right.
    match HeaderValue::from_bytes(value) {
        Ok(value) => drop(headers.insert(name.clone(), value)),
        Err(_) => drop(headers.remove(name)),
    }
}

/// A field, or all fields with a prefix, that only a trusted peer may send.
#[derive(Debug, Clone, Copy)]
pub struct Internal {
    /// In lower case; ends in `-` when it is a prefix.
    pub name: &'static str,
    pub why: &'static str,
}

/// Fields removed from requests of untrusted peers. Backends behind a gateway believe them.
pub const INTERNAL: [Internal; 38] = [
    Internal { name: "client-cert", why: "the client certificate (RFC 9440)" },
    Internal { name: "client-cert-chain", why: "the client certificate chain (RFC 9440)" },
    Internal { name: "cf-connecting-ip", why: "the client address, by Cloudflare" },
    Internal { name: "fastly-client-ip", why: "the client address, by Fastly" },
    Internal { name: "forwarded", why: "the way the request came (RFC 7239)" },
    Internal { name: "front-end-https", why: "the scheme the client used, by Microsoft" },
    Internal { name: "l5d-", why: "routing and identity, by Linkerd" },
    Internal { name: "proxy", why: "read as HTTP_PROXY by CGI programs (CVE-2016-5385)" },
    Internal { name: "remote-user", why: "the authenticated user" },
    Internal { name: "ssl-client-", why: "the client certificate, by nginx and Apache" },
    Internal { name: "true-client-ip", why: "the client address, by Akamai and Cloudflare" },
    Internal { name: "x-amzn-oidc-", why: "the authenticated user, by AWS" },
    Internal { name: "x-anonymous-consumer", why: "the API consumer, by Kong" },
    Internal { name: "x-auth-request-", why: "the authenticated user, by oauth2-proxy" },
    Internal { name: "x-authenticated-", why: "the authenticated user, by Kong" },
    Internal { name: "x-client-cert", why: "the client certificate" },
    Internal { name: "x-client-ip", why: "the client address" },
    Internal { name: "x-cluster-client-ip", why: "the client address" },
    Internal { name: "x-consumer-", why: "the API consumer, by Kong" },
    Internal { name: "x-credential-identifier", why: "the API credential, by Kong" },
    Internal { name: "x-envoy-", why: "retries, timeouts and routing, by Envoy (CVE-2023-27487)" },
    Internal { name: "x-forwarded-", why: "the way the request came, and the client certificate" },
    Internal { name: "x-goog-authenticated-user-", why: "the authenticated user, by Google" },
    Internal { name: "x-goog-iap-", why: "the authenticated user, by Google" },
    Internal { name: "x-istio-", why: "routing and identity, by Istio" },
    Internal { name: "x-middleware-", why: "skips the middleware of Next.js (CVE-2025-29927)" },
    Internal { name: "x-ms-client-principal", why: "the authenticated user, by Azure" },
    Internal { name: "x-ms-client-principal-", why: "the authenticated user, by Azure" },
    Internal { name: "x-original-forwarded-for", why: "the client address" },
    Internal { name: "x-original-host", why: "another host than the one that was judged" },
    Internal { name: "x-original-uri", why: "another path than the one that was judged" },
    Internal { name: "x-original-url", why: "another path than the one that was judged (CVE-2018-14773)" },
    Internal { name: "x-real-ip", why: "the client address" },
    Internal { name: "x-remote-user", why: "the authenticated user" },
    Internal { name: "x-rewrite-url", why: "another path than the one that was judged (CVE-2018-14773)" },
    Internal { name: "x-selvedge-", why: "ours" },
    Internal { name: "x-ssl-client-", why: "the client certificate" },
    Internal { name: "x-webauth-user", why: "the authenticated user" },
];

/// Where the names with each first letter stand in [`INTERNAL`], which is sorted by first letter: `is_internal` is asked
/// for every field of every request.
const BY_LETTER: [(usize, usize); 256] = {
    let mut ranges = [(0, 0); 256];
    let mut at = 0;
    while at < INTERNAL.len() {
        let letter = INTERNAL[at].name.as_bytes()[0] as usize;
        if ranges[letter].1 == 0 {
            ranges[letter].0 = at;
        }
        ranges[letter].1 = at + 1;
        at += 1;
    }
    ranges
};

/// Whether only a trusted peer may send the field. An underscore counts as a hyphen: programs that get their fields by
/// way of CGI or WSGI read `X_Forwarded_For` and `X-Forwarded-For` as one (`HTTP_X_FORWARDED_FOR`).
pub fn is_internal(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    let (start, end) = name.first().map_or((0, 0), |&letter| BY_LETTER[usize::from(letter)]);
    INTERNAL[start..end].iter().any(|internal| {
        let wanted = internal.name.as_bytes();
        (wanted.len() == name.len() || internal.name.ends_with('-')) && starts_alike(name, wanted)
    })
}

/// Whether `name` (in lower case) begins with `start`, a hyphen or an underscore standing for a hyphen.
fn starts_alike(name: &[u8], start: &[u8]) -> bool {
    let same = |(&given, &wanted): (&u8, &u8)| given == wanted || (given == b'_' && wanted == b'-');
    name.len() >= start.len() && name.iter().zip(start).all(same)
}

/// Removes every internal field; for requests whose peer is not trusted. Says how many names were removed.
pub fn strip_internal(headers: &mut HeaderMap) -> usize {
    let found: Vec<HeaderName> = headers.keys().filter(|name| is_internal(name)).cloned().collect();
    for name in &found {
        headers.remove(name);
    }
    found.len()
}

/// Removes internal fields whose names are written with underscores; for requests of anybody. A trusted proxy writes
/// hyphens: what comes with underscores its client has sent, for a backend that reads both as one.
pub fn strip_imitations(headers: &mut HeaderMap) {
    let imitates = |name: &&HeaderName| name.as_str().contains('_') && is_internal(name);
    let found: Vec<HeaderName> = headers.keys().filter(imitates).cloned().collect();
    for name in &found {
        headers.remove(name);
    }
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

    fn networks() -> Trust {
        Trust::Networks(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_client_is_the_rightmost_untrusted_address() {
        let of = |peer: &str, lines: &[&'static str], trust: &Trust| {
            let lines: Vec<_> = lines.iter().map(|l| ("x-forwarded-for", *l)).collect();
            client_ip(ip(peer), &map(&lines), Source::XForwardedFor, trust).to_string()
        };
        let trust = networks();
        assert_eq!(of("10.0.0.1", &["6.6.6.6, 1.2.3.4"], &trust), "1.2.3.4");
        assert_eq!(of("10.0.0.1", &["6.6.6.6", "1.2.3.4, 10.0.0.2"], &trust), "1.2.3.4");
        assert_eq!(of("10.0.0.1", &["6.6.6.6", "1.2.3.4", "10.0.0.2"], &trust), "1.2.3.4");
        assert_eq!(of("::ffff:10.0.0.1", &["::ffff:1.2.3.4"], &trust), "1.2.3.4");
        assert_eq!(of("10.0.0.1", &["::ffff:10.0.0.9,[2001:db8::1]:443"], &trust), "2001:db8::1");
        assert_eq!(of("10.0.0.1", &["1.2.3.4:55555"], &trust), "1.2.3.4");
        assert_eq!(of("10.0.0.1", &["10.0.0.3, 10.0.0.2"], &trust), "10.0.0.3");
        assert_eq!(of("10.0.0.1", &["6.6.6.6, junk, 10.0.0.2"], &trust), "10.0.0.2");
        assert_eq!(of("10.0.0.1", &["6.6.6.6,"], &trust), "10.0.0.1");
        assert_eq!(of("10.0.0.1", &[], &trust), "10.0.0.1");
        assert_eq!(of("9.9.9.9", &["1.2.3.4"], &trust), "9.9.9.9");
        assert_eq!(of("9.9.9.9", &["1.2.3.4"], &Trust::Nobody), "9.9.9.9");
        assert_eq!(of("9.9.9.9", &["6.6.6.6, 1.2.3.4"], &Trust::Hops(1)), "1.2.3.4");
        assert_eq!(of("9.9.9.9", &["6.6.6.6, 1.2.3.4, 8.8.8.8"], &Trust::Hops(2)), "1.2.3.4");
        assert_eq!(of("9.9.9.9", &["1.2.3.4"], &Trust::Hops(2)), "9.9.9.9");
        assert_eq!(of("9.9.9.9", &["1.2.3.4"], &Trust::Hops(0)), "9.9.9.9");
    }

    #[test]
    fn forwarded_is_read_with_its_quotes() {
        let of = |lines: &[&'static str]| {
            let lines: Vec<_> = lines.iter().map(|l| ("forwarded", *l)).collect();
            client_ip(ip("10.0.0.1"), &map(&lines), Source::Forwarded, &networks()).to_string()
        };
        assert_eq!(of(&["for=6.6.6.6, For=\"[2001:db8::1]:80\";proto=https"]), "2001:db8::1");
        assert_eq!(of(&["for=6.6.6.6", "proto=http; for=1.2.3.4", "for=10.0.0.2"]), "1.2.3.4");
        assert_eq!(of(&["for=1.2.3.4;host=\"a,for=6.6.6.6\""]), "1.2.3.4");
        assert_eq!(of(&["for=\"1.2.3.4:\\80\""]), "1.2.3.4");
        for unknown in ["for=unknown", "for=_hidden", "for=", "by=1.2.3.4", "for=1.2.3.4;for=6.6.6.6", ""] {
            assert_eq!(of(&[unknown]), "10.0.0.1", "{unknown}");
        }
    }

    #[test]
    fn the_field_that_the_proxy_writes_counts() {
        // The proxy wrote the end of one of them; the client made up the other.
        let both = [("x-forwarded-for", "6.6.6.6"), ("forwarded", "for=1.2.3.4")];
        let client_of = |lines: &[(&'static str, &'static str)], written| {
            let mut headers = map(lines);
            let client = client(ip("10.0.0.1"), &mut headers, written, &Trust::Hops(1));
            (client.map(|c| c.to_string()), headers)
        };
        let contradiction = Contradiction { x_forwarded_for: ip("6.6.6.6"), forwarded: ip("1.2.3.4") };
        assert_eq!(client_of(&both, None).0, Err(contradiction));
        let (found, headers) = client_of(&both, Some(Source::Forwarded));
        assert_eq!(
            (found, &headers["x-forwarded-for"]),
            (Ok("1.2.3.4".to_owned()), &HeaderValue::from_static("1.2.3.4"))
        );
        let (found, headers) = client_of(&both, Some(Source::XForwardedFor));
        assert_eq!((found, headers.contains_key("forwarded")), (Ok("6.6.6.6".to_owned()), false));
        for lines in [&both[..1], &both[1..], &[("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=\"1.2.3.4:5\"")]] {
            assert!(client_of(lines, None).0.is_ok_and(|c| c == "6.6.6.6" || c == "1.2.3.4"));
        }
        // Nobody is made the proxy by naming a field that says nothing.
        assert_eq!(client_of(&[], Some(Source::Forwarded)).0, Ok("10.0.0.1".to_owned()));
        assert!(client_of(&[both[0], ("forwarded", "for=unknown")], None).0.is_err());
        let mut headers = map(&both);
        assert_eq!(client(ip("9.9.9.9"), &mut headers, None, &Trust::Nobody), Ok(ip("9.9.9.9")));
    }

    #[test]
    fn outgoing_fields_are_appended_or_set() {
        let mut headers =
            map(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2"), ("forwarded", "for=a")]);
        let hop = Hop { peer: ip("::ffff:3.3.3.3"), host: "shop:8443", secure: true, port: 8443 };
        write_x_forwarded(&mut headers, &hop);
        append_forwarded(&mut headers, &hop);
        assert_eq!(headers["x-forwarded-for"], "1.1.1.1, 2.2.2.2, 3.3.3.3");
        assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-host"], "shop:8443");
        assert_eq!(headers["x-forwarded-port"], "8443");
        assert_eq!(headers["forwarded"], "for=a, for=3.3.3.3;host=\"shop:8443\";proto=https");
        let mut headers = map(&[]);
        append_forwarded(&mut headers, &Hop { peer: ip("fd00::1"), host: "a", secure: false, port: 80 });
        assert_eq!(headers["forwarded"], "for=\"[fd00::1]\";host=a;proto=http");
    }

    #[test]
    fn internal_fields_of_strangers_are_removed() {
        let mut headers = map(&[
            ("x-forwarded-client-cert", "x"),
            ("x-forwarded-for", "1"),
            ("X-ORIGINAL-URL", "/admin"),
            ("x-envoy-original-path", "/admin"),
            ("x-middleware-subrequest", "x"),
            ("x-selvedge-consumer", "x"),
            ("proxy", "x"),
            ("x-request-id", "x"),
            ("x-proxy", "x"),
            ("cookie", "x"),
            ("x_forwarded_for", "1"),
            ("x-forwarded_proto", "https"),
            ("front_end_https", "on"),
            ("remote_user", "root"),
            ("ssl_client_verify", "SUCCESS"),
        ]);
        assert_eq!(strip_internal(&mut headers), 12);
        assert_eq!(headers.len(), 3);
        assert!(
            INTERNAL.iter().all(|i| i.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'))
        );
        let mut headers = map(&[("x-real_ip", "6.6.6.6"), ("x-real-ip", "1.2.3.4"), ("x_other", "1")]);
        strip_imitations(&mut headers);
        assert_eq!(headers.len(), 2);
        assert_eq!(headers["x-real-ip"], "1.2.3.4");
        assert!(INTERNAL.is_sorted_by_key(|i| i.name.as_bytes()[0]));
    }
}
