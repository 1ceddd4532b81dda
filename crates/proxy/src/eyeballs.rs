//! Connecting to what has addresses of both families (happy eyeballs, RFC 8305): which family comes first, and trying
//! the other one before the first has failed for good.

use std::{
    future::{Future, poll_fn},
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// Until the next address is tried beside the one before it (RFC 8305 section 5, "Connection Attempt Delay").
pub(crate) const DELAY: Duration = Duration::from_millis(250);
/// Addresses of each family that are looked at to choose between the two.
const MAX_ASKED: usize = 4;
/// Addresses of the other family that an endpoint is tried at. More would only take longer to fail.
pub(crate) const MAX_OTHERS: usize = 3;

/// The addresses of a name: those of the family to be tried first, and those of the other. `reachable` is whether this
/// machine has a route to an address (RFC 6724 section 6, rule 1).
pub(crate) fn families(addresses: &[IpAddr], reachable: impl Fn(IpAddr) -> bool) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().map(IpAddr::to_canonical).partition(IpAddr::is_ipv4);
    if v6.is_empty() {
        return (v4, v6);
    }
    // A few speak for all: each costs a socket for a moment.
    let best = |list: &[IpAddr]| list.iter().take(MAX_ASKED).map(|ip| (reachable(*ip), precedence(*ip))).max();
    if best(&v6) > best(&v4) { (v6, v4) } else { (v4, v6) }
}

/// The policy table of RFC 6724 section 2.1.
fn precedence(ip: IpAddr) -> u8 {
    let IpAddr::V6(ip) = ip else { return 35 };
    match ip.segments() {
        _ if ip == Ipv6Addr::LOCALHOST => 50,
        [0x2002, ..] => 30,
        [0x2001, 0, ..] => 5,
        // fc00::/7: whoever has such addresses has not necessarily a route between all of them.
        [first, ..] if first & 0xfe00 == 0xfc00 => 3,
        // ::/96, fec0::/10 and 3ffe::/16: not in use any more.
        [0, 0, 0, 0, 0, 0, ..] | [0x3ffe, ..] => 1,
        [first, ..] if first & 0xffc0 == 0xfec0 => 1,
        _ => 40,
    }
}

/// The others that the `index`th address of the first family is tried with, so that all of them take their share.
pub(crate) fn others(index: usize, others: &[SocketAddr]) -> Vec<SocketAddr> {
    others
        .iter()
        .cycle()
        .skip(index.checked_rem(others.len()).unwrap_or(0))
        .take(others.len().min(MAX_OTHERS))
        .copied()
        .collect()
}

/// Connects to whichever answers first: the next is tried when the one before has failed, or has not answered within
/// [`DELAY`]. Attempts that lose are dropped. The error is that of the first address.
pub(crate) async fn race<T, F>(
    first: SocketAddr,
    others: &[SocketAddr],
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    if others.is_empty() {
        return connect(first).await;
    }
    let mut waiting = std::iter::once(first).chain(others.iter().copied());
    let mut running: Vec<(SocketAddr, Pin<Box<F>>)> = Vec::with_capacity(1 + others.len());
    let mut failed: Option<(SocketAddr, io::Error)> = None;
    let mut next = pin!(sleep_until(Instant::now()));
    poll_fn(|cx| {
        loop {
            let mut due = running.is_empty() || next.as_mut().poll(cx).is_ready();
            let before = running.len();
            let mut won = None;
            running.retain_mut(|(address, attempt)| match attempt.as_mut().poll(cx) {
                Poll::Ready(Ok(connected)) => {
                    won.get_or_insert(connected);
                    true
                }
                Poll::Ready(Err(error)) => {
                    // Where the first address leads is what was configured.
                    if failed.is_none() || *address == first {
                        failed = Some((*address, error));
                    }
                    false
                }
                Poll::Pending => won.is_none(),
            });
            if let Some(connected) = won {
                return Poll::Ready(Ok(connected));
            }
            due |= running.len() < before;
            if !due {
                return Poll::Pending;
            }
            match waiting.next() {
                Some(address) => {
                    running.push((address, Box::pin(connect(address))));
                    next.as_mut().reset(Instant::now() + DELAY);
                }
                None if running.is_empty() => {
                    let (_, error) = failed.take().unwrap_or_else(|| (first, io::ErrorKind::NotConnected.into()));
                    return Poll::Ready(Err(error));
                }
                // The timer stays ready; only the attempts wake from here on.
                None => return Poll::Pending,
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tokio::time::sleep;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    fn socket(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap(), 80)
    }

    #[test]
    fn the_family_of_the_best_address_is_first() {
        let of = |texts: &[&str]| families(&ips(texts), |_| true);
        assert_eq!(
            of(&["192.0.2.1", "2001:db8::1", "192.0.2.2"]),
            (ips(&["2001:db8::1"]), ips(&["192.0.2.1", "192.0.2.2"]))
        );
        assert_eq!(of(&["127.0.0.1", "::1"]).0, ips(&["::1"]));
        assert_eq!(of(&["10.0.0.1", "fd00::1"]).0, ips(&["10.0.0.1"]), "unique local addresses come last");
        assert_eq!(of(&["192.0.2.1", "::ffff:192.0.2.2"]), (ips(&["192.0.2.1", "192.0.2.2"]), Vec::new()));
        assert_eq!(of(&["2001:db8::1"]), (ips(&["2001:db8::1"]), Vec::new()));
        // Without a route to the IPv6 internet.
        assert_eq!(families(&ips(&["192.0.2.1", "2001:db8::1"]), |ip| ip.is_ipv4()).0, ips(&["192.0.2.1"]));
    }

    #[test]
    fn others_are_shared_out() {
        let all: Vec<SocketAddr> = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"].map(socket).into();
        assert_eq!(others(5, &all), [all[1], all[2], all[3]]);
        assert_eq!(others(3, &all), [all[3], all[0], all[1]]);
        assert_eq!(others(3, &all[..1]), all[..1]);
        assert!(others(3, &[]).is_empty());
    }

    /// Which address answered after how long, and when each was tried, in milliseconds. Addresses end in what they do.
    async fn run(texts: &[&str]) -> (Result<SocketAddr, String>, u128, Vec<(String, u128)>) {
        let (begin, tried) = (Instant::now(), Mutex::new(Vec::new()));
        let connect = |address: SocketAddr| {
            tried.lock().unwrap().push((address.ip().to_string(), begin.elapsed().as_millis()));
            async move {
                let IpAddr::V4(ip) = address.ip() else { panic!("IPv4 here") };
                // 10.0.<tenths of a second>.<1: answers, 0: fails>
                sleep(Duration::from_millis(u64::from(ip.octets()[2]) * 100)).await;
                if ip.octets()[3] == 1 { Ok(address) } else { Err(io::Error::other(format!("{ip} fails"))) }
            }
        };
        let list: Vec<SocketAddr> = texts.iter().map(|t| socket(t)).collect();
        let result = race(list[0], &list[1..], connect).await.map_err(|e| e.to_string());
        (result, begin.elapsed().as_millis(), tried.into_inner().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_is_tried_after_the_delay_or_a_failure() {
        let at = |list: &[(&str, u128)]| list.iter().map(|(ip, at)| ((*ip).to_owned(), *at)).collect::<Vec<_>>();
        // Quick enough: nobody else is bothered.
        assert_eq!(run(&["10.0.2.1", "10.0.0.1"]).await, (Ok(socket("10.0.2.1")), 200, at(&[("10.0.2.1", 0)])));
        // Too slow: the other one gets its chance, and wins or not.
        let (won, after, tried) = run(&["10.0.9.1", "10.0.1.1"]).await;
        assert_eq!((won, after, tried), (Ok(socket("10.0.1.1")), 350, at(&[("10.0.9.1", 0), ("10.0.1.1", 250)])));
        assert_eq!(run(&["10.0.3.1", "10.0.9.1"]).await.0, Ok(socket("10.0.3.1")));
        // A failure is not waited out.
        let (won, after, _) = run(&["10.0.0.0", "10.0.1.1", "10.0.0.1"]).await;
        assert_eq!((won, after), (Ok(socket("10.0.1.1")), 100));
        // Each failure lets the next begin; the delay counts from the last beginning.
        let (won, _, tried) = run(&["10.0.9.1", "10.0.1.0", "10.0.1.1"]).await;
        assert_eq!(won, Ok(socket("10.0.1.1")));
        assert_eq!(tried, at(&[("10.0.9.1", 0), ("10.0.1.0", 250), ("10.0.1.1", 350)]));
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_fail_the_first_says_why() {
        let (result, after, tried) = run(&["10.0.3.0", "10.0.0.0"]).await;
        assert_eq!((result, after, tried.len()), (Err("10.0.3.0 fails".to_owned()), 300, 2));
        assert_eq!(run(&["10.0.1.0"]).await.0, Err("10.0.1.0 fails".to_owned()));
    }
}
