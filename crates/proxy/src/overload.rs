//! Shedding before the process dies: by memory and by connections.

use crate::telemetry::Limit;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

/// Process-wide limits. The defaults are those of Envoy's edge guide (reliability.md section 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Downstream connections over all listeners.
    pub max_connections: usize,
    /// Bytes of resident memory that count as full; zero = what the cgroup allows, else no limit.
    pub max_memory: u64,
    /// At this percentage of `max_memory`, requests are answered 503 and connections end after their request.
    pub shed_requests_percent: u8,
    /// At this percentage, new connections are closed at accept.
    pub refuse_connections_percent: u8,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_connections: 50_000, max_memory: 0, shed_requests_percent: 95, refuse_connections_percent: 98 }
    }
}

/// Shared by all workers.
#[derive(Debug)]
pub struct Overload {
    limits: Limits,
    max_memory: u64,
    level: AtomicU8,
    connections: AtomicUsize,
    /// Connections closed at accept and requests answered 503, since the start.
    pub refused_connections: AtomicU64,
    pub shed_requests: AtomicU64,
}

/// Counts a connection for as long as it lives.
#[derive(Debug)]
pub struct ConnectionPermit(Arc<Overload>);

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

/// How often memory is looked at (Envoy's overload manager: 0.25 s).
pub const REFRESH: Duration = Duration::from_millis(250);

impl Overload {
    pub fn new(limits: Limits) -> Arc<Self> {
        let max_memory = if limits.max_memory > 0 { limits.max_memory } else { cgroup_limit().unwrap_or(0) };
        Arc::new(Self {
            limits,
            max_memory,
            level: AtomicU8::new(0),
            connections: AtomicUsize::new(0),
            refused_connections: AtomicU64::new(0),
            shed_requests: AtomicU64::new(0),
        })
    }

    /// A place for one more connection, or `None` when it has to be closed.
    pub fn connection(self: &Arc<Self>) -> Option<ConnectionPermit> {
        let before = self.connections.fetch_add(1, Relaxed);
        let full = before >= self.limits.max_connections;
        if full || self.level.load(Relaxed) >= 2 {
            if full { Limit::ProcessConnections } else { Limit::Memory }.hit();
            self.connections.fetch_sub(1, Relaxed);
            self.refused_connections.fetch_add(1, Relaxed);
            return None;
        }
        Some(ConnectionPermit(self.clone()))
    }

    /// Whether a request has to be answered 503 now.
    pub fn shed_request(&self) -> bool {
        let shed = self.level.load(Relaxed) >= 1;
        if shed {
            self.shed_requests.fetch_add(1, Relaxed);
        }
        shed
    }

    /// Adds what was shed to the metrics.
    pub fn encode(&self, out: &mut crate::telemetry::encode::Encoder) {
        use crate::telemetry::families::Family::OverloadShed;
        out.sample(OverloadShed, &["requests"], self.shed_requests.load(Relaxed));
        out.sample(OverloadShed, &["connections"], self.refused_connections.load(Relaxed));
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// Takes a new reading of resident memory in.
    pub fn observe(&self, resident: u64) {
        let over = |percent: u8| self.max_memory > 0 && resident >= self.max_memory / 100 * u64::from(percent);
        let level = match () {
            () if over(self.limits.refuse_connections_percent) => 2,
            () if over(self.limits.shed_requests_percent) => 1,
            () => 0,
        };
        let before = self.level.swap(level, Relaxed);
        if level > before {
            tracing::warn!(
                resident,
                limit = self.max_memory,
                level,
                "memory overload: shedding (1: requests, 2: connections)"
            );
        } else if level < before {
            tracing::info!(resident, limit = self.max_memory, level, "memory overload: easing");
        }
    }

    /// Watches memory for ever; run on the control runtime. Where there is no limit it wakes nobody.
    pub async fn watch(self: Arc<Self>) {
        if self.max_memory == 0 {
            return;
        }
        let mut tick = tokio::time::interval(REFRESH);
        loop {
            tick.tick().await;
            if let Some(resident) = resident() {
                self.observe(resident);
            }
        }
    }
}

/// Resident bytes of this process.
pub fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// The memory limit of the cgroup (v2, then v1).
fn cgroup_limit() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    read("/sys/fs/cgroup/memory.max")
        .or_else(|| read("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
        // v1 says "unlimited" with a number near 2^63.
        .filter(|&n| n < 1 << 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_follow_memory() {
        let overload = Overload::new(Limits { max_memory: 1000, ..Limits::default() });
        overload.observe(940);
        assert!(!overload.shed_request());
        overload.observe(950);
        assert!(overload.shed_request());
        assert!(overload.connection().is_some());
        overload.observe(980);
        assert!(overload.connection().is_none());
        overload.observe(100);
        assert!(!overload.shed_request() && overload.connection().is_some());
    }

    #[test]
    fn connections_are_counted_back() {
        let overload = Overload::new(Limits { max_connections: 1, ..Limits::default() });
        let permit = overload.connection();
        assert!(permit.is_some() && overload.connection().is_none());
        drop(permit);
        assert!(overload.connection().is_some());
    }
}
