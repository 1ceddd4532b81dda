//! Queries as they are heard, and answers as they are told: sizes, EDNS, truncation.

use super::blank;
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, RecordType},
};

/// What a datagram holds that no network on the way cuts into pieces (DNS flag day 2020).
pub(super) const DATAGRAM: u16 = 1232;
/// What a client takes that does not say (RFC 1035 section 4.2.1).
const PLAIN_DATAGRAM: u16 = 512;
const HEADER: usize = 12;

/// How long an answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limits {
    Datagram,
    Stream,
}

/// A query that is served.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    id: u16,
    pub query: Query,
    recursion_desired: bool,
    pub checking_disabled: bool,
    authentic_data: bool,
    edns: bool,
    pub dnssec_ok: bool,
    /// Bytes.
    max: usize,
}

impl Asked {
    /// Reads one. What is not served has its answer as the error; what must not be answered, none.
    pub fn read(bytes: &[u8], limits: Limits) -> Result<Self, Option<Vec<u8>>> {
        if bytes.len() < HEADER || bytes[2] & 0x80 != 0 {
            // Whoever answers answers may do so for ever.
            return Err(None);
        }
        let id = u16::from_be_bytes([bytes[0], bytes[1]]);
        let op_code = OpCode::from_u8(bytes[2] >> 3 & 0xf);
        let refuse = |code| Err(Message::error_msg(id, op_code, code).to_vec().ok());
        if op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let Ok(message) = Message::from_vec(bytes) else { return refuse(ResponseCode::FormErr) };
        let [query] = message.queries.as_slice() else { return refuse(ResponseCode::FormErr) };
        let edns = message.edns.as_ref();
        let max = match (limits, edns) {
            (Limits::Stream, _) => u16::MAX,
            (Limits::Datagram, Some(edns)) => edns.max_payload().clamp(PLAIN_DATAGRAM, DATAGRAM),
            (Limits::Datagram, None) => PLAIN_DATAGRAM,
        };
        let asked = Self {
            id,
            query: query.clone(),
            recursion_desired: message.metadata.recursion_desired,
            checking_disabled: message.metadata.checking_disabled,
            authentic_data: message.metadata.authentic_data,
            edns: edns.is_some(),
            dnssec_ok: edns.is_some_and(|edns| edns.flags().dnssec_ok),
            max: max.into(),
        };
        let transfer = matches!(query.query_type, RecordType::AXFR | RecordType::IXFR | RecordType::OPT);
        match () {
            () if edns.is_some_and(|edns| edns.version() != 0) => Err(Some(asked.error(ResponseCode::BADVERS))),
            () if query.query_class != DNSClass::IN || transfer => Err(Some(asked.error(ResponseCode::Refused))),
            () => Ok(asked),
        }
    }

    /// The query as it is sent on.
    pub fn forwarded(&self, id: u16) -> Message {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.authentic_data = self.authentic_data;
        message.add_query(self.query.clone());
        let mut edns = Edns::new();
        edns.set_max_payload(DATAGRAM).set_dnssec_ok(self.dnssec_ok);
        message.set_edns(edns);
        message
    }

    /// Whether a message answers what was sent on under this id.
    pub fn is_answered_by(&self, message: &Message, id: u16) -> bool {
        let meta = &message.metadata;
        meta.message_type == MessageType::Response
            && meta.id == id
            && meta.op_code == OpCode::Query
            && matches!(message.queries.as_slice(), [query] if query.name.to_lowercase() == self.query.name.to_lowercase()
                && query.query_type == self.query.query_type && query.query_class == self.query.query_class)
    }

    /// A message as the answer to this query.
    pub fn answer(&self, mut message: Message) -> Vec<u8> {
        let code = message.metadata.response_code;
        message.metadata.id = self.id;
        message.metadata.message_type = MessageType::Response;
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.queries = vec![self.query.clone()];
        message.signature = None;
        message.edns = self.edns.then(|| {
            let mut edns = Edns::new();
            edns.set_max_payload(DATAGRAM).set_dnssec_ok(self.dnssec_ok).set_rcode_high(code.high());
            edns
        });
        if message.edns.is_none() && code.high() != 0 {
            // The upper bits have no place without EDNS, and the lower ones alone mean something else.
            message.metadata.response_code = ResponseCode::ServFail;
        }
        match message.to_vec() {
            Ok(bytes) if bytes.len() <= self.max => bytes,
            Ok(_) => message.truncate().to_vec().unwrap_or_default(),
            Err(_) => self.error(ResponseCode::ServFail),
        }
    }

    pub fn error(&self, code: ResponseCode) -> Vec<u8> {
        let mut message = blank(code);
        message.metadata.id = self.id;
        message.metadata.recursion_desired = self.recursion_desired;
        message.queries = vec![self.query.clone()];
        message.edns = self.edns.then(|| {
            let mut edns = Edns::new();
            edns.set_max_payload(DATAGRAM).set_rcode_high(code.high());
            edns
        });
        // A name that was read can be written.
        message.to_vec().unwrap_or_default()
    }
}
