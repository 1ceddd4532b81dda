//! Running the tools that change rules.

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::{Command, Stdio},
};

/// The tools of the system.
#[derive(Debug, Clone)]
pub struct Tools {
    /// Where they are looked for, as in `PATH`.
    path: OsString,
}

impl Tools {
    /// As `PATH` says.
    pub fn system() -> Self {
        Self::in_path(env::var_os("PATH").unwrap_or_default())
    }

    pub fn in_path(path: OsString) -> Self {
        Self { path }
    }

    pub(super) fn find(&self, name: &str) -> Option<PathBuf> {
        env::split_paths(&self.path).map(|folder| folder.join(name)).find(|file| file.is_file())
    }

    /// Standard output of a tool that was given `input`.
    pub(super) fn run(&self, name: &'static str, args: &[&str], input: &str) -> Result<String, Fault> {
        let file = self.find(name).ok_or(Fault::Missing(name))?;
        let start = |error| Fault::Start { name, error };
        let mut child = Command::new(&file)
            .args(args)
            // Messages are read below.
            .env("LC_ALL", "C")
            .env("PATH", &self.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(start)?;
        // Inputs are far below what a pipe holds, and a tool that ended early says why.
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
        let out = child.wait_with_output().map_err(start)?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
            let said = if said.is_empty() { out.status.to_string() } else { said };
            return Err(Fault::Failed { name, said });
        }
        written.map_err(start)?;
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }
}

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("{0} is not in PATH")]
    Missing(&'static str),
    #[error("{name} cannot be started: {error}")]
    Start { name: &'static str, error: io::Error },
    #[error("{name}: {said}")]
    Failed { name: &'static str, said: String },
}

impl Fault {
    pub(super) fn says(&self, text: &str) -> bool {
        matches!(self, Self::Failed { said, .. } if said.contains(text))
    }

    /// Another tool would meet the same.
    pub(super) fn is_rights(&self) -> bool {
        ["not permitted", "Permission denied", "must be root"].iter().any(|text| self.says(text))
    }
}
