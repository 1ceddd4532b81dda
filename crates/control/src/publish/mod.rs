//! Resources to proxies: who gets what (`graph`, `scope`), the state of each stream (`node`) and of all of them (`hub`),
//! workloads that join by themselves (`join`), and the gRPC service around it (`server`).

pub mod graph;
pub mod hub;
pub mod join;
pub mod node;
pub mod scope;
pub mod server;
pub mod version;

#[cfg(test)]
mod testing;
