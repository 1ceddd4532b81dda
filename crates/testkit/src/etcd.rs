//! A real etcd, where it is installed.

use crate::selvedge::free_port;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long it may take until it answers.
const LIMIT: Duration = Duration::from_secs(60);

/// One member, with its data in a folder of its own. Dropping it kills it.
pub struct Etcd {
    process: Child,
    folder: TempDir,
    /// Where clients connect; another address is used from the next start.
    pub client: SocketAddr,
    peer: SocketAddr,
}

impl Etcd {
    /// None, with a word on why, where etcd is not installed.
    pub fn start() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let (client, peer) = (free_port(), free_port());
        let Ok(process) = spawn(&folder, client, peer) else {
            crate::left_out("etcd is not installed (package etcd-server)");
            return None;
        };
        let etcd = Self { process, folder, client, peer };
        etcd.answers();
        Some(etcd)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.client)
    }

    /// As by `kill -9`.
    pub fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// With the data it had.
    pub fn restart(&mut self) {
        self.stop();
        self.process = spawn(&self.folder, self.client, self.peer).expect("etcd starts again");
        self.answers();
    }

    /// It accepts connections before it has a folder that it could start from again.
    fn answers(&self) {
        let limit = Instant::now() + LIMIT;
        while !self.is_healthy().unwrap_or(false) {
            assert!(Instant::now() < limit, "etcd does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_healthy(&self) -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(self.client)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.contains(r#""health":"true""#))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(folder: &TempDir, client: SocketAddr, peer: SocketAddr) -> std::io::Result<Child> {
    let url = |address: SocketAddr| format!("http://{address}");
    Command::new("etcd")
        .arg("--data-dir")
        .arg(folder.path())
        .args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)])
        .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
        .args(["--initial-cluster", &format!("default={}", url(peer))])
        .args(["--unsafe-no-fsync", "--log-level", "error"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}
