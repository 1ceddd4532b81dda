//! Records in etcd, under `PREFIX/ca/`, which several control planes share. A batch is one transaction, which compares the
//! revision at which each expected record was last changed. An answer that is lost leaves open whether the batch was
//! written: whoever tries again reads first.

use super::store::{Batch, Pending, Store, StoreError};
use crate::{proto::etcd::KeyValue, source::etcd::Client};
use std::sync::{Mutex, PoisonError};
use tonic::transport::Channel;

/// Changes in one batch: what etcd takes in one transaction, unless it is told otherwise.
pub(super) const MAX_BATCH: usize = 128;

/// See the module.
pub struct Etcd {
    client: Client,
    folder: String,
    /// The connection that worked last.
    channel: Mutex<Option<Channel>>,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Etcd({})", self.folder)
    }
}

impl Etcd {
    pub fn new(client: &Client) -> Self {
        Self { folder: format!("{}/ca/", client.prefix()), client: client.apart(), channel: Mutex::default() }
    }

    async fn channel(&self) -> Result<Channel, String> {
        let kept = self.channel.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(channel) = kept {
            return Ok(channel);
        }
        let channel = self.client.connect().await?;
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = Some(channel.clone());
        Ok(channel)
    }

    /// The next call connects anew, to another endpoint if there is one. Of several calls that failed at once only one
    /// says so: with two endpoints, two of them would come back to the same.
    fn drop_channel(&self) {
        if self.channel.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            self.client.another();
        }
    }

    /// What came of a call; after a failure the next one connects anew.
    fn settle<T>(&self, done: Result<T, String>) -> Result<T, StoreError> {
        done.map_err(|why| {
            self.drop_channel();
            StoreError::Unreachable { place: self.place(), why }
        })
    }

    /// Asks a second time when the first endpoint does not answer.
    async fn get(&self, path: &str) -> Result<Option<KeyValue>, StoreError> {
        let once = async || self.client.get(&self.channel().await?, path).await;
        match self.settle(once().await) {
            Ok(found) => Ok(found),
            Err(_) => self.settle(once().await),
        }
    }

    async fn below(&self, path: &str) -> Result<Vec<KeyValue>, StoreError> {
        let once = async || self.client.below(&self.channel().await?, path).await;
        let found = match self.settle(once().await) {
            Ok(found) => found,
            Err(_) => self.settle(once().await)?,
        };
        Ok(found.kvs)
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.folder)
    }

    async fn apply(&self, batch: Batch) -> Result<bool, StoreError> {
        if batch.put.len() + batch.delete.len() > MAX_BATCH {
            let why = format!("etcd takes {MAX_BATCH} changes at once");
            return Err(StoreError::Unreachable { place: self.place(), why });
        }
        let mut unchanged = Vec::with_capacity(batch.expect.len());
        for (key, expected) in batch.expect {
            let path = self.path(&key);
            let found = self.get(&path).await?;
            let revision = found.as_ref().map_or(0, |kv| kv.mod_revision);
            if found.map(|kv| kv.value) != expected {
                return Ok(false);
            }
            unchanged.push((path, revision));
        }
        let put: Vec<_> = batch.put.into_iter().map(|(key, value)| (self.path(&key), value)).collect();
        let delete: Vec<_> = batch.delete.iter().map(|key| self.path(key)).collect();
        let done = match self.channel().await {
            Ok(channel) => self.client.replace(&channel, unchanged, put, delete).await,
            Err(why) => Err(why),
        };
        self.settle(done)
    }
}

impl Store for Etcd {
    fn read<'a>(&'a self, key: &'a str) -> Pending<'a, Option<Vec<u8>>> {
        Box::pin(async move {
            let found = self.get(&self.path(key)).await?;
            Ok(found.map(|kv| kv.value))
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Pending<'a, Vec<(String, Vec<u8>)>> {
        Box::pin(async move {
            let all = self.below(&self.path(prefix)).await?;
            let record = |kv: KeyValue| {
                let key = String::from_utf8(kv.key).ok()?;
                Some((key.strip_prefix(&self.folder)?.to_owned(), kv.value))
            };
            Ok(all.into_iter().filter_map(record).collect())
        })
    }

    fn write(&self, batch: Batch) -> Pending<'_, bool> {
        Box::pin(self.apply(batch))
    }

    fn place(&self) -> String {
        format!("etcd {}", self.folder.trim_end_matches('/'))
    }
}
