//! Session persistence (GEP-1619): a cookie or header that brings a client back to its endpoint.
//!
//! The value names the endpoint by a hash: it can choose no address that is not one of the cluster's. With a
//! [`SessionKey`](crate::session_key::SessionKey) the hash is keyed and the value signed, so that a client can neither
//! find out the address by trying those there may be, nor choose an endpoint, nor make its session last longer. Without
//! one, replicas still agree.

use super::hashed;
use crate::{Request, Response, cluster::LiveCluster, endpoint::LiveEndpoint, serve::Exchange};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{COOKIE, SET_COOKIE},
};
use selvedge_compile::snapshot::{Backend, HashKey, SessionKind, SessionPersistence, Split, Target};
use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// What a request brought.
#[derive(Debug, Clone, Copy)]
pub(super) struct Session {
    endpoint: u64,
    /// Seconds since the epoch.
    created: u64,
    used: u64,
}

/// The session of a request, unless it has run out.
pub(super) fn read(exchange: &Exchange<'_>, request: &Request) -> Option<Session> {
    let policy = exchange.rule.session.as_ref()?;
    let value = match policy.kind {
        SessionKind::Cookie => cookie(request.headers(), &policy.name)?,
        SessionKind::Header => request.headers().get(policy.name.as_str())?.to_str().ok()?,
    };
    let value = match &exchange.conn.shared.session_key {
        None => value,
        Some(key) => {
            let (value, signature) = value.rsplit_once('-')?;
            Some(value).filter(|value| key.verify(&policy.name, value, signature))?
        }
    };
    parse(value).filter(|session| {
        let within =
            |since: u64, limit: Option<Duration>| limit.is_none_or(|l| now().saturating_sub(since) <= l.as_secs());
        within(session.created, policy.absolute_timeout) && within(session.used, policy.idle_timeout)
    })
}

fn parse(value: &str) -> Option<Session> {
    let mut parts = value.split('-').map(|p| u64::from_str_radix(p, 16).ok());
    let session = Session { endpoint: parts.next()??, created: parts.next()??, used: parts.next()?? };
    parts.next().is_none().then_some(session)
}

/// The backend and endpoint that a session names, if they still exist: it takes precedence over weights.
pub(super) fn endpoint<'s>(
    exchange: &Exchange<'_>,
    split: &'s Split,
    session: Session,
) -> Option<(&'s Backend, SocketAddr)> {
    split.backends.iter().filter(|b| b.weight > 0).find_map(|backend| {
        let Target::Cluster(id) = &backend.target else { return None };
        let cluster = exchange.table.cluster(*id);
        let endpoints = cluster.endpoints();
        let found = endpoints.iter().find(|endpoint| name(exchange, cluster, endpoint) == session.endpoint)?;
        Some((backend, found.address))
    })
}

fn name(exchange: &Exchange<'_>, cluster: &LiveCluster, endpoint: &LiveEndpoint) -> u64 {
    endpoint.session_name(|| match &exchange.conn.shared.session_key {
        None => hashed(format!("{}|{}", cluster.key(), endpoint.address).as_bytes()),
        Some(key) => key.name(cluster.key(), endpoint.address),
    })
}

/// Tells the client about its endpoint when that is new, or when an idle timeout has to start anew.
pub(super) fn write(
    exchange: &Exchange<'_>,
    cluster: &LiveCluster,
    endpoint: &LiveEndpoint,
    session: Option<Session>,
    response: &mut Response,
) {
    let Some(policy) = &exchange.rule.session else { return };
    let at = name(exchange, cluster, endpoint);
    let kept = session.filter(|s| s.endpoint == at);
    if kept.is_some() && policy.idle_timeout.is_none() {
        return;
    }
    let created = kept.map_or_else(now, |s| s.created);
    let mut value = format!("{at:016x}-{created:x}-{:x}", now());
    if let Some(key) = &exchange.conn.shared.session_key {
        value = format!("{value}-{}", key.sign(&policy.name, &value));
    }
    match policy.kind {
        SessionKind::Cookie => {
            set_cookie(response, &policy.name, &value, &policy.path, max_age(policy), exchange.conn.secure())
        }
        SessionKind::Header => {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(policy.name.as_str()), HeaderValue::try_from(value)) {
                response.headers_mut().insert(name, value);
            }
        }
    }
}

fn max_age(policy: &SessionPersistence) -> Option<Duration> {
    policy.absolute_timeout.filter(|_| policy.permanent)
}

/// Adds a cookie to a response.
pub(super) fn set_cookie(
    response: &mut Response,
    name: &str,
    value: &str,
    path: &str,
    age: Option<Duration>,
    secure: bool,
) {
    let mut text = format!("{name}={value}; Path={path}; HttpOnly; SameSite=Lax");
    if let Some(age) = age {
        text.push_str(&format!("; Max-Age={}", age.as_secs()));
    }
    if secure {
        text.push_str("; Secure");
    }
    if let Ok(value) = HeaderValue::try_from(text) {
        response.headers_mut().append(SET_COOKIE, value);
    }
}

/// A cookie made for a client that had none of the hash keys (Envoy's generated hash cookie).
pub(super) struct HashCookie {
    name: String,
    value: String,
    path: String,
    ttl: Duration,
}

impl HashCookie {
    /// For the first key that is a cookie with a lifetime.
    pub(super) fn make(keys: &[HashKey]) -> Option<Self> {
        keys.iter().find_map(|key| match key {
            HashKey::Cookie { name, ttl: Some(ttl), path } => Some(Self {
                name: name.clone(),
                value: format!("{:016x}", rand::random::<u64>()),
                path: path.clone(),
                ttl: *ttl,
            }),
            _ => None,
        })
    }

    pub(super) fn hash(&self) -> u64 {
        hashed(self.value.as_bytes())
    }

    /// A lifetime of zero is that of the client's session.
    pub(super) fn set(&self, exchange: &Exchange<'_>, response: &mut Response) {
        let age = Some(self.ttl).filter(|ttl| !ttl.is_zero());
        set_cookie(response, &self.name, &self.value, &self.path, age, exchange.conn.secure());
    }
}

/// The value of a request cookie.
pub(super) fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let lines = headers.get_all(COOKIE).into_iter().filter_map(|v| v.to_str().ok());
    lines.flat_map(|line| line.split(';')).find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_found_by_name() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1; sid=x; bsid=2"));
        headers.append(COOKIE, HeaderValue::from_static("c=3"));
        assert_eq!(cookie(&headers, "sid"), Some("x"));
        assert_eq!(cookie(&headers, "c"), Some("3"));
        assert_eq!(cookie(&headers, "d"), None);
    }

    #[test]
    fn values_parse_strictly() {
        assert!(parse("00ff-1-2").is_some());
        for bad in ["", "x-1-2", "1-2", "1", "1-2-z", "1-2-3-4"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
