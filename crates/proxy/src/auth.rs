//! Who a request comes from: its token is found, verified, and told to the backend as the AuthPolicy says.

mod proofs;

pub use proofs::Proofs;

use crate::{
    Error,
    error::{Kind, Side},
    jwt::{self, MAX_TOKEN, Proof, Reason},
    telemetry::AccessCounts,
    worker::WorkerId,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, uri::PathAndQuery};
use selvedge_compile::snapshot::{Auth, TokenAt, TokenPlace};
use smallvec::SmallVec;
use std::{borrow::Cow, sync::Arc, time::SystemTime};

/// Takes from a request what only a verified token may say. To be done before a route is chosen by it.
pub fn strip(auth: &Auth, headers: &mut HeaderMap) {
    for name in &auth.strip {
        headers.remove(name);
    }
}

/// Finds out who a request is from. `exempt`: it is answered here whoever asks, and comes without a token.
///
/// # Errors
/// Nothing is proven that must be; the error is the answer.
pub fn request<B>(
    auth: &Auth,
    request: &mut Request<B>,
    exempt: bool,
    (proofs, worker): (&Proofs, WorkerId),
    counts: &AccessCounts,
) -> Result<Option<Arc<Proof>>, Error> {
    strip(auth, request.headers_mut());
    let refused = |reason: Reason| {
        counts.unproven(&auth.name, reason);
        let why = auth.broken.as_deref().unwrap_or(reason.words());
        Error::new(Kind::Unproven(reason), Side::Us, format!("AuthPolicy {}: {why}", auth.name))
    };
    if auth.broken.is_some() {
        return Err(refused(Reason::Broken));
    }
    let (place, proof) = match find(auth, request).map_err(refused)? {
        None if auth.optional || exempt => return Ok(None),
        None => return Err(refused(Reason::Missing)),
        Some((place, token)) => {
            let (proof, cached) = prove(auth, place, &token, (proofs, worker)).map_err(refused)?;
            counts.proven(&auth.name, cached);
            (place, proof)
        }
    };
    if auth.providers.get(proof.provider).is_some_and(|provider| !provider.forward) {
        take_away(&place.at, request);
    }
    for (name, value) in &proof.headers {
        request.headers_mut().insert(name, value.clone());
    }
    Ok(Some(proof))
}

/// Verifies a token unless that was done before; tells whether it was.
fn prove(
    auth: &Auth,
    place: &TokenPlace,
    token: &str,
    (proofs, worker): (&Proofs, WorkerId),
) -> Result<(Arc<Proof>, bool), Reason> {
    if token.len() > MAX_TOKEN {
        return Err(Reason::TooLong);
    }
    let now = SystemTime::now();
    let key = proofs::key(&auth.digest, token);
    let known = proofs.get(worker, &key);
    if let Some(proof) = known.filter(|proof| proof.until > now && place.providers.contains(&proof.provider)) {
        return Ok((proof, true));
    }
    let proof = Arc::new(jwt::verify(auth, &place.providers, token, now)?);
    proofs.put(worker, key, proof.clone(), token.len());
    Ok((proof, false))
}

/// The one token of a request, and where it was.
fn find<'a, 'r, B>(auth: &'a Auth, request: &'r Request<B>) -> Result<Option<(&'a TokenPlace, Cow<'r, str>)>, Reason> {
    let mut found: Option<(&TokenPlace, Cow<'r, str>)> = None;
    let mut seen: SmallVec<[&HeaderName; 2]> = SmallVec::new();
    for place in &auth.places {
        let token = match &place.at {
            TokenAt::Header(name, _) if seen.contains(&name) => continue,
            TokenAt::Header(name, _) => {
                seen.push(name);
                match in_header(auth, name, request.headers())? {
                    Some((place, token)) => Some((place, Cow::Borrowed(token))),
                    None => None,
                }
            }
            TokenAt::Param(name) => in_query(name, request.uri().query().unwrap_or_default())?.map(|it| (place, it)),
        };
        if let Some(token) = token {
            if found.is_some() {
                return Err(Reason::Repeated);
            }
            found = Some(token);
        }
    }
    Ok(found)
}

/// What of a header is a token. Of several prefixes the longest is meant.
fn in_header<'a, 'r>(
    auth: &'a Auth,
    name: &HeaderName,
    headers: &'r HeaderMap,
) -> Result<Option<(&'a TokenPlace, &'r str)>, Reason> {
    let mut values = headers.get_all(name).iter().map(|value| in_value(auth, name, value));
    let Some(first) = values.next() else { return Ok(None) };
    let Some(second) = values.next() else { return first };
    // Programs differ in which of two they take.
    let all = [first, second].into_iter().chain(values);
    if all.into_iter().all(|value| matches!(value, Ok(None))) { Ok(None) } else { Err(Reason::Repeated) }
}

fn in_value<'a, 'r>(
    auth: &'a Auth,
    name: &HeaderName,
    value: &'r HeaderValue,
) -> Result<Option<(&'a TokenPlace, &'r str)>, Reason> {
    let bytes = value.as_bytes();
    let mut best: Option<(&TokenPlace, usize)> = None;
    for place in &auth.places {
        let TokenAt::Header(header, prefix) = &place.at else { continue };
        let begins = bytes.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix.as_bytes()));
        // `Bearer` alone is a token that is missing its text, not another scheme.
        let bare = bytes.eq_ignore_ascii_case(prefix.trim_end().as_bytes()) && !prefix.trim_end().is_empty();
        if header == name && (begins || bare) && best.is_none_or(|(_, length)| length < prefix.len()) {
            best = Some((place, prefix.len()));
        }
    }
    let Some((place, length)) = best else { return Ok(None) };
    let token = bytes.get(length..).unwrap_or_default();
    let token = std::str::from_utf8(token).map_err(|_| Reason::Malformed)?.trim_matches(' ');
    Ok(Some((place, token)))
}

/// The value of a parameter, whose name may be written with escapes.
fn in_query<'r>(name: &str, query: &'r str) -> Result<Option<Cow<'r, str>>, Reason> {
    let mut values = query.split('&').filter_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (unescaped(key).as_deref() == Some(name)).then(|| unescaped(value).ok_or(Reason::Malformed))
    });
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.map(Some),
        (Some(_), Some(_)) => Err(Reason::Repeated),
    }
}

/// A part of a query without its escapes; none if they are wrong.
fn unescaped(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

/// Takes the token out of a request.
fn take_away<B>(at: &TokenAt, request: &mut Request<B>) {
    match at {
        TokenAt::Header(name, _) => _ = request.headers_mut().remove(name),
        TokenAt::Param(name) => {
            let query = request.uri().query().unwrap_or_default();
            let is_token = |pair: &&str| {
                let key = pair.split_once('=').map_or(*pair, |(key, _)| key);
                unescaped(key).as_deref() == Some(name)
            };
            let rest: Vec<&str> = query.split('&').filter(|pair| !is_token(pair)).collect();
            let path = request.uri().path();
            let text = if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) };
            let mut parts = request.uri().clone().into_parts();
            // Of a target that was valid, a part is.
            if let Ok(target) = PathAndQuery::try_from(text) {
                parts.path_and_query = Some(target);
                if let Ok(uri) = http::Uri::from_parts(parts) {
                    *request.uri_mut() = uri;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
