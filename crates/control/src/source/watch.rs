//! Telling when files change.

use super::files::is_resource_file;
use notify::{
    Event, EventKind, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind},
};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;

/// Everything is looked at again after this long, whatever was or was not told: for file systems that tell nothing.
pub const RESCAN: Duration = Duration::from_secs(30);

/// Paths remembered one by one; more become a full scan.
const MAX_PATHS: usize = 256;

/// What has changed since it was last asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// These files, and what was below those of them that are gone; nothing else.
    Files(BTreeSet<PathBuf>),
    /// Look everywhere.
    Everything,
}

/// Watches folders for as long as it lives.
pub struct Watcher {
    shared: Arc<Shared>,
    _inner: Option<notify::RecommendedWatcher>,
}

struct Shared {
    pending: Mutex<Option<Changes>>,
    wake: Notify,
    /// Relative folders that are watched, by the absolute path under which their files are told.
    relative: Vec<(PathBuf, PathBuf)>,
}

impl Watcher {
    /// Watches these folders and files. Where the system refuses to (limit of watches, network file system), changes
    /// are found by looking every [`RESCAN`], which is logged.
    pub fn new(roots: &[PathBuf]) -> Self {
        let relative = std::env::current_dir().map_or_else(|_| Vec::new(), |here| relative(&here, roots));
        let shared = Arc::new(Shared { pending: Mutex::new(None), wake: Notify::new(), relative });
        let theirs = shared.clone();
        let inner = notify::recommended_watcher(move |event: notify::Result<Event>| match event {
            Ok(event) => theirs.event(&event),
            Err(_) => theirs.add(Changes::Everything),
        });
        let inner = inner.and_then(|mut watcher| {
            for root in roots {
                let folder = folder(root);
                let watched = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
                watcher.watch(watched, RecursiveMode::Recursive)?;
            }
            Ok(watcher)
        });
        let inner = inner
            .inspect_err(|error| {
                tracing::warn!(%error, "cannot watch for changes; looking every {RESCAN:?} instead, and at once on SIGHUP");
            })
            .ok();
        Self { shared, _inner: inner }
    }

    /// Waits for changes; at the latest after [`RESCAN`].
    pub async fn changed(&self) -> Changes {
        loop {
            let taken = self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(changes) = taken {
                return changes;
            }
            if tokio::time::timeout(RESCAN, self.shared.wake.notified()).await.is_err() {
                return Changes::Everything;
            }
        }
    }
}

impl Shared {
    /// A file counts as changed when whoever wrote it has closed it (or moved it here), so that no half-written file is
    /// read and no debounce is needed.
    fn event(&self, event: &Event) {
        let whole = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
            EventKind::Access(_) | EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)) => return,
            EventKind::Create(CreateKind::File) => {
                // Its writer will close it; only links and hard links are complete at once.
                if event.paths.iter().all(|p| p.symlink_metadata().is_ok_and(|m| m.is_file() && m.len() == 0)) {
                    return;
                }
                false
            }
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => event.paths.iter().any(|p| is_folder(p)),
            _ => true,
        };
        if whole {
            return self.add(Changes::Everything);
        }
        // Of what is gone nobody can tell any more whether it was a folder.
        let told = |p: &&PathBuf| is_resource_file(p) || p.symlink_metadata().is_err();
        let files: BTreeSet<PathBuf> = event.paths.iter().filter(told).map(|p| self.known_as(p)).collect();
        if !files.is_empty() {
            self.add(Changes::Files(files));
        }
    }

    /// The name that a file has below the root it was found in: the system tells absolute paths.
    fn known_as(&self, path: &Path) -> PathBuf {
        let below = |(absolute, folder): &(PathBuf, PathBuf)| Some(folder.join(path.strip_prefix(absolute).ok()?));
        self.relative.iter().find_map(below).unwrap_or_else(|| path.to_owned())
    }

    fn add(&self, changes: Changes) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let all = match (pending.take(), changes) {
            (Some(Changes::Files(mut old)), Changes::Files(new)) => {
                old.extend(new);
                if old.len() > MAX_PATHS { Changes::Everything } else { Changes::Files(old) }
            }
            (None, new) => new,
            _ => Changes::Everything,
        };
        *pending = Some(all);
        drop(pending);
        self.wake.notify_one();
    }
}

/// Whether files may be below a path: it is a folder, or a link, which may lead to one. The temporary file that a writer
/// renames is neither.
fn is_folder(path: &Path) -> bool {
    !is_resource_file(path) && path.symlink_metadata().is_ok_and(|meta| !meta.is_file())
}

/// What is watched for a root: a file by its folder, as editors replace files instead of writing to them.
fn folder(root: &Path) -> &Path {
    if root.is_file() { root.parent().unwrap_or(root) } else { root }
}

fn relative(here: &Path, roots: &[PathBuf]) -> Vec<(PathBuf, PathBuf)> {
    let relative = roots.iter().filter(|root| root.is_relative());
    relative.map(|root| (here.join(folder(root)), folder(root).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn files_of_relative_folders_keep_their_relative_names() {
        let roots = ["routes".into(), "./more".into(), "/etc/all".into()];
        let relative = relative(Path::new("/here"), &roots);
        let shared = Shared { pending: Mutex::new(None), wake: Notify::new(), relative };
        for (told, known) in [
            ("/here/routes/sub/a.yaml", "routes/sub/a.yaml"),
            ("/here/./more/a.yaml", "./more/a.yaml"),
            ("/etc/all/a.yaml", "/etc/all/a.yaml"),
        ] {
            assert_eq!(shared.known_as(Path::new(told)), Path::new(known));
        }
    }

    #[tokio::test]
    async fn a_written_file_is_told_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let watcher = Watcher::new(std::slice::from_ref(&root));
        fs::write(root.join("a.yaml"), "x").unwrap();
        assert_eq!(watcher.changed().await, Changes::Files([root.join("a.yaml")].into()));
        // As careful writers do it: what they write first has another name.
        fs::write(root.join(".a.yaml.tmp"), "y").unwrap();
        fs::rename(root.join(".a.yaml.tmp"), root.join("a.yaml")).unwrap();
        loop {
            match watcher.changed().await {
                Changes::Files(files) if files.contains(&root.join("a.yaml")) => break,
                Changes::Files(_) => {}
                Changes::Everything => panic!("one file has changed"),
            }
        }
        fs::write(root.join("ignored.txt"), "x").unwrap();
        fs::rename(root.join("a.yaml"), root.join("b.yaml")).unwrap();
        let renamed = [root.join("a.yaml"), root.join("b.yaml")];
        let mut told = BTreeSet::new();
        while !renamed.iter().all(|path| told.contains(path)) {
            match watcher.changed().await {
                Changes::Files(files) => told.extend(files),
                Changes::Everything => panic!("two files have changed"),
            }
        }
        assert!(!told.contains(&root.join("ignored.txt")));
    }
}
