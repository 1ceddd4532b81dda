//! The response of an upstream: its head made ready, and its body, which drives what is left of the exchange.

use super::exchange::{Exchange, protocol};
use crate::{
    Body, Error, Response,
    codec::{SendError, h1::input::BodyReader},
};
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body::{Frame, SizeHint};
use selvedge_wire::http1::{
    ChunkError, Decoded, Framing, ResponseHead, connection_options, persistent, response_framing,
};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

/// Makes the response. A body that has come whole with its head is taken out at once, and the connection goes home.
pub(super) fn response(mut exchange: Exchange, head: ResponseHead) -> Result<Response, SendError> {
    let framing = match response_framing(&exchange.method, head.status, head.version, &head.headers) {
        Ok(framing) => framing,
        Err(error) => {
            let refused = protocol("the framing of the upstream's response is refused").with_source(error);
            return Err(exchange.failed(refused));
        }
    };
    let keep =
        persistent(head.version, connection_options(&head.headers)) && framing != Framing::Close && !exchange.last;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = head.status;
    *response.version_mut() = head.version;
    *response.headers_mut() = head.headers;
    let mut reader = BodyReader::new(framing);
    *response.body_mut() = match framing {
        Framing::Tunnel => return tunnel(exchange, response),
        _ if reader.is_done() => {
            exchange.finish(keep);
            Body::empty()
        }
        _ => match whole(&mut exchange, &mut reader) {
            Ok(Whole::Is(bytes)) => {
                exchange.finish(keep);
                Body::full(bytes)
            }
            Ok(Whole::Begins(bytes)) => {
                Body::stream(ResponseBody { left: reader.left(), first: bytes, state: Some((exchange, reader)), keep })
            }
            Err(error) => return Err(exchange.failed(malformed(error))),
        },
    };
    Ok(response)
}

/// The last chunk without trailers.
const LAST: &[u8] = b"0\r\n\r\n";

enum Whole {
    /// The body.
    Is(Bytes),
    /// Its beginning, perhaps empty.
    Begins(Bytes),
}

/// Takes out what came of the body with the head.
fn whole(exchange: &mut Exchange, reader: &mut BodyReader) -> Result<Whole, ChunkError> {
    if reader.left().is_some_and(|left| left > exchange.input.bytes.len() as u64) {
        return Ok(Whole::Begins(Bytes::new()));
    }
    let buffer = &mut exchange.input.bytes;
    // The last chunk alone, perhaps with trailers, is left to the stream.
    if matches!(reader, BodyReader::Chunked(_)) && buffer.starts_with(b"0") && !buffer.starts_with(LAST) {
        return Ok(Whole::Begins(Bytes::new()));
    }
    let first = match reader.decode(buffer)? {
        Decoded::Data(data) => data,
        Decoded::Incomplete => return Ok(Whole::Begins(Bytes::new())),
        Decoded::Done(_) => return Ok(Whole::Is(Bytes::new())),
    };
    // Something behind the data means that its chunk was taken to its end.
    if !reader.is_done() && buffer.starts_with(b"\r\n") && buffer[2..].starts_with(LAST) {
        reader.decode(buffer)?;
    }
    if reader.is_done() { Ok(Whole::Is(first)) } else { Ok(Whole::Begins(first)) }
}

fn tunnel(exchange: Exchange, mut response: Response) -> Result<Response, SendError> {
    if !exchange.is_sent() {
        return Err(exchange.failed(protocol("the upstream switched protocols before it had the whole request")));
    }
    debug_assert!(response.status() == StatusCode::SWITCHING_PROTOCOLS || exchange.method == Method::CONNECT);
    let mut io = exchange.connection.io;
    if !exchange.input.is_empty() {
        io.unread(exchange.input.bytes.freeze());
    }
    *response.body_mut() = Body::upgraded(io);
    Ok(response)
}

/// A response body that is read from the connection; it also sends what is left of the request.
struct ResponseBody {
    /// `None` when the body has ended.
    state: Option<(Exchange, BodyReader)>,
    /// What came with the head.
    first: Bytes,
    /// What is to come, when it was announced.
    left: Option<u64>,
    /// The upstream would take another request on this connection.
    keep: bool,
}

impl ResponseBody {
    fn poll_decode(&mut self, cx: &mut Context<'_>) -> Poll<Result<Decoded, Error>> {
        let Some((exchange, reader)) = &mut self.state else { return Poll::Ready(Ok(Decoded::Done(None))) };
        exchange.send(cx)?;
        if !self.first.is_empty() {
            return Poll::Ready(Ok(Decoded::Data(std::mem::take(&mut self.first))));
        }
        loop {
            match reader.decode(&mut exchange.input.bytes) {
                Ok(Decoded::Incomplete) => {}
                Ok(decoded) => return Poll::Ready(Ok(decoded)),
                Err(error) => return Poll::Ready(Err(malformed(error))),
            }
            let error = match ready!(exchange.input.poll_rest(&mut exchange.connection.io, cx)) {
                Ok(1..) => continue,
                Ok(0) if matches!(reader, BodyReader::Close) => return Poll::Ready(Ok(Decoded::Done(None))),
                Ok(0) => None,
                Err(error) => Some(error),
            };
            return Poll::Ready(Err(exchange.lost(error, "in the middle of its response body")));
        }
    }

    /// Ends the exchange if the body has ended.
    fn settle(&mut self, decoded: &Result<Decoded, Error>) {
        let done = match (decoded, &self.state) {
            (Ok(Decoded::Data(_)), Some((_, reader))) => self.first.is_empty() && reader.is_done(),
            (Ok(Decoded::Done(_)), _) => true,
            (Err(_), _) => {
                self.state = None;
                return;
            }
            _ => false,
        };
        self.left = self.state.as_ref().and_then(|(_, reader)| reader.left());
        if done && let Some((exchange, _)) = self.state.take() {
            exchange.finish(self.keep);
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let decoded = ready!(self.poll_decode(cx));
        self.settle(&decoded);
        Poll::Ready(match decoded {
            Ok(Decoded::Data(data)) => Some(Ok(Frame::data(data))),
            Ok(Decoded::Done(Some(trailers))) => Some(Ok(Frame::trailers(trailers))),
            Ok(Decoded::Done(None) | Decoded::Incomplete) => None,
            Err(error) => Some(Err(error)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.state.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            Some(left) => SizeHint::with_exact(left + self.first.len() as u64),
            None if self.state.is_none() => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}

fn malformed(error: ChunkError) -> Error {
    protocol("the upstream's chunked response body is malformed").with_source(error)
}
