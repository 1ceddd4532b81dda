//! The processes of the demo: the same binary in its other roles, started here and ended with the demo.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    time::{Instant, timeout_at},
};

/// From being asked to end until being killed.
const END: Duration = Duration::from_secs(5);
/// Lines of a log that are shown when its process has failed.
const LAST: usize = 5;
/// Tells a process to end when the one that started it does, however that ends.
const END_WITH_PARENT: &str = "SELVEDGE_END_WITH_PARENT";

/// Does what [`END_WITH_PARENT`] says; in a process that nobody told so, nothing.
pub fn end_with_parent() {
    let Some(parent) = std::env::var(END_WITH_PARENT).ok().and_then(|text| text.parse::<i32>().ok()) else { return };
    let _ = set_parent_process_death_signal(Some(Signal::TERM));
    // It may have ended before.
    if getppid().map(Pid::as_raw_pid) != Some(parent) {
        std::process::exit(1);
    }
}

/// All of them; killed when dropped.
#[derive(Default)]
pub struct Children(Vec<Started>);

struct Started {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Children {
    /// Starts `selvedge ARGS`, which says to the file `log` what it does. To be called on the main thread, with which it ends.
    pub fn start(&mut self, name: &str, args: impl IntoIterator<Item = OsString>, log: &Path) -> Result<()> {
        let program = std::env::current_exe().context("this program cannot be found")?;
        let mut command = Command::new(program);
        command.args(args);
        self.run(name, command, log)
    }

    /// Starts a command.
    pub fn run(&mut self, name: &str, mut command: Command, log: &Path) -> Result<()> {
        let file = fs::File::create(log).with_context(|| format!("cannot write to {}", log.display()))?;
        // A group of its own: Ctrl-C is for the demo, which ends the others in order.
        command.process_group(0).kill_on_drop(true).env(END_WITH_PARENT, std::process::id().to_string());
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("the process {name} cannot be started"))?;
        self.0.push(Started { name: name.to_owned(), child, log: log.to_owned() });
        Ok(())
    }

    /// Fails when one has ended, with the end of its log.
    pub fn check(&mut self) -> Result<()> {
        for Started { name, child, log } in &mut self.0 {
            if let Some(status) = child.try_wait()? {
                let text = fs::read_to_string(log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let last = lines[lines.len().saturating_sub(LAST)..].join("\n  ");
                bail!("the process {name} has ended ({status}); the end of its log:\n  {last}");
            }
        }
        Ok(())
    }

    /// Asks all to end, and kills those that do not.
    pub async fn end(mut self) {
        for started in &self.0 {
            if let Some(pid) = started.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let deadline = Instant::now() + END;
        for Started { name, child, .. } in &mut self.0 {
            if timeout_at(deadline, child.wait()).await.is_err() {
                tracing::warn!("the process {name} does not end, and is killed");
                let _ = child.kill().await;
            }
        }
    }
}
