//! The part of `crates/control/proto/discovery.proto` that a simulated proxy speaks.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

pub const PATH: &str = "/selvedge.discovery.v1.Discovery/Stream";
pub const SIDECAR: i32 = 2;
/// No message is larger.
const MAX: usize = 64 << 20;

#[derive(Clone, PartialEq, Message)]
pub struct ProxyMessage {
    #[prost(oneof = "FromProxy", tags = "1, 2, 4, 5, 7, 8")]
    pub message: Option<FromProxy>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum FromProxy {
    #[prost(message, tag = "1")]
    Hello(Hello),
    #[prost(message, tag = "2")]
    Known(Known),
    #[prost(message, tag = "4")]
    Ack(Ack),
    #[prost(message, tag = "5")]
    Register(Register),
    #[prost(message, tag = "7")]
    Leave(Leave),
    #[prost(message, tag = "8")]
    Alive(Alive),
}

#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(int32, tag = "2")]
    pub role: i32,
    #[prost(string, tag = "3")]
    pub version: String,
    #[prost(string, repeated, tag = "4")]
    pub workloads: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    pub subscriptions: Vec<Subscription>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Subscription {
    #[prost(string, optional, tag = "2")]
    pub host: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Known {
    #[prost(message, repeated, tag = "1")]
    pub resources: Vec<Resource>,
    #[prost(bool, tag = "2")]
    pub last: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub version: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub struct Ack {
    #[prost(string, tag = "1")]
    pub nonce: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Register {
    #[prost(uint64, tag = "1")]
    pub number: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub workload: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub struct Leave {}

#[derive(Clone, PartialEq, Message)]
pub struct Alive {}

#[derive(Clone, PartialEq, Message)]
pub struct ControlMessage {
    #[prost(message, optional, tag = "2")]
    pub update: Option<Update>,
    #[prost(message, optional, tag = "3")]
    pub registered: Option<Registered>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Registered {
    /// Why not; empty when it is.
    #[prost(string, tag = "2")]
    pub refused: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Update {
    #[prost(string, tag = "1")]
    pub nonce: String,
    #[prost(message, repeated, tag = "3")]
    pub upserts: Vec<Upsert>,
    #[prost(string, repeated, tag = "4")]
    pub removals: Vec<String>,
    #[prost(bool, tag = "6")]
    pub last: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Upsert {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub version: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub resource: Bytes,
}

/// As gRPC frames it: not compressed, its length, its bytes.
pub fn frame(message: FromProxy) -> Bytes {
    let message = ProxyMessage { message: Some(message) };
    let mut frame = BytesMut::with_capacity(5 + message.encoded_len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    // A buffer that grows always has room.
    let _ = message.encode(&mut frame);
    frame.freeze()
}

/// Takes one whole message off the front, if it is there.
pub fn take(buffer: &mut BytesMut) -> anyhow::Result<Option<ControlMessage>> {
    let Some(head) = buffer.first_chunk::<5>() else { return Ok(None) };
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    anyhow::ensure!(head[0] == 0 && length <= MAX, "a strange gRPC message");
    if buffer.len() < 5 + length {
        return Ok(None);
    }
    buffer.advance(5);
    Ok(Some(ControlMessage::decode(buffer.split_to(length).freeze())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_when_it_is_whole() {
        let update = Update { nonce: "7".into(), last: true, ..Update::default() };
        let message = ControlMessage { update: Some(update), registered: None };
        let mut bytes = BytesMut::new();
        bytes.put_u8(0);
        bytes.put_u32(message.encoded_len() as u32);
        message.encode(&mut bytes).unwrap();
        let mut part = BytesMut::from(&bytes[..bytes.len() - 1]);
        assert_eq!(take(&mut part).unwrap(), None);
        assert_eq!(take(&mut bytes).unwrap(), Some(message));
        assert!(bytes.is_empty());
        assert!(take(&mut BytesMut::from(&[1, 0, 0, 0, 0][..])).is_err());
    }
}
