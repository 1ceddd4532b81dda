//! A listening UDP socket that knows to which of the machine's addresses a datagram was sent, so that the answer comes
//! from there. A client that asked one address ignores an answer from another.

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
};
use tokio::{io::Interest, net::UdpSocket};

pub(super) struct LocalSocket {
    socket: UdpSocket,
    /// `None`: bound to one address, which answers come from anyway.
    any: Option<Family>,
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

/// One datagram that was received.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    pub length: usize,
    pub from: SocketAddr,
    /// The address it was sent to, when the socket is bound to all.
    pub to: Option<IpAddr>,
}

impl LocalSocket {
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        let any = match socket.local_addr()?.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => {
                setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
                Some(Family::V4)
            }
            IpAddr::V6(ip) if ip.is_unspecified() => {
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
                Some(Family::V6)
            }
            _ => None,
        };
        Ok(Self { socket, any })
    }

    pub async fn receive(&self, buf: &mut [u8]) -> io::Result<Received> {
        if self.any.is_none() {
            let (length, from) = self.socket.recv_from(buf).await?;
            return Ok(Received { length, from, to: None });
        }
        self.socket.async_io(Interest::READABLE, || receive_with_address(&self.socket, buf)).await
    }

    /// Sends from `source`, which a [`Received::to`] was.
    pub async fn send(&self, bytes: &[u8], to: SocketAddr, source: Option<IpAddr>) -> io::Result<()> {
        match self.any.zip(source) {
            None => self.socket.send_to(bytes, to).await.map(|_| ()),
            Some((family, source)) => {
                let send = || send_from(&self.socket, bytes, to, family, source);
                self.socket.async_io(Interest::WRITABLE, send).await
            }
        }
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

fn receive_with_address(socket: &UdpSocket, buf: &mut [u8]) -> io::Result<Received> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut parts = [IoSliceMut::new(buf)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let to = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr))))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr))),
        _ => None,
    });
    let from = message.address.as_ref().and_then(address).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Received { length: message.bytes, from, to })
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port())));
    v4.or_else(|| storage.as_sockaddr_in6().map(|a| SocketAddr::from((a.ip(), a.port()))))
}

fn send_from(socket: &UdpSocket, bytes: &[u8], to: SocketAddr, family: Family, source: IpAddr) -> io::Result<()> {
    let to = SockaddrStorage::from(to);
    let parts = [IoSlice::new(bytes)];
    let send = |control: ControlMessage| {
        sendmsg(socket.as_raw_fd(), &parts, &[control], MsgFlags::MSG_DONTWAIT, Some(&to)).map(|_| ())
    };
    match (family, source) {
        (Family::V4, IpAddr::V4(ip)) => {
            let s_addr = u32::from(ip).to_be();
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            send(ControlMessage::Ipv4PacketInfo(&info))?;
        }
        (_, source) => {
            // An IPv4 client of a dual-stack socket: both addresses are in mapped form.
            let ip = match source {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: 0 };
            send(ControlMessage::Ipv6PacketInfo(&info))?;
        }
    }
    Ok(())
}
