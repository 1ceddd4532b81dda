//! DNS names as backends: looked up again when their TTL has passed, and kept as they were when that fails.

use crate::cluster::LiveCluster;
use hickory_resolver::{
    Resolver,
    config::{LookupIpStrategy, NameServerConfig, ResolverConfig},
    net::runtime::{RuntimeProvider, TokioRuntimeProvider, iocompat::AsyncIoTokioAsStd},
};
use socket2::SockRef;
use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, SystemTime},
};
use tokio::{
    net::{TcpSocket, TcpStream, UdpSocket},
    runtime::Handle,
    time::{sleep, timeout},
};

/// Endpoints that one name may stand for; more are ignored.
pub const MAX_ADDRESSES: usize = 1000;
/// A TTL below this would be a query storm.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// However long the TTL: a moved service is found after this at last.
const MAX_INTERVAL: Duration = Duration::from_secs(300);
/// After a failure; doubled with each, up to 30 s.
const RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(30);
/// How long addresses of one family wait for those of the other, which may never come.
const GRACE: Duration = Duration::from_secs(1);
/// After that they are asked for again soon.
const LATE: Duration = Duration::from_secs(30);
/// For one lookup with all of the resolver's own retries.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Addresses and how long they hold, or why there are none.
pub type Found = Result<(Vec<IpAddr>, Duration), String>;

/// Looks up names. The system's DNS in production, a script in tests.
pub trait Lookup: Send + Sync + 'static {
    fn lookup<'a>(&'a self, host: &'a str) -> Pin<Box<dyn Future<Output = Found> + Send + 'a>>;
}

/// DNS as `/etc/resolv.conf` says, and `/etc/hosts`; both are read again when they change. Addresses of both families
/// are asked for at the same time.
#[derive(Default)]
pub struct SystemLookup {
    /// Asked instead of those in `/etc/resolv.conf`, unless empty.
    servers: Vec<SocketAddr>,
    sockets: Sockets,
    resolvers: Mutex<Option<(Stamp, Resolvers)>>,
}

/// One for each family, so that servers that never answer questions for one of them do not spoil the other.
#[derive(Clone)]
struct Resolvers {
    v4: Resolver<Sockets>,
    v6: Resolver<Sockets>,
}

/// Sockets to DNS servers, marked: where DNS is captured, queries of ours would come back to the process, which answers some
/// names with addresses that only it understands.
#[derive(Clone, Default)]
struct Sockets {
    tokio: TokioRuntimeProvider,
    mark: Option<u32>,
}

impl Sockets {
    fn mark(&self, socket: &SockRef<'_>) -> io::Result<()> {
        self.mark.map_or(Ok(()), |mark| socket.set_mark(mark))
    }
}

impl RuntimeProvider for Sockets {
    type Handle = <TokioRuntimeProvider as RuntimeProvider>::Handle;
    type Timer = <TokioRuntimeProvider as RuntimeProvider>::Timer;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.tokio.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        bind: Option<SocketAddr>,
        limit: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        let sockets = self.clone();
        Box::pin(async move {
            let socket = if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            sockets.mark(&SockRef::from(&socket))?;
            if let Some(bind) = bind {
                socket.bind(bind)?;
            }
            let stream = timeout(limit.unwrap_or(LOOKUP_TIMEOUT), socket.connect(server)).await??;
            Ok(AsyncIoTokioAsStd(stream))
        })
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        _server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        let sockets = self.clone();
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            sockets.mark(&SockRef::from(&socket))?;
            Ok(socket)
        })
    }
}

/// When the files that a resolver was made from had last changed.
type Stamp = [Option<SystemTime>; 2];

impl Lookup for SystemLookup {
    fn lookup<'a>(&'a self, host: &'a str) -> Pin<Box<dyn Future<Output = Found> + Send + 'a>> {
        Box::pin(async move {
            if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
                return Ok((vec![ip], MAX_INTERVAL));
            }
            let resolvers = self.resolvers()?;
            let name = host.trim_end_matches('.');
            match both(one(&resolvers.v4, host), one(&resolvers.v6, host)).await {
                Ok(found) => Ok(found),
                // RFC 6761: the name means this machine even where /etc/hosts does not say so.
                Err(_) if name.eq_ignore_ascii_case("localhost") || name.ends_with(".localhost") => {
                    Ok((vec![Ipv4Addr::LOCALHOST.into()], MAX_INTERVAL))
                }
                Err(error) => Err(error),
            }
        })
    }
}

/// What one resolver finds.
async fn one(resolver: &Resolver<Sockets>, host: &str) -> Found {
    let found = resolver.lookup_ip(host).await.map_err(|error| error.to_string())?;
    let addresses: Vec<IpAddr> = found.iter().take(MAX_ADDRESSES).collect();
    Ok((addresses, found.valid_until().saturating_duration_since(std::time::Instant::now())))
}

/// The addresses of both families. When those of one are there, the other's are waited for no longer than [`GRACE`].
async fn both(v4: impl Future<Output = Found>, v6: impl Future<Output = Found>) -> Found {
    let (mut v4, mut v6) = (pin!(v4), pin!(v6));
    let (first, second) = tokio::select! {
        first = &mut v4 => match first {
            Ok(_) => (first, timeout(GRACE, v6).await.ok()),
            Err(_) => (first, Some(v6.await)),
        },
        first = &mut v6 => match first {
            Ok(_) => (first, timeout(GRACE, v4).await.ok()),
            Err(_) => (first, Some(v4.await)),
        },
    };
    match (first, second) {
        (Ok((mut addresses, ttl)), Some(Ok((more, other)))) => {
            addresses.extend(more);
            Ok((addresses, ttl.min(other)))
        }
        (Err(_), Some(second)) => second,
        // The other family may yet come.
        (Ok((addresses, ttl)), None) => Ok((addresses, ttl.min(LATE))),
        (first, _) => first,
    }
}

impl SystemLookup {
    /// `servers` are asked instead of those in `/etc/resolv.conf`, unless empty; `mark` is the SO_MARK of all sockets.
    pub fn new(servers: Vec<SocketAddr>, mark: Option<u32>) -> Self {
        let sockets = Sockets { tokio: TokioRuntimeProvider::default(), mark };
        Self { servers, sockets, resolvers: Mutex::default() }
    }

    fn given(&self) -> ResolverConfig {
        let server = |address: &SocketAddr| {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            server.connections.iter_mut().for_each(|connection| connection.port = address.port());
            server
        };
        ResolverConfig::from_name_servers(self.servers.iter().map(server).collect())
    }

    fn resolvers(&self) -> Result<Resolvers, String> {
        let modified = |path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        let stamp = [modified("/etc/resolv.conf"), modified("/etc/hosts")];
        let mut slot = self.resolvers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, resolvers)) = &*slot
            && *made == stamp
        {
            return Ok(resolvers.clone());
        }
        let (v4, v6) = (self.resolver(LookupIpStrategy::Ipv4Only)?, self.resolver(LookupIpStrategy::Ipv6Only)?);
        let resolvers = Resolvers { v4, v6 };
        *slot = Some((stamp, resolvers.clone()));
        Ok(resolvers)
    }

    fn resolver(&self, strategy: LookupIpStrategy) -> Result<Resolver<Sockets>, String> {
        let with = |config| Resolver::builder_with_config(config, self.sockets.clone());
        let mut builder = match Resolver::builder(self.sockets.clone()) {
            _ if !self.servers.is_empty() => with(self.given()),
            Ok(builder) => builder,
            Err(error) => {
                tracing::warn!(%error, "/etc/resolv.conf cannot be used: only /etc/hosts and literal addresses resolve");
                with(ResolverConfig::default())
            }
        };
        let options = builder.options_mut();
        options.ip_strategy = strategy;
        // A name that does not exist yet may soon: the retries decide when to ask again.
        options.negative_max_ttl = Some(RETRY);
        options.positive_max_ttl = Some(MAX_INTERVAL);
        builder.build().map_err(|error| format!("no DNS resolver: {error}"))
    }
}

/// Resolves for a cluster until it is gone.
pub(crate) async fn run(cluster: Weak<LiveCluster>, lookup: Arc<dyn Lookup>, host: String, port: u16, rt: Handle) {
    let mut failures = 0u32;
    loop {
        let found = match timeout(LOOKUP_TIMEOUT, lookup.lookup(&host)).await {
            Ok(Ok((addresses, _))) if addresses.is_empty() => Err("the name has no addresses".to_owned()),
            Ok(found) => found,
            Err(_) => Err(format!("no answer within {LOOKUP_TIMEOUT:?}")),
        };
        let Some(cluster) = cluster.upgrade() else { return };
        let pause = match &found {
            Ok((_, ttl)) => {
                failures = 0;
                (*ttl).clamp(MIN_INTERVAL, MAX_INTERVAL)
            }
            Err(_) => {
                failures = failures.saturating_add(1);
                RETRY.saturating_mul(1 << (failures - 1).min(6)).min(MAX_RETRY)
            }
        };
        cluster.resolved((&host, port), found.map(|(addresses, _)| addresses), &rt);
        drop(cluster);
        // Up to a tenth later, so that many clusters do not ask in step.
        sleep(pause + pause.mul_f64(rand::random::<f64>() / 10.0)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_family_that_never_answers_is_not_waited_for() {
        let (v4, v6) = ("192.0.2.7".parse::<IpAddr>().unwrap(), "2001:db8::7".parse::<IpAddr>().unwrap());
        let ttl = Duration::from_secs(60);
        let after = |millis: u64, found: Found| async move {
            sleep(Duration::from_millis(millis)).await;
            found
        };
        let found = |ip| Ok((vec![ip], ttl));
        let silent = || Err("the name has no such addresses".to_owned());
        let begin = tokio::time::Instant::now();
        assert_eq!(both(after(10, found(v4)), after(900, Ok((vec![v6], ttl / 2)))).await, Ok((vec![v4, v6], ttl / 2)));
        assert_eq!(both(after(10, found(v4)), std::future::pending()).await, Ok((vec![v4], LATE)));
        assert_eq!(both(std::future::pending(), after(10, found(v6))).await, Ok((vec![v6], LATE)));
        assert_eq!(begin.elapsed(), Duration::from_millis(900 + 2 * 1010));
        assert_eq!(both(after(10, silent()), after(20, found(v6))).await, found(v6));
        assert_eq!(both(after(20, found(v4)), after(10, silent())).await, found(v4));
        assert_eq!(both(after(10, silent()), after(20, silent())).await, silent());
    }

    #[tokio::test]
    async fn literals_and_localhost_need_no_dns() {
        let lookup = SystemLookup::default();
        assert_eq!(lookup.lookup("192.0.2.7").await.unwrap().0, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(lookup.lookup("[2001:db8::1]").await.unwrap().0, ["2001:db8::1".parse::<IpAddr>().unwrap()]);
        let local = lookup.lookup("localhost").await.unwrap().0;
        assert!(local.iter().all(IpAddr::is_loopback) && !local.is_empty(), "{local:?}");
    }

    #[tokio::test]
    async fn servers_that_are_given_are_asked_instead() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let lookup = SystemLookup::new(vec![server.local_addr().unwrap()], None);
        let answers = async {
            loop {
                let mut query = [0; 512];
                let (length, from) = server.recv_from(&mut query).await.unwrap();
                // The question, and for A one address: 192.0.2.9 for 60 s.
                let mut answer = query[..length].to_vec();
                let end = 12 + answer[12..].iter().position(|b| *b == 0).unwrap() + 5;
                let a = answer[end - 4..end - 2] == [0, 1];
                answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, a.into(), 0, 0, 0, 0]);
                answer.truncate(end);
                if a {
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 9]);
                }
                server.send_to(&answer, from).await.unwrap();
            }
        };
        let found = tokio::select! {
            found = lookup.lookup("api.example.com.") => found,
            () = answers => unreachable!("it answers for ever"),
        };
        assert_eq!(found.unwrap().0, ["192.0.2.9".parse::<IpAddr>().unwrap()]);
    }
}
