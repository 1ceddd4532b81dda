//! Processes of the benchmark: pinned to a core, measured through `/proc`, ended with their owner.

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    process::{Pid, Signal, kill_process, set_parent_process_death_signal},
    thread::{CpuSet, sched_setaffinity},
};
use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Where a process runs.
#[derive(Clone, Copy)]
pub enum Core {
    /// Load and backends.
    Load,
    /// What is measured.
    Proxy,
}

impl Core {
    pub fn set(self) -> CpuSet {
        let mut set = CpuSet::new();
        set.set(self as usize);
        set
    }
}

/// How long a process may take to end when it is asked to.
const END: Duration = Duration::from_secs(5);

/// A running process; dropping it asks it to end, and kills it when it does not.
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts a program whose output goes to a log file.
    pub fn start(name: &str, command: &mut Command, core: Core, log: &Path) -> Result<Self> {
        let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdout(out.try_clone()?).stderr(out);
        Ok(Self { child: spawn(command, core).with_context(|| format!("cannot start {name}"))?, name: name.into() })
    }

    /// Starts a helper of ours that prints `listening ADDRESS` as its first line.
    pub fn helper(args: &[String]) -> Result<(Self, SocketAddr)> {
        Self::helper_on(args, Core::Load)
    }

    pub fn helper_on(args: &[String], core: Core) -> Result<(Self, SocketAddr)> {
        let mut command = Command::new(std::env::current_exe()?);
        let name = args.first().cloned().unwrap_or_default();
        let (process, line) = Self::saying(&name, command.args(args), core)?;
        let address = line.strip_prefix("listening ").context("a helper did not say where it listens")?;
        Ok((process, address.parse()?))
    }

    /// Starts a program that prints a line once it is ready, and waits for this line; empty if it ended without.
    pub fn saying(name: &str, command: &mut Command, core: Core) -> Result<(Self, String)> {
        let mut child = spawn(command.stdout(Stdio::piped()), core).with_context(|| format!("cannot start {name}"))?;
        let stdout = child.stdout.take().context("a helper has no output")?;
        let process = Self { child, name: name.into() };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        Ok((process, line.trim().to_owned()))
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until an address accepts connections.
    pub fn wait_for(&mut self, address: SocketAddr, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while TcpStream::connect(address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended at start with {status}: see its log in target/bench", self.name);
            }
            ensure!(Instant::now() < end, "{} does not listen on {address} after {limit:?}", self.name);
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }

    /// Processor time of the process and its children so far.
    pub fn cpu(&self) -> Result<Duration> {
        let tick = 1_000_000 / rustix::param::clock_ticks_per_second();
        let mut ticks = 0;
        for pid in self.pids() {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            // After the name, which may hold spaces, utime and stime are the fields 14 and 15 of proc(5).
            let rest = stat.rsplit_once(')').context("/proc/PID/stat has no name")?.1;
            let fields: Vec<u64> = rest.split_whitespace().skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
            ticks += fields.iter().sum::<u64>();
        }
        Ok(Duration::from_micros(ticks * tick))
    }

    /// Resident memory of the process and its children, in KiB.
    pub fn rss(&self) -> Result<u64> {
        self.status("VmRSS:")
    }

    /// What of the resident memory is the process's own: not the pages of its program and of libraries, which all processes
    /// of the same program share.
    pub fn own(&self) -> Result<u64> {
        self.status("RssAnon:")
    }

    fn status(&self, name: &str) -> Result<u64> {
        let mut total = 0;
        for pid in self.pids() {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("0");
            total += line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(total)
    }

    fn pids(&self) -> Vec<u32> {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        [pid].into_iter().chain(children.split_whitespace().filter_map(|p| p.parse().ok())).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The number of a process that was waited for may be another's by now.
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // A program that is built to be profiled writes what it has counted when it ends by itself.
        let asked = Pid::from_raw(self.child.id() as i32).map(|pid| kill_process(pid, Signal::TERM));
        let end = Instant::now() + END;
        while matches!(asked, Some(Ok(()))) && Instant::now() < end {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        // The children first: a killed nginx master would leave its worker behind.
        let pids = self.pids();
        for pid in pids.iter().skip(1).chain(pids.first()) {
            if let Some(pid) = Pid::from_raw(*pid as i32) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = self.child.wait();
    }
}

/// Runs a load generator to its end, at most for `limit`, and returns its output.
pub fn output(command: &mut Command, limit: Duration) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process =
        Process { child: spawn(command, Core::Load).with_context(|| format!("cannot start {name}"))?, name };
    let stdout = process.child.stdout.take().context("no output")?;
    let reader = thread::spawn(move || std::io::read_to_string(stdout));
    let end = Instant::now() + limit;
    while !reader.is_finished() {
        ensure!(Instant::now() < end, "{} does not end after {limit:?}", process.name);
        thread::sleep(Duration::from_millis(5));
    }
    process.child.wait()?;
    Ok(reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??)
}

fn spawn(command: &mut Command, core: Core) -> Result<Child> {
    let set = core.set();
    command.stdin(Stdio::null());
    // SAFETY: both are plain system calls that neither allocate nor lock.
    unsafe {
        command.pre_exec(move || {
            sched_setaffinity(None, &set)?;
            set_parent_process_death_signal(Some(Signal::KILL))?;
            Ok(())
        });
    }
    Ok(command.spawn()?)
}

/// A port that is free now, for programs that want it in their configuration.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
