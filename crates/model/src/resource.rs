//! One resource of any kind.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::meta::{Kind, ObjectMeta, ResourceKey};
use crate::{
    BackendTlsPolicy, ConfigMap, EndpointSlice, Gateway, GatewayClass, GrpcRoute, HttpRoute,
    ListenerSet, Namespace, ReferenceGrant, Secret, Service, TcpRoute, TlsRoute, TrafficPolicy,
    UdpRoute,
};

/// What all typed resources share.
pub trait Object:
    Serialize + DeserializeOwned + schemars::JsonSchema + PartialEq + Send + Sync + 'static
{
    /// The kind.
    const KIND: Kind;

    /// The metadata.
    fn metadata(&self) -> &ObjectMeta;

    /// The metadata, to be changed.
    fn metadata_mut(&mut self) -> &mut ObjectMeta;

    /// Kind, namespace and name.
    fn key(&self) -> ResourceKey {
        ResourceKey::new(
            Self::KIND,
            self.metadata().namespace.clone(),
            self.metadata().name.clone(),
        )
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
        ResourceKey::new(
            self.kind(),
            metadata.namespace.clone(),
            metadata.name.clone(),
        )
    }
}

impl Serialize for Resource {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_value().serialize(serializer)
    }
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
