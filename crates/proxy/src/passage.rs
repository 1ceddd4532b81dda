//! Connections to where they were going anyway: to destinations that nothing is known of, and to the application behind
//! a port that nobody has declared.

use crate::{
    Error,
    error::Kind,
    io::Io,
    l4::{Refusal, Upstream},
    proxy::Shared,
};
use selvedge_compile::snapshot::Netns;
use std::{net::SocketAddr, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// For a connection to an address that no cluster has; the default of clusters.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses of one name that are tried, each for [`CONNECT_TIMEOUT`] at most.
const MAX_ADDRESSES: usize = 3;

/// Connects to an address from inside a network namespace.
pub async fn open(shared: &Shared, netns: Netns, to: SocketAddr) -> Result<Upstream, Refusal> {
    Ok(Io::from(connect(shared, netns, to).await?).into())
}

/// Connects to a host by name. The name is resolved as the system does.
pub async fn open_host(shared: &Shared, netns: Netns, host: &str, port: u16) -> Result<TcpStream, Error> {
    let name = host.trim_matches(['[', ']']);
    let found = timeout(CONNECT_TIMEOUT, tokio::net::lookup_host((name, port))).await;
    let unresolved = |message: String| Error::upstream(Kind::Connect, message);
    let addresses = match found {
        Ok(Ok(addresses)) => addresses.take(MAX_ADDRESSES),
        Ok(Err(error)) => return Err(unresolved(format!("cannot resolve {host}")).with_source(error)),
        Err(_) => return Err(unresolved(format!("cannot resolve {host} within {CONNECT_TIMEOUT:?}"))),
    };
    let mut last = unresolved(format!("{host} has no address"));
    for address in addresses {
        match connect(shared, netns, address).await {
            Ok(io) => return Ok(io),
            Err(error) => last = error,
        }
    }
    Err(last)
}

pub async fn connect(shared: &Shared, netns: Netns, to: SocketAddr) -> Result<TcpStream, Error> {
    let failed =
        |error: std::io::Error| Error::upstream(Kind::Connect, format!("cannot connect to {to}")).with_source(error);
    if shared.own.is_loop(netns, to) {
        return Err(Error::upstream(Kind::Connect, format!("{to} is this proxy itself")));
    }
    match timeout(CONNECT_TIMEOUT, shared.dial.tcp(to, netns)).await {
        Ok(Ok(tcp)) => {
            tcp.set_nodelay(true).map_err(failed)?;
            Ok(tcp)
        }
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => {
            Err(Error::upstream(Kind::ConnectTimeout, format!("no connection to {to} within {CONNECT_TIMEOUT:?}")))
        }
    }
}
