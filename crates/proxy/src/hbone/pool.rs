//! Connections to others, shared by the streams of a worker. One is opened at a time for all who wait; when it is full
//! the next is opened. A connection leaves the pool when it is idle, closing, or made with a certificate of ours that
//! is not the newest: its streams finish. It is cut when its peer is no longer accepted.

use super::{CONNECTION_WINDOW, FRAME, KEEPALIVE, KEEPALIVE_TIMEOUT, MAX_STREAMS, STREAM_WINDOW, counts::Counts};
use crate::{
    Body, Error, Request, Response,
    codec::{SendError, h2},
    dial::Dial,
    error::{Kind, Side},
    io::Io,
    telemetry::encode::Encoder,
    tls::mesh::{self, Proof},
};
use ahash::AHashMap;
use http::{Method, StatusCode, Uri, header};
use http_body::Body as _;
use selvedge_compile::snapshot::{Netns, alpn};
use selvedge_wire::{hbone, spiffe::SpiffeId};
use std::{
    fmt,
    future::{Future, poll_fn},
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread::{self, ThreadId},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// A connection without a stream for this long, or up to twice as long, is closed.
const IDLE: Duration = Duration::from_secs(60);

/// TCP, TLS and HTTP/2 of one connection, whoever waits for it; those who do have a timeout of their own.
const CONNECT: Duration = Duration::from_secs(10);

/// Connections that a stream is tried on when it was certainly not looked at.
const TRIES: usize = 3;

/// Connections of one worker to one address as one identity.
const MAX_LINKS: usize = 64;

/// What is read of the reason for a refusal.
const MAX_REASON: usize = 256;

/// Where a stream leads.
#[derive(Debug, Clone)]
pub(crate) struct Towards<'a> {
    /// Whose certificate we show.
    pub(crate) own: &'a SpiffeId,
    /// What the other side must prove to be.
    pub(crate) peer: &'a SpiffeId,
    /// Where it listens.
    pub(crate) via: SocketAddr,
    pub(crate) netns: Netns,
    pub(crate) target: SocketAddr,
    /// For whom, when the stream is for one client alone.
    pub(crate) origin: Option<IpAddr>,
}

/// All connections of the process. They are keyed by the thread too, for a connection is driven by the runtime that
/// made it: a worker's.
#[derive(Default)]
pub(crate) struct Pool {
    slots: Mutex<AHashMap<Key, Slot>>,
    counts: Counts,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    thread: ThreadId,
    own: SpiffeId,
    peer: SpiffeId,
    via: SocketAddr,
    netns: Netns,
}

#[derive(Default)]
struct Slot {
    open: Vec<Arc<Link>>,
    /// The connection that is being opened and that all wait for.
    flight: Option<watch::Receiver<Landing>>,
}

struct Link {
    connection: h2::Connection,
    proof: Proof,
}

/// How a flight ended; `None` while it is on its way.
type Landing = Option<Result<(), (Kind, Side, String)>>;

enum Look {
    /// All connections are full, and there may be no more.
    Full,
    Found(Arc<Link>),
    Flight(watch::Receiver<Landing>),
}

impl Pool {
    /// A stream to the target. The caller holds the timer.
    ///
    /// # Errors
    /// When there is no connection, or the other side refuses the stream; nothing was sent on it then.
    pub(crate) async fn open(dial: &Arc<Dial>, to: &Towards<'_>) -> Result<(Io, Proof), Error> {
        let result = Self::opened(dial, to).await;
        dial.tunnels.counts.stream(&result);
        result
    }

    /// Connections and streams, as samples.
    pub(crate) fn encode(&self, out: &mut Encoder) {
        let slots = self.lock();
        let open = slots.values().flat_map(|slot| &slot.open);
        let (mut connections, mut streams) = (0_u64, 0_u64);
        for link in open {
            connections += 1;
            streams += link.connection.active() as u64;
        }
        drop(slots);
        self.counts.encode(out, connections, streams);
    }

    async fn opened(dial: &Arc<Dial>, to: &Towards<'_>) -> Result<(Io, Proof), Error> {
        let key = Key {
            thread: thread::current().id(),
            own: to.own.clone(),
            peer: to.peer.clone(),
            via: to.via,
            netns: to.netns,
        };
        let mut tries = 0;
        loop {
            let link = match dial.tunnels.look(dial, &key) {
                Look::Found(link) => link,
                Look::Full => {
                    let message = format!("all {MAX_LINKS} tunnel connections to {} at {} are full", to.peer, to.via);
                    return Err(Error::new(Kind::Overflow, Side::Us, message));
                }
                Look::Flight(flight) => {
                    landed(flight).await?;
                    continue;
                }
            };
            tries += 1;
            let response = match link.connection.send(connect(to)?).await {
                Ok(response) => response,
                // Another was faster to take the last free stream.
                Err(_) if !link.connection.has_capacity() && link.connection.is_usable() => continue,
                // No byte of the application was sent. A connection that fails once is not used again.
                Err(_) if tries < TRIES => {
                    dial.tunnels.remove(&key, &link);
                    continue;
                }
                Err(SendError { error, .. }) => {
                    let message = format!("no tunnel through {} to {}", to.via, to.target);
                    return Err(Error::upstream(error.kind, message).with_source(error));
                }
            };
            return Ok((accepted(response, to).await?, link.proof.clone()));
        }
    }

    /// A connection with room for a stream, or the one that will have it.
    fn look(&self, dial: &Arc<Dial>, key: &Key) -> Look {
        let mut slots = self.lock();
        let slot = slots.entry(key.clone()).or_default();
        let fits = |link: &Arc<Link>| link.connection.is_usable() && link.proof.is_current();
        let gone: Vec<_> = slot.open.extract_if(.., |link| !fits(link)).collect();
        let found = slot.open.iter().find(|link| link.connection.has_capacity()).cloned();
        let flight = slot.flight.clone().filter(|flight| flight.has_changed().is_ok());
        let look = match (found, flight) {
            (Some(link), _) => Look::Found(link),
            (None, Some(flight)) => Look::Flight(flight),
            (None, None) if slot.open.len() >= MAX_LINKS => Look::Full,
            (None, None) => {
                let (land, flight) = watch::channel(None);
                slot.flight = Some(flight.clone());
                tokio::spawn(fly(dial.clone(), key.clone(), land));
                Look::Flight(flight)
            }
        };
        drop(slots);
        drop(gone);
        look
    }

    fn add(&self, key: &Key, link: Arc<Link>) {
        self.lock().entry(key.clone()).or_default().open.push(link);
    }

    fn remove(&self, key: &Key, link: &Arc<Link>) {
        let mut slots = self.lock();
        let Some(slot) = slots.get_mut(key) else { return };
        let gone: Vec<_> = slot.open.extract_if(.., |other| Arc::ptr_eq(other, link)).collect();
        if slot.open.is_empty() && slot.flight.is_none() {
            slots.remove(key);
        }
        drop(slots);
        drop(gone);
    }

    /// The flight of this key has ended.
    fn land(&self, key: &Key) {
        let mut slots = self.lock();
        if let Some(slot) = slots.get_mut(key) {
            slot.flight = None;
            if slot.open.is_empty() {
                slots.remove(key);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, AHashMap<Key, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool")
    }
}

/// Waits for a flight; an error when it missed.
async fn landed(mut flight: watch::Receiver<Landing>) -> Result<(), Error> {
    let landing = flight.wait_for(Option::is_some).await.map(|landing| landing.clone());
    match landing {
        Ok(Some(Err((kind, side, message)))) => Err(Error::new(kind, side, message)),
        // Landed; or the task is gone with its runtime, and the next look starts another.
        _ => Ok(()),
    }
}

/// Opens a connection for all who wait, in a task of its own: that the first of them gives up does not take it from
/// the others.
async fn fly(dial: Arc<Dial>, key: Key, land: watch::Sender<Landing>) {
    let result = match timeout(CONNECT, establish(&dial, &key)).await {
        Ok(result) => result,
        Err(_) => {
            let message = format!("no connection to {} at {} within {CONNECT:?}", key.peer, key.via);
            Err(Error::upstream(Kind::ConnectTimeout, message))
        }
    };
    dial.tunnels.counts.connection(result.as_ref().err());
    let landing = match result {
        Ok((connection, driver, proof)) => {
            let link = Arc::new(Link { connection, proof: proof.clone() });
            dial.tunnels.add(&key, link.clone());
            tokio::spawn(keep(Arc::downgrade(&dial), key.clone(), Arc::downgrade(&link), driver, proof));
            Ok(())
        }
        Err(error) => Err((error.kind, error.side, error.to_string())),
    };
    dial.tunnels.land(&key);
    land.send_replace(Some(landing));
}

type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

async fn establish(dial: &Arc<Dial>, key: &Key) -> Result<(h2::Connection, Driver, Proof), Error> {
    let failed = |error: std::io::Error| {
        Error::upstream(Kind::Connect, format!("cannot connect to {} at {}", key.peer, key.via)).with_source(error)
    };
    let tcp = dial.tcp(key.via, key.netns).await.map_err(failed)?;
    tcp.set_nodelay(true).map_err(failed)?;
    let (stream, proof) = mesh::connect(&dial.identities, &key.own, &key.peer, alpn::HBONE, tcp).await?;
    let options = h2::ClientOptions {
        max_streams: MAX_STREAMS,
        stream_window: STREAM_WINDOW,
        connection_window: CONNECTION_WINDOW,
        max_frame_size: FRAME,
        keepalive_interval: KEEPALIVE,
        keepalive_timeout: KEEPALIVE_TIMEOUT,
        ..h2::ClientOptions::default()
    };
    let (connection, driver) = h2::connect(stream.into(), &options).await?;
    Ok((connection, Box::pin(driver), proof))
}

/// Drives a connection to its end, and takes it out of the pool when it is to take no more streams. Only the pool and
/// those who open a stream hold a [`Link`]; without them the connection ends with its last stream.
async fn keep(dial: Weak<Dial>, key: Key, link: Weak<Link>, mut driver: Driver, proof: Proof) {
    let Some(identities) = dial.upgrade().map(|dial| dial.identities.clone()) else { return };
    let mut changed = identities.changed();
    let mut refused = pin!(proof.until_refused());
    let mut seen = 0;
    let release = || {
        if let (Some(dial), Some(link)) = (dial.upgrade(), link.upgrade()) {
            dial.tunnels.remove(&key, &link);
        }
    };
    loop {
        tokio::select! {
            () = &mut driver => return release(),
            reason = &mut refused => {
                tracing::info!(peer = %key.peer, at = %key.via, %reason, "tunnels are cut, as their peer is no longer accepted");
                return release();
            }
            Ok(()) = changed.changed() => {
                if !proof.is_current() {
                    release();
                }
            }
            () = sleep(IDLE) => {
                let Some(link) = link.upgrade() else { continue };
                let requests = link.connection.requests();
                let idle = link.connection.active() == 0 && requests == std::mem::replace(&mut seen, requests);
                drop(link);
                if idle || !proof.is_current() {
                    release();
                }
            }
        }
    }
}

fn connect(to: &Towards<'_>) -> Result<Request, Error> {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = Uri::builder()
        .authority(to.target.to_string())
        .build()
        .map_err(|error| Error::new(Kind::Internal, Side::Us, "an address is no authority").with_source(error))?;
    let headers = request.headers_mut();
    if let Some(origin) = to.origin {
        headers.insert(header::FORWARDED, hbone::forwarded(origin));
    }
    let namespace = to.own.namespace().map(|name| ("k8s.namespace.name", name));
    let account = to.own.account().map(|name| ("service.account", name));
    if let Some(baggage) = hbone::Baggage::write(namespace.into_iter().chain(account)) {
        headers.insert(&hbone::BAGGAGE, baggage);
    }
    Ok(request)
}

/// The bytes of an accepted stream, or why it was refused.
async fn accepted(mut response: Response, to: &Towards<'_>) -> Result<Io, Error> {
    if let Some(io) = response.body_mut().take_upgraded() {
        return Ok(io);
    }
    let status = response.status();
    let kind = match status {
        // The policies of the other side decide by identity alone: the same answer as where they look at requests.
        StatusCode::FORBIDDEN => Kind::Denied,
        status if status.is_server_error() => Kind::Connect,
        _ => Kind::Protocol { status: 502 },
    };
    let reason = reason(response.into_body()).await;
    let message = format!("the proxy of {} at {} refused a tunnel to {}: {status}{reason}", to.peer, to.via, to.target);
    Err(Error::upstream(kind, message))
}

/// A few words of the other side, escaped.
async fn reason(mut body: Body) -> String {
    let mut text = Vec::new();
    while text.len() < MAX_REASON
        && let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
    {
        if let Ok(data) = frame.into_data() {
            text.extend_from_slice(&data[..data.len().min(MAX_REASON - text.len())]);
        }
    }
    if text.is_empty() { String::new() } else { format!(": {}", String::from_utf8_lossy(&text).escape_debug()) }
}
