//! An HTTP/1.1 client that hides nothing: no retries, and it says what became of its connection.

use rustls::pki_types::CertificateDer;
use std::{fmt::Write as _, net::SocketAddr, sync::Arc};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The server wants no more requests on this connection.
    pub fn is_last(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// What a connection may be made of.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A keep-alive connection.
pub struct Connection(BufReader<Box<dyn Stream>>);

impl Connection {
    /// # Errors
    /// What went wrong, in words.
    pub async fn open(to: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(to).await.map_err(|e| format!("connect: {e}"))?;
        let _ = stream.set_nodelay(true);
        Ok(Self::over(stream))
    }

    pub fn over(stream: impl Stream + 'static) -> Self {
        Self(BufReader::new(Box::new(stream)))
    }

    /// A connection with TLS, and the certificate that the server showed. Only `roots` are trusted.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub async fn open_tls(
        to: SocketAddr,
        name: &str,
        root: CertificateDer<'static>,
    ) -> Result<(Self, CertificateDer<'static>), String> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root).map_err(|e| format!("root: {e}"))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|e| e.to_string())?.with_root_certificates(roots).with_no_client_auth();
        let stream = TcpStream::connect(to).await.map_err(|e| format!("connect: {e}"))?;
        let name = name.to_owned().try_into().map_err(|e| format!("name: {e}"))?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let stream = stream.map_err(|e| format!("handshake: {e}"))?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let shown = shown.ok_or("no certificate")?.clone().into_owned();
        Ok((Self::over(stream), shown))
    }

    /// A GET and its whole answer.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub async fn get(&mut self, host: &str, path: &str) -> Result<Answer, String> {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n")).await?;
        self.answer().await
    }

    /// # Errors
    /// What went wrong, in words.
    pub async fn send(&mut self, text: &str) -> Result<(), String> {
        self.0.write_all(text.as_bytes()).await.map_err(|e| format!("send: {e}"))?;
        self.0.flush().await.map_err(|e| format!("send: {e}"))
    }

    /// # Errors
    /// What went wrong, in words.
    pub async fn answer(&mut self) -> Result<Answer, String> {
        let mut answer = self.head().await?;
        let length = answer.header("content-length").and_then(|length| length.parse::<usize>().ok());
        let mut body = Vec::new();
        if let Some(length) = length {
            body.resize(length, 0);
            self.0.read_exact(&mut body).await.map_err(|e| format!("body: {e}"))?;
        } else if answer.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk().await? {
                body.extend(chunk);
            }
        }
        answer.body = String::from_utf8_lossy(&body).into_owned();
        Ok(answer)
    }

    /// Only the head of an answer.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub async fn head(&mut self) -> Result<Answer, String> {
        let first = self.line().await?;
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| format!("no status in {first:?}"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(Answer { status, headers, body: String::new() });
            }
            let (name, value) = line.split_once(':').ok_or_else(|| format!("no header: {line:?}"))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// The next chunk of a body; `None` is its end.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>, String> {
        let size = self.line().await?;
        let size =
            usize::from_str_radix(size.split(';').next().unwrap_or(""), 16).map_err(|_| format!("size {size:?}"))?;
        let mut chunk = vec![0; size + 2];
        self.0.read_exact(&mut chunk).await.map_err(|e| format!("chunk: {e}"))?;
        chunk.truncate(size);
        Ok((size > 0).then_some(chunk))
    }

    async fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.0.read_line(&mut line).await {
            Ok(0) => Err("the connection was closed in place of an answer".to_owned()),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(format!("receive: {error}")),
        }
    }
}

/// One request on a connection of its own.
///
/// # Errors
/// What went wrong, in words.
pub async fn request(to: SocketAddr, method: &str, path: &str, body: &str) -> Result<Answer, String> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n");
    let _ = write!(text, "content-length: {}\r\n\r\n{body}", body.len());
    let mut connection = Connection::open(to).await?;
    connection.send(&text).await?;
    connection.answer().await
}
