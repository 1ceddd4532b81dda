//! Messages and services of `proto/`, as generated.

#![allow(clippy::all, clippy::pedantic, missing_docs)]

/// From control plane to proxies.
pub mod discovery {
    tonic::include_proto!("selvedge.discovery.v1");
}

/// The part of etcd's API that is used.
pub mod etcd {
    tonic::include_proto!("etcdserverpb");
}

/// Certificates for proxies.
pub mod identity {
    tonic::include_proto!("selvedge.identity.v1");
}
