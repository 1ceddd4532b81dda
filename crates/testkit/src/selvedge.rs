//! The real binary, with a folder of its own.

use crate::http1;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::net::TcpSocket;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How often something is looked at that cannot be waited for.
const LOOK: Duration = Duration::from_millis(10);

/// A loopback address whose port, on all addresses, is for who asks for it by its number, as often as it likes: the kernel
/// gives it to nobody else while this process lives. It refuses connections until somebody listens.
pub fn free_port() -> SocketAddr {
    loop {
        let reserved = bound(0, true).expect("a free port");
        let address = (Ipv4Addr::LOCALHOST, reserved.local_addr().expect("an address").port()).into();
        if UdpSocket::bind(address).is_ok() {
            RESERVED.lock().unwrap_or_else(PoisonError::into_inner).push(reserved);
            return address;
        }
    }
}

/// The first of so many TCP ports in a row, each as by [`free_port`].
pub fn free_ports(count: u16) -> u16 {
    loop {
        let first = free_port().port();
        let mut all = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
        let reserve = |port| {
            // Of its own it would share the port with others who only reserve it.
            drop(bound(port, false)?);
            bound(port, true)
        };
        if let Some(end) = first.checked_add(count)
            && let Ok(others) = (first + 1..end).map(reserve).collect::<io::Result<Vec<_>>>()
        {
            all.extend(others);
            return first;
        }
    }
}

static RESERVED: Mutex<Vec<TcpSocket>> = Mutex::new(Vec::new());

/// A socket with this port of all addresses. `reuse`: whoever says the same may listen there, as servers do.
fn bound(port: u16, reuse: bool) -> io::Result<TcpSocket> {
    let at = |socket: TcpSocket, any: IpAddr| -> io::Result<TcpSocket> {
        socket.set_reuseaddr(reuse)?;
        socket.bind((any, port).into())?;
        Ok(socket)
    };
    let v6 = TcpSocket::new_v6().and_then(|socket| at(socket, Ipv6Addr::UNSPECIFIED.into()));
    v6.or_else(|_| at(TcpSocket::new_v4()?, Ipv4Addr::UNSPECIFIED.into()))
}

/// What to start.
pub struct Setup {
    binary: PathBuf,
    home: TempDir,
    arguments: Vec<String>,
    admin: SocketAddr,
}

/// `selvedge run`. Dropping it kills it, and what has taken over from it.
pub struct Selvedge {
    pub admin: SocketAddr,
    setup: Setup,
    child: Child,
    pids: Vec<u32>,
}

impl Setup {
    /// `binary` is `env!("CARGO_BIN_EXE_selvedge")`.
    pub fn new(binary: &str) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let config = home.path().join("config");
        fs::create_dir(&config).expect("a folder");
        let link = home.path().join("selvedge");
        std::os::unix::fs::symlink(binary, &link).expect("a link");
        Self { binary: link, home, arguments: Vec::new(), admin: free_port() }
    }

    /// A file of resources.
    pub fn file(self, name: &str, text: &str) -> Self {
        write(&self.home.path().join("config"), name, text);
        self
    }

    pub fn args(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|a| (*a).to_owned()));
        self
    }

    /// The folder of what it keeps.
    pub fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }

    pub fn config(&self) -> PathBuf {
        self.home.path().join("config")
    }

    fn spawn(&self) -> Child {
        let log = fs::File::options().create(true).append(true).open(self.home.path().join("log")).expect("a log");
        Command::new(&self.binary)
            .args([
                "--log",
                "info,selvedge_proxy=debug",
                "run",
                "--workers",
                "2",
                "--admin",
                &self.admin.to_string(),
                "-f",
            ])
            .arg(self.config())
            .arg("--state")
            .arg(self.state())
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the binary starts")
    }

    /// Starts it and waits until it is ready.
    pub async fn start(self) -> Selvedge {
        let child = self.spawn();
        let mut selvedge = Selvedge { admin: self.admin, pids: vec![child.id()], setup: self, child };
        selvedge.ready().await;
        selvedge
    }
}

impl Selvedge {
    async fn ready(&mut self) {
        let limit = Instant::now() + LIMIT;
        while !matches!(self.admin_get("/ready").await, Ok((200, _))) {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("it ended with {status}:\n{}", self.log());
            }
            assert!(Instant::now() < limit, "not ready in time:\n{}", self.log());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// As `kill -9` does it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again as it was started, after [`Selvedge::kill`].
    pub async fn restart(&mut self) {
        self.child = self.setup.spawn();
        self.pids = vec![self.child.id()];
        self.ready().await;
    }

    /// Writes a file of resources, whole at once.
    pub fn write(&self, name: &str, text: &str) {
        write(&self.config(), name, text);
    }

    pub fn config(&self) -> PathBuf {
        self.setup.home.path().join("config")
    }

    pub fn state(&self) -> PathBuf {
        self.setup.home.path().join("state")
    }

    /// The path that it was started by.
    pub fn binary(&self) -> PathBuf {
        self.setup.home.path().join("selvedge")
    }

    /// The process that serves.
    pub fn pid(&self) -> u32 {
        *self.pids.last().expect("a process")
    }

    /// What it has logged; after an upgrade, what all of them have.
    pub fn log(&self) -> String {
        fs::read_to_string(self.setup.home.path().join("log")).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a process id")).expect("a process id");
        kill_process(pid, signal).expect("a signal that arrives");
    }

    /// Waits until the log has `text` `times` times.
    pub async fn logged(&self, text: &str, times: usize) {
        self.until(&format!("{text:?} in the log"), async || self.log().matches(text).count() >= times).await;
    }

    /// Waits until something is so.
    pub async fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let limit = Instant::now() + LIMIT;
        while !is_so().await {
            assert!(Instant::now() < limit, "not in time: {what}\n{}", self.log());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// # Errors
    /// The admin listener does not answer.
    pub async fn admin_get(&self, path: &str) -> Result<(u16, String), String> {
        http1::request(self.admin, "GET", path, "").await.map(|answer| (answer.status, answer.body))
    }

    /// # Errors
    /// The admin listener does not answer.
    pub async fn admin_send(&self, method: &str, path: &str, body: &str) -> Result<(u16, String), String> {
        http1::request(self.admin, method, path, body).await.map(|answer| (answer.status, answer.body))
    }

    /// Waits until `/status` has this text in it.
    pub async fn status_has(&self, text: &str) {
        self.has("/status", text).await;
    }

    /// Waits until `/metrics` have this text in them: they follow what is in effect.
    pub async fn metrics_have(&self, text: &str) {
        self.has("/metrics", text).await;
    }

    async fn has(&self, path: &str, text: &str) {
        self.until(&format!("{text:?} in {path}"), async || {
            self.admin_get(path).await.is_ok_and(|(_, shown)| shown.contains(text))
        })
        .await;
    }

    /// Has the binary at [`Selvedge::binary`] take over, and waits until it serves.
    pub async fn upgrade(&mut self) {
        const TAKEN: &str = "the new process serves; draining pid=";
        self.signal(Signal::USR2);
        let times = self.pids.len();
        self.logged(TAKEN, times).await;
        // Something stands behind it in a line that is whole.
        let pid = || -> Option<u32> {
            let log = self.log();
            let (pid, _) = log.split(TAKEN).nth(times)?.split_once(' ')?;
            pid.parse().ok()
        };
        self.until("the id of the new process", async || pid().is_some()).await;
        let pid = pid().expect("the id of the new process");
        self.pids.push(pid);
    }

    /// Waits for the end of the process that was started first.
    pub async fn ended(&mut self) -> ExitStatus {
        let limit = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < limit, "it does not end:\n{}", self.log());
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Selvedge {
    fn drop(&mut self) {
        // The first is a child, whose id is not used again before it is waited for; the others are this test's too.
        for pid in self.pids.drain(..).skip(1) {
            let selvedge = fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "selvedge");
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw).filter(|_| selvedge) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    let new = folder.join(format!(".{name}"));
    fs::write(&new, text).expect("a file");
    fs::rename(new, folder.join(name)).expect("a file");
}
