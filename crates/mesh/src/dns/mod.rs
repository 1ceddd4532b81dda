//! DNS for applications beside a proxy: names of the mesh are answered here, all others are passed on.
//!
//! Queries come by capture, or because `resolv.conf` says so. Whatever they ask, an application gets the answer that it would
//! have got without the proxy, unless the mesh knows the name.

mod cache;
mod forward;
mod message;
#[doc(hidden)]
pub mod probe;
mod resolv;
mod server;
mod zone;

#[cfg(test)]
mod tests;

pub use resolv::{parse_upstream, system_upstreams};

use crate::spaces::Space;
use arc_swap::ArcSwap;
use cache::Cache;
use forward::Forwarder;
use hickory_proto::op::{Message, ResponseCode};
use message::{Asked, Limits};
use selvedge_compile::snapshot::DnsNames;
use selvedge_proxy::{
    discover::{Discover, Wanted},
    telemetry::{encode::Encoder, families::Family},
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout},
};
use zone::Known;

/// Where capture sends queries.
pub const PORT: u16 = 15053;
/// Queries that wait at once for somebody else, per server; those beyond are answered with SERVFAIL. A query holds a socket
/// and a few kilobytes.
const MAX_WAITING: usize = 512;
/// For the control plane to say whether a name belongs to the mesh; applications give up after five seconds.
const DISCOVER: Duration = Duration::from_secs(2);

/// How a server is to be.
#[derive(Debug, Clone)]
pub struct Config {
    /// UDP and TCP. Loopback addresses, one by one: an answer must come from the address that was asked.
    pub listen: Vec<SocketAddr>,
    /// Who is asked about names that are not of the mesh, in this order. Nobody when empty: those names are refused.
    pub upstream: Vec<SocketAddr>,
    /// Where sockets are made.
    pub space: Space,
    /// Of sockets to upstream servers, so that capture leaves them alone.
    pub mark: Option<u32>,
    pub discover: Option<Arc<dyn Discover>>,
}

impl Default for Config {
    fn default() -> Self {
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        Self {
            listen: loopback.map(|ip| SocketAddr::new(ip, PORT)).to_vec(),
            upstream: Vec::new(),
            space: Space::current(),
            mark: None,
            discover: None,
        }
    }
}

/// A running server. Dropped, it stops.
#[derive(Debug)]
pub struct Dns {
    shared: Arc<Shared>,
    listening: Vec<SocketAddr>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    names: ArcSwap<DnsNames>,
    discover: Option<Arc<dyn Discover>>,
    cache: Cache,
    forwarder: Forwarder,
    waiting: Arc<Semaphore>,
    counts: Counts,
}

impl Dns {
    /// Listens and serves. To be called inside a runtime, on which it then runs. IPv6 addresses are left out where there is
    /// no IPv6, as long as one address is served.
    ///
    /// # Errors
    /// When an address is taken or the namespace cannot be entered; the address is named.
    pub fn start(config: Config, names: Arc<DnsNames>) -> io::Result<Self> {
        let Config { listen, mut upstream, space, mark, discover } = config;
        upstream.retain(|server| {
            let own = listen.contains(server);
            if own {
                tracing::warn!("{server} is this DNS server itself, and is not asked");
            }
            !own
        });
        let shared = Arc::new(Shared {
            names: ArcSwap::new(names),
            discover,
            cache: Cache::default(),
            forwarder: Forwarder::new(upstream, space.clone(), mark)?,
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            counts: Counts::default(),
        });
        let (mut tasks, mut listening, mut absent) = (JoinSet::new(), Vec::new(), None);
        for address in listen {
            match server::open(&space, address) {
                Ok((local, udp, tcp)) => {
                    listening.push(local);
                    tasks.spawn(server::datagrams(shared.clone(), udp));
                    tasks.spawn(server::streams(shared.clone(), tcp));
                }
                Err(error) if address.is_ipv6() && error.kind() == io::ErrorKind::AddrNotAvailable => {
                    absent = Some(error)
                }
                Err(error) => {
                    return Err(io::Error::new(error.kind(), format!("DNS on {address} in {space}: {error}")));
                }
            }
        }
        match absent {
            Some(error) if listening.is_empty() => Err(error),
            _ => Ok(Self { shared, listening, _tasks: tasks }),
        }
    }

    /// Addresses served, by UDP and TCP.
    pub fn listening(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// Names of a newer snapshot.
    pub fn set(&self, names: Arc<DnsNames>) {
        self.shared.names.store(names);
    }

    /// Source of samples for [`selvedge_proxy::telemetry::Registry::collect`]; it ends with the server.
    pub fn samples(&self) -> impl Fn(&mut Encoder) + Send + Sync + 'static {
        Self::samples_of(&[self])
    }

    /// The same for several servers of a process, added up.
    pub fn samples_of(servers: &[&Self]) -> impl Fn(&mut Encoder) + Send + Sync + use<> + 'static {
        let servers: Vec<_> = servers.iter().map(|server| Arc::downgrade(&server.shared)).collect();
        move |out| {
            let live: Vec<_> = servers.iter().filter_map(Weak::upgrade).collect();
            if live.is_empty() {
                return;
            }
            for (index, name) in OUTCOMES.iter().enumerate() {
                let count: u64 = live.iter().map(|server| server.counts.0[index].load(Relaxed)).sum();
                out.sample(Family::DnsQueries, &[name], count);
            }
        }
    }

    /// Queries answered so far with this outcome.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.shared.counts.0[outcome as usize].load(Relaxed)
    }
}

/// What became of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A name of the mesh; also when it has no address of the family that was asked for.
    Mesh,
    /// Passed on and answered.
    Forwarded,
    /// As an upstream server had said not long ago.
    Cached,
    /// No upstream server answered.
    Failed,
    /// Not understood, or something that is not served here.
    Refused,
    /// Too many were waiting.
    Shed,
}

const OUTCOMES: [&str; 6] = ["mesh", "forwarded", "cached", "failed", "refused", "shed"];

#[derive(Debug, Default)]
struct Counts([AtomicU64; OUTCOMES.len()]);

impl Counts {
    fn add(&self, outcome: Outcome) {
        self.0[outcome as usize].fetch_add(1, Relaxed);
    }
}

/// What is to be done with the bytes of a query.
enum Heard {
    Answer(Vec<u8>),
    /// Somebody else is to be asked.
    Ask(Box<Asked>),
    /// Not to be answered.
    Nothing,
}

impl Shared {
    /// What can be said at once.
    fn hear(&self, bytes: &[u8], limits: Limits) -> Heard {
        let asked = match Asked::read(bytes, limits) {
            Ok(asked) => asked,
            Err(answer) => {
                self.counts.add(Outcome::Refused);
                return answer.map_or(Heard::Nothing, Heard::Answer);
            }
        };
        match self.known(&asked) {
            Some(answer) => Heard::Answer(answer),
            None => Heard::Ask(Box::new(asked)),
        }
    }

    fn known(&self, asked: &Asked) -> Option<Vec<u8>> {
        match zone::find(&self.names.load(), &asked.query) {
            Known::Answer(message) => {
                self.counts.add(Outcome::Mesh);
                Some(asked.answer(*message))
            }
            Known::Nothing => None,
        }
    }

    /// Asks the control plane first where the name looks like one of the mesh, then upstream; neither when upstream has said
    /// not long ago. Any other name may be of an ExternalService that nobody here has used yet, and upstream mostly knows it too:
    /// both are asked at once.
    async fn ask(&self, asked: &Asked) -> Vec<u8> {
        if let Some(message) = self.cache.get(asked, Instant::now()) {
            self.counts.add(Outcome::Cached);
            return asked.answer(message);
        }
        let likely = zone::is_likely_of_the_mesh(&self.names.load(), &asked.query);
        if likely && let Some(answer) = self.discover(asked).await {
            return answer;
        }
        if let Some(message) = zone::absent(&self.names.load(), &asked.query) {
            self.counts.add(Outcome::Mesh);
            return asked.answer(message);
        }
        let told = if likely {
            self.forwarder.exchange(asked).await
        } else {
            match self.either(asked).await {
                Ok(answer) => return answer,
                Err(told) => told,
            }
        };
        match told {
            Ok(message) => {
                self.counts.add(Outcome::Forwarded);
                self.cache.put(asked, &message, Instant::now());
                asked.answer(message)
            }
            Err(forward::Failure::Nobody) => {
                self.counts.add(Outcome::Refused);
                asked.error(zone::unknown(&self.names.load(), &asked.query))
            }
            Err(failure) => {
                self.counts.add(Outcome::Failed);
                tracing::debug!(name = %asked.query.name, "DNS: {failure}");
                asked.error(ResponseCode::ServFail)
            }
        }
    }

    /// The answer of the mesh, as soon as it is known; else what was told upstream.
    async fn either(&self, asked: &Asked) -> Result<Vec<u8>, Result<Message, forward::Failure>> {
        let (mut known, mut exchange) = (pin!(self.discover(asked)), pin!(self.forwarder.exchange(asked)));
        tokio::select! {
            known = &mut known => match known {
                Some(answer) => Ok(answer),
                None => Err(exchange.await),
            },
            told = &mut exchange => known.await.ok_or(told),
        }
    }

    /// The answer that is known after the control plane was asked.
    async fn discover(&self, asked: &Asked) -> Option<Vec<u8>> {
        let discover = self.discover.as_ref()?;
        let host = zone::host(&asked.query)?;
        // The port is not known yet; 0 stands for any.
        let _ = timeout(DISCOVER, discover.wanted(Wanted::Host(host, 0))).await;
        self.known(asked)
    }

    /// The answer when too many wait.
    fn shed(&self, asked: &Asked) -> Vec<u8> {
        self.counts.add(Outcome::Shed);
        asked.error(ResponseCode::ServFail)
    }
}

/// An empty answer to nothing yet.
fn blank(code: ResponseCode) -> Message {
    let mut message = Message::error_msg(0, hickory_proto::op::OpCode::Query, code);
    message.metadata.recursion_available = true;
    message
}
