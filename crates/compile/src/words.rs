//! Settings and filters in the words of an operator, for `explain` and `diff`.

use crate::snapshot::{
    Algorithm, BUILT_IN_ATTEMPTS, Cluster, Filter, HashKey, HeaderChange, HttpOptions, PathChange, Retry, Snapshot,
    SocketOptions, Trust,
};
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// A setting by the words of its name, and its value.
pub(crate) type Settings = BTreeMap<String, String>;

pub(crate) fn socket(options: &SocketOptions) -> Settings {
    settings(options)
}

pub(crate) fn http(options: &HttpOptions) -> Settings {
    settings(options)
}

/// How a cluster is reached, but not where.
pub(crate) fn backend(cluster: &Cluster) -> Settings {
    let mut all = settings(&cluster.load_balancing);
    all.extend(settings(&cluster.connections));
    all.insert("protocol".to_owned(), format!("{:?}", cluster.protocol));
    all.insert("identity".to_owned(), cluster.identity.as_ref().map_or("none".to_owned(), ToString::to_string));
    for (i, check) in cluster.health_checks.iter().enumerate() {
        flatten(&mut all, &format!("health check {}", i + 1), &json(check));
    }
    if let Some(outliers) = &cluster.outlier_detection {
        flatten(&mut all, "outlier detection", &json(outliers));
    }
    if let Some(tls) = &cluster.tls {
        let trust = match &tls.trust {
            Trust::System => "the roots of the system".to_owned(),
            Trust::Roots(bundle) => format!("{} ({})", bundle.origin, bundle.fingerprint.get(..12).unwrap_or_default()),
        };
        all.insert("TLS name".to_owned(), tls.sni.clone());
        all.insert("TLS trust".to_owned(), trust);
        all.insert("TLS subject names".to_owned(), format!("{:?}", tls.subject_alt_names));
        let own = tls.client_certificate.as_ref().map(|c| format!("{} ({:.12})", c.secret, c.fingerprint));
        all.insert("TLS client certificate".to_owned(), own.unwrap_or_else(|| "none".to_owned()));
    }
    all
}

/// What differs between two lots of settings, as text before and after.
pub(crate) fn difference(before: &Settings, after: &Settings) -> (String, String) {
    let differs = |name: &&String| before.get(*name) != after.get(*name);
    let mut names: Vec<&String> = before.keys().chain(after.keys()).filter(differs).collect();
    names.sort();
    names.dedup();
    let text = |settings: &Settings| {
        let one = |name: &&String| format!("{name} {}", settings.get(*name).map_or("unset", String::as_str));
        names.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    (text(before), text(after))
}

fn json(of: &impl Serialize) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}

fn settings(of: &impl Serialize) -> Settings {
    let mut out = Settings::new();
    flatten(&mut out, "", &json(of));
    out
}

fn flatten(out: &mut Settings, name: &str, value: &Value) {
    let text = match value {
        Value::Object(fields) => match duration(value) {
            Some(time) => span(time),
            None => {
                for (field, value) in fields {
                    let name = format!("{name} {}", words(field));
                    flatten(out, name.trim(), value);
                }
                return;
            }
        },
        Value::Null => "none".to_owned(),
        Value::Bool(yes) => if *yes { "on" } else { "off" }.to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) if list.is_empty() => "none".to_owned(),
        other => other.to_string(),
    };
    out.insert(name.to_owned(), text);
}

/// `max_header_bytes` and `LeastRequest` as people write them.
fn words(field: &str) -> String {
    let mut out = String::new();
    for c in field.chars() {
        match c {
            '_' => out.push(' '),
            c if c.is_uppercase() => {
                if !out.is_empty() {
                    out.push(' ');
                }
                out.extend(c.to_lowercase());
            }
            c => out.push(c),
        }
    }
    out
}

fn duration(value: &Value) -> Option<Duration> {
    let fields = value.as_object().filter(|fields| fields.len() == 2)?;
    let (secs, nanos) = (fields.get("secs")?.as_u64()?, fields.get("nanos")?.as_u64()?);
    Some(Duration::new(secs, u32::try_from(nanos).ok()?))
}

/// Zero is how every setting of time says "none".
fn span(time: Duration) -> String {
    if time.is_zero() { "none".to_owned() } else { format!("{time:?}") }
}

/// A filter as a sentence about the request.
pub(crate) fn filter(snapshot: &Snapshot, filter: &Filter) -> String {
    match filter {
        Filter::RequestHeaders(change) => headers("request", change),
        Filter::ResponseHeaders(change) => headers("response", change),
        Filter::Rewrite(r) => {
            let host = r.host.as_ref().map(|host| format!("the host to {host}"));
            let all: Vec<String> = host.into_iter().chain(r.path.as_ref().map(path)).collect();
            format!("rewrites {}", all.join(" and "))
        }
        Filter::Redirect(r) => format!("redirects with {}", r.status),
        Filter::Mirror(m) => {
            let to = m.cluster.map_or("nowhere: the backend is not valid", |id| snapshot.cluster(id).key.as_str());
            let percent = f64::from(m.numerator) * 100.0 / f64::from(m.denominator.max(1));
            if m.numerator >= m.denominator { format!("copies to {to}") } else { format!("copies {percent} % to {to}") }
        }
        Filter::Cors(c) => match c.allow_origins.len() {
            1 => "answers CORS preflights for 1 origin".to_owned(),
            n => format!("answers CORS preflights for {n} origins"),
        },
        Filter::Fault(fault) => {
            let percent = |per_million: u32| f64::from(per_million) / 10_000.0;
            let delay = fault.delay.map(|d| format!("delays {} % by {:?}", percent(d.per_million), d.fixed));
            let abort = fault.abort.map(|a| match a.grpc_status {
                Some(code) => format!("fails {} % with gRPC status {code}", percent(a.per_million)),
                None => format!("fails {} % with {}", percent(a.per_million), a.status),
            });
            delay.into_iter().chain(abort).collect::<Vec<_>>().join(" and ")
        }
        Filter::Direct(direct) => format!("answers {} itself", direct.status.as_u16()),
        Filter::Compression(c) => {
            let all: Vec<String> = c.algorithms.iter().map(|a| format!("{a:?}").to_lowercase()).collect();
            format!("compresses responses of {} bytes and more: {}", c.min_bytes, all.join(", "))
        }
        Filter::BodyLimit(n) => format!("refuses request bodies over {n} bytes"),
    }
}

fn path(change: &PathChange) -> String {
    match change {
        PathChange::Full(path) => format!("the path to {path}"),
        PathChange::Prefix(prefix) => format!("the matched prefix to {prefix}"),
    }
}

fn headers(whose: &str, change: &HeaderChange) -> String {
    let text = |v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
    let set = change.set.iter().map(|(n, v)| format!("sets {n}: {}", text(v)));
    let add = change.add.iter().map(|(n, v)| format!("adds {n}: {}", text(v)));
    let remove = change.remove.iter().map(|n| format!("removes {n}"));
    format!("{whose} headers: {}", set.chain(add).chain(remove).collect::<Vec<_>>().join(", "))
}

/// When a request is sent again.
pub(crate) fn retry(it: &Retry) -> String {
    let unseen =
        format!("sent again up to {} times while no upstream can have seen it", it.attempts.max(BUILT_IN_ATTEMPTS));
    let on = [("the connection is reset", it.on.reset), ("no answer comes in time", it.on.timeout)];
    let mut when: Vec<String> = on.iter().filter(|(_, yes)| *yes).map(|(text, _)| (*text).to_owned()).collect();
    if !it.codes.is_empty() {
        when.push(format!("the status is {}", ranges(&it.codes)));
    }
    if !it.grpc_codes.is_empty() {
        let all: Vec<String> = it.grpc_codes.iter().map(u8::to_string).collect();
        when.push(format!("the gRPC status is {}", all.join(" or ")));
    }
    if when.is_empty() {
        return unseen;
    }
    let times = if it.attempts == 1 { "once".to_owned() } else { format!("up to {} times", it.attempts) };
    let methods = it.methods.as_ref().map(|list| {
        let all: Vec<&str> = list.iter().map(http::Method::as_str).collect();
        format!(", for {} only", if all.is_empty() { "no method".to_owned() } else { all.join(", ") })
    });
    format!("{unseen}; {times} when {}{}", when.join(", or "), methods.unwrap_or_default())
}

/// `500 to 599` instead of a hundred numbers; the list is sorted.
fn ranges(codes: &[u16]) -> String {
    let mut out: Vec<(u16, u16)> = Vec::new();
    for &code in codes {
        match out.last_mut() {
            Some((_, last)) if *last + 1 == code => *last = code,
            _ => out.push((code, code)),
        }
    }
    let text = |(first, last): &(u16, u16)| match last - first {
        0 => first.to_string(),
        1 => format!("{first} or {last}"),
        _ => format!("{first} to {last}"),
    };
    out.iter().map(text).collect::<Vec<_>>().join(" or ")
}

/// What decides which endpoint of a cluster takes a request, where it is not chance.
pub(crate) fn stickiness(cluster: &Cluster, client: IpAddr) -> Option<String> {
    let algorithm = match cluster.load_balancing.algorithm {
        Algorithm::RingHash { .. } => "ring hash",
        Algorithm::Maglev { .. } => "Maglev",
        _ => return None,
    };
    let keys: Vec<String> = cluster
        .load_balancing
        .hash_keys
        .iter()
        .map(|key| match key {
            HashKey::Header(name) => format!("the header {name}"),
            HashKey::Cookie { name, .. } => format!("the cookie {name}"),
            HashKey::SourceIp => format!("the client's address {client}"),
            HashKey::Query(name) => format!("the query parameter {name}"),
            HashKey::Path => "the path".to_owned(),
        })
        .collect();
    let by = if keys.is_empty() { "nothing: at random".to_owned() } else { keys.join(", else ") };
    Some(format!("endpoint of {} by {algorithm} of {by}", cluster.key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_told_and_in_words() {
        let before = http(&HttpOptions::default());
        assert!(before.keys().all(|name| !name.contains('_')), "{before:?}");
        let mut changed =
            HttpOptions { max_headers: 50, header_timeout: Duration::from_secs(3), ..HttpOptions::default() };
        changed.http2.max_concurrent_streams = 7;
        let (was, is) = difference(&before, &http(&changed));
        assert_eq!(was, "header timeout 10s, http2 max concurrent streams 100, max headers 100");
        assert_eq!(is, "header timeout 3s, http2 max concurrent streams 7, max headers 50");
    }

    #[test]
    fn codes_are_ranges() {
        assert_eq!(ranges(&[409, 500, 501, 502, 504, 505]), "409 or 500 to 502 or 504 or 505");
    }
}
