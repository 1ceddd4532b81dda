//! Simulated proxies: real streams with mutual TLS that take in and acknowledge what comes, and compile nothing.

use super::{
    deaths,
    messages::{self, Ack, ControlMessage, FromProxy, Hello, Known, Resource, Subscription, Update},
    resources,
};
use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, sync::Semaphore, task::JoinHandle};
use tokio_rustls::{TlsConnector, rustls};

/// Between tries to connect, as of real proxies: at first and at most, and of it a random half to all.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// After a stream that has lasted so long the wait is short again.
const GOOD: Duration = Duration::from_secs(10);

/// What all proxies have seen together.
pub struct Seen {
    /// By proxy: changes up to this one have arrived, and when each did.
    arrived: Vec<Vec<Instant>>,
    /// By proxy: how many updates it has acknowledged on this stream.
    pub updates: Vec<u64>,
    /// By proxy: of workloads that join and die, whether they are there, and since when.
    mortals: Vec<HashMap<String, (bool, Instant)>>,
    /// Bytes of messages.
    pub bytes: u64,
    /// Resources that were sent.
    pub resources: u64,
    /// Streams that ended.
    pub broken: u64,
    pub last_error: String,
    /// Connections that were accepted, by which control plane and when.
    accepted: Vec<(SocketAddr, Instant)>,
}

#[derive(Clone)]
pub struct Proxies {
    seen: Arc<Mutex<Seen>>,
    tls: Arc<rustls::ClientConfig>,
    controls: Arc<[SocketAddr]>,
    /// Hosts that they all use besides.
    hosts: Arc<[String]>,
    /// Handshakes at the same time: a load of one core would else starve itself.
    places: Arc<Semaphore>,
}

/// A stream. Its connection is cut with it.
pub struct Stream {
    out: h2::SendStream<Bytes>,
    body: h2::RecvStream,
    buffer: BytesMut,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl Proxies {
    /// Starts them on this runtime; they come back when their stream ends. `places`: handshakes at the same time.
    pub fn start(
        count: usize,
        controls: &[SocketAddr],
        hosts: &[String],
        places: usize,
        tls: Arc<rustls::ClientConfig>,
    ) -> Self {
        let seen = Seen {
            arrived: vec![Vec::new(); count],
            updates: vec![0; count],
            mortals: vec![HashMap::new(); count],
            bytes: 0,
            resources: 0,
            broken: 0,
            last_error: String::new(),
            accepted: Vec::new(),
        };
        let proxies = Self {
            seen: Arc::new(Mutex::new(seen)),
            tls,
            controls: controls.into(),
            hosts: hosts.into(),
            places: Arc::new(Semaphore::new(places)),
        };
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
        let (mut known, mut tries) = (HashMap::new(), Tries::new(n, &self.controls));
        loop {
            let began = Instant::now();
            let result = self.stream(n, tries.control(), &mut known).await;
            {
                let mut seen = self.seen();
                seen.broken += u64::from(seen.updates[n] > 0);
                seen.updates[n] = 0;
                if let Err(error) = result {
                    seen.last_error = format!("{error:#}");
                }
            }
            tokio::time::sleep(tries.failed(began.elapsed())).await;
        }
    }

    /// One stream, to its end.
    async fn stream(&self, n: usize, control: SocketAddr, known: &mut HashMap<String, Bytes>) -> Result<()> {
        let resources =
            known.iter().map(|(key, version)| Resource { key: key.clone(), version: version.clone() }).collect();
        let mut stream = self.open(control, self.hello(n), Known { resources, last: true }).await?;
        loop {
            let Some(update) = stream.next(self).await?.update else { continue };
            let (nonce, last) = (update.nonce.clone(), update.last);
            let change = self.take_in(n, known, update);
            if last {
                stream.send(FromProxy::Ack(Ack { nonce }))?;
            }
            self.arrived(n, change, last);
        }
    }

    /// Connects, and says who it is and what it has.
    pub async fn open(&self, control: SocketAddr, hello: Hello, known: Known) -> Result<Stream> {
        let place = self.places.acquire().await?;
        let socket = TcpStream::connect(control).await.context("cannot connect")?;
        self.seen().accepted.push((control, Instant::now()));
        socket.set_nodelay(true)?;
        let name = rustls::pki_types::ServerName::try_from("bench")?;
        let io = TlsConnector::from(self.tls.clone()).connect(name, socket).await.context("no handshake")?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 20);
        let (client, connection) = builder.handshake::<_, Bytes>(io).await?;
        drop(place);
        let connection = tokio::spawn(connection);
        let opened = speak(client, hello, known).await;
        if opened.is_err() {
            connection.abort();
        }
        let (out, body) = opened?;
        Ok(Stream { out, body, buffer: BytesMut::new(), connection })
    }

    /// Keeps versions; the newest change that it brings.
    fn take_in(&self, n: usize, known: &mut HashMap<String, Bytes>, update: Update) -> Option<usize> {
        let mut seen = self.seen();
        seen.resources += update.upserts.len() as u64;
        let (mut change, now) = (None, Instant::now());
        for upsert in update.upserts {
            change = change.max(resources::change_of(&upsert.resource));
            if deaths::is_mortal(&upsert.key) {
                seen.mortals[n].insert(upsert.key.clone(), (true, now));
            }
            known.insert(upsert.key, upsert.version);
        }
        for key in update.removals {
            known.remove(&key);
            if deaths::is_mortal(&key) {
                seen.mortals[n].insert(key, (false, now));
            }
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

    fn hello(&self, n: usize) -> Hello {
        let hosts = resources::used(n).into_iter().chain(self.hosts.iter().cloned());
        let subscriptions = hosts.map(|host| Subscription { host: Some(host) }).collect();
        Hello { subscriptions, ..hello(&format!("p{n}")) }
    }
}

/// Of a proxy beside a workload of the namespace `bench`.
pub fn hello(workload: &str) -> Hello {
    Hello {
        id: format!("proxy-{workload}"),
        role: messages::SIDECAR,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        workloads: vec![format!("bench/{workload}")],
        subscriptions: Vec::new(),
    }
}

async fn speak(
    mut client: h2::client::SendRequest<Bytes>,
    hello: Hello,
    known: Known,
) -> Result<(h2::SendStream<Bytes>, h2::RecvStream)> {
    let request = http::Request::post(format!("https://bench{}", messages::PATH))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut out) = client.send_request(request, false)?;
    out.send_data(messages::frame(FromProxy::Hello(hello)), false)?;
    out.send_data(messages::frame(FromProxy::Known(known)), false)?;
    Ok((out, response.await.context("no answer")?.into_body()))
}

impl Stream {
    pub fn send(&mut self, message: FromProxy) -> Result<()> {
        Ok(self.out.send_data(messages::frame(message), false)?)
    }

    /// The next message. Giving up the future loses nothing.
    pub async fn next(&mut self, proxies: &Proxies) -> Result<ControlMessage> {
        loop {
            if let Some(message) = messages::take(&mut self.buffer)? {
                return Ok(message);
            }
            let Some(data) = self.body.data().await else { break };
            let data = data?;
            self.body.flow_control().release_capacity(data.len())?;
            proxies.seen().bytes += data.len() as u64;
            self.buffer.extend_from_slice(&data);
        }
        let trailers = self.body.trailers().await?.unwrap_or_default();
        let text = |name: &str| trailers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("-").to_owned();
        anyhow::bail!("the stream ended: {} {}", text("grpc-status"), text("grpc-message"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.abort();
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

    /// How many do not know that a workload is there, or that it is not.
    pub fn unaware(&self, mortal: &str, there: bool) -> usize {
        self.mortals.iter().filter(|m| m.get(mortal).is_none_or(|(is, _)| *is != there)).count()
    }

    /// When the last one heard of it.
    pub fn last_heard(&self, mortal: &str) -> Option<Instant> {
        self.mortals.iter().filter_map(|m| m.get(mortal).map(|(_, at)| *at)).max()
    }

    /// The most connections that one control plane accepted within 100 ms, since it was last asked.
    pub fn crowd(&mut self) -> usize {
        let mut recent: HashMap<SocketAddr, VecDeque<Instant>> = HashMap::new();
        let mut most = 0;
        for (control, at) in std::mem::take(&mut self.accepted) {
            let recent = recent.entry(control).or_default();
            while recent.pop_front_if(|old| at.duration_since(*old) >= Duration::from_millis(100)).is_some() {}
            recent.push_back(at);
            most = most.max(recent.len());
        }
        most
    }
}

/// Where and when a proxy tries to connect, as real ones do it: each control plane in turn, in an order of its own.
struct Tries {
    controls: Vec<SocketAddr>,
    at: usize,
    wait: Duration,
    random: u64,
}

impl Tries {
    /// Fixed by the number of the proxy, so that runs are alike.
    fn new(n: usize, controls: &[SocketAddr]) -> Self {
        let mut tries = Self { controls: controls.to_vec(), at: 0, wait: BACKOFF.0, random: n as u64 };
        tries.shuffle(controls.len());
        tries
    }

    fn control(&self) -> SocketAddr {
        self.controls[self.at]
    }

    /// How long to wait, after a stream that has lasted so long or did not come about.
    fn failed(&mut self, lasted: Duration) -> Duration {
        let last = self.controls.len() - 1;
        if lasted >= GOOD {
            self.wait = BACKOFF.0;
            self.controls.swap(self.at, last);
            self.shuffle(last);
            self.at = 0;
        } else if self.at < last {
            self.at += 1;
        } else {
            self.shuffle(self.controls.len());
            self.at = 0;
        }
        let wait = self.wait / 2 + self.wait.mul_f64(self.random() as f64 / u64::MAX as f64 / 2.0);
        self.wait = (self.wait * 2).min(BACKOFF.1);
        wait
    }

    fn shuffle(&mut self, count: usize) {
        for last in (1..count).rev() {
            let other = self.random() % (last as u64 + 1);
            self.controls.swap(last, other as usize);
        }
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_go_round_and_are_spread() {
        let controls: Vec<SocketAddr> = [1, 2].map(|port| ([127, 0, 0, 1], port).into()).to_vec();
        let first = (0..1_000).filter(|n| Tries::new(*n, &controls).control() == controls[0]).count();
        assert!((400..=600).contains(&first), "{first}");
        let mut tries = Tries::new(7, &controls);
        let (one, wait) = (tries.control(), tries.failed(Duration::ZERO));
        assert!(wait >= BACKOFF.0 / 2 && wait <= BACKOFF.0 && tries.control() != one, "{wait:?}");
        (0..9).for_each(|_| _ = tries.failed(Duration::ZERO));
        let (lost, wait) = (tries.control(), tries.failed(Duration::ZERO));
        assert!(wait >= BACKOFF.1 / 2 && wait <= BACKOFF.1, "{wait:?} from {lost}");
        let lost = tries.control();
        assert!(tries.failed(GOOD) <= BACKOFF.0 && tries.control() != lost);
    }
}
