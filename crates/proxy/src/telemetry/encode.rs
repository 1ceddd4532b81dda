//! Metrics as text: OpenMetrics 1.0 and the Prometheus text format 0.0.4.

use super::families::{FAMILIES, Family, Type};
use std::fmt::Write;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4`
    Prometheus,
    /// `application/openmetrics-text; version=1.0.0`
    OpenMetrics,
}

impl Format {
    /// By the `Accept` header: OpenMetrics only when it is named.
    pub fn negotiate(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Collects samples in any order and writes them family by family, as both formats demand.
pub struct Encoder {
    bodies: Vec<String>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { bodies: vec![String::new(); FAMILIES.len()] }
    }
}

impl Encoder {
    /// One sample of a counter or gauge. `labels` are values, in the order of the family's label names.
    pub fn sample(&mut self, family: Family, labels: &[&str], value: impl Into<Number>) {
        let out = &mut self.bodies[family as usize];
        out.push_str(family.spec().name);
        write_labels(out, family.spec().labels, labels, None);
        out.push(' ');
        value.into().write(out);
        out.push('\n');
    }

    /// A counter that is left out while it is zero: series appear when they happen.
    pub fn nonzero(&mut self, family: Family, labels: &[&str], value: u64) {
        if value > 0 {
            self.sample(family, labels, value);
        }
    }

    /// A histogram: `counts` per bucket (not cumulated), one for each of `bounds` (seconds) and one beyond.
    pub fn histogram(&mut self, family: Family, labels: &[&str], bounds: &[&str], counts: &[u64], sum: f64) {
        let spec = family.spec();
        let out = &mut self.bodies[family as usize];
        let mut total = 0;
        for (i, count) in counts.iter().enumerate() {
            total += count;
            let _ = write!(out, "{}_bucket", spec.name);
            write_labels(out, spec.labels, labels, Some(("le", bounds.get(i).copied().unwrap_or("+Inf"))));
            let _ = writeln!(out, " {total}");
        }
        for (suffix, value) in [("_sum", Number::F64(sum)), ("_count", Number::U64(total))] {
            let _ = write!(out, "{}{suffix}", spec.name);
            write_labels(out, spec.labels, labels, None);
            out.push(' ');
            value.write(out);
            out.push('\n');
        }
    }

    /// The whole exposition.
    pub fn finish(self, format: Format) -> String {
        let mut out = String::with_capacity(self.bodies.iter().map(|b| b.len() + 200).sum());
        for (spec, body) in FAMILIES.iter().zip(&self.bodies) {
            if body.is_empty() {
                continue;
            }
            let kind = match spec.kind {
                Type::Counter => "counter",
                Type::Gauge => "gauge",
                Type::Histogram => "histogram",
            };
            // OpenMetrics names the family of a counter without the suffix of its samples.
            let name = match format {
                Format::OpenMetrics => spec.name.strip_suffix("_total").unwrap_or(spec.name),
                Format::Prometheus => spec.name,
            };
            let _ = write!(out, "# HELP {name} {}\n# TYPE {name} {kind}\n{body}", spec.help);
        }
        if format == Format::OpenMetrics {
            out.push_str("# EOF\n");
        }
        out
    }
}

/// A sample's value.
#[derive(Debug, Clone, Copy)]
pub enum Number {
    U64(u64),
    F64(f64),
}

impl From<u64> for Number {
    fn from(n: u64) -> Self {
        Self::U64(n)
    }
}

impl From<f64> for Number {
    fn from(n: f64) -> Self {
        Self::F64(n)
    }
}

impl Number {
    fn write(self, out: &mut String) {
        let _ = match self {
            Self::U64(n) => write!(out, "{n}"),
            Self::F64(n) => write!(out, "{n}"),
        };
    }
}

fn write_labels(out: &mut String, names: &[&str], values: &[&str], extra: Option<(&str, &str)>) {
    debug_assert_eq!(names.len(), values.len(), "labels of {out}");
    if names.is_empty() && extra.is_none() {
        return;
    }
    out.push('{');
    for (i, (name, value)) in names.iter().copied().zip(values.iter().copied()).chain(extra).enumerate() {
        if i > 0 {
            out.push(',');
        }
        out.push_str(name);
        out.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
    }
    out.push('}');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_group_samples_and_escape_labels() {
        let mut e = Encoder::default();
        e.sample(Family::ConfigRevision, &[], 7);
        e.sample(Family::ConnectionsOpened, &["a\"b\\c\nd"], 3);
        e.sample(Family::ConnectionsOpened, &["x"], 4);
        let text = e.finish(Format::Prometheus);
        assert!(text.starts_with("# HELP selvedge_downstream_connections_total "), "{text}");
        assert!(text.contains("selvedge_downstream_connections_total{bind=\"a\\\"b\\\\c\\nd\"} 3\n"));
        assert!(text.contains("\nselvedge_config_revision 7\n"));
        assert!(!text.contains("EOF"));
        let mut e = Encoder::default();
        e.sample(Family::ConnectionsOpened, &["x"], 4);
        let open = e.finish(Format::OpenMetrics);
        assert!(open.contains("# TYPE selvedge_downstream_connections counter\n"));
        assert!(open.ends_with("# EOF\n"));
    }

    #[test]
    fn histograms_are_cumulative_and_end_with_infinity() {
        let mut e = Encoder::default();
        e.histogram(Family::RequestDuration, &["l", "r"], &["0.1", "1"], &[1, 2, 3], 9.5);
        let text = e.finish(Format::Prometheus);
        assert!(text.contains("_bucket{listener=\"l\",route=\"r\",le=\"0.1\"} 1\n"));
        assert!(text.contains("le=\"1\"} 3\n"));
        assert!(text.contains("le=\"+Inf\"} 6\n"));
        assert!(text.contains("_sum{listener=\"l\",route=\"r\"} 9.5\n"));
        assert!(text.contains("_count{listener=\"l\",route=\"r\"} 6\n"));
    }

    #[test]
    fn openmetrics_only_when_asked() {
        assert_eq!(Format::negotiate(None), Format::Prometheus);
        assert_eq!(Format::negotiate(Some("text/html, */*")), Format::Prometheus);
        assert_eq!(Format::negotiate(Some("application/openmetrics-text;version=1.0.0")), Format::OpenMetrics);
    }
}
