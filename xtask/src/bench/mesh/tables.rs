//! What the report says of a mesh.

use super::{
    DIRECT, ENVOY, SELVEDGE,
    load::{Load, Row},
    memory,
};
use crate::bench::report::{Report, ms};
use std::{fmt::Write as _, time::Duration};

pub fn load(report: &mut Report, load: Load, rows: &[Row]) {
    let of = |name: &str| rows.iter().find(|r| r.name == name);
    let mut table = format!(
        "### {}\n\n| | p50 | p90 | p99 | added p50 | added p90 | added p99 | CPU us/{}, both proxies | to Envoy | per second | failed | RSS MiB, outbound + inbound | of it not shared |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        load.title(),
        if load == Load::Handshakes { "connection" } else { "request" },
    );
    for row in rows {
        let added = |get: fn(&Row) -> Duration| match of(DIRECT) {
            Some(direct) if row.name != DIRECT => signed_ms(get(row), get(direct)),
            _ => "-".into(),
        };
        let cpu = if row.memory.is_empty() { "-".into() } else { format!("{:.1}", row.cpu) };
        let to = of(ENVOY).filter(|_| !row.memory.is_empty()).map_or("-".into(), |e| format!("{:.2}", row.cpu / e.cpu));
        let [rss, own] = [0, 1].map(|which| {
            let both: Vec<String> = row.memory.iter().map(|m| mib(m[which])).collect();
            if both.is_empty() { "-".into() } else { both.join(" + ") }
        });
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} | {} | {cpu} | {to} | {:.0} | {} | {rss} | {own} |",
            row.name,
            ms(row.p50),
            ms(row.p90),
            ms(row.p99),
            added(|r| r.p50),
            added(|r| r.p90),
            added(|r| r.p99),
            row.per_second,
            row.failed,
        );
    }
    report.add(&table);
    if load == Load::Http {
        targets(report, of(DIRECT), of(SELVEDGE), of(ENVOY));
    }
}

/// Those of two sidecars at 1,000 requests/s.
fn targets(report: &mut Report, direct: Option<&Row>, ours: Option<&Row>, envoy: Option<&Row>) {
    let (Some(direct), Some(ours)) = (direct, ours) else { return };
    // Less than nothing is noise, and meets nothing.
    let added = |row: &Row| row.p99.as_secs_f64() - direct.p99.as_secs_f64();
    let measured = signed_ms(ours.p99, direct.p99);
    report.target(
        "two sidecars with mutual TLS: added p99",
        "<= 0.25 ms",
        measured,
        (0.0..=0.25e-3).contains(&added(ours)),
    );
    if let Some(envoy) = envoy {
        let ratio = added(ours) / added(envoy).max(1e-6);
        report.target(
            "… to what two Envoys add",
            "<= 0.40",
            format!("{ratio:.2}"),
            added(envoy) > 0.0 && (0.0..=0.4).contains(&ratio),
        );
        let ratio = ours.cpu / envoy.cpu;
        report.target("… CPU per request, to two Envoys", "<= 0.40", format!("{ratio:.2}"), ratio <= 0.4);
    }
    let most = |which: usize| ours.memory.iter().map(|m| m[which]).max().unwrap_or(0);
    let limit = 12 * 1024;
    let of = |which| (format!("{} MiB", mib(most(which))), most(which) <= limit);
    let ((rss, fits), (own, own_fits)) = (of(0), of(1));
    report.target("memory of a sidecar at 1,000 requests/s, RSS", "<= 12 MiB", rss, fits);
    report.target("… of it not shared with other sidecars of the host", "<= 12 MiB", own, own_fits);
}

pub fn memory(report: &mut Report, rows: &[memory::Row]) {
    let mut table = format!(
        "### Memory of a sidecar that uses {} services, {} endpoints in each of the others\n\n\
         | | RSS MiB when ready | of it not shared | RSS MiB after the first use of each | of it not shared |\n|---|--:|--:|--:|--:|\n",
        memory::USED,
        memory::ENDPOINTS
    );
    for row in rows {
        let [[before, own_before], [after, own_after]] = row.memory.map(|m| m.map(mib));
        let _ = writeln!(table, "| {} | {before} | {own_before} | {after} | {own_after} |", row.what);
    }
    report.add(&table);
}

fn mib(kib: u64) -> String {
    format!("{:.1}", kib as f64 / 1024.0)
}

/// A difference, which noise may make negative.
fn signed_ms(time: Duration, base: Duration) -> String {
    format!("{:+.2} ms", (time.as_secs_f64() - base.as_secs_f64()) * 1e3)
}
