//! Metrics, access logs and traces, all from the one [`Record`] of a request or connection.

mod access;
mod access_log;
pub mod counter;
pub mod encode;
pub mod families;
mod flags;
mod handle;
mod kept;
pub mod limits;
mod log_output;
pub mod metrics;
mod otlp;
mod process;
mod record;
mod recorded;
mod trace;
mod walk;
mod workload;

pub use access::AccessCounts;
pub use flags::Flags;
pub use handle::{ListenerHandle, Telemetry};
pub use limits::Limit;
pub use metrics::{Handshake, Layer, Registry, Rejected, RouteMetrics, SocketMetrics};
pub use record::{ConnectionFacts, Progress, Record, RequestId, TlsFacts};
pub use walk::{encode_certificates, encode_clusters};
pub use workload::{Discovered, Refused, Security, WorkloadMetrics};
