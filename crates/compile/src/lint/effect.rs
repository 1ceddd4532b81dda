//! Settings of TrafficPolicies that do nothing without another setting, which no policy has: what a policy leaves out
//! it may inherit, so that only all policies together tell.

use super::key;
use crate::report::Report;
use selvedge_model::{
    Code, Kind, Resources,
    traffic::{AccessLogFormat, Algorithm, TrafficSettings},
};

/// A setting that needs another: where it is, whether it is there, whether what it needs is, and what is to be done.
struct Need {
    path: &'static str,
    set: fn(&TrafficSettings) -> bool,
    met: fn(&TrafficSettings) -> bool,
    message: &'static str,
}

const NEEDS: [Need; 8] = [
    Need {
        path: "spec.hedging",
        set: |it| it.hedging.as_ref().is_some_and(|hedging| hedging.delay.is_none()),
        met: |it| it.hedging.as_ref().is_some_and(|hedging| hedging.delay.is_some()),
        message: "nothing is hedged without `delay`, which no TrafficPolicy sets; say after which time a copy is sent",
    },
    // Without a delay of its own it switches off what it would inherit.
    Need {
        path: "spec.hedging.maxAttempts",
        set: |it| it.hedging.as_ref().is_some_and(|own| own.delay.is_some() && own.max_attempts == Some(1)),
        met: |it| it.hedging.as_ref().and_then(|own| own.max_attempts).is_some_and(|most| most > 1),
        message: "the first try is counted, so that 1 never sends a copy, and no TrafficPolicy sets more; write 2 or more, or \
                  remove `hedging`",
    },
    // Where some policy sets a time, 0s takes it away again. Beside `backendRequest` it is judged by the model.
    Need {
        path: "spec.retry.perTryTimeout",
        set: |it| per_try(it, false) && !tries_end(it),
        met: |it| per_try(it, true),
        message: "0s is no limit for a try, and takes away that of a route that sets `timeouts.backendRequest`; write how long \
                  a try may take, or remove it",
    },
    Need {
        path: "spec.loadBalancing.algorithm",
        set: |it| hashes(it) && it.load_balancing.as_ref().is_some_and(|own| own.hash_keys.is_none()),
        met: |it| it.load_balancing.as_ref().is_some_and(|own| own.hash_keys.is_some()),
        message: "without `hashKeys`, which no TrafficPolicy sets, every request goes to a random endpoint; name a key",
    },
    Need {
        path: "spec.loadBalancing.hashKeys",
        set: |it| it.load_balancing.as_ref().is_some_and(|own| own.algorithm.is_none() && own.hash_keys.is_some()),
        met: hashes,
        message: "hash keys have no effect without algorithm RingHash or Maglev, which no TrafficPolicy sets; write one",
    },
    Need {
        path: "spec.loadBalancing.slowStart",
        set: |it| slow_start(it, false),
        met: |it| slow_start(it, true),
        message: "there is no slow start without `window`, which no TrafficPolicy sets; say how long it takes",
    },
    Need {
        path: "spec.listener.forwardedHeader",
        set: |it| it.listener.as_ref().is_some_and(|own| own.forwarded_header.is_some()),
        met: trusts,
        message: "nobody is trusted to name clients in it; set `trustedHops` or `trustedCidrs`",
    },
    Need {
        path: "spec.telemetry.accessLog.template",
        set: |it| {
            log_format(it, None)
                && it
                    .telemetry
                    .as_ref()
                    .and_then(|own| own.access_log.as_ref())
                    .is_some_and(|log| log.template.is_some())
        },
        met: |it| log_format(it, Some(AccessLogFormat::Text)),
        message: "the template has no effect, since the format is Json unless it is told; write `format: Text`",
    },
];

pub(super) fn all(resources: &Resources, report: &mut Report) {
    let policies = resources.traffic_policies();
    for need in &NEEDS {
        if policies.iter().any(|policy| (need.met)(&policy.spec.settings)) {
            continue;
        }
        for policy in policies.iter().filter(|policy| (need.set)(&policy.spec.settings)) {
            report.warning(&key(Kind::TrafficPolicy, &policy.metadata), Code::NoEffect, need.path, need.message);
        }
    }
    retries(resources, report);
}

/// Lists of what is retried beside `attempts: 0`, unless a policy or route that inherits them sets more. Without lists it
/// switches off what is retried otherwise.
fn retries(resources: &Resources, report: &mut Report) {
    let attempts = |it: &TrafficSettings| it.retry.as_ref().and_then(|own| own.attempts);
    let policies = resources.traffic_policies();
    let mut rules = resources.http_routes().iter().flat_map(|route| route.spec.rules.iter());
    if policies.iter().any(|policy| attempts(&policy.spec.settings).is_some_and(|most| most > 0))
        || rules.any(|rule| rule.retry.as_ref().and_then(|own| own.attempts).is_some_and(|most| most > 0))
    {
        return;
    }
    for policy in policies.iter().filter(|policy| attempts(&policy.spec.settings) == Some(0)) {
        let Some(own) = &policy.spec.settings.retry else { continue };
        let named = [
            ("codes", own.codes.as_ref().is_some_and(|all| !all.is_empty())),
            ("retryOn", own.retry_on.as_ref().is_some_and(|all| !all.is_empty())),
        ];
        for (name, _) in named.into_iter().filter(|(_, named)| *named) {
            let message = "with `attempts: 0` none of them is retried, and no TrafficPolicy or HTTPRoute sets more attempts; \
                           write how many, or remove the list";
            let path = format!("spec.retry.{name}");
            report.warning(&key(Kind::TrafficPolicy, &policy.metadata), Code::NoEffect, &path, message);
        }
    }
}

/// Whether it limits the time of a try, or says that nothing does.
fn per_try(it: &TrafficSettings, limited: bool) -> bool {
    it.retry.as_ref().and_then(|own| own.per_try_timeout).is_some_and(|limit| limit.is_zero() != limited)
}

fn tries_end(it: &TrafficSettings) -> bool {
    it.timeouts.as_ref().and_then(|own| own.backend_request).is_some_and(|limit| !limit.is_zero())
}

fn hashes(it: &TrafficSettings) -> bool {
    let algorithm = it.load_balancing.as_ref().and_then(|own| own.algorithm);
    matches!(algorithm, Some(Algorithm::RingHash | Algorithm::Maglev))
}

fn slow_start(it: &TrafficSettings, window: bool) -> bool {
    let own = it.load_balancing.as_ref().and_then(|own| own.slow_start.as_ref());
    own.is_some_and(|own| own.window.is_some() == window)
}

fn trusts(it: &TrafficSettings) -> bool {
    it.listener.as_ref().is_some_and(|own| {
        own.trusted_hops.is_some_and(|hops| hops > 0) || own.trusted_cidrs.as_ref().is_some_and(|all| !all.is_empty())
    })
}

fn log_format(it: &TrafficSettings, format: Option<AccessLogFormat>) -> bool {
    it.telemetry.as_ref().and_then(|own| own.access_log.as_ref()).is_some_and(|log| log.format == format)
}
