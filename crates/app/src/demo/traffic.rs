//! A few requests per second through the gateway, so that metrics and the access log show life.

use super::{
    client::{self, channel, stock},
    ports::Ports,
    services::inventory::{GET, StockRequest, WATCH},
};
use anyhow::Result;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::time::Duration;
use tokio::{net::TcpStream, task::JoinSet, time::interval};
use tokio_tungstenite::tungstenite::Message;

/// After a failure, until the next try.
const REST: Duration = Duration::from_secs(1);
/// What is asked for over HTTP/1.1, in turns. Nothing here changes the cart: it is the user's.
const OVER_HTTP1: [&str; 9] = [
    "/catalog",
    "/cart",
    "/catalog/2",
    "/cart/flaky",
    "/catalog/1",
    "/api/products/3",
    "/cart/slow?ms=30",
    "/catalog/4",
    "/old-shop/1",
];
const OVER_HTTP2: [&str; 4] = ["/catalog", "/catalog/3", "/", "/catalog/1"];

/// Sends until the set is dropped.
pub fn start(ports: Ports) -> JoinSet<()> {
    let mut senders = JoinSet::new();
    senders.spawn(forever("HTTP/1.1", move || over_http1(ports)));
    senders.spawn(forever("HTTP/2", move || over_http2(ports)));
    senders.spawn(forever("gRPC", move || over_grpc(ports)));
    senders.spawn(forever("WebSocket", move || over_websocket(ports)));
    senders
}

/// Begins again after each failure: a user who edits the resources may break and mend them.
async fn forever<F: Future<Output = Result<()>>>(name: &str, send: impl Fn() -> F) {
    loop {
        if let Err(error) = send().await {
            tracing::debug!("the trickle of traffic over {name} begins again: {error:#}");
        }
        tokio::time::sleep(REST).await;
    }
}

async fn over_http1(ports: Ports) -> Result<()> {
    let stream = TcpStream::connect(ports.http()).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let send = async {
        let mut tick = interval(Duration::from_millis(400));
        for path in OVER_HTTP1.iter().cycle() {
            tick.tick().await;
            let request = Request::get(*path).header("host", ports.http().to_string());
            let request = request.header("user-agent", "selvedge-demo").body(Empty::<Bytes>::new())?;
            sender.ready().await?;
            sender.send_request(request).await?.into_body().collect().await?;
        }
        Ok(())
    };
    tokio::select! {
        result = send => result,
        result = connection => Ok(result?),
    }
}

async fn over_http2(ports: Ports) -> Result<()> {
    let stream = TcpStream::connect(ports.http()).await?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let send = async {
        let mut tick = interval(Duration::from_millis(900));
        for path in OVER_HTTP2.iter().cycle() {
            tick.tick().await;
            let request = Request::get(format!("http://{}{path}", ports.http()));
            let request = request.header("user-agent", "selvedge-demo").body(Empty::<Bytes>::new())?;
            sender.ready().await?;
            sender.send_request(request).await?.into_body().collect().await?;
        }
        Ok(())
    };
    tokio::select! {
        result = send => result,
        result = connection => Ok(result?),
    }
}

async fn over_grpc(ports: Ports) -> Result<()> {
    let mut grpc = channel(ports.http()).await?;
    let mut tick = interval(Duration::from_millis(1300));
    for n in 0.. {
        tick.tick().await;
        let request = StockRequest { sku: n % 4 + 1 };
        if n % 8 == 7 {
            let mut updates = stock(&mut grpc, WATCH, request).await?;
            while updates.message().await?.is_some() {}
        } else {
            stock(&mut grpc, GET, request).await?.message().await?;
        }
    }
    Ok(())
}

async fn over_websocket(ports: Ports) -> Result<()> {
    let mut socket = client::chat(ports.http()).await?;
    let mut tick = interval(Duration::from_millis(2100));
    loop {
        tick.tick().await;
        socket.send(Message::text("is anybody there?")).await?;
        let Some(answer) = socket.next().await else { return Ok(()) };
        answer?;
    }
}
