//! What the kernel remembers of DNS queries by UDP: where it sent the first datagram of a socket, it sends all further ones, for
//! as long as no 30 s (120 s after some answers) pass without any. Rules are asked once.

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, ProtoTuple, Protocol, Status, Tuple},
};
use rustix::{
    io::{Errno, retry_on_intr},
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with, sockopt},
};
use std::{io, os::fd::OwnedFd, time::Duration};

/// The port of queries.
const DNS: u16 = 53;
/// The zone of an entry (uapi/linux/netfilter/nfnetlink_conntrack.h); without it only those of zone 0 are found again.
const CTA_ZONE: u16 = 18;
/// The kernel answers in messages of at most 32 KiB (NLMSG_GOODSIZE of a dump).
const BUFFER: usize = 64 << 10;
/// For one answer of the kernel, which has it at hand.
const PATIENCE: Duration = Duration::from_secs(5);

/// Has the kernel forget where it sent queries: those it redirected, and with `all` those it did not. The next datagram of each
/// socket goes where the rules say now. Returns how many it were.
pub(super) fn forget(all: bool) -> io::Result<usize> {
    let mut kernel = Kernel::open()?;
    let flows = kernel.flows(all)?;
    let mut forgotten = 0;
    for (family, attributes) in flows {
        forgotten += usize::from(kernel.delete(family, attributes)?);
    }
    Ok(forgotten)
}

type Flow = (NetfilterProtoFamily, Vec<ConntrackAttribute>);

struct Kernel {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Kernel {
    fn open() -> io::Result<Self> {
        let kind = SocketType::RAW;
        let socket = socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// How each flow of queries is named to the kernel.
    fn flows(&mut self, all: bool) -> io::Result<Vec<Flow>> {
        let mut flows = Vec::new();
        self.ask(NetfilterProtoFamily::Unspec, ConntrackMessage::Get(Vec::new()), NLM_F_DUMP, |message| {
            if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner
                && is_query(&attributes)
                && (all || is_redirected(&attributes))
            {
                flows.push((message.header.family, name(attributes)));
            }
        })?;
        Ok(flows)
    }

    /// Whether it was still there.
    fn delete(&mut self, family: NetfilterProtoFamily, name: Vec<ConntrackAttribute>) -> io::Result<bool> {
        match self.ask(family, ConntrackMessage::Delete(name), NLM_F_ACK, |_| {}) {
            Ok(()) => Ok(true),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Hears all that the kernel answers.
    fn ask(
        &mut self,
        family: NetfilterProtoFamily,
        what: ConntrackMessage,
        flags: u16,
        mut heard: impl FnMut(NetfilterMessage),
    ) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let payload = NetlinkPayload::from(NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), what));
        let mut message = NetlinkMessage::new(header, payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(&self.socket, &bytes, SendFlags::empty())?;
        loop {
            let (length, _) = retry_on_intr(|| recv(&self.socket, self.buffer.as_mut_slice(), RecvFlags::empty()))?;
            let mut rest = &self.buffer[..length];
            while !rest.is_empty() {
                let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                // Of an answer before that was given up.
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(said) if said.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(said) => return Err(said.to_io()),
                    NetlinkPayload::InnerMessage(message) => heard(message),
                    _ => {}
                }
            }
        }
    }
}

fn is_query(attributes: &[ConntrackAttribute]) -> bool {
    let has = |wanted| {
        attributes.iter().any(|attribute| match attribute {
            ConntrackAttribute::CtaTupleOrig(parts) => {
                parts.iter().any(|part| matches!(part, Tuple::Proto(proto) if proto.contains(&wanted)))
            }
            _ => false,
        })
    };
    has(ProtoTuple::Protocol(Protocol::Udp)) && has(ProtoTuple::DestinationPort(DNS))
}

fn is_redirected(attributes: &[ConntrackAttribute]) -> bool {
    let is = |attribute: &_| matches!(attribute, ConntrackAttribute::CtaStatus(s) if s.contains(Status::DstNat));
    attributes.iter().any(is)
}

fn name(attributes: Vec<ConntrackAttribute>) -> Vec<ConntrackAttribute> {
    let names = |attribute: &ConntrackAttribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(_) => true,
        ConntrackAttribute::Other(other) => DefaultNla::kind(other) == CTA_ZONE,
        _ => false,
    };
    attributes.into_iter().filter(names).collect()
}
