//! From a change to a new snapshot: read, compile, install, remember.

use crate::{
    domain::{Domain, Guard},
    saved::Saved,
    source::{FolderSource, Mark, Source},
};
use selvedge_compile::{
    Compiled, Compiler, Options, Status,
    snapshot::{Protocol, Snapshot, TlsMode},
};
use selvedge_model::{Diagnostic, Resources, Severity};
use serde::Serialize;
use std::{
    borrow::Cow,
    collections::BTreeMap,
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
    /// May be gone at another try with the same snapshot: its address is in use, perhaps not for long.
    pub transient: bool,
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
    /// The trust domain of the certificates, as far as it was known: no Mesh of another one is in effect.
    pub domain: Option<String>,
    /// How new the resources are, where the source can tell.
    pub mark: Option<Mark>,
    /// The source has said something; before, nothing is known of what there is.
    pub spoken: bool,
    /// Something is served that the sources do not (readably) say any more.
    pub last_good: bool,
    /// Seconds since the epoch.
    pub installed: i64,
    /// From the first byte read to the table swapped.
    pub took: Duration,
}

impl Current {
    /// The status of resources, with what the system has refused to listeners.
    pub fn status(&self) -> Cow<'_, Status> {
        // What is not transient is about something else than the socket.
        let unopened = self.problems.iter().filter(|problem| problem.transient);
        let unopened: BTreeMap<_, _> = unopened.map(|it| (it.listener.as_str(), it.message.as_str())).collect();
        match unopened.is_empty() {
            true => Cow::Borrowed(&self.compiled.status),
            false => Cow::Owned(self.compiled.status.unopened(&self.compiled.snapshot, &unopened)),
        }
    }
}

/// The loop. [`Engine::start`] does the first round, [`Engine::run`] all others.
pub struct Engine {
    source: Box<dyn Source>,
    state: Option<PathBuf>,
    options: Options,
    compiler: Compiler,
    install: Install,
    guard: Guard,
    current: watch::Sender<Arc<Current>>,
    saver: Arc<Saver>,
    /// Counts looks at the sources.
    looks: watch::Sender<u64>,
}

/// Why a round is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The sources say something new, or may do so.
    Sources,
    /// What could not be served may be served now.
    Retry,
    /// A certificate has begun or ceased to be valid.
    Clock,
    /// The trust domain is known.
    Domain,
}

/// Writes the last good state in the background, the newest only.
struct Saver {
    next: Mutex<Option<Saved>>,
    wake: Notify,
    /// What is to be written must not wait.
    hurry: Notify,
}

/// How often the last good state is written at most.
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// How often listeners that could not be opened are tried again.
const RETRY: Duration = Duration::from_secs(5);

/// How often the validity of certificates is looked at; the clock may be set meanwhile.
const VALIDITY: Duration = Duration::from_secs(3600);

impl Engine {
    /// Reads folders, compiles and installs for the first time.
    pub fn start(settings: Settings, install: Install) -> Self {
        let source = FolderSource::new(settings.roots);
        Self::with(Box::new(source), settings.state, settings.options, install)
    }

    /// As [`Engine::start`], from any source. `state` is where the last good state is kept.
    pub fn with(source: Box<dyn Source>, state: Option<PathBuf>, options: Options, install: Install) -> Self {
        Self::of_domain(source, state, options, install, watch::Sender::default().subscribe())
    }

    /// The same for a mesh. `domain` is of which trust domain the certificates are, once that is known: a Mesh of another one is
    /// then not taken.
    pub fn of_domain(
        mut source: Box<dyn Source>,
        state: Option<PathBuf>,
        options: Options,
        install: Install,
        domain: watch::Receiver<Option<Domain>>,
    ) -> Self {
        let mut guard = Guard::new(domain);
        if let Some(state) = &state {
            match Saved::load(state) {
                Ok(Some(saved)) => {
                    guard.remember(saved.files.values().flatten());
                    source.remember(&saved);
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(state = %state.display(), %error, "the last good state cannot be read and is not used")
                }
            }
        }
        let mut engine = Self {
            source,
            state,
            options,
            compiler: Compiler::default(),
            install,
            guard,
            current: watch::Sender::default(),
            saver: Arc::new(Saver { next: Mutex::new(None), wake: Notify::new(), hurry: Notify::new() }),
            looks: watch::Sender::default(),
        };
        engine.source.refresh(true);
        engine.round(Instant::now(), Cause::Sources);
        engine
    }

    /// What is in effect, now and after each change.
    pub fn current(&self) -> watch::Receiver<Arc<Current>> {
        self.current.subscribe()
    }

    /// Counts looks at the sources: who has asked for one sees when it is done.
    pub fn looks(&self) -> watch::Receiver<u64> {
        self.looks.subscribe()
    }

    /// Follows changes of the source, and looks at once when `reload` is notified (SIGHUP). Never returns.
    pub async fn run(mut self, reload: Arc<Notify>) {
        self.source.follow();
        if let Some(state) = self.state.clone() {
            tokio::spawn(self.saver.clone().run(state));
        }
        // What changed between the first round and the watch.
        let mut next = (Cause::Sources, true);
        loop {
            blocking(|| self.look(next));
            self.looks.send_modify(|looks| *looks += 1);
            let retry = self.current.borrow().problems.iter().any(|p| p.transient);
            let validity = self.validity_changes();
            next = tokio::select! {
                () = self.source.changed() => (Cause::Sources, false),
                () = self.guard.changed() => (Cause::Domain, false),
                () = reload.notified() => (Cause::Sources, true),
                () = tokio::time::sleep(RETRY), if retry => (Cause::Retry, false),
                () = tokio::time::sleep(validity) => (Cause::Clock, false),
            };
        }
    }

    fn look(&mut self, (cause, everywhere): (Cause, bool)) {
        let began = Instant::now();
        let round = match cause {
            // An explicit look is a chance for what could not be served, too.
            Cause::Sources => self.source.refresh(everywhere) || !self.current.borrow().problems.is_empty(),
            Cause::Retry | Cause::Domain => true,
            Cause::Clock => {
                let now = now();
                let before = self.options.now;
                validity(&self.current.borrow().compiled.snapshot).any(|at| before < at && at <= now)
            }
        };
        if round {
            return self.round(began, cause);
        }
        // What is newer there has nothing to do with resources.
        let mark = self.source.mark();
        if self.current.borrow().mark != mark {
            self.current.send_modify(|current| *current = Arc::new(Current { mark, ..Current::clone(current) }));
        }
    }

    /// Until a served certificate begins or ceases to be valid, [`VALIDITY`] at most.
    fn validity_changes(&self) -> Duration {
        let now = now();
        let current = self.current.borrow();
        let next = validity(&current.compiled.snapshot).filter(|at| *at > self.options.now).min();
        next.map_or(VALIDITY, |at| Duration::from_secs(at.saturating_sub(now).max(1).unsigned_abs()).min(VALIDITY))
    }

    fn round(&mut self, began: Instant, cause: Cause) {
        let mut resources = self.source.resources().clone();
        let mut refused = self.guard.apply(&mut resources);
        let before = self.current.borrow().clone();
        let domain = self.guard.name().or_else(|| self.options.trust_domain.clone());
        let mut unchanged = before.revision > 0 && before.resources == resources && self.options.trust_domain == domain;
        self.options.trust_domain = domain;
        let mut revision = before.revision;
        let mut problems = before.problems.clone();
        let mut compiled = before.compiled.clone();
        if !unchanged || cause == Cause::Clock {
            self.options.now = now();
            compiled = Arc::new(self.compiler.compile(&resources, &self.options));
            if self.source.judge(&compiled) {
                resources = self.source.resources().clone();
                refused = self.guard.apply(&mut resources);
                unchanged = before.revision > 0 && before.resources == resources;
                compiled = Arc::new(self.compiler.compile(&resources, &self.options));
            }
        }
        if !unchanged || !problems.is_empty() {
            problems = (self.install)(&compiled.snapshot);
        }
        if !unchanged {
            revision += 1;
        }
        let mut about_resources = if self.source.has_spoken() { compiled.diagnostics.clone() } else { Vec::new() };
        let kept_mesh = !refused.is_empty();
        about_resources.extend(refused);
        self.source.locate(&mut about_resources);
        let mut diagnostics = self.source.diagnostics();
        diagnostics.extend(about_resources);
        let current = Current {
            revision,
            resources,
            compiled,
            problems,
            domain: self.options.trust_domain.clone(),
            mark: self.source.mark(),
            spoken: self.source.has_spoken(),
            last_good: self.source.is_last_good() || kept_mesh,
            installed: if unchanged { before.installed } else { self.options.now },
            took: if unchanged { before.took } else { began.elapsed() },
            diagnostics,
        };
        report(&before, &current);
        if self.state.is_some()
            && !unchanged
            && !kept_mesh
            && let Some(saved) = self.source.to_saved()
        {
            self.saver.put(saved);
        }
        // What is served is no longer what a restart would read: if it were an older state that is saved, what has been closed
        // since would open.
        if current.last_good && current.diagnostics != before.diagnostics {
            self.saver.hurry.notify_one();
        }
        let current = Arc::new(current);
        self.current.send_replace(current.clone());
        self.source.installed(&current);
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
    for problem in current.problems.iter().filter(|p| !before.problems.contains(p)) {
        let again = if problem.transient { "; trying again every 5 s" } else { "" };
        tracing::error!(listener = problem.listener, "{}{again}", problem.message);
    }
    for problem in before.problems.iter().filter(|p| !current.problems.contains(p)) {
        tracing::info!(listener = problem.listener, "no longer a problem: {}", problem.message);
    }
    if current.last_good && !before.last_good {
        tracing::error!(
            "SERVING THE LAST GOOD CONFIGURATION: some resources are broken or missing (see the errors above, or GET /status of the admin listener)"
        );
    } else if before.last_good && !current.last_good {
        tracing::info!("everything is readable again; serving what it says");
    }
    if current.resources.is_empty() && !before.resources.is_empty() {
        tracing::warn!("nothing is configured any more: no resource is left, and every listener closes");
    }
    if current.revision != before.revision {
        tracing::info!(revision = current.revision, resources = current.resources.len(), took = ?current.took, "configuration installed");
    }
}

/// Runs what takes long without holding up the other tasks of a multi-threaded runtime.
fn blocking(work: impl FnOnce()) {
    match tokio::runtime::Handle::current().runtime_flavor() {
        tokio::runtime::RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Seconds since the epoch.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// When certificates of a snapshot begin and cease to be valid: the first second at which it is so.
fn validity(snapshot: &Snapshot) -> impl Iterator<Item = i64> {
    let served = snapshot.listeners.iter().filter_map(|listener| match &listener.protocol {
        Protocol::Tls(hosts) => Some(hosts.values()),
        _ => None,
    });
    let served = served.flatten().filter_map(|listener| match &listener.mode {
        TlsMode::Http { tls, .. } | TlsMode::Tcp { tls, .. } => Some(tls.certificates.iter()),
        TlsMode::Passthrough { .. } => None,
    });
    let ours = snapshot.clusters.iter().filter_map(|cluster| cluster.tls.as_ref()?.client_certificate.as_ref());
    served.flatten().chain(ours).flat_map(|c| [c.not_before, c.not_after.saturating_add(1)])
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
            tokio::select! {
                () = tokio::time::sleep(SAVE_EVERY) => {}
                () = self.hurry.notified() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// An engine over an empty folder whose install goes as `install` says.
    fn engine(folder: &tempfile::TempDir, install: impl FnMut(&Snapshot) -> Vec<Problem> + Send + 'static) -> Engine {
        let roots = vec![folder.path().to_path_buf()];
        Engine::start(Settings { roots, state: None, options: Options::default() }, Box::new(install))
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_tried_again_and_is_no_new_revision() {
        let folder = tempfile::tempdir().unwrap();
        let mut failures = 3;
        let engine = engine(&folder, move |_| {
            failures -= 1;
            let problem = Problem { listener: "tcp://*:80".into(), message: "in use".into(), transient: true };
            if failures > 0 { vec![problem] } else { Vec::new() }
        });
        let mut current = engine.current();
        assert_eq!(current.borrow().problems.len(), 1);
        let began = Instant::now();
        let run = tokio::spawn(engine.run(Arc::default()));
        let now = current.wait_for(|current| current.problems.is_empty()).await.unwrap().clone();
        assert_eq!(now.revision, 1);
        assert!(began.elapsed() < RETRY, "virtual time");
        run.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn what_will_not_pass_waits_for_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let installs = Arc::new(AtomicUsize::new(0));
        let counted = installs.clone();
        let engine = engine(&folder, move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            vec![Problem { listener: "tcp://*:443".into(), message: "bad key".into(), transient: false }]
        });
        let (mut looks, reload) = (engine.looks(), Arc::new(Notify::new()));
        let run = tokio::spawn(engine.run(reload.clone()));
        looks.wait_for(|looks| *looks == 1).await.unwrap();
        let before = installs.load(Ordering::SeqCst);
        // One retry would fit.
        assert!(tokio::time::timeout(RETRY * 2, looks.changed()).await.is_err());
        assert_eq!(installs.load(Ordering::SeqCst), before);
        // Whoever asks for it gets another try.
        looks.mark_unchanged();
        reload.notify_one();
        looks.changed().await.unwrap();
        assert_eq!(installs.load(Ordering::SeqCst), before + 1);
        run.abort();
    }

    /// A control plane that says nothing until it is asked.
    #[derive(Default)]
    struct Late {
        resources: Resources,
        spoken: bool,
    }

    impl Source for Late {
        fn remember(&mut self, _: &Saved) {}

        fn changed(&mut self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
            Box::pin(std::future::pending())
        }

        fn refresh(&mut self, everywhere: bool) -> bool {
            self.spoken |= !everywhere;
            true
        }

        fn resources(&self) -> &Resources {
            &self.resources
        }

        fn has_spoken(&self) -> bool {
            self.spoken
        }

        fn diagnostics(&self) -> Vec<Diagnostic> {
            Vec::new()
        }

        fn is_last_good(&self) -> bool {
            false
        }

        fn to_saved(&self) -> Option<Saved> {
            None
        }
    }

    #[tokio::test]
    async fn nothing_is_missed_before_the_source_has_spoken() {
        let workload = selvedge_compile::LocalWorkload {
            namespace: "shop".to_owned(),
            workload: "web".to_owned(),
            own: None,
            netns: selvedge_compile::snapshot::Netns::default(),
            ports: selvedge_compile::Ports::default(),
        };
        let position = selvedge_compile::Position::Workloads(vec![workload]);
        let options = Options { position, ..Options::default() };
        let mut engine = Engine::with(Box::new(Late::default()), None, options, Box::new(|_| Vec::new()));
        let current = engine.current();
        assert_eq!(current.borrow().diagnostics, []);
        engine.look((Cause::Sources, false));
        let said = current.borrow().diagnostics.clone();
        assert!(said.iter().any(|d| d.to_string().contains("does not exist")), "{said:?}");
    }
}
