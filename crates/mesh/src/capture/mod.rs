//! Capture: the kernel hands connections of a network namespace to the proxy, without the applications' knowing.
//!
//! Where they were going is asked of the kernel by the proxy (SO_ORIGINAL_DST). The proxy's own connections are known by the
//! mark of their sockets. nftables does it, or iptables where the kernel or the machine has no nftables.

mod flows;
mod iptables;
mod nft;
mod tool;
mod wish;

#[cfg(test)]
mod tests;

pub use iptables::{Family, script as iptables_script};
pub use nft::script as nft_script;
pub use tool::{Fault, Tools};
pub use wish::{Chosen, Item, MARK, Ports, SSH, Wish};

use crate::spaces::Space;
use rustix::thread::{CapabilitySet, capabilities};
use std::{fmt, io};
use wish::Sorted;

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("{0}")]
    Wish(String),
    #[error(
        "no right to change the rules of {place}: {missing}; run it as root, or in a container with that capability. Without \
         capture, applications reach the mesh through the proxy's explicit listeners (HTTP_PROXY)"
    )]
    Rights { place: String, missing: String },
    #[error(
        "{place} cannot be captured, for there is no tool to do it: {nft}; {iptables}. Install the package nftables (or \
         iptables), or add its folder (/usr/sbin) to PATH"
    )]
    NoTool { place: String, nft: Fault, iptables: Fault },
    #[error(
        "{place} cannot be captured; nothing was changed. By nftables: {nft}. By iptables: {iptables}. The kernel needs nf_tables \
         with nft_nat, nft_redir, nft_fib_inet and nft_ct, or ip_tables and ip6_tables with nat, REDIRECT, owner, mark and addrtype; where only \
         IPv6 is missing, --no-ipv6 leaves it out"
    )]
    Kernel { place: String, nft: Fault, iptables: Fault },
    #[error("cannot enter {place}: {error}; that needs CAP_SYS_ADMIN")]
    Enter { place: String, error: io::Error },
}

/// What made the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Nftables,
    /// Both families where nothing else is said.
    Iptables,
    /// IPv6 of the same.
    Ip6tables,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ip6tables => "ip6tables",
        })
    }
}

/// What `apply` did.
#[derive(Debug, PartialEq, Eq)]
pub struct Applied {
    pub backend: Backend,
    /// False: everything was as wished already.
    pub changed: bool,
    /// Why it was not nftables.
    pub instead: Option<String>,
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub backend: Backend,
    /// As the tool prints them.
    pub rules: String,
    /// Nobody has changed them since they were applied.
    pub intact: bool,
    /// They are those of the wish that was compared.
    pub as_wished: bool,
}

/// Makes the rules of a namespace those of `wish`, in one step for nftables and in one per family for iptables. On an error
/// nothing has changed. Blocks for some tens of milliseconds.
pub fn apply(space: &Space, wish: &Wish, tools: &Tools) -> Result<Applied, CaptureError> {
    wish.check().map_err(CaptureError::Wish)?;
    inside(space, || {
        let applied = apply_here(&space.to_string(), wish, tools)?;
        if applied.changed {
            forget_queries(wish.dns);
        }
        Ok(applied)
    })
}

/// Removes all rules of ours, and none of others; whether there were any.
pub fn remove(space: &Space, tools: &Tools) -> Result<bool, CaptureError> {
    inside(space, || {
        let removed = remove_here(&space.to_string(), tools)?;
        if removed {
            forget_queries(false);
        }
        Ok(removed)
    })
}

/// The rules hold for sockets that have asked before as well: a resolver may keep one for as long as it lives.
fn forget_queries(all: bool) {
    if let Err(error) = flows::forget(all) {
        tracing::warn!(
            "the rules are as wished, but DNS queries of sockets that asked before go where they went, until a socket has been \
             silent for two minutes: the kernel could not be told to forget them (that needs nf_conntrack_netlink): {error}"
        );
    }
}

/// What is there, compared with `wish`. More than one when rules were made with different tools.
pub fn show(space: &Space, wish: &Wish, tools: &Tools) -> Result<Vec<Shown>, CaptureError> {
    inside(space, || show_here(&space.to_string(), wish, tools))
}

fn inside<T>(space: &Space, work: impl FnOnce() -> Result<T, CaptureError>) -> Result<T, CaptureError> {
    let place = space.to_string();
    let rights = capabilities(None).map(|sets| sets.effective).unwrap_or(CapabilitySet::all());
    if !rights.contains(CapabilitySet::NET_ADMIN) {
        return Err(CaptureError::Rights { place, missing: "CAP_NET_ADMIN is missing".into() });
    }
    let foreign = !space.is_current();
    if foreign && !rights.contains(CapabilitySet::SYS_ADMIN) {
        let missing = "CAP_SYS_ADMIN is missing, which entering another namespace needs".into();
        return Err(CaptureError::Rights { place, missing });
    }
    space.within(work).unwrap_or_else(|error| Err(CaptureError::Enter { place, error }))
}

fn apply_here(place: &str, wish: &Wish, tools: &Tools) -> Result<Applied, CaptureError> {
    let nft = match by_nft(wish, tools) {
        Ok(mut applied) => {
            // From a time when there was no nftables; a machine without iptables has none.
            applied.changed |= drop_iptables(tools).unwrap_or(false);
            return Ok(applied);
        }
        Err(fault) => fault,
    };
    if nft.is_rights() {
        return Err(CaptureError::Rights { place: place.into(), missing: nft.to_string() });
    }
    match by_iptables(wish, tools) {
        Ok(mut changed) => {
            // From a time when nftables worked.
            changed |= nft::list(tools).is_ok_and(|listed| listed.is_some()) && nft::delete(tools).is_ok();
            Ok(Applied { backend: Backend::Iptables, changed, instead: Some(nft.to_string()) })
        }
        Err(iptables) => Err(neither(place, nft, iptables)),
    }
}

fn neither(place: &str, nft: Fault, iptables: Fault) -> CaptureError {
    let place = place.to_owned();
    match (&nft, &iptables) {
        (_, fault) if fault.is_rights() => CaptureError::Rights { place, missing: iptables.to_string() },
        (Fault::Missing(_), Fault::Missing(_)) => CaptureError::NoTool { place, nft, iptables },
        _ => CaptureError::Kernel { place, nft, iptables },
    }
}

fn by_nft(wish: &Wish, tools: &Tools) -> Result<Applied, Fault> {
    let same = nft::list(tools)?.is_some_and(|listed| nft::fulfils(&listed, wish));
    if !same {
        nft::replace(tools, wish)?;
    }
    Ok(Applied { backend: Backend::Nftables, changed: !same, instead: None })
}

fn by_iptables(wish: &Wish, tools: &Tools) -> Result<bool, Fault> {
    let same =
        |family| Ok::<_, Fault>(iptables::list(tools, family)?.is_some_and(|found| iptables::fulfils(&found, wish)));
    let v6 = match wish.ipv6 && iptables::has_ipv6() {
        true => same(Family::V6)?,
        false => iptables::list(tools, Family::V6).map_or(true, |found| found.is_none()),
    };
    if same(Family::V4)? && v6 {
        return Ok(false);
    }
    iptables::replace(tools, wish).map(|()| true)
}

fn drop_iptables(tools: &Tools) -> Result<bool, Fault> {
    let all = iptables::list_all(tools)?;
    let any = !all.is_empty();
    all.into_iter().try_for_each(|found| iptables::delete(tools, found))?;
    Ok(any)
}

fn remove_here(place: &str, tools: &Tools) -> Result<bool, CaptureError> {
    let nft = nft::list(tools).and_then(|listed| match listed {
        Some(_) => nft::delete(tools).map(|()| true),
        None => Ok(false),
    });
    either(place, nft, drop_iptables(tools), |a, b| a || b)
}

fn show_here(place: &str, wish: &Wish, tools: &Tools) -> Result<Vec<Shown>, CaptureError> {
    let nft = nft::list(tools).map(|listed| Vec::from_iter(listed.map(|listed| nft_shown(listed, wish))));
    let iptables = iptables::list_all(tools);
    let iptables = iptables.map(|all| all.into_iter().map(|found| iptables_shown(found, wish)).collect());
    either(place, nft, iptables, |a, b| [a, b].concat())
}

/// What both tools say; it is enough that one of them works.
fn either<T>(
    place: &str,
    nft: Result<T, Fault>,
    iptables: Result<T, Fault>,
    both: impl FnOnce(T, T) -> T,
) -> Result<T, CaptureError> {
    match (nft, iptables) {
        (Ok(nft), Ok(iptables)) => Ok(both(nft, iptables)),
        (Ok(one), Err(_)) => Ok(one),
        (Err(nft), _) if nft.is_rights() => Err(CaptureError::Rights { place: place.into(), missing: nft.to_string() }),
        (Err(_), Ok(one)) => Ok(one),
        (Err(nft), Err(iptables)) => Err(neither(place, nft, iptables)),
    }
}

fn nft_shown(listed: nft::Listed, wish: &Wish) -> Shown {
    let as_wished = nft::fulfils(&listed, wish);
    Shown { backend: Backend::Nftables, rules: listed.rules, intact: listed.intact, as_wished }
}

fn iptables_shown(found: iptables::Listed, wish: &Wish) -> Shown {
    let as_wished = iptables::fulfils(&found, wish) && (wish.ipv6 || found.programs.family == Family::V4);
    let backend = if found.programs.family == Family::V4 { Backend::Iptables } else { Backend::Ip6tables };
    Shown { backend, rules: found.rules, intact: found.intact, as_wished }
}
