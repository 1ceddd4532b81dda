//! How often who may ask: a bucket of tokens for all, and one for each address that failed.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};
use tokio::time::Instant;

/// Joins per second that are served, and at once after silence: a P-256 signature takes 50 µs, a write to the store some ms.
const RATE: f64 = 200.0;
const BURST: f64 = 400.0;

/// Refused joins that one address (of IPv6, one network of 64 bits, which is what one subscriber has) may have at once, and one more after each of [`REFILL`].
const FAILURES: f64 = 10.0;
const REFILL: Duration = Duration::from_secs(6);

/// Addresses remembered; beyond this the fullest buckets are forgotten.
const MAX_ADDRESSES: usize = 10_000;

#[derive(Debug)]
pub(super) struct Limit {
    all: Bucket,
    failed: HashMap<IpAddr, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    fn refilled(&self, rate: f64, most: f64, now: Instant) -> f64 {
        (self.level + now.duration_since(self.at).as_secs_f64() * rate).min(most)
    }
}

/// An address, without what one subscriber may choose of it.
fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

fn failures(bucket: &Bucket, now: Instant) -> f64 {
    bucket.refilled(1.0 / REFILL.as_secs_f64(), FAILURES, now)
}

impl Limit {
    pub(super) fn new(now: Instant) -> Self {
        Self { all: Bucket { level: BURST, at: now }, failed: HashMap::new() }
    }

    /// Whether a join may be tried now.
    pub(super) fn admit(&mut self, address: Option<IpAddr>, now: Instant) -> Result<(), &'static str> {
        if address.and_then(|a| self.failed.get(&subscriber(a))).is_some_and(|b| failures(b, now) < 1.0) {
            return Err("too many refused joins from this address: check the token, and try again in a minute");
        }
        let level = self.all.refilled(RATE, BURST, now);
        if level < 1.0 {
            return Err("too many joins at once: try again in a second");
        }
        self.all = Bucket { level: level - 1.0, at: now };
        Ok(())
    }

    /// A join was refused.
    pub(super) fn failed(&mut self, address: Option<IpAddr>, now: Instant) {
        let Some(address) = address.map(subscriber) else { return };
        if self.failed.len() >= MAX_ADDRESSES {
            self.failed.retain(|_, b| failures(b, now) < FAILURES);
        }
        if self.failed.len() >= MAX_ADDRESSES {
            self.failed.clear();
        }
        let bucket = self.failed.entry(address).or_insert(Bucket { level: FAILURES, at: now });
        *bucket = Bucket { level: (failures(bucket, now) - 1.0).max(0.0), at: now };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_guess() {
        let (start, guesser) = (Instant::now(), Some(IpAddr::from([192, 0, 2, 1])));
        let mut limit = Limit::new(start);
        for _ in 0..10 {
            limit.admit(guesser, start).unwrap();
            limit.failed(guesser, start);
        }
        assert!(limit.admit(guesser, start).is_err());
        limit.admit(Some(IpAddr::from([192, 0, 2, 2])), start).unwrap();
        limit.admit(guesser, start + REFILL).unwrap();
    }

    #[test]
    fn one_network_of_ipv6_cannot_guess_with_all_its_addresses() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        let address = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        for host in 1..=10 {
            limit.failed(address(&format!("2001:db8:0:1::{host}")), start);
        }
        assert!(limit.admit(address("2001:db8:0:1:ffff::7"), start).is_err());
        limit.admit(address("2001:db8:0:2::1"), start).unwrap();
        for _ in 0..10 {
            limit.failed(address("::ffff:192.0.2.1"), start);
        }
        assert!(limit.admit(address("192.0.2.1"), start).is_err());
        limit.admit(address("::ffff:192.0.2.2"), start).unwrap();
    }

    #[test]
    fn all_together_have_a_limit() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        let served = (0..1000).filter(|_| limit.admit(None, start).is_ok()).count();
        assert_eq!(served, 400);
        let served = (0..1000).filter(|_| limit.admit(None, start + Duration::from_secs(1)).is_ok()).count();
        assert_eq!(served, 200);
    }
}
