//! The real binary on a copy of an example, with ports that are free, and a client that speaks to it.

use crate::backend::{self, Protocol};
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream, UdpSocket},
    process::{Child, Command},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};
use tokio_rustls::TlsConnector;

/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ports of listeners in the examples.
const TCP_LISTENERS: [u16; 3] = [8080, 8081, 8443];
const UDP_LISTENERS: [u16; 1] = [8053];

pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_selvedge")
}

/// A gateway that runs an example.
pub struct Gateway {
    folder: PathBuf,
    /// Where it runs: the copy of the example is in `conf`.
    pub dir: tempfile::TempDir,
    child: Child,
    /// From the ports in the example to those in use.
    ports: BTreeMap<u16, u16>,
    /// Requests that backends got: `9001 GET /path`.
    pub seen: UnboundedReceiver<String>,
    /// Keep the ports of listeners from others until the gateway has them.
    _reserved: Vec<TcpSocket>,
}

impl Gateway {
    /// Starts backends on the given ports of the example and the gateway in front.
    pub async fn start(example: &str, backends: &[(u16, Protocol)]) -> Self {
        let folder = examples().join(example);
        let (sender, seen) = unbounded_channel();
        let mut ports = BTreeMap::new();
        let mut reserved = Vec::new();
        for (port, protocol) in backends {
            ports.insert(*port, backend::start(*protocol, *port, &folder, sender.clone()).await);
        }
        for port in TCP_LISTENERS {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.set_reuseaddr(true).expect("SO_REUSEADDR");
            socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
            ports.insert(port, socket.local_addr().expect("an address").port());
            reserved.push(socket);
        }
        for port in UDP_LISTENERS {
            let socket = UdpSocket::bind("[::]:0").await.expect("a port");
            ports.insert(port, socket.local_addr().expect("an address").port());
        }
        let dir = tempfile::tempdir().expect("a folder");
        copy(&folder, &dir.path().join("conf"), &ports);
        let mut child = Command::new(binary())
            .args(["run", "-f", "conf", "--no-state", "--admin", "off", "--workers", "1", "--log", "info"])
            .current_dir(dir.path())
            .env_remove("SELVEDGE_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary");
        let errors = child.stderr.take().expect("piped");
        tokio::time::timeout(PATIENCE, until_installed(errors)).await.expect("a start in time");
        Self { folder, dir, child, ports, seen, _reserved: reserved }
    }

    pub fn get<'a>(&'a self, url: &'a str) -> Ask<'a> {
        self.ask(Method::GET, url)
    }

    pub fn ask<'a>(&'a self, method: Method, url: &'a str) -> Ask<'a> {
        Ask {
            gateway: self,
            method,
            url,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            preface: String::new(),
            identity: false,
            http2: false,
        }
    }

    /// The port that stands for a port of the example.
    pub fn port(&self, port: u16) -> u16 {
        self.ports[&port]
    }

    pub async fn connect(&self, port: u16) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port(port))).await.expect("a connection")
    }

    /// Ends the gateway as an operator would, so that all logs are written.
    pub async fn end(mut self) -> tempfile::TempDir {
        let pid = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)).expect("it runs");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
        let status =
            tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("an end in time").expect("a status");
        assert!(status.success(), "{status}");
        self.dir
    }

    fn tls(&self, identity: bool) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(self.folder.join("ca.pem")).expect("a file") {
            roots.add(certificate.expect("a certificate")).expect("a CA");
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = if identity {
            let chain = CertificateDer::pem_file_iter(self.folder.join("client.pem")).expect("a file");
            let key = PrivateKeyDer::from_pem_file(self.folder.join("client.key")).expect("a key");
            config.with_client_auth_cert(chain.map(|c| c.expect("a certificate")).collect(), key).expect("an identity")
        } else {
            config.with_no_client_auth()
        };
        TlsConnector::from(Arc::new(config))
    }
}

/// Waits for the line of the log that says that all is open, and drops the rest.
async fn until_installed(errors: impl AsyncRead + Unpin + Send + 'static) {
    let mut lines = BufReader::new(errors).lines();
    let mut before = Vec::new();
    loop {
        let line = lines.next_line().await.expect("a log");
        let Some(line) = line else { panic!("it ended:\n{}", before.join("\n")) };
        assert!(!line.contains("ERROR"), "{line}");
        if line.contains("configuration installed") {
            break;
        }
        before.push(line);
    }
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
}

/// Copies the resources with other ports in them.
fn copy(from: &Path, to: &Path, ports: &BTreeMap<u16, u16>) {
    fs::create_dir(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let mut text = fs::read_to_string(&path).expect("a file");
            // Not from one to the next, should a new port be one of the old.
            for old in ports.keys() {
                text = text.replace(&format!("port: {old}"), &format!("port: <{old}>"));
            }
            for (old, new) in ports {
                text = text.replace(&format!("port: <{old}>"), &format!("port: {new}"));
            }
            fs::write(to.join(path.file_name().expect("a name")), text).expect("a file");
        }
    }
}

/// A request to be made; `http://host:port/path` goes to the listener of that port, whatever the host.
pub struct Ask<'a> {
    gateway: &'a Gateway,
    method: Method,
    url: &'a str,
    headers: HeaderMap,
    body: Bytes,
    preface: String,
    identity: bool,
    http2: bool,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Ask<'_> {
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(name, value.parse().expect("a value"));
        self
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sent before anything else.
    pub fn preface(mut self, line: &str) -> Self {
        self.preface = line.to_owned();
        self
    }

    /// Shows the client certificate of the example.
    pub fn identity(mut self) -> Self {
        self.identity = true;
        self
    }

    /// HTTP/2 with prior knowledge.
    pub fn http2(mut self) -> Self {
        self.http2 = true;
        self
    }

    pub async fn send(self) -> Answer {
        self.try_send().await.expect("an answer")
    }

    /// An error when the connection does not come about, or ends.
    pub async fn try_send(self) -> Result<Answer, Box<dyn std::error::Error>> {
        tokio::time::timeout(PATIENCE, self.exchange()).await?
    }

    async fn exchange(self) -> Result<Answer, Box<dyn std::error::Error>> {
        let (scheme, rest) = self.url.split_once("://").expect("a URL");
        let (authority, path) = rest.split_once('/').expect("a path");
        let (host, port) = authority.split_once(':').expect("a port");
        let mut stream = self.gateway.connect(port.parse().expect("a port")).await;
        stream.write_all(self.preface.as_bytes()).await?;
        let uri = if self.http2 { format!("http://{host}/{path}") } else { format!("/{path}") };
        let mut request = Request::builder().method(self.method.clone()).uri(uri);
        if !self.http2 {
            request = request.header("host", host);
        }
        let mut request = request.body(Full::new(self.body.clone()))?;
        request.headers_mut().extend(self.headers.clone());
        if scheme == "https" {
            let name = ServerName::try_from(host.to_owned())?;
            let stream = self.gateway.tls(self.identity).connect(name, stream).await?;
            exchange(stream, request, self.http2).await
        } else {
            exchange(stream, request, self.http2).await
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
    http2: bool,
) -> Result<Answer, Box<dyn std::error::Error>> {
    let io = TokioIo::new(stream);
    let response = if http2 {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        sender.send_request(request).await?
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        tokio::spawn(connection);
        sender.send_request(request).await?
    };
    let (head, body) = response.into_parts();
    let body = body.collect().await?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes(), trailers })
}

impl Answer {
    /// Asserts the status.
    pub fn is(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// Asserts that the body holds a text.
    pub fn has(&self, text: &str) -> &Self {
        assert!(self.text().contains(text), "no `{text}` in:\n{}", self.text());
        self
    }

    /// A header, or an empty text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
