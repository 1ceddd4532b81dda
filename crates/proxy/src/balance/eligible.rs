//! Who may be picked at all: weight, health, panic, zone.

use crate::{endpoint::LiveEndpoint, health::Summary, outlier::Standing};
use selvedge_compile::snapshot::{LoadBalancing, ZonePreference};
use std::sync::Arc;

pub(super) struct Choice {
    pub(super) near: Vec<Arc<LiveEndpoint>>,
    pub(super) far: Vec<Arc<LiveEndpoint>>,
    /// Ejected, but not known to be unhealthy: for a retry when all others were tried.
    pub(super) spared: Vec<Arc<LiveEndpoint>>,
    pub(super) near_permille: u32,
    pub(super) panic: bool,
    /// Why there is nobody.
    pub(super) reason: String,
}

pub(super) fn choose(endpoints: &[Arc<LiveEndpoint>], config: &LoadBalancing, zone: Option<&str>) -> Choice {
    let mut all: Vec<Arc<LiveEndpoint>> = endpoints.iter().filter(|e| e.weight() > 0).cloned().collect();
    let zone = config.own_zone.as_deref().or(zone).filter(|_| config.zone != ZonePreference::Off);
    let strict = zone.is_some() && config.zone == ZonePreference::Strict;
    let own = |e: &LiveEndpoint| e.zone.as_deref() == zone;
    if strict {
        all.retain(|e| own(e));
    }
    let usable = usable(&all);
    // Those that no check has looked at yet say nothing about how well the cluster is.
    let known = all.iter().filter(|e| e.health.summary() != Summary::Pending).count().max(usable.len());
    if usable.len() * 100 < known * usize::from(config.panic_threshold) {
        // Where so few are left, the survivors would drown: spread over all, and hope that the checks are wrong.
        let reason = String::new();
        return Choice { near: all, far: Vec::new(), spared: Vec::new(), near_permille: 1000, panic: true, reason };
    }
    let ejected = |e: &&Arc<LiveEndpoint>| !e.is_usable() && e.health.summary() != Summary::Unhealthy;
    let spared = all.iter().filter(ejected).cloned().collect();
    let reason = if usable.is_empty() { reason(endpoints, &all, strict, zone) } else { String::new() };
    if config.zone != ZonePreference::Prefer {
        return Choice { near: usable, far: Vec::new(), spared, near_permille: 1000, panic: false, reason };
    }
    let (near, far, near_permille) = by_distance(&all, usable, config, zone);
    Choice { near, far, spared, near_permille, panic: false, reason }
}

/// How far away an endpoint is: 0 is the own zone.
fn distance(endpoint: &LiveEndpoint, zone: Option<&str>) -> u8 {
    match zone {
        Some(_) if endpoint.zone.as_deref() == zone => 0,
        Some(_) => endpoint.priority().max(1),
        None => endpoint.priority(),
    }
}

/// The nearest that are enough to be preferred, who helps out, and how much of the traffic (in a thousand) the nearest
/// keep: all of it while enough of them are healthy. The next nearest help out, if they are healthy enough, else all others.
fn by_distance(
    all: &[Arc<LiveEndpoint>],
    usable: Vec<Arc<LiveEndpoint>>,
    config: &LoadBalancing,
    zone: Option<&str>,
) -> (Vec<Arc<LiveEndpoint>>, Vec<Arc<LiveEndpoint>>, u32) {
    let mut distances: Vec<u8> = usable.iter().map(|e| distance(e, zone)).collect();
    distances.sort_unstable();
    distances.dedup();
    let weight = |list: &[Arc<LiveEndpoint>], from: Option<u8>, to: u8| -> u64 {
        let within =
            |e: &&Arc<LiveEndpoint>| distance(e, zone) <= to && from.is_none_or(|from| distance(e, zone) > from);
        list.iter().filter(within).map(|e| u64::from(e.weight())).sum()
    };
    // The share of all traffic that those within a range of distances can take.
    let takes = |from: Option<u8>, to: u8| -> u32 {
        let enough = weight(all, from, to) * u64::from(config.min_healthy_percent);
        let share = (weight(&usable, from, to) * 100_000).checked_div(enough).unwrap_or(1000);
        u32::try_from(share.min(1000)).unwrap_or(1000)
    };
    let count = |to: u8| usable.iter().filter(|e| distance(e, zone) <= to).count();
    let wanted = usize::try_from(config.min_endpoints.max(1)).unwrap_or(usize::MAX);
    let Some(edge) = distances.iter().copied().find(|&to| count(to) >= wanted) else {
        return (usable, Vec::new(), 1000);
    };
    let next = distances.iter().copied().find(|&to| to > edge);
    let Some(next) = next else { return (usable, Vec::new(), 1000) };
    // Where nobody is left in the own zone, its size counts no more.
    let near_permille = takes(distances[0].checked_sub(1), edge);
    let limit = if takes(Some(edge), next) == 1000 { next } else { u8::MAX };
    let (near, far): (Vec<_>, Vec<_>) = usable.into_iter().partition(|e| distance(e, zone) <= edge);
    let far = far.into_iter().filter(|e| distance(e, zone) <= limit).collect();
    (near, far, near_permille)
}

/// The healthy ones; while nobody is known to be healthy, those that no check has looked at yet.
fn usable(all: &[Arc<LiveEndpoint>]) -> Vec<Arc<LiveEndpoint>> {
    let usable = || all.iter().filter(|e| e.is_usable());
    let proven: Vec<_> = usable().filter(|e| e.health.summary() != Summary::Pending).cloned().collect();
    if proven.is_empty() { usable().cloned().collect() } else { proven }
}

fn reason(endpoints: &[Arc<LiveEndpoint>], all: &[Arc<LiveEndpoint>], strict: bool, zone: Option<&str>) -> String {
    if endpoints.is_empty() {
        return "has no endpoints".to_owned();
    }
    let place = if strict { format!(" in zone {}", zone.unwrap_or_default()) } else { String::new() };
    if all.is_empty() {
        return format!("has {} endpoints, none{place} with a weight above zero", endpoints.len());
    }
    let unhealthy = all.iter().filter(|e| e.health.summary() == Summary::Unhealthy).count();
    let ejected = all.iter().filter(|e| e.outlier.standing() != Standing::Active).count();
    match (unhealthy, ejected) {
        (_, 0) => format!("has {} endpoints{place}, all unhealthy", all.len()),
        (0, _) => format!("has {} endpoints{place}, all ejected as outliers", all.len()),
        _ => format!("has {} endpoints{place}, {unhealthy} unhealthy and {ejected} ejected as outliers", all.len()),
    }
}
