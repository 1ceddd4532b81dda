//! One resource of any kind.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::diagnostic::{Code, Finding};
use crate::field_path::{FieldPath, Segment};
use crate::meta::{Kind, ObjectMeta, ResourceKey};
use crate::{
    AccessPolicy, AuthPolicy, BackendTlsPolicy, ConfigMap, EndpointSlice, ExternalService, Gateway, GatewayClass,
    GrpcRoute, HttpRoute, ListenerSet, Mesh, Namespace, ReferenceGrant, Secret, Service, TcpRoute, TlsRoute,
    TrafficPolicy, UdpRoute, Workload,
};

/// What all typed resources share.
pub trait Object: Serialize + DeserializeOwned + schemars::JsonSchema + PartialEq + Send + Sync + 'static {
    /// The kind.
    const KIND: Kind;

    /// The metadata.
    fn metadata(&self) -> &ObjectMeta;

    /// The metadata, to be changed.
    fn metadata_mut(&mut self) -> &mut ObjectMeta;

    /// Kind, namespace and name.
    fn key(&self) -> ResourceKey {
        ResourceKey::new(Self::KIND, self.metadata().namespace.clone(), self.metadata().name.clone())
    }
}

macro_rules! resources {
    ($($kind:ident),+ $(,)?) => {
        /// One resource of any kind; cheap to clone.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Resource {
            $(
                #[doc = concat!("A [`", stringify!($kind), "`].")]
                $kind(Arc<$kind>),
            )+
        }

        impl Resource {
            /// The kind.
            pub fn kind(&self) -> Kind {
                match self { $(Resource::$kind(_) => Kind::$kind),+ }
            }

            /// The metadata.
            pub fn metadata(&self) -> &ObjectMeta {
                match self { $(Resource::$kind(object) => &object.metadata),+ }
            }
        }

        impl Resource {
            /// The resource as it is written in a file: `apiVersion`, `kind`, then its fields; what is not set is left out.
            pub fn to_value(&self) -> Value {
                let fields = match self { $(Resource::$kind(object) => serde_json::to_value(&**object)),+ };
                let mut value = json!({ "apiVersion": self.kind().api_version(), "kind": self.kind().name() });
                if let (Some(all), Ok(Value::Object(fields))) = (value.as_object_mut(), fields) {
                    all.extend(fields);
                }
                drop_nulls(&mut value);
                value
            }
        }

        /// The schema of the fields of a kind, as derived.
        pub(crate) fn root_schema(kind: Kind, generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
            match kind {
                $(Kind::$kind => std::mem::take(generator).into_root_schema_for::<$kind>(),)+
            }
        }

        /// Reads the fields of a kind; the error names the field.
        pub(crate) fn deserialize(kind: Kind, fields: Value) -> Result<Resource, Finding> {
            match kind {
                $(Kind::$kind => deserialize_object::<$kind>(fields).map(Resource::from),)+
            }
        }

        $(
            impl Object for $kind {
                const KIND: Kind = Kind::$kind;

                fn metadata(&self) -> &ObjectMeta {
                    &self.metadata
                }

                fn metadata_mut(&mut self) -> &mut ObjectMeta {
                    &mut self.metadata
                }
            }

            impl From<$kind> for Resource {
                fn from(object: $kind) -> Self {
                    Resource::$kind(Arc::new(object))
                }
            }
        )+
    };
}

resources!(
    GatewayClass,
    Gateway,
    ListenerSet,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    UdpRoute,
    ReferenceGrant,
    BackendTlsPolicy,
    TrafficPolicy,
    Mesh,
    Workload,
    ExternalService,
    AccessPolicy,
    AuthPolicy,
    Namespace,
    Service,
    EndpointSlice,
    Secret,
    ConfigMap,
);

impl Resource {
    /// Kind, namespace and name.
    pub fn key(&self) -> ResourceKey {
        let metadata = self.metadata();
        ResourceKey::new(self.kind(), metadata.namespace.clone(), metadata.name.clone())
    }
}

impl Serialize for Resource {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_value().serialize(serializer)
    }
}

fn deserialize_object<T: Object>(fields: Value) -> Result<T, Finding> {
    let mut object: T = serde_path_to_error::deserialize(fields).map_err(|error| {
        let segments = error.path().iter().filter_map(|segment| match segment {
            serde_path_to_error::Segment::Seq { index } => Some(Segment::Index(*index)),
            serde_path_to_error::Segment::Map { key } => Some(Segment::Field(key.clone())),
            _ => None,
        });
        let path = FieldPath::from(segments.collect::<Vec<_>>());
        Finding::error(Code::WrongFormat, path, error.inner().to_string())
    })?;
    let metadata = object.metadata_mut();
    if !T::KIND.namespaced() {
        metadata.namespace.clear();
    } else if metadata.namespace.is_empty() {
        metadata.namespace.push_str("default");
    }
    Ok(object)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
