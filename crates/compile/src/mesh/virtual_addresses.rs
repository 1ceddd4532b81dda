//! Addresses for what has none, so that captured connections tell where they are going. They exist only inside the mesh:
//! 240.0.0.0/4, which the Internet does not use (RFC 1112 section 4).

use std::{collections::BTreeMap, net::Ipv4Addr};

/// 240.0.0.0 to 254.255.255.255, without the last octets 0 and 255, which some take for networks and broadcasts.
const FIRST: u32 = 0xf000_0000;
const COUNT: u64 = 15 * (1 << 16) * 254;

/// One address for each name, the same in every process that knows the same names, and nearly always whatever else it
/// knows: by hash; of two that fall together, the later name moves on.
#[derive(Debug, Default)]
pub(crate) struct VirtualAddresses {
    taken: BTreeMap<Ipv4Addr, String>,
}

impl VirtualAddresses {
    /// Names must come in a fixed order.
    pub(crate) fn assign(&mut self, name: &str) -> Ipv4Addr {
        let start = hash(name) % COUNT;
        // There are 250 million, and fewer resources.
        for step in 0..COUNT {
            let address = nth((start + step) % COUNT);
            match self.taken.get(&address) {
                Some(known) if known == name => return address,
                Some(_) => {}
                None => {
                    self.taken.insert(address, name.to_owned());
                    return address;
                }
            }
        }
        nth(start)
    }
}

fn nth(n: u64) -> Ipv4Addr {
    let high = u32::try_from(n / 254).unwrap_or(0);
    let low = u32::try_from(n % 254).unwrap_or(0) + 1;
    Ipv4Addr::from(FIRST + (high << 8) + low)
}

/// FNV-1a with the finish of MurmurHash3, so that names which differ at the end alone are spread too.
fn hash(text: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_fixed_and_differ() {
        let mut all = VirtualAddresses::default();
        let first = all.assign("shop/orders");
        assert_eq!(all.assign("shop/orders"), first);
        assert_eq!(VirtualAddresses::default().assign("shop/orders"), first);
        let mut seen = std::collections::BTreeSet::new();
        for i in 0..5000 {
            let address = all.assign(&format!("shop/orders-{i}"));
            assert!(seen.insert(address) && address.octets()[0] >= 240 && address.octets()[0] < 255);
            assert!(!matches!(address.octets()[3], 0 | 255));
        }
    }

    #[test]
    fn one_that_is_taken_moves_the_next_on() {
        let mut all = VirtualAddresses::default();
        let wanted = VirtualAddresses::default().assign("b");
        all.taken.insert(wanted, "a".to_owned());
        let got = all.assign("b");
        assert_ne!(got, wanted);
        assert_eq!(all.assign("b"), got);
    }

    #[test]
    fn the_range_ends_where_it_should() {
        assert_eq!(nth(0), Ipv4Addr::new(240, 0, 0, 1));
        assert_eq!(nth(COUNT - 1), Ipv4Addr::new(254, 255, 255, 254));
    }
}
