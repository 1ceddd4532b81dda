//! AuthPolicy of `selvedge.dev/v1alpha1`: how callers prove who they are.
//!
//! By JSON Web Tokens (RFC 7519), signed (RFC 7515) by keys of the issuer (RFC 7517). What a verified token says are the claims that
//! AccessPolicies ask for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::access::AccessTarget;
use crate::duration::Duration;
use crate::meta::ObjectMeta;
use crate::refs::LabelSelector;

/// How callers prove who they are, at its targets. Judged before AccessPolicies, where these are: at Gateways, and in front of
/// workloads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-ignored" = ["status"]))]
pub struct AuthPolicy {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Targets and methods.
    pub spec: AuthPolicySpec,
}

/// Targets and methods of an AuthPolicy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthPolicySpec {
    /// Where the policy holds, in its own namespace. Without targets and selector it holds for the whole namespace, its
    /// Gateways included; in the namespace `selvedge-system`, for the whole mesh and all Gateways. One policy holds at a place:
    /// the most specific, and of those for the same target the oldest. From the least specific: the mesh, Namespace, `selector`,
    /// Service, Workload; at Gateways the mesh, Namespace, Gateway, listener, route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<AccessTarget>,
    /// Workloads of the namespace by their labels; in the namespace `selvedge-system`, workloads of all namespaces.
    /// Not together with `targetRefs`.
    pub selector: Option<LabelSelector>,
    /// By JSON Web Tokens.
    pub jwt: JwtAuth,
    /// Set for a policy that could not be read: its targets then answer no request. Not to be written in files.
    #[serde(skip)]
    pub unreadable: bool,
}

/// Callers prove who they are by a token that an issuer has signed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JwtAuth {
    /// Issuers that are believed. A token must satisfy one of those that have its issuer.
    #[schemars(length(min = 1, max = 16))]
    pub providers: Vec<JwtProvider>,
    /// A request without a token passes, without claims. A token that is wrong is refused all the same. Otherwise requests
    /// without a token are answered 401, and connections that are not HTTP are reset, since no token comes with them.
    #[serde(default)]
    #[schemars(extend("default" = false))]
    pub optional: bool,
}

/// An issuer, its keys, and where its tokens come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JwtProvider {
    /// Name of the provider, for messages; unique in the policy.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The claim `iss` that its tokens have, compared exactly.
    #[schemars(length(min = 1, max = 2048))]
    pub issuer: String,
    /// Audiences, one of which the claim `aud` must name. Without them tokens for anybody are taken: name yours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 2048)))]
    pub audiences: Vec<String>,
    /// The keys of the issuer.
    pub jwks: JwtKeys,
    /// Headers that tokens come in. Without these and `fromParams`, `Authorization: Bearer …`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub from_headers: Vec<JwtHeader>,
    /// Parameters of the query that tokens come in. Queries end up in logs and histories: headers are better.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 256)))]
    pub from_params: Vec<String>,
    /// How far the issuer's clock may be from ours, at most `5m`: for `exp`, `nbf` and `iat`.
    #[schemars(extend("default" = "60s"))]
    pub clock_skew: Option<Duration>,
    /// Claims that backends are told in headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32))]
    pub claim_to_headers: Vec<ClaimToHeader>,
    /// Whether the backend gets the token as it came, as when it verifies it itself.
    #[serde(default = "yes")]
    #[schemars(extend("default" = true))]
    pub forward: bool,
}

/// Keys of an issuer, as a JWK set (RFC 7517): exactly one of `inline` and `secretRef`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JwtKeys {
    /// The JSON text of the set: `{"keys": [ … ]}`. Public keys of kty RSA (from 2048 bits), EC (P-256, P-384) and OKP
    /// (Ed25519); of other kinds are left out with a warning, and secrets (`oct`) are refused.
    #[schemars(length(min = 1, max = 262_144))]
    pub inline: Option<String>,
    /// A Secret with that text.
    pub secret_ref: Option<JwtSecret>,
}

/// A Secret of the policy's namespace that holds keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JwtSecret {
    /// Name of the Secret. Its key `jwks.json` holds the set.
    #[schemars(length(min = 1, max = 253), extend("x-refers" = "Secret"))]
    pub name: String,
}

/// A header that tokens come in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JwtHeader {
    /// Name, in any case.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// What stands before the token, in any case, such as `Bearer ` with its space. A value that begins otherwise is no
    /// token.
    #[schemars(length(min = 1, max = 64))]
    pub prefix: Option<String>,
}

/// A header that tells the backend a claim. What clients send in it is always removed, with a token or without.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimToHeader {
    /// Name of the header, in any case. Not one that belongs to the connection, to the message or to us.
    #[schemars(length(min = 1, max = 256))]
    pub header: String,
    /// Name of the claim; `/` leads into objects: `realm_access/roles`. Texts, numbers and truth values are told as they
    /// are, a list of them with commas between; of anything else the header is left out.
    #[schemars(length(min = 1, max = 253))]
    pub claim: String,
}

fn yes() -> bool {
    true
}

impl AuthPolicy {
    /// What stands for a policy that cannot be read, with as much of its targets as could be: nothing is answered there.
    pub fn unreadable(
        namespace: &str,
        name: &str,
        targets: Vec<AccessTarget>,
        selector: Option<LabelSelector>,
    ) -> Self {
        let metadata = ObjectMeta { name: name.to_owned(), namespace: namespace.to_owned(), ..ObjectMeta::default() };
        let spec = AuthPolicySpec { target_refs: targets, selector, jwt: JwtAuth::default(), unreadable: true };
        AuthPolicy { metadata, spec }
    }
}
