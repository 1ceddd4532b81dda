//! Hostname patterns: normal form, comparison, and what two of them have in common.

/// Lower case, without trailing dot.
pub(crate) fn normal(pattern: &str) -> String {
    pattern.strip_suffix('.').unwrap_or(pattern).to_ascii_lowercase()
}

/// Whether a normal pattern is a DNS name that a listener or route may carry: no IP address, `*` only as first label.
pub(crate) fn valid(pattern: &str) -> bool {
    let name = pattern.strip_prefix("*.").unwrap_or(pattern);
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label) && name.parse::<std::net::Ipv4Addr>().is_err()
}

/// Whether a name or pattern falls under a pattern (`*` stands for one label or more).
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    if pattern == name {
        return true;
    }
    let Some(suffix) = pattern.strip_prefix("*.") else { return false };
    // A wildcard name falls under a wildcard pattern that is its parent domain.
    let name = name.strip_prefix("*.").unwrap_or(name);
    name.strip_suffix(suffix).is_some_and(|front| front.ends_with('.') && front.len() > 1)
}

/// Whether some name falls under both patterns.
pub(crate) fn overlap(a: &str, b: &str) -> bool {
    matches(a, b) || matches(b, a)
}

/// What a route of these hostnames (none = all) serves on a listener (GEP-1426): the more specific of each pair.
/// Nothing in common is an empty list; a single `None` is every host of the listener.
pub(crate) fn intersection<'a>(listener: Option<&'a str>, route: &'a [String]) -> Vec<Option<&'a str>> {
    if route.is_empty() {
        return vec![listener];
    }
    let mut found = Vec::with_capacity(route.len());
    for name in route {
        let common = match listener {
            None => Some(name.as_str()),
            Some(own) if matches(own, name) => Some(name.as_str()),
            Some(own) if matches(name, own) => Some(own),
            Some(_) => None,
        };
        if common.is_some() && !found.contains(&common) {
            found.push(common);
        }
    }
    found
}

/// Whether a certificate's name is good for a listener's hostname. A certificate wildcard stands for one label only
/// (RFC 9525 section 6.3), so a wildcard listener needs the very same wildcard.
pub(crate) fn covers(certificate: &str, hostname: &str) -> bool {
    if certificate == hostname {
        return true;
    }
    match (certificate.strip_prefix("*."), hostname.split_once('.')) {
        (Some(suffix), Some((label, rest))) => label != "*" && rest == suffix,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intersections_follow_the_standard() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let route = names(&["very.specific.com", "*.wildcard.io", "other.org"]);
        assert_eq!(intersection(Some("very.specific.com"), &route), [Some("very.specific.com")]);
        assert_eq!(intersection(Some("*.specific.com"), &route), [Some("very.specific.com")]);
        assert_eq!(intersection(Some("foo.bar.wildcard.io"), &route), [Some("foo.bar.wildcard.io")]);
        assert_eq!(intersection(Some("*.foo.wildcard.io"), &route), [Some("*.foo.wildcard.io")]);
        assert_eq!(intersection(Some("*.io"), &route), [Some("*.wildcard.io")]);
        assert!(intersection(Some("wildcard.io"), &route).is_empty(), "a wildcard does not match its own suffix");
        assert_eq!(intersection(None, &route).len(), 3);
        assert_eq!(intersection(Some("a.b"), &[]), [Some("a.b")]);
        assert_eq!(intersection(None, &[]), [None]);
    }

    #[test]
    fn certificates_cover_one_label() {
        assert!(covers("*.a.com", "b.a.com"));
        assert!(!covers("*.a.com", "c.b.a.com"));
        assert!(!covers("*.a.com", "a.com"));
        assert!(covers("*.a.com", "*.a.com"));
        assert!(!covers("*.a.com", "*.b.a.com"));
    }

    #[test]
    fn overlaps_are_symmetric() {
        assert!(overlap("*.a.com", "b.a.com") && overlap("b.a.com", "*.a.com"));
        assert!(overlap("*.a.com", "*.b.a.com"));
        assert!(!overlap("*.a.com", "a.com"));
        assert!(!overlap("xa.com", "*.a.com"));
    }
}
