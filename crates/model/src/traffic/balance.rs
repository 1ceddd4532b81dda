//! How an endpoint is picked.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::inherit;
use crate::duration::Duration;

/// How an endpoint is picked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancing {
    /// The algorithm.
    #[schemars(extend("default" = "LeastRequest"))]
    pub algorithm: Option<Algorithm>,
    /// What requests are hashed by, for `RingHash` and `Maglev`: the first key that a request has counts (Envoy hash_policy).
    /// Requests without any go to a random endpoint.
    #[schemars(length(max = 8))]
    pub hash_keys: Option<Vec<HashKey>>,
    /// How many endpoints `LeastRequest` and `PeakEwma` compare, picked at random (power of choices).
    #[schemars(range(min = 2, max = 16), extend("default" = 2))]
    pub choices: Option<u32>,
    /// Brings new endpoints up to their full share step by step (Envoy slow_start_config).
    pub slow_start: Option<SlowStart>,
    /// When fewer than this percentage of the endpoints are healthy, health is ignored and all are used
    /// (Envoy healthy_panic_threshold); 0 never ignores health.
    #[schemars(range(max = 100), extend("default" = 50))]
    pub panic_threshold: Option<u32>,
    /// Preference for endpoints of the proxy's own zone.
    pub zone: Option<ZonePreference>,
    /// Size of the hash ring, for `RingHash` (ketama).
    pub ring: Option<RingSize>,
    /// Entries of the Maglev table, for `Maglev`: a prime number larger than 100 times the number of endpoints works well.
    #[schemars(range(min = 2, max = 5_000_011), extend("default" = 65_537))]
    pub maglev_table_size: Option<u32>,
}

inherit!(LoadBalancing {
    algorithm, hash_keys, choices, panic_threshold, maglev_table_size; slow_start, zone, ring
});

/// The algorithm that picks an endpoint; all respect weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// One after the other.
    RoundRobin,
    /// At random.
    Random,
    /// The one with the fewest open requests of some picked at random.
    #[default]
    LeastRequest,
    /// The one with the lowest latency times open requests of some picked at random (Finagle, linkerd).
    PeakEwma,
    /// Consistent hashing on a ring (ketama): few keys move when endpoints change.
    RingHash,
    /// Consistent hashing by a table (Maglev): evener and faster than a ring, a few more keys move.
    Maglev,
}

/// Something that requests are hashed by; `type` says which of the other fields is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HashKey {
    /// What is hashed.
    #[serde(rename = "type")]
    pub key_type: HashKeyType,
    /// Name of the header or query parameter, for `Header` and `Query`.
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
    /// The cookie, for `Cookie`.
    pub cookie: Option<HashCookie>,
}

/// What is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum HashKeyType {
    /// The value of a request header.
    Header,
    /// The value of a cookie.
    Cookie,
    /// The address of the client.
    #[serde(rename = "SourceIP")]
    SourceIp,
    /// The value of a query parameter.
    Query,
    /// The path, without the query.
    Path,
}

/// A cookie that requests are hashed by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HashCookie {
    /// Name.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// Makes a cookie for clients that have none, which lives so long; `0s` until the browser ends. Without it, none is made.
    pub ttl: Option<Duration>,
    /// Path of a cookie that is made.
    #[schemars(length(max = 1024), extend("default" = "/"))]
    pub path: Option<String>,
}

/// Brings new endpoints up to their full share step by step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlowStart {
    /// Time from the first to the full share; `0s` switches it off.
    #[schemars(extend("default" = "0s"))]
    pub window: Option<Duration>,
    /// Shape: share = (time / window) ^ (1 / aggression); above 1 rises fast first.
    #[schemars(range(min = 0.1, max = 10.0), extend("default" = 1.0))]
    pub aggression: Option<f64>,
    /// Least share, in percent.
    #[schemars(range(min = 1, max = 100), extend("default" = 10))]
    pub min_percent: Option<u32>,
}

inherit!(SlowStart { window, aggression, min_percent });

/// Preference for endpoints of the proxy's own zone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ZonePreference {
    /// How strong it is.
    #[schemars(extend("default" = "Prefer"))]
    pub preference: Option<ZoneMode>,
    /// Fewest healthy endpoints in the own zone for it to be preferred.
    #[schemars(range(min = 1, max = 1000), extend("default" = 1))]
    pub min_endpoints: Option<u32>,
    /// Fewest percent of the zone's endpoints that are healthy for it to be preferred; below, traffic spills over.
    #[schemars(range(max = 100), extend("default" = 70))]
    pub min_healthy_percent: Option<u32>,
}

inherit!(ZonePreference { preference, min_endpoints, min_healthy_percent });

/// How strong the preference for the own zone is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ZoneMode {
    /// The own zone while it has enough healthy endpoints, then all. Without effect when the own zone is unknown.
    #[default]
    Prefer,
    /// Only the own zone.
    Strict,
    /// All zones alike.
    Off,
}

/// Size of a hash ring.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RingSize {
    /// Fewest entries.
    #[schemars(range(min = 1, max = 8_388_608), extend("default" = 1024))]
    pub min: Option<u32>,
    /// Most entries.
    #[schemars(range(min = 1, max = 8_388_608), extend("default" = 65_536))]
    pub max: Option<u32>,
}

inherit!(RingSize { min, max });
