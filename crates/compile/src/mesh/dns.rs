//! Names that local workloads look up.

use super::{
    destinations::{World, is_headless},
    members, settings,
};
use crate::{
    Context, LocalWorkload,
    snapshot::{DnsNames, Netns},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// What is resolved in each network namespace: the same names everywhere, but those who ask write them as their own
/// namespace allows.
pub(super) fn all(cx: &Context<'_>, world: &World<'_, '_>, locals: &[LocalWorkload]) -> BTreeMap<Netns, Arc<DnsNames>> {
    let domain = cx.mesh.spec.cluster_domain();
    let mut homes: BTreeMap<Netns, BTreeSet<&str>> = BTreeMap::new();
    for local in locals {
        homes.entry(local.netns).or_default().insert(&local.namespace);
    }
    let names = Arc::new(if homes.is_empty() { BTreeMap::new() } else { names(cx, world) });
    let ttl = settings::dns_ttl(cx.mesh.spec);
    let one = |(netns, homes): (Netns, BTreeSet<&str>)| {
        let mut search: Vec<String> = homes.into_iter().map(|home| format!("{home}.svc.{domain}")).collect();
        search.extend([format!("svc.{domain}"), domain.to_owned()]);
        (netns, Arc::new(DnsNames { names: Arc::clone(&names), search, ttl }))
    };
    homes.into_iter().map(one).collect()
}

/// Addresses of Services (virtual ones, or of endpoints for headless Services) and of ExternalServices.
fn names(cx: &Context<'_>, world: &World<'_, '_>) -> BTreeMap<String, Vec<IpAddr>> {
    let domain = cx.mesh.spec.cluster_domain();
    let mut names: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for (place, addresses) in world.places.iter().zip(&world.addresses) {
        let full = format!("{}.{}.svc.{domain}", place.name(), place.namespace());
        if is_headless(place) {
            for (host, ip) in endpoints(cx, place.service) {
                if let Some(host) = host {
                    add(&mut names, format!("{host}.{full}"), &[ip]);
                }
                add(&mut names, full.clone(), &[ip]);
            }
        }
        add(&mut names, full, addresses);
    }
    for host in world.externals.iter().filter(|host| !host.host.starts_with("*.")) {
        add(&mut names, host.host.clone(), &host.addresses);
    }
    names
}

fn add(names: &mut BTreeMap<String, Vec<IpAddr>>, name: String, addresses: &[IpAddr]) {
    let list = names.entry(name).or_default();
    for ip in addresses {
        if !list.contains(ip) {
            list.push(*ip);
        }
    }
}

/// Addresses behind a headless Service, with hostnames where slices give them.
fn endpoints(cx: &Context<'_>, service: &selvedge_model::Service) -> Vec<(Option<String>, IpAddr)> {
    let mut found: Vec<(Option<String>, IpAddr)> = Vec::new();
    let slices = cx.index.slices(&service.metadata.namespace, &service.metadata.name).unwrap_or_default();
    for endpoint in slices.iter().flat_map(|slice| &slice.endpoints) {
        let used = endpoint.conditions.is_ready() || service.spec.publish_not_ready_addresses;
        let ip = endpoint.addresses.first().and_then(|text| text.parse().ok());
        found.extend(ip.filter(|_| used).map(|ip| (endpoint.hostname.clone(), ip)));
    }
    for workload in cx.mesh.members.of_service(service) {
        found.extend(members::addresses(workload).into_iter().map(|ip| (None, ip)));
    }
    found
}
