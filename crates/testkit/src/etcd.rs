//! A real etcd, where it is installed.

use crate::selvedge::free_port;
use rustix::process::{Pid, Signal, kill_process};
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
    /// All members, as etcd wants them told.
    members: String,
}

impl Etcd {
    /// None, with a word on why, where etcd is not installed.
    pub fn start() -> Option<Self> {
        Self::cluster(1)?.pop()
    }

    /// As many members, all of which answer.
    pub fn cluster(members: usize) -> Option<Vec<Self>> {
        let peers: Vec<_> = (0..members).map(|_| free_port()).collect();
        let names: Vec<_> = peers.iter().map(|peer| format!("{}=http://{peer}", name(*peer))).collect();
        let start = |peer: &SocketAddr| {
            let folder = tempfile::tempdir().expect("a folder");
            let (client, peer, members) = (free_port(), *peer, names.join(","));
            let process = spawn(&folder, client, peer, &members).ok()?;
            Some(Self { process, folder, client, peer, members })
        };
        let all: Option<Vec<_>> = peers.iter().map(start).collect();
        match &all {
            Some(all) => all.iter().for_each(Self::answers),
            None => crate::left_out("etcd is not installed (package etcd-server)"),
        }
        all
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.client)
    }

    /// It does nothing any more, until it goes on: what is sent to it waits.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let process = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw).expect("its ID");
        kill_process(process, signal).expect("it runs");
    }

    /// As by `kill -9`.
    pub fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// With the data it had.
    pub fn restart(&mut self) {
        self.stop();
        self.process = spawn(&self.folder, self.client, self.peer, &self.members).expect("etcd starts again");
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

fn name(peer: SocketAddr) -> String {
    format!("member{}", peer.port())
}

fn spawn(folder: &TempDir, client: SocketAddr, peer: SocketAddr, members: &str) -> std::io::Result<Child> {
    let url = |address: SocketAddr| format!("http://{address}");
    Command::new("etcd")
        .args(["--name", &name(peer), "--data-dir"])
        .arg(folder.path())
        .args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)])
        .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
        .args(["--initial-cluster", members])
        .args(["--unsafe-no-fsync", "--log-level", "error"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}
