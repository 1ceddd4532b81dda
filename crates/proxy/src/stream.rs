//! Bodies on their way through: kept for replay, limited, timed.

use crate::{
    Body, Error,
    error::{Kind, Side},
    telemetry::{Limit, Progress},
};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep};

/// A request body that can be sent again, as long as it stays under its limit.
///
/// What has been read is kept until it exceeds `limit`; from then on nothing is kept and no replay is possible.
#[derive(Clone)]
pub struct Replay(Arc<Mutex<Kept>>);

struct Kept {
    body: Pin<Box<Body>>,
    chunks: Vec<Bytes>,
    size: usize,
    limit: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// Known to be longer than `limit`: nothing is kept once it is read.
    large: bool,
    /// Too large and begun, or broken: cannot be sent again.
    lost: bool,
}

struct Replayed {
    kept: Arc<Mutex<Kept>>,
    next: usize,
    trailers_sent: bool,
}

impl Replay {
    pub fn new(body: Body, limit: usize) -> Self {
        let ended = body.is_end_stream();
        let large = body.size_hint().exact().is_some_and(|n| n > limit as u64);
        let body = Box::pin(body);
        let kept = Kept { body, chunks: Vec::new(), size: 0, limit, trailers: None, ended, large, lost: false };
        Self(Arc::new(Mutex::new(kept)))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another [`Replay::body`] would carry the whole body.
    pub fn possible(&self) -> bool {
        !self.lock().lost
    }

    /// Whether the whole body is here, so that two tries can send it at once.
    pub fn complete(&self) -> bool {
        let kept = self.lock();
        kept.ended && !kept.lost
    }

    /// The body from its beginning. The one made before must have been dropped, unless [`Replay::complete`].
    pub fn body(&self) -> Body {
        let kept = self.lock();
        if kept.ended && kept.chunks.is_empty() && kept.trailers.is_none() {
            return Body::empty();
        }
        drop(kept);
        Body::stream(Replayed { kept: self.0.clone(), next: 0, trailers_sent: false })
    }
}

impl HttpBody for Replayed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let mut kept = this.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(chunk) = kept.chunks.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if kept.ended {
            let trailers = kept.trailers.clone().filter(|_| !std::mem::replace(&mut this.trailers_sent, true));
            return Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))));
        }
        match ready!(kept.body.as_mut().poll_frame(cx)) {
            None => {
                kept.ended = true;
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                kept.lost = true;
                kept.ended = true;
                Poll::Ready(Some(Err(error)))
            }
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    kept.size += data.len();
                    if kept.large || kept.size > kept.limit {
                        if !kept.lost {
                            Limit::ReplayBuffer.hit();
                        }
                        kept.lost = true;
                        kept.chunks = Vec::new();
                        this.next = 0;
                    }
                    if !kept.lost {
                        kept.chunks.push(data.clone());
                        this.next += 1;
                    }
                } else if let Some(trailers) = frame.trailers_ref() {
                    kept.trailers = Some(trailers.clone());
                    kept.ended = true;
                    this.trailers_sent = true;
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        self.next >= kept.chunks.len()
            && (kept.trailers.is_none() || self.trailers_sent)
            && (kept.ended || kept.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead: usize = kept.chunks.iter().skip(self.next).map(Bytes::len).sum();
        match kept.body.size_hint().exact() {
            _ if kept.ended => SizeHint::with_exact(ahead as u64),
            Some(rest) => SizeHint::with_exact(ahead as u64 + rest),
            None => SizeHint::default(),
        }
    }
}

/// Ends a body with an error once it is longer than allowed.
pub struct Limited {
    body: Pin<Box<Body>>,
    left: u64,
    limit: u64,
}

/// Limits a request body; one that declares to be longer is refused at once.
pub fn limited(body: Body, limit: u64) -> Result<Body, Error> {
    match body.size_hint().exact() {
        Some(n) if n > limit => Err(too_large(limit)),
        Some(_) => Ok(body),
        None => Ok(Body::stream(Limited { body: Box::pin(body), left: limit, limit })),
    }
}

fn too_large(limit: u64) -> Error {
    Error::downstream(
        Kind::TooLarge { status: 413 },
        format!("the request body is larger than the limit of {limit} bytes"),
    )
    .over(Limit::BodyBytes)
}

impl HttpBody for Limited {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(self.body.as_mut().poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            match self.left.checked_sub(data.len() as u64) {
                Some(left) => self.left = left,
                None => return Poll::Ready(Some(Err(too_large(self.limit)))),
            }
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

/// Ends a request body with an error when its sender is too slow. Only time spent waiting for the sender counts.
pub struct Paced {
    body: Pin<Box<Body>>,
    /// Bytes in [`PACE_WINDOW`] at least.
    least: u64,
    read: u64,
    waited: Duration,
    waiting: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// What the rate of a request body is averaged over.
const PACE_WINDOW: Duration = Duration::from_secs(10);

/// Wants at least `rate` bytes per second of a body; 0 is no limit.
pub fn paced(body: Body, rate: u32) -> Body {
    if rate == 0 || body.is_whole() || body.is_end_stream() {
        return body;
    }
    let least = u64::from(rate) * PACE_WINDOW.as_secs();
    let body = Box::pin(body);
    Body::stream(Paced { body, least, read: 0, waited: Duration::ZERO, waiting: None, timer: None })
}

impl HttpBody for Paced {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = this.body.as_mut().poll_frame(cx) {
            this.waited += this.waiting.take().map_or(Duration::ZERO, |since| since.elapsed());
            if this.waited >= PACE_WINDOW {
                (this.read, this.waited) = (0, Duration::ZERO);
            }
            if let Some(Ok(frame)) = &frame {
                this.read += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            return Poll::Ready(frame);
        }
        let due = |waited: Duration| Instant::now() + PACE_WINDOW.saturating_sub(waited);
        let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due(this.waited))));
        if this.waiting.is_none() {
            this.waiting = Some(Instant::now());
            timer.as_mut().reset(due(this.waited));
        }
        while timer.as_mut().poll(cx).is_ready() {
            if std::mem::take(&mut this.read) < this.least {
                let message = "the request body came slower than the least rate";
                return Poll::Ready(Some(Err(Error::downstream(Kind::Timeout, message).over(Limit::BodyRate))));
            }
            (this.waited, this.waiting) = (Duration::ZERO, Some(Instant::now()));
            timer.as_mut().reset(due(Duration::ZERO));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response body with what must live as long as it: permits, counters, and the deadline of its request.
pub struct Held<G> {
    body: Pin<Box<Body>>,
    deadline: Option<Pin<Box<Sleep>>>,
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
    upload: Option<(Arc<Progress>, u64)>,
    guard: Option<G>,
}

impl<G: Send + Unpin + 'static> Held<G> {
    /// Wraps `body`; `guard` is dropped when it ends. Without anything to watch or hold, the body is returned as it is.
    pub fn wrap(body: Body, deadline: Option<Instant>, idle: Option<Duration>, guard: G) -> Body {
        Self::both_ways(body, deadline, idle.unwrap_or_default(), None, guard)
    }

    /// Like [`Held::wrap`], which leaves a body that is whole as it is, as nothing can happen to it any more; what the client still sends (counted in `upload`) keeps the response from being idle.
    pub fn both_ways(
        body: Body,
        deadline: Option<Instant>,
        idle: Duration,
        upload: Option<Arc<Progress>>,
        guard: G,
    ) -> Body {
        if body.is_whole() || body.is_end_stream() {
            return body;
        }
        Body::stream(Self {
            body: Box::pin(body),
            deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
            idle: Some(idle).filter(|d| !d.is_zero()).map(|d| (d, Box::pin(tokio::time::sleep(d)))),
            upload: upload.map(|progress| (progress, 0)),
            guard: Some(guard),
        })
    }

    /// Whether no byte has moved for the idle timeout.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> bool {
        let Some((after, sleep)) = &mut self.idle else { return false };
        while sleep.as_mut().poll(cx).is_ready() {
            let moved = self.upload.as_mut().is_some_and(|(progress, before)| {
                let now = progress.totals().0;
                std::mem::replace(before, now) != now
            });
            if !moved {
                return true;
            }
            sleep.as_mut().reset(Instant::now() + *after);
        }
        false
    }
}

impl<G: Send + Unpin + 'static> HttpBody for Held<G> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        match this.body.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some((after, sleep)) = &mut this.idle {
                    sleep.as_mut().reset(Instant::now() + *after);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(end) => {
                this.guard = None;
                Poll::Ready(end)
            }
            Poll::Pending => {
                let (message, limit) = if this.deadline.as_mut().is_some_and(|s| s.as_mut().poll(cx).is_ready()) {
                    ("a timeout ran out in the middle of the response", Limit::RequestTimeout)
                } else if this.poll_idle(cx) {
                    ("the stream was idle for too long", Limit::StreamIdle)
                } else {
                    return Poll::Pending;
                };
                this.guard = None;
                Poll::Ready(Some(Err(Error::new(Kind::Timeout, Side::Upstream, message).over(limit))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    fn chunks(list: &'static [&'static str]) -> Body {
        Body::stream(Chunks(list.iter()))
    }

    /// Data frames that are all there.
    struct Chunks(std::slice::Iter<'static, &'static str>);

    impl HttpBody for Chunks {
        type Data = Bytes;
        type Error = Error;
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
            Poll::Ready(self.0.next().map(|c| Ok(Frame::data(Bytes::from_static(c.as_bytes())))))
        }
    }

    /// A body that never goes on.
    struct Stuck;

    impl HttpBody for Stuck {
        type Data = Bytes;
        type Error = Error;
        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
            Poll::Pending
        }
    }

    async fn text(body: Body) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(&body.collect().await?.to_bytes()).into_owned())
    }

    #[tokio::test]
    async fn a_small_body_is_replayed() {
        let replay = Replay::new(chunks(&["ab", "cd"]), 10);
        let mut first = replay.body();
        let _ = first.frame().await;
        drop(first);
        assert!(replay.possible() && !replay.complete());
        assert_eq!(text(replay.body()).await.unwrap(), "abcd");
        assert!(replay.complete());
        assert_eq!(text(replay.body()).await.unwrap(), "abcd");
    }

    #[tokio::test]
    async fn a_large_body_passes_but_is_not_kept() {
        let replay = Replay::new(chunks(&["ab", "cdefgh", "ij"]), 3);
        assert_eq!(text(replay.body()).await.unwrap(), "abcdefghij");
        assert!(!replay.possible());
    }

    #[tokio::test]
    async fn a_large_body_that_has_not_begun_can_be_sent_to_another() {
        let replay = Replay::new(Body::full("abcdefghij"), 3);
        drop(replay.body());
        assert!(replay.possible());
        assert_eq!(text(replay.body()).await.unwrap(), "abcdefghij");
        assert!(!replay.possible());
    }

    #[tokio::test]
    async fn limits_hold() {
        assert_eq!(text(limited(chunks(&["ab", "c"]), 3).unwrap()).await.unwrap(), "abc");
        assert_eq!(
            text(limited(chunks(&["ab", "cd"]), 3).unwrap()).await.unwrap_err().kind,
            Kind::TooLarge { status: 413 }
        );
        assert!(limited(Body::full("abcd"), 3).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_ends() {
        let start = Instant::now();
        let error = text(paced(Body::stream(Stuck), 100)).await.unwrap_err();
        assert_eq!((error.kind, start.elapsed()), (Kind::Timeout, PACE_WINDOW));
        assert_eq!(text(paced(chunks(&["ab", "cd"]), 100)).await.unwrap(), "abcd");
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_keeps_its_response_alive() {
        let progress = Arc::new(Progress::default());
        progress.received(1);
        let limit = Duration::from_secs(5);
        let start = Instant::now();
        let held = Held::both_ways(Body::stream(Stuck), None, limit, Some(progress), ());
        assert_eq!(text(held).await.unwrap_err().kind, Kind::Timeout);
        assert_eq!(start.elapsed(), limit * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_body_ends() {
        let held = Held::wrap(Body::stream(Stuck), None, Some(Duration::from_secs(5)), ());
        assert_eq!(text(held).await.unwrap_err().kind, Kind::Timeout);
    }
}
