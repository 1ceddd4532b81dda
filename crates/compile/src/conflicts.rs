//! Listeners that want the same socket: who may share it and who may not.
//!
//! Gateway API "distinct listeners": within one Gateway or ListenerSet all indistinct listeners lose. Between a Gateway
//! and its ListenerSets, and between Gateways that share an address, the one of higher precedence keeps the socket:
//! the Gateway before its ListenerSets, the older before the younger.

use crate::{
    Context,
    gateways::GatewayState,
    hosts,
    listeners::{Family, ListenerState, Speaks},
    snapshot::{Bind, Netns, Transport},
    status::Fault,
};
use ahash::AHashMap;
use selvedge_model::Code;
use std::collections::BTreeMap;

/// Positions of listeners in order of precedence, by the socket that they want.
pub(crate) type Sockets = BTreeMap<Bind, Vec<usize>>;

/// Finds conflicts, marks the losers, and returns which listeners share which socket.
pub(crate) fn resolve(
    cx: &mut Context<'_>,
    gateways: &[GatewayState<'_>],
    listeners: &mut [ListenerState<'_>],
) -> Sockets {
    let mut sockets = Sockets::new();
    for (i, listener) in listeners.iter_mut().enumerate() {
        let gateway = &gateways[listener.gateway];
        // A listener that is refused for another reason holds no socket, so that it stands in nobody's way.
        let Some(family) = listener.speaks.family() else { continue };
        if listener.rejected.is_some() || gateway.rejected.is_some() {
            continue;
        }
        let transport = if family == Family::Udp { Transport::Udp } else { Transport::Tcp };
        let Some(port) = cx.options.bind_port(listener.spec.port) else {
            let (port, offset) = (listener.spec.port, cx.options.port_offset);
            let message =
                format!("port {port} and the port offset {offset} are more than 65535: give a smaller --port-offset");
            cx.report.error(&listener.owner_key(), Code::OutOfRange, &listener.path(".port"), &message);
            listener.rejected = Some(Fault::new("PortUnavailable", message));
            continue;
        };
        for &address in &gateway.binds {
            sockets.entry(Bind { address, port, transport, netns: Netns::default() }).or_default().push(i);
        }
    }
    for wanting in sockets.values() {
        socket(cx, wanting, listeners);
        overlaps(cx, wanting, listeners);
    }
    for wanting in sockets.values_mut() {
        wanting.retain(|&i| listeners[i].unserved().is_none());
    }
    sockets.retain(|_, wanting| !wanting.is_empty());
    sockets
}

fn socket(cx: &mut Context<'_>, wanting: &[usize], listeners: &mut [ListenerState<'_>]) {
    // All that hold the socket are of one family, so the first stands for it.
    let mut holders: AHashMap<Option<String>, usize> = AHashMap::new();
    let mut first: Option<usize> = None;
    let owners: Vec<_> = wanting.iter().map(|&i| (listeners[i].gateway, listeners[i].set)).collect();
    let mut start = 0;
    for owned in owners.chunk_by(|a, b| a == b) {
        let group = &wanting[start..start + owned.len()];
        start += owned.len();
        let mut faults: Vec<(usize, Fault)> = Vec::new();
        let mut rest: Vec<usize> = Vec::new();
        for &i in group {
            let holder = holders.get(&listeners[i].hostname).copied().or(first);
            match holder.and_then(|h| clash(&listeners[h], &listeners[i])) {
                Some(fault) => faults.push((i, fault)),
                None => rest.push(i),
            }
        }
        let mut fine: Vec<usize> = Vec::new();
        for &i in &rest {
            let sibling = rest.iter().filter(|&&s| s != i).find_map(|&s| clash(&listeners[s], &listeners[i]));
            match sibling {
                Some(fault) => faults.push((i, fault)),
                None => fine.push(i),
            }
        }
        first = first.or(fine.first().copied());
        holders.extend(fine.into_iter().map(|i| (listeners[i].hostname.clone(), i)));
        for (i, fault) in faults {
            lose(cx, &mut listeners[i], fault);
        }
    }
}

fn lose(cx: &mut Context<'_>, listener: &mut ListenerState<'_>, fault: Fault) {
    if listener.conflict.is_none() {
        let path = listener.path(if fault.reason == "HostnameConflict" { ".hostname" } else { ".protocol" });
        cx.report.error(&listener.owner_key(), Code::ListenerConflict, &path, &fault.message);
        listener.conflict = Some(fault);
    }
}

/// Why two listeners cannot share a socket.
fn clash(holder: &ListenerState<'_>, other: &ListenerState<'_>) -> Option<Fault> {
    let who = || format!("listener {} of {}", holder.name.section, holder.owner_key());
    let port = other.spec.port;
    if holder.speaks.family() != other.speaks.family() {
        let protocol = holder.spec.protocol.as_str();
        return Some(Fault::new("ProtocolConflict", format!("port {port} is taken by {} for {protocol}", who())));
    }
    if holder.hostname != other.hostname {
        return None;
    }
    Some(match other.speaks.family() {
        Some(Family::Tcp | Family::Udp) => Fault::new("ProtocolConflict", format!("port {port} is taken by {}", who())),
        _ => {
            let hostname = other.hostname.as_deref().unwrap_or("every hostname");
            Fault::new("HostnameConflict", format!("{hostname} on port {port} is taken by {}", who()))
        }
    })
}

/// `OverlappingTLSConfig`: a browser may reuse a connection for a name of another listener (RFC 9113 section 9.1.1),
/// which we answer with 421.
fn overlaps(cx: &mut Context<'_>, wanting: &[usize], listeners: &mut [ListenerState<'_>]) {
    let https: Vec<usize> = wanting
        .iter()
        .copied()
        .filter(|&i| listeners[i].speaks == Speaks::Https && listeners[i].unserved().is_none())
        .collect();
    if https.len() < 2 || https.len() > MAX_COMPARED {
        return;
    }
    for &i in &https {
        let found = https.iter().filter(|&&j| j != i).find_map(|&j| shared_name(&listeners[i], &listeners[j]));
        if let Some(fault) = found
            && listeners[i].overlap.is_none()
        {
            let key = listeners[i].owner_key();
            cx.report.info(&key, Code::OverlappingTls, &listeners[i].path(".hostname"), &fault.message);
            listeners[i].overlap = Some(fault);
        }
    }
}

/// Comparing each with each is quadratic; beyond this many listeners on one port the condition is not worth it.
const MAX_COMPARED: usize = 512;

fn shared_name(own: &ListenerState<'_>, other: &ListenerState<'_>) -> Option<Fault> {
    let who = format!("listener {} of {}", other.name.section, other.owner_key());
    let answers = "requests that arrive on a connection of the other are answered with 421";
    let names = |listener: &ListenerState<'_>, host: Option<&str>| {
        let names = listener.certificates.iter().flat_map(|c| &c.names);
        let host = host.map(str::to_owned);
        host.is_some_and(|host| names.into_iter().any(|name| hosts::covers(name, &host)))
    };
    if names(own, other.hostname.as_deref()) || names(other, own.hostname.as_deref()) {
        return Some(Fault::new(
            "OverlappingCertificates",
            format!("its certificate or that of {who} is good for both: {answers}"),
        ));
    }
    let overlap = match (own.hostname.as_deref(), other.hostname.as_deref()) {
        (Some(a), Some(b)) => hosts::overlap(a, b),
        _ => true,
    };
    overlap.then(|| Fault::new("OverlappingHostnames", format!("its hostname overlaps that of {who}: {answers}")))
}
