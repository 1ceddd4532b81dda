//! What is killed while proxies are connected and a gateway serves: no request fails, and all are soon up to date again.

use super::{
    LIMIT, deaths,
    etcd::{self, Etcd},
    proxies::Proxies,
    resources,
};
use crate::bench::{
    authority::Authority,
    load::Seen,
    mesh::fleet::{self, Control},
    mutual, paced,
    peer::address,
    process::{Core, Process, free_port},
};
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// How long what was killed stays away.
const AWAY: Duration = Duration::from_secs(3);
/// Requests per second through the gateway meanwhile.
const RATE: u32 = 500;
/// Streams are to have lasted so long before something is killed, as in a mesh that is at rest.
const REST: Duration = Duration::from_secs(10);

/// What all of it stands on.
pub struct Ground<'a> {
    pub program: &'a Path,
    pub authority: &'a Authority,
    pub dir: &'a Path,
    /// The backend of the gateway.
    pub web: SocketAddr,
    pub proxies: usize,
    /// Deaths of workloads, of each kind.
    pub deaths: usize,
    /// Seconds of requests around each fault.
    pub seconds: u64,
}

/// One thing that went wrong.
pub struct Fault {
    what: &'static str,
    /// Requests through the gateway around it.
    pub seen: Seen,
    /// Until each proxy had a change that was made meanwhile, from when it could come.
    pub back: Duration,
    /// Streams that ended.
    broken: u64,
    /// The most connections that one control plane accepted within 100 ms.
    crowd: usize,
}

pub struct Outcome {
    pub deaths: Vec<deaths::Row>,
    pub faults: Vec<Fault>,
}

/// Proxies and a gateway on some control planes.
struct Scene<'a> {
    ground: &'a Ground<'a>,
    dir: PathBuf,
    proxies: Proxies,
    controls: Vec<Control>,
    etcd: Option<Etcd>,
    _gateway: Process,
    port: u16,
    changes: usize,
}

/// One control plane with a folder; then, with etcd, two that share it.
pub async fn run(ground: &Ground<'_>) -> Result<Outcome> {
    println!("\n{} proxies, and what goes wrong", ground.proxies);
    let mut scene = Scene::start(ground, "folder", 1, None).await?;
    let deaths = deaths::run(&scene.proxies, scene.controls[0].at, ground.deaths).await?;
    let mut faults = vec![scene.fault("nothing is killed, for comparison", async |_| Ok(Duration::ZERO)).await?];
    faults.push(scene.fault("the only control plane is killed, and restarted", Scene::restart_all).await?);
    drop(scene);
    if etcd::is_installed() {
        let etcd = Etcd::start(&ground.dir.join("etcd"))?;
        let mut scene = Scene::start(ground, "shared", 2, Some(etcd)).await?;
        faults.push(scene.fault("etcd is killed, and restarted", Scene::restart_etcd).await?);
        faults.push(scene.fault("one of two control planes is killed", Scene::kill_one).await?);
        scene.start_control(0)?;
        scene.controls[0].wait()?;
        faults.push(scene.fault("both control planes are killed, and restarted", Scene::restart_all).await?);
    } else {
        println!("  without etcd and several control planes: {}", etcd::MISSING);
    }
    Ok(Outcome { deaths, faults })
}

pub fn table(proxies: usize, faults: &[Fault]) -> String {
    let mut table = format!(
        "### Something is killed with `kill -9` while {proxies} proxies are connected and a gateway serves {RATE} requests/s\n\n\
         | | requests | failed | p99 | streams that broke | all proxies up to date again after | most connections to one control plane in 100 ms |\n\
         |---|--:|--:|--:|--:|--:|--:|\n"
    );
    for f in faults {
        let (seen, p99) = (&f.seen, crate::bench::report::ms(f.seen.p99));
        let back = if f.back.is_zero() { "-".to_owned() } else { format!("{:.2} s", f.back.as_secs_f64()) };
        let _ = writeln!(
            table,
            "| {} | {} | {} | {p99} | {} | {back} | {} |",
            f.what,
            seen.requests + seen.failed,
            seen.failed,
            f.broken,
            f.crowd
        );
    }
    table
}

impl<'a> Scene<'a> {
    async fn start(ground: &'a Ground<'a>, name: &str, controls: usize, etcd: Option<Etcd>) -> Result<Self> {
        let dir = ground.dir.join(name);
        let port = free_port()?;
        let all = resources(ground, port);
        match &etcd {
            Some(etcd) => etcd.apply(ground.program, &all)?,
            None => fleet::write(&dir.join("0").join("resources"), &all)?,
        }
        let tls = mutual::config(&ground.authority.issue("proxy")?)?;
        let mut started: Vec<Control> = Vec::new();
        for n in 0..controls {
            let mut control = spawn(ground, &dir, n, [address(free_port()?), address(free_port()?)], etcd.as_ref())?;
            control.wait()?;
            started.push(control);
        }
        let at: Vec<SocketAddr> = started.iter().map(|control| control.at).collect();
        let gateway = gateway(ground, &dir.join("gateway"), &at, port)?;
        let proxies = Proxies::start(ground.proxies, &at, &[deaths::HOST.to_owned()], ground.proxies, tls);
        proxies.until("everything at first", LIMIT, |seen| seen.incomplete()).await?;
        Ok(Self { ground, dir, proxies, controls: started, etcd, _gateway: gateway, port, changes: 0 })
    }

    /// Requests go on around it. It returns when all proxies are up to date again, and how long they took.
    async fn fault(
        &mut self,
        what: &'static str,
        kill: impl AsyncFnOnce(&mut Self) -> Result<Duration>,
    ) -> Result<Fault> {
        tokio::time::sleep(REST).await;
        let (to, seconds) = (address(self.port), self.ground.seconds);
        let load =
            thread::spawn(move || paced::Args { to, rate: RATE, seconds, connections: 8, fresh: false }.measure());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let broken = {
            let mut seen = self.proxies.seen();
            seen.crowd();
            seen.broken
        };
        let back = kill(self).await.with_context(|| what.to_owned())?;
        let (broken, crowd) = {
            let mut seen = self.proxies.seen();
            (seen.broken - broken, seen.crowd())
        };
        ensure!(!load.is_finished(), "{what}: proxies took longer than {seconds} s; the load had ended before");
        while !load.is_finished() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let seen = load.join().map_err(|_| anyhow!("the load panicked"))??;
        println!(
            "  {what}: {} requests, {} failed; all are up to date after {back:?}, at most {crowd} connections in 100 ms",
            seen.requests, seen.failed
        );
        Ok(Fault { what, seen, back, broken, crowd })
    }

    /// All control planes; a change is made while they are away, or as soon as it can be.
    async fn restart_all(&mut self) -> Result<Duration> {
        self.controls.iter_mut().try_for_each(|control| control.process.kill())?;
        let change = self.change()?;
        tokio::time::sleep(AWAY).await;
        let began = Instant::now();
        (0..self.controls.len()).try_for_each(|n| self.start_control(n))?;
        self.up_to_date(change).await?;
        Ok(began.elapsed())
    }

    async fn kill_one(&mut self) -> Result<Duration> {
        let began = Instant::now();
        self.controls[0].process.kill()?;
        let change = self.change()?;
        self.up_to_date(change).await?;
        Ok(began.elapsed())
    }

    /// A change is made once it answers again.
    async fn restart_etcd(&mut self) -> Result<Duration> {
        let etcd = self.etcd.as_mut().context("no etcd")?;
        etcd.kill()?;
        tokio::time::sleep(AWAY).await;
        let began = Instant::now();
        etcd.restart()?;
        while !etcd.answers() {
            ensure!(began.elapsed() < LIMIT, "etcd does not answer again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let change = self.change()?;
        self.up_to_date(change).await?;
        Ok(began.elapsed())
    }

    fn start_control(&mut self, n: usize) -> Result<()> {
        let ports = [self.controls[n].at, self.controls[n].admin];
        self.controls[n] = spawn(self.ground, &self.dir, n, ports, self.etcd.as_ref())?;
        Ok(())
    }

    /// An endpoint of a Service that all use is another; returns the number of the change.
    fn change(&mut self) -> Result<usize> {
        let change = self.changes;
        self.changes += 1;
        let resource = resources::changed(change);
        match &self.etcd {
            Some(etcd) => etcd.apply(self.ground.program, &[resource])?,
            None => fleet::replace(&self.dir.join("0").join("resources"), &resource)?,
        }
        Ok(change)
    }

    async fn up_to_date(&self, change: usize) -> Result<()> {
        let what = "the change, after something was killed";
        self.proxies.until(what, LIMIT, |seen| seen.without(change).max(seen.incomplete())).await
    }
}

/// One of them, without waiting until it is ready.
fn spawn(ground: &Ground<'_>, dir: &Path, n: usize, ports: [SocketAddr; 2], etcd: Option<&Etcd>) -> Result<Control> {
    let dir = dir.join(n.to_string());
    fs::create_dir_all(&dir)?;
    let url = etcd.map(Etcd::url);
    Control::spawn(ground.program, ground.authority, &dir, Core::Proxy, ports, url.as_deref())
}

/// What the simulated proxies use, those that die, and a gateway in front of the backend.
fn resources(ground: &Ground<'_>, port: u16) -> Vec<Value> {
    let mut all = resources::all(ground.proxies);
    all.push(deaths::service());
    all.extend(fleet::service("bench", "web", ground.web.port(), &[ground.web.ip().to_string()]));
    let api = "gateway.networking.k8s.io/v1";
    all.push(json!({"apiVersion": api, "kind": "Gateway", "metadata": {"name": "edge", "namespace": "bench"},
        "spec": {"gatewayClassName": "selvedge", "listeners": [{"name": "web", "port": port, "protocol": "HTTP"}]}}));
    all.push(json!({"apiVersion": api, "kind": "HTTPRoute", "metadata": {"name": "web", "namespace": "bench"},
        "spec": {"parentRefs": [{"name": "edge"}], "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]}}));
    all
}

/// A real one, with a certificate from a file.
fn gateway(ground: &Ground<'_>, dir: &Path, controls: &[SocketAddr], port: u16) -> Result<Process> {
    fs::create_dir_all(dir)?;
    let (admin, svid) = (address(free_port()?), ground.authority.issue("gateway")?);
    let mut command = Command::new(ground.program);
    command.args(["proxy", "--role", "gateway", "--id", "gateway", "--workers", "1", "--drain", "0", "--log", "warn"]);
    command.args(controls.iter().flat_map(|at| ["--control".to_owned(), format!("https://{at}")]));
    command.args(["--admin", &admin.to_string()]).arg("--state").arg(dir.join("state"));
    command.arg("--cert").arg(&svid.chain).arg("--key").arg(&svid.key).arg("--trust").arg(&ground.authority.root);
    let mut process = Process::start("the gateway", command.env("NO_COLOR", "1"), Core::Proxy, &dir.join("log"))?;
    process.wait_for(admin, LIMIT)?;
    fleet::until("the gateway is ready", || fleet::ready(admin))?;
    process.wait_for(address(port), LIMIT)?;
    Ok(process)
}
