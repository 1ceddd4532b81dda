//! Simulated proxies: real streams with mutual TLS that take in and acknowledge what comes, and compile nothing.

use super::{
    messages::{self, Ack, FromProxy, Hello, Known, Resource, Subscription, Update},
    resources,
};
use anyhow::{Context, Result};
use bytes::BytesMut;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, sync::Semaphore};
use tokio_rustls::{TlsConnector, rustls};

/// What all proxies have seen together.
pub struct Seen {
    /// By proxy: changes up to this one have arrived, and when each did.
    arrived: Vec<Vec<Instant>>,
    /// By proxy: how many updates it has acknowledged on this stream.
    pub updates: Vec<u64>,
    /// Bytes of messages.
    pub bytes: u64,
    /// Resources that were sent.
    pub resources: u64,
    /// Streams that ended, or did not begin.
    pub broken: u64,
    pub last_error: String,
}

#[derive(Clone)]
pub struct Proxies {
    seen: Arc<Mutex<Seen>>,
    tls: Arc<rustls::ClientConfig>,
    control: SocketAddr,
    /// Handshakes at the same time: a load of one core would else starve itself.
    places: Arc<Semaphore>,
}

impl Proxies {
    /// Starts them on this runtime; they come back when their stream ends.
    pub fn start(count: usize, control: SocketAddr, tls: Arc<rustls::ClientConfig>) -> Self {
        let seen = Seen {
            arrived: vec![Vec::new(); count],
            updates: vec![0; count],
            bytes: 0,
            resources: 0,
            broken: 0,
            last_error: String::new(),
        };
        let proxies = Self { seen: Arc::new(Mutex::new(seen)), tls, control, places: Arc::new(Semaphore::new(64)) };
        for n in 0..count {
            tokio::spawn(proxies.clone().proxy(n));
        }
        proxies
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until each has something.
    pub async fn until(&self, what: &str, limit: Duration, so: impl Fn(&Seen) -> usize) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            {
                let seen = self.seen();
                let missing = so(&seen);
                if missing == 0 {
                    return Ok(());
                }
                anyhow::ensure!(
                    Instant::now() < end,
                    "{what}: {missing} of {} proxies have not after {limit:?}; last error: {}",
                    seen.updates.len(),
                    seen.last_error
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn proxy(self, n: usize) {
        let mut known = HashMap::new();
        // Fixed, so that runs are alike, and different, so that they do not come at once.
        let pause = Duration::from_millis(200 + (n as u64 * 37) % 300);
        loop {
            let result = self.stream(n, &mut known).await;
            {
                let mut seen = self.seen();
                seen.broken += 1;
                seen.updates[n] = 0;
                if let Err(error) = result {
                    seen.last_error = format!("{error:#}");
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// One stream, to its end.
    async fn stream(&self, n: usize, known: &mut HashMap<String, bytes::Bytes>) -> Result<()> {
        let place = self.places.acquire().await?;
        let socket = TcpStream::connect(self.control).await.context("cannot connect")?;
        socket.set_nodelay(true)?;
        let name = rustls::pki_types::ServerName::try_from("bench")?;
        let io = TlsConnector::from(self.tls.clone()).connect(name, socket).await.context("no handshake")?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 20);
        let (mut client, connection) = builder.handshake::<_, bytes::Bytes>(io).await?;
        drop(place);
        let connection = tokio::spawn(connection);
        let result = async {
            let request = http::Request::post(format!("https://bench{}", messages::PATH))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())?;
            let (response, mut out) = client.send_request(request, false)?;
            out.send_data(messages::frame(FromProxy::Hello(hello(n))), false)?;
            let resources =
                known.iter().map(|(key, version)| Resource { key: key.clone(), version: version.clone() }).collect();
            out.send_data(messages::frame(FromProxy::Known(Known { resources, last: true })), false)?;
            let mut body = response.await.context("no answer")?.into_body();
            let mut buffer = BytesMut::new();
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
                self.seen().bytes += data.len() as u64;
                buffer.extend_from_slice(&data);
                while let Some(message) = messages::take(&mut buffer)? {
                    let Some(update) = message.update else { continue };
                    let (nonce, last) = (update.nonce.clone(), update.last);
                    let change = self.take_in(known, update);
                    if last {
                        out.send_data(messages::frame(FromProxy::Ack(Ack { nonce })), false)?;
                    }
                    self.arrived(n, change, last);
                }
            }
            let trailers = body.trailers().await?.unwrap_or_default();
            let text = |name: &str| trailers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("-").to_owned();
            anyhow::bail!("the stream ended: {} {}", text("grpc-status"), text("grpc-message"))
        };
        let result = result.await;
        connection.abort();
        result
    }

    /// Keeps versions; the newest change that it brings.
    fn take_in(&self, known: &mut HashMap<String, bytes::Bytes>, update: Update) -> Option<usize> {
        self.seen().resources += update.upserts.len() as u64;
        let mut change = None;
        for upsert in update.upserts {
            change = change.max(resources::change_of(&upsert.resource));
            known.insert(upsert.key, upsert.version);
        }
        for key in update.removals {
            known.remove(&key);
        }
        change
    }

    fn arrived(&self, n: usize, change: Option<usize>, last: bool) {
        let mut seen = self.seen();
        seen.updates[n] += u64::from(last);
        if let Some(change) = change {
            // An update that comes later holds all changes before it.
            let arrived = &mut seen.arrived[n];
            let now = Instant::now();
            if arrived.len() <= change {
                arrived.resize(change + 1, now);
            }
        }
    }
}

impl Seen {
    /// How many have not got a change.
    pub fn without(&self, change: usize) -> usize {
        self.arrived.iter().filter(|a| a.len() <= change).count()
    }

    /// When a change was at each proxy.
    pub fn times(&self, change: usize) -> impl Iterator<Item = Instant> {
        self.arrived.iter().filter_map(move |a| a.get(change).copied())
    }

    /// How many have not got everything on their stream.
    pub fn incomplete(&self) -> usize {
        self.updates.iter().filter(|&&n| n == 0).count()
    }
}

fn hello(n: usize) -> Hello {
    let subscriptions = resources::used(n).into_iter().map(|host| Subscription { host: Some(host) }).collect();
    Hello {
        id: format!("proxy-{n}"),
        role: messages::SIDECAR,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        workloads: vec![format!("bench/p{n}")],
        subscriptions,
    }
}
