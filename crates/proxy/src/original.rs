//! Where a connection was going before a rule of the kernel redirected it to us.

use socket2::SockRef;
use std::{io, net::SocketAddr};
use tokio::net::TcpStream;

/// The destination that the client asked for (`SO_ORIGINAL_DST`; for IPv6 `IP6T_SO_ORIGINAL_DST`).
///
/// # Errors
/// The connection was not redirected, or the kernel does not track connections here. A client that connects to our own
/// port gets either this or, with connection tracking, our own address as its answer.
pub fn destination(tcp: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(tcp);
    // A socket for both families gets IPv4 clients under mapped addresses; their answer is at the IPv4 level.
    let is_v4 = tcp.local_addr()?.ip().to_canonical().is_ipv4();
    let address = if is_v4 { socket.original_dst_v4()? } else { socket.original_dst_v6()? };
    let address = address.as_socket().ok_or_else(|| io::Error::other("the original destination is no IP address"))?;
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// Why a connection has no destination, for records and the log.
pub const NONE: &str =
    "the connection has no original destination: it was made to the proxy's own port instead of being redirected there";

#[cfg(test)]
mod tests {
    use super::*;
    use selvedge_testkit::tcp;

    #[tokio::test]
    async fn a_connection_that_was_not_redirected_yields_nothing_else_than_its_own_address() {
        let (_client, server) = tcp::pair().await;
        if let Ok(found) = destination(&server) {
            assert_eq!(found, server.local_addr().expect("an address"));
        }
    }
}
