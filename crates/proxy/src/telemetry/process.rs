//! What the kernel says about this process, under the names that every Prometheus client uses.

use super::{encode::Encoder, families::Family};
use std::fs;

/// Adds what `/proc` has; where there is no `/proc`, nothing.
pub(super) fn encode(out: &mut Encoder) {
    if let Some(usage) = Usage::read() {
        out.sample(Family::ProcessCpu, &[], usage.cpu_seconds);
        out.sample(Family::ProcessMemory, &[], usage.resident_bytes);
        out.sample(Family::ProcessVirtualMemory, &[], usage.virtual_bytes);
        if let Some(start) = usage.start_seconds() {
            out.sample(Family::ProcessStart, &[], start);
        }
    }
    if let Ok(fds) = fs::read_dir("/proc/self/fd") {
        // Reading the folder opens one more.
        out.sample(Family::ProcessFds, &[], (fds.count() as u64).saturating_sub(1));
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if let Some(max) = limit.current {
        out.sample(Family::ProcessMaxFds, &[], max);
    }
}

struct Usage {
    cpu_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    /// After boot.
    start_ticks: f64,
    ticks_per_second: f64,
}

impl Usage {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The command, field 2, may hold anything, but it ends with the last parenthesis; what follows is field 3.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3).and_then(|f| f.parse::<u64>().ok());
        let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
        Some(Self {
            cpu_seconds: (number(14)? + number(15)?) as f64 / ticks_per_second,
            virtual_bytes: number(23)?,
            resident_bytes: number(24)? * rustix::param::page_size() as u64,
            start_ticks: number(22)? as f64,
            ticks_per_second,
        })
    }

    fn start_seconds(&self) -> Option<f64> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let boot: f64 = stat.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()?;
        Some(boot + self.start_ticks / self.ticks_per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_a_hostile_command_name() {
        let stat = "1 (a) b) (c) S 2 3 4 5 6 7 8 9 10 11 200 100 0 0 20 0 1 0 5000 4096 3 0";
        let usage = Usage::parse(stat).unwrap();
        assert_eq!(usage.cpu_seconds, 300.0 / usage.ticks_per_second);
        assert_eq!(usage.virtual_bytes, 4096);
        assert_eq!(usage.resident_bytes, 3 * rustix::param::page_size() as u64);
        assert!(Usage::parse("").is_none());
        assert!(Usage::parse("1 (x) S 1").is_none());
    }
}
