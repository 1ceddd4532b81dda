//! Selvedge's resources as plain types: the Gateway API v1.6, the Kubernetes kinds it refers to, and
//! those of our own.

pub mod access;
pub mod backend_tls;
pub mod bytes;
mod check;
pub mod collect;
pub mod core;
pub mod diagnostic;
pub mod duration;
pub mod field_path;
pub mod gateway;
pub mod grpc;
pub mod http;
pub mod load;
pub mod mesh;
pub mod meta;
mod node;
pub mod refers;
pub mod refs;
pub mod resource;
pub mod resources;
pub mod schema;
mod shape;
pub mod stream;
pub mod traffic;
pub mod validate;

pub use access::AccessPolicy;
pub use backend_tls::BackendTlsPolicy;
pub use bytes::ByteString;
pub use collect::{Collected, Origins, fill_locations};
pub use core::{ConfigMap, EndpointSlice, Namespace, Secret, Service};
pub use diagnostic::{Code, Diagnostic, Finding, Location, Severity};
pub use duration::Duration;
pub use field_path::{At, FieldPath, Segment};
pub use gateway::{Gateway, GatewayClass, ListenerSet, ReferenceGrant};
pub use grpc::GrpcRoute;
pub use http::HttpRoute;
pub use load::{Limits, Loaded, Locator, Origin, Parsed, Reader, parse};
pub use mesh::{ExternalService, Mesh, Workload};
pub use meta::{GATEWAY_GROUP, Kind, ObjectMeta, ResourceKey, SELVEDGE_GROUP};
pub use resource::{Object, Resource};
pub use resources::{Delta, Resources, Upserted};
pub use stream::{TcpRoute, TlsRoute, UdpRoute};
pub use traffic::TrafficPolicy;
pub use validate::validate;
