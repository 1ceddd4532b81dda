//! The first bytes of a connection: the PROXY header in front of everything, and which HTTP a plaintext client speaks.

use crate::{Error, error::Kind, io::Io, telemetry::Limit};
use bytes::{Bytes, BytesMut};
use selvedge_compile::snapshot::ProxyProtocolIn;
use selvedge_wire::proxy_protocol::{self, Header, Parse, ProxyError};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::TcpStream,
    time::{Instant, timeout_at},
};

/// What stands in front of a connection's bytes.
#[derive(Debug, Default)]
pub struct Proxied {
    /// Source and destination of the connection to the proxy before us. `None`: there was no header, or it was sent
    /// for a connection of that proxy itself (LOCAL, UNKNOWN), so that the socket's own addresses hold.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// Bytes that were read behind the header.
    pub read: Bytes,
}

/// Bytes read at once; a version 1 header, or a version 2 header without many extensions, fits.
const READ: usize = 256;

/// Reads the PROXY header that a listener wants.
///
/// With [`ProxyProtocolIn::Optional`] a client that waits for the server to speak first is let through when the
/// deadline passes without a byte.
pub async fn proxy_header(tcp: &mut TcpStream, mode: ProxyProtocolIn, deadline: Instant) -> Result<Proxied, Error> {
    if mode == ProxyProtocolIn::Off {
        return Ok(Proxied::default());
    }
    let mut read = BytesMut::new();
    match timeout_at(deadline, read_header(tcp, &mut read)).await {
        Ok(Ok(Some((header, length)))) => {
            let read = read.split_off(length).freeze();
            Ok(Proxied { addresses: header.source.zip(header.destination), read })
        }
        Ok(Ok(None)) if mode == ProxyProtocolIn::Optional => Ok(Proxied { addresses: None, read: read.freeze() }),
        Ok(Ok(None)) => {
            Err(Error::bad_request(400, "the connection does not begin with the PROXY header this listener requires"))
        }
        Ok(Err(error)) => Err(error),
        Err(_) if mode == ProxyProtocolIn::Optional && read.is_empty() => Ok(Proxied::default()),
        Err(_) => Err(Error::downstream(Kind::Timeout, "no PROXY header within the handshake timeout")
            .over(Limit::HandshakeTimeout)),
    }
}

/// The header and its length, or `None` when the connection begins with something else.
async fn read_header(tcp: &mut TcpStream, read: &mut BytesMut) -> Result<Option<(Box<Header>, usize)>, Error> {
    loop {
        match proxy_protocol::parse(read) {
            Ok(Parse::Done(header, length)) => return Ok(Some((header, length))),
            Ok(Parse::NotProxy) => return Ok(None),
            Ok(Parse::Incomplete) => more(tcp, read, READ).await?,
            Err(error) => {
                if matches!(error, ProxyError::TooLong) {
                    Limit::InspectedBytes.hit();
                }
                return Err(Error::bad_request(400, error.to_string()));
            }
        }
    }
}

/// The connection preface of HTTP/2 (RFC 9113 section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether a plaintext client speaks HTTP/2 with prior knowledge. Decided by the first byte that differs from the
/// preface; nothing is lost of what was read. A client that stops, or leaves, while both are possible is one of HTTP/1.1 with
/// an incomplete head, which is answered and recorded as such.
pub async fn http_version(mut io: Io, deadline: Instant) -> Result<(Io, bool), Error> {
    let mut read = BytesMut::new();
    let looked = timeout_at(deadline, async {
        while read.len() < PREFACE.len() {
            let missing = PREFACE.len() - read.len();
            more(&mut io, &mut read, missing).await?;
            if !PREFACE.starts_with(&read) {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await;
    let http2 = match looked {
        Ok(Ok(http2)) => http2,
        _ if !read.is_empty() => false,
        Ok(Err(error)) => return Err(error),
        Err(_) => {
            return Err(Error::downstream(Kind::Timeout, "nothing was sent within the handshake timeout")
                .over(Limit::HandshakeTimeout));
        }
    };
    io.unread(read.freeze());
    Ok((io, http2))
}

/// Reads something, at most `limit` bytes.
async fn more(io: &mut (impl AsyncRead + Unpin), read: &mut BytesMut, limit: usize) -> Result<(), Error> {
    read.reserve(limit);
    match io.take(limit as u64).read_buf(read).await {
        Ok(0) => Err(Error::downstream(Kind::Reset, "the client closed the connection before it said anything")),
        Ok(_) => Ok(()),
        Err(error) => {
            Err(Error::downstream(Kind::Reset, "reading the first bytes of the connection").with_source(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvedge_testkit::tcp;
    use std::time::Duration;
    use tokio::io::AsyncWriteExt;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    /// Sends the pieces one by one; gives the result and what can be read behind it.
    async fn send(mode: ProxyProtocolIn, pieces: &[&[u8]]) -> (Result<Proxied, Error>, Vec<u8>) {
        let (mut client, mut server) = tcp::pair().await;
        client.set_nodelay(true).expect("nodelay");
        let write = async move {
            for piece in pieces {
                // The reader may have closed already.
                let _ = client.write_all(piece).await;
                tokio::task::yield_now().await;
            }
            drop(client);
        };
        let (result, ()) = tokio::join!(proxy_header(&mut server, mode, soon()), write);
        let mut rest = result.as_ref().map_or(Vec::new(), |p| p.read.to_vec());
        if result.is_ok() {
            let _ = server.read_to_end(&mut rest).await;
        }
        (result, rest)
    }

    #[tokio::test]
    async fn headers_are_taken_off() {
        let v1 = b"PROXY TCP4 192.0.2.1 192.0.2.9 5000 443\r\n";
        let expected =
            Some(("192.0.2.1:5000".parse().expect("an address"), "192.0.2.9:443".parse().expect("an address")));
        let mut v2 = Vec::new();
        proxy_protocol::write_v2(expected, &proxy_protocol::Tlvs::default(), &mut v2).expect("a header");
        for header in [&v1[..], &v2] {
            for mode in [ProxyProtocolIn::Required, ProxyProtocolIn::Optional] {
                let (first, second) = header.split_at(9);
                for pieces in
                    [vec![header, b"GET /"], vec![first, second, b"GET /"], vec![&[header, b"GET /"].concat()]]
                {
                    let (result, rest) = send(mode, &pieces).await;
                    assert_eq!(result.expect("a header").addresses, expected);
                    assert_eq!(rest, b"GET /");
                }
            }
            let (result, rest) = send(ProxyProtocolIn::Off, &[header]).await;
            assert_eq!(result.expect("untouched").addresses, None);
            assert_eq!(rest, header);
        }
        let (result, rest) = send(ProxyProtocolIn::Required, &[b"PROXY UNKNOWN\r\nx"]).await;
        assert_eq!(result.expect("a header").addresses, None);
        assert_eq!(rest, b"x");
    }

    #[tokio::test]
    async fn missing_headers_are_refused_or_not() {
        let (result, _) = send(ProxyProtocolIn::Required, &[b"GET / HTTP/1.1\r\n"]).await;
        assert!(result.expect_err("refused").to_string().contains("requires"));
        let (result, rest) = send(ProxyProtocolIn::Optional, &[b"GET / HTTP/1.1\r\n"]).await;
        assert!(result.is_ok());
        assert_eq!(rest, b"GET / HTTP/1.1\r\n");
        let (result, _) = send(ProxyProtocolIn::Optional, &[b"PROXY TCP4 1 2 3 4\r\n"]).await;
        assert!(matches!(result.expect_err("refused").kind, Kind::Protocol { .. }));
        let (result, _) = send(ProxyProtocolIn::Required, &[b"PROXY TCP4 1"]).await;
        assert_eq!(result.expect_err("refused").kind, Kind::Reset);
        // Longer than any version 1 header.
        let (result, _) = send(ProxyProtocolIn::Required, &[&[&b"PROXY "[..], &[b'x'; 4096]].concat()]).await;
        assert!(result.expect_err("refused").to_string().contains("longer than its limit"));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_at_the_deadline() {
        let (_client, mut server) = tcp::pair().await;
        let result = proxy_header(&mut server, ProxyProtocolIn::Required, soon()).await;
        assert_eq!(result.expect_err("refused").kind, Kind::Timeout);
        assert!(proxy_header(&mut server, ProxyProtocolIn::Optional, soon()).await.is_ok());
        let result = http_version(server.into(), soon()).await;
        assert_eq!(result.map(|_| ()).expect_err("refused").kind, Kind::Timeout);
    }

    #[tokio::test]
    async fn prior_knowledge_is_seen() {
        let requests: [(&[u8], bool); 4] = [
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04", true),
            (b"POST / HTTP/1.1\r\n\r\n", false),
            (b"PRI * HTTP/1.1\r\nhost: a\r\n\r\n", false),
            (b"G", false),
        ];
        for (request, http2) in requests {
            for split in [1, 10.min(request.len()), request.len()] {
                let (mut client, server) = tokio::io::duplex(64);
                let write = async move {
                    let (first, second) = request.split_at(split);
                    client.write_all(first).await.expect("write");
                    tokio::task::yield_now().await;
                    client.write_all(second).await.expect("write");
                };
                let (result, ()) = tokio::join!(http_version(Io::other(server), soon()), write);
                let (mut io, found) = result.expect("a version");
                assert_eq!(found, http2);
                let mut all = Vec::new();
                io.read_to_end(&mut all).await.expect("read");
                assert_eq!(all, request);
            }
        }
    }
}
