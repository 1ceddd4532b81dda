//! Tables in Markdown, and the targets next to them.

use super::{
    Effort, change, memory,
    peer::Peer,
    scenario::{Row, Scenario},
};
use anyhow::{Context, Result};
use std::{fmt::Write as _, fs, path::Path, process::Command, time::Duration};

/// The command whose marks a file has around its tables.
pub const GATEWAY: &str = "cargo xtask bench";
pub const MESH: &str = "cargo xtask bench mesh";
pub const CONTROL: &str = "cargo xtask bench control";

pub struct Report {
    command: &'static str,
    text: String,
    targets: Vec<Target>,
}

struct Target {
    what: &'static str,
    wanted: String,
    measured: String,
    met: bool,
}

/// A line about the machine before the load makes it busy.
pub fn machine(effort: Effort, given: Option<&Path>) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let models: Vec<&str> =
        cpus.lines().filter_map(|l| l.strip_prefix("model name")).filter_map(|l| l.split(':').nth(1)).collect();
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok().filter(|o| o.status.success());
        output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_else(|| "unknown".into())
    };
    let waiting: f64 = read("/proc/loadavg").split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
    let shared = if waiting >= 0.5 {
        format!(
            "**The machine was shared**: other work kept {waiting:.1} processes running while this was measured, so latencies, \
             requests/s and absolute CPU times say little; the ratios within a table say more."
        )
    } else {
        "Nothing else ran on the machine.".into()
    };
    let real_time = if real_time(&read("/proc/self/stat")) {
        "\n\nAll that was measured had real-time priority (`chrt -r`), so that of other work only the kernel's own came between."
    } else {
        ""
    };
    let commit = run("git", &["describe", "--always", "--dirty"]);
    let program = given.map_or_else(
        || format!("build of commit {commit} by `cargo xtask dist`"),
        |path| format!("a given program of {}", run("date", &["-u", "+%F %R UTC", "-r", &path.to_string_lossy()])),
    );
    format!(
        "{}, {program}; {} cores of {}, Linux {}. {} x {} s per peer and scenario, in turns; medians.\n\n{shared}{real_time}\n",
        run("date", &["-u", "+%F"]),
        models.len(),
        models.first().copied().unwrap_or(" an unknown processor").trim(),
        read("/proc/sys/kernel/osrelease").trim(),
        effort.rounds,
        effort.seconds,
    )
}

/// Whether a process, and what it starts, has real-time priority, by its `stat` (proc_pid_stat(5), field 41).
fn real_time(stat: &str) -> bool {
    // The name before it, in parentheses, may have anything in it.
    let policy = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(38));
    matches!(policy, Some("1" | "2"))
}

impl Report {
    pub fn new(command: &'static str, machine: String, versions: &[String]) -> Self {
        let mut text = machine;
        text.push('\n');
        for version in versions {
            let _ = writeln!(text, "- {version}");
        }
        println!("{text}");
        Self { command, text, targets: Vec::new() }
    }

    /// A table or a paragraph of its own.
    pub fn add(&mut self, table: &str) {
        println!("\n{table}");
        self.text.push('\n');
        self.text.push_str(table);
    }

    pub fn scenario(&mut self, scenario: &Scenario, rows: &[Row]) {
        let cpu_of = |peer: Peer, routes| rows.iter().find(|r| r.peer == peer && r.routes == routes).map(|r| r.cpu);
        let mut table = format!(
            "### {}\n\n| peer | CPU us/request | to HAProxy | to Envoy | requests/s | p50 | p99 | failed | RSS MiB |\n\
             |---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
            scenario.title
        );
        for row in rows {
            let routes = row
                .routes
                .map(|n| if n == 1 { ", 1 route".into() } else { format!(", {n} routes") })
                .unwrap_or_default();
            let ratio = |peer| cpu_of(peer, row.routes).map_or_else(|| "-".into(), |c| format!("{:.2}", row.cpu / c));
            let _ = writeln!(
                table,
                "| {}{routes} | {:.1} | {} | {} | {:.0} | {} | {} | {} | {:.1} |",
                row.peer,
                row.cpu,
                ratio(Peer::Haproxy),
                ratio(Peer::Envoy),
                row.per_second,
                ms(row.p50),
                ms(row.p99),
                row.failed,
                row.rss as f64 / 1024.0,
            );
        }
        self.add(&table);
        let ours = |routes| cpu_of(Peer::Selvedge, routes);
        let mut ratio = |what, limit: f64, a: Option<f64>, b: Option<f64>| {
            if let (Some(a), Some(b)) = (a, b) {
                let measured = a / b;
                self.targets.push(Target {
                    what,
                    wanted: format!("<= {limit:.2}"),
                    measured: format!("{measured:.2}"),
                    met: measured <= limit,
                });
            }
        };
        match scenario.name {
            "http1" => {
                ratio("CPU per request, HTTP/1.1, to HAProxy", 1.0, ours(None), cpu_of(Peer::Haproxy, None));
                ratio("CPU per request, HTTP/1.1, to Envoy", 0.33, ours(None), cpu_of(Peer::Envoy, None));
            }
            "h2" => {
                ratio("CPU per request, HTTP/2 + TLS 1.3, to HAProxy", 1.0, ours(None), cpu_of(Peer::Haproxy, None));
                ratio("CPU per request, HTTP/2 + TLS 1.3, to Envoy", 0.25, ours(None), cpu_of(Peer::Envoy, None));
            }
            "routes" => ratio("CPU per request, 10,000 routes to 1", 1.05, ours(Some(10_000)), ours(Some(1))),
            _ => {}
        }
    }

    pub fn memory(&mut self, rows: &[memory::Row]) {
        let mut table = format!(
            "### Memory of idle connections: {} plain, {} TLS 1.3, one request each before\n\n\
             | peer | MiB of its own without them | KiB per plain connection | KiB per TLS connection |\n|---|--:|--:|--:|\n",
            memory::PLAIN,
            memory::TLS
        );
        for row in rows {
            let _ = writeln!(
                table,
                "| {} | {:.1} | {:.2} | {:.2} |",
                row.peer,
                row.idle as f64 / 1024.0,
                row.plain,
                row.tls
            );
        }
        self.add(&table);
        if let Some(row) = rows.iter().find(|r| r.peer == Peer::Selvedge) {
            let kinds = [
                ("idle keep-alive connection, plain", 2.0, row.plain),
                ("idle keep-alive connection, TLS", 18.0, row.tls),
            ];
            for (what, limit, measured) in kinds {
                let (wanted, shown) = (format!("<= {limit} KiB"), format!("{measured:.2} KiB"));
                self.targets.push(Target { what, wanted, measured: shown, met: measured <= limit });
            }
        }
    }

    pub fn change(&mut self, outcome: &change::Outcome) {
        let mut table = "### One of 10,000 routes changed every second, HTTP/1.1, 32 kept connections (wrk)\n\n\
            | | CPU us/request | requests/s | p50 | p99 | failed |\n|---|--:|--:|--:|--:|--:|\n"
            .to_owned();
        for (name, cpu, seen) in
            [("no change", outcome.cpu[0], outcome.calm), ("a change per second", outcome.cpu[1], outcome.changing)]
        {
            let _ = writeln!(
                table,
                "| {name} | {cpu:.1} | {:.0} | {} | {} | {} |",
                seen.per_second,
                ms(seen.p50),
                ms(seen.p99),
                seen.failed
            );
        }
        let _ = writeln!(
            table,
            "\n{} changes; from the rename of the file to the first answer with the new header: median {}, longest {}. Selvedge itself \
             says it took {} to compile and install one.",
            outcome.changes,
            ms(outcome.median),
            ms(outcome.longest),
            ms(outcome.took)
        );
        self.add(&table);
        let spike = outcome.changing.p99.as_secs_f64() / outcome.calm.p99.as_secs_f64().max(1e-6);
        let limit = Duration::from_millis(20);
        self.targets.push(Target {
            what: "one route changed among 10,000: effective",
            wanted: "<= 20 ms".into(),
            measured: ms(outcome.median),
            met: outcome.median <= limit,
        });
        self.targets.push(Target {
            what: "… failed requests",
            wanted: "0".into(),
            measured: outcome.changing.failed.to_string(),
            met: outcome.changing.failed == 0,
        });
        self.targets.push(Target {
            what: "… p99 against no change",
            wanted: "<= 2.00".into(),
            measured: format!("{spike:.2}"),
            met: spike <= 2.0,
        });
    }

    /// Something that was to be reached.
    pub fn target(&mut self, what: &'static str, wanted: &str, measured: String, met: bool) {
        self.targets.push(Target { what, wanted: wanted.to_owned(), measured, met });
    }

    /// What was to be reached, for the scenarios that ran.
    pub fn targets(&mut self) {
        if self.targets.is_empty() {
            return;
        }
        let mut table = "### Targets\n\n| what | target | measured | met |\n|---|--:|--:|---|\n".to_owned();
        for target in &self.targets {
            let met = if target.met { "yes" } else { "**no**" };
            let _ = writeln!(table, "| {} | {} | {} | {met} |", target.what, target.wanted, target.measured);
        }
        self.add(&table);
    }

    /// Puts the tables between the marks of a file, or makes the file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let (begin, end) = (self.mark("begin"), self.mark("end"));
        let old = fs::read_to_string(path).unwrap_or_else(|_| format!("# Benchmarks\n\n{begin}\n{end}\n"));
        let (before, rest) =
            old.split_once(&begin).with_context(|| format!("{} lacks the mark {begin}", path.display()))?;
        let (_, after) = rest.split_once(&end).with_context(|| format!("{} lacks the mark {end}", path.display()))?;
        fs::write(path, format!("{before}{begin}\n{}\n{end}{after}", self.text))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn mark(&self, which: &str) -> String {
        format!("<!-- {which}: written by {} -->", self.command)
    }
}

pub fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_the_41st_field_behind_any_name() {
        let stat = |policy| format!("7 (a ) 2) R{} {policy} 0 0", " 0".repeat(37));
        assert!(real_time(&stat(2)) && !real_time(&stat(0)) && !real_time(""));
    }
}
