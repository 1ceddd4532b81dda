//! RequestMirror: a copy of the request goes to another cluster; its answer is dropped.

use crate::{Body, Error, Request, balance::Pick, connect::ClientAddress, serve::Exchange, telemetry::Limit};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use selvedge_compile::snapshot::Mirror;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::sync::mpsc;

/// Frames of a request body that a mirror may lag behind; then it is given up, as it must never slow the request.
const LAG: usize = 64;

/// A mirrored exchange is given up after this.
const LIMIT: Duration = Duration::from_secs(30);

/// Starts the mirrors of a request; its body now also feeds them.
pub(super) fn copy(exchange: &Exchange<'_>, mirrors: &[&Mirror], request: &mut Request) {
    for mirror in mirrors {
        let Some(cluster) = mirror.cluster.map(|id| exchange.table.cluster(id).clone()) else { continue };
        // The mirror is bound by its own cluster's limits.
        let Ok(permit) = cluster.start_request() else { continue };
        let (body, copied) = tee(std::mem::take(request.body_mut()));
        *request.body_mut() = body;
        let mut copy = Request::new(copied);
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.version_mut() = request.version();
        *copy.headers_mut() = request.headers().clone();
        // For backends that want to be told by the PROXY protocol.
        let (source, destination) = (exchange.conn.peer, exchange.conn.local);
        copy.extensions_mut().insert(ClientAddress { source, destination });
        let worker = exchange.conn.worker;
        tokio::spawn(async move {
            let sent = tokio::time::timeout(LIMIT, async {
                cluster.ready().await;
                let endpoint = cluster.pick(&Pick { hash: None, tried: &[], sticky: None })?;
                let response = cluster.send(worker, &endpoint, &mut copy).await.map_err(|f| f.error)?;
                let mut body = response.into_body();
                while let Some(frame) = body.frame().await {
                    frame?;
                }
                Ok::<_, Error>(())
            });
            if let Ok(Err(error)) = sent.await {
                tracing::debug!(cluster = cluster.key(), %error, "a mirrored request failed");
            }
            drop(permit);
        });
    }
}

/// Two bodies from one: the first drives, the second follows.
fn tee(body: Body) -> (Body, Body) {
    if let Some(bytes) = body.as_full() {
        return (body, Body::full(bytes));
    }
    let hint = body.size_hint();
    let (sender, receiver) = mpsc::channel(LAG);
    let main = Tee { body: Box::pin(body), copy: Some(sender) };
    (Body::stream(main), Body::stream(Follow { receiver, hint, ended: false }))
}

struct Tee {
    body: Pin<Box<Body>>,
    copy: Option<mpsc::Sender<Copied>>,
}

enum Copied {
    Frame(Frame<Bytes>),
    End,
}

impl HttpBody for Tee {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(self.body.as_mut().poll_frame(cx));
        let copied = match &frame {
            Some(Ok(frame)) => match (frame.data_ref(), frame.trailers_ref()) {
                (Some(data), _) => Some(Copied::Frame(Frame::data(data.clone()))),
                (_, Some(trailers)) => Some(Copied::Frame(Frame::trailers(trailers.clone()))),
                _ => None,
            },
            Some(Err(_)) => None,
            None => Some(Copied::End),
        };
        let kept = match (&self.copy, copied) {
            (Some(sender), Some(copied)) => match sender.try_send(copied) {
                Ok(()) => true,
                Err(error) => {
                    if matches!(error, mpsc::error::TrySendError::Full(_)) {
                        Limit::MirrorBuffer.hit();
                    }
                    false
                }
            },
            _ => false,
        };
        if kept && self.body.is_end_stream() && frame.is_some() {
            let _ = self.copy.take().map(|sender| sender.try_send(Copied::End));
        } else if !kept {
            self.copy = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct Follow {
    receiver: mpsc::Receiver<Copied>,
    hint: SizeHint,
    ended: bool,
}

impl HttpBody for Follow {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match ready!(self.receiver.poll_recv(cx)) {
            Some(Copied::Frame(frame)) => {
                self.ended = frame.is_trailers();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Copied::End) => {
                self.ended = true;
                Poll::Ready(None)
            }
            None => {
                self.ended = true;
                let message = "the mirrored request was given up: its original ended early or ran ahead";
                Poll::Ready(Some(Err(Error::downstream(crate::error::Kind::Cancelled, message))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}
