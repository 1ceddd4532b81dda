//! From a change to a new snapshot: read, compile, install, remember.

use crate::{
    saved::Saved,
    source::{Changes, Watcher, folder::Folder},
};
use selvedge_compile::{Compiled, Compiler, Options, snapshot::Snapshot};
use selvedge_model::{Diagnostic, Resources, Severity};
use serde::Serialize;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{Notify, watch};

/// What the process decides about its control plane.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folders and files with resources.
    pub roots: Vec<PathBuf>,
    /// Where the last good state is kept; `None` keeps none.
    pub state: Option<PathBuf>,
    pub options: Options,
}

/// A listener that could not be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub listener: String,
    pub message: String,
}

/// Makes a snapshot effective and tells what could not be.
pub type Install = Box<dyn FnMut(&Snapshot) -> Vec<Problem> + Send>;

/// What is in effect.
#[derive(Debug, Clone, Default)]
pub struct Current {
    /// Counts installed snapshots from 1.
    pub revision: u64,
    pub resources: Resources,
    pub compiled: Arc<Compiled>,
    /// About files and resources, with their places.
    pub diagnostics: Vec<Diagnostic>,
    pub problems: Vec<Problem>,
    /// Something is served that the sources do not (readably) say any more.
    pub last_good: bool,
    /// Seconds since the epoch.
    pub installed: i64,
    /// From the first byte read to the table swapped.
    pub took: Duration,
}

/// The loop. [`Engine::start`] does the first round, [`Engine::run`] all others.
pub struct Engine {
    folder: Folder,
    state: Option<PathBuf>,
    options: Options,
    compiler: Compiler,
    install: Install,
    current: watch::Sender<Arc<Current>>,
    saver: Arc<Saver>,
}

/// Writes the last good state in the background, the newest only.
struct Saver {
    next: Mutex<Option<Saved>>,
    wake: Notify,
}

/// How often the last good state is written at most.
const SAVE_EVERY: Duration = Duration::from_secs(2);

impl Engine {
    /// Reads, compiles and installs for the first time.
    pub fn start(settings: Settings, install: Install) -> Self {
        let mut folder = Folder::new(settings.roots);
        if let Some(state) = &settings.state {
            match Saved::load(state) {
                Ok(Some(saved)) => folder.remember(&saved),
                Ok(None) => {}
                Err(error) => tracing::warn!(state = %state.display(), %error, "the last good state cannot be read and is not used"),
            }
        }
        let mut engine = Self {
            folder,
            state: settings.state,
            options: settings.options,
            compiler: Compiler::default(),
            install,
            current: watch::Sender::default(),
            saver: Arc::new(Saver { next: Mutex::new(None), wake: Notify::new() }),
        };
        engine.folder.read(&Changes::Everything);
        engine.round(Instant::now());
        engine
    }

    /// What is in effect, now and after each change.
    pub fn current(&self) -> watch::Receiver<Arc<Current>> {
        self.current.subscribe()
    }

    /// Follows changes of the files, and looks at once when `reload` is notified (SIGHUP). Never returns.
    pub async fn run(mut self, reload: Arc<Notify>) {
        let watcher = Watcher::new(self.folder.roots());
        if let Some(state) = self.state.clone() {
            tokio::spawn(self.saver.clone().run(state));
        }
        // What changed between the first round and the watch.
        let mut changes = Changes::Everything;
        loop {
            let began = Instant::now();
            if self.folder.read(&changes) {
                self.round(began);
            }
            changes = tokio::select! {
                changes = watcher.changed() => changes,
                () = reload.notified() => Changes::Everything,
            };
        }
    }

    fn round(&mut self, began: Instant) {
        let resources = self.folder.resources().clone();
        let before = self.current.borrow().clone();
        let unchanged = before.revision > 0 && before.resources == resources;
        self.options.now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        let (compiled, problems, revision) = if unchanged && before.problems.is_empty() {
            (before.compiled.clone(), Vec::new(), before.revision)
        } else {
            let compiled = Arc::new(self.compiler.compile(&resources, &self.options));
            let problems = (self.install)(&compiled.snapshot);
            (compiled, problems, before.revision + 1)
        };
        let mut about_resources = compiled.diagnostics.clone();
        self.folder.locate(&mut about_resources);
        let mut diagnostics = self.folder.diagnostics();
        diagnostics.extend(about_resources);
        let current = Current {
            revision,
            resources,
            compiled,
            problems,
            last_good: self.folder.is_last_good(),
            installed: self.options.now,
            took: began.elapsed(),
            diagnostics,
        };
        report(&before, &current);
        if !current.last_good && self.state.is_some() && !unchanged {
            self.saver.put(self.folder.to_saved());
        }
        self.current.send_replace(Arc::new(current));
    }
}

fn report(before: &Current, current: &Current) {
    for diagnostic in current.diagnostics.iter().filter(|d| !before.diagnostics.contains(d)) {
        match diagnostic.severity {
            Severity::Error => tracing::error!("{diagnostic}"),
            Severity::Warning => tracing::warn!("{diagnostic}"),
            Severity::Info => tracing::info!("{diagnostic}"),
        }
    }
    if current.last_good && !before.last_good {
        tracing::error!("SERVING THE LAST GOOD CONFIGURATION: some files are broken or missing (see the errors above, or GET /status of the admin listener)");
    } else if before.last_good && !current.last_good {
        tracing::info!("all files are readable again; serving what they say");
    }
    if current.revision != before.revision {
        tracing::info!(revision = current.revision, resources = current.resources.len(), took = ?current.took, "configuration installed");
    }
}

impl Saver {
    fn put(&self, saved: Saved) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        self.wake.notify_one();
    }

    async fn run(self: Arc<Self>, state: PathBuf) {
        loop {
            let next = self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(saved) = next else {
                self.wake.notified().await;
                continue;
            };
            let folder = state.clone();
            let stored = tokio::task::spawn_blocking(move || saved.store(&folder)).await;
            if let Ok(Err(error)) = stored {
                tracing::warn!(state = %state.display(), %error, "the last good state cannot be saved: a restart with broken files would start without it");
            }
            tokio::time::sleep(SAVE_EVERY).await;
        }
    }
}
