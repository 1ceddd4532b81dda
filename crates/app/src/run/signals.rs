//! What the process is asked for from outside.

use std::{io, sync::Arc};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// SIGTERM, SIGINT, or `POST /drain`: finish, then end.
    End,
    /// SIGHUP: look at the files and open access logs again.
    Reload,
    /// SIGUSR2: let a new binary take over.
    Upgrade,
}

pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    upgrade: Signal,
    /// Notified by the admin listener.
    drain: Arc<Notify>,
}

impl Signals {
    /// From here on none of them ends the process by itself.
    pub fn new(drain: Arc<Notify>) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            upgrade: signal(SignalKind::user_defined2())?,
            drain,
        })
    }

    pub async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            () = self.drain.notified() => Asked::End,
            _ = self.hangup.recv() => Asked::Reload,
            _ = self.upgrade.recv() => Asked::Upgrade,
        }
    }

    /// Waits until the process is asked to end; whatever else it is asked for is too late.
    pub async fn end(&mut self) {
        loop {
            match self.next().await {
                Asked::End => return,
                other => tracing::warn!(?other, "ignored: the process is ending"),
            }
        }
    }
}
