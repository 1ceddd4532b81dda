//! What a control plane holds in etcd for as long as it lives: the workloads that joined through it, and, one control
//! plane at a time, the lead. All of it is in one lease: if the process dies, it is gone with it.

use super::client::Client;
use selvedge_model::ResourceKey;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::{Notify, watch};
use tonic::transport::Channel;

/// Who does what only one may do, such as replacing the CA's certificate.
pub trait Leader: Send + Sync {
    /// Whether it is us. It may have ended by the time one acts on it: what is done must be harmless when done twice.
    fn leads(&self) -> watch::Receiver<bool>;
}

/// One control plane has nobody to agree with.
pub struct Alone(watch::Sender<bool>);

impl Default for Alone {
    fn default() -> Self {
        Self(watch::Sender::new(true))
    }
}

impl Leader for Alone {
    fn leads(&self) -> watch::Receiver<bool> {
        self.0.subscribe()
    }
}

/// How long etcd keeps what we hold after it last heard of us.
const LIFE: Duration = Duration::from_secs(6);
/// How often it hears of us.
const KEEP: Duration = Duration::from_millis(1_500);

/// Keeps the lease. Cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    name: String,
    wanted: Mutex<Wanted>,
    wake: Notify,
    leads: watch::Sender<bool>,
}

#[derive(Default)]
struct Wanted {
    /// What must be there.
    joined: BTreeMap<ResourceKey, Vec<u8>>,
    /// What has changed since it was last written.
    changed: BTreeMap<ResourceKey, ()>,
}

impl Leader for Keeper {
    fn leads(&self) -> watch::Receiver<bool> {
        self.shared.leads.subscribe()
    }
}

impl Keeper {
    /// `name` is what others see of the one that leads.
    pub fn new(client: &Client, name: &str) -> Self {
        let shared = Shared {
            client: client.apart(),
            name: name.to_owned(),
            wanted: Mutex::default(),
            wake: Notify::new(),
            leads: watch::Sender::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// A workload has joined, or has left (`None`).
    pub fn joined(&self, key: ResourceKey, json: Option<Vec<u8>>) {
        let mut wanted = self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        match json {
            Some(json) => _ = wanted.joined.insert(key.clone(), json),
            None => _ = wanted.joined.remove(&key),
        }
        wanted.changed.insert(key, ());
        drop(wanted);
        self.shared.wake.notify_one();
    }

    /// Never returns.
    pub async fn run(self) {
        let mut last = String::new();
        loop {
            if let Err(why) = self.hold().await {
                self.lead(false);
                self.shared.client.another();
                if why != last {
                    tracing::warn!("{why}; what this control plane holds in etcd ends unless it answers soon");
                    last = why;
                }
            }
            tokio::time::sleep(KEEP / 3).await;
        }
    }

    /// Holds one lease, until something fails.
    async fn hold(&self) -> Result<(), String> {
        let client = &self.shared.client;
        let channel = client.connect().await?;
        let lease = client.grant(&channel, LIFE).await?;
        {
            let mut wanted = self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            let all: Vec<_> = wanted.joined.keys().cloned().collect();
            wanted.changed.extend(all.into_iter().map(|key| (key, ())));
        }
        let mut keep = tokio::time::interval(KEEP);
        loop {
            self.write(&channel, lease).await?;
            tokio::select! {
                () = self.shared.wake.notified() => continue,
                _ = keep.tick() => {}
            }
            if !client.keep_alive(&channel, lease).await? {
                return Err("the lease in etcd has run out".to_owned());
            }
            let path = format!("{}/leader", client.prefix());
            let leads = client.create(&channel, &path, self.shared.name.clone().into_bytes(), lease).await?
                || client.lease_of(&channel, &path).await? == Some(lease);
            self.lead(leads);
        }
    }

    async fn write(&self, channel: &Channel, lease: i64) -> Result<(), String> {
        let client = &self.shared.client;
        loop {
            let next = {
                let wanted = self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner);
                wanted.changed.keys().next().map(|key| (key.clone(), wanted.joined.get(key).cloned()))
            };
            let Some((key, json)) = next else { return Ok(()) };
            let path = client.joined(&key);
            match &json {
                Some(json) => client.put(channel, &path, json.clone(), lease).await?,
                // Unless it has joined again elsewhere.
                None => _ = client.delete_leased(channel, &path, lease).await?,
            }
            let mut wanted = self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            if wanted.joined.get(&key) == json.as_ref() {
                wanted.changed.remove(&key);
            }
        }
    }

    fn lead(&self, leads: bool) {
        let changed = self.shared.leads.send_if_modified(|now| std::mem::replace(now, leads) != leads);
        if changed {
            tracing::info!(leads, "whether this control plane leads");
        }
    }
}
