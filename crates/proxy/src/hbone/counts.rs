//! What becomes of tunnels to others, counted.

use crate::{
    Error,
    error::{Kind, Side},
    telemetry::{encode::Encoder, families::Family},
};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const CONNECTIONS: [&str; 4] = ["opened", "connect_failure", "handshake_failure", "timeout"];
const STREAMS: [&str; 4] = ["opened", "refused", "failed", "overflow"];

/// Since the process started.
#[derive(Debug, Default)]
pub(super) struct Counts {
    connections: [AtomicU64; CONNECTIONS.len()],
    streams: [AtomicU64; STREAMS.len()],
}

impl Counts {
    /// A connection was opened, or was not.
    pub fn connection(&self, error: Option<&Error>) {
        let outcome = match error.map(|error| error.kind) {
            None => 0,
            Some(Kind::Tls) => 2,
            Some(Kind::Timeout | Kind::ConnectTimeout) => 3,
            Some(_) => 1,
        };
        self.connections[outcome].fetch_add(1, Relaxed);
    }

    /// A stream was opened, or was not.
    pub fn stream<T>(&self, result: &Result<T, Error>) {
        let outcome = match result.as_ref().map_err(|error| (error.kind, error.side)) {
            Ok(_) => 0,
            Err((Kind::Overflow, Side::Us)) => 3,
            Err((Kind::Denied | Kind::Protocol { .. }, _)) => 1,
            Err(_) => 2,
        };
        self.streams[outcome].fetch_add(1, Relaxed);
    }

    pub fn encode(&self, out: &mut Encoder, connections: u64, streams: u64) {
        let both = [
            (Family::TunnelConnections, CONNECTIONS, &self.connections),
            (Family::TunnelStreams, STREAMS, &self.streams),
        ];
        for (family, names, counts) in both {
            for (name, count) in names.iter().zip(counts) {
                out.sample(family, &[name], count.load(Relaxed));
            }
        }
        out.sample(Family::TunnelConnectionsActive, &[], connections);
        out.sample(Family::TunnelStreamsActive, &[], streams);
    }
}
