//! Hits of limits, counted where a limit is enforced. One count per process and limit: a limit is hit seldom, or else by
//! an attack, where a number without place is what an alert needs; the place is in the record.

use super::{encode::Encoder, families::Family};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! limits {
    ($($name:ident $label:literal $help:literal;)*) => {
        /// Something that is limited, as the label `limit` of `selvedge_limits_hit_total` names it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Limit { $(#[doc = $help] $name,)* }

        /// Label and meaning, in the order of [`Limit`].
        pub const LIMITS: &[(&str, &str)] = &[$(($label, $help)),*];
    };
}

limits! {
    HeaderBytes "header_bytes" "A request head, or the trailers of a request, with more bytes than allowed.";
    HeaderCount "header_count" "A request head, or the trailers of a request, with more fields than allowed.";
    HeaderTimeout "header_timeout" "A request head that was not complete in time.";
    TargetBytes "target_bytes" "A request target that is too long.";
    BodyBytes "body_bytes" "A request body that is too long.";
    BodyRate "body_rate" "A request body that came too slowly.";
    ChunkExtensions "chunk_extensions" "Chunk extensions of a request that are too long.";
    InspectedBytes "inspected_bytes" "Bytes of a TLS ClientHello or a PROXY header over what is read of them.";
    HandshakeTimeout "handshake_timeout" "A PROXY header, TLS handshake or first byte that did not come in time.";
    IdleTimeout "idle_timeout" "A client's connection that was closed since it was without a request for too long.";
    StreamIdle "stream_idle" "A request, upgraded or TCP connection without a byte for too long.";
    HalfClose "half_close" "A request given up: its client had shut its sending side, and nothing could be sent to it for too long.";
    RequestTimeout "request_timeout" "A request that took too long as a whole.";
    BackendRequestTimeout "backend_request_timeout" "A try at an endpoint that took too long.";
    KeepaliveTimeout "keepalive_timeout" "A client that did not answer a PING.";
    ListenerConnections "listener_connections" "A connection closed at accept: the listener has as many as it may.";
    ProcessConnections "process_connections" "A connection closed at accept: the process has as many as it may.";
    OpenFiles "open_files" "Accepting had to pause, since the process has no descriptors or memory for it.";
    Memory "memory" "A request answered with 503, or a connection closed at accept, to save memory.";
    RequestsPerConnection "requests_per_connection" "A client's connection that has served as many requests as it may.";
    ConnectionAge "connection_age" "A client's connection that was told to end since it is old.";
    ConcurrentStreams "concurrent_streams" "An HTTP/2 stream refused: the client has as many open as it may.";
    StreamResets "stream_resets" "An HTTP/2 connection ended since its client reset most of its streams, or many at once.";
    Http2Flood "http2_flood" "An HTTP/2 connection ended for a flood of another kind: CONTINUATION, tiny frames, errors.";
    UdpSessions "udp_sessions" "A datagram dropped: the listener has as many sessions as it may.";
    ClusterConnections "cluster_connections" "A request refused: too many wait for a connection to its backend, or it waited too long.";
    ClusterRequests "cluster_requests" "A request refused: its backend has as many in flight as it may.";
    ClusterRetries "cluster_retries" "A retry not made: its backend has as many in flight as it may.";
    RetryBudget "retry_budget" "A retry not made: the retry budget is spent.";
    ReplayBuffer "replay_buffer" "A request body too long to be kept, so that the request cannot be sent again.";
    MirrorBuffer "mirror_buffer" "A mirrored request given up: the mirror is slower than the original.";
    InterimResponses "interim_responses" "An interim (1xx) response of a backend that was dropped, or too many of them.";
    ResponseHead "response_head" "A response head or trailers of a backend over their limits.";
}

static HITS: [AtomicU64; LIMITS.len()] = [const { AtomicU64::new(0) }; LIMITS.len()];

impl Limit {
    /// Counts that the limit was enforced once.
    pub fn hit(self) {
        HITS[self as usize].fetch_add(1, Relaxed);
    }

    /// Hits since the process started.
    pub fn hits(self) -> u64 {
        HITS[self as usize].load(Relaxed)
    }

    /// The label's value.
    pub fn label(self) -> &'static str {
        LIMITS[self as usize].0
    }
}

/// All limits, hit or not, so that an alert can tell "never" from "unknown".
pub(super) fn encode(out: &mut Encoder) {
    for (hits, (label, _)) in HITS.iter().zip(LIMITS) {
        out.sample(Family::LimitsHit, &[label], hits.load(Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::encode::Format;

    #[test]
    fn hits_are_shown_by_label() {
        let before = Limit::ReplayBuffer.hits();
        Limit::ReplayBuffer.hit();
        assert!(Limit::ReplayBuffer.hits() > before);
        let mut out = Encoder::default();
        encode(&mut out);
        let text = out.finish(Format::Prometheus);
        for (label, help) in LIMITS {
            assert!(text.contains(&format!("limit=\"{label}\"")), "{label} is missing in {text}");
            assert!(help.ends_with('.'), "{label}");
        }
        assert_eq!(Limit::ResponseHead.label(), "response_head");
    }
}
