//! Metrics that are read off live state at each scrape: clusters, certificates.

use super::{
    counter::{DURATION_BOUNDS, DURATION_LABELS},
    encode::Encoder,
    families::Family,
};
use crate::cluster::{Clusters, Health, LiveCluster, OUTCOMES};
use selvedge_compile::snapshot::{Listener, Protocol, TlsMode};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Adds all clusters.
pub fn encode_clusters(clusters: &Clusters, out: &mut Encoder) {
    clusters.for_each(|cluster| encode_cluster(cluster, out));
}

fn encode_cluster(cluster: &LiveCluster, out: &mut Encoder) {
    let key = cluster.key();
    let counters = &*cluster.counters;
    let get = |counter: &AtomicU64| counter.load(Relaxed);
    for (label, count) in OUTCOMES.iter().zip(&counters.outcomes) {
        out.nonzero(Family::UpstreamRequests, &[key, label], get(count));
    }
    let mut latency = [0; DURATION_BOUNDS.len() + 1];
    let sum = counters.latency.add_to(&mut latency);
    if latency.iter().any(|n| *n > 0) {
        out.histogram(Family::UpstreamDuration, &[key], &DURATION_LABELS, &latency, sum);
    }
    for (family, counter) in [
        (Family::UpstreamRetries, &counters.retries),
        (Family::UpstreamConnectFailures, &counters.connect_failures),
        (Family::UpstreamConnections, &counters.connections_opened),
        (Family::UpstreamPoolHits, &counters.pool_hits),
        (Family::UpstreamEjections, &counters.ejections),
        (Family::UpstreamHealthChecks, &counters.health_checks),
        (Family::UpstreamHealthCheckFailures, &counters.health_check_failures),
        (Family::UpstreamDnsFailures, &counters.dns_failures),
        (Family::UpstreamNoEndpoint, &counters.no_endpoint),
    ] {
        out.sample(family, &[key], get(counter));
    }
    let limits = cluster.limits();
    out.sample(Family::UpstreamActive, &[key], u64::from(limits.requests.used));
    out.sample(Family::UpstreamPending, &[key], u64::from(limits.pending.used));
    out.sample(Family::UpstreamConnectionsActive, &[key], u64::from(limits.connections.used));
    for (limit, refused) in [
        ("pending", limits.pending.refused),
        ("requests", limits.requests.refused),
        ("retries", limits.retries.refused),
        ("retry_budget", limits.retry_budget_refused),
    ] {
        out.sample(Family::UpstreamOverflow, &[key, limit], refused);
    }
    let mut states = [0u64; STATES.len()];
    for endpoint in cluster.status().endpoints {
        states[state(&endpoint.health)] += 1;
    }
    for (label, count) in STATES.iter().zip(states) {
        out.sample(Family::UpstreamEndpoints, &[key, label], count);
    }
}

const STATES: [&str; 5] = ["healthy", "pending", "unhealthy", "ejected", "probation"];

fn state(health: &Health) -> usize {
    match health {
        Health::Healthy => 0,
        Health::Pending => 1,
        Health::Unhealthy { .. } => 2,
        Health::Ejected { .. } => 3,
        Health::Probation => 4,
    }
}

/// Adds the expiry of every certificate that some listener serves, once.
pub fn encode_certificates<'a>(listeners: impl IntoIterator<Item = &'a Listener>, out: &mut Encoder) {
    let mut served: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for listener in listeners {
        let Protocol::Tls(hosts) = &listener.protocol else { continue };
        for (_, tls) in hosts.iter() {
            let (TlsMode::Http { tls, .. } | TlsMode::Tcp { tls, .. }) = &tls.mode else { continue };
            served.extend(tls.certificates.iter().map(|c| ((c.secret.as_str(), c.fingerprint.as_str()), c.not_after)));
        }
    }
    for ((secret, fingerprint), not_after) in served {
        // Sixteen digits tell two certificates apart; the whole hash would only be noise.
        let short = fingerprint.get(..16).unwrap_or(fingerprint);
        out.sample(Family::CertificateExpiry, &[secret, short], u64::try_from(not_after).unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{outlier::Outcome, telemetry::encode::Format, worker::WorkerCount};
    use selvedge_compile::snapshot::{Cluster, Connections, Discovery, Endpoint, LoadBalancing, UpstreamProtocol};
    use std::{sync::Arc, time::Duration};

    #[tokio::test]
    async fn clusters_are_walked() {
        let clusters = Clusters::new(WorkerCount(1), None, tokio::runtime::Handle::current());
        let endpoint = Endpoint::new("127.0.0.1:9".parse().unwrap());
        let live = clusters.link(&[Arc::new(Cluster {
            key: "shop/cart:80".to_owned(),
            discovery: Discovery::Static(vec![endpoint]),
            protocol: UpstreamProtocol::Http1,
            tls: None,
            identity: None,
            netns: Default::default(),
            load_balancing: LoadBalancing::default(),
            connections: Connections::default(),
            health_checks: Vec::new(),
            outlier_detection: None,
        })]);
        let endpoint = &live[0].endpoints()[0];
        live[0].report(endpoint, Outcome::Status(503), Duration::from_millis(2));
        live[0].report(endpoint, Outcome::Timeout, Duration::from_secs(2));
        let _permit = live[0].start_request().unwrap();
        let mut out = Encoder::default();
        encode_clusters(&clusters, &mut out);
        let text = out.finish(Format::Prometheus);
        for line in [
            r#"selvedge_upstream_requests_total{cluster="shop/cart:80",outcome="5xx"} 1"#,
            r#"selvedge_upstream_requests_total{cluster="shop/cart:80",outcome="timeout"} 1"#,
            r#"selvedge_upstream_request_duration_seconds_count{cluster="shop/cart:80"} 2"#,
            r#"selvedge_upstream_requests_active{cluster="shop/cart:80"} 1"#,
            r#"selvedge_upstream_endpoints{cluster="shop/cart:80",state="healthy"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
