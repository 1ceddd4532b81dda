//! The inventory: gRPC, one unary method and one that streams. The messages and the service are written by hand, so
//! that no protoc is needed to build:
//!
//! ```proto
//! package shop;
//! service Inventory {
//!   rpc Get(StockRequest) returns (Stock);
//!   rpc Watch(StockRequest) returns (stream Stock);
//! }
//! message StockRequest { uint32 sku = 1; }
//! message Stock { uint32 sku = 1; string name = 2; uint32 count = 3; }
//! ```

use super::catalog::PRODUCTS;
use futures_util::stream;
use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{BoxFuture, BoxStream, Service},
    server::{Grpc, NamedService, ServerStreamingService, UnaryService},
    transport::Server,
};
use tonic_prost::ProstCodec;

/// Path of the unary method.
pub const GET: &str = "/shop.Inventory/Get";
/// Path of the streaming method.
pub const WATCH: &str = "/shop.Inventory/Watch";
/// Messages of one stream.
const STREAMED: u32 = 5;
/// Time between them.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Clone, PartialEq, prost::Message)]
pub struct StockRequest {
    #[prost(uint32, tag = "1")]
    pub sku: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Stock {
    #[prost(uint32, tag = "1")]
    pub sku: u32,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(uint32, tag = "3")]
    pub count: u32,
}

/// Serves gRPC on a listener.
pub async fn serve(listener: TcpListener) {
    let incoming = stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    if let Err(error) = Server::builder()
        .concurrency_limit_per_connection(100)
        .add_service(Inventory)
        .serve_with_incoming(incoming)
        .await
    {
        tracing::error!(%error, "the sample inventory service has ended");
    }
}

#[derive(Debug, Clone, Copy)]
struct Inventory;

impl NamedService for Inventory {
    const NAME: &'static str = "shop.Inventory";
}

impl Service<http::Request<Body>> for Inventory {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::default());
            Ok(match request.uri().path() {
                GET => grpc.unary(Get, request).await,
                WATCH => grpc.server_streaming(Watch, request).await,
                _ => Status::unimplemented("the inventory knows Get and Watch").into_http(),
            })
        })
    }
}

struct Get;

impl UnaryService<StockRequest> for Get {
    type Response = Stock;
    type Future = BoxFuture<Response<Stock>, Status>;

    fn call(&mut self, request: Request<StockRequest>) -> Self::Future {
        Box::pin(async move { stock(request.get_ref().sku).map(Response::new) })
    }
}

struct Watch;

impl ServerStreamingService<StockRequest> for Watch {
    type Response = Stock;
    type ResponseStream = BoxStream<Stock>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<StockRequest>) -> Self::Future {
        Box::pin(async move {
            let first = stock(request.get_ref().sku)?;
            let updates = stream::unfold(0, move |n| {
                let mut next = first.clone();
                async move {
                    if n == STREAMED {
                        return None;
                    }
                    if n > 0 {
                        tokio::time::sleep(PAUSE).await;
                    }
                    next.count -= n;
                    Some((Ok(next), n + 1))
                }
            });
            Ok(Response::new(Box::pin(updates) as Self::ResponseStream))
        })
    }
}

fn stock(sku: u32) -> Result<Stock, Status> {
    let found = PRODUCTS.iter().find(|product| product.0 == sku);
    let (sku, name, _) = found.ok_or_else(|| Status::not_found(format!("there is no product {sku}")))?;
    Ok(Stock { sku: *sku, name: (*name).to_owned(), count: 100 + sku * 7 })
}
