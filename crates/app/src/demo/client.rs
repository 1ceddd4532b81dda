//! `selvedge demo grpc|ws|tcp`: small clients for what curl does not speak, so that the demo needs no other tool.

use super::{
    identities,
    ports::DEFAULT_BASE,
    services::{
        self,
        inventory::{GET, Stock, StockRequest, WATCH},
    },
};
use anyhow::{Context, Result, bail};
use clap::{Args as ClapArgs, Subcommand};
use futures_util::{SinkExt, StreamExt};
use std::{
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};
use tonic::{
    Streaming,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// Longest time for one command.
const LIMIT: Duration = Duration::from_secs(10);

/// Something to try against a running demo.
#[derive(Debug, Clone, Subcommand)]
pub enum Attempt {
    /// Call the inventory over gRPC.
    Grpc {
        #[command(flatten)]
        target: HttpPort,
        /// Product to ask for.
        #[arg(default_value_t = 1)]
        sku: u32,
        /// Follow the stream of updates instead of asking once.
        #[arg(long)]
        watch: bool,
    },
    /// Say something in the chat over WebSocket.
    Ws {
        #[command(flatten)]
        target: HttpPort,
        /// What to say.
        #[arg(default_value = "hello")]
        message: String,
    },
    /// A program of the demo with --netns.
    #[command(hide = true)]
    Serve { name: String, address: SocketAddr },
    /// Show the certificates of all members of the mesh.
    Identities(identities::Folder),
    /// Wait until a member of the mesh has a new certificate, and send requests all the while.
    Rotation(identities::Watch),
    /// Send a line to the echo service over TCP.
    Tcp {
        /// TCP port of the gateway.
        #[arg(long, default_value_t = DEFAULT_BASE + 2)]
        port: u16,
        /// What to send.
        #[arg(default_value = "hello")]
        message: String,
    },
}

#[derive(Debug, Clone, Copy, ClapArgs)]
pub struct HttpPort {
    /// HTTP port of the gateway.
    #[arg(long, default_value_t = DEFAULT_BASE)]
    port: u16,
}

/// Makes the attempt and prints what comes back.
///
/// # Errors
/// When the demo is not there or answers with an error.
pub fn run(attempt: &Attempt) -> Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
    if let Attempt::Rotation(watch) = attempt {
        return runtime.block_on(identities::watch(watch)).map(|()| ExitCode::SUCCESS);
    }
    if let Attempt::Serve { name, address } = attempt {
        return runtime.block_on(services::greet(name, *address)).map(|()| ExitCode::SUCCESS);
    }
    let made = runtime.block_on(async { tokio::time::timeout(LIMIT, make(attempt)).await });
    made.context("no answer within ten seconds")??;
    Ok(ExitCode::SUCCESS)
}

async fn make(attempt: &Attempt) -> Result<()> {
    match attempt {
        Attempt::Grpc { target, sku, watch } => {
            let mut grpc = channel(local(target.port)).await?;
            let method = if *watch { WATCH } else { GET };
            let mut answers = stock(&mut grpc, method, StockRequest { sku: *sku }).await?;
            while let Some(Stock { sku, name, count }) = answers.message().await.map_err(refused)? {
                super::say(&format!("product {sku}: {name}, {count} in stock"));
            }
        }
        Attempt::Ws { target, message } => {
            let mut socket = chat(local(target.port)).await?;
            socket.send(Message::text(message.as_str())).await.context("cannot send")?;
            match socket.next().await {
                Some(Ok(answer)) => super::say(answer.to_text().context("the answer is no text")?),
                Some(Err(error)) => return Err(error).context("no answer"),
                None => bail!("the connection was closed without an answer"),
            }
            socket.close(None).await.context("cannot close")?;
        }
        Attempt::Identities(folder) => identities::print(folder)?,
        // Without a limit of time, above.
        Attempt::Rotation(_) | Attempt::Serve { .. } => {}
        Attempt::Tcp { port, message } => {
            let mut stream = connect(local(*port)).await?;
            stream.write_all(format!("{message}\n").as_bytes()).await.context("cannot send")?;
            stream.shutdown().await.context("cannot send")?;
            let mut answer = String::new();
            // No more comes back than went out.
            stream.take(message.len() as u64 + 1).read_to_string(&mut answer).await.context("no answer")?;
            super::say(answer.trim_end());
        }
    }
    Ok(())
}

/// A gRPC client through the gateway.
pub async fn channel(gateway: SocketAddr) -> Result<Grpc<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{gateway}"))?;
    Ok(Grpc::new(endpoint.connect().await.with_context(|| no_demo(gateway))?))
}

/// Calls a method of the inventory; a unary answer is a stream of one.
pub async fn stock(grpc: &mut Grpc<Channel>, method: &'static str, request: StockRequest) -> Result<Streaming<Stock>> {
    grpc.ready().await.context("the connection is gone")?;
    let path = PathAndQuery::from_static(method);
    let codec: ProstCodec<StockRequest, Stock> = ProstCodec::default();
    let answer = grpc.server_streaming(tonic::Request::new(request), path, codec).await.map_err(refused)?;
    Ok(answer.into_inner())
}

/// The chat through the gateway.
pub async fn chat(gateway: SocketAddr) -> Result<WebSocketStream<TcpStream>> {
    let stream = connect(gateway).await?;
    let (socket, _) =
        client_async(format!("ws://{gateway}/chat"), stream).await.context("the gateway refused the WebSocket")?;
    Ok(socket)
}

async fn connect(gateway: SocketAddr) -> Result<TcpStream> {
    TcpStream::connect(gateway).await.with_context(|| no_demo(gateway))
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn no_demo(gateway: SocketAddr) -> String {
    format!("nothing listens on {gateway}: start `selvedge demo` first, and say its port with --port")
}

fn refused(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("the call ended with {:?}: {}", status.code(), status.message())
}
