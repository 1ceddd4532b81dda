//! The seam between bytes and requests. HTTP/1.1 is our own codec over `selvedge_wire::http1`, HTTP/2 is the `h2`
//! crate; HTTP/3 takes its place beside them as `codec/h3`. Nothing outside this folder knows which one a request
//! came by, except through [`http::Version`] and the types here.

pub(crate) mod channel;
pub mod h1;
pub mod h2;

use crate::{Error, Request, Response, telemetry::Limit};
use http::StatusCode;
use std::{
    collections::VecDeque,
    future::Future,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

/// What a codec calls for each request of a connection. One instance per connection.
pub trait Service: Send + Sync + 'static {
    /// Answers a request. Dropping the future means that the client is gone.
    ///
    /// Request extensions set by the codec: [`Informational`], and for RFC 8441 [`ExtendedConnect`].
    fn call(&self, request: Request) -> impl Future<Output = Response> + Send;

    /// The codec refused a request before it became one (bad framing, header limits, timeouts while reading the
    /// head): it has answered with `status` and closes the connection (HTTP/2: the stream). For the record.
    fn rejected(&self, status: StatusCode, error: &Error);

    /// The client left in the middle of a request head. For the record.
    fn lost(&self, _error: &Error) {}
}

/// In the request's extensions: passes interim (1xx) responses from the upstream to the client, and tells the codec how
/// long the exchange may be silent.
/// Holds a few responses; more are dropped (a flood of 103 is the upstream's problem, not our memory's).
#[derive(Debug, Clone, Default)]
pub struct Informational(Arc<Mutex<Interim>>);

#[derive(Debug, Default)]
struct Interim {
    queue: VecDeque<http::Response<()>>,
    waker: Option<Waker>,
    stream_idle: Option<Duration>,
}

/// Interim responses that wait for the client at once.
const MAX_INTERIM: usize = 8;

impl Informational {
    /// Called by the side that talks to the upstream. 100 and 101 are never passed on.
    pub fn send(&self, response: http::Response<()>) {
        if !response.status().is_informational() || matches!(response.status().as_u16(), 100 | 101) {
            return;
        }
        let Ok(mut interim) = self.0.lock() else { return };
        if interim.queue.len() < MAX_INTERIM {
            interim.queue.push_back(response);
            if let Some(waker) = interim.waker.take() {
                waker.wake();
            }
        } else {
            Limit::InterimResponses.hit();
        }
    }

    /// The route of the request has a limit of its own for an exchange on which nothing moves (zero: none); the codec
    /// heeds it instead of that of its connection.
    pub fn set_stream_idle(&self, limit: Duration) {
        if let Ok(mut interim) = self.0.lock() {
            interim.stream_idle = Some(limit);
        }
    }

    /// What [`Informational::set_stream_idle`] has set.
    pub(crate) fn stream_idle(&self) -> Option<Duration> {
        self.0.lock().ok()?.stream_idle
    }

    /// Called by the codec that talks to the client, while it waits for the final response.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<http::Response<()>> {
        let Ok(mut interim) = self.0.lock() else { return Poll::Pending };
        match interim.queue.pop_front() {
            Some(response) => Poll::Ready(response),
            None => {
                interim.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// In the extensions of a `CONNECT` request that came with `:protocol` (RFC 8441); a 2xx response with
/// [`Body::tunnel`](crate::Body::tunnel) accepts it. Upstream HTTP/2 sends it the same way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtendedConnect(pub String);

/// A request could not be sent, or died before a response head came.
#[derive(Debug)]
pub struct SendError {
    pub error: Error,
    pub progress: Progress,
}

/// How far an exchange had come when it failed: what decides whether a replay is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// Not a byte was accepted by the upstream, or it said so (REFUSED_STREAM, GOAWAY below this stream).
    Unsent,
    /// Something was sent; not a byte of a response came.
    Sent,
    /// A response had begun.
    Answered,
}
