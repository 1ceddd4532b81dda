use super::*;
use crate::{health::State, outlier::Detector};
use selvedge_compile::snapshot::{Check, HealthCheck, OutlierDetection, ZonePreference};
use std::collections::HashMap;
use tokio::time::Instant;

fn address(i: usize) -> SocketAddr {
    format!("10.0.0.{i}:80").parse().unwrap()
}

fn endpoints(weights: &[u32]) -> Vec<Arc<LiveEndpoint>> {
    weights.iter().enumerate().map(|(i, w)| Arc::new(LiveEndpoint::new(address(i), *w, None, 1))).collect()
}

fn zoned(zones: &[&str]) -> Vec<Arc<LiveEndpoint>> {
    let zone = |z: &&str| Some((*z).to_owned());
    zones.iter().enumerate().map(|(i, z)| Arc::new(LiveEndpoint::new(address(i), 1, zone(z), 1))).collect()
}

fn config(algorithm: Algorithm) -> LoadBalancing {
    LoadBalancing { algorithm, ..LoadBalancing::default() }
}

fn build(endpoints: &[Arc<LiveEndpoint>], config: &LoadBalancing) -> Picker {
    Picker::build(endpoints, config, Some("a"), Clock::default())
}

/// Shares per endpoint of `n` picks.
fn spread(picker: &Picker, n: usize, pick: impl Fn(usize) -> Pick<'static>) -> Vec<f64> {
    let mut random = Random::seeded(42);
    let mut hits: HashMap<SocketAddr, usize> = HashMap::new();
    for i in 0..n {
        *hits.entry(picker.pick_with(&pick(i), &mut random).unwrap().address).or_default() += 1;
    }
    (0..picker.all.len()).map(|i| hits.get(&address(i)).copied().unwrap_or(0) as f64 / n as f64).collect()
}

fn anything(_: usize) -> Pick<'static> {
    Pick::default()
}

fn fail(state: &State) {
    let check = HealthCheck {
        check: Check::Tcp,
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        unhealthy_threshold: 1,
        healthy_threshold: 1,
        port: None,
    };
    state.expect(1);
    state.record(0, &check, Err("refused".to_owned()));
}

fn outlier() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: 5,
        consecutive_gateway_errors: 0,
        consecutive_local_failures: 0,
        success_rate: None,
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_time: Duration::from_secs(300),
        max_ejection_percent: 50,
    }
}

const ALL: [Algorithm; 6] = [
    Algorithm::RoundRobin,
    Algorithm::Random,
    Algorithm::LeastRequest { choices: 2 },
    Algorithm::PeakEwma { decay: Duration::from_secs(10), choices: 2 },
    Algorithm::RingHash { min_size: 4096, max_size: 65536 },
    Algorithm::Maglev { table_size: 65537 },
];

#[test]
fn without_load_every_algorithm_follows_the_weights() {
    let endpoints = endpoints(&[1, 2, 5]);
    for algorithm in ALL {
        let shares = spread(&build(&endpoints, &config(algorithm)), 40_000, anything);
        for (share, weight) in shares.iter().zip([1.0, 2.0, 5.0]) {
            let expected = weight / 8.0;
            assert!((share - expected).abs() < expected * 0.12, "{algorithm:?}: {shares:?}");
        }
    }
}

#[test]
fn weight_zero_and_nobody() {
    for algorithm in ALL {
        let mixed = endpoints(&[0, 1]);
        assert_eq!(spread(&build(&mixed, &config(algorithm)), 100, anything), [0.0, 1.0]);
        let none = build(&[], &config(algorithm));
        assert_eq!(none.pick(&Pick::default()).unwrap_err(), "has no endpoints");
        let zero = build(&endpoints(&[0, 0]), &config(algorithm));
        assert_eq!(zero.pick(&Pick::default()).unwrap_err(), "has 2 endpoints, none with a weight above zero");
    }
}

#[test]
fn tried_endpoints_are_avoided_while_there_are_others() {
    for algorithm in ALL {
        let picker = build(&endpoints(&[1, 1, 1]), &config(algorithm));
        let two: &'static [SocketAddr] = Vec::leak(vec![address(0), address(2)]);
        let shares = spread(&picker, 200, |i| Pick {
            tried: two,
            hash: Some((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            sticky: None,
        });
        assert_eq!(shares, [0.0, 1.0, 0.0], "{algorithm:?}");
        let all: &'static [SocketAddr] = Vec::leak(vec![address(0), address(1), address(2)]);
        assert!(picker.pick(&Pick { tried: all, ..Pick::default() }).is_ok(), "better one of them than none");
    }
}

#[test]
fn the_same_hash_goes_to_the_same_endpoint() {
    for algorithm in &ALL[4..] {
        let endpoints = endpoints(&[1; 20]);
        let (before, after) = (build(&endpoints, &config(*algorithm)), build(&endpoints[..19], &config(*algorithm)));
        let mut moved = 0;
        for i in 0..2000u64 {
            let pick = Pick { hash: Some(xxhash_rust::xxh3::xxh3_64(&i.to_le_bytes())), ..Pick::default() };
            let first = before.pick(&pick).unwrap().address;
            assert_eq!(first, before.pick(&pick).unwrap().address);
            moved += usize::from(first != after.pick(&pick).unwrap().address);
        }
        assert!((60..240).contains(&moved), "{algorithm:?}: {moved} of 2000 moved for one endpoint of 20");
    }
}

#[test]
fn two_choices_keep_the_load_level() {
    // Each pick stays active: with random choice the fullest of 100 would have about 35 of 2000, with two choices
    // hardly more than the mean of 20.
    let endpoints = endpoints(&[1; 100]);
    let picker = build(&endpoints, &config(Algorithm::LeastRequest { choices: 2 }));
    let mut random = Random::seeded(3);
    for _ in 0..2000 {
        picker.pick_with(&Pick::default(), &mut random).unwrap().begin();
    }
    let most = endpoints.iter().map(|e| e.active()).max().unwrap();
    assert!(most <= 23, "{most}");
}

#[test]
fn load_is_weighed() {
    let endpoints = endpoints(&[1, 3]);
    let picker = build(&endpoints, &config(Algorithm::LeastRequest { choices: 2 }));
    let mut random = Random::seeded(3);
    for _ in 0..400 {
        picker.pick_with(&Pick::default(), &mut random).unwrap().begin();
    }
    assert!((98..=102).contains(&endpoints[0].active()), "{}", endpoints[0].active());
}

#[test]
fn ewma_prefers_the_quick() {
    let endpoints = endpoints(&[1, 1, 1, 1]);
    let clock = Clock::default();
    let decay = Duration::from_secs(10);
    for (i, endpoint) in endpoints.iter().enumerate() {
        let latency = if i == 2 { 200 } else { 10 };
        endpoint.ewma.observe(Duration::from_millis(latency), clock.millis(), decay);
    }
    let algorithm = Algorithm::PeakEwma { decay, choices: 2 };
    let shares = spread(&Picker::build(&endpoints, &config(algorithm), None, clock), 4000, anything);
    assert!(shares[2] < 0.01 && shares[0] > 0.25, "{shares:?}");
}

#[test]
fn unhealthy_endpoints_take_nothing_until_panic() {
    for algorithm in ALL {
        let endpoints = endpoints(&[1, 1, 1, 1]);
        fail(&endpoints[1].health);
        fail(&endpoints[2].health);
        let shares = spread(&build(&endpoints, &config(algorithm)), 1000, anything);
        assert_eq!((shares[1], shares[2]), (0.0, 0.0), "{algorithm:?}");
        fail(&endpoints[3].health);
        let picker = build(&endpoints, &config(algorithm));
        assert!(picker.is_panicking());
        assert!(spread(&picker, 1000, anything).iter().all(|share| *share > 0.1), "{algorithm:?}");
        let never = LoadBalancing { panic_threshold: 0, ..config(algorithm) };
        assert_eq!(spread(&build(&endpoints, &never), 1000, anything)[0], 1.0);
        fail(&endpoints[0].health);
        let error = build(&endpoints, &never).pick(&Pick::default()).unwrap_err().to_owned();
        assert_eq!(error, "has 4 endpoints, all unhealthy");
    }
}

#[test]
fn unchecked_endpoints_wait_for_their_check_while_others_are_healthy() {
    let endpoints = endpoints(&[1, 1, 1]);
    endpoints[0].health.expect(1);
    endpoints[1].health.expect(1);
    assert_eq!(spread(&build(&endpoints, &config(Algorithm::Random)), 100, anything), [0.0, 0.0, 1.0]);
    endpoints[2].health.expect(1);
    let shares = spread(&build(&endpoints, &config(Algorithm::Random)), 1000, anything);
    assert!(shares.iter().all(|share| *share > 0.2), "{shares:?}");
}

#[test]
fn an_ejection_counts_at_once_and_ends_with_one_request() {
    for algorithm in ALL {
        let endpoints = endpoints(&[1, 1, 1]);
        let before = build(&endpoints, &config(algorithm));
        let now = Instant::now();
        endpoints[1].outlier.eject(Detector::Consecutive5xx, now, &outlier());
        assert_eq!(spread(&before, 500, anything)[1], 0.0, "{algorithm:?}: even before the picker is rebuilt");
        endpoints[1].outlier.tick(now + Duration::from_secs(30), 30_000, false);
        let probation = build(&endpoints, &config(algorithm));
        assert_eq!(probation.pick(&Pick::default()).unwrap().address, address(1), "{algorithm:?}: the probe");
        assert_eq!(spread(&probation, 500, anything)[1], 0.0, "{algorithm:?}: one only");
    }
}

#[test]
fn sessions_stick_while_their_endpoint_is_usable() {
    let endpoints = endpoints(&[1, 1, 1]);
    let picker = build(&endpoints, &config(Algorithm::RoundRobin));
    let sticky = |_| Pick { sticky: Some(address(2)), ..Pick::default() };
    assert_eq!(spread(&picker, 100, sticky), [0.0, 0.0, 1.0]);
    fail(&endpoints[2].health);
    assert_eq!(spread(&picker, 100, sticky)[2], 0.0);
    let gone = Pick { sticky: Some("192.0.2.1:1".parse().unwrap()), ..Pick::default() };
    assert!(picker.pick(&gone).is_ok());
}

#[test]
fn the_own_zone_comes_first_as_far_as_it_reaches() {
    let endpoints = zoned(&["a", "a", "a", "a", "b", "b"]);
    let prefer = LoadBalancing { panic_threshold: 0, ..config(Algorithm::Random) };
    let own = |picker: &Picker| spread(picker, 20_000, anything)[..4].iter().sum::<f64>();
    assert_eq!(own(&build(&endpoints, &prefer)), 1.0);
    fail(&endpoints[0].health);
    assert_eq!(own(&build(&endpoints, &prefer)), 1.0, "three of four suffice");
    fail(&endpoints[1].health);
    let share = own(&build(&endpoints, &prefer));
    assert!((share - 0.7).abs() < 0.02, "half of the capacity keeps 70 %: {share}");
    endpoints[..4].iter().for_each(|e| fail(&e.health));
    assert_eq!(own(&build(&endpoints, &prefer)), 0.0);
    let strict = LoadBalancing { zone: ZonePreference::Strict, ..prefer.clone() };
    let error = build(&endpoints, &strict).pick(&Pick::default()).unwrap_err().to_owned();
    assert_eq!(error, "has 4 endpoints in zone a, all unhealthy");
    let workload = LoadBalancing { zone: ZonePreference::Strict, own_zone: Some("b".into()), ..prefer.clone() };
    let picker = build(&endpoints, &workload);
    let picked: Vec<_> = (0..8).map(|_| picker.pick(&Pick::default()).unwrap().zone.clone().unwrap()).collect();
    assert!(picked.iter().all(|zone| zone == "b"), "{picked:?}");
    let off = LoadBalancing { zone: ZonePreference::Off, ..prefer };
    assert!(build(&zoned(&["a", "b"]), &off).far.endpoints.is_empty());
}

#[test]
fn the_own_region_comes_before_the_rest() {
    let endpoints = zoned(&["a", "b", "b", "c", "c"]);
    [1, 1, 2, 2].iter().zip(&endpoints[1..]).for_each(|(priority, e)| e.set_priority(*priority));
    let prefer = LoadBalancing { panic_threshold: 0, ..config(Algorithm::Random) };
    let shares = |config: &LoadBalancing| spread(&build(&endpoints, config), 20_000, anything);
    assert_eq!(shares(&prefer)[0], 1.0);
    fail(&endpoints[0].health);
    assert_eq!(shares(&prefer)[3..], [0.0, 0.0], "the own region suffices");
    fail(&endpoints[1].health);
    let region = shares(&prefer)[2];
    assert!((region - 0.714).abs() < 0.02, "half of the capacity keeps 71 %: {region}");
    let lenient = LoadBalancing { min_healthy_percent: 30, ..prefer.clone() };
    assert_eq!(shares(&lenient)[2], 1.0, "half is enough where 30 % are asked for");
    fail(&endpoints[2].health);
    assert_eq!(shares(&prefer)[3..].iter().sum::<f64>(), 1.0);
}

#[test]
fn a_zone_with_too_few_endpoints_is_not_preferred() {
    let endpoints = zoned(&["a", "b", "b", "c"]);
    [1, 1, 2].iter().zip(&endpoints[1..]).for_each(|(priority, e)| e.set_priority(*priority));
    let two = LoadBalancing { panic_threshold: 0, min_endpoints: 2, ..config(Algorithm::Random) };
    let shares = spread(&build(&endpoints, &two), 20_000, anything);
    assert!(shares[..3].iter().all(|share| (share - 0.333).abs() < 0.02), "{shares:?}");
    assert_eq!(shares[3], 0.0);
    let many = LoadBalancing { min_endpoints: 9, ..two };
    let shares = spread(&build(&endpoints, &many), 20_000, anything);
    assert!(shares.iter().all(|share| (share - 0.25).abs() < 0.02), "{shares:?}");
}

#[tokio::test(start_paused = true)]
async fn new_endpoints_start_slowly() {
    let clock = Clock::default();
    tokio::time::advance(Duration::from_secs(1000)).await;
    let mut endpoints = endpoints(&[1, 1, 1]);
    endpoints.push(Arc::new(LiveEndpoint::new(address(3), 1, None, clock.millis())));
    let slow = SlowStart { window: Duration::from_secs(60), aggression: 1.0, min_percent: 10 };
    for algorithm in &ALL[..4] {
        let config = LoadBalancing { slow_start: Some(slow), ..config(*algorithm) };
        let picker = Picker::build(&endpoints, &config, None, clock);
        let share = spread(&picker, 20_000, anything)[3];
        assert!((0.02..0.05).contains(&share), "{algorithm:?}: {share} at a tenth of the weight");
    }
    tokio::time::advance(Duration::from_secs(60)).await;
    let config = LoadBalancing { slow_start: Some(slow), ..config(Algorithm::Random) };
    let share = spread(&Picker::build(&endpoints, &config, None, clock), 20_000, anything)[3];
    assert!((0.24..0.26).contains(&share), "{share}");
}
