//! Which endpoint takes a request. A [`Picker`] is built whenever endpoints or their health change, away from
//! requests; picking from it takes no lock and allocates nothing.

pub mod ewma;
pub mod maglev;
pub mod random;
pub mod ring;
pub mod round_robin;
pub mod slow_start;

mod eligible;

use crate::{
    endpoint::{Clock, LiveEndpoint},
    outlier::Standing,
};
use maglev::Maglev;
use random::{Random, Sampler};
use ring::Ring;
use round_robin::Stride;
use selvedge_compile::snapshot::{Algorithm, LoadBalancing, SlowStart};
use std::{net::SocketAddr, sync::Arc, time::Duration};

/// What a request wants of its endpoint.
#[derive(Debug, Default, Clone, Copy)]
pub struct Pick<'a> {
    /// Of the first hash key that is present, for ring hash and Maglev.
    pub hash: Option<u64>,
    /// Endpoints that have failed this request before: avoided when there are others.
    pub tried: &'a [SocketAddr],
    /// Session persistence: taken if it is there and usable.
    pub sticky: Option<SocketAddr>,
}

/// The endpoints of a cluster as a request may choose from them.
#[derive(Debug)]
pub struct Picker {
    /// All that there are, sorted by address.
    all: Vec<Arc<LiveEndpoint>>,
    /// The own zone's share, when zones matter; otherwise everybody.
    near: Group,
    far: Group,
    /// Of 1000 requests this many stay with `near`.
    near_permille: u32,
    /// Ejected endpoints that wait for one request to prove themselves with.
    spared: Vec<Arc<LiveEndpoint>>,
    probation: Vec<Arc<LiveEndpoint>>,
    /// So few are healthy that health is ignored.
    panic: bool,
    slow_start: Option<SlowStart>,
    /// Nobody is in slow start after this, in milliseconds of the clock.
    warm_until: u64,
    clock: Clock,
    /// Why nobody can be picked, when that is so.
    reason: String,
}

#[derive(Debug)]
struct Group {
    endpoints: Vec<Arc<LiveEndpoint>>,
    method: Method,
}

#[derive(Debug)]
enum Method {
    RoundRobin(Stride),
    Random(Sampler),
    LeastRequest { sampler: Sampler, choices: u8 },
    PeakEwma { sampler: Sampler, choices: u8, decay: Duration },
    Ring(Ring),
    Maglev(Maglev),
}

/// Draws that may be refused (tried before, just ejected, in slow start) before all endpoints are looked through.
const DRAWS: usize = 4;
/// Points of a ring or table that are passed over in search of an acceptable endpoint, before all are looked through.
const WALK: usize = 64;

impl Picker {
    /// `endpoints` sorted by address; `zone` is our own.
    pub fn build(endpoints: &[Arc<LiveEndpoint>], config: &LoadBalancing, zone: Option<&str>, clock: Clock) -> Self {
        let choice = eligible::choose(endpoints, config, zone);
        let window = config.slow_start.map_or(0, |slow| slow.window.as_millis() as u64);
        let warm_until = endpoints.iter().map(|e| e.warm_since() + window).max().unwrap_or(0);
        let mut random = Random::seeded(Random::with_local(Random::draw));
        let probation = endpoints.iter().filter(|e| e.outlier.standing() == Standing::Probation && e.weight() > 0);
        Self {
            all: endpoints.to_vec(),
            near_permille: choice.near_permille,
            panic: choice.panic,
            probation: probation.cloned().collect(),
            spared: choice.spared,
            near: Group::new(choice.near, config.algorithm, &mut random),
            far: Group::new(choice.far, config.algorithm, &mut random),
            slow_start: config.slow_start,
            warm_until,
            clock,
            reason: choice.reason,
        }
    }

    /// The endpoint for a request; the error says why there is none.
    pub fn pick(&self, pick: &Pick<'_>) -> Result<Arc<LiveEndpoint>, &str> {
        Random::with_local(|random| self.pick_with(pick, random))
    }

    /// As [`Picker::pick`], with the generator given: the same seed, the same picks.
    pub fn pick_with(&self, pick: &Pick<'_>, random: &mut Random) -> Result<Arc<LiveEndpoint>, &str> {
        if let Some(endpoint) = pick.sticky.and_then(|address| self.find(address))
            && self.accepts(endpoint, pick)
        {
            return Ok(endpoint.clone());
        }
        if !self.probation.is_empty()
            && pick.tried.is_empty()
            && let Some(endpoint) = self.probation.iter().find(|e| e.outlier.claim_probe(self.clock.millis()))
        {
            return Ok(endpoint.clone());
        }
        let (first, second) =
            if self.stays_near(pick, random) { (&self.near, &self.far) } else { (&self.far, &self.near) };
        let found = first.pick(self, pick, random).or_else(|| second.pick(self, pick, random));
        // All others have just failed this request: one that failed before may be well again.
        let spared =
            || self.spared.iter().find(|e| !pick.tried.contains(&e.address)).filter(|_| !pick.tried.is_empty());
        let found = found.or_else(spared);
        // Everybody is tried or has just been ejected: better one of those than none.
        let found = found.or_else(|| first.any(random)).or_else(|| second.any(random));
        found.cloned().ok_or(self.reason.as_str())
    }

    /// Endpoints that take requests now.
    pub fn available(&self) -> usize {
        self.near.endpoints.len() + self.far.endpoints.len()
    }

    pub fn is_panicking(&self) -> bool {
        self.panic
    }

    fn find(&self, address: SocketAddr) -> Option<&Arc<LiveEndpoint>> {
        self.all.binary_search_by_key(&address, |e| e.address).ok().map(|index| &self.all[index])
    }

    fn accepts(&self, endpoint: &LiveEndpoint, pick: &Pick<'_>) -> bool {
        (self.panic || endpoint.is_usable()) && !pick.tried.contains(&endpoint.address)
    }

    fn stays_near(&self, pick: &Pick<'_>, random: &mut Random) -> bool {
        match (self.near_permille, pick.hash) {
            (1000.., _) => true,
            (0, _) => false,
            // By the hash, so that one key does not wander between zones.
            (share, Some(hash)) => (((hash >> 32) * 1000) >> 32) < u64::from(share),
            (share, None) => random.below(1000) < share as usize,
        }
    }

    /// The share of its weight that an endpoint has grown into.
    fn warmth(&self, endpoint: &LiveEndpoint, now: u64) -> f64 {
        match &self.slow_start {
            Some(config) if now < self.warm_until => {
                slow_start::factor(config, now.saturating_sub(endpoint.warm_since()))
            }
            _ => 1.0,
        }
    }

    /// Zero when time does not matter, which spares reading the clock.
    fn now(&self, method: &Method) -> u64 {
        let matters = self.slow_start.is_some() || matches!(method, Method::PeakEwma { .. });
        if matters { self.clock.millis() } else { 0 }
    }
}

impl Group {
    fn new(endpoints: Vec<Arc<LiveEndpoint>>, algorithm: Algorithm, random: &mut Random) -> Self {
        let weights: Vec<u32> = endpoints.iter().map(|e| e.weight()).collect();
        let nodes = || endpoints.iter().map(|e| (e.address.to_string(), e.weight())).collect::<Vec<_>>();
        let method = match algorithm {
            Algorithm::RoundRobin => Method::RoundRobin(Stride::new(&weights, random)),
            Algorithm::Random => Method::Random(Sampler::new(&weights)),
            Algorithm::LeastRequest { choices } => {
                Method::LeastRequest { sampler: Sampler::new(&weights), choices: choices.clamp(2, 16) }
            }
            Algorithm::PeakEwma { decay, choices } => {
                Method::PeakEwma { sampler: Sampler::new(&weights), choices: choices.clamp(2, 16), decay }
            }
            Algorithm::RingHash { min_size, max_size } => Method::Ring(Ring::new(&nodes(), min_size, max_size)),
            Algorithm::Maglev { table_size } => Method::Maglev(Maglev::new(&nodes(), table_size)),
        };
        Self { endpoints, method }
    }

    fn pick(&self, picker: &Picker, pick: &Pick<'_>, random: &mut Random) -> Option<&Arc<LiveEndpoint>> {
        if self.endpoints.is_empty() {
            return None;
        }
        let now = picker.now(&self.method);
        let found = match (&self.method, pick.hash) {
            (Method::Ring(ring), Some(hash)) => self.walk(ring.walk(hash), picker, pick),
            (Method::Maglev(table), Some(hash)) => self.walk(table.walk(hash), picker, pick),
            (Method::LeastRequest { sampler, choices }, _) => self.best(
                *choices,
                picker,
                pick,
                |r| self.draw_warm(sampler, picker, now, r),
                random,
                |e| f64::from(e.active()) / (f64::from(e.weight()) * picker.warmth(e, now)),
            ),
            (Method::PeakEwma { sampler, choices, decay }, _) => self.best(
                *choices,
                picker,
                pick,
                |r| self.draw_warm(sampler, picker, now, r),
                random,
                |e| e.ewma.cost(e.active(), now, *decay) / (f64::from(e.weight()) * picker.warmth(e, now)),
            ),
            _ => self.first(picker, pick, now, random),
        };
        found.or_else(|| self.any_accepted(picker, pick, random))
    }

    /// The first acceptable one in the order of the method.
    fn first(&self, picker: &Picker, pick: &Pick<'_>, now: u64, random: &mut Random) -> Option<&Arc<LiveEndpoint>> {
        for _ in 0..DRAWS.max(pick.tried.len() + 2) {
            let endpoint = &self.endpoints[self.draw(random)];
            if !picker.accepts(endpoint, pick) {
                continue;
            }
            let warmth = picker.warmth(endpoint, now);
            if warmth >= 1.0 || random.unit() < warmth {
                return Some(endpoint);
            }
        }
        None
    }

    fn draw(&self, random: &mut Random) -> usize {
        match &self.method {
            Method::RoundRobin(stride) => stride.next(),
            Method::Ring(ring) => ring.draw(random),
            Method::Maglev(table) => table.draw(random),
            Method::Random(sampler) | Method::LeastRequest { sampler, .. } | Method::PeakEwma { sampler, .. } => {
                sampler.draw(random)
            }
        }
    }

    /// A draw in which an endpoint in slow start stands for only the share it has grown into.
    fn draw_warm(&self, sampler: &Sampler, picker: &Picker, now: u64, random: &mut Random) -> usize {
        let mut index = sampler.draw(random);
        for _ in 0..DRAWS {
            let warmth = picker.warmth(&self.endpoints[index], now);
            if warmth >= 1.0 || random.unit() < warmth {
                break;
            }
            index = sampler.draw(random);
        }
        index
    }

    /// The power of a few choices: candidates are drawn by weight, and the one of least load per weight wins.
    /// (Envoy draws evenly and weighs after; without concurrency the heavier of two then wins always, and shares
    /// no longer follow the weights.) Ties go to the first, which keeps the weights exact when nothing is busy.
    fn best(
        &self,
        choices: u8,
        picker: &Picker,
        pick: &Pick<'_>,
        draw: impl Fn(&mut Random) -> usize,
        random: &mut Random,
        load: impl Fn(&LiveEndpoint) -> f64,
    ) -> Option<&Arc<LiveEndpoint>> {
        if let [only] = self.endpoints.as_slice() {
            return picker.accepts(only, pick).then_some(only);
        }
        let mut best: Option<(&Arc<LiveEndpoint>, f64)> = None;
        for _ in 0..choices {
            // A few attempts to draw somebody else than the best so far: two different ones are to be compared.
            let other = (0..DRAWS).map(|_| &self.endpoints[draw(random)]).find(|endpoint| {
                picker.accepts(endpoint, pick) && best.is_none_or(|(best, _)| !Arc::ptr_eq(best, endpoint))
            });
            let Some(other) = other else { continue };
            let cost = load(other);
            if best.is_none_or(|(_, least)| cost < least) {
                best = Some((other, cost));
            }
        }
        best.map(|(endpoint, _)| endpoint)
    }

    fn walk(
        &self,
        owners: impl Iterator<Item = usize>,
        picker: &Picker,
        pick: &Pick<'_>,
    ) -> Option<&Arc<LiveEndpoint>> {
        owners.take(WALK).map(|index| &self.endpoints[index]).find(|endpoint| picker.accepts(endpoint, pick))
    }

    /// Anybody acceptable, from a random place on.
    fn any_accepted(&self, picker: &Picker, pick: &Pick<'_>, random: &mut Random) -> Option<&Arc<LiveEndpoint>> {
        let start = random.below(self.endpoints.len());
        let (before, after) = self.endpoints.split_at(start);
        after.iter().chain(before).find(|endpoint| picker.accepts(endpoint, pick))
    }

    fn any(&self, random: &mut Random) -> Option<&Arc<LiveEndpoint>> {
        self.endpoints.get(random.below(self.endpoints.len()))
    }
}

#[cfg(test)]
mod tests;
