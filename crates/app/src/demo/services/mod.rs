//! The services behind the gateway: a small shop, each a real server on loopback.

mod audit;
mod cart;
mod catalog;
mod chat;
mod echo;
mod greeter;
mod http;
pub mod inventory;

use super::ports::Ports;
use anyhow::{Context, Result};
use std::{net::SocketAddr, sync::Arc};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

/// Connections at a time for each service; the gateway keeps far fewer.
const MAX_CONNECTIONS: usize = 1024;

/// Opens every service and serves until the set is dropped.
///
/// # Errors
/// When a port is taken.
pub async fn start(ports: Ports) -> Result<JoinSet<()>> {
    let mut running = JoinSet::new();
    for place in ports.places() {
        let listener = open(place.service).await?;
        match place.name {
            "catalog-v2" => _ = running.spawn(http::serve(listener, Arc::new(catalog::Catalog::v2(place.name)))),
            "cart" => _ = running.spawn(http::serve(listener, Arc::new(cart::Cart::default()))),
            "audit" => _ = running.spawn(http::serve(listener, Arc::new(audit::Audit::default()))),
            "inventory" => _ = running.spawn(inventory::serve(listener)),
            "chat" => _ = running.spawn(connections(listener, chat::serve)),
            "echo" => _ = running.spawn(connections(listener, echo::serve)),
            name => _ = running.spawn(http::serve(listener, Arc::new(catalog::Catalog::v1(name)))),
        }
    }
    Ok(running)
}

/// Serves one that knows nothing of ports of the demo, until the process ends.
pub async fn greet(name: &str, address: SocketAddr) -> Result<()> {
    http::serve(open(address).await?, Arc::new(greeter::Greeter(name.to_owned()))).await;
    Ok(())
}

async fn open(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} for a sample service; choose other ports with `--port-base`")
    })
}

/// Accepts connections and hands each to `serve`, a bounded number at a time.
async fn connections<F>(listener: TcpListener, serve: impl Fn(tokio::net::TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut open = JoinSet::new();
    while let Ok(permit) = permits.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                let serving = serve(stream);
                open.spawn(async move {
                    serving.await;
                    drop(permit);
                });
            }
            // Out of file descriptors, or the peer was quicker: neither is mended by trying at once.
            Err(error) => {
                tracing::warn!(%error, "a sample service cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
        while open.try_join_next().is_some() {}
    }
}
