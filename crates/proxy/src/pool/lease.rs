//! Getting a connection: from the shelf, by waiting, or by opening one.

use super::{Busy, Held, Idle, Landing, Missed, Shared, Ticket};
use crate::{
    Error,
    cluster::{LiveCluster, Settings},
    codec::{h1, h2},
    connect::{ClientAddress, Connected},
    endpoint::{LiveEndpoint, Protocol},
    error::Kind,
    gate::{Grant, Open, Place},
    io::Io,
    worker::WorkerId,
};
use selvedge_compile::snapshot::UpstreamProtocol;
use std::sync::{Arc, atomic::Ordering};
use tokio::{sync::watch, time::Instant};

/// A connection to send one request on.
pub(crate) enum Lease {
    Http1 { connection: h1::Connection, ticket: Arc<Ticket>, reused: bool },
    Http2 { connection: h2::Connection, busy: Busy, reused: bool },
}

/// Everything that stays the same while one request looks for its connection.
pub(crate) struct Seeker<'a> {
    pub(crate) cluster: &'a Arc<LiveCluster>,
    pub(crate) settings: &'a Arc<Settings>,
    pub(crate) worker: WorkerId,
    pub(crate) endpoint: &'a Arc<LiveEndpoint>,
    pub(crate) client: Option<ClientAddress>,
    /// Only a connection that nothing was sent on.
    pub(crate) fresh: bool,
    /// Only HTTP/1.1, whatever the endpoint would choose.
    pub(crate) http1: bool,
}

/// What a look at the shelf came to.
enum Look {
    Found(Lease),
    /// One is being opened: wait for it.
    Flight(watch::Receiver<Landing>),
    /// There is none; a new one would serve this request alone, or be shared.
    Open {
        shared: bool,
    },
}

pub(crate) async fn lease(seeker: Seeker<'_>) -> Result<Lease, Error> {
    let place = if seeker.fresh || seeker.settings.plan.is_per_client() {
        Place::nowhere()
    } else {
        Place::new(seeker.endpoint, seeker.worker)
    };
    loop {
        let shared = match seeker.look() {
            Look::Found(lease) => return Ok(lease),
            Look::Flight(flight) => {
                Box::pin(landed(flight)).await?;
                continue;
            }
            Look::Open { shared } => shared,
        };
        // Most requests find a connection: the state of opening one would make that of each of them much larger.
        let open = match Box::pin(seeker.open(place)).await? {
            Grant::Open(open) => open,
            Grant::Connection(connection, ticket) => return Ok(Lease::Http1 { connection, ticket, reused: true }),
            Grant::Recheck(recheck) => {
                recheck.taken();
                continue;
            }
        };
        if !shared {
            return Box::pin(seeker.dedicated(open)).await;
        }
        seeker.take_off(open);
    }
}

/// A connection for bytes, outside of the pool but within its limits.
pub(crate) async fn raw(seeker: Seeker<'_>) -> Result<(Io, Held), Error> {
    loop {
        match seeker.open(Place::nowhere()).await? {
            Grant::Open(open) => {
                let (connected, ticket) = seeker.connect(open).await?;
                return Ok((connected.io, Held::new(ticket)));
            }
            Grant::Connection(..) | Grant::Recheck(_) => {}
        }
    }
}

impl Seeker<'_> {
    fn protocol(&self) -> Protocol {
        match self.settings.plan.protocol {
            UpstreamProtocol::Http2 => Protocol::Http2,
            _ if self.http1 => Protocol::Http1,
            UpstreamProtocol::Auto if self.settings.plan.negotiates() => self.endpoint.protocol(),
            _ => Protocol::Http1,
        }
    }

    fn look(&self) -> Look {
        if self.settings.plan.is_per_client() {
            return Look::Open { shared: false };
        }
        let protocol = self.protocol();
        let mut shelf = self.endpoint.shelves.of(self.worker, self.cluster.workers);
        if !self.fresh && protocol != Protocol::Http2 {
            let (found, dead) = shelf.take_idle(self.settings);
            if let Some((connection, ticket)) = found {
                drop(shelf);
                self.cluster.counters.pool_hits.fetch_add(1, Ordering::Relaxed);
                drop(dead);
                return Look::Found(Lease::Http1 { connection, ticket, reused: true });
            }
            if !dead.is_empty() {
                // Closing what was dead frees places: outside of the lock, then look again with an empty shelf.
                drop(shelf);
                drop(dead);
                shelf = self.endpoint.shelves.of(self.worker, self.cluster.workers);
            }
        }
        if protocol == Protocol::Http1 {
            return Look::Open { shared: false };
        }
        if self.fresh {
            return Look::Open { shared: false };
        }
        let (found, gone) = shelf.take_shared(self.settings);
        let flight = shelf.flight.clone().filter(|flight| flight.has_changed().is_ok());
        drop(shelf);
        drop(gone);
        match (found, flight) {
            (Some((connection, ticket)), _) => {
                self.cluster.counters.pool_hits.fetch_add(1, Ordering::Relaxed);
                let reused = connection.requests() > 0;
                Look::Found(Lease::Http2 { connection, busy: self.busy(ticket), reused })
            }
            (None, Some(flight)) => Look::Flight(flight),
            (None, None) => Look::Open { shared: true },
        }
    }

    fn busy(&self, ticket: Arc<Ticket>) -> Busy {
        Busy::new(self.cluster.clone(), self.endpoint.clone(), ticket)
    }

    /// The right to open a connection: at once, by closing one that is idle elsewhere, or by waiting.
    async fn open(&self, place: Place) -> Result<Grant, Error> {
        let gate = &self.cluster.gate;
        if let Some(open) = gate.try_open() {
            return Ok(Grant::Open(open));
        }
        while self.cluster.evict_idle() {
            if let Some(open) = gate.try_open() {
                return Ok(Grant::Open(open));
            }
        }
        // A connection of another worker that has become idle since has seen nobody wait.
        let evict = || {
            self.cluster.evict_idle();
        };
        gate.wait(self.cluster.key(), place, self.settings.plan.timeout(), evict).await
    }

    async fn connect(&self, open: Open) -> Result<(Connected, Arc<Ticket>), Error> {
        let place = (Place::new(self.endpoint, self.worker), self.worker);
        let (plan, others) = (&self.settings.plan, self.endpoint.others());
        let connected = match self.http1 {
            true => plan.connect_http1(self.endpoint.to(&others), self.client).await,
            false => plan.connect(self.endpoint.to(&others), self.client).await,
        };
        match connected {
            Ok(mut connected) => {
                let proof = connected.proof.take();
                let ticket = Ticket::new(self.cluster, self.endpoint, self.settings, place, proof, open);
                Ok((connected, ticket))
            }
            Err(error) => {
                self.cluster.counters.connect_failures.fetch_add(1, Ordering::Relaxed);
                self.endpoint.counters.connect_failures.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// Opens a connection for this request; HTTP/1.1 connections go to the shelf after it.
    async fn dedicated(&self, open: Open) -> Result<Lease, Error> {
        let (connected, ticket) = self.connect(open).await?;
        self.learn(&connected);
        if !connected.h2 {
            let connection = h1::Connection::new(connected.io, ticket.clone());
            return Ok(Lease::Http1 { connection, ticket, reused: false });
        }
        let connection = self.start(connected, &ticket).await?;
        if !self.settings.plan.is_per_client() {
            self.shelve(connection.clone(), ticket.clone());
        }
        Ok(Lease::Http2 { connection, busy: self.busy(ticket), reused: false })
    }

    /// Remembers what the endpoint speaks.
    fn learn(&self, connected: &Connected) {
        if self.settings.plan.negotiates() && !self.http1 {
            self.endpoint.set_protocol(if connected.h2 { Protocol::Http2 } else { Protocol::Http1 });
        }
    }

    /// Begins HTTP/2; its driver runs on this worker until the connection ends.
    async fn start(&self, connected: Connected, ticket: &Arc<Ticket>) -> Result<h2::Connection, Error> {
        let (connection, driver) = h2::connect(connected.io, &self.settings.h2).await?;
        let ticket = ticket.clone();
        tokio::spawn(async move {
            driver.await;
            drop(ticket);
        });
        Ok(connection)
    }

    fn shelve(&self, connection: h2::Connection, ticket: Arc<Ticket>) {
        if self.endpoint.is_removed() || self.cluster.is_closed() {
            return;
        }
        let mut shelf = self.endpoint.shelves.of(self.worker, self.cluster.workers);
        shelf.shared.push(Shared { connection, ticket, last_used: Instant::now() });
    }

    /// Opens a connection that all who wait will share, in a task of its own: that its first request is given up
    /// does not take it from the others.
    fn take_off(&self, open: Open) {
        let (land, flight) = watch::channel(None);
        {
            let mut shelf = self.endpoint.shelves.of(self.worker, self.cluster.workers);
            // Somebody was faster while we waited for the right to open.
            if shelf.flight.as_ref().is_some_and(|flight| flight.has_changed().is_ok()) {
                drop(shelf);
                drop(open);
                return;
            }
            shelf.flight = Some(flight);
        }
        let (cluster, settings) = (self.cluster.clone(), self.settings.clone());
        let (endpoint, worker, client) = (self.endpoint.clone(), self.worker, self.client);
        tokio::spawn(async move {
            let seeker = Seeker {
                cluster: &cluster,
                settings: &settings,
                worker,
                endpoint: &endpoint,
                client,
                fresh: false,
                http1: false,
            };
            let result = seeker.fly(open).await;
            endpoint.shelves.of(worker, cluster.workers).flight = None;
            land.send_replace(Some(result.map_err(|error| Missed {
                kind: error.kind,
                side: error.side,
                message: error.to_string(),
            })));
        });
    }

    async fn fly(&self, open: Open) -> Result<(), Error> {
        let (connected, ticket) = self.connect(open).await?;
        self.learn(&connected);
        if connected.h2 {
            let connection = self.start(connected, &ticket).await?;
            self.shelve(connection, ticket);
            return Ok(());
        }
        if self.settings.plan.protocol == UpstreamProtocol::Http2 {
            let message = format!("{} does not speak HTTP/2, which the backend was said to", self.endpoint.address);
            return Err(Error::upstream(Kind::Tls, message));
        }
        // The handshake chose HTTP/1.1: one of those who wait takes this connection, the others open theirs.
        let connection = h1::Connection::new(connected.io, ticket.clone());
        let mut shelf = self.endpoint.shelves.of(self.worker, self.cluster.workers);
        shelf.idle.push(Idle { connection, ticket, since: Instant::now() });
        Ok(())
    }
}

/// Waits for a flight; an error when it missed.
async fn landed(mut flight: watch::Receiver<Landing>) -> Result<(), Error> {
    let landing = flight.wait_for(Option::is_some).await.map(|landing| landing.clone());
    match landing {
        Ok(Some(Err(missed))) => Err(Error::new(missed.kind, missed.side, missed.message)),
        // Landed; or the task is gone, and somebody starts another.
        _ => Ok(()),
    }
}
