//! The one error of the data plane: what happened, on whose side, and why.

use crate::{jwt::Reason, telemetry::Limit};
use std::{borrow::Cow, fmt};

/// What went wrong with a connection or an exchange. `reply` alone turns it into a response.
pub struct Error {
    pub kind: Kind,
    pub side: Side,
    /// What a person needs to know, without trailing full stop.
    pub message: Cow<'static, str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// On whose side the cause lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Downstream,
    Upstream,
    /// Selvedge itself: a limit, overload, draining, or a defect.
    Us,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A message that breaks its protocol; for requests the status to answer with.
    Protocol {
        status: u16,
    },
    /// The TCP connection could not be made.
    Connect,
    ConnectTimeout,
    /// TLS handshake or certificate verification failed.
    Tls,
    /// The peer reset or closed the connection or stream in the middle of an exchange.
    Reset,
    /// The peer refused the stream before looking at it (HTTP/2 REFUSED_STREAM, GOAWAY): always safe to retry.
    Refused,
    /// A timer ran out; the name of the timer is in the message.
    Timeout,
    /// A body or header block over its limit; the status to answer with.
    TooLarge {
        status: u16,
    },
    /// A circuit breaker limit (connections, pending, requests, retries) is reached.
    Overflow,
    /// No endpoint can take the request.
    NoEndpoint,
    /// The other side of the exchange went away, so this one was given up.
    Cancelled,
    /// Overload: memory or connections are above their threshold.
    Shed,
    /// An AccessPolicy, or the default where there is none, does not allow it.
    Denied,
    /// Who asks has not proven who they are, as an AuthPolicy demands.
    Unproven(Reason),
    Internal,
}

impl Error {
    pub fn new(kind: Kind, side: Side, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, side, message: message.into(), source: None }
    }

    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The error is what a limit is for, which is counted by this.
    pub fn over(self, limit: Limit) -> Self {
        limit.hit();
        self
    }

    /// A request that breaks the protocol, to be answered with `status`.
    pub fn bad_request(status: u16, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Protocol { status }, Side::Downstream, message)
    }

    pub fn upstream(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(kind, Side::Upstream, message)
    }

    pub fn downstream(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(kind, Side::Downstream, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?}: {self}", self.side, self.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|s| s as _)
    }
}
