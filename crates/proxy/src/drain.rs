//! Telling connections to finish, and waiting until they have.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::watch;

/// Held by whoever may say "finish what you have begun": one per listener, and one for the process.
#[derive(Debug)]
pub struct Drainer(watch::Sender<bool>, Arc<AtomicBool>);

/// Held by every connection (clone it); dropping it says "I am done".
#[derive(Debug, Clone)]
pub struct Drain(watch::Receiver<bool>, Arc<AtomicBool>);

impl Default for Drainer {
    fn default() -> Self {
        Self(watch::Sender::new(false), Arc::default())
    }
}

impl Drainer {
    pub fn subscribe(&self) -> Drain {
        Drain(self.0.subscribe(), self.1.clone())
    }

    /// Tells all connections, present and future, to finish.
    pub fn start(&self) {
        self.1.store(true, Ordering::Release);
        self.0.send_replace(true);
    }

    /// Connections that are still there.
    pub fn open(&self) -> usize {
        self.0.receiver_count()
    }

    /// Resolves when every [`Drain`] has been dropped.
    pub async fn done(&self) {
        self.0.closed().await;
    }
}

impl Drop for Drainer {
    fn drop(&mut self) {
        // Nobody is left who could say it later.
        self.1.store(true, Ordering::Release);
    }
}

impl Drain {
    pub fn is_draining(&self) -> bool {
        self.1.load(Ordering::Acquire)
    }

    /// What [`Drain::is_draining`] reads, for who has given the drain itself to a future that waits.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.1.clone()
    }

    /// Resolves when draining starts (or the drainer is gone).
    pub async fn draining(&mut self) {
        let _ = self.0.wait_for(|draining| *draining).await;
    }
}
