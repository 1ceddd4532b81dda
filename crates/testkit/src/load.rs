//! Clients that ask without pause and count what fails. They retry nothing.

use crate::{http1, websocket};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};
use tokio::{net::TcpStream, sync::Notify, task::JoinSet};

/// So many failures say enough.
const MOST_FAILED: usize = 1000;

/// What the clients of a load have seen.
#[derive(Default)]
struct Seen {
    done: AtomicU64,
    connections: AtomicU64,
    failed: Mutex<Vec<String>>,
    progress: Notify,
    stop: AtomicBool,
}

impl Seen {
    fn note(&self, result: Result<(), String>) -> bool {
        match result {
            Ok(()) => {
                self.done.fetch_add(1, Relaxed);
            }
            Err(error) => {
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                let after = self.done.load(Relaxed);
                failed.push(format!("after {after} requests: {error}"));
                if failed.len() >= MOST_FAILED {
                    self.stop.store(true, Relaxed);
                }
            }
        }
        self.progress.notify_waiters();
        !self.stop.load(Relaxed)
    }
}

/// Running clients.
pub struct Load {
    seen: Arc<Seen>,
    clients: JoinSet<()>,
}

/// How it went.
#[derive(Debug)]
pub struct Outcome {
    pub done: u64,
    pub connections: u64,
    pub failed: Vec<String>,
}

impl Load {
    /// Keep-alive clients over HTTP/1.1. An answer of another status than 200 is a failure.
    pub fn http1(to: SocketAddr, host: &'static str, clients: usize) -> Self {
        Self::start(clients, |seen| http1_client(to, host, seen))
    }

    /// Connections over HTTP/2 by prior knowledge, with four requests at a time each.
    pub fn http2(to: SocketAddr, host: &'static str, connections: usize) -> Self {
        Self::start(connections, |seen| http2_client(to, host, seen))
    }

    /// Clients that keep one WebSocket each, and send the next message when they have the echo of the last.
    pub fn websocket(to: SocketAddr, host: &'static str, clients: usize) -> Self {
        Self::start(clients, |seen| websocket_client(to, host, seen))
    }

    fn start<F: Future<Output = ()> + Send + 'static>(count: usize, client: impl Fn(Arc<Seen>) -> F) -> Self {
        let seen = Arc::new(Seen::default());
        let mut clients = JoinSet::new();
        for _ in 0..count {
            clients.spawn(client(seen.clone()));
        }
        Self { seen, clients }
    }

    /// Waits until this many more requests are done (or have failed).
    pub async fn more(&self, requests: u64) {
        let count = || {
            let failed = self.seen.failed.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
            self.seen.done.load(Relaxed) + failed
        };
        let until = count() + requests;
        loop {
            let progress = self.seen.progress.notified();
            if count() >= until {
                return;
            }
            progress.await;
        }
    }

    pub async fn stop(mut self) -> Outcome {
        self.seen.stop.store(true, Relaxed);
        while self.clients.join_next().await.is_some() {}
        Outcome {
            done: self.seen.done.load(Relaxed),
            connections: self.seen.connections.load(Relaxed),
            failed: std::mem::take(&mut *self.seen.failed.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

impl Outcome {
    /// # Panics
    /// When something has failed, or nothing was done.
    pub fn assert_nothing_failed(&self, what: &str) {
        let shown: Vec<_> = self.failed.iter().take(10).collect();
        assert!(self.failed.is_empty(), "{what}: {} of {} failed: {shown:#?}", self.failed.len(), self.done);
        assert!(self.done > 0, "{what}: nothing was done");
    }
}

async fn http1_client(to: SocketAddr, host: &'static str, seen: Arc<Seen>) {
    loop {
        seen.connections.fetch_add(1, Relaxed);
        let mut connection = match http1::Connection::open(to).await {
            Ok(connection) => connection,
            Err(error) => {
                if seen.note(Err(error)) {
                    continue;
                }
                return;
            }
        };
        loop {
            let answer = connection.get(host, "/load").await;
            let last = answer.as_ref().map_or(true, http1::Answer::is_last);
            let result = answer.and_then(|answer| match answer.status {
                200 => Ok(()),
                _ => Err(format!("{answer:?}")),
            });
            if !seen.note(result) {
                return;
            }
            if last {
                break;
            }
        }
    }
}

async fn http2_client(to: SocketAddr, host: &'static str, seen: Arc<Seen>) {
    loop {
        seen.connections.fetch_add(1, Relaxed);
        let connected = async {
            let stream = TcpStream::connect(to).await.map_err(|e| format!("connect: {e}"))?;
            let _ = stream.set_nodelay(true);
            http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(|e| format!("handshake: {e}"))
        };
        let (sender, connection) = match connected.await {
            Ok(connected) => connected,
            Err(error) => {
                if seen.note(Err(error)) {
                    continue;
                }
                return;
            }
        };
        tokio::spawn(connection);
        let mut streams = JoinSet::new();
        for _ in 0..4 {
            streams.spawn(http2_requests(sender.clone(), host, seen.clone()));
        }
        drop(sender);
        while streams.join_next().await.is_some() {}
        if seen.stop.load(Relaxed) {
            return;
        }
    }
}

/// Until the server takes no more requests on this connection.
async fn http2_requests(mut sender: http2::SendRequest<Empty<Bytes>>, host: &'static str, seen: Arc<Seen>) {
    loop {
        // A connection that was told GOAWAY is not ready any more: the next request goes to another one.
        if sender.ready().await.is_err() {
            return;
        }
        let uri = format!("http://{host}/load");
        let request = http::Request::builder().uri(uri).body(Empty::new()).expect("a request");
        let answered = async {
            match sender.send_request(request).await {
                Ok(response) => {
                    let status = response.status();
                    let body = response.into_body().collect().await.map_err(|e| format!("body: {e:?}"))?;
                    let body = body.to_bytes();
                    if status == 200 { Ok(true) } else { Err(format!("{status} {body:?}")) }
                }
                // Never left this client.
                Err(error) if error.is_canceled() => Ok(false),
                Err(error) => Err(format!("{error:?}")),
            }
        };
        match answered.await {
            Ok(false) => return,
            result => {
                if !seen.note(result.map(drop)) {
                    return;
                }
            }
        }
    }
}

async fn websocket_client(to: SocketAddr, host: &'static str, seen: Arc<Seen>) {
    loop {
        seen.connections.fetch_add(1, Relaxed);
        let mut client = match websocket::Client::connect(to, host).await {
            Ok(client) => client,
            Err(error) => {
                if seen.note(Err(error)) {
                    continue;
                }
                return;
            }
        };
        for message in 0_u64.. {
            let result = client.ask(&format!("message {message}")).await;
            let broken = result.is_err();
            if !seen.note(result) {
                return;
            }
            if broken {
                break;
            }
        }
    }
}
