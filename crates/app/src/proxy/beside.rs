//! What a proxy beside workloads does for their network namespaces: rules of the kernel, names, marked sockets.

use super::PortArgs;
use anyhow::{Context, Result, ensure};
use clap::Args as ClapArgs;
use selvedge_compile::snapshot::{DnsNames, Netns};
use selvedge_mesh::{
    capture::{self, MARK, Ports, Tools, Wish},
    dns::{self, Dns, parse_upstream, system_upstreams},
    spaces::{Known, Space},
};
use selvedge_proxy::discover::Discover;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

#[derive(Debug, Clone, ClapArgs)]
#[group(id = "beside")]
pub struct Args {
    /// Network namespace of the workloads for which none is named: a name as in `ip netns list`, the path of a namespace
    /// file, or the id of a process in it; that of this process when not given.
    #[arg(long, value_name = "NAME|PATH|PID")]
    netns: Option<String>,
    /// Make the rules that redirect connections to this proxy (as `selvedge capture apply` does), and remove them at the end.
    #[arg(long, requires = "capture")]
    apply_capture: bool,
    /// Answer DNS queries for names of the mesh, and pass the others on; in every network namespace of a workload.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:15053")]
    dns: Option<SocketAddr>,
    /// Who is asked about names that are not of the mesh; those of /etc/resolv.conf when not given.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', value_parser = parse_upstream, requires = "dns")]
    dns_upstream: Vec<SocketAddr>,
}

impl Args {
    pub fn has_netns(&self) -> bool {
        self.netns.is_some()
    }

    pub fn has_dns(&self) -> bool {
        self.dns.is_some()
    }
}

/// A workload beside this proxy, as on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// `namespace/name`
    pub name: String,
    netns: Option<String>,
}

impl Local {
    /// One whose network namespace is not named.
    pub fn named(name: String) -> Self {
        Self { name, netns: None }
    }
}

/// For clap.
pub fn local(text: &str) -> Result<Local, String> {
    let (name, netns) = text.split_once('@').map_or((text, None), |(name, netns)| (name, Some(netns.to_owned())));
    let well = name.split_once('/').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains('/'));
    match well && netns.as_deref() != Some("") {
        true => Ok(Local { name: name.to_owned(), netns }),
        false => Err("write NAMESPACE/NAME, or NAMESPACE/NAME@NETNS for one in another network namespace".to_owned()),
    }
}

/// Where workloads are, and what has been set up there.
#[derive(Debug, Default)]
pub struct Beside {
    /// Of sockets, so that the rules leave them alone.
    pub mark: Option<u32>,
    pub spaces: Arc<Known>,
    /// Who is asked for names of backends, where the system's own server may be this process; none: the system's.
    pub name_servers: Vec<SocketAddr>,
    /// Servers of names, one for each network namespace.
    pub names: Arc<Vec<(Netns, Dns)>>,
    /// Whose rules are to be removed at the end.
    captured: Vec<Space>,
}

impl Beside {
    /// Opens the namespaces of the workloads, and numbers them in their order.
    pub fn open(args: &Args, ports: &PortArgs, locals: &[Local]) -> Result<(Self, Vec<Netns>)> {
        let name_servers = args.dns_upstream.clone();
        let beside = Self { mark: ports.capture.then_some(MARK), name_servers, ..Self::default() };
        let mut numbers = Vec::new();
        for local in locals {
            let space = match local.netns.as_ref().or(args.netns.as_ref()) {
                Some(name) => Space::open(name).with_context(|| format!("--workload {}", local.name))?,
                None => Space::current(),
            };
            let number = beside.spaces.number(&space)?;
            let taken = numbers.contains(&number) && (ports.capture || !ports.to.is_empty());
            ensure!(
                !taken,
                "--workload {}: another workload is in {space} already, and a port cannot be opened for both; give each \
                 its own: NAMESPACE/NAME@NETNS",
                local.name
            );
            numbers.push(number);
        }
        Ok((beside, numbers))
    }

    /// Starts the servers of names and makes the rules. To be called on a runtime.
    pub fn start(
        &mut self,
        args: &Args,
        ports: &PortArgs,
        numbers: &[Netns],
        discover: &Arc<dyn Discover>,
    ) -> Result<()> {
        let mut spaces = numbers.to_vec();
        spaces.sort_unstable();
        spaces.dedup();
        let spaces: Vec<(Netns, Space)> =
            spaces.into_iter().filter_map(|number| Some((number, self.spaces.get(number)?))).collect();
        selvedge_control::transport::mark(self.mark);
        if let Some(address) = args.dns {
            let upstream = if args.dns_upstream.is_empty() { system_upstreams() } else { args.dns_upstream.clone() };
            let start = |(number, space): &(Netns, Space)| {
                let (upstream, space) = (upstream.clone(), space.clone());
                let (mark, discover) = (self.mark, Some(discover.clone()));
                let config = dns::Config { listen: listen(address, ports.capture), upstream, space, mark, discover };
                anyhow::Ok((*number, Dns::start(config, Arc::<DnsNames>::default()).context("--dns")?))
            };
            self.names = Arc::new(spaces.iter().map(start).collect::<Result<_>>()?);
        }
        if args.apply_capture {
            let wish = wish(args, ports);
            for (_, space) in spaces {
                let applied = capture::apply(&space, &wish, &Tools::system());
                if let Err(error) = applied {
                    self.release()();
                    return Err(error).context("--apply-capture");
                }
                tracing::info!(place = %space, "captured");
                self.captured.push(space);
            }
        }
        Ok(())
    }

    /// Removes the rules that were made here; blocks for some tens of milliseconds.
    pub fn release(&mut self) -> impl FnOnce() + Send + 'static {
        let captured = std::mem::take(&mut self.captured);
        move || {
            for space in captured {
                match capture::remove(&space, &Tools::system()) {
                    Ok(_) => tracing::info!(place = %space, "no longer captured"),
                    Err(error) => tracing::error!("the rules of {space} stay: {error}"),
                }
            }
        }
    }
}

/// Captured queries arrive at the loopback address of their family.
fn listen(address: SocketAddr, capture: bool) -> Vec<SocketAddr> {
    let port = address.port();
    let mut all = vec![address];
    if capture {
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        all.extend(loopback.map(|ip| SocketAddr::new(ip, port)).into_iter().filter(|a| *a != address));
    }
    all
}

fn wish(args: &Args, ports: &PortArgs) -> Wish {
    let default = Ports::default();
    Wish {
        dns: args.dns.is_some(),
        ports: Ports {
            hbone: ports.hbone.0.map_or(default.hbone, |at| at.port()),
            dns: args.dns.map_or(default.dns, |at| at.port()),
            ..default
        },
        ..Wish::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_may_name_its_namespace() {
        let expected = |name: &str, netns: Option<&str>| Local { name: name.into(), netns: netns.map(str::to_owned) };
        assert_eq!(local("shop/cart"), Ok(expected("shop/cart", None)));
        assert_eq!(local("shop/cart@sv-cart"), Ok(expected("shop/cart", Some("sv-cart"))));
        assert_eq!(local("shop/cart@/proc/7/ns/net"), Ok(expected("shop/cart", Some("/proc/7/ns/net"))));
        for wrong in ["cart", "shop/", "/cart", "a/b/c", "shop/cart@"] {
            assert!(local(wrong).expect_err(wrong).contains("NAMESPACE/NAME"), "{wrong}");
        }
    }

    #[test]
    fn captured_queries_are_heard_in_both_families() {
        let address = |text: &str| text.parse::<SocketAddr>().expect(text);
        assert_eq!(listen(address("127.0.0.1:53"), false), [address("127.0.0.1:53")]);
        assert_eq!(listen(address("127.0.0.1:53"), true), [address("127.0.0.1:53"), address("[::1]:53")]);
    }
}
