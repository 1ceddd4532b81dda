//! Small TCP and UDP peers on loopback.

use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinHandle,
};

/// A server that ends with the test (when it is dropped).
pub struct Server {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Serves each connection with `serve`.
    pub async fn tcp<F, R>(serve: F) -> Self
    where
        F: Fn(TcpStream) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
        Self { address, task }
    }

    /// Writes `greeting`, then everything it reads until the client closes its half, then closes.
    pub async fn echo(greeting: &'static str) -> Self {
        Self::tcp(move |mut stream| async move {
            if stream.write_all(greeting.as_bytes()).await.is_ok() {
                let (mut read, mut write) = stream.split();
                if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                    let _ = write.shutdown().await;
                }
            }
        })
        .await
    }

    /// Reads until the client closes its half, and only then answers with all of it.
    pub async fn echo_at_end() -> Self {
        Self::tcp(|mut stream| async move {
            let mut all = Vec::new();
            if stream.read_to_end(&mut all).await.is_ok() {
                let _ = stream.write_all(&all).await;
            }
        })
        .await
    }

    /// Sends every datagram back with `prefix` in front.
    pub async fn udp_echo(prefix: &'static str) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("an address");
        let task = tokio::spawn(async move {
            let mut buf = vec![0; 65_536];
            while let Ok((n, from)) = socket.recv_from(&mut buf).await {
                let _ = socket.send_to(&[prefix.as_bytes(), &buf[..n]].concat(), from).await;
            }
        });
        Self { address, task }
    }
}

/// Both ends of a TCP connection: the one that connected, and the accepted one.
pub async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (connected, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (connected, accepted) = (connected.expect("a connection"), accepted.expect("a connection").0);
    // As the data plane does; small writes would wait for delayed acknowledgements otherwise.
    connected.set_nodelay(true).expect("nodelay");
    accepted.set_nodelay(true).expect("nodelay");
    (connected, accepted)
}

/// A loopback address at which UDP is refused, as long as the socket is held that has the port for itself.
pub async fn closed_udp_port() -> (SocketAddr, UdpSocket) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("an address");
    // It takes datagrams of its own only.
    socket.connect(address).await.expect("an address");
    (address, socket)
}

/// A loopback address on which nothing listens, and nobody will.
pub async fn closed_port() -> SocketAddr {
    crate::selvedge::free_port()
}
