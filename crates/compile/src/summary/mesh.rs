//! What a proxy beside workloads serves, as text.

use super::{L4, write_access, write_http};
use crate::snapshot::{
    Arrive, Destination, Destinations, DnsNames, Find, HttpListener, Inbound, InboundPort, L4Route, Netns, Outbound,
    Peer, Snapshot, Speaks, Unknown, Via,
};
use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    net::SocketAddr,
    sync::Arc,
};

pub(super) fn outbound(out: &mut String, snapshot: &Snapshot, it: &Outbound) -> fmt::Result {
    let find = match &it.find {
        Find::OriginalDestination => "by original destination".to_owned(),
        Find::HttpProxy => "as HTTP proxy".to_owned(),
        Find::Fixed(to) => format!("to {}", to.name),
    };
    let unknown = match it.unknown {
        Unknown::Pass => "passed on",
        Unknown::Refuse => "refused",
    };
    let identity = it.identity.as_ref().map_or("nobody", |id| id.as_str());
    writeln!(out, "    outbound ({}) {find} as {identity}, unknown {unknown}", it.name)
        .and_then(|()| fixed(out, snapshot, &it.find))
}

fn fixed(out: &mut String, snapshot: &Snapshot, find: &Find) -> fmt::Result {
    match find {
        Find::Fixed(to) if to.http.is_none() && to.tcp.as_ref().is_some_and(|t| t.split.is_none()) => {
            destination(out, snapshot, to)
        }
        _ => Ok(()),
    }
}

/// What can be reached, each with the ways to name it. Written once for all listeners of a workload.
pub(super) fn destinations(out: &mut String, snapshot: &Snapshot, all: &Destinations) -> fmt::Result {
    for (to, ways) in by_destination(all) {
        writeln!(out, "      {} = {}", ways.join(" "), to.name)?;
        destination(out, snapshot, to)?;
    }
    Ok(())
}

/// Every destination once, with addresses and names, in the order of destinations' names.
pub(crate) fn by_destination(all: &Destinations) -> Vec<(&Arc<Destination>, Vec<String>)> {
    let mut found: BTreeMap<(&str, usize), (&Arc<Destination>, Vec<String>)> = BTreeMap::new();
    let addresses = all.addresses.iter().map(|((ip, port), to)| (SocketAddr::new(*ip, *port).to_string(), to));
    let names = all.names.iter().map(|((name, port), to)| (format!("{name}:{port}"), to));
    // The address only tells apart what has one name.
    for (way, to) in addresses.chain(names) {
        let key = (to.name.as_str(), Arc::as_ptr(to) as usize);
        found.entry(key).or_insert_with(|| (to, Vec::new())).1.push(way);
    }
    let mut list: Vec<_> = found.into_values().collect();
    list.sort_by(|a, b| (&a.0.name, &a.1).cmp(&(&b.0.name, &b.1)));
    list
}

fn destination(out: &mut String, snapshot: &Snapshot, to: &Destination) -> fmt::Result {
    served(out, snapshot, to.speaks, to.http.as_ref(), to.tcp.as_ref(), "to where it was going")
}

fn served(
    out: &mut String,
    snapshot: &Snapshot,
    speaks: Speaks,
    http: Option<&Arc<HttpListener>>,
    tcp: Option<&Arc<L4Route>>,
    otherwise: &str,
) -> fmt::Result {
    if let Some(http) = http {
        writeln!(out, "        {}", if speaks == Speaks::Http { "http" } else { "http if the client speaks it" })?;
        let mut text = String::new();
        write_http(&mut text, snapshot, http)?;
        // Any host: the line that says so says nothing.
        for line in text.lines().filter(|line| line.trim() != "*") {
            writeln!(out, "  {line}")?;
        }
    }
    match tcp {
        Some(route) => writeln!(out, "        bytes {}", L4(snapshot, route)),
        None if http.is_none() => writeln!(out, "        bytes {otherwise}"),
        None => Ok(()),
    }
}

pub(super) fn inbound(out: &mut String, snapshot: &Snapshot, it: &Inbound) -> fmt::Result {
    let arrive = match it.arrive {
        Arrive::OriginalDestination => "by original destination".to_owned(),
        Arrive::Hbone => "by HBONE".to_owned(),
        Arrive::Port(port) => format!("for port {port}"),
    };
    let identity = it.identity.as_ref().map_or("nobody", |id| id.as_str());
    let addresses: Vec<String> = it.addresses.iter().map(ToString::to_string).collect();
    writeln!(out, "    inbound ({}) {arrive} as {identity} for {}", it.name, addresses.join(" "),)?;
    write_access(out, Some(&it.access), "      ")?;
    for (port, served) in &it.ports {
        inbound_port(out, snapshot, &port.to_string(), served)?;
    }
    inbound_port(out, snapshot, "other", &it.other)
}

fn inbound_port(out: &mut String, snapshot: &Snapshot, name: &str, port: &InboundPort) -> fmt::Result {
    writeln!(out, "      {name} {:?}", port.mtls)?;
    served(out, snapshot, port.speaks, port.http.as_ref(), port.tcp.as_ref(), "to the original destination")
}

pub(super) fn dns(out: &mut String, all: &BTreeMap<Netns, Arc<DnsNames>>) -> fmt::Result {
    for (netns, dns) in all {
        write!(out, "  names for {:?}, search {}", dns.ttl, dns.search.join(" "))?;
        match netns {
            Netns(0) => writeln!(out)?,
            Netns(number) => writeln!(out, " in network namespace {number}")?,
        }
    }
    // The same everywhere.
    for (name, addresses) in all.values().next().into_iter().flat_map(|dns| dns.names.iter()) {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        writeln!(out, "    {name} {}", addresses.join(" "))?;
    }
    Ok(())
}

/// `spiffe://… by HBONE at 10.0.0.1:15008`.
pub(crate) struct PeerText<'a>(pub(crate) &'a Peer);

impl fmt::Display for PeerText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.via {
            Via::Hbone(address) => write!(f, "{} by HBONE at {address}", self.0.identity),
            Via::MutualTls(address) => write!(f, "{} by mutual TLS at {address}", self.0.identity),
        }
    }
}
