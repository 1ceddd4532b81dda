//! The services behind the gateway: a small shop, each a real server on loopback.

mod audit;
mod cart;
mod catalog;
mod chat;
mod echo;
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
    for (address, name) in ports.catalog_v1().into_iter().zip(["catalog-v1-a", "catalog-v1-b"]) {
        running.spawn(http::serve(open(address).await?, Arc::new(catalog::Catalog::v1(name))));
    }
    running.spawn(http::serve(open(ports.catalog_v2()).await?, Arc::new(catalog::Catalog::v2("catalog-v2"))));
    running.spawn(http::serve(open(ports.cart()).await?, Arc::new(cart::Cart::default())));
    running.spawn(http::serve(open(ports.audit()).await?, Arc::new(audit::Audit::default())));
    running.spawn(inventory::serve(open(ports.inventory()).await?));
    running.spawn(connections(open(ports.chat()).await?, chat::serve));
    running.spawn(connections(open(ports.echo()).await?, echo::serve));
    Ok(running)
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
