//! Where the CA keeps its records: bytes by key, written all or nothing. What is written is sealed before ([`super::seal`]),
//! so any place will do.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::{Mutex, PoisonError},
};

/// The result of a store, once it is there.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Records by key. Keys are short ASCII texts with `/` between their parts.
pub trait Store: Send + Sync + std::fmt::Debug {
    fn read<'a>(&'a self, key: &'a str) -> Pending<'a, Option<Vec<u8>>>;

    /// All records whose keys begin with `prefix`, in order of their keys.
    fn list<'a>(&'a self, prefix: &'a str) -> Pending<'a, Vec<(String, Vec<u8>)>>;

    /// Writes all of the batch, durably, or nothing. `false`: what it expects is not so, and nothing was written.
    fn write(&self, batch: Batch) -> Pending<'_, bool>;

    /// For messages: where this is.
    fn place(&self) -> String;
}

/// Changes that are made together, if the store holds what is expected.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The record a key must have before; `None`: it must have none.
    pub expect: Vec<(String, Option<Vec<u8>>)>,
    pub put: Vec<(String, Vec<u8>)>,
    pub delete: Vec<String>,
}

/// Why a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "no space is left for the CA's store {place}: nothing was changed and what was stored is intact; make room on that \
         file system"
    )]
    Full { place: String },
    #[error(
        "the CA's store {place} is damaged: {why}; restore it from a backup (together with its key), or move it away to \
         begin a new CA (every node must join again)"
    )]
    Corrupt { place: String, why: String },
    #[error(
        "the CA's store {place} is in use by another process: stop the other control plane, name another store, or ask the \
         running one by its admin address"
    )]
    Locked { place: String },
    #[error("the CA's store {place}: {error}")]
    Io { place: String, error: io::Error },
    #[error(
        "the CA's store {place} was sealed with another key than {key}: name the key file or passphrase it was made with \
         (control planes that share a store share its key)"
    )]
    WrongKey { place: String, key: String },
    #[error(
        "the CA's store {place} exists, but its key {key} does not: restore the key file from a backup, or copy it from \
         the control plane that shares the store; without it the store cannot be read by anyone, and moving the store away begins a new CA (every node must join again)"
    )]
    KeyMissing { place: String, key: String },
    #[error("the CA's key {key}: {why}")]
    Key { key: String, why: String },
    #[error("the CA's store {place} has format {found}, and this version reads up to {known}: use a newer version")]
    Newer { place: String, found: String, known: u32 },
    #[error("the CA's store {place} was changed by another control plane at the same time: try again")]
    Conflict { place: String },
    #[error("the CA's store {place} is not reachable: {why}")]
    Unreachable { place: String, why: String },
}

impl StoreError {
    pub(super) fn io(place: &std::path::Path, error: io::Error) -> Self {
        let place = place.display().to_string();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { place },
            _ => Self::Io { place, error },
        }
    }
}

/// What seals a store.
#[derive(Clone)]
pub enum Key {
    /// A file of mode 0600 with the key, made at the first start.
    File(PathBuf),
    /// A passphrase of at least 14 bytes.
    Passphrase(String),
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Passphrase(_) => f.write_str("Passphrase"),
        }
    }
}

/// Records in memory only: for tests, and for a mesh that ends with its process.
#[derive(Debug, Default)]
pub struct Memory {
    records: Mutex<BTreeMap<String, Vec<u8>>>,
    full: std::sync::atomic::AtomicBool,
}

impl Memory {
    pub fn new() -> Self {
        Self::default()
    }

    /// Every write fails from now on, as on a full disk; or no longer.
    pub fn set_full(&self, full: bool) {
        self.full.store(full, std::sync::atomic::Ordering::Relaxed);
    }

    fn apply(&self, batch: Batch) -> Result<bool, StoreError> {
        if self.full.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(StoreError::Full { place: self.place() });
        }
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if batch.expect.iter().any(|(key, value)| records.get(key) != value.as_ref()) {
            return Ok(false);
        }
        for key in batch.delete {
            records.remove(&key);
        }
        records.extend(batch.put);
        Ok(true)
    }
}

impl Store for Memory {
    fn read<'a>(&'a self, key: &'a str) -> Pending<'a, Option<Vec<u8>>> {
        let found = self.records.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
        Box::pin(async { Ok(found) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Pending<'a, Vec<(String, Vec<u8>)>> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let found = records.iter().filter(|(k, _)| k.starts_with(prefix)).map(|(k, v)| (k.clone(), v.clone()));
        let found = found.collect();
        Box::pin(async { Ok(found) })
    }

    fn write(&self, batch: Batch) -> Pending<'_, bool> {
        let done = self.apply(batch);
        Box::pin(async { done })
    }

    fn place(&self) -> String {
        "in memory".to_owned()
    }
}
