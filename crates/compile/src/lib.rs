//! The configuration compiler: [`Resources`](selvedge_model::Resources) in, an immutable
//! [`Snapshot`](snapshot::Snapshot) and diagnostics out. Pure and total: it reads no clock, file or
//! socket, never panics, and a bad resource is left out alone (DESIGN.md invariant 7).

pub mod router;
pub mod snapshot;
