//! Which port each part of the demo has: all lie in one block, so that `--port-base` moves them together.

use anyhow::{Result, bail};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

/// The base that the files in `examples/demo` are written for.
pub const DEFAULT_BASE: u16 = 8080;
/// Ports in the block; the files use no other number between the base and its end.
const BLOCK: u16 = 20;

/// The block of ports.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    base: u16,
}

/// What listens on 127.0.0.1, as distance from the base.
const USES: [(u16, &str); 6] =
    [(0, "HTTP"), (1, "HTTPS"), (2, "TCP"), (3, "admin"), (4, "control plane"), (8, "admin of the control plane")];
/// Connections of other members of the mesh, at the address of each service.
const HBONE: u16 = 5;
/// Where a service can use its proxy as an HTTP proxy, at the address of each.
const HTTP_PROXY: u16 = 6;

/// The sample services: name, service account, where they listen as distance from the base.
const SERVICES: [(&str, &str, u16); 8] = [
    ("catalog-v1-a", "catalog-v1", 10),
    ("catalog-v1-b", "catalog-v1", 11),
    ("catalog-v2", "catalog-v2", 12),
    ("cart", "cart", 13),
    ("inventory", "inventory", 14),
    ("chat", "chat", 15),
    ("audit", "audit", 16),
    ("echo", "echo", 17),
];

/// A sample service and the proxy beside it. Each has a loopback address of its own.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub name: &'static str,
    account: &'static str,
    pub service: SocketAddr,
    base: u16,
}

impl Place {
    /// `namespace/account`
    pub fn identity(&self) -> String {
        format!("default/{}", self.account)
    }

    pub fn hbone(&self) -> SocketAddr {
        SocketAddr::new(self.service.ip(), self.base + HBONE)
    }

    pub fn http_proxy(&self) -> SocketAddr {
        SocketAddr::new(self.service.ip(), self.base + HTTP_PROXY)
    }
}

impl Ports {
    pub fn new(base: u16) -> Self {
        Self { base }
    }

    pub fn http(self) -> SocketAddr {
        self.at(0)
    }

    pub fn https(self) -> SocketAddr {
        self.at(1)
    }

    pub fn tcp(self) -> SocketAddr {
        self.at(2)
    }

    pub fn admin(self) -> SocketAddr {
        self.at(3)
    }

    pub fn control(self) -> SocketAddr {
        self.at(4)
    }

    pub fn control_admin(self) -> SocketAddr {
        self.at(8)
    }

    /// All sample services.
    pub fn places(self) -> impl Iterator<Item = Place> {
        SERVICES.iter().map(move |(name, ..)| self.place(name))
    }

    /// The sample service of this name; the first one for a name that is not known.
    pub fn place(self, name: &str) -> Place {
        let index = SERVICES.iter().position(|(known, ..)| *known == name).unwrap_or_default();
        let (name, account, offset) = SERVICES[index];
        let host = u8::try_from(index + 1).unwrap_or(1);
        let service = SocketAddr::from((Ipv4Addr::new(127, 0, 8, host), self.base + offset));
        Place { name, account, service, base: self.base }
    }

    /// A file of `examples/demo` with its ports moved to this block. Only whole numbers are touched.
    pub fn moved(self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
            let (before, number) = rest.split_at(start);
            let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
            out.push_str(before);
            let offset = number[..end].parse::<u16>().ok().and_then(|n| n.checked_sub(DEFAULT_BASE));
            match offset.filter(|offset| *offset < BLOCK) {
                Some(offset) => out.push_str(&(self.base + offset).to_string()),
                None => out.push_str(&number[..end]),
            }
            rest = &number[end..];
        }
        out.push_str(rest);
        out
    }

    /// Finds out before anything starts whether every port is free.
    ///
    /// # Errors
    /// Names the first one that is not, who has it where that can be seen, and what to do.
    pub fn check(self) -> Result<()> {
        let fixed = USES.iter().map(|(offset, usage)| (self.at(*offset), (*usage).to_owned()));
        let places = self.places().flat_map(|place| {
            let name = place.name;
            let uses = [(place.service, ""), (place.hbone(), ", HBONE"), (place.http_proxy(), ", HTTP proxy")];
            uses.map(|(address, usage)| (address, format!("{name}{usage}")))
        });
        for (address, usage) in fixed.chain(places) {
            let Err(error) = TcpListener::bind(address) else { continue };
            let port = address.port();
            if error.kind() != std::io::ErrorKind::AddrInUse {
                bail!("cannot listen on {address} ({usage}): {error}; choose other ports with `--port-base`");
            }
            let holder = match holder(port) {
                Some(holder) => format!("{holder} has it"),
                None => format!("`ss -ltnp 'sport = :{port}'` shows who has it"),
            };
            bail!(
                "port {port} ({usage}) is busy: {holder}. End that process, or move the demo with `--port-base {}`",
                self.elsewhere()
            );
        }
        Ok(())
    }

    /// A base worth trying: the next thousand, where the block fits.
    fn elsewhere(self) -> u16 {
        if self.base < 60_000 { self.base + 1000 } else { DEFAULT_BASE }
    }

    fn at(self, offset: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.base + offset))
    }
}

/// The process that listens on a port, as far as `/proc` lets this user see it.
fn holder(port: u16) -> Option<String> {
    let listening = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|path| fs::read_to_string(path).ok());
    let inode = listening.collect::<String>().lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let number = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        (number == port && *state == "0A").then(|| format!("socket:[{inode}]"))
    })?;
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        // `self` and `thread-self` are links to this process.
        process.file_name().to_string_lossy().parse::<u32>().ok()?;
        let path = process.path();
        let mut open = fs::read_dir(path.join("fd")).ok()?.flatten();
        open.find(|fd| fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == inode.as_str()))?;
        let name = fs::read_to_string(path.join("comm")).ok()?;
        Some(format!("process {} ({})", process.file_name().to_string_lossy(), name.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_ports_and_nothing_else() {
        let text = "port: 8080, [8099] http://127.0.0.1:8093/x 80 18080 80800 8100 99999999999";
        assert_eq!(
            Ports::new(9000).moved(text),
            "port: 9000, [9019] http://127.0.0.1:9013/x 80 18080 80800 8100 99999999999"
        );
        assert_eq!(Ports::new(DEFAULT_BASE).moved(text), text);
    }

    #[test]
    fn a_busy_port_is_named_with_its_holder() {
        let busy = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = busy.local_addr().expect("its address").port();
        let error = Ports::new(port).check().expect_err("it is busy").to_string();
        assert!(error.starts_with(&format!("port {port} (HTTP) is busy: ")), "{error}");
        assert!(error.contains(&std::process::id().to_string()) || error.contains("ss -ltnp"), "{error}");
        assert!(error.contains("--port-base"), "{error}");
    }
}
