//! Connections from and to workloads, with real sockets and snapshots made by hand.

mod between;
mod explicit;
mod inbound;
mod namespaces;
mod support;
