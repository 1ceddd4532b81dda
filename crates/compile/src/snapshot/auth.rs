//! How callers prove who they are, compiled from AuthPolicies.

use http::HeaderName;
use serde::{Serialize, Serializer};
use std::{fmt, sync::Arc, time::Duration};

/// One AuthPolicy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Auth {
    /// `namespace/name`.
    pub name: String,
    /// Who comes without a token passes, without claims.
    pub optional: bool,
    pub providers: Vec<JwtProvider>,
    /// Where tokens come, with the providers whose tokens do.
    pub places: Vec<TokenPlace>,
    /// Headers that clients cannot set, whatever is proven.
    #[serde(serialize_with = "names")]
    pub strip: Vec<HeaderName>,
    /// Why it cannot be used; then nothing is answered where it holds.
    pub broken: Option<String>,
    /// Of all that decides whether a token is good: what was verified by one cannot stand for another.
    #[serde(skip)]
    pub digest: [u8; 32],
}

impl Auth {
    /// Whether tokens of an issuer are believed.
    pub fn believes(&self, issuer: &str) -> bool {
        self.broken.is_none() && self.providers.iter().any(|provider| provider.issuer == issuer)
    }
}

/// An issuer whose tokens are believed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JwtProvider {
    pub name: String,
    pub issuer: String,
    /// One of these must be named; none asks for none.
    pub audiences: Vec<String>,
    pub keys: Arc<Vec<JwtKey>>,
    pub skew: Duration,
    /// Headers, each with the way to its claim.
    pub claim_headers: Vec<ClaimHeader>,
    /// Whether the backend gets the token.
    pub forward: bool,
}

/// A header that tells a claim.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClaimHeader {
    #[serde(serialize_with = "name")]
    pub header: HeaderName,
    pub claim: Vec<String>,
}

/// Where tokens come.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenPlace {
    pub at: TokenAt,
    /// Indexes of providers.
    pub providers: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum TokenAt {
    /// With what stands before the token, compared in any case.
    Header(#[serde(serialize_with = "name")] HeaderName, String),
    /// A parameter of the query.
    Param(String),
}

/// A public key and what it may verify.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JwtKey {
    pub id: Option<String>,
    pub algorithms: Vec<JwtAlgorithm>,
    pub material: JwtMaterial,
}

/// Signatures of RFC 7518 and RFC 8037 that a public key verifies. There is none for secrets, and no `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum JwtAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

impl JwtAlgorithm {
    pub const RSA: [JwtAlgorithm; 6] = [Self::RS256, Self::RS384, Self::RS512, Self::PS256, Self::PS384, Self::PS512];

    /// By its name in `alg`, case and all. `Ed25519` is RFC 9864's name of what `EdDSA` is with such a key.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::RS256,
            "RS384" => Self::RS384,
            "RS512" => Self::RS512,
            "PS256" => Self::PS256,
            "PS384" => Self::PS384,
            "PS512" => Self::PS512,
            "ES256" => Self::ES256,
            "ES384" => Self::ES384,
            "EdDSA" | "Ed25519" => Self::EdDSA,
            _ => return None,
        })
    }
}

/// A public key.
#[derive(Clone, PartialEq)]
pub enum JwtMaterial {
    /// Modulus and exponent, big-endian.
    Rsa { n: Vec<u8>, e: Vec<u8> },
    /// An uncompressed point (SEC 1) of the curve that the key's one algorithm is for.
    Ec(Vec<u8>),
    /// Of Ed25519.
    Ed(Vec<u8>),
}

impl JwtMaterial {
    fn words(&self) -> String {
        match self {
            Self::Rsa { n, .. } => format!("RSA {}", n.len() * 8),
            Self::Ec(point) => format!("EC P-{}", point.len() / 2 * 8),
            Self::Ed(_) => "Ed25519".to_owned(),
        }
    }
}

impl fmt::Debug for JwtMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words())
    }
}

impl Serialize for JwtMaterial {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.words())
    }
}

fn name<S: Serializer>(name: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}

fn names<S: Serializer>(names: &[HeaderName], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(names.iter().map(HeaderName::as_str))
}
