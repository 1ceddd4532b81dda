//! Rules of load balancing.

use super::super::{Report, cookie_name, cookie_path, header_name};
use super::no_effect;
use crate::diagnostic::Code;
use crate::field_path::At;
use crate::traffic::{Algorithm, HashKey, HashKeyType, LoadBalancing, ZoneMode};

/// The fewest entries of a ring, unless told; the schema tells the same.
const DEFAULT_RING_MIN: u32 = 1024;

pub(super) fn load_balancing(report: &mut Report, balancing: &LoadBalancing, at: &At<'_>) {
    let keys = at.field("hashKeys");
    for (index, key) in balancing.hash_keys.iter().flatten().enumerate() {
        hash_key(report, key, &keys.index(index));
    }
    without_effect(report, balancing, at);
    if let Some(ring) = &balancing.ring {
        let least = ring.min.unwrap_or(DEFAULT_RING_MIN);
        if let Some(max) = ring.max.filter(|max| *max < least) {
            let at = at.field("ring");
            let (field, message) = match ring.min {
                Some(min) => ("min", format!("{min} is more than `max`, {max}")),
                None => ("max", format!("{max} is less than `min`, which is {least} unless it is set; set `min` too")),
            };
            report.error(Code::OutOfRange, &at.field(field), message);
        }
    }
    if let Some(size) = balancing.maglev_table_size
        && !is_prime(size)
    {
        report.error(Code::OutOfRange, &at.field("maglevTableSize"), format!("{size} is not a prime number"));
    }
}

/// Settings of another algorithm than the one that stands beside them. Without one, a wider target may say it.
fn without_effect(report: &mut Report, balancing: &LoadBalancing, at: &At<'_>) {
    if let Some(algorithm) = balancing.algorithm {
        let hashes = matches!(algorithm, Algorithm::RingHash | Algorithm::Maglev);
        let compares = matches!(algorithm, Algorithm::LeastRequest | Algorithm::PeakEwma);
        let fields = [
            ("hashKeys", hashes, balancing.hash_keys.is_some(), "RingHash and Maglev"),
            ("choices", compares, balancing.choices.is_some(), "LeastRequest and PeakEwma"),
            ("ring", algorithm == Algorithm::RingHash, balancing.ring.is_some(), "RingHash"),
            ("maglevTableSize", algorithm == Algorithm::Maglev, balancing.maglev_table_size.is_some(), "Maglev"),
        ];
        for (name, _, _, users) in fields.into_iter().filter(|(_, used, set, _)| *set && !used) {
            let message = format!("`{name}` has no effect with algorithm {algorithm:?}: it is for {users}; remove it");
            report.warning(Code::ConflictingFields, &at.field(name), message);
        }
        if hashes && balancing.hash_keys.as_ref().is_some_and(Vec::is_empty) {
            let message = "without a key every request goes to a random endpoint; name a key, or use another algorithm";
            report.warning(Code::WrongLength, &at.field("hashKeys"), message);
        }
    }
    if let Some(zone) = balancing.zone.as_ref().filter(|zone| matches!(zone.preference, Some(ZoneMode::Off)))
        && (zone.min_endpoints.is_some() || zone.min_healthy_percent.is_some())
    {
        let message = "`minEndpoints` and `minHealthyPercent` have no effect with preference Off; remove them";
        report.warning(Code::ConflictingFields, &at.field("zone"), message);
    }
    if let Some(slow) = &balancing.slow_start
        && slow.window.is_some_and(crate::Duration::is_zero)
        && (slow.aggression.is_some() || slow.min_percent.is_some())
    {
        no_effect(report, &at.field("slowStart"), "a window of 0s switches slow start off; remove the other settings");
    }
}

fn is_prime(number: u32) -> bool {
    number >= 2
        && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

fn hash_key(report: &mut Report, key: &HashKey, at: &At<'_>) {
    let named = matches!(key.key_type, HashKeyType::Header | HashKeyType::Query);
    let fields =
        [("name", named, key.name.is_some()), ("cookie", key.key_type == HashKeyType::Cookie, key.cookie.is_some())];
    for (name, wanted, set) in fields {
        if wanted != set {
            let message = if set { "does not fit the type; remove it" } else { "must be set for this type" };
            report.error(Code::InconsistentUnion, &at.field(name), format!("`{name}` {message}"));
        }
    }
    if let (HashKeyType::Header, Some(name)) = (key.key_type, &key.name) {
        report.check(Code::InvalidHeaderName, &at.field("name"), header_name(name));
    }
    let Some(cookie) = &key.cookie else { return };
    let at = at.field("cookie");
    report.check(Code::WrongFormat, &at.field("name"), cookie_name(&cookie.name));
    if let Some(path) = &cookie.path {
        report.check(Code::WrongFormat, &at.field("path"), cookie_path(path));
        if cookie.ttl.is_none() {
            let message =
                "`path` is for cookies that are made, which needs `ttl`; set it (`0s`: until the browser ends)";
            no_effect(report, &at.field("path"), message);
        }
    }
    // A cookie of a fraction of a second would be gone at once.
    if let Some(ttl) = cookie.ttl.filter(|ttl| !ttl.is_zero() && ttl.as_millis() < 1000) {
        let message =
            format!("{ttl} is shorter than 1s, the unit of cookies; write 1s or more, or 0s until the browser ends");
        report.error(Code::OutOfRange, &at.field("ttl"), message);
    }
}
