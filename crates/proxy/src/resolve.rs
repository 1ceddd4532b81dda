//! DNS names as backends: looked up again when their TTL has passed, and kept as they were when that fails.

use crate::cluster::LiveCluster;
use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
};
use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, SystemTime},
};
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};

/// Endpoints that one name may stand for; more are ignored.
pub const MAX_ADDRESSES: usize = 1000;
/// A TTL below this would be a query storm.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// However long the TTL: a moved service is found after this at last.
const MAX_INTERVAL: Duration = Duration::from_secs(300);
/// After a failure; doubled with each, up to 30 s.
const RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(30);
/// For one lookup with all of the resolver's own retries.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Addresses and how long they hold, or why there are none.
pub type Found = Result<(Vec<IpAddr>, Duration), String>;

/// Looks up names. The system's DNS in production, a script in tests.
pub trait Lookup: Send + Sync + 'static {
    fn lookup<'a>(&'a self, host: &'a str) -> Pin<Box<dyn Future<Output = Found> + Send + 'a>>;
}

/// DNS as `/etc/resolv.conf` says, and `/etc/hosts`; both are read again when they change. IPv4 addresses are
/// preferred: IPv6 ones are asked for only when there are none, for a route to them is less certain.
#[derive(Default)]
pub struct SystemLookup {
    resolver: Mutex<Option<(Stamp, TokioResolver)>>,
}

/// When the files that a resolver was made from had last changed.
type Stamp = [Option<SystemTime>; 2];

impl Lookup for SystemLookup {
    fn lookup<'a>(&'a self, host: &'a str) -> Pin<Box<dyn Future<Output = Found> + Send + 'a>> {
        Box::pin(async move {
            if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
                return Ok((vec![ip], MAX_INTERVAL));
            }
            let resolver = self.resolver()?;
            let name = host.trim_end_matches('.');
            match resolver.lookup_ip(host).await {
                Ok(found) => {
                    let addresses: Vec<IpAddr> = found.iter().take(MAX_ADDRESSES).collect();
                    let ttl = found.valid_until().saturating_duration_since(std::time::Instant::now());
                    Ok((addresses, ttl))
                }
                // RFC 6761: the name means this machine even where /etc/hosts does not say so.
                Err(_) if name.eq_ignore_ascii_case("localhost") || name.ends_with(".localhost") => {
                    Ok((vec![Ipv4Addr::LOCALHOST.into()], MAX_INTERVAL))
                }
                Err(error) => Err(error.to_string()),
            }
        })
    }
}

impl SystemLookup {
    fn resolver(&self) -> Result<TokioResolver, String> {
        let modified = |path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        let stamp = [modified("/etc/resolv.conf"), modified("/etc/hosts")];
        let mut slot = self.resolver.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, resolver)) = &*slot
            && *made == stamp
        {
            return Ok(resolver.clone());
        }
        let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|error| {
            tracing::warn!(%error, "/etc/resolv.conf cannot be used: only /etc/hosts and literal addresses resolve");
            TokioResolver::builder_with_config(ResolverConfig::default(), TokioRuntimeProvider::default())
        });
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
        // A name that does not exist yet may soon: the retries decide when to ask again.
        options.negative_max_ttl = Some(RETRY);
        options.positive_max_ttl = Some(MAX_INTERVAL);
        let resolver = builder.build().map_err(|error| format!("no DNS resolver: {error}"))?;
        *slot = Some((stamp, resolver.clone()));
        Ok(resolver)
    }
}

/// Resolves for a cluster until it is gone.
pub(crate) async fn run(cluster: Weak<LiveCluster>, lookup: Arc<dyn Lookup>, host: String, port: u16, rt: Handle) {
    let mut failures = 0u32;
    loop {
        let found = match timeout(LOOKUP_TIMEOUT, lookup.lookup(&host)).await {
            Ok(Ok((addresses, _))) if addresses.is_empty() => Err("the name has no addresses".to_owned()),
            Ok(found) => found,
            Err(_) => Err(format!("no answer within {LOOKUP_TIMEOUT:?}")),
        };
        let Some(cluster) = cluster.upgrade() else { return };
        let pause = match &found {
            Ok((_, ttl)) => {
                failures = 0;
                (*ttl).clamp(MIN_INTERVAL, MAX_INTERVAL)
            }
            Err(_) => {
                failures = failures.saturating_add(1);
                RETRY.saturating_mul(1 << (failures - 1).min(6)).min(MAX_RETRY)
            }
        };
        cluster.resolved(port, found.map(|(addresses, _)| addresses), &rt);
        drop(cluster);
        // Up to a tenth later, so that many clusters do not ask in step.
        sleep(pause + pause.mul_f64(rand::random::<f64>() / 10.0)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn literals_and_localhost_need_no_dns() {
        let lookup = SystemLookup::default();
        assert_eq!(lookup.lookup("192.0.2.7").await.unwrap().0, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(lookup.lookup("[2001:db8::1]").await.unwrap().0, ["2001:db8::1".parse::<IpAddr>().unwrap()]);
        let local = lookup.lookup("localhost").await.unwrap().0;
        assert!(local.iter().all(IpAddr::is_loopback) && !local.is_empty(), "{local:?}");
    }
}
