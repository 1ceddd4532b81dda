//! Verifying one JSON Web Token (RFC 7519, RFC 7515, with the advice of RFC 8725). Only here signatures are verified, by
//! `jsonwebtoken`; everything else about a token is read and judged here, more strictly than that crate would.
//!
//! Keys come from configuration alone: what a token says about keys (`jwk`, `jku`, `x5u`, `x5c`) is not looked at. The key says
//! which algorithms it is for.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderName, HeaderValue};
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use selvedge_compile::{
    access::unique_json,
    snapshot::{Auth, ClaimHeader, JwtAlgorithm, JwtKey, JwtMaterial, JwtProvider},
};
use serde_json::{Map, Value};
use std::time::{Duration, SystemTime};

/// Longest token, in bytes. Headers have a limit of their own; this keeps the work for one token small.
pub const MAX_TOKEN: usize = 16 * 1024;
/// Most keys that are tried for a token that names none.
const MAX_TRIES: usize = 16;

/// What a good token says.
#[derive(Debug)]
pub struct Proof {
    pub issuer: String,
    /// All claims, an object.
    pub claims: Value,
    /// Index of the provider.
    pub provider: usize,
    /// Headers that tell claims.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// When it ends to be good, skew included.
    pub until: SystemTime,
}

/// Why somebody has not proven who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    Missing,
    /// More than one token, or one header twice.
    Repeated,
    TooLong,
    Malformed,
    /// The header demands what is not understood here.
    Header,
    Algorithm,
    Key,
    Signature,
    Issuer,
    Audience,
    Expired,
    NotYet,
    /// Bytes came that are no HTTP, so that no token could.
    NotHttp,
    /// The policy cannot be used.
    Broken,
}

impl Reason {
    pub const ALL: [Reason; 14] = [
        Reason::Missing,
        Reason::Repeated,
        Reason::TooLong,
        Reason::Malformed,
        Reason::Header,
        Reason::Algorithm,
        Reason::Key,
        Reason::Signature,
        Reason::Issuer,
        Reason::Audience,
        Reason::Expired,
        Reason::NotYet,
        Reason::NotHttp,
        Reason::Broken,
    ];

    /// As in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Missing => "missing",
            Reason::Repeated => "repeated",
            Reason::TooLong => "too_long",
            Reason::Malformed => "malformed",
            Reason::Header => "header",
            Reason::Algorithm => "algorithm",
            Reason::Key => "key",
            Reason::Signature => "signature",
            Reason::Issuer => "issuer",
            Reason::Audience => "audience",
            Reason::Expired => "expired",
            Reason::NotYet => "not_yet",
            Reason::NotHttp => "not_http",
            Reason::Broken => "broken",
        }
    }

    /// For people: the client, and whoever reads the log.
    pub const fn words(self) -> &'static str {
        match self {
            Reason::Missing => "a token is needed",
            Reason::Repeated => "more than one token was sent",
            Reason::TooLong => "the token is too long",
            Reason::Malformed => "the token is malformed",
            Reason::Header => "the token demands what is not understood",
            Reason::Algorithm => "the algorithm of the token is not accepted",
            Reason::Key => "the key of the token is unknown",
            Reason::Signature => "the signature of the token is wrong",
            Reason::Issuer => "the issuer of the token is unknown",
            Reason::Audience => "the token is for another audience",
            Reason::Expired => "the token has expired",
            Reason::NotYet => "the token is not valid yet",
            Reason::NotHttp => "no token comes with what is not HTTP",
            Reason::Broken => "callers cannot be authenticated",
        }
    }
}

/// A token taken apart, but not believed.
struct Token<'t> {
    algorithm: JwtAlgorithm,
    key: Option<String>,
    claims: Map<String, Value>,
    /// What is signed.
    message: &'t [u8],
    signature: &'t str,
}

/// Verifies a token by one of these providers. The cheap comes first; nothing is believed before the signature is verified.
pub fn verify(auth: &Auth, allowed: &[usize], token: &str, now: SystemTime) -> Result<Proof, Reason> {
    let token = Token::parse(token)?;
    let Some(Value::String(issuer)) = token.claims.get("iss") else { return Err(Reason::Issuer) };
    let of_issuer = allowed.iter().filter_map(|i| auth.providers.get(*i).map(|provider| (*i, provider)));
    let mut reason = Reason::Issuer;
    for (number, provider) in of_issuer.filter(|(_, provider)| provider.issuer == *issuer) {
        match token.satisfies(provider, now) {
            Ok(until) => return Ok(token.believed(number, provider, until)),
            Err(why) => reason = why,
        }
    }
    Err(reason)
}

impl<'t> Token<'t> {
    fn parse(token: &'t str) -> Result<Self, Reason> {
        if token.len() > MAX_TOKEN {
            return Err(Reason::TooLong);
        }
        let mut parts = token.split('.');
        let (Some(head), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Reason::Malformed);
        };
        let header = object(head)?;
        // RFC 7515 section 4.1.11: what is critical must be understood, and no extension is. RFC 7797 is one of them.
        if header.contains_key("crit") || header.get("b64").is_some_and(|b64| *b64 != true) {
            return Err(Reason::Header);
        }
        let Some(Value::String(name)) = header.get("alg") else { return Err(Reason::Malformed) };
        let algorithm = JwtAlgorithm::named(name).ok_or(Reason::Algorithm)?;
        let key = match header.get("kid") {
            None => None,
            Some(Value::String(key)) => Some(key.clone()),
            Some(_) => return Err(Reason::Malformed),
        };
        let claims = object(payload)?;
        let message = &token.as_bytes()[..head.len() + 1 + payload.len()];
        Ok(Token { algorithm, key, claims, message, signature })
    }

    /// Until when it is good for a provider.
    fn satisfies(&self, provider: &JwtProvider, now: SystemTime) -> Result<SystemTime, Reason> {
        let until = self.times(provider.skew, now)?;
        self.audience(&provider.audiences)?;
        self.signed(&provider.keys)?;
        Ok(until)
    }

    fn times(&self, skew: Duration, now: SystemTime) -> Result<SystemTime, Reason> {
        let time = |name: &str| match self.claims.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or(Reason::Malformed),
        };
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let skew = skew.as_secs_f64();
        let left = time("exp")?.ok_or(Reason::Expired)? + skew - seconds;
        // A number that is none is not above zero either.
        if left.is_nan() || left <= 0.0 {
            return Err(Reason::Expired);
        }
        for begin in [time("nbf")?, time("iat")?].into_iter().flatten() {
            if begin > seconds + skew {
                return Err(Reason::NotYet);
            }
        }
        // Ten years from now are for ever: times beyond what the clock can hold are not to be computed with.
        let left = Duration::try_from_secs_f64(left.min(10.0 * 365.0 * 86400.0)).map_err(|_| Reason::Expired)?;
        now.checked_add(left).ok_or(Reason::Expired)
    }

    fn audience(&self, wanted: &[String]) -> Result<(), Reason> {
        let is_wanted = |named: &str| wanted.iter().any(|audience| audience == named);
        let found = match self.claims.get("aud") {
            None => wanted.is_empty(),
            Some(Value::String(named)) => wanted.is_empty() || is_wanted(named),
            Some(Value::Array(list)) => {
                let named: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
                let named = named.ok_or(Reason::Malformed)?;
                wanted.is_empty() || named.into_iter().any(is_wanted)
            }
            Some(_) => return Err(Reason::Malformed),
        };
        if found { Ok(()) } else { Err(Reason::Audience) }
    }

    /// `kid` selects and is nothing else; a key without one may be meant by any.
    fn signed(&self, keys: &[JwtKey]) -> Result<(), Reason> {
        let meant = |key: &&JwtKey| match (&self.key, &key.id) {
            (Some(wanted), Some(id)) => wanted == id,
            _ => true,
        };
        let named: Vec<&JwtKey> = keys.iter().filter(meant).take(MAX_TRIES).collect();
        if named.is_empty() {
            return Err(Reason::Key);
        }
        let mut reason = Reason::Algorithm;
        for key in named.into_iter().filter(|key| key.algorithms.contains(&self.algorithm)) {
            reason = Reason::Signature;
            let checked =
                crypto::verify(self.signature, self.message, &decoding(&key.material), algorithm(self.algorithm));
            if matches!(checked, Ok(true)) {
                return Ok(());
            }
        }
        Err(reason)
    }

    fn believed(self, number: usize, provider: &JwtProvider, until: SystemTime) -> Proof {
        let claims = Value::Object(self.claims);
        let told = |told: &ClaimHeader| Some((told.header.clone(), told_value(&claims, &told.claim)?));
        let headers = provider.claim_headers.iter().filter_map(told).collect();
        Proof { issuer: provider.issuer.clone(), claims, provider: number, headers, until }
    }
}

/// An object in base64url, no member of which stands twice.
fn object(part: &str) -> Result<Map<String, Value>, Reason> {
    let text = URL_SAFE_NO_PAD.decode(part).map_err(|_| Reason::Malformed)?;
    match unique_json(&text) {
        Ok(Value::Object(members)) => Ok(members),
        _ => Err(Reason::Malformed),
    }
}

/// The claim as a header has it; none where it cannot be told without doubt.
fn told_value(claims: &Value, way: &[String]) -> Option<HeaderValue> {
    let plain = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        _ => None,
    };
    let claim = way.iter().try_fold(claims, |claim, name| claim.get(name))?;
    let text = match claim {
        Value::Array(list) => {
            let parts: Option<Vec<String>> = list.iter().map(plain).collect();
            let parts = parts?;
            // Whoever may choose one entry must not make two of it.
            if parts.iter().any(|part| part.contains(',')) {
                return None;
            }
            parts.join(",")
        }
        value => plain(value)?,
    };
    HeaderValue::from_bytes(text.as_bytes()).ok()
}

fn decoding(material: &JwtMaterial) -> DecodingKey {
    match material {
        JwtMaterial::Rsa { n, e } => DecodingKey::from_rsa_raw_components(n, e),
        JwtMaterial::Ec(point) => DecodingKey::from_ec_der(point),
        JwtMaterial::Ed(key) => DecodingKey::from_ed_der(key),
    }
}

fn algorithm(algorithm: JwtAlgorithm) -> Algorithm {
    match algorithm {
        JwtAlgorithm::RS256 => Algorithm::RS256,
        JwtAlgorithm::RS384 => Algorithm::RS384,
        JwtAlgorithm::RS512 => Algorithm::RS512,
        JwtAlgorithm::PS256 => Algorithm::PS256,
        JwtAlgorithm::PS384 => Algorithm::PS384,
        JwtAlgorithm::PS512 => Algorithm::PS512,
        JwtAlgorithm::ES256 => Algorithm::ES256,
        JwtAlgorithm::ES384 => Algorithm::ES384,
        JwtAlgorithm::EdDSA => Algorithm::EdDSA,
    }
}

#[cfg(test)]
pub(crate) mod tests;
