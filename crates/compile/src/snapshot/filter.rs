//! Request and response filters, compiled.

use super::ClusterId;
use http::{HeaderName, HeaderValue, StatusCode};
use serde::{Serialize, Serializer};
use std::{sync::Arc, time::Duration};

#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Filter {
    RequestHeaders(HeaderChange),
    ResponseHeaders(HeaderChange),
    Rewrite(Rewrite),
    Redirect(Redirect),
    Mirror(Mirror),
    Cors(Arc<Cors>),
    Fault(Fault),
    Direct(DirectResponse),
    Compression(Arc<Compression>),
    /// Request body over this: 413.
    BodyLimit(u64),
}

/// Applied in the order set, add, remove.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct HeaderChange {
    #[serde(serialize_with = "pairs")]
    pub set: Vec<(HeaderName, HeaderValue)>,
    #[serde(serialize_with = "pairs")]
    pub add: Vec<(HeaderName, HeaderValue)>,
    #[serde(serialize_with = "names")]
    pub remove: Vec<HeaderName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Rewrite {
    pub host: Option<String>,
    pub path: Option<PathChange>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum PathChange {
    /// The whole path; the query stays.
    Full(String),
    /// The part that the rule's PathPrefix matched.
    Prefix(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Redirect {
    pub scheme: Option<String>,
    pub host: Option<String>,
    pub path: Option<PathChange>,
    pub port: Option<u16>,
    pub status: u16,
}

/// A copy of the request is sent and its answer dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mirror {
    /// `None`: the reference does not resolve; nothing is mirrored.
    pub cluster: Option<ClusterId>,
    pub numerator: u32,
    pub denominator: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cors {
    pub allow_origins: Vec<OriginMatch>,
    pub allow_credentials: bool,
    /// Empty with `any_method` false: none beyond the safelisted.
    pub allow_methods: Vec<String>,
    pub any_method: bool,
    pub allow_headers: Vec<String>,
    pub any_header: bool,
    pub expose_headers: Vec<String>,
    pub max_age: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum OriginMatch {
    Any,
    /// `scheme://host[:port]`, lower case.
    Exact(String),
    /// `scheme://*.suffix[:port]`, split at the star.
    Wildcard {
        prefix: String,
        suffix: String,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fault {
    pub delay: Option<FaultDelay>,
    pub abort: Option<FaultAbort>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FaultDelay {
    pub fixed: Duration,
    /// Of a million requests.
    pub per_million: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FaultAbort {
    pub status: u16,
    /// Answered as gRPC with this code instead of `status`.
    pub grpc_status: Option<u8>,
    pub per_million: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DirectResponse {
    #[serde(serialize_with = "status")]
    pub status: StatusCode,
    pub body: String,
    pub content_type: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compression {
    /// In order of our preference.
    pub algorithms: Vec<Coding>,
    pub min_bytes: u64,
    /// Media types, `text/*` allowed.
    pub content_types: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Coding {
    Gzip,
    Brotli,
    Zstd,
}

pub(super) fn as_str<S: Serializer>(name: &HeaderName, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(name.as_str())
}

fn status<S: Serializer>(code: &StatusCode, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_u16(code.as_u16())
}

fn pairs<S: Serializer>(list: &[(HeaderName, HeaderValue)], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(list.iter().map(|(n, v)| (n.as_str(), String::from_utf8_lossy(v.as_bytes()))))
}

fn names<S: Serializer>(list: &[HeaderName], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(list.iter().map(HeaderName::as_str))
}
