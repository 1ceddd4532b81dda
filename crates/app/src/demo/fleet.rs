//! The mesh of the demo: a control plane with its authority, the gateway, and a proxy beside every service.

use super::{
    Args,
    children::Children,
    folder::Folder,
    log_is_asked_for,
    ports::{Place, Ports},
};
use anyhow::{Context, Result};
use selvedge_control::{identity::administrator, proto::identity::CreateTokenRequest};
use std::{
    ffi::OsString,
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{Duration, Instant},
};

/// Longest time for the authority to be there.
const START: Duration = Duration::from_secs(20);
/// Between looks.
const LOOK: Duration = Duration::from_millis(20);
/// A join token is used at once.
const TOKEN_LIFE: u64 = 300;
/// The control plane, in the state folder and the logs.
pub const CONTROL: &str = "control";
pub const GATEWAY: &str = "gateway";

/// What is started, and how.
pub struct Fleet<'a> {
    pub ports: Ports,
    pub folder: &'a Folder,
    pub log: String,
    pub svid_ttl: u64,
    pub children: Children,
}

impl<'a> Fleet<'a> {
    pub fn new(args: &Args, ports: Ports, folder: &'a Folder, log: &str) -> Self {
        let log = if log_is_asked_for() { log } else { "info" }.to_owned();
        Self { ports, folder, log, svid_ttl: args.svid_ttl, children: Children::default() }
    }

    /// Starts all: first the control plane, then those that join.
    pub async fn start(&mut self) -> Result<()> {
        self.control()?;
        self.token(GATEWAY, &["default/gateway"]).await?;
        self.gateway()?;
        for place in self.ports.places() {
            self.token(place.name, &[&place.identity()]).await?;
            self.sidecar(&place)?;
        }
        Ok(())
    }

    /// The control plane with its authority.
    pub fn control(&mut self) -> Result<()> {
        let mut args = self.args(CONTROL, "control");
        args.extend(["--file".into(), self.folder.resources().into()]);
        let (listen, admin) = (self.ports.control().to_string(), self.ports.control_admin().to_string());
        let ttl = format!("{}s", self.svid_ttl);
        args.extend(["--name", "demo", "--listen", &listen, "--admin", &admin, "--svid-ttl", &ttl].map(OsString::from));
        self.children.start(CONTROL, args, &self.folder.log(CONTROL))
    }

    fn gateway(&mut self) -> Result<()> {
        let admin = self.ports.admin().to_string();
        let mut args = self.member(GATEWAY, "gateway", &["default/gateway"]);
        args.extend(["--gateway", "default/shop", "--drain", super::DRAIN, "--admin", &admin].map(OsString::from));
        self.children.start(GATEWAY, args, &self.folder.log(GATEWAY))
    }

    fn sidecar(&mut self, place: &Place) -> Result<()> {
        let mut args = self.member(place.name, "sidecar", &[&place.identity()]);
        let workload = format!("default/{}", place.name);
        let (hbone, proxy) = (place.hbone().to_string(), place.http_proxy().to_string());
        args.extend(["--workload", &workload, "--hbone", &hbone, "--http-proxy", &proxy].map(OsString::from));
        args.extend(["--workers", "1", "--drain", "1", "--admin", "off"].map(OsString::from));
        self.children.start(place.name, args, &self.folder.log(place.name))
    }

    /// The command line of a process that joins.
    pub fn member(&self, name: &str, role: &str, identities: &[&str]) -> Vec<OsString> {
        let mut args = self.args(name, "proxy");
        let control = format!("https://{}", self.ports.control());
        args.extend(["--role", role, "--id", name, "--control", &control].map(OsString::from));
        identities.iter().for_each(|identity| args.extend(["--identity", identity].map(OsString::from)));
        args.extend(["--join-token-file".into(), self.folder.token(name).into()]);
        args
    }

    fn args(&self, name: &str, command: &str) -> Vec<OsString> {
        let mut args: Vec<OsString> = ["--log", &self.log, command, "--state"].map(OsString::from).into();
        args.push(self.folder.state(name).into());
        args
    }

    /// Puts join tokens where the process looks for them.
    pub async fn token(&mut self, name: &str, identities: &[&str]) -> Result<()> {
        let socket = self.folder.state(CONTROL).join("ca.sock");
        let began = Instant::now();
        let mut client = loop {
            self.children.check()?;
            match administrator(&socket).await {
                Ok(client) => break client,
                Err(error) if began.elapsed() > START => anyhow::bail!(error),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        };
        let mut text = String::new();
        for identity in identities {
            let (namespace, account) = identity.split_once('/').context("an identity")?;
            let (namespace, service_account) = (namespace.to_owned(), account.to_owned());
            let request = CreateTokenRequest { namespace, service_account, seconds: TOKEN_LIFE, uses: 1 };
            let made = client.create_token(request).await.map_err(|s| anyhow::Error::msg(s.message().to_owned()))?;
            text += &made.into_inner().token;
            text.push('\n');
        }
        write_secret(&self.folder.token(name), &text)
    }
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write to {}", path.display()))
}
