//! What only a member of a mesh needs: keeping its identity fresh, capturing a workload's traffic, names.

pub mod capture;
pub mod dns;
pub mod identity;
pub mod spaces;
pub mod workload_api;

/// Messages and services of `proto/`, as generated.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
mod workload {
    tonic::include_proto!("_");
}
