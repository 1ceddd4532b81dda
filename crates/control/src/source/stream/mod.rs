//! Resources from a control plane's stream: `machine` decides, `link` does the IO, and `intake` takes changes in,
//! refuses what is bad, and keeps what was good.

pub mod intake;
mod link;
pub mod machine;

pub use link::{Dial, Dialed, Handle, Link, State};

use super::{Mark, Source};
use crate::{Current, saved::Saved};
use intake::Intake;
use machine::{Change, Me, Outcome};
use selvedge_compile::Compiled;
use selvedge_model::{Diagnostic, Resources};
use std::{future::Future, path::PathBuf, pin::Pin, sync::Arc};
use tokio::sync::{mpsc, watch};

/// The one file in the saved state.
const FILE: &str = "stream";

/// See the module.
pub struct StreamSource {
    me: Me,
    dial: Arc<dyn Dial>,
    intake: Intake,
    link: Option<Ends>,
    /// A first update has come.
    spoken: bool,
    pending: Option<Change>,
    /// How new that is what has been taken in.
    mark: Option<Mark>,
    state: watch::Sender<State>,
    handle: Handle,
    inputs: Option<mpsc::Receiver<link::Input>>,
}

struct Ends {
    changes: mpsc::Receiver<Change>,
    outcomes: mpsc::Sender<Outcome>,
}

impl StreamSource {
    pub fn new(me: Me, dial: Arc<dyn Dial>) -> Self {
        let (handle, inputs) = Handle::new();
        Self {
            me,
            dial,
            intake: Intake::default(),
            link: None,
            spoken: false,
            pending: None,
            mark: None,
            state: watch::Sender::default(),
            handle,
            inputs: Some(inputs),
        }
    }

    /// To ask for more, and to register workloads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Whether the stream is there.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }
}

/// Errors of the resources that the control plane is told of; all are in the log and at `/status`.
const MAX_ERRORS: usize = 8;

impl Source for StreamSource {
    fn remember(&mut self, saved: &Saved) {
        let mark = saved.mark.clone();
        let saved = saved.files.get(&PathBuf::from(FILE)).into_iter().flatten();
        self.intake.remember(saved.cloned().collect());
        self.me.hello.source = mark.as_ref().map(Mark::to_wire);
        self.mark = mark;
    }

    fn follow(&mut self) {
        let Some(inputs) = self.inputs.take() else { return };
        let have = self.intake.have();
        // One update is under way at a time.
        let ((to_changes, changes), (outcomes, from_outcomes)) = (mpsc::channel(1), mpsc::channel(4));
        self.link = Some(Ends { changes, outcomes });
        let link = Link::new(self.me.clone(), have, self.dial.clone(), self.state.clone());
        tokio::spawn(link.run(inputs, to_changes, from_outcomes));
    }

    fn changed(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            if self.pending.is_some() {
                return;
            }
            match self.link.as_mut() {
                Some(link) => match link.changes.recv().await {
                    Some(change) => self.pending = Some(change),
                    None => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        })
    }

    fn refresh(&mut self, _everywhere: bool) -> bool {
        let pending = self.pending.take().or_else(|| self.link.as_mut()?.changes.try_recv().ok());
        let Some(change) = pending else { return false };
        self.mark = change.source.as_ref().map(Mark::from_wire);
        self.intake.take_in(change);
        self.spoken = true;
        true
    }

    fn has_spoken(&self) -> bool {
        self.spoken || !self.intake.resources().is_empty()
    }

    fn resources(&self) -> &Resources {
        self.intake.resources()
    }

    fn diagnostics(&self) -> Vec<Diagnostic> {
        self.intake.diagnostics()
    }

    fn is_last_good(&self) -> bool {
        self.intake.is_last_good()
    }

    fn to_saved(&self) -> Option<Saved> {
        // Before the first word there is nothing to keep, and a save would delay that of the first word.
        let files = || [(PathBuf::from(FILE), self.intake.resources().iter().collect())].into();
        self.has_spoken().then(|| Saved { files: files(), mark: self.mark.clone() })
    }

    fn judge(&mut self, compiled: &Compiled) -> bool {
        self.intake.judge(compiled)
    }

    fn installed(&mut self, current: &Current) {
        let mut problems: Vec<String> =
            current.problems.iter().map(|p| format!("{}: {}", p.listener, p.message)).collect();
        // What this proxy alone can see: that its workload is not there, or has no identity here.
        let errors = current.compiled.diagnostics.iter().filter(|d| d.is_error());
        problems.extend(errors.take(MAX_ERRORS).map(ToString::to_string));
        let Some(outcome) = self.intake.installed(problems) else { return };
        if let Some(link) = &self.link
            && link.outcomes.try_send(outcome).is_err()
        {
            tracing::error!("the stream's task has ended: this proxy serves what it has, and hears of no change");
        }
    }
}
