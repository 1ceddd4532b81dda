//! Workloads that join by themselves: resources that live as long as the stream that brought them, and a moment longer.

use super::{hub::NodeId, node::Millis};
use selvedge_model::{Kind, Resource, ResourceKey};
use selvedge_wire::spiffe::SpiffeId;
use std::{collections::BTreeMap, net::IpAddr};

/// Workloads whose stream broke have so long to come back: a broken connection is no death, but traffic must not be
/// sent to the dead.
const GRACE: Millis = 300;
/// Workloads that one proxy may bring.
const MAX_WORKLOADS: usize = 1_000;
/// Bytes of one.
const MAX_BYTES: usize = 256 * 1024;

/// Those that have joined.
#[derive(Default)]
pub struct Workloads {
    all: BTreeMap<ResourceKey, Member>,
    /// Workloads of the source: those that are written, that we have told it of, and that are at other control planes.
    source: BTreeMap<ResourceKey, Resource>,
    /// For whoever shares them with other control planes.
    changed: BTreeMap<ResourceKey, Option<Vec<u8>>>,
}

struct Member {
    node: NodeId,
    json: Vec<u8>,
    /// When it is taken out, its stream being gone.
    until: Option<Millis>,
}

/// What joining did.
pub enum Joined {
    New(Resource),
    Same,
}

type Changes = Vec<(ResourceKey, Option<Resource>)>;

impl Workloads {
    /// Takes a workload in, or says why not.
    pub fn register(
        &mut self,
        node: NodeId,
        identity: Option<&SpiffeId>,
        json: &[u8],
        known: impl Fn(&Resource) -> bool,
        taken: impl Fn(IpAddr) -> Vec<ResourceKey>,
    ) -> Result<Joined, String> {
        if json.len() > MAX_BYTES {
            return Err(format!("a Workload of {} bytes; at most {MAX_BYTES} are read", json.len()));
        }
        let mut value: serde_json::Value = serde_json::from_slice(json).map_err(|e| format!("not JSON: {e}"))?;
        // Of two workloads with one address the older has it: its age is not for it to say.
        if let Some(metadata) = value.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
            metadata.remove("creationTimestamp");
        }
        let json = serde_json::to_vec(&value).map_err(|e| format!("not JSON: {e}"))?;
        let resource = Resource::from_value(&value).map_err(|findings| {
            findings.first().map_or_else(|| "not a resource".to_owned(), |f| format!("{}: {}", f.path, f.message))
        })?;
        let key = resource.key();
        let Resource::Workload(workload) = &resource else {
            return Err(format!("{key} is not a Workload"));
        };
        if let Some(identity) = identity {
            let account = value["spec"]["serviceAccount"].as_str().unwrap_or("default");
            let proven = (identity.namespace(), identity.account());
            if proven != (Some(&key.namespace), Some(account)) {
                let namespace = &key.namespace;
                return Err(format!(
                    "{} may not be {key}, whose identity ends in /ns/{namespace}/sa/{account}",
                    identity.as_str()
                ));
            }
        }
        let mine = self.all.get(&key);
        if mine.is_none() && known(&resource) {
            return Err(format!("{key} is written in the configuration already; give this one another name"));
        }
        if mine.is_some_and(|m| m.node != node && m.until.is_none()) {
            return Err(format!("{key} has joined from another proxy already"));
        }
        for address in &workload.spec.addresses {
            let address: Option<IpAddr> = address.to_string().parse().ok();
            // Traffic for what others have written must not be drawn away. In its own namespace it may be an endpoint.
            let theirs = |o: &ResourceKey| *o != key && (o.kind == key.kind || o.namespace != key.namespace);
            let other = address.into_iter().flat_map(&taken).find(theirs);
            if let (Some(address), Some(other)) = (address, other) {
                return Err(format!("{other} has the address {address} already"));
            }
        }
        let count = self.all.values().filter(|m| m.node == node).count();
        if mine.is_none() && count >= MAX_WORKLOADS {
            return Err(format!("one proxy brings {MAX_WORKLOADS} workloads at most"));
        }
        let same = mine.is_some_and(|m| m.json == json);
        self.changed.insert(key.clone(), Some(json.clone()));
        self.all.insert(key, Member { node, json, until: None });
        Ok(if same { Joined::Same } else { Joined::New(resource) })
    }

    /// Takes one of a stream's workloads out.
    pub fn withdraw(&mut self, node: NodeId, key: &ResourceKey) -> Option<(ResourceKey, Option<Resource>)> {
        let mine = self.all.get(key).is_some_and(|member| member.node == node);
        mine.then(|| self.take(key.clone()))
    }

    /// Takes all of a stream's workloads out: it ends cleanly.
    pub fn leave(&mut self, node: NodeId) -> Changes {
        self.take_all(|member| member.node == node)
    }

    /// The stream broke.
    pub fn lost(&mut self, now: Millis, node: NodeId) {
        for member in self.all.values_mut().filter(|member| member.node == node) {
            member.until = Some(now + GRACE);
        }
    }

    /// The same proxy is now at another stream.
    pub fn inherit(&mut self, from: NodeId, to: NodeId) {
        self.all.values_mut().filter(|member| member.node == from).for_each(|member| member.node = to);
    }

    /// Takes those out that did not come back in time.
    pub fn expired(&mut self, now: Millis) -> Changes {
        self.take_all(|member| member.until.is_some_and(|at| at <= now))
    }

    pub fn next_expiry(&self) -> Option<Millis> {
        self.all.values().filter_map(|member| member.until).min()
    }

    /// Changes of the source, without what it says of those that have joined here: another control plane's word of the
    /// same is no news, and what is no longer written does not take away who is here. What else is written wins.
    pub fn shadow(&mut self, mut changes: Changes) -> Changes {
        for (key, resource) in changes.iter().filter(|(key, _)| key.kind == Kind::Workload) {
            match resource {
                Some(resource) => _ = self.source.insert(key.clone(), resource.clone()),
                None => _ = self.source.remove(key),
            }
        }
        changes.retain(|(key, resource)| match (self.all.get(key), resource) {
            (None, _) => true,
            // Another control plane had it, too, and has heard that it is gone there: it is here.
            (Some(member), None) => {
                self.changed.insert(key.clone(), Some(member.json.clone()));
                false
            }
            (Some(member), Some(resource)) => {
                let same = serde_json::from_slice(&member.json).is_ok_and(|value: serde_json::Value| {
                    Resource::from_value(&value).is_ok_and(|joined| joined == *resource)
                });
                if !same {
                    self.take(key.clone());
                }
                !same
            }
        });
        changes
    }

    /// Who has joined (with JSON) and left since it was last asked.
    pub fn take_changed(&mut self) -> BTreeMap<ResourceKey, Option<Vec<u8>>> {
        std::mem::take(&mut self.changed)
    }

    /// Who is no longer here may be at another control plane by now, for what says so (a `leave`, a broken stream) may have
    /// been held up: what the source says stays until it no longer says so, which it does soon when nobody else has told it.
    fn take(&mut self, key: ResourceKey) -> (ResourceKey, Option<Resource>) {
        self.all.remove(&key);
        self.changed.insert(key.clone(), None);
        let elsewhere = self.source.get(&key).cloned();
        (key, elsewhere)
    }

    fn take_all(&mut self, which: impl Fn(&Member) -> bool) -> Changes {
        let gone: Vec<_> = self.all.iter().filter(|(_, member)| which(member)).map(|(key, _)| key.clone()).collect();
        gone.into_iter().map(|key| self.take(key)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> (Vec<u8>, Resource) {
        let value = serde_json::json!({
            "apiVersion": "selvedge.dev/v1alpha1", "kind": "Workload", "metadata": {"name": "w", "namespace": "shop"},
            "spec": {"addresses": ["10.0.0.1"], "ports": [{"name": "http", "port": 80}]},
        });
        (value.to_string().into_bytes(), Resource::from_value(&value).unwrap())
    }

    fn joined() -> (Workloads, Resource) {
        let (json, resource) = workload();
        let mut workloads = Workloads::default();
        let joined = workloads.register(1, None, &json, |_| false, |_| Vec::new());
        assert!(matches!(joined, Ok(Joined::New(_))));
        (workloads, resource)
    }

    #[test]
    fn who_does_not_come_back_here_may_be_at_another_control_plane() {
        let (mut workloads, resource) = joined();
        let key = resource.key();
        assert!(workloads.shadow(vec![(key.clone(), Some(resource.clone()))]).is_empty());
        workloads.lost(0, 1);
        assert_eq!(workloads.expired(GRACE), [(key.clone(), Some(resource))]);
        // Nobody else had told the source.
        assert_eq!(workloads.shadow(vec![(key.clone(), None)]), [(key, None)]);
        let (mut alone, resource) = joined();
        alone.lost(0, 1);
        assert_eq!(alone.expired(GRACE), [(resource.key(), None)]);
    }

    #[test]
    fn a_late_leave_takes_nobody_away_who_is_elsewhere_by_then() {
        for withdraw in [false, true] {
            let (mut workloads, resource) = joined();
            let key = resource.key();
            workloads.shadow(vec![(key.clone(), Some(resource.clone()))]);
            let gone = match withdraw {
                true => workloads.withdraw(1, &key).into_iter().collect(),
                false => workloads.leave(1),
            };
            assert_eq!(gone, [(key.clone(), Some(resource))]);
            assert!(workloads.take_changed().get(&key).is_some_and(Option::is_none), "the source is told");
        }
    }

    #[test]
    fn who_is_here_is_told_again_when_the_source_has_lost_it() {
        let (mut workloads, resource) = joined();
        let key = resource.key();
        assert_eq!(workloads.take_changed().len(), 1);
        assert!(workloads.shadow(vec![(key.clone(), None)]).is_empty());
        assert!(workloads.take_changed().get(&key).is_some_and(Option::is_some));
    }
}
