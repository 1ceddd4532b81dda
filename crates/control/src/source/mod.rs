//! Where resources come from.

pub mod etcd;
mod files;
pub mod folder;
mod grace;
mod joined;
mod mark;
pub mod stream;
mod watch;

pub use joined::{Joined, WithJoined};
pub use mark::Mark;
pub use watch::{Changes, Watcher};

use crate::{Current, saved::Saved};
use folder::Folder;
use grace::Grace;
use selvedge_compile::Compiled;
use selvedge_model::{Diagnostic, Resources};
use std::{future::Future, path::PathBuf, pin::Pin};

/// Where resources come from: a folder, etcd, or a control plane's stream. The engine asks; nothing here may block on
/// the network.
pub trait Source: Send {
    /// Takes over what an earlier run has saved, to be used until there is something better. Before anything else.
    fn remember(&mut self, saved: &Saved);

    /// Begins to follow changes. Called once, on a runtime.
    fn follow(&mut self) {}

    /// Waits until something may be new. Giving up the future loses nothing.
    fn changed(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Takes in what is new; `everywhere`: looks at everything again. Returns whether resources or diagnostics may have
    /// changed, or somebody waits for an answer.
    fn refresh(&mut self, everywhere: bool) -> bool;

    /// What it says now.
    fn resources(&self) -> &Resources;

    /// Whether it has said anything, now or in an earlier run. Before, nothing that is missing is amiss.
    fn has_spoken(&self) -> bool {
        true
    }

    /// What is wrong, but for what the compiler says.
    fn diagnostics(&self) -> Vec<Diagnostic>;

    /// Gives diagnostics about resources their place.
    fn locate(&self, _diagnostics: &mut [Diagnostic]) {}

    /// How new that is, if the source puts its states in an order.
    fn mark(&self) -> Option<Mark> {
        None
    }

    /// Whether something is served that the source does not (readably) say any more.
    fn is_last_good(&self) -> bool;

    /// What a later run should begin with; `None` leaves what was saved before.
    fn to_saved(&self) -> Option<Saved>;

    /// Hears what the compiler says before it is installed. Returns whether it takes something back, so that
    /// [`Source::resources`] must be compiled again.
    fn judge(&mut self, _compiled: &Compiled) -> bool {
        false
    }

    /// What it said is in effect.
    fn installed(&mut self, _current: &Current) {}
}

/// Folders and files, watched.
pub struct FolderSource {
    folder: Folder,
    watcher: Option<Watcher>,
    /// Told, but not yet looked at.
    pending: Option<Changes>,
    grace: Grace,
}

impl FolderSource {
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self { folder: Folder::new(roots), watcher: None, pending: None, grace: Grace::default() }
    }
}

impl Source for FolderSource {
    fn remember(&mut self, saved: &Saved) {
        self.folder.remember(saved);
    }

    fn follow(&mut self) {
        self.watcher = Some(Watcher::new(self.folder.roots()));
    }

    fn changed(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let Some(watcher) = &self.watcher else { return std::future::pending().await };
            while self.pending.is_none() {
                tokio::select! {
                    told = watcher.changed() => self.pending = self.grace.told(told, &self.folder),
                    due = self.grace.over() => self.pending = Some(due),
                }
            }
        })
    }

    fn refresh(&mut self, everywhere: bool) -> bool {
        let pending = self.pending.take();
        if everywhere {
            self.grace = Grace::default();
        }
        let changes = if everywhere { Changes::Everything } else { pending.unwrap_or(Changes::Everything) };
        self.folder.read(&changes)
    }

    fn resources(&self) -> &Resources {
        self.folder.resources()
    }

    fn diagnostics(&self) -> Vec<Diagnostic> {
        self.folder.diagnostics()
    }

    fn locate(&self, diagnostics: &mut [Diagnostic]) {
        self.folder.locate(diagnostics);
    }

    fn is_last_good(&self) -> bool {
        self.folder.is_last_good()
    }

    fn to_saved(&self) -> Option<Saved> {
        (!self.folder.is_last_good()).then(|| self.folder.to_saved())
    }
}
