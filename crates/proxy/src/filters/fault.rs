//! Fault injection: a delay, then perhaps an abort.

use super::drawn;
use crate::{Body, Response, reply};
use http::StatusCode;
use selvedge_compile::snapshot::Fault;

/// What was done to a request, for its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injected {
    Delay,
    Abort,
}

pub(super) enum Outcome {
    Pass(Option<Injected>),
    Abort(Response),
}

const MILLION: u32 = 1_000_000;

pub(super) async fn inject(fault: &Fault, grpc: bool) -> Outcome {
    let mut injected = None;
    if let Some(delay) = &fault.delay
        && drawn(delay.per_million, MILLION)
    {
        tokio::time::sleep(delay.fixed).await;
        injected = Some(Injected::Delay);
    }
    match &fault.abort {
        Some(abort) if drawn(abort.per_million, MILLION) => Outcome::Abort(match abort.grpc_status {
            Some(code) if grpc => reply::grpc(code, "fault filter abort"),
            _ => {
                let mut response = Response::new(Body::full("fault filter abort"));
                *response.status_mut() = StatusCode::from_u16(abort.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
                response
            }
        }),
        _ => Outcome::Pass(injected),
    }
}
