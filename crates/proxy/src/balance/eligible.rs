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

/// The own zone keeps all of its traffic while this many percent of its capacity suffice: with 140, until less than
/// 71 % of it is healthy (Envoy's overprovisioning factor).
const OVERPROVISIONING_PERCENT: u64 = 140;

pub(super) fn choose(endpoints: &[Arc<LiveEndpoint>], config: &LoadBalancing, zone: Option<&str>) -> Choice {
    let mut all: Vec<Arc<LiveEndpoint>> = endpoints.iter().filter(|e| e.weight() > 0).cloned().collect();
    let zone = zone.filter(|_| config.zone != ZonePreference::Off);
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
    let prefers = zone.is_some() && config.zone == ZonePreference::Prefer;
    if !prefers || !usable.iter().any(|e| own(e)) {
        return Choice { near: usable, far: Vec::new(), spared, near_permille: 1000, panic: false, reason };
    }
    let capacity: u64 = all.iter().filter(|e| own(e)).map(|e| u64::from(e.weight())).sum();
    let (near, far): (Vec<_>, Vec<_>) = usable.into_iter().partition(|e| own(e));
    let healthy: u64 = near.iter().map(|e| u64::from(e.weight())).sum();
    let near_permille = if far.is_empty() {
        1000
    } else {
        (healthy * OVERPROVISIONING_PERCENT * 10 / capacity.max(1)).min(1000) as u32
    };
    Choice { near, far, spared, near_permille, panic: false, reason }
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
