//! The gRPC service around the hub.

use super::{
    hub::{Heard, Hub, NodeId, Output},
    node::{Group, Millis},
    status::{self, Condition, NodeStatus},
};
use crate::{
    Current,
    proto::discovery::{
        ControlMessage, Pace, ProxyMessage, Registered, Update, Upsert, Welcome,
        control_message::Message,
        discovery_server::{Discovery, DiscoveryServer},
        proxy_message::Message as Say,
    },
    source::Mark,
    transport::PeerInfo,
};
use futures_util::{Stream, StreamExt, stream};
use selvedge_model::{ResourceKey, Resources};
use selvedge_wire::spiffe::SpiffeId;
use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Messages for one proxy that the network has not yet taken. An update counts as one, and there is one at a time.
const MAILBOX: usize = 64;
/// Bytes of resources in one message, unless one resource is larger by itself.
const CHUNK: usize = 256 * 1024;
/// Bytes of one message of a proxy.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// Publishes the resources of a control plane to proxies. Cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    began: Instant,
    state: Mutex<State>,
    /// Something has an earlier deadline than before.
    wake: Notify,
}

struct State {
    hub: Hub,
    mail: HashMap<NodeId, Mailbox>,
    next: NodeId,
    resources: Resources,
    share: Option<Share>,
    look: Option<Look>,
    /// When the source was last asked to look.
    looked: Millis,
}

/// Is told of workloads that join (with their JSON) and leave.
pub type Share = Box<dyn Fn(ResourceKey, Option<Vec<u8>>) + Send>;

/// Asks the source to look at everything again.
pub type Look = Box<dyn Fn() + Send>;

/// How often it is asked at most, while proxies wait.
const LOOK: Millis = 1_000;

enum Mail {
    Output(Output),
    /// Milliseconds.
    Pace(Millis),
}

struct Mailbox {
    outputs: mpsc::Sender<Mail>,
    /// Ends the stream.
    end: Arc<Notify>,
}

impl Publisher {
    /// `name` is how proxies' logs call this control plane.
    pub fn new(name: &str) -> Self {
        let state = State {
            hub: Hub::new(0),
            mail: HashMap::new(),
            next: 0,
            resources: Resources::default(),
            share: None,
            look: None,
            looked: 0,
        };
        let shared =
            Shared { name: name.to_owned(), began: Instant::now(), state: Mutex::new(state), wake: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    /// The service, to be mounted on a server whose connections have a [`PeerInfo`].
    pub fn service(&self) -> DiscoveryServer<Service> {
        DiscoveryServer::new(Service { shared: self.shared.clone() }).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Workloads that join here are to be known to other control planes.
    pub fn share(&self, share: Share) {
        self.shared.lock().share = Some(share);
    }

    /// While proxies have seen something newer than what is known here, the source is to look.
    pub fn look(&self, look: Look) {
        self.shared.lock().look = Some(look);
    }

    /// Publishes what is in effect, and each change of it. Ends with the engine.
    pub async fn follow(self, mut current: watch::Receiver<Arc<Current>>) {
        loop {
            let now = current.borrow_and_update().clone();
            self.publish_at(&now.resources, now.mark.clone());
            if current.changed().await.is_err() {
                return;
            }
        }
    }

    /// Publishes these resources instead of those before.
    pub fn publish(&self, resources: &Resources) {
        self.publish_at(resources, None);
    }

    /// As [`Publisher::publish`], with how new they are.
    pub fn publish_at(&self, resources: &Resources, mark: Option<Mark>) {
        let now = self.shared.now();
        let mut state = self.shared.lock();
        let delta = state.resources.delta(resources);
        let changes = delta
            .into_iter()
            .map(|(key, _)| {
                let new = resources.get(&key);
                (key, new)
            })
            .collect();
        state.resources = resources.clone();
        state.hub.resources_at(now, changes, mark);
        state.deliver();
    }

    /// Does what time asks for. Never returns.
    pub async fn run(self) {
        loop {
            let now = self.shared.now();
            let wakes = {
                let mut state = self.shared.lock();
                state.hub.tick(now);
                state.deliver();
                state.ask(now);
                state.hub.wakes(now)
            };
            let at = self.shared.began + Duration::from_millis(wakes.max(now + 5));
            tokio::select! {
                () = tokio::time::sleep_until(at) => {}
                () = self.shared.wake.notified() => {}
            }
        }
    }

    /// Proxies that have seen something newer than what is known here: they are told nothing until it is.
    pub fn behind(&self) -> usize {
        self.shared.lock().hub.behind()
    }

    /// All proxies that are connected, by id.
    pub fn nodes(&self) -> Vec<NodeStatus> {
        status::connected(&self.shared.lock().hub, self.shared.now())
    }

    /// As [`Publisher::nodes`], and those that were connected not long ago.
    pub fn all_nodes(&self) -> Vec<NodeStatus> {
        let (now, state) = (self.shared.now(), self.shared.lock());
        let mut nodes = status::connected(&state.hub, now);
        nodes.extend(status::gone(&state.hub, now));
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        nodes
    }

    /// How many proxies there are of each role in each state.
    pub fn count(&self) -> BTreeMap<(&'static str, Condition), u64> {
        let (now, state) = (self.shared.now(), self.shared.lock());
        status::count(&state.hub, now)
    }
}

impl Shared {
    fn now(&self) -> Millis {
        Millis::try_from(self.began.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connected(&self, node: NodeId, proven: Option<Option<SpiffeId>>) -> Arc<Heard> {
        let now = self.now();
        let mut state = self.lock();
        let heard = state.hub.connected(now, node, proven);
        state.deliver();
        heard
    }

    /// Lets the hub do something, and delivers what came out.
    fn with(&self, work: impl FnOnce(&mut Hub, Millis)) {
        let now = self.now();
        let mut state = self.lock();
        work(&mut state.hub, now);
        state.deliver();
    }
}

impl State {
    fn ask(&mut self, now: Millis) {
        if now >= self.looked + LOOK
            && self.hub.behind() > 0
            && let Some(look) = &self.look
        {
            self.looked = now;
            look();
        }
    }

    fn deliver(&mut self) {
        let joined = self.hub.take_joined();
        if let Some(share) = &self.share {
            joined.into_iter().for_each(|(key, json)| share(key, json));
        }
        for (node, output) in self.hub.take_output() {
            let last = matches!(output, Output::Close(_));
            let Some(mail) = self.mail.get(&node) else { continue };
            // Whoever lets so many wait does not read: the end of its mailbox ends the stream.
            if mail.outputs.try_send(Mail::Output(output)).is_err() || last {
                mail.end.notify_one();
                self.mail.remove(&node);
            }
        }
        for (node, pace) in self.hub.take_paces() {
            if let Some(mail) = self.mail.get(&node) {
                // Whoever does not read is cut by what follows.
                let _ = mail.outputs.try_send(Mail::Pace(pace));
            }
        }
    }
}

/// See [`Publisher::service`].
pub struct Service {
    shared: Arc<Shared>,
}

/// Tells the hub when a stream is gone, however it ends.
struct Present {
    shared: Arc<Shared>,
    node: NodeId,
}

impl Drop for Present {
    fn drop(&mut self) {
        self.shared.lock().mail.remove(&self.node);
        self.shared.with(|hub, now| hub.gone(now, self.node));
        self.shared.wake.notify_one();
    }
}

#[tonic::async_trait]
impl Discovery for Service {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<ControlMessage, Status>> + Send>>;

    async fn stream(&self, request: Request<Streaming<ProxyMessage>>) -> Result<Response<Self::StreamStream>, Status> {
        let peer = request.extensions().get::<PeerInfo>().cloned().unwrap_or_default();
        // Whoever comes to join has no certificate yet; it must not take the place of a proxy.
        if peer.proves && peer.peer.is_none() {
            return Err(Status::unauthenticated("the discovery stream needs a client certificate: join first"));
        }
        let shared = self.shared.clone();
        let (mail, outputs) = mpsc::channel(MAILBOX);
        let end = Arc::new(Notify::new());
        let node = {
            let mut state = shared.lock();
            state.next += 1;
            let node = state.next;
            state.mail.insert(node, Mailbox { outputs: mail, end: end.clone() });
            node
        };
        let present = Present { shared: shared.clone(), node };
        let proven = peer.proves.then(|| peer.identity());
        let heard = shared.connected(node, proven);
        tokio::spawn(read(present, heard, request.into_inner(), end, peer));
        let name: Arc<str> = self.shared.name.as_str().into();
        let messages = ReceiverStream::new(outputs).flat_map(move |mail| stream::iter(messages(mail, &name)));
        Ok(Response::new(Box::pin(messages)))
    }
}

/// Passes what a proxy says on, until either side ends the stream.
async fn read(
    present: Present,
    heard: Arc<Heard>,
    mut incoming: Streaming<ProxyMessage>,
    end: Arc<Notify>,
    peer: PeerInfo,
) {
    let (mut refused, mut ended) = (std::pin::pin!(peer.until_refused()), std::pin::pin!(end.notified()));
    loop {
        tokio::select! {
            message = incoming.message() => match message {
                // With thousands of proxies nearly all that comes: it waits for nobody, and nobody waits for it.
                Ok(Some(ProxyMessage { message: Some(Say::Alive(_)) })) if heard.again(present.shared.now()) => {}
                Ok(Some(message)) => present.shared.with(|hub, now| hub.message(now, present.node, message)),
                Ok(None) | Err(_) => return,
            },
            () = &mut ended => return,
            why = &mut refused => {
                tracing::warn!("the certificate of a proxy is no longer accepted, its stream is cut: {why}");
                return;
            }
        }
    }
}

/// The messages that an output is sent as; made one by one, as the network takes them.
fn messages(mail: Mail, name: &Arc<str>) -> Box<dyn Iterator<Item = Result<ControlMessage, Status>> + Send> {
    let one = |message| Box::new(std::iter::once(Ok(ControlMessage { message: Some(message) })));
    let output = match mail {
        Mail::Output(output) => output,
        Mail::Pace(pace) => {
            return one(Message::Pace(Pace { alive_millis: u32::try_from(pace).unwrap_or(u32::MAX) }));
        }
    };
    match output {
        Output::Welcome { identity } => {
            let (control, version) = (name.to_string(), env!("CARGO_PKG_VERSION").to_owned());
            one(Message::Welcome(Welcome { control, version, identity }))
        }
        Output::Registered { number, refused } => one(Message::Registered(Registered { number, refused })),
        Output::Close(why) => Box::new(std::iter::once(Err(Status::failed_precondition(why)))),
        Output::Group(group) => Box::new(Chunks { group, next: 0, done: false }),
    }
}

/// A group, cut into messages.
struct Chunks {
    group: Group,
    next: usize,
    done: bool,
}

impl Iterator for Chunks {
    type Item = Result<ControlMessage, Status>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let mut update = Update {
            nonce: self.group.nonce.clone(),
            system_version: self.group.version.to_bytes(),
            ..Update::default()
        };
        let mut bytes = 0;
        while let Some(entry) = self.group.upserts.get(self.next).filter(|_| bytes < CHUNK) {
            bytes += entry.json.len();
            let (key, version) = (entry.key.to_string(), entry.version.to_bytes());
            update.upserts.push(Upsert { key, version, resource: entry.json.clone() });
            self.next += 1;
        }
        while bytes < CHUNK
            && let Some(key) = self.group.removals.pop()
        {
            let key = key.to_string();
            bytes += key.len();
            update.removals.push(key);
        }
        if self.next == self.group.upserts.len() && self.group.removals.is_empty() {
            update.answers = std::mem::take(&mut self.group.answers);
            update.last = true;
            update.source = self.group.mark.as_ref().map(Mark::to_wire);
            self.done = true;
        }
        Some(Ok(ControlMessage { message: Some(Message::Update(update)) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::codec::Codec;

    #[tokio::test]
    async fn who_has_no_certificate_takes_no_place() {
        let publisher = Publisher::new("control");
        let service = Service { shared: publisher.shared.clone() };
        let call = |peer: PeerInfo| {
            let decoder = tonic_prost::ProstCodec::<ControlMessage, ProxyMessage>::default().decoder();
            let mut request = Request::new(Streaming::new_empty(decoder, String::new()));
            request.extensions_mut().insert(peer);
            service.stream(request)
        };
        let mut nobody = PeerInfo::default();
        nobody.proves = true;
        let refused = call(nobody).await.err().map(|status| status.code());
        assert_eq!(refused, Some(tonic::Code::Unauthenticated));
        assert_eq!(publisher.shared.lock().hub.members().count(), 0);
        assert!(call(PeerInfo::default()).await.is_ok(), "where nobody proves anything");
    }
}
