//! WebSocket, both sides.

use futures_util::{SinkExt, StreamExt};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

/// Sends every message back until the other side closes.
pub async fn echo<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) {
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// A client's side.
pub struct Client(WebSocketStream<TcpStream>);

impl Client {
    /// # Errors
    /// What went wrong, in words.
    pub async fn connect(to: SocketAddr, host: &str) -> Result<Self, String> {
        let stream = TcpStream::connect(to).await.map_err(|e| format!("connect: {e}"))?;
        let opened = client_async(format!("ws://{host}/ws"), stream).await;
        opened.map(|(socket, _)| Self(socket)).map_err(|e| format!("handshake: {e}"))
    }

    /// Sends a text and waits for its echo.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub async fn ask(&mut self, text: &str) -> Result<(), String> {
        self.0.send(Message::text(text)).await.map_err(|e| format!("send: {e}"))?;
        match self.0.next().await {
            Some(Ok(Message::Text(answer))) if answer.as_str() == text => Ok(()),
            Some(Ok(other)) => Err(format!("answered {other:?} to {text}")),
            Some(Err(error)) => Err(format!("receive: {error}")),
            None => Err("closed".to_owned()),
        }
    }
}
