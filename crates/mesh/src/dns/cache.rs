//! What upstream servers said, for as long as they said it holds.

use super::message::Asked;
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Answers kept; at a few hundred bytes each, about a megabyte.
const MAX_ENTRIES: usize = 2048;
/// Longer answers are not kept.
const MAX_RECORDS: usize = 64;
/// However long a TTL: a name that moves is found after this at last.
const MAX_TTL: u32 = 300;
/// The same for names that do not exist, which may begin to.
const MAX_NEGATIVE_TTL: u32 = 30;

#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<HashMap<Key, Entry>>);

/// Name in lower case, type, and the two flags that change answers.
type Key = (Name, RecordType, bool, bool);

#[derive(Debug)]
struct Entry {
    message: Message,
    since: Instant,
    until: Instant,
}

impl Cache {
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// An answer with its TTLs counted down.
    pub fn get(&self, asked: &Asked, now: Instant) -> Option<Message> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key(asked);
        let entry = entries.get(&key)?;
        if entry.until <= now {
            entries.remove(&key);
            return None;
        }
        let age = u32::try_from(now.duration_since(entry.since).as_secs()).unwrap_or(u32::MAX);
        let mut message = entry.message.clone();
        drop(entries);
        let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
        sections.into_iter().flatten().for_each(|record| record.ttl = record.ttl.saturating_sub(age));
        Some(message)
    }

    pub fn put(&self, asked: &Asked, message: &Message, now: Instant) {
        let Some(ttl) = ttl(message).filter(|ttl| *ttl > 0) else { return };
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MAX_ENTRIES {
            entries.retain(|_, entry| entry.until > now);
        }
        if entries.len() >= MAX_ENTRIES {
            // Which one goes matters little: all are asked again within minutes.
            let Some(victim) = entries.keys().next().cloned() else { return };
            entries.remove(&victim);
        }
        let until = now + Duration::from_secs(ttl.into());
        entries.insert(key(asked), Entry { message: message.clone(), since: now, until });
    }
}

fn key(asked: &Asked) -> Key {
    (asked.query.name.to_lowercase(), asked.query.query_type, asked.dnssec_ok, asked.checking_disabled)
}

/// For how many seconds an answer holds; `None`: it is not to be kept (RFC 2308 section 5).
fn ttl(message: &Message) -> Option<u32> {
    let records = message.answers.len() + message.authorities.len() + message.additionals.len();
    if message.metadata.truncation || records > MAX_RECORDS {
        return None;
    }
    let least = |records: &[Record]| records.iter().map(|record| record.ttl).min();
    match message.metadata.response_code {
        ResponseCode::NoError if !message.answers.is_empty() => {
            Some(least(&message.answers)?.min(least(&message.authorities).unwrap_or(MAX_TTL)).min(MAX_TTL))
        }
        ResponseCode::NoError | ResponseCode::NXDomain => {
            message.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum).min(MAX_NEGATIVE_TTL)),
                _ => None,
            })
        }
        _ => None,
    }
}
