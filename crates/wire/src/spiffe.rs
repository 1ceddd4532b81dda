//! SPIFFE IDs (SPIFFE-ID.md of the SPIFFE standard): `spiffe://TRUST-DOMAIN/PATH`.

use std::{fmt, str::FromStr, sync::Arc};

/// The longest SPIFFE ID that is accepted, in bytes (SPIFFE-ID section 2.3).
pub const MAX_LENGTH: usize = 2048;

/// The longest trust domain name, in bytes (SPIFFE-ID section 2.1).
pub const MAX_DOMAIN: usize = 255;

/// A SPIFFE ID as the standard writes it: no port, query or fragment, no empty or dot segments, lower-case trust domain.
/// Two IDs are the same when their texts are.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the trust domain ends.
    domain: u16,
}

/// Why a text is no SPIFFE ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("a SPIFFE ID begins with `spiffe://`")]
    Scheme,
    #[error("a SPIFFE ID is at most 2048 bytes long")]
    TooLong,
    #[error("a trust domain is 1 to 255 lower-case letters, digits, dots, dashes and underscores")]
    TrustDomain,
    #[error(
        "the path of a SPIFFE ID has segments of letters, digits, dots, dashes and underscores, none of them empty, `.` or `..`"
    )]
    Path,
}

impl SpiffeId {
    /// The ID of a workload: `spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
    pub fn workload(domain: &str, namespace: &str, account: &str) -> Result<Self, Invalid> {
        format!("spiffe://{domain}/ns/{namespace}/sa/{account}").parse()
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..usize::from(self.domain)]
    }

    /// With its leading slash; empty for the ID of a trust domain itself.
    pub fn path(&self) -> &str {
        &self.text[usize::from(self.domain)..]
    }

    /// The namespace, when the path is `/ns/NAMESPACE/sa/ACCOUNT`.
    pub fn namespace(&self) -> Option<&str> {
        self.names().map(|(namespace, _)| namespace)
    }

    /// The service account, when the path is `/ns/NAMESPACE/sa/ACCOUNT`.
    pub fn account(&self) -> Option<&str> {
        self.names().map(|(_, account)| account)
    }

    fn names(&self) -> Option<(&str, &str)> {
        let (namespace, account) = self.path().strip_prefix("/ns/")?.split_once("/sa/")?;
        (!namespace.contains('/') && !account.contains('/')).then_some((namespace, account))
    }
}

const SCHEME: &str = "spiffe://";

/// Whether a text is the name of a trust domain.
pub fn is_trust_domain(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    !name.is_empty() && name.len() <= MAX_DOMAIN && name.bytes().all(fits)
}

impl FromStr for SpiffeId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.len() > MAX_LENGTH {
            return Err(Invalid::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(Invalid::Scheme)?;
        let end = rest.find('/').unwrap_or(rest.len());
        let (domain, path) = rest.split_at(end);
        if !is_trust_domain(domain) {
            return Err(Invalid::TrustDomain);
        }
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(fits);
        if !path.is_empty() && !path[1..].split('/').all(segment) {
            return Err(Invalid::Path);
        }
        // Below MAX_LENGTH, so it fits.
        let domain = u16::try_from(SCHEME.len() + end).map_err(|_| Invalid::TooLong)?;
        Ok(Self { text: text.into(), domain })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_id_says() {
        let id = SpiffeId::workload("mesh.example", "shop", "orders").unwrap();
        assert_eq!(id.as_str(), "spiffe://mesh.example/ns/shop/sa/orders");
        assert_eq!((id.trust_domain(), id.path()), ("mesh.example", "/ns/shop/sa/orders"));
        assert_eq!((id.namespace(), id.account()), (Some("shop"), Some("orders")));
        let domain: SpiffeId = "spiffe://mesh.example".parse().unwrap();
        assert_eq!((domain.path(), domain.namespace()), ("", None));
        let other: SpiffeId = "spiffe://mesh.example/ns/a/sa/b/c".parse().unwrap();
        assert_eq!(other.namespace(), None);
    }

    #[test]
    fn what_is_none() {
        for (text, why) in [
            ("", Invalid::Scheme),
            ("http://a/b", Invalid::Scheme),
            ("SPIFFE://a/b", Invalid::Scheme),
            ("spiffe://", Invalid::TrustDomain),
            ("spiffe:///a", Invalid::TrustDomain),
            ("spiffe://A/b", Invalid::TrustDomain),
            ("spiffe://a:80/b", Invalid::TrustDomain),
            ("spiffe://u@a/b", Invalid::TrustDomain),
            ("spiffe://a/", Invalid::Path),
            ("spiffe://a//b", Invalid::Path),
            ("spiffe://a/b/", Invalid::Path),
            ("spiffe://a/./b", Invalid::Path),
            ("spiffe://a/../b", Invalid::Path),
            ("spiffe://a/b%2fc", Invalid::Path),
            ("spiffe://a/b?c", Invalid::Path),
            ("spiffe://a/b#c", Invalid::Path),
            ("spiffe://a/b\0c", Invalid::Path),
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(why), "{text}");
        }
        let long = format!("spiffe://a/{}", "b".repeat(MAX_LENGTH));
        assert_eq!(long.parse::<SpiffeId>(), Err(Invalid::TooLong));
        assert_eq!(SpiffeId::workload("a", "b/c", "d/../e"), Err(Invalid::Path));
    }
}
