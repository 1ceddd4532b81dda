//! The chat: a WebSocket server that says everything back.

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    accept_async_with_config,
    tungstenite::{Message, protocol::WebSocketConfig},
};

/// Longest message.
const MAX_MESSAGE: usize = 64 * 1024;

pub async fn serve(stream: TcpStream) {
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    let Ok(mut socket) = accept_async_with_config(stream, Some(config)).await else { return };
    while let Some(Ok(message)) = socket.next().await {
        let answer = match message {
            Message::Text(text) => Message::text(format!("chat says: {text}")),
            Message::Binary(bytes) => Message::Binary(bytes),
            // Pings are answered and closing is completed by the library.
            _ => continue,
        };
        if socket.send(answer).await.is_err() {
            return;
        }
    }
}
