//! Whether a try is followed by another.

use super::{Attempt, SendFailure};
use crate::{codec::Progress, error::Kind, request::is_idempotent};
use http::Method;
use rand::Rng;
use selvedge_compile::snapshot::{BUILT_IN_ATTEMPTS, Retry, RetryBudget};
use std::time::Duration;

/// Replays of requests that never reached an upstream are not held back, but must not multiply an outage either.
pub(super) const BUILT_IN_BUDGET: RetryBudget = RetryBudget { percent: 20, min_per_second: 10, min_concurrency: 0 };

/// Why a request is sent again that died on a connection of its own.
const RESET: &str = "reset";

/// What to do after a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its answer (or error) is the request's.
    Done,
    Retry(&'static str),
}

/// The retries one request still has.
pub(super) struct Wish<'p> {
    policy: Option<&'p Retry>,
    used: u32,
    /// Requests that died on a new connection, and were sent again without any policy.
    resets: u32,
    /// What the last response asked for with `Retry-After`.
    asked: Option<Duration>,
}

impl<'p> Wish<'p> {
    pub(super) fn new(policy: Option<&'p Retry>) -> Self {
        Self { policy, used: 0, resets: 0, asked: None }
    }

    pub(super) fn retried(&self) -> bool {
        self.used > 0
    }

    /// Judges a try and counts the retry that follows.
    pub(super) fn judge(&mut self, attempt: &Attempt, method: &Method, replayable: bool, grpc: bool) -> Verdict {
        let reason = match attempt {
            _ if !replayable => None,
            Ok((answer, _)) => self.by_response(&answer.response, method, grpc),
            Err((failure, _)) => self.by_failure(failure, method),
        };
        match reason {
            Some(reason) => {
                self.used += 1;
                self.resets += u32::from(reason == RESET);
                self.asked = attempt.as_ref().ok().and_then(|(answer, _)| retry_after(&answer.response));
                Verdict::Retry(reason)
            }
            None => Verdict::Done,
        }
    }

    /// Whether a response that would be retried is passed on since no retry is left.
    pub(super) fn exhausted(&self, response: &crate::Response) -> bool {
        self.policy.is_some_and(|p| self.used >= p.attempts && p.codes.contains(&response.status().as_u16()))
    }

    fn by_response(&self, response: &crate::Response, method: &Method, grpc: bool) -> Option<&'static str> {
        let policy = self.policy.filter(|p| self.used < p.attempts)?;
        if !(repeatable(Some(policy), method) || grpc && policy.methods.is_none()) {
            return None;
        }
        if policy.codes.contains(&response.status().as_u16()) {
            return Some("status");
        }
        let code = response.headers().get("grpc-status")?.to_str().ok()?.parse::<u8>().ok()?;
        (grpc && policy.grpc_codes.contains(&code)).then_some("grpc-status")
    }

    fn by_failure(&self, failure: &SendFailure, method: &Method) -> Option<&'static str> {
        // Whose fault it is not, is not helped by another try.
        if failure.error.side == crate::error::Side::Downstream {
            return None;
        }
        let configured = self.policy.filter(|p| self.used < p.attempts);
        let built_in = self.used < BUILT_IN_ATTEMPTS.max(self.policy.map_or(0, |p| p.attempts));
        let safe = repeatable(self.policy, method);
        match (failure.error.kind, failure.progress) {
            (Kind::NoEndpoint | Kind::Overflow | Kind::TooLarge { .. } | Kind::Cancelled, _) => None,
            (Kind::Denied | Kind::Unproven(_), _) => None,
            (Kind::Refused, _) => built_in.then_some("refused"),
            (Kind::Timeout, Progress::Unsent) | (Kind::Connect | Kind::ConnectTimeout | Kind::Tls, _) => {
                built_in.then_some("connect-failure")
            }
            (_, Progress::Unsent) => built_in.then_some("unsent"),
            (Kind::Timeout, _) => (safe && configured.is_some_and(|p| p.on.timeout)).then_some("timeout"),
            // The peer may have closed the idle connection just as we sent on it.
            (_, Progress::Sent) if failure.reused && safe => built_in.then_some("reset-reused"),
            // It may close a new connection just so, when it is told to end (RFC 9110 section 9.2.2 allows the retry). Once:
            // a request that makes its upstream crash must not go round all endpoints.
            (_, Progress::Sent) if safe && built_in && self.resets == 0 => Some(RESET),
            (_, Progress::Sent) => (safe && configured.is_some_and(|p| p.on.reset)).then_some(RESET),
            (_, Progress::Answered) => None,
        }
    }

    /// The pause before the retry that [`Wish::judge`] has just granted: exponential with full jitter,
    /// or what the upstream asked for, as far as the policy's longest pause goes.
    pub(super) fn backoff(&self) -> Option<Duration> {
        let policy = self.policy?;
        if let Some(asked) = self.asked {
            return Some(asked.min(policy.backoff_max)).filter(|pause| !pause.is_zero());
        }
        let ceiling =
            policy.backoff_base.saturating_mul(1 << (self.used.saturating_sub(1)).min(16)).min(policy.backoff_max);
        let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
        (nanos > 0).then(|| Duration::from_nanos(rand::rng().next_u64() % nanos))
    }
}

/// Whether a request may be sent again once an upstream may have seen it.
fn repeatable(policy: Option<&Retry>, method: &Method) -> bool {
    match policy.and_then(|policy| policy.methods.as_ref()) {
        Some(methods) => methods.contains(method),
        None => is_idempotent(method),
    }
}

/// `Retry-After` in seconds; dates are for people.
fn retry_after(response: &crate::Response) -> Option<Duration> {
    let value = response.headers().get(http::header::RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(methods: Option<&[Method]>) -> Retry {
        Retry {
            attempts: 1,
            codes: vec![503],
            on: Default::default(),
            methods: methods.map(<[Method]>::to_vec),
            per_try_timeout: None,
            backoff_base: Duration::ZERO,
            backoff_max: Duration::ZERO,
            budget: BUILT_IN_BUDGET,
            max_body_bytes: 0,
            grpc_codes: vec![14],
        }
    }

    /// Whether an answer of 503 is retried.
    fn retried(policy: &Retry, method: &Method, grpc: bool) -> bool {
        let mut response = crate::Response::new(crate::Body::empty());
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        Wish::new(Some(policy)).by_response(&response, method, grpc).is_some()
    }

    #[test]
    fn the_list_of_methods_is_exact() {
        let default = policy(None);
        assert!(retried(&default, &Method::PUT, false) && !retried(&default, &Method::POST, false));
        assert!(retried(&default, &Method::POST, true), "gRPC is always POST");
        let listed = policy(Some(&[Method::GET, Method::POST]));
        let all = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
        assert_eq!(all.map(|method| retried(&listed, &method, false)), [true, true, false, false, false]);
        assert!(!retried(&policy(Some(&[Method::GET])), &Method::POST, true));
        assert!(!repeatable(Some(&policy(Some(&[]))), &Method::GET), "an empty list allows none");
    }
}
