//! Service ports as places that routes attach to (GAMMA), as listeners are at a gateway.

use super::protocol::Declared;
use crate::{
    Context,
    attach::{Parents, ServicePlaces},
    index,
    policy::{Front, Policies},
    rules::Situation,
};
use selvedge_model::{
    Service,
    core::{ServicePort, TransportProtocol},
};
use std::sync::Arc;

/// A TCP port of a Service.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) service: &'a Arc<Service>,
    pub(crate) port: &'a ServicePort,
    pub(crate) declared: Declared,
}

impl<'a> Place<'a> {
    pub(crate) fn namespace(&self) -> &'a str {
        &self.service.metadata.namespace
    }

    pub(crate) fn name(&self) -> &'a str {
        &self.service.metadata.name
    }
}

/// All of them, by namespace, name and position.
pub(crate) fn all<'a>(cx: &Context<'a>) -> Vec<Place<'a>> {
    let mut places = Vec::with_capacity(cx.index.services().len());
    for service in cx.index.services().iter() {
        for port in service.spec.ports.iter().filter(|p| p.protocol == TransportProtocol::Tcp) {
            let declared = Declared::of(port.app_protocol.as_deref(), port.name.as_deref());
            places.push(Place { service, port, declared });
        }
    }
    places
}

/// Parents of routes, with their places.
pub(crate) fn parents<'a>(places: &[Place<'a>]) -> Parents<'a> {
    let mut parents = ServicePlaces::default();
    for (i, place) in places.iter().enumerate() {
        parents.entry(index::name(&place.service.metadata)).or_default().push(i);
    }
    Parents::of_services(parents)
}

/// What a Service brings by TrafficPolicies to the routes that it is the parent of: it stands where at a gateway the
/// Gateway does.
pub(crate) fn situations(places: &[Place<'_>], policies: &Policies<'_>) -> (Vec<Situation>, Vec<Front>) {
    let mut fronts: Vec<Front> = Vec::new();
    let situations = places.iter().map(|place| {
        let front = policies.service_front(place.namespace(), place.name(), place.port.name.as_deref()).map(|front| {
            fronts.iter().position(|known| *known == front).unwrap_or_else(|| {
                fronts.push(front);
                fronts.len() - 1
            })
        });
        Situation { client: None, front }
    });
    (situations.collect(), fronts)
}
