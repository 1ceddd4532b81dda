//! Control planes and sidecars of Selvedge as processes.

use crate::bench::{
    authority::Authority,
    peer::address,
    process::{Core, Process, free_port},
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// How long a process may take until it is ready.
const LIMIT: Duration = Duration::from_secs(120);

/// A control plane with the embedded certificate authority, below the one of the benchmark.
pub struct Control {
    pub process: Process,
    pub at: SocketAddr,
    pub admin: SocketAddr,
    program: PathBuf,
    state: PathBuf,
}

/// Writes each resource into a file of its own.
pub fn write(folder: &Path, resources: &[Value]) -> Result<()> {
    fs::create_dir_all(folder)?;
    for resource in resources {
        fs::write(folder.join(file(resource)), resource.to_string())?;
    }
    Ok(())
}

/// Puts another version of a resource in the place of its file, as an editor does it.
pub fn replace(folder: &Path, resource: &Value) -> Result<()> {
    let new = folder.join(".new");
    fs::write(&new, resource.to_string())?;
    fs::rename(new, folder.join(file(resource))).context("cannot replace a resource")
}

fn file(resource: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
    format!("{}-{}.json", text(&resource["kind"]), text(&resource["metadata"]["name"]))
}

impl Control {
    /// Starts on a core, from the resources and with the state in `dir`.
    pub fn start(program: &Path, authority: &Authority, dir: &Path, core: Core) -> Result<Self> {
        Self::start_at(program, authority, dir, core, [address(free_port()?), address(free_port()?)])
    }

    /// At given addresses: for proxies, and for the administrator.
    pub fn start_at(
        program: &Path,
        authority: &Authority,
        dir: &Path,
        core: Core,
        [at, admin]: [SocketAddr; 2],
    ) -> Result<Self> {
        let mut control = Self::spawn(program, authority, dir, core, [at, admin], None)?;
        control.wait()?;
        Ok(control)
    }

    /// Starts it, with resources from an etcd if one is given, and does not wait until it is ready.
    pub fn spawn(
        program: &Path,
        authority: &Authority,
        dir: &Path,
        core: Core,
        [at, admin]: [SocketAddr; 2],
        etcd: Option<&str>,
    ) -> Result<Self> {
        let state = dir.join("state");
        let mut command = Command::new(program);
        command.args(["control", "--listen", &at.to_string(), "--admin", &admin.to_string(), "--log", "warn"]);
        match etcd {
            // Those that share an etcd share the key of what is sealed there.
            Some(etcd) => command.args(["--etcd", etcd, "--ca-key-file"]).arg(dir.with_file_name("ca.key")),
            None => command.arg("-f").arg(dir.join("resources")),
        };
        command.arg("--state").arg(&state).arg("--ca-roots").arg(&authority.root);
        command.arg("--ca-intermediate").arg(&authority.chain).arg("--ca-intermediate-key").arg(&authority.key);
        let process = Process::start("the control plane", command.env("NO_COLOR", "1"), core, &dir.join("log"))?;
        Ok(Self { process, at, admin, program: program.to_owned(), state })
    }

    /// Waits until it is ready.
    pub fn wait(&mut self) -> Result<()> {
        self.process.wait_for(self.admin, LIMIT)?;
        until("the control plane is ready", || ready(self.admin))
    }

    /// A join token for an identity, `namespace/account`.
    fn token(&self, identity: &str) -> Result<String> {
        let output = Command::new(&self.program)
            .args(["token", "create", "--identity", identity, "--uses", "100", "--log", "warn", "--state"])
            .arg(&self.state)
            .output()?;
        ensure!(output.status.success(), "no join token: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}

/// A proxy beside a workload of the namespace `bench`.
pub struct Sidecar<'a> {
    /// Name of the Workload, and of its service account.
    pub name: &'a str,
    /// Where HBONE arrives.
    pub hbone: Option<SocketAddr>,
    /// Ports that lead to one destination each.
    pub to: &'a [(SocketAddr, String)],
}

impl Sidecar<'_> {
    pub fn start(&self, control: &Control, dir: &Path) -> Result<Process> {
        let identity = format!("bench/{}", self.name);
        Beside {
            role: "sidecar",
            id: self.name,
            workloads: std::slice::from_ref(&identity),
            identities: std::slice::from_ref(&identity),
            hbone: self.hbone,
            to: self.to,
        }
        .start(control, dir)
    }
}

/// A proxy beside workloads, of either role.
pub struct Beside<'a> {
    pub role: &'a str,
    pub id: &'a str,
    /// As on the command line: `namespace/name`, or `namespace/name@netns`.
    pub workloads: &'a [String],
    /// The first one speaks to the control plane.
    pub identities: &'a [String],
    /// Where HBONE arrives, in the network namespace of each workload.
    pub hbone: Option<SocketAddr>,
    /// Ports that lead to one destination each, in the network namespace of each workload.
    pub to: &'a [(SocketAddr, String)],
}

impl Beside<'_> {
    /// Starts it with one worker on the core of what is measured, and waits until it serves.
    pub fn start(&self, control: &Control, dir: &Path) -> Result<Process> {
        fs::create_dir_all(dir)?;
        let admin = address(free_port()?);
        let tokens: Vec<String> = self.identities.iter().map(|id| control.token(id)).collect::<Result<_>>()?;
        let token = dir.join("token");
        fs::write(&token, tokens.join("\n"))?;
        let mut command = Command::new(&control.program);
        command.args(["proxy", "--role", self.role, "--workers", "1", "--drain", "0", "--log", "warn"]);
        command.args(["--control", &format!("https://{}", control.at), "--admin", &admin.to_string()]);
        command.args(["--id", self.id, "--join-token-file"]).arg(token).arg("--state").arg(dir.join("state"));
        command.args(self.workloads.iter().flat_map(|name| ["--workload", name]));
        command.args(self.identities.iter().flat_map(|name| ["--identity", name]));
        command.arg("--hbone").arg(self.hbone.map_or_else(|| "off".into(), |at| at.to_string()));
        for (listen, destination) in self.to {
            command.arg("--to").arg(format!("{listen}={destination}"));
        }
        let what = format!("a {} proxy", self.role);
        let mut process = Process::start(&what, command.env("NO_COLOR", "1"), Core::Proxy, &dir.join("log"))?;
        process.wait_for(admin, LIMIT)?;
        until(&format!("{what} is ready"), || ready(admin))?;
        let ports = self.hbone.iter().chain(self.to.iter().map(|(listen, _)| listen));
        for port in ports {
            process.wait_for(*port, LIMIT)?;
        }
        Ok(process)
    }
}

/// Waits for something, with the limit of a start.
pub fn until(what: &str, mut so: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + LIMIT;
    while !so() {
        ensure!(Instant::now() < end, "not after {LIMIT:?}: {what}; see the logs in target/bench");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Whether a process with this admin listener is ready.
pub fn ready(admin: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("GET /ready HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        std::io::Result::Ok(answer.ends_with(b"200"))
    };
    ask().unwrap_or(false)
}

/// Where everything of a mesh listens that is measured.
pub fn workload(name: &str, ip: &str, ports: Value, hbone: u16) -> Value {
    json!({"apiVersion": "selvedge.dev/v1alpha1", "kind": "Workload",
        "metadata": {"name": name, "namespace": "bench", "labels": {"app": name}},
        "spec": {"addresses": [ip], "serviceAccount": name, "ports": ports, "tunnel": {"port": hbone}}})
}

/// A Service whose endpoints are in an EndpointSlice, and this.
pub fn service(namespace: &str, name: &str, port: u16, endpoints: &[String]) -> [Value; 2] {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"ports": [{"name": "http", "port": 80, "appProtocol": "http"}]}});
    [service, slice(namespace, name, port, endpoints)]
}

pub fn slice(namespace: &str, name: &str, port: u16, endpoints: &[String]) -> Value {
    let endpoints: Vec<Value> = endpoints.iter().map(|ip| json!({"addresses": [ip]})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": port}], "endpoints": endpoints})
}
