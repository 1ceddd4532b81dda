//! Network namespaces: opening them, and doing something inside one.

use rustix::{
    fs::{Mode, OFlags, fstat, fstatfs, open},
    io::Errno,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use selvedge_compile::snapshot::Netns;
use selvedge_proxy::spaces::Spaces;
use std::{
    cell::Cell,
    collections::BTreeMap,
    fmt, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process,
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

/// Where `ip netns add` keeps the names.
const NAMED: &str = "/run/netns";
/// The file system of namespace handles (linux/magic.h).
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// Namespaces that one process serves at most; each costs a file descriptor. A host has at most a few hundred pods.
const MAX_SPACES: usize = 4096;

/// A network namespace that is held open: it lives at least as long as this.
#[derive(Debug, Clone)]
pub struct Space(Option<Arc<Open>>);

#[derive(Debug)]
struct Open {
    handle: OwnedFd,
    /// As the user called it.
    name: String,
    /// What tells namespaces apart: device and inode of the handle.
    identity: (u64, u64),
}

/// Why a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpaceError {
    #[error(
        "network namespace `{name}`: {} does not exist; `ip netns list` shows the named ones, a process id or the path of a namespace file will do too",
        path.display()
    )]
    Missing { name: String, path: PathBuf },
    #[error(
        "network namespace `{name}`: cannot open {}: {error}; run as root, or as who owns the process",
        path.display()
    )]
    Open { name: String, path: PathBuf, error: io::Error },
    #[error("network namespace `{name}`: {} is not a namespace; expected such as /run/netns/NAME or /proc/PID/ns/net", path.display())]
    NotOne { name: String, path: PathBuf },
    #[error("{MAX_SPACES} network namespaces are open, which is the limit")]
    TooMany,
}

impl Space {
    /// The namespace in which this process runs.
    pub fn current() -> Self {
        Self(None)
    }

    /// Whether it is that of the process, by being called so.
    pub fn is_current(&self) -> bool {
        self.0.is_none()
    }

    /// A namespace by name (below /run/netns), by path (with a slash in it) or by the id of a process in it. A name that is
    /// a number wins over a process.
    pub fn open(name: &str) -> Result<Self, SpaceError> {
        let path = place(name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let handle = open(&path, flags, Mode::empty()).map_err(|error| match error {
            Errno::NOENT => SpaceError::Missing { name: name.into(), path: path.clone() },
            error => SpaceError::Open { name: name.into(), path: path.clone(), error: error.into() },
        })?;
        let failed = |error: Errno| SpaceError::Open { name: name.into(), path: path.clone(), error: error.into() };
        let system = fstatfs(&handle).map_err(failed)?;
        // A handle of another kind of namespace is found by the kernel when it is entered.
        if u64::try_from(system.f_type).ok() != Some(NSFS_MAGIC) {
            return Err(SpaceError::NotOne { name: name.into(), path });
        }
        let stat = fstat(&handle).map_err(failed)?;
        let identity = (stat.st_dev, stat.st_ino);
        Ok(Self(Some(Arc::new(Open { handle, name: name.into(), identity }))))
    }

    /// Runs `work` on this thread inside the namespace, and comes back. Child processes that `work` starts are inside for
    /// good. Not to be nested: `work` must not enter another namespace.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let Some(open) = &self.0 else { return Ok(work()) };
        let home = home()?;
        if INSIDE.get() {
            return Err(io::Error::other("already inside a network namespace"));
        }
        enter(&open.handle).map_err(|e| io::Error::new(e.kind(), format!("network namespace {}: {e}", open.name)))?;
        INSIDE.set(true);
        let back = Back(home);
        let result = work();
        drop(back);
        Ok(result)
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("this network namespace"),
            Some(open) => write!(f, "network namespace {}", open.name),
        }
    }
}

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Brings the thread home, also when the work panicked.
struct Back(&'static OwnedFd);

impl Drop for Back {
    fn drop(&mut self) {
        if let Err(error) = enter(self.0) {
            // This thread would serve other workloads' connections from the wrong network from here on, past their rules
            // and with their identities. Nothing that could still be done is worse than that.
            eprintln!("cannot return to the network namespace of the process: {error}");
            process::abort();
        }
        INSIDE.set(false);
    }
}

fn enter(handle: &OwnedFd) -> io::Result<()> {
    Ok(move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// The namespace the process started in.
fn home() -> io::Result<&'static OwnedFd> {
    static HOME: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(home) = HOME.get() {
        return Ok(home);
    }
    // The main thread of the process is never moved by us.
    let home = open("/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(HOME.get_or_init(|| home))
}

fn place(name: &str) -> PathBuf {
    if name.contains('/') {
        return name.into();
    }
    let named = Path::new(NAMED).join(name);
    let process = !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
    if process && !named.exists() { format!("/proc/{name}/ns/net").into() } else { named }
}

/// The namespaces that a proxy serves, by number.
#[derive(Debug, Default)]
pub struct Known(RwLock<BTreeMap<Netns, Space>>);

impl Known {
    /// The number of a namespace: the same for the same namespace, whatever it was called.
    pub fn number(&self, space: &Space) -> Result<Netns, SpaceError> {
        let Some(open) = &space.0 else { return Ok(Netns::default()) };
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let same = |space: &Space| space.0.as_ref().is_some_and(|other| other.identity == open.identity);
        if let Some((number, _)) = known.iter().find(|(_, space)| same(space)) {
            return Ok(*number);
        }
        if known.len() >= MAX_SPACES {
            return Err(SpaceError::TooMany);
        }
        let number = Netns(known.last_key_value().map_or(1, |(last, _)| last.0.wrapping_add(1).max(1)));
        known.insert(number, space.clone());
        Ok(number)
    }

    /// The namespace of a number.
    pub fn get(&self, netns: Netns) -> Option<Space> {
        if netns == Netns::default() {
            return Some(Space::current());
        }
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&netns).cloned()
    }

    /// Lets go of a namespace whose workload is gone; sockets in it stay.
    pub fn forget(&self, netns: Netns) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&netns);
    }
}

impl Spaces for Known {
    fn within(&self, netns: Netns, work: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let space = self.get(netns).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("network namespace number {} is not known", netns.0))
        })?;
        space.within(work)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvedge_testkit::left_out;

    #[test]
    fn names_paths_and_process_ids_are_told_apart() {
        assert_eq!(place("shop"), Path::new("/run/netns/shop"));
        assert_eq!(place("/proc/1/ns/net"), Path::new("/proc/1/ns/net"));
        assert_eq!(place("./shop"), Path::new("./shop"));
        assert_eq!(place("4194305"), Path::new("/proc/4194305/ns/net"));
        assert_eq!(place(""), Path::new("/run/netns/"));
    }

    #[test]
    fn what_is_not_a_namespace_is_named() {
        let message = |name: &str| Space::open(name).expect_err(name).to_string();
        assert!(message("no-such-namespace").contains("/run/netns/no-such-namespace does not exist"));
        assert!(message("/etc/passwd").contains("/etc/passwd is not a namespace"));
        assert!(message("").contains("is not a namespace") || message("").contains("does not exist"));
    }

    #[test]
    fn a_namespace_has_one_number_by_whatever_name() {
        let own = format!("/proc/{}/ns/net", process::id());
        let Ok(space) = Space::open(&own) else { return left_out("namespaces cannot be opened here") };
        let known = Known::default();
        let number = known.number(&space).expect("a number");
        let again = Space::open(&process::id().to_string()).expect("by process");
        assert_eq!(known.number(&again).expect("a number"), number);
        assert_eq!(known.number(&Space::current()).expect("a number"), Netns(0));
        assert_ne!(number, Netns(0));
        known.forget(number);
        let error = known.within(number, &mut || Ok(())).expect_err("forgotten");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_panic_inside_still_comes_home() {
        let Ok(space) = Space::open("/proc/self/ns/net") else { return left_out("namespaces cannot be opened here") };
        if space.within(|| ()).is_err() {
            return left_out("entering a namespace needs CAP_SYS_ADMIN");
        }
        let panicked = std::panic::catch_unwind(|| space.within(|| panic!("inside")));
        assert!(panicked.is_err());
        assert!(!INSIDE.get());
        let nested = space.within(|| space.within(|| ()).map_err(|e| e.to_string())).expect("the outer");
        assert!(nested.expect_err("nested").contains("already inside"));
    }
}
