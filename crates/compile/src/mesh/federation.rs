//! Other trust domains whose identities are believed: `Mesh.spec.federation`.

use crate::{Context, secrets::TlsCache, snapshot::CaBundle, tls};
use selvedge_model::{Code, Kind, ResourceKey, mesh::Federation};
use std::{collections::BTreeMap, sync::Arc};

/// Their roots, by domain. One that cannot be read is left out alone, and told.
pub(crate) fn federation(cx: &mut Context<'_>, cache: &mut TlsCache) -> BTreeMap<String, Arc<CaBundle>> {
    let spec = cx.mesh.spec;
    let mut all = BTreeMap::new();
    for (index, other) in spec.federation.iter().enumerate() {
        // Its own roots come from its CA alone.
        if other.trust_domain == cx.mesh.trust_domain {
            continue;
        }
        match bundle(cx, cache, other) {
            Ok(bundle) => _ = all.entry(other.trust_domain.clone()).or_insert(bundle),
            Err(why) => {
                let message = format!("identities of trust domain {} are not believed: {why}", other.trust_domain);
                let meshes = cx.index.meshes();
                let name = meshes.iter().find(|mesh| std::ptr::eq(&raw const mesh.spec, spec));
                let name = name.map_or("default", |mesh| mesh.metadata.name.as_str());
                let key = ResourceKey::new(Kind::Mesh, "", name);
                cx.report.error(
                    &key,
                    Code::InvalidCaCertificate,
                    &format!("spec.federation[{index}].bundle"),
                    &message,
                );
            }
        }
    }
    all
}

fn bundle(cx: &Context<'_>, cache: &mut TlsCache, other: &Federation) -> Result<Arc<CaBundle>, String> {
    let of_pem = |pem: &[u8], origin: String, entry: &str| tls::ca(Some(pem), origin, entry).map(Arc::new);
    let Some(from) = &other.bundle.config_map else {
        let pem = other.bundle.pem.as_deref().ok_or("its bundle names neither `configMap` nor `pem`")?;
        return of_pem(pem.as_bytes(), format!("trust domain {}", other.trust_domain), "pem");
    };
    let map = cx.index.config_maps.get(&(from.namespace.as_str(), from.name.as_str()));
    let map = map.ok_or_else(|| format!("ConfigMap {}/{} does not exist", from.namespace, from.name))?;
    if from.key == "ca.crt" {
        return cache.ca_of_config_map(map);
    }
    tls::ca(map.get(&from.key), format!("ConfigMap {}/{}", from.namespace, from.name), &from.key).map(Arc::new)
}
