//! Join tokens: what a node shows once to get its first certificate.
//!
//! A token also tells the node whom to trust: the trust domain and the SHA-256 of its root. So the node knows the control
//! plane before it sends the token, and nobody between can take it. Only a hash of the secret is stored.

use super::{
    authority::random,
    error::Error,
    seal::Sealed,
    store::{Batch, StoreError},
    time::seconds,
};
use aws_lc_rs::{constant_time, digest};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use selvedge_wire::spiffe::{SpiffeId, is_trust_domain};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

/// How many tokens there may be at once, used up and expired ones of the last day included.
pub const MAX_TOKENS: usize = 10_000;

/// The longest that a token may be good for.
pub const MAX_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// The longest text that is looked at.
const MAX_TEXT: usize = 1024;

const PREFIX: &str = "svj1_";

/// How long a token that is over is remembered, to tell its holder why it does not work.
const REMEMBERED: u64 = 24 * 3600;

/// How often a write is tried again when another control plane was quicker.
const TRIES: usize = 5;

/// What a token says to the node that has it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: [u8; 8],
    secret: [u8; 24],
    /// SHA-256 of the root certificate (DER) that the control plane's own certificate leads to.
    pub root: [u8; 32],
    pub trust_domain: String,
}

/// Why nobody may join with a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "this is not a join token: copy the whole line that `selvedge token create` printed (it begins with svj1_)"
    )]
    Malformed,
    #[error("the join token is damaged: a character is missing or wrong; copy it again")]
    Damaged,
    #[error(
        "the join token is of trust domain {token}, this control plane of {domain}: connect to the control plane that made \
         the token, or make one here"
    )]
    OtherDomain { token: String, domain: String },
    #[error("the join token is not known here: it was deleted or made by another control plane; make a new one")]
    Unknown,
    #[error(
        "the join token expired {ago} s ago: make a new one (`selvedge token create`, with a longer --ttl if needed)"
    )]
    Expired { ago: u64 },
    #[error(
        "the join token was used already: make a new one for each node (or allow more with --uses). If you did not use it, \
         somebody else did: revoke {id}"
    )]
    Used { id: String },
    #[error("the join token is for {allowed}, not for {asked}")]
    Identity { allowed: String, asked: String },
}

/// What to make a token for.
#[derive(Debug, Clone)]
pub struct Order {
    pub id: SpiffeId,
    pub life: Duration,
    /// How many nodes may join with it.
    pub uses: u32,
}

/// A token as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    /// SHA-256 of the secret, base64.
    hash: String,
    identity: String,
    created: u64,
    expires: u64,
    uses: u32,
    /// SHA-256 of the keys it was used for, base64. The same key again is the same node, which lost the answer.
    used_by: Vec<String>,
}

/// A token, for people; its secret is not known any more.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    pub id: String,
    pub identity: String,
    /// Seconds since 1970, both.
    pub created: u64,
    pub expires: u64,
    pub uses: u32,
    pub used: usize,
}

/// The tokens of a CA.
#[derive(Debug, Clone)]
pub(super) struct Tokens {
    store: Sealed,
}

impl Tokens {
    pub(super) fn new(store: Sealed) -> Self {
        Self { store }
    }

    /// A new token; what is returned is its only copy.
    pub(super) async fn create(&self, order: &Order, root: [u8; 32], now: SystemTime) -> Result<Token, Error> {
        let all = self.purge(now).await?;
        if all >= MAX_TOKENS {
            return Err(Error::Revocation(format!("there are {MAX_TOKENS} join tokens: wait until some have expired")));
        }
        let domain = order.id.trust_domain().to_owned();
        let token = Token { id: random()?, secret: random()?, root, trust_domain: domain };
        let now = seconds(now);
        let record = Record {
            hash: hash(&token.secret),
            identity: order.id.to_string(),
            created: now,
            expires: now + order.life.min(MAX_LIFE).as_secs(),
            uses: order.uses.max(1),
            used_by: Vec::new(),
        };
        let key = key(&token.id);
        let sealed = self.store.seal(&key, &record)?;
        let batch = Batch { expect: vec![(key.clone(), None)], put: vec![(key, sealed)], delete: Vec::new() };
        match self.store.write(batch).await? {
            true => Ok(token),
            false => Err(StoreError::Conflict { place: self.store.place() }.into()),
        }
    }

    /// Takes a token for the holder of `public_key` (its hash is kept). Returns whom it is for.
    pub(super) async fn redeem(
        &self,
        token: &Token,
        asked: Option<&SpiffeId>,
        public_key: &[u8],
        now: SystemTime,
    ) -> Result<SpiffeId, Error> {
        let (name, user) = (key(&token.id), hash(public_key));
        for _ in 0..TRIES {
            let (mut record, before) = self.store.read::<Record>(&name).await?.ok_or(Refused::Unknown)?;
            let id = record.check(token, asked, &user, now)?;
            if record.used_by.contains(&user) {
                return Ok(id);
            }
            record.used_by.push(user.clone());
            let sealed = self.store.seal(&name, &record)?;
            let batch = Batch {
                expect: vec![(name.clone(), Some(before))],
                put: vec![(name.clone(), sealed)],
                delete: Vec::new(),
            };
            if self.store.write(batch).await? {
                return Ok(id);
            }
        }
        Err(StoreError::Conflict { place: self.store.place() }.into())
    }

    /// Whom a token is for, without using it.
    pub(super) async fn look(
        &self,
        token: &Token,
        asked: Option<&SpiffeId>,
        now: SystemTime,
    ) -> Result<SpiffeId, Error> {
        let (record, _) = self.store.read::<Record>(&key(&token.id)).await?.ok_or(Refused::Unknown)?;
        let last = record.used_by.last().cloned().unwrap_or_default();
        Ok(record.check(token, asked, &last, now)?)
    }

    pub(super) async fn list(&self) -> Result<Vec<Listed>, Error> {
        let all = self.store.list::<Record>(FOLDER).await?;
        let listed = all.into_iter().map(|(key, record)| Listed {
            id: key[FOLDER.len()..].to_owned(),
            identity: record.identity,
            created: record.created,
            expires: record.expires,
            uses: record.uses,
            used: record.used_by.len(),
        });
        Ok(listed.collect())
    }

    /// Whether there was one.
    pub(super) async fn delete(&self, id: &str) -> Result<bool, Error> {
        let key = format!("{FOLDER}{id}");
        let found = self.store.read::<Record>(&key).await?.is_some();
        if found {
            self.store.write(Batch { delete: vec![key], ..Batch::default() }).await?;
        }
        Ok(found)
    }

    /// Forgets tokens that ended long ago; returns how many are left.
    pub(super) async fn purge(&self, now: SystemTime) -> Result<usize, Error> {
        let all = self.store.list::<Record>(FOLDER).await?;
        let total = all.len();
        let old = all.into_iter().filter(|(_, r)| r.expires + REMEMBERED < seconds(now));
        let delete: Vec<String> = old.map(|(key, _)| key).collect();
        let left = total - delete.len();
        for some in delete.chunks(super::etcd::MAX_BATCH) {
            self.store.write(Batch { delete: some.to_vec(), ..Batch::default() }).await?;
        }
        Ok(left)
    }
}

const FOLDER: &str = "token/";

fn key(id: &[u8; 8]) -> String {
    let id: String = id.iter().map(|b| format!("{b:02x}")).collect();
    format!("{FOLDER}{id}")
}

fn hash(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(digest::digest(&digest::SHA256, bytes))
}

impl Record {
    fn check(
        &self,
        token: &Token,
        asked: Option<&SpiffeId>,
        user: &String,
        now: SystemTime,
    ) -> Result<SpiffeId, Refused> {
        let hash = hash(&token.secret);
        constant_time::verify_slices_are_equal(hash.as_bytes(), self.hash.as_bytes()).map_err(|_| Refused::Unknown)?;
        let now = seconds(now);
        if now >= self.expires {
            return Err(Refused::Expired { ago: now - self.expires });
        }
        let id: SpiffeId = self.identity.parse().map_err(|_| Refused::Unknown)?;
        if let Some(asked) = asked
            && *asked != id
        {
            return Err(Refused::Identity { allowed: self.identity.clone(), asked: asked.to_string() });
        }
        let used = usize::try_from(self.uses).is_ok_and(|uses| self.used_by.len() >= uses);
        if used && !self.used_by.contains(user) {
            return Err(Refused::Used { id: self.identity.clone() });
        }
        Ok(id)
    }
}

impl FromStr for Token {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let text = text.trim();
        if text.len() > MAX_TEXT {
            return Err(Refused::Malformed);
        }
        let text = text.strip_prefix(PREFIX).ok_or(Refused::Malformed)?;
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| Refused::Damaged)?;
        let (payload, check) = bytes.split_last_chunk::<4>().ok_or(Refused::Damaged)?;
        if checksum(payload) != *check {
            return Err(Refused::Damaged);
        }
        let (id, rest) = payload.split_first_chunk().ok_or(Refused::Damaged)?;
        let (secret, rest) = rest.split_first_chunk().ok_or(Refused::Damaged)?;
        let (root, rest) = rest.split_first_chunk().ok_or(Refused::Damaged)?;
        let trust_domain = std::str::from_utf8(rest).map_err(|_| Refused::Damaged)?;
        if !is_trust_domain(trust_domain) {
            return Err(Refused::Damaged);
        }
        Ok(Self { id: *id, secret: *secret, root: *root, trust_domain: trust_domain.to_owned() })
    }
}

impl Token {
    /// The text for the node. Whoever reads it can join: it is not in `Display`, so that it gets into no log by chance.
    pub fn reveal(&self) -> String {
        let mut bytes = Vec::with_capacity(68 + self.trust_domain.len());
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(&self.root);
        bytes.extend_from_slice(self.trust_domain.as_bytes());
        let check = checksum(&bytes);
        bytes.extend_from_slice(&check);
        format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes))
    }

    /// What it is called in lists; no secret.
    pub fn id(&self) -> String {
        key(&self.id)[FOLDER.len()..].to_owned()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({} of {})", self.id(), self.trust_domain)
    }
}

/// Against typing errors.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let hash = digest::digest(&digest::SHA256, bytes);
    let mut out = [0; 4];
    out.copy_from_slice(&hash.as_ref()[..4]);
    out
}
