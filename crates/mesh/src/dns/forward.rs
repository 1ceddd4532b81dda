//! Asking upstream servers: by UDP, and by TCP when an answer does not fit.

use super::message::Asked;
use crate::spaces::Space;
use hickory_proto::op::{Message, ResponseCode};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, UdpSocket},
    time::timeout,
};

/// For one server to answer. Three tries fit into the five seconds after which applications give up.
const TRY: Duration = Duration::from_millis(1500);
const TRIES: usize = 3;
/// Datagrams that answer something else, after which a try is given up: somebody is guessing.
const MAX_STRAYS: usize = 16;
/// Ports that are tried before the kernel chooses one.
const MAX_PORTS: usize = 8;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("there is no upstream server")]
    Nobody,
    #[error("upstream server {server}: {error}")]
    Server { server: SocketAddr, error: io::Error },
}

#[derive(Debug)]
pub(super) struct Forwarder {
    servers: Vec<SocketAddr>,
    /// The one that answered last is asked first.
    preferred: AtomicUsize,
    space: Space,
    mark: Option<u32>,
    ports: Option<RangeInclusive<u16>>,
}

impl Forwarder {
    pub fn new(servers: Vec<SocketAddr>, space: Space, mark: Option<u32>) -> io::Result<Self> {
        let ports = space.within(free_ports)?;
        Ok(Self { servers, preferred: AtomicUsize::new(0), space, mark, ports })
    }

    /// What the first server says that has an answer. "Does not exist" is one; a server's own failure is not, unless all fail.
    pub async fn exchange(&self, asked: &Asked) -> Result<Message, Failure> {
        let (mut failure, mut last) = (Failure::Nobody, None);
        let first = self.preferred.load(Relaxed);
        for attempt in 0..TRIES {
            let Some(index) = (first + attempt).checked_rem(self.servers.len()) else { break };
            let server = self.servers[index];
            let tried = timeout(TRY, self.ask(server, asked)).await;
            match tried.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(message) if is_failure(&message) => last = Some(message),
                Ok(message) => {
                    self.preferred.store(index, Relaxed);
                    return Ok(message);
                }
                Err(error) => failure = Failure::Server { server, error },
            }
        }
        last.ok_or(failure)
    }

    async fn ask(&self, server: SocketAddr, asked: &Asked) -> io::Result<Message> {
        let id = rand::random();
        let query = asked.forwarded(id).to_vec().map_err(io::Error::other)?;
        let message = self.by_datagram(server, asked, id, &query).await?;
        if message.metadata.truncation {
            // The limit of the try holds for both.
            return self.by_stream(server, asked, id, &query).await;
        }
        Ok(message)
    }

    async fn by_datagram(&self, server: SocketAddr, asked: &Asked, id: u16, query: &[u8]) -> io::Result<Message> {
        let socket = UdpSocket::from_std(self.space.within(|| self.datagram_socket(server))??.into())?;
        socket.send(query).await?;
        let mut buffer = [0; 4096];
        for _ in 0..MAX_STRAYS {
            let length = socket.recv(&mut buffer).await?;
            match Message::from_vec(&buffer[..length]) {
                Ok(message) if asked.is_answered_by(&message, id) => return Ok(message),
                // From the server by its address, but perhaps not from the server.
                _ => {}
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "only answers to something else"))
    }

    async fn by_stream(&self, server: SocketAddr, asked: &Asked, id: u16, query: &[u8]) -> io::Result<Message> {
        let make = || {
            let socket = if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            if let Some(mark) = self.mark {
                SockRef::from(&socket).set_mark(mark)?;
            }
            Ok::<_, io::Error>(socket)
        };
        let mut stream = self.space.within(make)??.connect(server).await?;
        let length = u16::try_from(query.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await?;
        let mut answer = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut answer).await?;
        match Message::from_vec(&answer) {
            Ok(message) if asked.is_answered_by(&message, id) => Ok(message),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to something else")),
        }
    }

    /// A socket at a port that is hard to guess, and that no application has: the kernel may remember for a while that an
    /// application's query from the same port to the same server was redirected, and would redirect ours.
    fn datagram_socket(&self, server: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(server), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        let any = match server {
            SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let ports = self.ports.iter().cycle().take(MAX_PORTS).map(|ports| rand::random_range(ports.clone()));
        for port in ports.chain([0]) {
            match socket.bind(&SocketAddr::new(any, port).into()) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && port != 0 => {}
                other => {
                    other?;
                    break;
                }
            }
        }
        socket.connect(&server.into())?;
        Ok(socket)
    }
}

fn is_failure(message: &Message) -> bool {
    matches!(message.metadata.response_code, ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp)
}

/// Ports that the kernel gives to no application that has not asked for them; `None` when those are too few to be a secret.
fn free_ports() -> Option<RangeInclusive<u16>> {
    // Of the namespace of the thread that reads, unlike /proc/net.
    outside(&fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?)
}

fn outside(range: &str) -> Option<RangeInclusive<u16>> {
    const ENOUGH: u16 = 2048;
    const FIRST: u16 = 10_240;
    let mut ends = range.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else { return None };
    match () {
        () if u16::MAX - last >= ENOUGH => Some(last + 1..=u16::MAX),
        () if first >= FIRST + ENOUGH => Some(FIRST..=first - 1),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_ours_are_not_those_of_applications() {
        assert_eq!(outside("32768\t60999\n"), Some(61000..=65535));
        assert_eq!(outside("32768 65535"), Some(10_240..=32_767));
        assert_eq!(outside("1024 65535"), None);
        assert_eq!(outside("1024 65534"), None);
        assert_eq!(outside("x"), None);
        assert_eq!(outside(""), None);
    }
}
