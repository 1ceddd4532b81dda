//! Tokens that were verified, so that a signature is verified once and not with each request.

use crate::{
    jwt::Proof,
    worker::{WorkerCount, WorkerId},
};
use ahash::AHashMap;
use aws_lc_rs::digest::{Context, SHA256};
use std::sync::{Arc, Mutex, PoisonError};

/// Most tokens that a worker keeps of one generation, of which there are two.
const MAX_TOKENS: usize = 4096;
/// Most bytes of their texts; what is kept of a token takes some times as much.
const MAX_BYTES: usize = 4 << 20;

/// Of a token, and of all that decides about it: when keys change, nothing is known any more.
pub type Key = [u8; 32];

/// The key of a token under a policy with this digest.
pub fn key(policy: &Key, token: &str) -> Key {
    let mut all = Context::new(&SHA256);
    all.update(policy);
    all.update(token.as_bytes());
    let mut out = [0; 32];
    out.copy_from_slice(all.finish().as_ref());
    out
}

/// By worker, so that nobody waits for another's.
pub struct Proofs(Box<[Mutex<Shard>]>);

/// What was asked for lately is in the young generation. When that is full it becomes the old one, and the old one is
/// forgotten: no order need be kept, and what is asked for stays.
#[derive(Default)]
struct Shard {
    young: AHashMap<Key, (Arc<Proof>, usize)>,
    old: AHashMap<Key, (Arc<Proof>, usize)>,
    /// Of the young.
    bytes: usize,
}

impl Proofs {
    pub fn new(workers: WorkerCount) -> Self {
        Self((0..workers.0.max(1)).map(|_| Mutex::default()).collect())
    }

    pub fn get(&self, worker: WorkerId, key: &Key) -> Option<Arc<Proof>> {
        let mut shard = self.of(worker);
        if let Some((proof, _)) = shard.young.get(key) {
            return Some(proof.clone());
        }
        let (proof, bytes) = shard.old.remove(key)?;
        shard.put(*key, proof.clone(), bytes);
        Some(proof)
    }

    pub fn put(&self, worker: WorkerId, key: Key, proof: Arc<Proof>, bytes: usize) {
        self.of(worker).put(key, proof, bytes);
    }

    fn of(&self, worker: WorkerId) -> std::sync::MutexGuard<'_, Shard> {
        self.0[worker.0 % self.0.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn put(&mut self, key: Key, proof: Arc<Proof>, bytes: usize) {
        if self.young.len() >= MAX_TOKENS || self.bytes + bytes > MAX_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        self.bytes += bytes;
        if let Some((_, former)) = self.young.insert(key, (proof, bytes)) {
            self.bytes -= former;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn proof() -> Arc<Proof> {
        let claims = serde_json::Value::Null;
        Arc::new(Proof {
            issuer: String::new(),
            claims,
            provider: 0,
            headers: Vec::new(),
            until: SystemTime::UNIX_EPOCH,
        })
    }

    #[test]
    fn what_is_asked_for_stays_and_the_rest_is_bounded() {
        let proofs = Proofs::new(WorkerCount(1));
        let worker = WorkerId(0);
        let number = |i: usize| key(&[0; 32], &i.to_string());
        proofs.put(worker, number(0), proof(), 10);
        for i in 1..10 * MAX_TOKENS {
            proofs.put(worker, number(i), proof(), 10);
            if i % 1000 == 0 {
                assert!(proofs.get(worker, &number(0)).is_some(), "{i}");
            }
        }
        let shard = proofs.of(worker);
        assert!(shard.young.len() + shard.old.len() <= 2 * MAX_TOKENS);
        drop(shard);
        assert!(proofs.get(worker, &number(1)).is_none());
        for i in 0..2000 {
            proofs.put(worker, number(i), proof(), 16 << 10);
        }
        let shard = proofs.of(worker);
        assert!(shard.bytes <= MAX_BYTES && shard.young.len() + shard.old.len() <= 2 * MAX_BYTES / (16 << 10));
    }

    #[test]
    fn a_token_is_another_under_another_policy() {
        assert_ne!(key(&[0; 32], "a"), key(&[1; 32], "a"));
        assert_ne!(key(&[0; 32], "a"), key(&[0; 32], "b"));
    }
}
