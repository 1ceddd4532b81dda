//! Status of Gateways and ListenerSets, once everything about their listeners is known.

use crate::{
    Context,
    gateways::{GatewayState, SetState},
    index,
    listeners::ListenerState,
    status::{
        Condition, Conditions, Fault, GatewayStatus, ListenerSetStatus, ListenerStatus, ResourceStatus, SupportedKind,
    },
};
use selvedge_model::{Kind, ResourceKey};

/// Writes the status of every Gateway and ListenerSet.
pub(crate) fn write(
    cx: &mut Context<'_>,
    gateways: &[GatewayState<'_>],
    sets: &[SetState<'_>],
    all: &[ListenerState<'_>],
) {
    for (g, gateway) in gateways.iter().enumerate() {
        let own: Vec<&ListenerState<'_>> = all.iter().filter(|l| l.gateway == g && l.set.is_none()).collect();
        let mut attached_listener_sets = 0;
        let mut set_is_served = false;
        for (s, set) in sets.iter().enumerate().filter(|(_, set)| set.gateway == g) {
            let listeners: Vec<&ListenerState<'_>> = all.iter().filter(|l| l.set == Some(s)).collect();
            attached_listener_sets += u32::from(set.rejected.is_none() && listeners.iter().any(|l| accepted(l)));
            set_is_served |= set.rejected.is_none() && listeners.iter().any(|l| l.unserved().is_none());
            let (namespace, name) = index::name(&set.set.metadata);
            let key = ResourceKey::new(Kind::ListenerSet, namespace, name);
            cx.status.set(key, ResourceStatus::ListenerSet(listener_set(set, gateway, &listeners)));
        }
        let conditions = gateway_conditions(gateway, &own, set_is_served);
        let status = GatewayStatus {
            addresses: gateway.addresses.clone(),
            conditions,
            listeners: own.iter().map(|l| listener(l, gateway)).collect(),
            attached_listener_sets,
        };
        cx.status.set(gateway.key(), ResourceStatus::Gateway(status));
    }
}

fn accepted(listener: &ListenerState<'_>) -> bool {
    listener.rejected.is_none() && listener.conflict.is_none()
}

fn gateway_conditions(gateway: &GatewayState<'_>, own: &[&ListenerState<'_>], set_is_served: bool) -> Vec<Condition> {
    let make = Conditions(gateway.gateway.metadata.generation);
    let invalid = invalid_listeners(own);
    let accepted = match (&gateway.rejected, &invalid) {
        (Some(fault), _) => make.no("Accepted", fault),
        (None, Some(fault)) if own.iter().any(|l| self::accepted(l)) => make.yes_but("Accepted", fault),
        (None, Some(fault)) => make.no("Accepted", fault),
        (None, None) => make.yes("Accepted", "Accepted"),
    };
    let served = set_is_served || own.iter().any(|l| l.unserved().is_none());
    let programmed = if !accepted.status {
        make.no("Programmed", &Fault::new("Invalid", accepted.message.clone()))
    } else if let Some(fault) = &gateway.unusable {
        make.no("Programmed", fault)
    } else if !served {
        make.no("Programmed", &Fault::new("Invalid", "no listener can be served"))
    } else {
        make.yes("Programmed", "Programmed")
    };
    let mut conditions = vec![accepted, programmed, make.check("ResolvedRefs", gateway.refs.as_ref())];
    if gateway.insecure_frontend {
        let message = "clients without a valid certificate are let in (AllowInsecureFallback)";
        conditions.push(make.yes_but("InsecureFrontendValidationMode", &Fault::new("ConfigurationChanged", message)));
    }
    conditions
}

fn invalid_listeners(own: &[&ListenerState<'_>]) -> Option<Fault> {
    let names: Vec<&str> = own.iter().filter(|l| !accepted(l)).map(|l| l.name.section.as_str()).collect();
    (!names.is_empty())
        .then(|| Fault::new("ListenersNotValid", format!("listeners that are not accepted: {}", names.join(", "))))
}

fn listener_set(set: &SetState<'_>, gateway: &GatewayState<'_>, own: &[&ListenerState<'_>]) -> ListenerSetStatus {
    let make = Conditions(set.set.metadata.generation);
    let fault = set.rejected.clone();
    let (accepted, programmed) = match (fault, invalid_listeners(own)) {
        (Some(fault), _) => (make.no("Accepted", &fault), make.no("Programmed", &fault)),
        (None, Some(fault)) if own.iter().any(|l| self::accepted(l)) => {
            (make.yes_but("Accepted", &fault), programmed(make, own))
        }
        (None, Some(fault)) => (make.no("Accepted", &fault), make.no("Programmed", &fault)),
        (None, None) => (make.yes("Accepted", "Accepted"), programmed(make, own)),
    };
    // A ListenerSet that the Gateway does not take has no listeners to speak of.
    let listeners =
        if set.rejected.is_some() { Vec::new() } else { own.iter().map(|l| listener(l, gateway)).collect() };
    ListenerSetStatus { conditions: vec![accepted, programmed], listeners }
}

fn programmed(make: Conditions, own: &[&ListenerState<'_>]) -> Condition {
    if own.iter().any(|l| l.unserved().is_none()) {
        make.yes("Programmed", "Programmed")
    } else {
        make.no("Programmed", &Fault::new("Invalid", "no listener can be served"))
    }
}

fn listener(listener: &ListenerState<'_>, gateway: &GatewayState<'_>) -> ListenerStatus {
    let generation = match listener.set {
        None => gateway.gateway.metadata.generation,
        Some(_) => listener.owner.generation,
    };
    let make = Conditions(generation);
    let accepted = listener.conflict.as_ref().or(listener.rejected.as_ref());
    let parent = gateway.rejected.as_ref().map(|f| Fault::new("Invalid", f.message.clone()));
    let unserved = listener.unserved().or(parent);
    let conflicted = match &listener.conflict {
        Some(fault) => make.yes_but("Conflicted", fault),
        None => make.no("Conflicted", &Fault::new("NoConflicts", "")),
    };
    let mut conditions = vec![
        make.check("Accepted", accepted),
        make.check("Programmed", unserved.as_ref()),
        make.check("ResolvedRefs", listener.refs.as_ref()),
        conflicted,
    ];
    if let Some(fault) = &listener.overlap {
        conditions.push(make.yes_but("OverlappingTLSConfig", fault));
    }
    ListenerStatus {
        name: listener.spec.name.clone(),
        supported_kinds: listener.kinds.iter().map(|k| SupportedKind { group: k.group(), kind: k.name() }).collect(),
        attached_routes: listener.attached,
        conditions,
    }
}
