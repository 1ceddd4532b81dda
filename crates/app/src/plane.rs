//! The server for proxies, in whichever process it is: `selvedge control` or `selvedge run --listen`.

use crate::authority::Authority;
use anyhow::{Context, Result};
use selvedge_control::{
    ca::{Alarm, Ca},
    domain::Domain,
    publish::server::Publisher,
    transport,
    transport::Mutual,
};
use selvedge_proxy::telemetry::{encode::Encoder, families::Family};
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpSocket};

/// Connections that wait to be accepted, at most: all proxies may come back at once.
const BACKLOG: u32 = 4096;

/// A socket on which nobody is let in yet: proxies are refused until it listens, so that they try the next control plane.
pub fn bind(address: SocketAddr) -> Result<TcpSocket> {
    let bound = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        std::io::Result::Ok(socket)
    };
    bound().with_context(|| format!("cannot listen on {address} (choose another address with --listen)"))
}

/// Lets proxies in.
pub fn listen(socket: TcpSocket) -> Result<TcpListener> {
    let address = socket.local_addr()?;
    socket.listen(BACKLOG).with_context(|| format!("cannot listen on {address} (choose another address with --listen)"))
}

/// What metrics say of the proxies of a control plane.
pub fn encode(publisher: &Publisher, out: &mut Encoder) {
    out.sample(Family::ControlBehind, &[], publisher.behind() as u64);
    for ((role, state), count) in publisher.count() {
        out.sample(Family::ControlProxies, &[role, state.name()], count);
    }
}

/// What metrics say of a certificate authority.
pub fn encode_ca(ca: &Ca, out: &mut Encoder) {
    for expiry in ca.expiries() {
        let alarm: u64 = match expiry.alarm {
            Alarm::None => 0,
            Alarm::Half => 1,
            Alarm::Urgent => 2,
            Alarm::Over => 3,
        };
        out.sample(Family::CaExpiry, &[expiry.name()], expiry.not_after);
        out.sample(Family::CaAlarm, &[expiry.name()], alarm);
    }
    if let Some(unusable) = ca.files_unusable() {
        out.sample(Family::CaFilesUnusable, &[], u64::from(unusable));
    }
}

/// What proxies are given, and by whom.
pub struct Plane {
    pub publisher: Publisher,
    /// Issues certificates; none where they come from files, or nobody has any.
    pub authority: Option<Authority>,
    /// How both sides prove who they are; nobody does without.
    pub mutual: Option<Mutual>,
}

impl Plane {
    /// Of which trust domain its certificates are; nothing where nobody proves anything.
    pub fn domain(&self) -> Option<Domain> {
        match (&self.authority, &self.mutual) {
            (Some(authority), _) => Some(authority.domain()),
            (None, Some(mutual)) => {
                let name = mutual.own.trust_domain().to_owned();
                Some(Domain { name, place: "the certificate given with --cert".to_owned() })
            }
            (None, None) => None,
        }
    }

    /// Serves proxies. Ends only when it fails.
    pub async fn serve(&self, listener: TcpListener) -> Result<()> {
        let server = transport::server().add_service(self.publisher.service());
        let server = server.add_optional_service(self.authority.as_ref().map(Authority::service));
        let address = listener.local_addr()?;
        let secure = if self.mutual.is_some() { "mutual TLS" } else { "CLEAR TEXT, nobody proves anything" };
        tracing::info!(%address, secure, "serving proxies");
        let links = transport::accept(listener, self.mutual.clone());
        server.serve_with_incoming(links).await.context("the server for proxies has ended")
    }
}
