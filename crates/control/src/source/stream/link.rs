//! The IO around the machine: connections, channels, timers.

use super::machine::{Action, Change, Event, Machine, Me, Outcome};
use crate::{
    proto::discovery::{ControlMessage, ProxyMessage, discovery_client::DiscoveryClient},
    publish::{node::Millis, scope::Wanted, version::Version},
    transport::told,
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

/// Connecting to a control plane.
pub type Dialed = Pin<Box<dyn Future<Output = Result<Channel, String>> + Send>>;

/// How control planes are reached.
pub trait Dial: Send + Sync + 'static {
    fn dial(&self, url: &str) -> Dialed;
}

/// What the stream is at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    pub connected: bool,
    pub url: String,
    /// Why not.
    pub error: Option<String>,
    /// An update has been taken in since the start.
    pub synced: bool,
}

/// Requests that wait to be taken by the link.
const INPUTS: usize = 1_024;
/// Those who wait for the answer about one thing.
const MAX_WAITERS: usize = 1_024;
/// Bytes of one message: one resource may be large (a ConfigMap of certificates).
const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// Messages that the connection has not yet taken; more wait in the link.
const OUTGOING: usize = 64;
/// A connection must come about in this time.
const CONNECT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) enum Input {
    Want(Wanted, oneshot::Sender<bool>),
    Register(String, Bytes),
    Withdraw(String),
    Leave(oneshot::Sender<()>),
}

/// To ask the control plane for something.
#[derive(Debug, Clone)]
pub struct Handle {
    inputs: mpsc::Sender<Input>,
}

impl Handle {
    pub(super) fn new() -> (Self, mpsc::Receiver<Input>) {
        let (inputs, receiver) = mpsc::channel(INPUTS);
        (Self { inputs }, receiver)
    }

    /// Resolves when what is wanted is in effect (true), or known not to exist, or cannot be asked for (false).
    /// It stays, and is kept up to date.
    pub fn want(&self, wanted: Wanted) -> impl Future<Output = bool> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        let sent = self.inputs.try_send(Input::Want(wanted, answer)).is_ok();
        async move { sent && answered.await.unwrap_or(false) }
    }

    /// The workload takes traffic from now on. `key` is `Workload namespace/name`.
    pub async fn register(&self, key: String, workload: Bytes) {
        let _ = self.inputs.send(Input::Register(key, workload)).await;
    }

    /// It does not any more.
    pub async fn withdraw(&self, key: String) {
        let _ = self.inputs.send(Input::Withdraw(key)).await;
    }

    /// This process ends: what it registered is withdrawn at once. Resolves when that has been sent.
    pub async fn leave(&self) {
        let (done, sent) = oneshot::channel();
        if self.inputs.send(Input::Leave(done)).await.is_ok() {
            let _ = sent.await;
        }
    }
}

/// Runs the stream.
pub struct Link {
    machine: Machine,
    dial: Arc<dyn Dial>,
    began: Instant,
    state: watch::Sender<State>,
    connecting: Option<Connecting>,
    outgoing: Option<mpsc::Sender<ProxyMessage>>,
    incoming: Option<Streaming<ControlMessage>>,
    outbox: VecDeque<ProxyMessage>,
    waiters: BTreeMap<Wanted, Vec<oneshot::Sender<bool>>>,
    leaving: Option<oneshot::Sender<()>>,
}

type Connecting = Pin<Box<dyn Future<Output = Result<Open, String>> + Send>>;

struct Open {
    outgoing: mpsc::Sender<ProxyMessage>,
    incoming: Streaming<ControlMessage>,
}

impl Link {
    pub fn new(me: Me, have: BTreeMap<String, Version>, dial: Arc<dyn Dial>, state: watch::Sender<State>) -> Self {
        Self {
            machine: Machine::new(0, me, have),
            dial,
            began: Instant::now(),
            state,
            connecting: None,
            outgoing: None,
            incoming: None,
            outbox: VecDeque::new(),
            waiters: BTreeMap::new(),
            leaving: None,
        }
    }

    fn now(&self) -> Millis {
        Millis::try_from(self.began.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    pub(super) async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        changes: mpsc::Sender<Change>,
        mut outcomes: mpsc::Receiver<Outcome>,
    ) {
        loop {
            let wakes = self.began + Duration::from_millis(self.machine.wakes(self.now()));
            let event = tokio::select! {
                input = inputs.recv() => match input {
                    Some(input) => self.input(input),
                    None => return,
                },
                outcome = outcomes.recv() => match outcome {
                    Some(outcome) => {
                        self.state.send_if_modified(|state| !std::mem::replace(&mut state.synced, true));
                        Some(Event::Applied(outcome))
                    }
                    None => return,
                },
                result = poll(&mut self.connecting) => {
                    self.connecting = None;
                    Some(self.dialed(result))
                }
                message = receive(&mut self.incoming) => Some(match message {
                    Ok(Some(message)) => Event::Message(message),
                    Ok(None) => self.lost("the control plane has ended the stream"),
                    Err(status) => self.lost(&told(&status)),
                }),
                () = send(self.outgoing.as_ref(), &mut self.outbox) => None,
                () = tokio::time::sleep_until(wakes) => Some(Event::Tick),
            };
            if let Some(event) = event {
                let now = self.now();
                for action in self.machine.step(now, event) {
                    if !self.act(action, &changes).await {
                        return;
                    }
                }
            }
            if self.outbox.is_empty()
                && let Some(left) = self.leaving.take()
            {
                let _ = left.send(());
            }
        }
    }

    fn input(&mut self, input: Input) -> Option<Event> {
        Some(match input {
            Input::Want(wanted, answer) => {
                let waiters = self.waiters.entry(wanted.clone()).or_default();
                waiters.retain(|waiter| !waiter.is_closed());
                if waiters.len() < MAX_WAITERS {
                    waiters.push(answer);
                }
                Event::Want(wanted)
            }
            Input::Register(key, json) => Event::Register { key, json },
            Input::Withdraw(key) => Event::Withdraw { key },
            Input::Leave(done) => {
                self.leaving = Some(done);
                Event::Leave
            }
        })
    }

    /// False when nobody takes changes any more.
    async fn act(&mut self, action: Action, changes: &mpsc::Sender<Change>) -> bool {
        match action {
            Action::Connect(url) => self.connecting = Some(open(self.dial.dial(&url))),
            Action::Disconnect => {
                (self.outgoing, self.incoming) = (None, None);
                self.outbox.clear();
            }
            Action::Send(message) => self.outbox.push_back(message),
            // There is room: the control plane sends the next after the answer to this one.
            Action::Apply(change) => return changes.send(change).await.is_ok(),
            Action::Answered(wanted, known) => {
                for waiter in self.waiters.remove(&wanted).into_iter().flatten() {
                    let _ = waiter.send(known);
                }
            }
            Action::Refused(why) => tracing::error!("{why}"),
        }
        true
    }

    fn dialed(&mut self, result: Result<Open, String>) -> Event {
        match result {
            Ok(open) => {
                (self.outgoing, self.incoming) = (Some(open.outgoing), Some(open.incoming));
                let url = self.machine.url().to_owned();
                tracing::info!(control = url, "connected to the control plane");
                self.state.send_modify(|state| {
                    (state.connected, state.url, state.error) = (true, url, None);
                });
                Event::Connected
            }
            Err(error) => self.lost(&error),
        }
    }

    fn lost(&mut self, why: &str) -> Event {
        let url = self.machine.url().to_owned();
        let same = |state: &State| !state.connected && state.error.as_deref() == Some(why);
        if !same(&self.state.borrow()) {
            tracing::warn!(
                control = url,
                "no stream from the control plane: {why}; serving on with what is known, and trying again"
            );
        }
        self.state.send_modify(|state| {
            (state.connected, state.url, state.error) = (false, url, Some(why.to_owned()));
        });
        Event::Lost(why.to_owned())
    }
}

/// Connects and begins the stream.
fn open(dialed: Dialed) -> Connecting {
    Box::pin(async move {
        let opened = async {
            let channel = dialed.await?;
            let (outgoing, messages) = mpsc::channel(OUTGOING);
            let mut client = DiscoveryClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
            let response = client.stream(ReceiverStream::new(messages)).await.map_err(|status| told(&status))?;
            Ok(Open { outgoing, incoming: response.into_inner() })
        };
        match tokio::time::timeout(CONNECT, opened).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {} s", CONNECT.as_secs())),
        }
    })
}

async fn poll(connecting: &mut Option<Connecting>) -> Result<Open, String> {
    match connecting {
        Some(connecting) => connecting.await,
        None => std::future::pending().await,
    }
}

async fn receive(incoming: &mut Option<Streaming<ControlMessage>>) -> Result<Option<ControlMessage>, Status> {
    match incoming {
        Some(incoming) => incoming.message().await,
        None => std::future::pending().await,
    }
}

/// Sends the first of the outbox. Giving up the future loses nothing.
async fn send(outgoing: Option<&mpsc::Sender<ProxyMessage>>, outbox: &mut VecDeque<ProxyMessage>) {
    match outgoing {
        Some(outgoing) if !outbox.is_empty() => match outgoing.reserve().await {
            Ok(permit) => {
                if let Some(message) = outbox.pop_front() {
                    permit.send(message);
                }
            }
            // The end of the stream is seen by whoever receives.
            Err(_) => std::future::pending().await,
        },
        _ => std::future::pending().await,
    }
}
