//! Metrics, access logs and traces, all from the one [`Record`] of a request or connection.

pub mod counter;
pub mod encode;
pub mod families;
mod flags;
mod handle;
pub mod metrics;
mod process;
mod record;
mod recorded;

pub use flags::Flags;
pub use handle::{ListenerHandle, Telemetry};
pub use metrics::{Handshake, Layer, Limit, Registry, Rejected, RouteMetrics, Shed, SocketMetrics};
pub use record::{ConnectionFacts, Progress, Record, RequestId, TlsFacts};
