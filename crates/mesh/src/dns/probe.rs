//! What a server makes of bytes, without its sockets: for fuzzing.

use super::{
    cache::Cache,
    message::{Asked, Limits},
    zone::{self, Known},
};
use hickory_proto::op::Message;
use selvedge_compile::snapshot::DnsNames;
use tokio::time::Instant;

/// The answer to a query by a server that can ask nobody else; `None` for what must not be answered.
pub fn heard(names: &DnsNames, query: &[u8], stream: bool) -> Option<Vec<u8>> {
    let limits = if stream { Limits::Stream } else { Limits::Datagram };
    match Asked::read(query, limits) {
        Ok(asked) => Some(match zone::find(names, &asked.query) {
            Known::Answer(message) => asked.answer(*message),
            Known::Nothing => asked.error(zone::unknown(names, &asked.query)),
        }),
        Err(answer) => answer,
    }
}

/// What an application that has asked `query` gets when an upstream server says `told` to it: at once, and again from the
/// cache if it is kept there.
pub fn relayed(query: &[u8], told: &[u8]) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let asked = Asked::read(query, Limits::Datagram).ok()?;
    let message = Message::from_vec(told).ok()?;
    if !asked.is_answered_by(&message, message.metadata.id) {
        return None;
    }
    let (cache, now) = (Cache::default(), Instant::now());
    cache.put(&asked, &message, now);
    let again = cache.get(&asked, now).map(|kept| asked.answer(kept));
    Some((asked.answer(message), again))
}
