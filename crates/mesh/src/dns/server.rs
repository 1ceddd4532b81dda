//! Sockets of the server: datagrams, and streams of messages (RFC 7766).

use super::{Heard, Shared, message::Limits};
use crate::spaces::Space;
use socket2::{Domain, Protocol, Socket, Type};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::{sleep, timeout},
};

/// Longer queries are not heard to their end, and refused as broken: a name has 255 bytes at most.
const MAX_QUERY: usize = 4096;
/// Connections at once, per address.
const MAX_CONNECTIONS: usize = 128;
/// For the next query, or for the rest of one, or for a client to take an answer.
const IDLE: Duration = Duration::from_secs(10);
/// After an error of a socket, so that one which stays costs no processor.
const PAUSE: Duration = Duration::from_millis(50);
/// How often the kernel may choose a port for TCP that somebody has for UDP.
const TRIES: usize = 16;

/// Sockets for both protocols at one port, and where they are.
pub(super) fn open(space: &Space, address: SocketAddr) -> io::Result<(SocketAddr, UdpSocket, TcpListener)> {
    let (udp, tcp) = space.within(|| sockets(address))??;
    let tcp = TcpListener::from_std(tcp.into())?;
    Ok((tcp.local_addr()?, UdpSocket::from_std(udp.into())?, tcp))
}

fn sockets(address: SocketAddr) -> io::Result<(Socket, Socket)> {
    let mut tries = if address.port() == 0 { TRIES } else { 1 };
    loop {
        tries -= 1;
        match pair(address) {
            Err(error) if tries > 0 && error.kind() == io::ErrorKind::AddrInUse => {}
            done => return done,
        }
    }
}

fn pair(address: SocketAddr) -> io::Result<(Socket, Socket)> {
    let open = |address: SocketAddr, kind, protocol| {
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&address.into())?;
        Ok::<_, io::Error>(socket)
    };
    let tcp = open(address, Type::STREAM, Protocol::TCP)?;
    tcp.listen(128)?;
    // The same port, also when the kernel chose it.
    let port = tcp.local_addr()?.as_socket().map_or(address.port(), |local| local.port());
    let udp = open(SocketAddr::new(address.ip(), port), Type::DGRAM, Protocol::UDP)?;
    Ok((udp, tcp))
}

pub(super) async fn datagrams(shared: Arc<Shared>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut buffer = [0; MAX_QUERY];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!("DNS: {error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        let answer = match shared.hear(&buffer[..length], Limits::Datagram) {
            Heard::Nothing => continue,
            Heard::Answer(answer) => answer,
            Heard::Ask(asked) => match shared.waiting.clone().try_acquire_owned() {
                Ok(place) => {
                    let (shared, socket) = (shared.clone(), socket.clone());
                    tokio::spawn(async move {
                        let answer = shared.ask(&asked).await;
                        drop(place);
                        send(&socket, &answer, peer);
                    });
                    continue;
                }
                Err(_) => shared.shed(&asked),
            },
        };
        send(&socket, &answer, peer);
    }
}

/// An answer that finds no room now is lost, as others are on their way; the client asks again.
fn send(socket: &UdpSocket, answer: &[u8], peer: SocketAddr) {
    if let Err(error) = socket.try_send_to(answer, peer) {
        tracing::debug!("DNS: an answer to {peer} is lost: {error}");
    }
}

pub(super) async fn streams(shared: Arc<Shared>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Who comes when all are taken waits in the backlog.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    // The client went away, or was too slow: either is its own affair.
                    let _ = converse(&shared, stream).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!("DNS: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Queries of one connection, one after the other.
async fn converse(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    let mut query = Vec::new();
    loop {
        let length = usize::from(timeout(IDLE, stream.read_u16()).await??);
        if length > MAX_QUERY {
            return Ok(());
        }
        query.resize(length, 0);
        timeout(IDLE, stream.read_exact(&mut query)).await??;
        let answer = match shared.hear(&query, Limits::Stream) {
            Heard::Nothing => return Ok(()),
            Heard::Answer(answer) => answer,
            Heard::Ask(asked) => match shared.waiting.try_acquire() {
                Ok(_place) => shared.ask(&asked).await,
                Err(_) => shared.shed(&asked),
            },
        };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        timeout(IDLE, stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())).await??;
    }
}
