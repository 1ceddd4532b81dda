//! Response compression by negotiation (RFC 9110 12.5.3): gzip, brotli, zstd.

use crate::{Body, Error, Request, Response, error::Kind};
use async_compression::tokio::bufread::{BrotliEncoder, GzipEncoder, ZstdEncoder};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{
        ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
        ETAG, VARY,
    },
};
use http_body::{Body as HttpBody, Frame};
use selvedge_compile::snapshot::{Coding, Compression};
use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};

pub(super) struct Decision<'r> {
    policy: &'r Compression,
    coding: Option<Coding>,
}

/// Chooses the coding that the client likes best; among equals the policy's order decides.
pub(super) fn decide<'r>(policy: &'r Compression, request: &Request) -> Decision<'r> {
    let coding = if request.method() == Method::HEAD { None } else { negotiate(policy, request.headers()) };
    Decision { policy, coding }
}

fn negotiate(policy: &Compression, headers: &HeaderMap) -> Option<Coding> {
    let mut best: Option<(u16, Coding)> = None;
    for &coding in &policy.algorithms {
        let q = quality(headers, name(coding));
        if q > 0 && best.is_none_or(|(b, _)| q > b) {
            best = Some((q, coding));
        }
    }
    best.map(|(_, coding)| coding)
}

/// Quality in thousandths that Accept-Encoding gives a coding; 0 when it is not acceptable.
fn quality(headers: &HeaderMap, coding: &str) -> u16 {
    let (mut named, mut star) = (None, None);
    for value in headers.get_all(ACCEPT_ENCODING) {
        for item in value.to_str().unwrap_or("").split(',') {
            let mut parts = item.split(';').map(str::trim);
            let token = parts.next().unwrap_or("");
            let q = parts.find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")));
            let q = q.map_or(1000, |q| (q.parse::<f32>().unwrap_or(0.0).clamp(0.0, 1.0) * 1000.0) as u16);
            if token.eq_ignore_ascii_case(coding) || (coding == "gzip" && token.eq_ignore_ascii_case("x-gzip")) {
                named = Some(q);
            } else if token == "*" {
                star = Some(q);
            }
        }
    }
    named.or(star).unwrap_or(0)
}

fn name(coding: Coding) -> &'static str {
    match coding {
        Coding::Gzip => "gzip",
        Coding::Brotli => "br",
        Coding::Zstd => "zstd",
    }
}

impl Decision<'_> {
    pub(super) fn on_response(self, response: Response) -> Response {
        if !self.varies(&response) {
            return response;
        }
        let whole = self.is_whole(&response);
        let (mut head, body) = response.into_parts();
        vary(&mut head.headers);
        let Some(coding) = self.coding.filter(|_| whole) else { return Response::from_parts(head, body) };
        head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(name(coding)));
        head.headers.remove(CONTENT_LENGTH);
        head.headers.remove(ACCEPT_RANGES);
        weaken_etag(&mut head.headers);
        Response::from_parts(head, Body::stream(Compressed::new(coding, body)))
    }

    /// Whether the answer to another `Accept-Encoding` may be another. It is so for HEAD, for 304 and for a part too, though
    /// they are not compressed: caches must hear the same of them as of the whole (RFC 9110 sections 9.3.2 and 15.4.5).
    fn varies(&self, response: &Response) -> bool {
        let headers = response.headers();
        let text = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or("");
        if response.status() == StatusCode::NO_CONTENT
            || response.status().is_informational()
            || headers.contains_key(CONTENT_ENCODING)
            || text(CACHE_CONTROL).contains("no-transform")
        {
            return false;
        }
        let announced = || text(CONTENT_LENGTH).parse().ok();
        let length = if self.is_whole(response) { response.body().size_hint().exact() } else { announced() };
        let partial = headers.contains_key(CONTENT_RANGE);
        if !partial && length.is_some_and(|n| n < self.policy.min_bytes) {
            return false;
        }
        let media = text(CONTENT_TYPE).split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        if media.is_empty() && response.status() == StatusCode::NOT_MODIFIED {
            return true;
        }
        // Each event must reach the client at once, and gRPC has a compression of its own.
        let streaming = media == "text/event-stream" || media.starts_with("application/grpc");
        !streaming
            && self.policy.content_types.iter().any(|want| match want.strip_suffix('*') {
                Some(prefix) => media.starts_with(prefix),
                None => *want == media,
            })
    }

    /// Whether there is a body, and all of it.
    fn is_whole(&self, response: &Response) -> bool {
        response.status() != StatusCode::NOT_MODIFIED
            && !response.headers().contains_key(CONTENT_RANGE)
            && !response.body().is_end_stream()
    }
}

/// Says that the answer depends on `Accept-Encoding`, if that is not said already.
fn vary(headers: &mut HeaderMap) {
    let said = |value: &HeaderValue| {
        value
            .as_bytes()
            .split(|&b| b == b',')
            .map(<[u8]>::trim_ascii)
            .any(|name| name == b"*" || name.eq_ignore_ascii_case(b"accept-encoding"))
    };
    if !headers.get_all(VARY).iter().any(said) {
        headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

/// Bytes of another coding are another representation (RFC 9110 8.8.3.3).
fn weaken_etag(headers: &mut HeaderMap) {
    let weak =
        headers.get(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/")).map(|tag| [b"W/", tag.as_bytes()].concat());
    if let Some(Ok(value)) = weak.map(|bytes| HeaderValue::from_bytes(&bytes)) {
        headers.insert(ETAG, value);
    }
}

/// A body passed through an encoder. Output is handed on as it comes; trailers follow the last byte.
struct Compressed {
    encoder: Encoder,
    side: Arc<Mutex<Side>>,
    buffer: BytesMut,
    finished: bool,
}

enum Encoder {
    Gzip(Pin<Box<GzipEncoder<Source>>>),
    Brotli(Pin<Box<BrotliEncoder<Source>>>),
    Zstd(Pin<Box<ZstdEncoder<Source>>>),
}

/// What the reading side saw that is not data.
#[derive(Default)]
struct Side {
    trailers: Option<HeaderMap>,
    error: Option<Error>,
}

/// Output is produced in pieces of at most this size.
const PIECE: usize = 8 * 1024;

/// What compression can refer back to, as a power of two: 64 KiB for zstd, and 32 KiB, as gzip has it, for brotli. All else
/// that they keep grows with it. The default windows (2 MiB, 4 MiB) would make a few hundred slow readers of large
/// responses exhaust the memory (`test_compression_is_small`).
const ZSTD_WINDOW: u32 = 16;
const BROTLI_WINDOW: i32 = 15;

impl Compressed {
    fn new(coding: Coding, body: Body) -> Self {
        use async_compression::{Level, brotli, zstd::CParameter};
        let side = Arc::new(Mutex::new(Side::default()));
        let source = Source { body: Box::pin(body), chunk: Bytes::new(), side: side.clone(), done: false };
        let encoder = match coding {
            Coding::Gzip => Encoder::Gzip(Box::pin(GzipEncoder::with_quality(source, Level::Precise(5)))),
            Coding::Brotli => {
                // From 4 on it would keep the commands of 64 KiB blocks, of which it needs a megabyte more; the default 11
                // costs a hundred times as much time besides.
                let params = brotli::EncoderParams::default().quality(Level::Precise(3)).window_size(BROTLI_WINDOW);
                Encoder::Brotli(Box::pin(BrotliEncoder::with_params(source, params)))
            }
            Coding::Zstd => {
                let params = [CParameter::window_log(ZSTD_WINDOW), CParameter::hash_log(15), CParameter::chain_log(15)];
                let encoder = ZstdEncoder::with_quality_and_params(source, Level::Precise(3), &params);
                Encoder::Zstd(Box::pin(encoder))
            }
        };
        Self { encoder, side, buffer: BytesMut::new(), finished: false }
    }
}

impl HttpBody for Compressed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if this.finished {
            let trailers = this.side.lock().ok().and_then(|mut s| s.trailers.take());
            return Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))));
        }
        this.buffer.resize(PIECE, 0);
        let mut buf = ReadBuf::new(&mut this.buffer);
        let read = match &mut this.encoder {
            Encoder::Gzip(e) => e.as_mut().poll_read(cx, &mut buf),
            Encoder::Brotli(e) => e.as_mut().poll_read(cx, &mut buf),
            Encoder::Zstd(e) => e.as_mut().poll_read(cx, &mut buf),
        };
        let n = buf.filled().len();
        match ready!(read) {
            Ok(()) if n == 0 => {
                this.finished = true;
                self.poll_frame(cx)
            }
            Ok(()) => Poll::Ready(Some(Ok(Frame::data(this.buffer.split_to(n).freeze())))),
            Err(error) => {
                this.finished = true;
                let original = this.side.lock().ok().and_then(|mut s| s.error.take());
                Poll::Ready(Some(Err(original.unwrap_or_else(|| {
                    Error::new(Kind::Internal, crate::error::Side::Us, "compressing the response failed")
                        .with_source(error)
                }))))
            }
        }
    }
}

/// The uncompressed body as the encoders want to read it.
struct Source {
    body: Pin<Box<Body>>,
    chunk: Bytes,
    side: Arc<Mutex<Side>>,
    done: bool,
}

impl AsyncBufRead for Source {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        while this.chunk.is_empty() && !this.done {
            match ready!(this.body.as_mut().poll_frame(cx)) {
                None => this.done = true,
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.chunk = data,
                    Err(frame) => {
                        if let (Ok(trailers), Ok(mut side)) = (frame.into_trailers(), this.side.lock()) {
                            side.trailers = Some(trailers);
                        }
                        this.done = true;
                    }
                },
                Some(Err(error)) => {
                    this.done = true;
                    if let Ok(mut side) = this.side.lock() {
                        side.error = Some(error);
                    }
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
            }
        }
        Poll::Ready(Ok(&this.chunk))
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let _ = self.get_mut().chunk.split_to(amount);
    }
}

impl AsyncRead for Source {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let chunk = ready!(self.as_mut().poll_fill_buf(cx))?;
        let n = chunk.len().min(buf.remaining());
        buf.put_slice(&chunk[..n]);
        self.consume(n);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZstdDecoder};
    use http_body_util::BodyExt;
    use tokio::io::AsyncReadExt;

    fn policy() -> Compression {
        Compression {
            algorithms: vec![Coding::Zstd, Coding::Brotli, Coding::Gzip],
            min_bytes: 10,
            content_types: vec!["text/*".into(), "application/json".into()],
        }
    }

    fn exchange(accept: &str, media: &str, body: Body) -> Response {
        let policy = policy();
        let request = http::Request::get("/").header(ACCEPT_ENCODING, accept).body(Body::empty()).unwrap();
        let response = http::Response::builder().header(CONTENT_TYPE, media).header(ETAG, "\"1\"").body(body).unwrap();
        decide(&policy, &request).on_response(response)
    }

    #[tokio::test]
    async fn each_coding_round_trips() {
        let text = "a text that is long enough. ".repeat(5000);
        for (accept, coding) in [("gzip", "gzip"), ("br;q=0.9, gzip;q=0.1", "br"), ("*", "zstd")] {
            let response = exchange(accept, "text/plain; charset=utf-8", Body::full(text.clone()));
            assert_eq!(response.headers()[CONTENT_ENCODING], coding);
            assert_eq!(response.headers()[ETAG], "W/\"1\"");
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            let mut out = String::new();
            let read = match coding {
                "gzip" => GzipDecoder::new(&bytes[..]).read_to_string(&mut out).await,
                "br" => BrotliDecoder::new(&bytes[..]).read_to_string(&mut out).await,
                _ => ZstdDecoder::new(&bytes[..]).read_to_string(&mut out).await,
            };
            read.unwrap();
            assert_eq!(out, text, "{coding}");
        }
    }

    #[test]
    fn caches_hear_the_same_of_answers_that_are_not_compressed() {
        let policy = policy();
        let answer = |method: &str, status: u16, fields: &[(&str, &str)], body: Body| {
            let request = http::Request::builder().method(method).header(ACCEPT_ENCODING, "gzip");
            let mut response = http::Response::builder().status(status);
            for (name, value) in fields {
                response = response.header(*name, *value);
            }
            let decision = decide(&policy, &request.body(Body::empty()).unwrap());
            decision.on_response(response.body(body).unwrap()).into_parts().0.headers
        };
        let html = ("content-type", "text/html");
        let long = ("content-length", "5000");
        for (method, status, fields, body) in [
            ("GET", 200, vec![html], Body::full("x".repeat(100))),
            ("HEAD", 200, vec![html, long], Body::empty()),
            ("GET", 206, vec![html, ("content-range", "bytes 0-4/5000")], Body::full("abcde")),
            ("GET", 304, vec![html], Body::empty()),
            ("GET", 304, vec![("etag", "\"1\"")], Body::empty()),
        ] {
            let headers = answer(method, status, &fields, body);
            assert_eq!(headers[VARY], "Accept-Encoding", "{method} {status}");
            assert_eq!(headers.contains_key(CONTENT_ENCODING), (method, status) == ("GET", 200));
        }
        let headers = answer("HEAD", 200, &[html, long, ("vary", "origin, accept-encoding")], Body::empty());
        assert_eq!(headers.get_all(VARY).iter().count(), 1);
        for fields in [vec![("content-type", "image/png"), long], vec![html, ("content-length", "3")]] {
            assert!(!answer("HEAD", 200, &fields, Body::empty()).contains_key(VARY));
        }
    }

    #[test]
    fn what_must_not_be_compressed_is_not() {
        let long = || Body::full("x".repeat(100));
        for (accept, media, body) in [
            ("gzip;q=0", "text/plain", long()),
            ("identity", "text/plain", long()),
            ("gzip", "image/png", long()),
            ("gzip", "text/plain", Body::full("short")),
            ("gzip", "text/event-stream", long()),
        ] {
            let response = exchange(accept, media, body);
            assert!(!response.headers().contains_key(CONTENT_ENCODING), "{accept} {media}");
        }
    }
}
