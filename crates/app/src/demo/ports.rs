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

/// What listens where, as distance from the base.
const USES: [(u16, &str); 12] = [
    (0, "HTTP"),
    (1, "HTTPS"),
    (2, "TCP"),
    (3, "admin"),
    (10, "catalog v1, first instance"),
    (11, "catalog v1, second instance"),
    (12, "catalog v2"),
    (13, "cart"),
    (14, "inventory"),
    (15, "chat"),
    (16, "audit"),
    (17, "echo"),
];

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

    pub fn catalog_v1(self) -> [SocketAddr; 2] {
        [self.at(10), self.at(11)]
    }

    pub fn catalog_v2(self) -> SocketAddr {
        self.at(12)
    }

    pub fn cart(self) -> SocketAddr {
        self.at(13)
    }

    pub fn inventory(self) -> SocketAddr {
        self.at(14)
    }

    pub fn chat(self) -> SocketAddr {
        self.at(15)
    }

    pub fn audit(self) -> SocketAddr {
        self.at(16)
    }

    pub fn echo(self) -> SocketAddr {
        self.at(17)
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
        for (offset, usage) in USES {
            let address = self.at(offset);
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
