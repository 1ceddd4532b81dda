//! What is to be captured.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};
use xxhash_rust::xxh3::xxh3_64;

/// The mark of sockets of the proxy, as in Istio (1337).
pub const MARK: u32 = 0x539;
/// Never captured on its way in, unless it is named in `include`: whoever captures a whole machine by mistake can still log in.
pub const SSH: u16 = 22;

/// What is to be captured, and what is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// TCP connections that processes here make.
    pub outbound: Option<Chosen>,
    /// TCP connections that come here from elsewhere.
    pub inbound: Option<Chosen>,
    /// Whether DNS queries (UDP and TCP, port 53) go to the proxy.
    pub dns: bool,
    /// Whether IPv6 is captured; if not, it passes by the proxy.
    pub ipv6: bool,
    /// Sockets with this mark are left alone: those of the proxy. Up to 0xfff only its last 12 bits are looked at, so that
    /// others may use the rest.
    pub mark: u32,
    /// Processes of these users are left alone.
    pub uids: Vec<u32>,
    pub ports: Ports,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            outbound: Some(Chosen::default()),
            inbound: Some(Chosen::default()),
            dns: false,
            ipv6: true,
            mark: MARK,
            uids: Vec::new(),
            ports: Ports::default(),
        }
    }
}

/// Ports of the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports {
    pub outbound: u16,
    pub inbound: u16,
    /// Reached directly.
    pub hbone: u16,
    pub dns: u16,
    /// Reached directly: the admin listener and the like.
    pub admin: Vec<u16>,
}

impl Default for Ports {
    fn default() -> Self {
        Self { outbound: 15001, inbound: 15006, hbone: 15008, dns: 15053, admin: vec![15000] }
    }
}

/// Which connections of one direction are captured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Only these; all when empty.
    pub include: Vec<Item>,
    /// But never these.
    pub exclude: Vec<Item>,
}

/// Ports of the destination, or addresses of the other side: destinations of outbound, sources of inbound connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// First and last.
    Ports(u16, u16),
    V4(Ipv4Addr, u8),
    V6(Ipv6Addr, u8),
}

impl FromStr for Item {
    type Err = String;

    /// `443`, `8000-8099`, `10.0.0.0/8`, `10.1.2.3`, `fd00::/8`.
    fn from_str(text: &str) -> Result<Self, String> {
        let help = || {
            format!(
                "`{text}` is neither a port (443), a range of ports (8000-8099) nor an address block (10.0.0.0/8, fd00::/8)"
            )
        };
        if text.contains(['.', ':']) {
            let (address, bits) = match text.split_once('/') {
                Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| help())?)),
                None => (text, None),
            };
            return match (address.parse().map_err(|_| help())?, bits) {
                (IpAddr::V4(ip), bits) if bits.unwrap_or(32) <= 32 => Ok(v4(ip, bits.unwrap_or(32))),
                (IpAddr::V6(ip), bits) if bits.unwrap_or(128) <= 128 => Ok(v6(ip, bits.unwrap_or(128))),
                _ => Err(help()),
            };
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(Self::Ports(first, last)),
            _ => Err(help()),
        }
    }
}

fn v4(ip: Ipv4Addr, bits: u8) -> Item {
    Item::V4((u32::from(ip) & mask32(bits)).into(), bits)
}

fn v6(ip: Ipv6Addr, bits: u8) -> Item {
    Item::V6((u128::from(ip) & mask128(bits)).into(), bits)
}

fn mask32(bits: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)
}

fn mask128(bits: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ports(first, last) if first == last => write!(f, "{first}"),
            Self::Ports(first, last) => write!(f, "{first}-{last}"),
            Self::V4(ip, 32) => write!(f, "{ip}"),
            Self::V4(ip, bits) => write!(f, "{ip}/{bits}"),
            Self::V6(ip, 128) => write!(f, "{ip}"),
            Self::V6(ip, bits) => write!(f, "{ip}/{bits}"),
        }
    }
}

/// Items by kind, sorted and without overlap, which sets of nftables do not take.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sorted {
    pub ports: Vec<Item>,
    pub v4: Vec<Item>,
    pub v6: Vec<Item>,
}

impl Sorted {
    pub fn of(items: &[Item]) -> Self {
        let mut sorted = Self::default();
        let mut items = items.to_vec();
        items.sort_unstable();
        for item in items {
            match item {
                Item::Ports(first, last) => match sorted.ports.last_mut() {
                    Some(Item::Ports(_, end)) if u32::from(first) <= u32::from(*end) + 1 => *end = last.max(*end),
                    _ => sorted.ports.push(item),
                },
                // The wider block of those that begin alike sorts first, and blocks either nest or are apart.
                Item::V4(ip, _) => match sorted.v4.last() {
                    Some(Item::V4(net, bits)) if u32::from(ip) & mask32(*bits) == u32::from(*net) => {}
                    _ => sorted.v4.push(item),
                },
                Item::V6(ip, _) => match sorted.v6.last() {
                    Some(Item::V6(net, bits)) if u128::from(ip) & mask128(*bits) == u128::from(*net) => {}
                    _ => sorted.v6.push(item),
                },
            }
        }
        sorted
    }
}

impl Wish {
    /// What makes no sense.
    pub fn check(&self) -> Result<(), String> {
        if self.outbound.is_none() && self.inbound.is_none() && !self.dns {
            return Err("nothing is to be captured; `capture remove` removes the rules".into());
        }
        let has =
            |ports: &[Item], port| ports.iter().any(|i| matches!(i, Item::Ports(a, b) if (*a..=*b).contains(&port)));
        if self.dns && self.outbound.as_ref().is_some_and(|o| has(&o.exclude, 53)) {
            return Err("port 53 is both excluded and captured by --dns; leave out one of them".into());
        }
        let Ports { outbound, inbound, hbone, dns, admin } = &self.ports;
        let mut all = vec![*outbound, *inbound, *hbone, *dns];
        all.extend(admin);
        if all.contains(&0) {
            return Err("ports of the proxy must not be 0".into());
        }
        all.sort_unstable();
        if let Some(twice) = all.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("port {} of the proxy is given to two uses", twice[0]));
        }
        Ok(())
    }

    /// The part of a mark that is compared.
    pub(super) fn mask(&self) -> u32 {
        if self.mark <= 0xfff { 0xfff } else { u32::MAX }
    }

    /// Inbound ports that are reached directly.
    pub(super) fn direct(&self) -> Vec<Item> {
        let include = self.inbound.iter().flat_map(|chosen| &chosen.include);
        let ssh = !include.clone().any(|i| matches!(i, Item::Ports(a, b) if (*a..=*b).contains(&SSH)));
        let ports = [self.ports.inbound, self.ports.hbone].into_iter().chain(self.ports.admin.iter().copied());
        let ports = ports.chain(ssh.then_some(SSH)).map(|port| Item::Ports(port, port));
        let mut items: Vec<Item> = ports.collect();
        items.extend(self.inbound.iter().flat_map(|chosen| &chosen.exclude));
        items
    }
}

/// A short name of a text, to find it again.
pub(super) fn digest(text: &str) -> String {
    format!("{:016x}", xxh3_64(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(text: &str) -> Vec<Item> {
        text.split(',').map(|item| item.parse().expect(item)).collect()
    }

    fn sorted(text: &str) -> String {
        let Sorted { ports, v4, v6 } = Sorted::of(&items(text));
        let all: Vec<String> = [ports, v4, v6].concat().iter().map(Item::to_string).collect();
        all.join(" ")
    }

    #[test]
    fn items_are_read_and_masked() {
        assert_eq!(sorted("10.1.2.3/8"), "10.0.0.0/8");
        assert_eq!(sorted("fd00::1/8,::1"), "::1 fd00::/8");
        assert_eq!(sorted("0.0.0.0/0,::/0"), "0.0.0.0/0 ::/0");
        for bad in
            ["", "x", "0", "65536", "9-8", "10.0.0.0/33", "::/129", "10.0.0", "1-", "-1", "10.0.0.0/", "1.2.3.4:80"]
        {
            assert!(bad.parse::<Item>().expect_err(bad).contains("neither a port"), "{bad}");
        }
    }

    #[test]
    fn overlap_is_merged() {
        assert_eq!(sorted("80,81,443,80-90,91"), "80-91 443");
        assert_eq!(sorted("10.1.0.0/16,10.0.0.0/8,10.0.0.1,11.0.0.1"), "10.0.0.0/8 11.0.0.1");
        assert_eq!(sorted("10.0.0.0/8,10.0.0.0/16,10.255.0.0/16,fd00::/8,fd00:1::/32"), "10.0.0.0/8 fd00::/8");
        assert_eq!(sorted("65535,1-65535"), "1-65535");
    }

    #[test]
    fn nonsense_is_refused() {
        let wish = |change: fn(&mut Wish)| {
            let mut wish = Wish::default();
            change(&mut wish);
            wish.check()
        };
        assert_eq!(wish(|_| ()), Ok(()));
        let nothing = wish(|w| (w.outbound, w.inbound) = (None, None));
        assert!(nothing.expect_err("nothing").contains("nothing is to be captured"));
        let both = wish(|w| (w.dns, w.outbound) = (true, Some(Chosen { exclude: items("50-60"), include: vec![] })));
        assert!(both.expect_err("both").contains("port 53 is both"));
        assert!(
            wish(|w| w.ports.hbone = 15001).expect_err("twice").contains("port 15001 of the proxy is given to two")
        );
        assert!(wish(|w| w.ports.dns = 0).expect_err("zero").contains("must not be 0"));
    }
}
