//! What is done to those who take part, and how it is mended.

use super::{Event, Held, LEASE, Millis, Sim};
use crate::control::ConnId;
use selvedge_control::publish::scope::Role;

/// As in the transport: whoever hears nothing for so long ends the connection.
const DEAF: (Millis, Millis) = (10_000, 20_000);

impl Sim {
    pub(super) fn fault(&mut self) {
        if self.healed {
            return;
        }
        let next = self.now + self.rng.between(300, 6_000);
        self.push(next, Event::Fault);
        let (proxy, control) = (self.rng.index(self.proxies.len()), self.rng.index(self.controls.len()));
        match self.rng.below(12) {
            0..=2 => {
                let ways = self.rng.pick(&[[true, true], [true, false], [false, true]]).unwrap_or([true; 2]);
                let last = self.rng.between(500, 40_000);
                self.part(proxy, control, ways, last);
            }
            3 => {
                let last = self.rng.between(1_000, 20_000);
                (0..self.proxies.len()).for_each(|proxy| self.part(proxy, control, [true; 2], last));
            }
            4 | 5 => {
                if let Some(conn) = self.proxies[proxy].conn {
                    self.checks.trace(|| format!("connection {conn} breaks"));
                    self.push(self.now, Event::LostAtProxy { conn });
                    self.send(conn, 0, Held::Closed);
                }
            }
            6 | 7 => self.bounce_control(control),
            8 if self.rng.percent(40) => (0..self.controls.len()).for_each(|control| self.bounce_control(control)),
            8 | 9 => {
                if self.controls[control].up && !self.controls[control].cut {
                    self.checks.trace(|| format!("control {control} is cut off the store"));
                    self.controls[control].cut = true;
                    let boot = self.controls[control].boot;
                    self.push(self.now + LEASE, Event::LeaseEnds { control, boot });
                    let at = self.now + self.rng.between(500, 30_000);
                    self.push(at, Event::MendStore { control });
                }
            }
            _ => {
                if self.proxies[proxy].up {
                    let clean = self.rng.percent(40);
                    self.stop_proxy(proxy, clean);
                    let at = self.now + self.rng.between(50, 10_000);
                    self.push(at, Event::StartProxy { proxy });
                }
            }
        }
    }

    /// A connection breaks when the proxy has a part of an update.
    pub(super) fn maybe_break(&mut self, conn: ConnId) {
        if self.plan.faults && !self.healed && self.rng.percent(3) {
            self.checks.trace(|| format!("connection {conn} breaks within an update"));
            let at = self.conns[conn].last[1];
            self.push(at, Event::LostAtProxy { conn });
            self.push(at, Event::LostAtControl { conn });
        }
    }

    fn bounce_control(&mut self, control: usize) {
        if !self.controls[control].up {
            return;
        }
        self.kill_control(control);
        let at = self.now + self.rng.between(100, 20_000);
        self.push(at, Event::StartControl { control });
    }

    fn part(&mut self, proxy: usize, control: usize, ways: [bool; 2], last: Millis) {
        if self.blocked.contains_key(&(proxy, control)) {
            return;
        }
        self.checks.trace(|| format!("p{proxy} and control {control} are parted {ways:?} for {last} ms"));
        self.blocked.insert((proxy, control), ways);
        for conn in 0..self.conns.len() {
            let end = &self.conns[conn];
            if (end.proxy, end.control) == (proxy, control) && (end.proxy_end || end.control_end) {
                let at = self.now + self.rng.between(DEAF.0, DEAF.1);
                self.push(at, Event::Deaf { conn });
            }
        }
        self.push(self.now + last, Event::Mend { proxy, control });
    }

    pub(super) fn mend(&mut self, proxy: usize, control: usize) {
        if self.blocked.remove(&(proxy, control)).is_none() {
            return;
        }
        for conn in 0..self.conns.len() {
            if (self.conns[conn].proxy, self.conns[conn].control) != (proxy, control) {
                continue;
            }
            for way in 0..2 {
                for held in std::mem::take(&mut self.conns[conn].held[way]) {
                    self.send(conn, way, held);
                }
            }
        }
    }

    pub(super) fn mend_store(&mut self, control: usize) {
        if !std::mem::replace(&mut self.controls[control].cut, false) {
            return;
        }
        self.checks.trace(|| format!("control {control} reaches the store again"));
        self.tell(control);
        // What has joined is held by a new lease.
        let mut changes = std::mem::take(&mut self.controls[control].unshared);
        changes.retain(|(_, resource)| resource.is_none());
        changes.extend(self.controls[control].joined());
        let boot = self.controls[control].boot;
        self.push(self.now + 10, Event::Share { control, boot, changes });
    }

    pub(super) fn heal(&mut self) {
        self.checks.trace(|| "everything heals".to_owned());
        self.healed = true;
        for (proxy, control) in self.blocked.keys().copied().collect::<Vec<_>>() {
            self.mend(proxy, control);
        }
        for control in 0..self.controls.len() {
            self.mend_store(control);
            if !self.controls[control].up {
                self.start_control(control);
            }
        }
        for proxy in 0..self.proxies.len() {
            self.start_proxy(proxy);
        }
    }

    /// A workload that joined is gone: its proxy says no word.
    pub(super) fn die(&mut self) {
        let sidecars = self.proxies.iter().enumerate().filter(|(_, p)| p.spec.role == Role::Sidecar && !p.spec.rogue);
        let sidecars: Vec<usize> = sidecars.map(|(proxy, _)| proxy).collect();
        self.dead = self.rng.pick(&sidecars).filter(|_| self.rng.percent(50));
        if let Some(dead) = self.dead {
            self.stop_proxy(dead, false);
        }
    }
}
