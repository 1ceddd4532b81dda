//! Who is asked about names that are not of the mesh.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

const PORT: u16 = 53;
/// Servers beyond are ignored; the C library takes three.
const MAX_SERVERS: usize = 8;

/// Servers of `/etc/resolv.conf`; none when it cannot be read.
pub fn system_upstreams() -> Vec<SocketAddr> {
    fs::read_to_string("/etc/resolv.conf").map(|text| servers(&text)).unwrap_or_default()
}

fn servers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = (words.next() == Some("nameserver")).then(|| words.next()).flatten()?;
        match parse_upstream(address) {
            Ok(server) => Some(server),
            Err(error) => {
                tracing::warn!("/etc/resolv.conf: {error}; it is not asked");
                None
            }
        }
    };
    text.lines().filter_map(server).take(MAX_SERVERS).collect()
}

/// Address of a server, with a port unless it is 53: `10.0.0.2`, `10.0.0.2:5353`, `fd00::2`, `[fd00::2]:53`.
pub fn parse_upstream(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let ip: IpAddr = bare.parse().map_err(|_| {
        format!("`{text}` is not the address of a DNS server; expected such as 10.0.0.2 or [fd00::2]:53")
    })?;
    Ok(SocketAddr::new(ip, PORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read() {
        let text = "# comment\nsearch shop.svc.cluster.local\nnameserver 10.0.0.2\nnameserver fd00::2 # two\n\
                    nameserver fe80::1%eth0\nnameserver\noptions ndots:5\n nameserver 10.0.0.3";
        let found: Vec<String> = servers(text).iter().map(SocketAddr::to_string).collect();
        assert_eq!(found, ["10.0.0.2:53", "[fd00::2]:53", "10.0.0.3:53"]);
        assert_eq!(servers(&"nameserver 10.0.0.2\n".repeat(100)).len(), MAX_SERVERS);
    }

    #[test]
    fn addresses_have_a_port_or_53() {
        let parse = |text: &str| parse_upstream(text).map(|address| address.to_string());
        assert_eq!(parse("10.0.0.2:5353").as_deref(), Ok("10.0.0.2:5353"));
        assert_eq!(parse("[fd00::2]:5353").as_deref(), Ok("[fd00::2]:5353"));
        assert_eq!(parse("[fd00::2]").as_deref(), Ok("[fd00::2]:53"));
        assert!(parse("dns.example").expect_err("a name").contains("`dns.example` is not the address"));
    }
}
