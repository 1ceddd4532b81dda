//! Resources to proxies: who gets what (`graph`, `scope`), the state of each stream (`node`) and of all of them (`hub`),
//! workloads that join by themselves (`join`), how often they say that they live (`pace`), proxies that went (`gone`), what people are shown of it (`status`), and the
//! gRPC service around it (`server`).

pub mod gone;
pub mod graph;
pub mod hub;
pub mod join;
pub mod node;
pub mod pace;
pub mod scope;
pub mod server;
pub mod status;
pub mod version;

#[cfg(test)]
pub(crate) mod testing;
