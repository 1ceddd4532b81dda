//! The mesh that a control plane publishes: 1,000 Services of 10 endpoints, and a Workload for each proxy.

use crate::bench::mesh::fleet;
use serde_json::{Value, json};

pub const SERVICES: usize = 1_000;
pub const ENDPOINTS: usize = 10;
/// Services that every proxy uses; their endpoints change.
pub const COMMON: usize = 5;
/// Services of its own that a proxy uses beside them.
const OWN: usize = 5;
/// The endpoint that tells the change it came with.
const MARK: &str = "10.99.";

/// All of it, before any change. Proxies share the service account `proxy`.
pub fn all(proxies: usize) -> Vec<Value> {
    let mut all: Vec<Value> =
        (0..SERVICES).flat_map(|n| fleet::service("bench", &name(n), 8080, &endpoints(n))).collect();
    all.extend((0..proxies).map(|n| {
        json!({"apiVersion": "selvedge.dev/v1alpha1", "kind": "Workload",
            "metadata": {"name": format!("p{n}"), "namespace": "bench"},
            "spec": {"addresses": [format!("10.{}.{}.{}", 100 + n / 60_000, n / 250 % 240, n % 250 + 1)],
                "serviceAccount": "proxy", "tunnel": {"port": 15008}}})
    }));
    all
}

/// The endpoints of a Service that all use, after a change: one address is another.
pub fn changed(change: usize) -> Value {
    let n = change % COMMON;
    let mut endpoints = endpoints(n);
    endpoints[0] = format!("{MARK}{}.{}", change / 250, change % 250 + 1);
    fleet::slice("bench", &name(n), 8080, &endpoints)
}

/// The change that a resource came with.
pub fn change_of(resource: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(resource).ok()?;
    let (_, rest) = text.split_once(MARK)?;
    let mut parts = rest.split(|c: char| !c.is_ascii_digit());
    let (high, low): (usize, usize) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(high * 250 + low.checked_sub(1)?)
}

/// Hosts that a proxy uses: those that all use, and some of its own.
pub fn used(proxy: usize) -> Vec<String> {
    let own = (0..OWN).map(|i| COMMON + (proxy * OWN + i) % (SERVICES - COMMON));
    (0..COMMON).chain(own).map(|n| format!("{}.bench", name(n))).collect()
}

fn name(n: usize) -> String {
    format!("s{n}")
}

fn endpoints(n: usize) -> Vec<String> {
    (1..=ENDPOINTS).map(|e| format!("10.{}.{}.{e}", n / 250, n % 250)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_known_by_its_resource() {
        for change in [0, 7, 249, 250, 777] {
            assert_eq!(change_of(changed(change).to_string().as_bytes()), Some(change));
        }
        let all = all(3);
        assert_eq!(all.len(), 2 * SERVICES + 3);
        assert!(all.iter().all(|r| change_of(r.to_string().as_bytes()).is_none()));
    }

    #[test]
    fn every_proxy_uses_what_all_use() {
        assert_eq!(used(1)[..COMMON], used(400)[..COMMON]);
        assert_ne!(used(1), used(400));
    }
}
