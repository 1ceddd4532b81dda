//! Selvedge's resources as plain types: the Gateway API v1.6, the Kubernetes kinds it refers to, and TrafficPolicy.

pub mod backend_tls;
pub mod bytes;
pub mod core;
pub mod diagnostic;
pub mod duration;
pub mod field_path;
pub mod gateway;
pub mod grpc;
pub mod http;
pub mod meta;
pub mod refs;
pub mod resource;
pub mod resources;
pub mod stream;
pub mod traffic;

pub use backend_tls::BackendTlsPolicy;
pub use bytes::ByteString;
pub use core::{ConfigMap, EndpointSlice, Namespace, Secret, Service};
pub use diagnostic::{Code, Diagnostic, Finding, Location, Severity};
pub use duration::Duration;
pub use field_path::{At, FieldPath, Segment};
pub use gateway::{Gateway, GatewayClass, ListenerSet, ReferenceGrant};
pub use grpc::GrpcRoute;
pub use http::HttpRoute;
pub use meta::{GATEWAY_GROUP, Kind, ObjectMeta, ResourceKey, SELVEDGE_GROUP};
pub use resource::{Object, Resource};
pub use resources::{Delta, Resources, Upserted};
pub use stream::{TcpRoute, TlsRoute, UdpRoute};
pub use traffic::TrafficPolicy;
