//! A store in one file (redb). One process at a time has it open.

use super::store::{Batch, Pending, Store, StoreError};
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

const RECORDS: TableDefinition<&str, &[u8]> = TableDefinition::new("records");

/// How much of the file redb may keep in memory: a CA's records fit many times over.
const CACHE: usize = 4 * 1024 * 1024;

/// A store in a file of mode 0600.
#[derive(Clone)]
pub struct File {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    /// Closed after a failure, for redb refuses all that follows one; opened again by who comes next.
    database: Mutex<Option<Database>>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl File {
    /// Opens the file, or makes it. Its folder is made too.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = open(path)?;
        Ok(Self { shared: Arc::new(Shared { path: path.to_owned(), database: Mutex::new(Some(database)) }) })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        let done = tokio::task::spawn_blocking(move || shared.run(work)).await;
        done.map_err(|error| StoreError::Io { place: self.place(), error: io::Error::other(error.to_string()) })?
    }
}

impl Shared {
    fn run<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let mut held = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match held.take() {
            Some(database) => database,
            None => open(&self.path)?,
        };
        match work(&database) {
            Ok(done) => {
                *held = Some(database);
                Ok(done)
            }
            Err(error) => {
                drop(database);
                Err(failed(&self.path, error))
            }
        }
    }
}

impl Store for File {
    fn read<'a>(&'a self, key: &'a str) -> Pending<'a, Option<Vec<u8>>> {
        let key = key.to_owned();
        Box::pin(self.run(move |database| {
            let Some(table) = table(database)? else { return Ok(None) };
            Ok(table.get(key.as_str())?.map(|v| v.value().to_vec()))
        }))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Pending<'a, Vec<(String, Vec<u8>)>> {
        let prefix = prefix.to_owned();
        Box::pin(self.run(move |database| {
            let Some(table) = table(database)? else { return Ok(Vec::new()) };
            let mut found = Vec::new();
            for entry in table.range(prefix.as_str()..)? {
                let (key, value) = entry?;
                if !key.value().starts_with(&prefix) {
                    break;
                }
                found.push((key.value().to_owned(), value.value().to_vec()));
            }
            Ok(found)
        }))
    }

    fn write(&self, batch: Batch) -> Pending<'_, bool> {
        Box::pin(self.run(move |database| {
            let transaction = database.begin_write()?;
            let mut table = transaction.open_table(RECORDS)?;
            for (key, expected) in &batch.expect {
                let found = table.get(key.as_str())?.map(|v| v.value().to_vec());
                if found != *expected {
                    drop(table);
                    transaction.abort()?;
                    return Ok(false);
                }
            }
            for key in &batch.delete {
                table.remove(key.as_str())?;
            }
            for (key, value) in &batch.put {
                table.insert(key.as_str(), value.as_slice())?;
            }
            drop(table);
            transaction.commit()?;
            Ok(true)
        }))
    }

    fn place(&self) -> String {
        self.shared.path.display().to_string()
    }
}

/// `None` before the first write.
fn table(database: &Database) -> Result<Option<redb::ReadOnlyTable<&'static str, &'static [u8]>>, redb::Error> {
    match database.begin_read()?.open_table(RECORDS) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn open(path: &Path) -> Result<Database, StoreError> {
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| StoreError::io(folder, e))?;
    }
    // Made here, so that nobody else can read it at any time.
    let made = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    drop(made.map_err(|e| StoreError::io(path, e))?);
    // A file that was altered makes redb fail, and in places panic; the check at the start turns that into an error.
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| builder.create(path)));
    match opened {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(DatabaseError::UpgradeRequired(version))) => Err(StoreError::Newer {
            place: path.display().to_string(),
            found: format!("redb {version}"),
            known: super::seal::FORMAT,
        }),
        Ok(Err(error)) => Err(failed(path, error.into())),
        Err(_) => Err(corrupt(path, "it cannot be read as a redb file")),
    }
}

fn corrupt(path: &Path, why: &str) -> StoreError {
    StoreError::Corrupt { place: path.display().to_string(), why: why.to_owned() }
}

fn failed(path: &Path, error: redb::Error) -> StoreError {
    match error {
        redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => corrupt(path, &error.to_string()),
        redb::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => corrupt(path, "it is cut off"),
        redb::Error::Io(error) => StoreError::io(path, error),
        redb::Error::DatabaseAlreadyOpen => StoreError::Locked { place: path.display().to_string() },
        redb::Error::Corrupted(why) => corrupt(path, &why),
        other => corrupt(path, &other.to_string()),
    }
}
