//! A backend that speaks HTTP/1.1, HTTP/2 by prior knowledge, and WebSocket.

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, combinators::BoxBody};
use hyper::{body::Frame, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

type Body = BoxBody<Bytes, Infallible>;

/// A running server. Dropping it cuts all its connections.
pub struct Backend {
    pub address: SocketAddr,
    /// Lets the rest of the answers to `/hold` go.
    pub release: Arc<watch::Sender<bool>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Backend {
    /// On a port of the system's choice. It answers with its name.
    pub async fn start(name: &str) -> Self {
        // Nobody else's when it has ended, so that another can begin there.
        Self::start_at(crate::selvedge::free_port(), name).await
    }

    pub async fn start_at(address: SocketAddr, name: &str) -> Self {
        let listener = TcpListener::bind(address).await.expect("the port of the backend");
        let address = listener.local_addr().expect("an address");
        let release = Arc::new(watch::Sender::new(false));
        let stop = watch::Sender::new(false);
        let handler = Handler { name: name.to_owned(), release: release.clone() };
        let task = tokio::spawn(serve(listener, handler, stop.subscribe()));
        Self { address, release, stop, task }
    }

    /// Ends as a server does that is told to: accepts no more, answers what it has, closes.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let _ = (&mut self.task).await;
    }

    /// Ends as a process does that is killed.
    pub async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

async fn serve(listener: TcpListener, handler: Handler, stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let mut stopped = stop.clone();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                connections.spawn(connection(stream, handler.clone(), stop.clone()));
            }
            _ = stopped.wait_for(|stop| *stop) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, handler: Handler, mut stop: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(handler.answer(request).await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut serving = std::pin::pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    tokio::select! {
        _ = serving.as_mut() => return,
        _ = stop.wait_for(|stop| *stop) => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}

#[derive(Clone)]
struct Handler {
    name: String,
    release: Arc<watch::Sender<bool>>,
}

impl Handler {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if request.headers().get(header::UPGRADE).is_some_and(|value| value == "websocket") {
            return websocket(request);
        }
        let held = request.uri().path() == "/hold";
        // A body that is not read would cost the connection.
        let _ = request.into_body().collect().await;
        if held { self.hold() } else { Response::new(full(&self.name)) }
    }

    /// Half of the answer now, the rest when it is released.
    fn hold(&self) -> Response<Body> {
        let (parts, received) = mpsc::channel::<Bytes>(1);
        let mut release = self.release.subscribe();
        tokio::spawn(async move {
            let _ = parts.send(Bytes::from_static(b"first ")).await;
            let _ = release.wait_for(|release| *release).await;
            let _ = parts.send(Bytes::from_static(b"last")).await;
        });
        Response::new(Parts(received).boxed())
    }
}

/// A body whose parts come from elsewhere.
struct Parts(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|part| part.map(|part| Ok(Frame::data(part))))
    }
}

fn full(text: &str) -> Body {
    http_body_util::Full::new(Bytes::copy_from_slice(text.as_bytes())).boxed()
}

/// Accepts and echoes every message.
fn websocket(mut request: Request<Incoming>) -> Response<Body> {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned();
    let accept = derive_accept_key(key.as_ref().map_or(b"", HeaderValue::as_bytes));
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(io) = upgrade.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, None).await;
        crate::websocket::echo(&mut socket).await;
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept)
        .body(full(""))
        .expect("a response")
}
