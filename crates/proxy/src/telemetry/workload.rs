//! What is counted of connections from and to a workload, beside their records.

use super::{
    counter::{Count, Sharded},
    encode::Encoder,
    families::Family,
};
use crate::worker::{WorkerCount, WorkerId};

macro_rules! counted {
    ($(#[$doc:meta])* $name:ident $labels:ident { $($id:ident $label:literal $help:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $(#[doc = $help] $id,)* }
        const $labels: &[&str] = &[$($label),*];
    };
}

counted! {
    /// Why a connection of a workload, a tunnel to it, or a request to the explicit proxy was refused.
    Refused REFUSED {
        UnknownDestination "unknown_destination" "Nothing is known of the destination, and only known ones are allowed.",
        NoDestination "no_destination" "The connection was made to our own port instead of being redirected.",
        Loop "loop" "It would come back to us.",
        ClearText "clear_text" "Mutual TLS is demanded.",
        TunnelTarget "tunnel_target" "The authority of a CONNECT is no address of the workload.",
        Handshake "handshake" "The TLS handshake failed, or the workload has no certificate.",
        Form "form" "A request to the explicit proxy that names no destination.",
    }
}

counted! {
    /// What became of a question about an unknown destination.
    Discovered DISCOVERED {
        Found "found" "It is known now.",
        Unknown "unknown" "Nobody knows it.",
        Limited "limited" "Too many questions were waiting already.",
    }
}

counted! {
    /// How a connection reached a workload.
    Security SECURITY {
        MutualTls "mutual_tls" "Both sides have proven who they are.",
        ClearText "clear_text" "Nobody has.",
    }
}

#[derive(Debug, Default)]
struct Shard {
    refused: [Count; REFUSED.len()],
    discovered: [Count; DISCOVERED.len()],
    security: [Count; SECURITY.len()],
    passed: Count,
    audited: Count,
}

/// Counters of one outbound or inbound listener of a workload.
#[derive(Debug)]
pub struct WorkloadMetrics {
    listener: String,
    shards: Sharded<Shard>,
}

impl WorkloadMetrics {
    pub(super) fn new(listener: String, workers: WorkerCount) -> Self {
        Self { listener, shards: Sharded::new(workers) }
    }

    pub fn refused(&self, worker: WorkerId, reason: Refused) {
        self.shards.shard(worker).refused[reason as usize].inc();
    }

    pub fn discovered(&self, worker: WorkerId, outcome: Discovered) {
        self.shards.shard(worker).discovered[outcome as usize].inc();
    }

    /// A connection to the workload begins.
    pub fn secured(&self, worker: WorkerId, security: Security) {
        self.shards.shard(worker).security[security as usize].inc();
    }

    /// A connection is passed on to an unknown destination.
    pub fn passed(&self, worker: WorkerId) {
        self.shards.shard(worker).passed.inc();
    }

    /// Clear text was let through that `Strict` would refuse.
    pub fn audited(&self, worker: WorkerId) {
        self.shards.shard(worker).audited.inc();
    }

    pub(super) fn encode(&self, out: &mut Encoder) {
        let listener = self.listener.as_str();
        for (i, reason) in REFUSED.iter().enumerate() {
            out.nonzero(Family::MeshRefused, &[listener, reason], self.shards.sum(|s| &s.refused[i]));
        }
        for (i, outcome) in DISCOVERED.iter().enumerate() {
            out.nonzero(Family::MeshDiscoveries, &[listener, outcome], self.shards.sum(|s| &s.discovered[i]));
        }
        for (i, security) in SECURITY.iter().enumerate() {
            out.nonzero(Family::MutualTls, &[listener, security], self.shards.sum(|s| &s.security[i]));
        }
        out.nonzero(Family::MeshPassed, &[listener], self.shards.sum(|s| &s.passed));
        out.nonzero(Family::MutualTlsAudit, &[listener], self.shards.sum(|s| &s.audited));
    }
}
