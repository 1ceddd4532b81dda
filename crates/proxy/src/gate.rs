//! How many connections a cluster may have open, over all workers, and the queue of requests that wait for one
//! because there are that many.

use crate::{
    Error,
    codec::h1::Connection,
    endpoint::LiveEndpoint,
    error::{Kind, Side},
    pool::Ticket,
    telemetry::Limit,
    worker::WorkerId,
};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::oneshot;

/// Counts open connections. Waiting is first come, first served, except that a connection which becomes idle goes
/// to somebody who can use it as it is: the same endpoint on the same worker.
#[derive(Debug)]
pub struct Gate {
    open: AtomicU32,
    max_open: AtomicU32,
    max_waiting: AtomicU32,
    waiting: AtomicU32,
    refused: AtomicU64,
    queue: Mutex<VecDeque<Waiter>>,
}

/// The right to have one connection open; gives it to the next in the queue when dropped.
#[derive(Debug)]
pub struct Open(Option<Arc<Gate>>);

/// Where a connection can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    endpoint: usize,
    worker: usize,
}

impl Place {
    pub(crate) fn new(endpoint: &Arc<LiveEndpoint>, worker: WorkerId) -> Self {
        Self { endpoint: Arc::as_ptr(endpoint) as usize, worker: worker.0 }
    }

    /// Takes no connection that was used before.
    pub(crate) fn nowhere() -> Self {
        Self { endpoint: 0, worker: usize::MAX }
    }
}

#[derive(Debug)]
struct Waiter {
    place: Place,
    /// Times that somebody behind was served first.
    passed: u8,
    grant: oneshot::Sender<Grant>,
}

/// What waiting has brought.
#[derive(Debug)]
pub(crate) enum Grant {
    /// An idle HTTP/1.1 connection of the waiter's place.
    Connection(Connection, Arc<Ticket>),
    /// Open one.
    Open(Open),
    /// A stream of a shared connection has ended: look again.
    Recheck(Recheck),
}

/// The word that a shared connection has room. It goes to the next in the queue when whoever it was for has left.
#[derive(Debug)]
pub(crate) struct Recheck(Option<(Arc<Gate>, Place)>);

impl Recheck {
    /// Somebody looks.
    pub(crate) fn taken(mut self) {
        self.0 = None;
    }
}

impl Drop for Recheck {
    fn drop(&mut self) {
        if let Some((gate, place)) = self.0.take() {
            gate.capacity(place);
        }
    }
}

/// How far down the queue somebody is looked for who can use a connection as it is.
const LOOK_AHEAD: usize = 32;
/// Nobody is passed over more often than this.
const MAX_PASSED: u8 = 16;

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            open: AtomicU32::new(0),
            max_open: AtomicU32::new(0),
            max_waiting: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            refused: AtomicU64::new(0),
            queue: Mutex::default(),
        })
    }

    pub(crate) fn set_limits(self: &Arc<Self>, max_open: u32, max_waiting: u32) {
        self.max_waiting.store(max_waiting, Ordering::SeqCst);
        self.max_open.store(max_open.max(1), Ordering::SeqCst);
        self.serve();
    }

    pub(crate) fn try_open(self: &Arc<Self>) -> Option<Open> {
        let max = self.max_open.load(Ordering::SeqCst);
        let more = |open| (open < max).then_some(open + 1);
        self.open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
        Some(Open(Some(self.clone())))
    }

    /// Waits for a connection, at most for `limit`. `queued` is called once others can see that somebody waits: it looks
    /// again for what the caller has found nothing of, as it may have come in between.
    pub(crate) async fn wait(
        self: &Arc<Self>,
        cluster: &str,
        place: Place,
        limit: Duration,
        queued: impl FnOnce(),
    ) -> Result<Grant, Error> {
        let (grant, granted) = oneshot::channel();
        {
            let mut queue = self.lock();
            queue.retain(|waiter| !waiter.grant.is_closed());
            let max = self.max_waiting.load(Ordering::SeqCst);
            if queue.len() >= max as usize {
                self.waiting.store(queue.len() as u32, Ordering::SeqCst);
                return Err(self.refuse(format!(
                    "cluster {cluster} has all of its {} connections in use and {max} requests waiting for one",
                    self.max_open()
                )));
            }
            queue.push_back(Waiter { place, passed: 0, grant });
            self.waiting.store(queue.len() as u32, Ordering::SeqCst);
        }
        // Somebody may have left between the caller's look and our place in the queue.
        self.serve();
        queued();
        match tokio::time::timeout(limit, granted).await {
            Ok(Ok(grant)) => Ok(grant),
            _ => Err(self.refuse(format!(
                "a request waited {limit:?} for one of the {} connections of cluster {cluster}",
                self.max_open()
            ))),
        }
    }

    /// Offers a connection that has become idle. It comes back when nobody waits; when only others wait it is closed,
    /// so that they can open theirs.
    pub(crate) fn offer(&self, place: Place, connection: Connection, ticket: &Arc<Ticket>) -> Option<Connection> {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return Some(connection);
        }
        let mut connection = connection;
        loop {
            match self.take(place) {
                Taken::Nobody => return Some(connection),
                // The lock is free again: dropping the connection serves the queue.
                Taken::Other => return None,
                Taken::Same(grant) => match grant.send(Grant::Connection(connection, ticket.clone())) {
                    Err(Grant::Connection(back, _)) => connection = back,
                    _ => return None,
                },
            }
        }
    }

    /// A stream of a shared connection has ended. True when only others wait, who need a connection of their own.
    pub(crate) fn capacity(self: &Arc<Self>, place: Place) -> bool {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return false;
        }
        loop {
            match self.take(place) {
                Taken::Same(grant) => match grant.send(Grant::Recheck(Recheck(Some((self.clone(), place))))) {
                    Err(Grant::Recheck(recheck)) => recheck.taken(),
                    _ => return false,
                },
                Taken::Nobody => return false,
                Taken::Other => return true,
            }
        }
    }

    pub fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    pub fn max_open(&self) -> u32 {
        self.max_open.load(Ordering::Relaxed)
    }

    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    pub fn max_waiting(&self) -> u32 {
        self.max_waiting.load(Ordering::Relaxed)
    }

    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn refuse(&self, message: String) -> Error {
        self.refused.fetch_add(1, Ordering::Relaxed);
        Limit::ClusterConnections.hit();
        Error::new(Kind::Overflow, Side::Us, message)
    }

    /// Lets those at the head open connections while there is room.
    fn serve(self: &Arc<Self>) {
        while self.waiting.load(Ordering::SeqCst) > 0 {
            let Some(open) = self.try_open() else { return };
            let head = self.pop(|_| Some(0));
            // Without a taker `open` is dropped quietly: its Drop would come back here for ever.
            match head {
                Some(waiter) => {
                    if let Err(Grant::Open(open)) = waiter.grant.send(Grant::Open(open)) {
                        open.forget();
                    }
                }
                None => return open.forget(),
            }
        }
    }

    fn take(&self, place: Place) -> Taken {
        let mut head_passed = false;
        let found = self.pop(|queue| {
            queue.retain(|waiter| !waiter.grant.is_closed());
            let head = queue.front()?;
            if head.passed >= MAX_PASSED && head.place != place {
                head_passed = true;
                return None;
            }
            let index = queue.iter().take(LOOK_AHEAD).position(|waiter| waiter.place == place);
            head_passed = index.is_none();
            queue.iter_mut().take(index.unwrap_or(0)).for_each(|waiter| waiter.passed += 1);
            index
        });
        match found {
            Some(waiter) => Taken::Same(waiter.grant),
            None if head_passed => Taken::Other,
            None => Taken::Nobody,
        }
    }

    fn pop(&self, choose: impl FnOnce(&mut VecDeque<Waiter>) -> Option<usize>) -> Option<Waiter> {
        let mut queue = self.lock();
        let waiter = choose(&mut queue).and_then(|index| queue.remove(index));
        self.waiting.store(queue.len() as u32, Ordering::SeqCst);
        waiter
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiter>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Taken {
    Same(oneshot::Sender<Grant>),
    /// Only others wait.
    Other,
    Nobody,
}

impl Open {
    /// Gives it back without looking for the next.
    fn forget(mut self) {
        if let Some(gate) = self.0.take() {
            gate.open.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(gate) = self.0.take() {
            gate.open.fetch_sub(1, Ordering::SeqCst);
            gate.serve();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    const PLACE: Place = Place { endpoint: 1, worker: 0 };

    fn full() -> (Arc<Gate>, Open) {
        let gate = Gate::new();
        gate.set_limits(1, 8);
        let open = gate.try_open().expect("a place");
        (gate, open)
    }

    #[tokio::test]
    async fn room_on_a_shared_connection_is_not_forgotten_by_who_leaves() {
        let (gate, _open) = full();
        let wait = || Box::pin(gate.wait("shop", PLACE, Duration::from_secs(60), || {}));
        let mut cx = Context::from_waker(Waker::noop());
        let (mut first, mut second) = (wait(), wait());
        assert!(first.as_mut().poll(&mut cx).is_pending() && second.as_mut().poll(&mut cx).is_pending());
        assert!(!gate.capacity(PLACE));
        // It was the first one's turn, but its client goes away before it runs.
        drop(first);
        assert!(matches!(second.as_mut().poll(&mut cx), Poll::Ready(Ok(Grant::Recheck(_)))));
        drop(second);
        assert_eq!(gate.waiting(), 0);
    }

    #[tokio::test]
    async fn a_place_that_nobody_takes_goes_to_the_next() {
        let (gate, open) = full();
        let wait = || Box::pin(gate.wait("shop", PLACE, Duration::from_secs(60), || {}));
        let mut cx = Context::from_waker(Waker::noop());
        let (mut first, mut second) = (wait(), wait());
        assert!(first.as_mut().poll(&mut cx).is_pending() && second.as_mut().poll(&mut cx).is_pending());
        drop(open);
        drop(first);
        assert!(matches!(second.as_mut().poll(&mut cx), Poll::Ready(Ok(Grant::Open(_)))));
        assert_eq!(gate.open(), 0);
    }

    #[tokio::test]
    async fn who_waits_looks_again_once_it_can_be_seen() {
        let (gate, open) = full();
        let mut open = Some(open);
        // What makes room just now has not seen anybody wait.
        let mut waiting = pin!(gate.wait("shop", PLACE, Duration::from_secs(60), || {
            assert_eq!(gate.waiting(), 1);
            drop(open.take());
        }));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(waiting.as_mut().poll(&mut cx), Poll::Ready(Ok(Grant::Open(_)))));
    }
}
