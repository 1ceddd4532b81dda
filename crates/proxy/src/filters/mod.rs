//! Filters: an exhaustive list, one file each, run in declared order on requests and in reverse on responses.

mod compression;
mod cors;
mod direct;
mod fault;
mod headers;
mod redirect;
mod rewrite;

use crate::{Request, Response};
pub use fault::Injected;
use rand::Rng;
use selvedge_compile::snapshot::{Filter, Mirror};
use selvedge_wire::grpc::is_grpc;
use smallvec::SmallVec;

/// What filters may know about a request besides the message itself.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// `http` or `https`, as the client sees it.
    pub scheme: &'a str,
    /// Normalised host of the request, without port.
    pub host: &'a str,
    /// Port of the listener (as in the Gateway).
    pub listener_port: u16,
    /// Length of the path that the rule's PathPrefix matched; `None` when it matched otherwise.
    pub prefix: Option<usize>,
}

/// Whether a request is a preflight that these filters answer, whatever comes with it.
pub fn answers_preflight<B>(filters: &[Filter], request: &http::Request<B>) -> bool {
    // A filter that changes headers first may make it something else.
    let first = filters.iter().find(|filter| matches!(filter, Filter::Cors(_) | Filter::RequestHeaders(_)));
    matches!(first, Some(Filter::Cors(_))) && cors::is_preflight(request)
}

/// The filters a request has passed, so that its response passes the same ones in reverse.
#[derive(Default)]
pub struct Chain<'r> {
    passed: SmallVec<[Step<'r>; 4]>,
    /// Mirrors to send a copy of the request to, as it leaves the last filter.
    pub mirrors: SmallVec<[&'r Mirror; 1]>,
    /// An injected delay or abort: for the record.
    pub fault: Option<Injected>,
    /// Request body limit in bytes.
    pub body_limit: Option<u64>,
}

enum Step<'r> {
    Plain(&'r Filter),
    Cors(cors::Decision<'r>),
    Compression(compression::Decision<'r>),
}

impl<'r> Chain<'r> {
    /// Passes a request through `filters`. A filter that answers ends it; what was passed stays remembered.
    pub async fn on_request(
        &mut self,
        filters: &'r [Filter],
        facts: &Facts<'_>,
        request: &mut Request,
    ) -> Result<(), Response> {
        for filter in filters {
            match filter {
                Filter::RequestHeaders(change) => headers::apply(change, request.headers_mut()),
                Filter::ResponseHeaders(_) => self.passed.push(Step::Plain(filter)),
                Filter::Rewrite(change) => rewrite::apply(change, facts, request),
                Filter::Redirect(redirect) => return Err(redirect::answer(redirect, facts, request)),
                Filter::Mirror(mirror) => {
                    if mirror.cluster.is_some() && drawn(mirror.numerator, mirror.denominator) {
                        self.mirrors.push(mirror);
                    }
                }
                Filter::Cors(policy) => {
                    let decision = cors::decide(policy, request);
                    let preflight = decision.preflight(request);
                    self.passed.push(Step::Cors(decision));
                    if let Some(answer) = preflight {
                        return Err(answer);
                    }
                }
                Filter::Fault(fault) => match fault::inject(fault, is_grpc(request.headers())).await {
                    fault::Outcome::Pass(injected) => self.fault = injected.or(self.fault),
                    fault::Outcome::Abort(response) => {
                        self.fault = Some(Injected::Abort);
                        return Err(response);
                    }
                },
                Filter::Direct(direct) => return Err(direct::answer(direct)),
                Filter::Compression(policy) => {
                    self.passed.push(Step::Compression(compression::decide(policy, request)));
                }
                Filter::BodyLimit(limit) => {
                    self.body_limit = Some(self.body_limit.map_or(*limit, |l| l.min(*limit)));
                }
            }
        }
        Ok(())
    }

    /// Passes a response, from upstream or made here, back through the filters its request has passed.
    pub fn on_response(self, mut response: Response) -> Response {
        for step in self.passed.into_iter().rev() {
            match step {
                Step::Plain(Filter::ResponseHeaders(change)) => headers::apply(change, response.headers_mut()),
                Step::Plain(_) => {}
                Step::Cors(decision) => decision.on_response(&mut response),
                Step::Compression(decision) => response = decision.on_response(response),
            }
        }
        response
    }
}

/// Whether this request is among `numerator` of `denominator`.
fn drawn(numerator: u32, denominator: u32) -> bool {
    numerator >= denominator || (numerator > 0 && rand::rng().next_u32() % denominator.max(1) < numerator)
}
