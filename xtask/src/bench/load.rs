//! Load generators and what they say.

use super::process;
use anyhow::{Context, Result, ensure};
use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

/// What a load generator saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub requests: u64,
    pub failed: u64,
    pub per_second: f64,
    pub p50: Duration,
    pub p90: Duration,
    pub p99: Duration,
}

/// Asks for random routes among as many as its argument says (none: the path of the URL), and prints one line at the end.
const SCRIPT: &str = r#"
local paths, at = {}, 0
function init(args)
  local n = tonumber(args[1] or "0")
  math.randomseed(1)
  for i = 1, n > 0 and 5000 or 0 do
    paths[i] = wrk.format("GET", string.format("/r%05d/x", math.random(0, n - 1)))
  end
  if n == 0 then paths[1] = wrk.format() end
end
function request()
  at = at % #paths + 1
  return paths[at]
end
function done(s, l, r)
  local e = s.errors
  io.write(string.format("RESULT %d %d %d %d %d %d\n", s.requests, s.duration,
    e.connect + e.read + e.write + e.status + e.timeout, l:percentile(50), l:percentile(90), l:percentile(99)))
end
"#;

/// wrk over kept connections.
pub fn wrk(dir: &Path, url: &str, connections: usize, seconds: u64, routes: usize) -> Result<Seen> {
    let script = dir.join("wrk.lua");
    fs::write(&script, SCRIPT)?;
    let mut command = Command::new("wrk");
    command.args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), "--timeout", "10s", "-s"]);
    command.arg(script).arg(url).arg("--").arg(routes.to_string());
    line(&process::output(&mut command, Duration::from_secs(seconds + 60))?)
}

/// New TLS connections, one request each, by our own client.
pub fn handshakes(to: SocketAddr, ca: &Path, seconds: u64) -> Result<Seen> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["handshakes", "--to", &to.to_string(), "--seconds", &seconds.to_string(), "--ca"]).arg(ca);
    line(&process::output(&mut command, Duration::from_secs(seconds + 60))?)
}

/// `RESULT requests microseconds failed p50 p90 p99`
pub fn line(output: &str) -> Result<Seen> {
    let fields: Vec<u64> = output
        .lines()
        .find_map(|l| l.strip_prefix("RESULT "))
        .context("a load generator printed no result")?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    ensure!(fields.len() == 6 && fields[1] > 0, "a load generator printed a strange result: {fields:?}");
    Ok(Seen {
        requests: fields[0],
        failed: fields[2],
        per_second: fields[0] as f64 * 1e6 / fields[1] as f64,
        p50: Duration::from_micros(fields[3]),
        p90: Duration::from_micros(fields[4]),
        p99: Duration::from_micros(fields[5]),
    })
}

/// Says what [`line`] reads, at the end of a load generator of ours.
pub fn print(mut times: Vec<Duration>, elapsed: Duration, failed: u64) {
    times.sort_unstable();
    let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|q| percentile(&times, q).unwrap_or_default().as_micros());
    println!("RESULT {} {} {failed} {p50} {p90} {p99}", times.len(), elapsed.as_micros());
}

/// h2load; with a message, each request is a gRPC call.
pub fn h2load(
    dir: &Path,
    url: &str,
    clients: usize,
    streams: usize,
    seconds: u64,
    message: Option<&[u8]>,
) -> Result<Seen> {
    let log = dir.join("h2load.log");
    let _ = fs::remove_file(&log);
    let mut command = Command::new("h2load");
    command.args(["-t1", &format!("-c{clients}"), &format!("-m{streams}"), "-D", &seconds.to_string()]);
    command.arg("--log-file").arg(&log);
    if let Some(message) = message {
        let data = dir.join("message");
        fs::write(&data, message)?;
        command.args(["-H", "content-type: application/grpc", "-H", "te: trailers", "-d"]).arg(data);
    }
    let output = process::output(command.arg(url), Duration::from_secs(seconds + 60))?;
    let count = |before: &str| {
        let words: Vec<&str> = output.lines().find(|l| l.starts_with("requests:"))?.split([' ', ',']).collect();
        let at = words.iter().position(|w| *w == before)?;
        words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
    };
    let requests = count("done").context("h2load printed no count of requests")?;
    // Rows of the log: start, status, microseconds; the status is -1 for a failed stream.
    let mut times: Vec<Duration> = fs::read_to_string(&log)?
        .lines()
        .filter_map(|l| l.rsplit_once('\t')?.1.parse().ok().map(Duration::from_micros))
        .collect();
    times.sort_unstable();
    let done = count("succeeded").unwrap_or(0);
    Ok(Seen {
        requests,
        failed: requests - done.min(requests),
        per_second: requests as f64 / seconds as f64,
        p50: percentile(&times, 0.5).unwrap_or_default(),
        p90: percentile(&times, 0.9).unwrap_or_default(),
        p99: percentile(&times, 0.99).unwrap_or_default(),
    })
}

/// The value that a share `q` of sorted values does not exceed.
pub fn percentile<T: Copy>(sorted: &[T], q: f64) -> Option<T> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * q).round() as usize).copied()
}

/// The middle of some values; 0 for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    percentile(&sorted, 0.5).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_line_is_found_among_others() {
        let seen = line("Running 1s test\nRESULT 1000 500000 2 150 300 900\n").unwrap();
        assert_eq!((seen.requests, seen.failed, seen.per_second), (1000, 2, 2000.0));
        assert_eq!([seen.p50, seen.p90, seen.p99], [150, 300, 900].map(Duration::from_micros));
        assert!(line("RESULT 1 2").is_err());
        assert!(line("nothing").is_err());
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        assert_eq!(percentile(&[1, 2, 3], 0.5), Some(2));
        assert_eq!(percentile(&[1, 2, 3], 0.99), Some(3));
        assert_eq!(percentile::<u8>(&[], 0.5), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }
}
