//! What the HTTP/2 tests share: a service made of a closure, bodies made of channels, and raw frames.
#![allow(dead_code)]

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};
use selvedge_compile::snapshot::HttpOptions;
use selvedge_proxy::{
    Body, Error, Request, Response,
    codec::{self, Service},
    drain::Drainer,
    io::Io,
};
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
    task::JoinHandle,
};

type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;

/// A service made of a closure; remembers what the codec rejected.
pub struct TestService {
    answer: Box<dyn Fn(Request) -> Answer + Send + Sync>,
    pub rejected: Mutex<Vec<u16>>,
}

impl Service for TestService {
    fn call(&self, request: Request) -> impl Future<Output = Response> + Send {
        (self.answer)(request)
    }

    fn rejected(&self, status: http::StatusCode, _: &Error) {
        self.rejected.lock().unwrap().push(status.as_u16());
    }
}

pub fn service<F, R>(answer: F) -> Arc<TestService>
where
    F: Fn(Request) -> R + Send + Sync + 'static,
    R: Future<Output = Response> + Send + 'static,
{
    Arc::new(TestService { answer: Box::new(move |r| Box::pin(answer(r))), rejected: Mutex::default() })
}

pub fn echo() -> Arc<TestService> {
    service(|request| async move { Response::new(request.into_body()) })
}

/// A service under test and the client's end of its connection.
pub struct Served {
    pub io: DuplexStream,
    pub done: JoinHandle<Result<(), Error>>,
    pub drainer: Arc<Drainer>,
}

pub fn serve(service: Arc<TestService>, options: HttpOptions) -> Served {
    let (io, server) = tokio::io::duplex(256 * 1024);
    let drainer = Arc::new(Drainer::default());
    let drain = drainer.subscribe();
    let done = tokio::spawn(async move { codec::h2::serve(Io::other(server), service, &options, drain).await });
    Served { io, done, drainer }
}

/// The `h2` crate as the client.
pub async fn client(io: DuplexStream) -> (h2::client::SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    let (sender, connection) = h2::client::handshake(io).await.unwrap();
    (sender, tokio::spawn(connection))
}

/// A body whose frames come from a channel.
pub struct ChannelBody(mpsc::Receiver<Frame<Bytes>>);

impl HttpBody for ChannelBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

pub fn channel() -> (mpsc::Sender<Frame<Bytes>>, Body) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, Body::stream(ChannelBody(receiver)))
}

/// Wakes whoever waits for its drop.
pub struct OnDrop(pub Option<tokio::sync::oneshot::Sender<()>>);

impl OnDrop {
    pub fn new() -> (Self, tokio::sync::oneshot::Receiver<()>) {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        (Self(Some(sender)), receiver)
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            let _ = sender.send(());
        }
    }
}

pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const ENHANCE_YOUR_CALM: u32 = 11;

pub struct RawFrame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Bytes,
}

impl RawFrame {
    /// The error code of RST_STREAM and GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == kind::GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_uint(payload.len() as u64, 3);
    bytes.put_u8(kind);
    bytes.put_u8(flags);
    bytes.put_u32(stream);
    bytes.put_slice(payload);
    bytes.freeze()
}

/// Literal fields without indexing or Huffman (RFC 7541 section 6.2.2).
pub fn hpack(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            if text.len() < 127 {
                block.push(text.len() as u8);
            } else {
                block.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    block.push(rest as u8 | 128);
                    rest >>= 7;
                }
                block.push(rest as u8);
            }
            block.extend(text.as_bytes());
        }
    }
    block
}

pub fn head(method: &str) -> Vec<u8> {
    hpack(&[(":method", method), (":scheme", "http"), (":authority", "a"), (":path", "/")])
}

/// A peer that writes what it likes.
pub struct Raw<T> {
    pub io: T,
}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Raw<T> {
    /// Preface and SETTINGS of a client.
    pub async fn client(mut io: T, settings: &[(u16, u32)]) -> Self {
        io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        Self::start(io, settings).await
    }

    /// Takes the preface of a client and sends SETTINGS.
    pub async fn server(mut io: T, settings: &[(u16, u32)]) -> Self {
        let mut preface = [0; 24];
        io.read_exact(&mut preface).await.unwrap();
        Self::start(io, settings).await
    }

    async fn start(mut io: T, settings: &[(u16, u32)]) -> Self {
        let mut payload = Vec::new();
        for (id, value) in settings {
            payload.put_u16(*id);
            payload.put_u32(*value);
        }
        io.write_all(&frame(kind::SETTINGS, 0, 0, &payload)).await.unwrap();
        Self { io }
    }

    /// False when the peer has closed.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        self.io.write_all(bytes).await.is_ok()
    }

    /// `None` at the end of the connection.
    pub async fn read(&mut self) -> Option<RawFrame> {
        read(&mut self.io).await
    }

    /// Skips to the next frame of one of `kinds`, acknowledging SETTINGS and PING on the way.
    pub async fn next(&mut self, kinds: &[u8]) -> Option<RawFrame> {
        loop {
            let frame = self.read().await?;
            self.acknowledge(&frame).await;
            if kinds.contains(&frame.kind) {
                return Some(frame);
            }
        }
    }

    async fn acknowledge(&mut self, received: &RawFrame) {
        if matches!(received.kind, kind::SETTINGS | kind::PING) && received.flags & 1 == 0 {
            let payload = if received.kind == kind::PING { &received.payload[..] } else { &[] };
            self.send(&frame(received.kind, 1, 0, payload)).await;
        }
    }
}

pub async fn read(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<RawFrame> {
    let mut head = [0; 9];
    io.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let mut payload = vec![0; length];
    io.read_exact(&mut payload).await.ok()?;
    let stream = u32::from_be_bytes([head[5] & 127, head[6], head[7], head[8]]);
    Some(RawFrame { kind: head[3], flags: head[4], stream, payload: payload.into() })
}
