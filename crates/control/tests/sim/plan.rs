//! What a seed stands for: who takes part, and what is done to them.

use crate::rng::Rng;
use crate::world::{NAMESPACES, ROOT};
use selvedge_control::publish::scope::Role;

pub type Millis = u64;

/// One run.
pub struct Plan {
    pub controls: usize,
    pub proxies: Vec<Spec>,
    pub services: usize,
    /// The Mesh gives all Services to everybody.
    pub wide: bool,
    /// Faults happen.
    pub faults: bool,
    /// How long it goes on before everything heals.
    pub storm: Millis,
    pub edits: usize,
    /// Proxies start within so long.
    pub starts: Millis,
}

/// One proxy.
#[derive(Clone)]
pub struct Spec {
    pub id: String,
    pub role: Role,
    pub namespace: String,
    pub account: String,
    /// It says that it stands beside this one, and registers it.
    pub workload: Option<String>,
    pub gateways: Vec<String>,
    /// What it claims is not what it has proven: it must get nothing.
    pub rogue: bool,
    /// The longest that it takes to make an update effective.
    pub slow: Millis,
}

impl Plan {
    pub fn new(rng: &mut Rng) -> Self {
        // All get everything, more than fits into one turn.
        let herd = rng.percent(3);
        let count = match rng.below(20) {
            _ if herd => 50,
            0 => rng.between(12, 20),
            1..=4 => rng.between(8, 11),
            _ => rng.between(5, 7),
        };
        let proxies = (0..count).map(|number| Spec::new(number, herd, rng)).collect();
        let services = if herd { 30 } else { usize::try_from(rng.between(2, 4)).unwrap_or(2) };
        Self {
            controls: usize::try_from(if herd { 1 } else { rng.between(1, 3) }).unwrap_or(1),
            proxies,
            services,
            wide: rng.percent(15),
            faults: rng.percent(90),
            storm: rng.between(15, 50) * 1_000,
            edits: usize::try_from(if herd { rng.between(3, 6) } else { rng.between(6, 18) }).unwrap_or(8),
            starts: if herd { 300 } else { 2_000 },
        }
    }
}

impl Spec {
    fn new(number: u64, herd: bool, rng: &mut Rng) -> Self {
        let mut namespace = rng.pick(&NAMESPACES).unwrap_or(ROOT).to_owned();
        let role = match rng.below(10) {
            _ if herd => Role::Gateway,
            0..=3 => Role::Gateway,
            4..=8 => Role::Sidecar,
            _ => Role::Node,
        };
        let name = format!("w{number}");
        let mut account = if role == Role::Sidecar { name.clone() } else { "default".to_owned() };
        let mut workload = (role != Role::Gateway).then(|| format!("{namespace}/{name}"));
        let mut gateways = Vec::new();
        let rogue = !herd && rng.percent(6);
        match role {
            Role::Gateway if rogue => {
                let other = NAMESPACES.iter().find(|n| **n != namespace).unwrap_or(&ROOT);
                gateways.push(format!("{other}/edge"));
            }
            Role::Gateway if herd || rng.percent(20) => ROOT.clone_into(&mut namespace),
            Role::Gateway if rng.percent(50) => gateways.push(format!("{namespace}/edge")),
            Role::Gateway => {}
            _ if rogue => workload = Some("elsewhere/w0".to_owned()),
            Role::Sidecar => {}
            // The proxy of a machine, beside a workload with an account of its own.
            Role::Node => {
                ROOT.clone_into(&mut namespace);
                account = "node".to_owned();
            }
        }
        let slow = match rng.below(20) {
            // Slow enough that more of them are under way than may be.
            _ if herd => rng.between(500, 2_000),
            0 => rng.between(1_000, 25_000),
            1..=4 => rng.between(200, 3_000),
            _ => rng.between(5, 200),
        };
        Self { id: format!("p{number}"), role, namespace, account, workload, gateways, rogue, slow }
    }
}
