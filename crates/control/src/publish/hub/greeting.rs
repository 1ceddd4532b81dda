//! What a proxy says first: who it is, and whether it may be that.

use super::{Hub, MAX_SUBSCRIPTIONS, NodeId, Output, wanted};
use crate::{
    proto::discovery::Hello,
    publish::scope::{Interest, Role},
    source::Mark,
};
use selvedge_model::{Kind, ResourceKey};
use selvedge_wire::spiffe::SpiffeId;
use std::collections::BTreeSet;

/// Workloads or Gateways of one proxy.
const MAX_NAMES: usize = 1_000;

impl Hub {
    pub(super) fn hello(&mut self, node: NodeId, hello: Hello) -> Result<(), String> {
        let role = match hello.role() {
            crate::proto::discovery::Role::Gateway => Role::Gateway,
            crate::proto::discovery::Role::Sidecar => Role::Sidecar,
            crate::proto::discovery::Role::Node => Role::Node,
            crate::proto::discovery::Role::Unspecified => return Err("hello names no role".to_owned()),
        };
        if hello.id.is_empty() || hello.id.len() > 256 {
            return Err("the id of a proxy has 1 to 256 characters".to_owned());
        }
        let Some(member) = self.members.get_mut(&node) else { return Ok(()) };
        let identity = member.identity.clone();
        let proven = match (&identity, member.proves) {
            (_, false) => None,
            (None, true) => return Err("the discovery stream needs a client certificate: join first".to_owned()),
            (Some(id), true) => match (id.namespace(), id.account()) {
                (Some(namespace), Some(account)) => Some((namespace.to_owned(), account.to_owned())),
                _ => return Err(format!("{} is not the identity of a workload", id.as_str())),
            },
        };
        let interest = Interest {
            role,
            proven,
            workloads: names(&hello.workloads)?,
            gateways: names(&hello.gateways)?,
            wanted: hello.subscriptions.iter().take(MAX_SUBSCRIPTIONS).filter_map(wanted).collect(),
        };
        self.allowed(&interest, identity.as_ref())?;
        // A name counts within an identity: nobody can take another's, and so keep it out.
        let name = (hello.id.clone(), identity.clone());
        self.departed.back(&name);
        if let Some(twin) = self.names.insert(name, node) {
            self.joined.inherit(twin, node);
            self.close(twin, "the proxy has opened another stream".to_owned());
        }
        let ahead = hello.source.as_ref().map(Mark::from_wire).zip(self.mark.as_ref());
        let ahead = ahead.filter(|(theirs, ours)| ours.is_behind(theirs));
        let ahead = ahead.map(|(theirs, ours)| Mark { looks: ours.looks, ..theirs });
        if let Some(member) = self.members.get_mut(&node) {
            if let Some(ahead) = &ahead {
                tracing::warn!(
                    proxy = hello.id,
                    revision = ahead.revision,
                    "this proxy has seen something newer of the source than this control plane: it keeps that until this one has caught up"
                );
                member.node.fall_behind();
            }
            (member.hello, member.role, member.ahead) = (hello, Some(role), ahead);
        }
        self.enter_view(node, interest);
        let identity = identity.map(|id| id.as_str().to_owned()).unwrap_or_default();
        self.out.push((node, Output::Welcome { identity }));
        Ok(())
    }

    /// Whether the proxy may be what it says.
    fn allowed(&self, interest: &Interest, identity: Option<&SpiffeId>) -> Result<(), String> {
        let me = identity.map_or("nobody", SpiffeId::as_str);
        for (namespace, name) in &interest.workloads {
            let key = ResourceKey::new(Kind::Workload, namespace, name);
            let account = self.graph.get(&key).and_then(|w| w.links.account.clone());
            if !interest.may_be(&key, account.as_deref()) {
                let account = account.unwrap_or_else(|| "…".to_owned());
                return Err(format!("{me} may not stand beside {key}, whose identity is ns/{namespace}/sa/{account}"));
            }
        }
        match interest.gateways.iter().find(|(namespace, _)| !interest.may_serve(namespace)) {
            Some((namespace, name)) => Err(format!(
                "{me} may not serve Gateway {namespace}/{name}: use an identity of namespace `{namespace}` or `{}`",
                crate::publish::graph::ROOT_NAMESPACE
            )),
            None => Ok(()),
        }
    }
}

/// `namespace/name` each.
fn names(list: &[String]) -> Result<BTreeSet<(String, String)>, String> {
    if list.len() > MAX_NAMES {
        return Err(format!("more than {MAX_NAMES} workloads or gateways"));
    }
    let read = |text: &String| match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err(format!("`{text}` is not `namespace/name`")),
    };
    list.iter().map(read).collect()
}
