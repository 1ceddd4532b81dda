//! What compiling cannot know of listeners: that the system did not give them their ports.

use crate::{
    snapshot::{Listener, ListenerName, Protocol, Snapshot},
    status::{Condition, ListenerStatus, ResourceStatus, Status},
};
use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

impl Status {
    /// The status where some sockets of the snapshot could not be opened: their listeners are not programmed. `sockets`
    /// are addresses, as they are shown, with the error of the system.
    pub fn unopened(&self, snapshot: &Snapshot, sockets: &BTreeMap<&str, &str>) -> Status {
        let mut status = self.clone();
        let closed = |listener: &&Arc<Listener>| sockets.contains_key(listener.bind.to_string().as_str());
        for listener in snapshot.listeners.iter().filter(closed) {
            let why = sockets.get(listener.bind.to_string().as_str()).copied().unwrap_or_default();
            for name in names(listener) {
                let mut found = status.resources.iter_mut().filter(|(key, _)| {
                    key.kind.name() == name.kind && key.namespace == name.namespace && key.name == name.name
                });
                if let Some((_, resource)) = found.next() {
                    close(Arc::make_mut(resource), &name.section, why);
                }
            }
        }
        status
    }
}

/// The listeners of Gateways and ListenerSets behind a socket.
fn names(listener: &Listener) -> Vec<&ListenerName> {
    match &listener.protocol {
        Protocol::Http(hosts) => hosts.values().map(|it| &it.name).collect(),
        Protocol::Tls(hosts) => hosts.values().map(|it| &it.name).collect(),
        Protocol::Tcp(it) | Protocol::Udp(it) => vec![&it.options.name],
        Protocol::Outbound(_) | Protocol::Inbound(_) => Vec::new(),
    }
}

fn close(resource: &mut ResourceStatus, section: &str, why: &str) {
    let (conditions, listeners, others) = match resource {
        ResourceStatus::Gateway(it) => (&mut it.conditions, &mut it.listeners, it.attached_listener_sets > 0),
        ResourceStatus::ListenerSet(it) => (&mut it.conditions, &mut it.listeners, false),
        _ => return,
    };
    for listener in listeners.iter_mut().filter(|listener| listener.name == section) {
        unprogrammed(&mut listener.conditions, "PortUnavailable", why);
    }
    let serves = |listener: &ListenerStatus| listener.conditions.iter().any(|it| it.kind == "Programmed" && it.status);
    if !others && !listeners.iter().any(serves) {
        unprogrammed(conditions, "Pending", "no listener could be opened; it is tried again every 5 seconds");
    }
}

fn unprogrammed(conditions: &mut [Condition], reason: &'static str, message: &str) {
    for condition in conditions.iter_mut().filter(|it| it.kind == "Programmed" && it.status) {
        condition.status = false;
        condition.reason = reason;
        condition.message = Cow::Owned(message.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, compile};
    use selvedge_model::{Limits, Resources, parse};

    /// `name: Programmed reason` of the Gateway and its listeners.
    fn programmed(status: &Status) -> String {
        let Some(ResourceStatus::Gateway(gateway)) = status.resources.values().next().map(Arc::as_ref) else {
            panic!("a Gateway")
        };
        let of = |name: &str, all: &[Condition]| {
            let it = all.iter().find(|it| it.kind == "Programmed").expect("told");
            format!("{name}: {} {} {}", it.status, it.reason, it.message).trim_end().to_owned()
        };
        let listeners = gateway.listeners.iter().map(|it| of(&it.name, &it.conditions));
        std::iter::once(of("all", &gateway.conditions)).chain(listeners).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_listener_without_its_port_is_not_programmed() {
        let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: shop}\nspec:\n  gatewayClassName: selvedge\n  listeners: [{name: a, port: 80, protocol: HTTP}, {name: b, port: 81, protocol: TCP}]\n";
        let parsed = parse("f", text.as_bytes(), &Limits::default());
        let mut resources = Resources::default();
        resources.extend(parsed.loaded.into_iter().filter_map(|it| it.resource));
        let compiled = compile(&resources, &Options::default());
        let with = |sockets: &[(&str, &str)]| {
            programmed(&compiled.status.unopened(&compiled.snapshot, &sockets.iter().copied().collect()))
        };
        assert_eq!(with(&[]), "all: true Programmed\na: true Programmed\nb: true Programmed");
        assert_eq!(
            with(&[("tcp://*:80", "in use")]),
            "all: true Programmed\na: false PortUnavailable in use\nb: true Programmed"
        );
        assert_eq!(
            with(&[("tcp://*:80", "in use"), ("tcp://*:81", "refused")]),
            "all: false Pending no listener could be opened; it is tried again every 5 seconds\na: false PortUnavailable in use\nb: false PortUnavailable refused"
        );
    }
}
