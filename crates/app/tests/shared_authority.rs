//! Two control planes, as processes, with one certificate authority in a real etcd.

use rustix::process::{Pid, Signal, kill_process};
use selvedge_testkit::{etcd::Etcd, selvedge::free_port};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);
const RENEWED: &str = "a new certificate is in use";

/// Killed at the end.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn kill(&self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn said(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    async fn says(&self, text: &str, times: usize) {
        let limit = Instant::now() + LIMIT;
        while self.said(text) < times {
            assert!(Instant::now() < limit, "`{text}` not {times} times in:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn start(folder: &Path, name: &str, command: &mut Command) -> std::io::Result<Process> {
    let log = folder.join(format!("{name}.log"));
    let output = fs::File::create(&log)?;
    let errors = output.try_clone()?;
    let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn()?;
    Ok(Process { child, log })
}

struct Home {
    folder: TempDir,
    etcd: Etcd,
}

impl Home {
    fn selvedge(&self) -> Command {
        Command::new(env!("CARGO_BIN_EXE_selvedge"))
    }

    fn state(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.state"))
    }

    fn control(&self, name: &str, listen: SocketAddr, passphrase: &str) -> Process {
        let secret = self.folder.path().join(format!("{name}.passphrase"));
        fs::write(&secret, passphrase).expect("written");
        let mut command = self.selvedge();
        command
            .args(["control", "--etcd", &self.etcd.url(), "--admin", "off", "--svid-ttl", "10s"])
            .args(["--name", name, "--listen", &listen.to_string()])
            .arg("--ca-passphrase-file")
            .arg(secret)
            .arg("--state")
            .arg(self.state(name));
        start(self.folder.path(), name, &mut command).expect("the binary starts")
    }

    /// A token that is made at this control plane, in a file.
    fn token(&self, control: &str) -> PathBuf {
        let mut command = self.selvedge();
        command.args(["token", "create", "--identity", "shop/edge", "--state"]).arg(self.state(control));
        let made = command.output().expect("the binary starts");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let file = self.folder.path().join("token");
        fs::write(&file, made.stdout).expect("written");
        file
    }

    fn proxy(&self, name: &str, controls: &[SocketAddr], token: &Path) -> Process {
        let urls: Vec<String> = controls.iter().map(|at| format!("https://{at}")).collect();
        let mut command = self.selvedge();
        command
            .args(["proxy", "--role", "gateway", "--identity", "shop/edge", "--admin", "off", "--workers", "1"])
            .args(["--control", &urls.join(","), "--id", name])
            .arg("--join-token-file")
            .arg(token)
            .arg("--state")
            .arg(self.state(name));
        start(self.folder.path(), name, &mut command).expect("the binary starts")
    }
}

#[tokio::test]
async fn a_certificate_authority_outlives_its_control_plane() {
    let Some(etcd) = Etcd::start() else { return };
    let home = Home { folder: tempfile::tempdir().expect("a folder"), etcd };
    let (first, second) = (free_port(), free_port());
    let one = home.control("one", first, "correct horse battery");
    let two = home.control("two", second, "correct horse battery");
    one.says("serving proxies", 1).await;
    two.says("serving proxies", 1).await;
    let stranger = home.control("stranger", free_port(), "a passphrase of its own");
    stranger.says("was sealed with another key", 1).await;

    // Made at one, used at the other, once.
    let token = home.token("one");
    let edge = home.proxy("edge", &[second, first], &token);
    edge.says(RENEWED, 1).await;
    assert_eq!((one.said("a node has joined"), two.said("a node has joined")), (0, 1));
    let late = home.proxy("late", &[first], &token);
    late.says("was used already", 1).await;

    two.kill();
    let so_far = edge.said(RENEWED);
    edge.says(RENEWED, so_far + 2).await;
    assert!(one.said("a certificate was renewed") > 0, "{}", one.log());
}

/// As after a power cut: whichever is first.
#[tokio::test]
async fn a_control_plane_waits_for_its_etcd() {
    let Some(mut etcd) = Etcd::start() else { return };
    etcd.stop();
    let listen = free_port();
    let mut home = Home { folder: tempfile::tempdir().expect("a folder"), etcd };
    let one = home.control("one", listen, "correct horse battery");
    one.says("no proxy is let in before", 1).await;
    assert_eq!(one.said("serving proxies"), 0, "{}", one.log());
    home.etcd.restart();
    one.says("serving proxies", 1).await;
}
