//! Message bodies, and what takes their place when a connection changes its protocol.

use crate::{Error, io::Io};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

type Stream = Pin<Box<dyn HttpBody<Data = Bytes, Error = Error> + Send>>;
type TunnelFn = Box<dyn FnOnce(Io) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// A body of a request or response: data frames, then perhaps trailers.
#[derive(Default)]
pub struct Body(Kind);

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    /// The rest of a body that ends with trailers.
    Trailed(Bytes, Box<HeaderMap>),
    Stream(Stream),
    /// In a response to an upgrade (101) or CONNECT (2xx): what to do with the client's connection once the
    /// head has been written. The codec calls it and is done with the connection or stream when it returns.
    Tunnel(TunnelFn),
    /// In a response from an upstream that switched protocols: its connection.
    Upgraded(Box<Io>),
}

impl Body {
    pub const fn empty() -> Self {
        Self(Kind::Empty)
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::empty() } else { Self(Kind::Full(bytes)) }
    }

    /// A body that is already here and ends with trailers.
    pub fn trailed(bytes: Bytes, trailers: HeaderMap) -> Self {
        Self(Kind::Trailed(bytes, Box::new(trailers)))
    }

    pub fn stream(body: impl HttpBody<Data = Bytes, Error = Error> + Send + 'static) -> Self {
        Self(Kind::Stream(Box::pin(body)))
    }

    pub fn tunnel<F, R>(f: F) -> Self
    where
        F: FnOnce(Io) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self(Kind::Tunnel(Box::new(move |io| Box::pin(f(io)))))
    }

    pub fn upgraded(io: Io) -> Self {
        Self(Kind::Upgraded(Box::new(io)))
    }

    /// Takes the tunnel out, leaving an empty body.
    pub fn take_tunnel(&mut self) -> Option<TunnelFn> {
        match std::mem::take(&mut self.0) {
            Kind::Tunnel(f) => Some(f),
            other => {
                self.0 = other;
                None
            }
        }
    }

    /// Takes the upgraded connection out, leaving an empty body.
    pub fn take_upgraded(&mut self) -> Option<Io> {
        match std::mem::take(&mut self.0) {
            Kind::Upgraded(io) => Some(*io),
            other => {
                self.0 = other;
                None
            }
        }
    }

    /// Nothing is waited for any more: all of the body is here, its trailers included.
    pub fn is_whole(&self) -> bool {
        matches!(self.0, Kind::Empty | Kind::Full(_) | Kind::Trailed(..))
    }

    /// The trailers, when they are already here.
    pub fn trailers(&self) -> Option<&HeaderMap> {
        match &self.0 {
            Kind::Trailed(_, trailers) => Some(trailers),
            _ => None,
        }
    }

    /// Bytes of a body that [is whole](Body::is_whole); 0 of any other.
    pub fn whole_len(&self) -> u64 {
        match &self.0 {
            Kind::Full(bytes) | Kind::Trailed(bytes, _) => bytes.len() as u64,
            _ => 0,
        }
    }

    /// The whole body, when it is already here (empty or full) and has no trailers.
    pub fn as_full(&self) -> Option<Bytes> {
        match &self.0 {
            Kind::Empty => Some(Bytes::new()),
            Kind::Full(bytes) => Some(bytes.clone()),
            _ => None,
        }
    }

    pub fn is_empty(&self) -> bool {
        matches!(self.0, Kind::Empty)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.0 {
            Kind::Stream(stream) => stream.as_mut().poll_frame(cx),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Trailed(bytes, _) if !bytes.is_empty() => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Trailed(_, trailers) => {
                let trailers = std::mem::take(&mut **trailers);
                self.0 = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Kind::Empty | Kind::Tunnel(_) | Kind::Upgraded(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Stream(stream) => stream.is_end_stream(),
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Trailed(..) => false,
            Kind::Empty | Kind::Tunnel(_) | Kind::Upgraded(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Stream(stream) => stream.size_hint(),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            // Whoever frames it by its length would lose the trailers.
            Kind::Trailed(..) => SizeHint::default(),
            Kind::Empty | Kind::Tunnel(_) | Kind::Upgraded(_) => SizeHint::with_exact(0),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Empty => "Body(empty)",
            Kind::Full(_) => "Body(full)",
            Kind::Trailed(..) => "Body(trailed)",
            Kind::Stream(_) => "Body(stream)",
            Kind::Tunnel(_) => "Body(tunnel)",
            Kind::Upgraded(_) => "Body(upgraded)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn a_body_that_is_here_yields_its_data_and_then_its_trailers() {
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
        let mut body = Body::trailed("abc".into(), trailers.clone());
        assert!(body.is_whole() && body.as_full().is_none());
        assert_eq!((body.whole_len(), body.size_hint().exact()), (3, None));
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "abc");
        assert!(!body.is_end_stream());
        assert_eq!(body.frame().await.unwrap().unwrap().into_trailers().unwrap(), trailers);
        assert!(body.is_end_stream() && body.frame().await.is_none());
    }
}
