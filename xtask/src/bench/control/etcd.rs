//! A real etcd, where it is installed.

use crate::bench::{
    peer::address,
    process::{Core, Process, free_port},
};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(60);
pub const MISSING: &str = "etcd is not installed (package etcd-server)";

/// One member, with its data in a folder of its own.
pub struct Etcd {
    process: Process,
    dir: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
}

/// Whether it is there.
pub fn is_installed() -> bool {
    let mut command = Command::new("etcd");
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

impl Etcd {
    pub fn start(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let [client, peer] = [address(free_port()?), address(free_port()?)];
        let etcd = Self { process: spawn(dir, client, peer)?, dir: dir.to_owned(), client, peer };
        let end = Instant::now() + LIMIT;
        while !etcd.answers() {
            ensure!(Instant::now() < end, "etcd does not answer: see its log in {}", dir.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(etcd)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.client)
    }

    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// With the data it had; it takes a while until it answers.
    pub fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.dir, self.client, self.peer)?;
        Ok(())
    }

    pub fn answers(&self) -> bool {
        let ask = || {
            let mut stream = TcpStream::connect(self.client)?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            std::io::Result::Ok(answer.contains(r#""health":"true""#))
        };
        ask().unwrap_or(false)
    }

    /// Writes resources into it.
    pub fn apply(&self, program: &Path, resources: &[Value]) -> Result<()> {
        let file = self.dir.join("apply.json");
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": resources});
        fs::write(&file, list.to_string())?;
        let mut command = Command::new(program);
        let output = command.args(["apply", "--etcd", &self.url(), "--log", "warn", "-f"]).arg(&file).output()?;
        ensure!(output.status.success(), "cannot write to etcd: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        // Its log of writes alone has 64 MiB from the start.
        let _ = fs::remove_dir_all(self.dir.join("data"));
    }
}

fn spawn(dir: &Path, client: SocketAddr, peer: SocketAddr) -> Result<Process> {
    let url = |address: SocketAddr| format!("http://{address}");
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(dir.join("data"));
    command.args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)]);
    command.args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)]);
    command.args(["--initial-cluster", &format!("default={}", url(peer))]);
    command.args(["--unsafe-no-fsync", "--log-level", "error"]);
    Process::start("etcd", &mut command, Core::Load, &dir.join("log"))
}
