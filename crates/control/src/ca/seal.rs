//! Encryption at rest. A data key seals every record with AES-256-GCM and the record's key as associated data; the data
//! key itself is sealed by a key-encryption key from a file or a passphrase, so that changing either costs one record.

use super::{
    authority::random,
    error::Error,
    store::{Batch, Key, Store, StoreError},
};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    pbkdf2,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs,
    io::{self, Write},
    num::NonZeroU32,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

/// The version of what is written to stores.
pub const FORMAT: u32 = 1;

const FORMAT_KEY: &str = "format";
const SEAL_KEY: &str = "seal";
const DATA_KEY: &str = "data-key";

/// OWASP's recommendation of 2023 for PBKDF2 with HMAC-SHA256.
const ROUNDS: u32 = 600_000;

/// What aws-lc takes as a secret at least, in bytes.
const SHORTEST_PASSPHRASE: usize = 14;

/// A store whose records only the holder of its key can read.
#[derive(Clone)]
pub struct Sealed {
    store: Arc<dyn Store>,
    key: Arc<RandomizedNonceKey>,
}

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealed").field("store", &self.store).finish_non_exhaustive()
    }
}

/// How the data key is sealed. Stored in the clear.
#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    kind: Kind,
    salt: String,
    rounds: u32,
    sealed: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    KeyFile,
    Passphrase,
}

impl Sealed {
    /// Opens what `store` holds with `key`; a store without anything is sealed with it.
    pub async fn open(store: Arc<dyn Store>, key: &Key) -> Result<Self, Error> {
        let format = store.read(FORMAT_KEY).await?;
        if let Some(format) = format {
            let found = String::from_utf8_lossy(&format).into_owned();
            if found.parse::<u32>().is_ok_and(|f| f <= FORMAT) {
                return Self::existing(store, key).await;
            }
            return Err(StoreError::Newer { place: store.place(), found, known: FORMAT }.into());
        }
        let salt = random::<16>()?;
        let kek = key_encryption_key(key, &salt, ROUNDS, true)?;
        let data_key = random::<32>()?;
        let seal = Seal {
            kind: kind(key),
            salt: BASE64_STANDARD.encode(salt),
            rounds: ROUNDS,
            sealed: BASE64_STANDARD.encode(encrypt(&kek, DATA_KEY, &data_key)?),
        };
        let batch = Batch {
            expect: vec![(FORMAT_KEY.to_owned(), None)],
            put: vec![
                (FORMAT_KEY.to_owned(), FORMAT.to_string().into_bytes()),
                (SEAL_KEY.to_owned(), serde_json::to_vec(&seal).map_err(Error::crypto)?),
            ],
            delete: Vec::new(),
        };
        if !store.write(batch).await? {
            // Another control plane has made the store meanwhile.
            return Self::existing(store, key).await;
        }
        let key = cipher(&data_key)?;
        Ok(Self { store, key: Arc::new(key) })
    }

    async fn existing(store: Arc<dyn Store>, key: &Key) -> Result<Self, Error> {
        let place = store.place();
        let corrupt = |why: &str| StoreError::Corrupt { place: place.clone(), why: why.to_owned() };
        let seal = store.read(SEAL_KEY).await?.ok_or_else(|| corrupt("its seal is missing"))?;
        let seal: Seal = serde_json::from_slice(&seal).map_err(|_| corrupt("its seal cannot be read"))?;
        if seal.kind != kind(key) {
            let why = match seal.kind {
                Kind::KeyFile => "the store is sealed with a key file: name that file instead of a passphrase",
                Kind::Passphrase => "the store is sealed with a passphrase: give it instead of a key file",
            };
            return Err(StoreError::Key { key: name(key), why: why.to_owned() }.into());
        }
        let decoded = BASE64_STANDARD.decode(&seal.salt).ok().zip(BASE64_STANDARD.decode(&seal.sealed).ok());
        let (salt, sealed) = decoded.ok_or_else(|| corrupt("its seal is not base64"))?;
        if seal.rounds == 0 || seal.rounds > 100 * ROUNDS {
            return Err(corrupt("its seal has an impossible number of rounds").into());
        }
        let kek = match key_encryption_key(key, &salt, seal.rounds, false) {
            Err(StoreError::KeyMissing { key, .. }) => return Err(StoreError::KeyMissing { place, key }.into()),
            other => other?,
        };
        let wrong = || StoreError::WrongKey { place: place.clone(), key: name(key) };
        let data_key = decrypt(&kek, DATA_KEY, &sealed).ok_or_else(wrong)?;
        let key = cipher(&data_key)?;
        Ok(Self { store, key: Arc::new(key) })
    }

    pub fn place(&self) -> String {
        self.store.place()
    }

    /// One record, and its sealed form for [`Batch::expect`].
    pub async fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<(T, Vec<u8>)>, Error> {
        let Some(sealed) = self.store.read(key).await? else { return Ok(None) };
        Ok(Some((self.unseal(key, &sealed)?, sealed)))
    }

    /// As [`Self::read`], unless the record is still as it was.
    pub async fn read_other<T: DeserializeOwned>(
        &self,
        key: &str,
        before: Option<&Vec<u8>>,
    ) -> Result<Option<(T, Vec<u8>)>, Error> {
        match self.store.read(key).await? {
            Some(sealed) if Some(&sealed) != before => Ok(Some((self.unseal(key, &sealed)?, sealed))),
            _ => Ok(None),
        }
    }

    /// All records below `prefix`.
    pub async fn list<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, T)>, Error> {
        let all = self.store.list(prefix).await?;
        all.into_iter().map(|(key, sealed)| Ok((key.clone(), self.unseal(&key, &sealed)?))).collect()
    }

    /// The sealed form of a record.
    pub fn seal<T: Serialize>(&self, key: &str, record: &T) -> Result<Vec<u8>, Error> {
        encrypt(&self.key, key, &serde_json::to_vec(record).map_err(Error::crypto)?)
    }

    /// As [`Store::write`], of records sealed before.
    pub async fn write(&self, batch: Batch) -> Result<bool, Error> {
        Ok(self.store.write(batch).await?)
    }

    fn unseal<T: DeserializeOwned>(&self, key: &str, sealed: &[u8]) -> Result<T, Error> {
        let damaged = |why: &str| Error::Damaged { what: format!("record {key}"), why: why.to_owned() };
        let plain = decrypt(&self.key, key, sealed).ok_or_else(|| damaged("its seal is broken"))?;
        serde_json::from_slice(&plain).map_err(|e| damaged(&e.to_string()))
    }
}

fn kind(key: &Key) -> Kind {
    match key {
        Key::File(_) => Kind::KeyFile,
        Key::Passphrase(_) => Kind::Passphrase,
    }
}

fn name(key: &Key) -> String {
    match key {
        Key::File(path) => path.display().to_string(),
        Key::Passphrase(_) => "the passphrase".to_owned(),
    }
}

fn key_encryption_key(key: &Key, salt: &[u8], rounds: u32, make: bool) -> Result<RandomizedNonceKey, StoreError> {
    let failed = |why: String| StoreError::Key { key: name(key), why };
    let mut bytes = [0; 32];
    match key {
        Key::File(path) => bytes = key_file(path, make)?,
        Key::Passphrase(text) => {
            if text.len() < SHORTEST_PASSPHRASE {
                return Err(failed(format!("it is shorter than {SHORTEST_PASSPHRASE} bytes: use a longer one")));
            }
            let rounds = NonZeroU32::new(rounds).unwrap_or(NonZeroU32::MIN);
            pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, text.as_bytes(), &mut bytes);
        }
    }
    cipher(&bytes).map_err(|e| failed(e.to_string()))
}

/// The key in a file, which is made if there is none and `make` allows it.
fn key_file(path: &Path, make: bool) -> Result<[u8; 32], StoreError> {
    let shown = path.display().to_string();
    let failed = |why: String| StoreError::Key { key: shown.clone(), why };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && make => return new_key_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StoreError::KeyMissing { place: String::new(), key: shown });
        }
        Err(error) => return Err(failed(error.to_string())),
    };
    let mode = fs::metadata(path).map_err(|e| failed(e.to_string()))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(failed(format!("others may read it (mode {mode:o}): chmod 600 {shown}")));
    }
    let bytes = BASE64_STANDARD.decode(text.trim()).ok().and_then(|b| b.try_into().ok());
    bytes.ok_or_else(|| failed("it does not hold 32 bytes in base64: restore it from a backup".to_owned()))
}

fn new_key_file(path: &Path) -> Result<[u8; 32], StoreError> {
    let failed = |error: io::Error| StoreError::io(path, error);
    let bytes = random::<32>().map_err(|e| failed(io::Error::other(e.to_string())))?;
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    // Never half a key: written beside, then moved into place.
    let beside = path.with_extension("new");
    let _ = fs::remove_file(&beside);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(failed)?;
    file.write_all(format!("{}\n", BASE64_STANDARD.encode(bytes)).as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&beside, path).map_err(failed)?;
    Ok(bytes)
}

fn cipher(bytes: &[u8]) -> Result<RandomizedNonceKey, Error> {
    RandomizedNonceKey::new(&AES_256_GCM, bytes)
        .map_err(|_| Error::Crypto("the data key has a wrong length".to_owned()))
}

/// The nonce, then the sealed bytes and their tag.
fn encrypt(key: &RandomizedNonceKey, name: &str, plain: &[u8]) -> Result<Vec<u8>, Error> {
    let mut sealed = plain.to_vec();
    let nonce = key.seal_in_place_append_tag(Aad::from(associated(name)), &mut sealed).map_err(Error::crypto)?;
    let mut out = nonce.as_ref().to_vec();
    out.append(&mut sealed);
    Ok(out)
}

fn decrypt(key: &RandomizedNonceKey, name: &str, sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut plain = sealed.to_vec();
    let length = key.open_in_place(nonce, Aad::from(associated(name)), &mut plain).ok()?.len();
    plain.truncate(length);
    Some(plain)
}

/// A record moved to another key does not open.
fn associated(name: &str) -> Vec<u8> {
    format!("selvedge/{FORMAT}/{name}").into_bytes()
}
