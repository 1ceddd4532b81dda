//! Network namespaces, of which the proxy knows only that others can work in them.

use selvedge_compile::snapshot::Netns;
use std::{fmt, io};

/// Enters network namespaces for a moment. A socket belongs to the namespace it was made in, for ever.
pub trait Spaces: fmt::Debug + Send + Sync {
    /// Runs `work` on this thread inside the namespace, and comes back. `work` makes a socket and does nothing that
    /// waits, for the whole thread is elsewhere meanwhile.
    ///
    /// # Errors
    /// Of `work`, or when the namespace is not there (then `work` is not run). A thread that cannot come back is the
    /// implementation's to end: nothing else may run on it.
    fn within(&self, netns: Netns, work: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()>;
}

/// Runs `make` inside the namespace; the process's own needs no [`Spaces`].
pub(crate) fn within<T>(
    spaces: Option<&dyn Spaces>,
    netns: Netns,
    mut make: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    if netns == Netns::default() {
        return make();
    }
    let unsupported = || {
        let message = format!("network namespace {} cannot be entered by this process", netns.0);
        io::Error::new(io::ErrorKind::Unsupported, message)
    };
    let mut made = None;
    spaces.ok_or_else(unsupported)?.within(netns, &mut || {
        made = Some(make()?);
        Ok(())
    })?;
    made.ok_or_else(unsupported)
}
