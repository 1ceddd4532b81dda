//! Both ends of the codec, over pipes.

use bytes::Bytes;
use http::{StatusCode, header};
use http_body_util::BodyExt;
use selvedge_compile::snapshot::HttpOptions;
use selvedge_proxy::{
    Body, Error, Request, Response,
    codec::{
        SendError, Service,
        h1::{self, ClientOptions, Connection, Home},
    },
    drain::Drainer,
    io::Io,
};
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::JoinHandle,
};

pub type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;

/// A service made of a function, which remembers what the codec refused.
pub struct Handler<F> {
    pub answer: F,
    pub rejected: Mutex<Vec<u16>>,
}

impl<F: Fn(Request) -> Answer + Send + Sync + 'static> Service for Handler<F> {
    async fn call(&self, request: Request) -> Response {
        (self.answer)(request).await
    }

    fn rejected(&self, status: StatusCode, _: &Error) {
        self.rejected.lock().unwrap().push(status.as_u16());
    }
}

/// A served connection, seen from the client.
pub struct Served {
    pub client: DuplexStream,
    pub task: JoinHandle<Result<(), Error>>,
    pub drainer: Drainer,
}

pub fn serve_with<F>(options: HttpOptions, answer: F) -> (Served, Arc<Handler<F>>)
where
    F: Fn(Request) -> Answer + Send + Sync + 'static,
{
    let (client, near) = tokio::io::duplex(1024 * 1024);
    let drainer = Drainer::default();
    let drain = drainer.subscribe();
    let handler = Arc::new(Handler { answer, rejected: Mutex::default() });
    let service = handler.clone();
    let task = tokio::spawn(async move { h1::serve(Io::other(near), service, &options, drain).await });
    (Served { client, task, drainer }, handler)
}

pub fn serve<F>(answer: F) -> Served
where
    F: Fn(Request) -> Answer + Send + Sync + 'static,
{
    serve_with(HttpOptions::default(), answer).0
}

impl Served {
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.client.write_all(bytes.as_ref()).await.unwrap();
    }

    /// What comes until `end` is there.
    pub async fn until(&mut self, end: &str) -> String {
        until(&mut self.client, end).await
    }

    /// What comes until the connection ends.
    pub async fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        self.client.read_to_end(&mut bytes).await.unwrap();
        text(&bytes)
    }
}

pub async fn until(io: &mut (impl AsyncReadExt + Unpin), end: &str) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end.as_bytes()) {
        let mut byte = [0];
        let read = io.read(&mut byte).await.unwrap();
        assert!(read > 0, "ended with {:?}, wanted {end:?}", text(&bytes));
        bytes.push(byte[0]);
    }
    text(&bytes)
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A response without its `date`, which is not the same twice.
pub fn dateless(text: &str) -> String {
    text.split_inclusive("\r\n").filter(|line| !line.starts_with("date: ")).collect()
}

pub fn reply(body: impl Into<Bytes>) -> Response {
    Response::new(Body::full(body.into()))
}

/// Answers with method, target, and what the body and the trailers were.
pub fn echo(request: Request) -> Answer {
    Box::pin(async move {
        let (parts, body) = request.into_parts();
        match body.collect().await {
            Err(error) => {
                let mut response = reply(format!("{:?} {error}", error.kind));
                *response.status_mut() = StatusCode::BAD_REQUEST;
                response
            }
            Ok(body) => {
                let trailers = body.trailers().cloned().unwrap_or_default();
                let body = text(&body.to_bytes());
                reply(format!("{} {} [{body}] {}", parts.method, parts.uri, trailers.len()))
            }
        }
    })
}

/// The pool of the tests: keeps what is given back.
#[derive(Default)]
pub struct Pool(pub Mutex<Vec<Connection>>);

impl Home for Pool {
    fn give_back(&self, connection: Connection) {
        self.0.lock().unwrap().push(connection);
    }
}

impl Pool {
    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// A connection to an upstream that the test plays, with its other end.
pub fn connection(pool: &Arc<Pool>) -> (Connection, DuplexStream) {
    let (near, far) = tokio::io::duplex(1024 * 1024);
    (Connection::new(Io::other(near), pool.clone()), far)
}

/// Sends a request and answers it with `answer`, then closes. Returns what the upstream got with it.
pub async fn exchange(request: Request, answer: impl AsRef<[u8]>) -> (Result<Response, SendError>, Arc<Pool>) {
    let pool = Arc::new(Pool::default());
    let (connection, mut far) = connection(&pool);
    let answer = answer.as_ref().to_vec();
    tokio::spawn(async move {
        until(&mut far, "\r\n\r\n").await;
        far.write_all(&answer).await.unwrap();
        // Reads on, so that the end is an end and not a reset.
        far.shutdown().await.unwrap();
        let _ = far.read_to_end(&mut Vec::new()).await;
    });
    let response = connection.send(request, &ClientOptions::default()).await;
    (response, pool)
}

pub fn get(target: &str) -> Request {
    http::Request::get(target).header(header::HOST, "a").body(Body::empty()).unwrap()
}

/// A body from a channel.
pub fn channel() -> (tokio::sync::mpsc::Sender<Result<http_body::Frame<Bytes>, Error>>, Body) {
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    (sender, Body::stream(Frames(receiver)))
}

struct Frames(tokio::sync::mpsc::Receiver<Result<http_body::Frame<Bytes>, Error>>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Error>>> {
        self.0.poll_recv(cx)
    }
}

pub fn data(bytes: impl Into<Bytes>) -> Result<http_body::Frame<Bytes>, Error> {
    Ok(http_body::Frame::data(bytes.into()))
}

/// Passes a request on as the data plane does, over a connection of the pool or a new one.
pub async fn forward(request: Request, upstream: &Upstream) -> Response {
    let (mut parts, body) = request.into_parts();
    let upgrade = parts.headers.get(header::UPGRADE).cloned();
    selvedge_wire::hop::strip_request(&mut parts.headers);
    if let Some(upgrade) = upgrade {
        parts.headers.insert(header::CONNECTION, "upgrade".parse().unwrap());
        parts.headers.insert(header::UPGRADE, upgrade);
    }
    let idle = upstream.pool.0.lock().unwrap().pop();
    let connection = match idle {
        Some(connection) => connection,
        None => upstream.connect(),
    };
    match connection.send(Request::from_parts(parts, body), &ClientOptions::default()).await {
        Ok(mut response) => {
            let upgrade = response.headers().get(header::UPGRADE).cloned();
            selvedge_wire::hop::strip_response(response.headers_mut());
            if let Some(mut io) = response.body_mut().take_upgraded() {
                response.headers_mut().insert(header::UPGRADE, upgrade.unwrap());
                *response.body_mut() = Body::tunnel(move |mut client| async move {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut io).await;
                });
            }
            response
        }
        Err(error) => {
            let mut response = reply(format!("{:?}", error.error.kind));
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        }
    }
}

/// An upstream that records every byte and answers every request with its number.
#[derive(Clone, Default)]
pub struct Upstream {
    pub pool: Arc<Pool>,
    pub seen: Arc<Mutex<Vec<u8>>>,
    pub answers: Arc<Mutex<u32>>,
    /// Instead of 200.
    pub answer: Option<&'static str>,
}

impl Upstream {
    fn connect(&self) -> Connection {
        let (connection, far) = connection(&self.pool);
        tokio::spawn(self.clone().run(far));
        connection
    }

    async fn run(self, mut far: DuplexStream) {
        let mut bytes = Vec::new();
        loop {
            while let Some(length) = message_length(&bytes) {
                bytes.drain(..length);
                let answer = match self.answer {
                    Some(answer) => answer.to_owned(),
                    None => {
                        let mut number = self.answers.lock().unwrap();
                        *number += 1;
                        format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n#{number}")
                    }
                };
                far.write_all(answer.as_bytes()).await.unwrap();
            }
            let mut chunk = [0; 4096];
            match far.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(n) => {
                    self.seen.lock().unwrap().extend_from_slice(&chunk[..n]);
                    bytes.extend_from_slice(&chunk[..n]);
                }
            }
        }
    }

    pub fn seen(&self) -> String {
        text(&self.seen.lock().unwrap())
    }
}

/// The length of the request at the front, read as simply as a backend might.
pub fn message_length(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let lines = text(&bytes[..head]).to_ascii_lowercase();
    let length = |name: &str| lines.lines().find_map(|line| line.strip_prefix(name).map(|v| v.trim().to_owned()));
    if length("transfer-encoding:").is_some() {
        let end = bytes[head..].windows(5).position(|w| w == b"0\r\n\r\n")?;
        return Some(head + end + 5);
    }
    let body = length("content-length:").map_or(0, |v| v.parse().unwrap());
    (bytes.len() >= head + body).then_some(head + body)
}
