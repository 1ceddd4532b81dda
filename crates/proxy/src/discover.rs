//! Asking whoever feeds us about a destination that the snapshot does not name.

use std::{fmt, future::Future, net::SocketAddr, pin::Pin};

/// What an application wants to reach.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Wanted {
    Address(SocketAddr),
    /// A host name in lower case without trailing dot, and a port.
    Host(String, u16),
}

/// Finds out about destinations on demand.
pub trait Discover: fmt::Debug + Send + Sync {
    /// Resolves when whoever feeds us has answered: it has installed what it knows, or knows nothing. It has a time
    /// limit of its own, and remembers for a while what it has asked for, so that it may be called for each connection.
    fn wanted(&self, what: Wanted) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}
