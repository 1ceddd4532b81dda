//! Upgrade of the binary in place. The old process starts the new binary with its own arguments and passes all
//! listening sockets through a socket pair that is the new one's standard input (SCM_RIGHTS, unix(7)): nothing else is
//! inherited, so nothing leaks. The new one installs its configuration and says that it is ready; only then the old
//! one stops accepting. Both share the sockets, so whatever waits in a backlog is accepted by one of them.
//!
//! On the wire: length of a JSON list (4 bytes, big endian), the list of [`Passed`], then one byte with one descriptor
//! for each entry. The answer is [`READY`].

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    io::retry_on_intr,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        SocketType, recvmsg, sendmsg, sockopt,
    },
};
use selvedge_compile::snapshot::{Bind, Transport};
use selvedge_proxy::{listener::OpenSocket, proxy::Proxy};
use serde::{Deserialize, Serialize};
use std::{
    env,
    ffi::OsString,
    io::{IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr, TcpListener},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
};

/// Tells the new process that its standard input is the old one.
const VARIABLE: &str = "SELVEDGE_INHERIT";
/// The version of the protocol, the value of [`VARIABLE`].
const VERSION: &str = "1";
const READY: &[u8] = b"ready\n";
/// How long a new process may take until it serves.
const LIMIT: Duration = Duration::from_secs(30);
/// How long one message between the two may take.
const MESSAGE: Duration = Duration::from_secs(10);
/// Sockets passed at most, and bytes of the list: far more than a machine has ports.
const MAX_SOCKETS: usize = 65_536;
const MAX_LIST: usize = 16 * 1024 * 1024;

/// One socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Passed {
    kind: Kind,
    /// `None` is every address.
    address: Option<IpAddr>,
    port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Admin,
    /// Where proxies connect.
    Control,
    Tcp,
    Udp,
}

/// How this process was started, and so how its successor is: found out at the start, since a replaced binary cannot
/// be found by the process that it replaced.
#[derive(Debug, Clone)]
pub struct Origin {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Origin {
    pub fn find() -> Result<Self> {
        let mut arguments = env::args_os();
        let name = PathBuf::from(arguments.next().unwrap_or_default());
        // As it was called: a link that points elsewhere by then is the usual way to install a new version.
        let called = match name.components().count() {
            0 => None,
            1 if !name.is_absolute() => in_path(&name),
            _ => std::path::absolute(&name).ok().filter(|path| path.is_file()),
        };
        let program = match called {
            Some(path) => path,
            None => env::current_exe().context("cannot find out which file this program is")?,
        };
        Ok(Self { program, arguments: arguments.collect() })
    }

    /// Starts the new binary and passes it the sockets of `proxy`, the admin listener's and that for proxies. Returns when it is ready and
    /// accepts; this process is then to stop accepting. On an error (and when the future is dropped) the new process
    /// is killed.
    pub async fn hand_over(
        &self,
        proxy: &Proxy,
        admin: Option<&TcpListener>,
        control: Option<&TcpListener>,
    ) -> Result<Child> {
        let sockets = sockets(proxy, admin, control)?;
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
        ours.set_write_timeout(Some(MESSAGE))?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env(VARIABLE, VERSION).stdin(Stdio::from(OwnedFd::from(theirs)));
        let child = command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        // Our copy of their end would keep us from noticing their end.
        drop(command);
        let mut new = Killed(Some(child));
        let ours =
            tokio::task::spawn_blocking(move || send(ours, &sockets)).await.context("passing the sockets failed")?;
        let ours = ours.and_then(|ours| {
            ours.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(ours)
        });
        let ready = tokio::time::timeout(LIMIT, new.ready(ours));
        ready.await.with_context(|| format!("it was not ready within {LIMIT:?}"))??;
        new.0.take().context("the new process is gone")
    }
}

/// The first file of this name in `PATH`.
fn in_path(name: &Path) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A process that is killed unless it is taken out.
struct Killed(Option<Child>);

impl Drop for Killed {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended by itself; the runtime reaps it either way.
            let _ = child.start_kill();
        }
    }
}

impl Killed {
    /// Waits for the new process to say that it serves.
    async fn ready(&mut self, socket: std::io::Result<tokio::net::UnixStream>) -> Result<()> {
        let child = self.0.as_mut().context("the new process is gone")?;
        let mut answer = [0; READY.len()];
        let said = match socket {
            Ok(mut socket) => socket.read_exact(&mut answer).await.map(drop),
            Err(error) => Err(error),
        };
        match said {
            Ok(()) if answer == READY => Ok(()),
            Ok(()) => bail!("it answered something else than that it is ready"),
            // It has closed its end: it has ended, or is about to.
            Err(error) => match tokio::time::timeout(Duration::from_secs(1), child.wait()).await {
                Ok(Ok(status)) => bail!("it ended instead of serving ({status}); its log says why"),
                _ => Err(error).context("it closed its end of the connection"),
            },
        }
    }
}

fn sockets(
    proxy: &Proxy,
    admin: Option<&TcpListener>,
    control: Option<&TcpListener>,
) -> Result<Vec<(Passed, OwnedFd)>> {
    let mut all = Vec::new();
    for (kind, socket) in [(Kind::Admin, admin), (Kind::Control, control)] {
        let Some(socket) = socket else { continue };
        let local = socket.local_addr()?;
        let passed = Passed { kind, address: Some(local.ip()), port: local.port() };
        all.push((passed, socket.as_fd().try_clone_to_owned()?));
    }
    for listener in proxy.listeners() {
        let Bind { address, port, transport, .. } = listener.bind;
        let kind = match transport {
            Transport::Tcp => Kind::Tcp,
            Transport::Udp => Kind::Udp,
        };
        if let Some(fd) = listener.duplicate().context("cannot duplicate a listening socket")? {
            all.push((Passed { kind, address, port }, fd));
        }
    }
    Ok(all)
}

fn send(mut to: UnixStream, sockets: &[(Passed, OwnedFd)]) -> std::io::Result<UnixStream> {
    let list: Vec<Passed> = sockets.iter().map(|(passed, _)| *passed).collect();
    let list = serde_json::to_vec(&list)?;
    let length = u32::try_from(list.len()).map_err(std::io::Error::other)?;
    to.write_all(&length.to_be_bytes())?;
    to.write_all(&list)?;
    for (_, fd) in sockets {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        // Waits when many are passed, and a socket with a time limit is interrupted by any signal.
        retry_on_intr(|| sendmsg(&to, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL))?;
    }
    Ok(to)
}

/// What the old process has passed to this one.
pub struct Inherited {
    pub admin: Option<TcpListener>,
    /// Where proxies connect.
    pub control: Option<TcpListener>,
    pub sockets: Vec<(Bind, OpenSocket)>,
    old: UnixStream,
}

impl Inherited {
    /// Takes what the old process passes; `None` when this process was not started by one.
    ///
    /// # Errors
    /// What was passed is not what it was said to be.
    pub fn take() -> Result<Option<Self>> {
        match env::var(VARIABLE) {
            Ok(version) if version == VERSION => {}
            Ok(version) => bail!(
                "{VARIABLE}={version} in the environment: this version understands {VERSION}. It is set by `selvedge upgrade` and must not be set otherwise"
            ),
            Err(_) => return Ok(None),
        }
        let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
        ensure!(
            sockopt::socket_domain(&stdin).is_ok_and(|domain| domain == rustix::net::AddressFamily::UNIX),
            "{VARIABLE} is set, but standard input is no connection to an old process: unset it"
        );
        Self::receive(UnixStream::from(stdin)).context("the sockets of the old process cannot be taken over").map(Some)
    }

    fn receive(mut old: UnixStream) -> Result<Self> {
        old.set_read_timeout(Some(MESSAGE))?;
        old.set_write_timeout(Some(MESSAGE))?;
        let mut length = [0; 4];
        old.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        ensure!(length <= MAX_LIST, "the list of sockets is too long");
        let mut list = vec![0; length];
        old.read_exact(&mut list)?;
        let list: Vec<Passed> = serde_json::from_slice(&list)?;
        ensure!(list.len() <= MAX_SOCKETS, "too many sockets");
        let mut inherited = Self { admin: None, control: None, sockets: Vec::new(), old };
        for passed in list {
            let fd = receive_one(&inherited.old)?;
            inherited.add(passed, fd).with_context(|| format!("socket {passed:?}"))?;
        }
        Ok(inherited)
    }

    fn add(&mut self, passed: Passed, fd: OwnedFd) -> Result<()> {
        let wanted = if passed.kind == Kind::Udp { SocketType::DGRAM } else { SocketType::STREAM };
        ensure!(sockopt::socket_type(&fd)? == wanted, "is of another type");
        if passed.kind != Kind::Udp {
            ensure!(sockopt::socket_acceptconn(&fd)?, "does not listen");
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        let bind =
            |transport| Bind { address: passed.address, port: passed.port, transport, netns: Default::default() };
        match passed.kind {
            Kind::Udp => {
                let socket = std::net::UdpSocket::from(fd);
                check_address(passed, socket.local_addr()?)?;
                self.sockets.push((bind(Transport::Udp), OpenSocket::Udp(socket)));
            }
            Kind::Tcp | Kind::Admin | Kind::Control => {
                let socket = TcpListener::from(fd);
                check_address(passed, socket.local_addr()?)?;
                match passed.kind {
                    Kind::Admin => self.admin = Some(socket),
                    Kind::Control => self.control = Some(socket),
                    _ => self.sockets.push((bind(Transport::Tcp), OpenSocket::Tcp(socket))),
                }
            }
        }
        Ok(())
    }

    /// Tells the old process that this one serves.
    ///
    /// # Errors
    /// The old process does not hear it any more. It has ended, or has given this one up.
    pub fn ready(mut old: UnixStream) -> Result<()> {
        old.write_all(READY).context("the old process is gone")
    }

    /// The sockets of listeners, and what is left when everything was taken out.
    pub fn split(self) -> (Vec<(Bind, OpenSocket)>, UnixStream) {
        (self.sockets, self.old)
    }
}

fn check_address(passed: Passed, local: SocketAddr) -> Result<()> {
    let address = match passed.address {
        Some(address) => local.ip() == address,
        None => local.ip().is_unspecified(),
    };
    ensure!(address && local.port() == passed.port, "is bound to {local}");
    Ok(())
}

fn receive_one(from: &UnixStream) -> Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        retry_on_intr(|| recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC))?;
    ensure!(received.bytes == 1, "the old process is gone");
    let rights = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    rights.context("a socket is missing (too many open files? raise `ulimit -n`)")
}

/// Sends SIGUSR2 to a running selvedge.
pub fn ask(pid: i32) -> Result<()> {
    let process = rustix::process::Pid::from_raw(pid).filter(|_| pid > 0).context("not the id of a process")?;
    // What is looked at now is what is signalled, even if the process ends meanwhile and another gets its id.
    let held = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty())
        .with_context(|| format!("there is no process {pid} that can be asked to upgrade"))?;
    is_selvedge(pid)?;
    // SIGUSR2 ends a process that does not expect it.
    if let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) {
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        let bit = 1 << (rustix::process::Signal::USR2.as_raw() - 1);
        ensure!(caught.is_none_or(|mask| mask & bit != 0), "process {pid} is no `selvedge run`");
    }
    rustix::process::pidfd_send_signal(&held, rustix::process::Signal::USR2)
        .with_context(|| format!("process {pid} cannot be asked to upgrade"))
}

/// That a process is `selvedge run` or `selvedge proxy`, as its binary and its arguments say; the binary may have been replaced since.
fn is_selvedge(pid: i32) -> Result<()> {
    let own = std::env::current_exe().unwrap_or_default();
    let theirs = match std::fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(path) => path,
        // Not ours to see (another user's, or no /proc): whether it may be signalled is the kernel's to say.
        Err(_) => return Ok(()),
    };
    let name = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.strip_suffix(" (deleted)").map(str::to_owned).unwrap_or(name)
    };
    let (own, found) = (name(&own), name(&theirs));
    ensure!(
        found == own || found.starts_with("selvedge"),
        "process {pid} is not a selvedge: it runs {}; --pid is that of `selvedge run` or `selvedge proxy`",
        theirs.display()
    );
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let runs = arguments.split(|byte| *byte == 0).skip(1).any(|argument| matches!(argument, b"run" | b"proxy"));
    ensure!(
        runs || arguments.is_empty(),
        "process {pid} is a selvedge, but neither `selvedge run` nor `selvedge proxy`: only these can be upgraded in place"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(port: u16) -> Passed {
        Passed { kind: Kind::Tcp, address: Some([127, 0, 0, 1].into()), port }
    }

    fn pass(sockets: Vec<(Passed, OwnedFd)>) -> Result<Inherited> {
        let (ours, theirs) = UnixStream::pair()?;
        let sender = std::thread::spawn(move || send(ours, &sockets));
        let inherited = Inherited::receive(theirs);
        drop(sender.join());
        inherited
    }

    #[test]
    fn sockets_arrive_and_listen() {
        let tcp_socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp_socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (tcp_at, udp_at) = (tcp_socket.local_addr().unwrap(), udp_socket.local_addr().unwrap());
        let udp = Passed { kind: Kind::Udp, address: Some(udp_at.ip()), port: udp_at.port() };
        let inherited = pass(vec![(tcp(tcp_at.port()), tcp_socket.into()), (udp, udp_socket.into())]).unwrap();
        assert_eq!(inherited.sockets.len(), 2);
        assert_eq!(inherited.sockets[0].0.port, tcp_at.port());
        // The only descriptor that is left of it is the one that arrived.
        std::net::TcpStream::connect(tcp_at).unwrap();
    }

    #[test]
    fn what_is_not_as_announced_is_refused() {
        let listening = || TcpListener::bind("127.0.0.1:0").unwrap();
        let refused = |passed, fd: OwnedFd| format!("{:#}", pass(vec![(passed, fd)]).err().unwrap());
        assert!(refused(tcp(1), listening().into()).contains("is bound to"));
        let socket = listening();
        let udp = Passed { kind: Kind::Udp, ..tcp(socket.local_addr().unwrap().port()) };
        assert!(refused(udp, socket.into()).contains("another type"));
        let socket = listening();
        let stream = std::net::TcpStream::connect(socket.local_addr().unwrap()).unwrap();
        assert!(refused(tcp(1), stream.into()).contains("does not listen"));
    }
}
