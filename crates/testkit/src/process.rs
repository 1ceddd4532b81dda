//! Any process, with its log; killed at the end.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long it may take to say something.
const LIMIT: Duration = Duration::from_secs(60);

/// One that writes its log to `NAME.log`, behind what was there.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Process {
    pub fn start(folder: &Path, name: &str, command: &mut Command) -> Self {
        let log = folder.join(format!("{name}.log"));
        let output = fs::File::options().create(true).append(true).open(&log).expect("a log");
        let errors = output.try_clone().expect("a log");
        let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn().expect("the binary starts");
        Self { child, log }
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How often the log has `text`.
    pub fn said(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// Waits until the log has `text` so often.
    pub async fn says(&self, text: &str, times: usize) {
        let limit = Instant::now() + LIMIT;
        while self.said(text) < times {
            assert!(Instant::now() < limit, "`{text}` not {times} times in:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
