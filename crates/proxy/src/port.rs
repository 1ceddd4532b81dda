//! One port that connections of or to workloads go to: of a Service they call, or of the workload itself. What is spoken
//! there decides how a connection is served.

use crate::{
    Error,
    access::{self, At, Live},
    connection::{self, Conn},
    detect::{self, Ahead, Detected, Guess},
    drain::Drain,
    error::Kind,
    io::Io,
    l4::{self, Refusal, Upstream},
    passage, sniff,
    table::{ListenerTable, LiveHttp},
    telemetry::{ListenerHandle, Record, RouteMetrics, Telemetry},
    tunnel,
};
use selvedge_compile::snapshot::{Destination, HttpListener, InboundPort, L4Options, L4Route, Speaks};
use selvedge_wire::client_hello::MAX_BYTES as HELLO_BYTES;
use std::{net::SocketAddr, pin::Pin, sync::Arc};
use tokio::time::Instant;

/// A port linked to live state.
pub struct LivePort {
    pub speaks: Speaks,
    pub http: Option<Arc<LiveHttp>>,
    pub tcp: Option<Arc<L4Route>>,
    pub streams: Arc<L4Options>,
    /// For records of connections.
    pub handle: Arc<ListenerHandle>,
    /// Counters of `tcp`.
    pub route: Option<Arc<RouteMetrics>>,
}

impl LivePort {
    /// Whether connections are passed on to where they were going.
    pub fn is_passed(&self) -> bool {
        self.http.is_none() && self.tcp.is_none()
    }
}

/// What links ports needs to know besides them.
pub struct Linker<'a> {
    pub telemetry: &'a Telemetry,
    /// Of the listener as a whole, whose handle ports with the same options share.
    pub streams: &'a Arc<L4Options>,
    pub handle: &'a Arc<ListenerHandle>,
}

impl Linker<'_> {
    pub fn destination(&self, destination: &Destination, before: Option<&LivePort>) -> LivePort {
        let Destination { speaks, http, tcp, streams, .. } = destination;
        self.link(*speaks, http.as_ref(), tcp.as_ref(), streams, before)
    }

    pub fn port(&self, port: &InboundPort, before: Option<&LivePort>) -> LivePort {
        let InboundPort { speaks, http, tcp, streams, .. } = port;
        self.link(*speaks, http.as_ref(), tcp.as_ref(), streams, before)
    }

    fn link(
        &self,
        speaks: Speaks,
        http: Option<&Arc<HttpListener>>,
        tcp: Option<&Arc<L4Route>>,
        streams: &Arc<L4Options>,
        before: Option<&LivePort>,
    ) -> LivePort {
        let http = http.map(|http| {
            let before = before.and_then(|before| before.http.as_ref());
            match before.filter(|before| Arc::ptr_eq(&before.config, http)) {
                Some(live) => live.clone(),
                None => Arc::new(LiveHttp::link(http, self.telemetry, before.map(Arc::as_ref))),
            }
        });
        let shared = Arc::ptr_eq(streams, self.streams);
        LivePort {
            speaks,
            http,
            tcp: tcp.cloned(),
            streams: streams.clone(),
            handle: if shared { self.handle.clone() } else { self.telemetry.stream_listener(streams) },
            route: tcp.map(|route| self.telemetry.route(&streams.name, &route.name)),
        }
    }
}

/// A connection whose port is known.
pub struct Visit {
    pub io: Io,
    pub site: Site,
    pub drain: Drain,
    /// For the first bytes of a client that speaks first.
    pub deadline: Instant,
}

/// Where a connection goes, and with what its requests are served.
pub struct Site {
    pub conn: Conn,
    pub table: Arc<ListenerTable>,
    pub port: Arc<LivePort>,
    /// Where bytes go when the port has no route: to the address that was asked for.
    pub direct: Option<SocketAddr>,
}

/// A tunnel while it is served.
type Run = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A way to the server that was tried.
struct Opened(Result<Upstream, Refusal>);

impl Ahead for Opened {
    fn io(&mut self) -> Option<&mut Io> {
        self.0.as_mut().ok().map(|upstream| &mut upstream.io)
    }
}

/// What a connection is.
pub enum Judged {
    Http {
        http2: bool,
    },
    /// Mutual TLS that is meant for us.
    Mutual,
    Bytes(Box<Account>),
}

/// The account of a connection that is passed on as bytes, and the way to the server if that was begun.
pub struct Account {
    record: Record,
    upstream: Option<Result<Upstream, Refusal>>,
}

impl Site {
    fn record(&self) -> Record {
        l4::begin(&self.conn.facts, &self.port.handle, self.port.route.as_ref())
    }

    /// The way to the server.
    async fn open(&self, record: &mut Record) -> Result<Upstream, Refusal> {
        match (&self.port.tcp, self.direct) {
            (None, Some(to)) => passage::open(&self.conn.shared, self.table.config.bind.netns, to).await,
            (route, _) => l4::open(route.as_deref(), &self.table.clusters, &self.conn.facts, record).await,
        }
    }

    /// Who comes to a workload, to be judged now and when policies change. What leaves one is judged where it arrives.
    fn live(&self) -> Option<Live> {
        let access = self.table.inbound()?.config.access.clone();
        let Conn { shared, listener, facts, .. } = &self.conn;
        Some(Live::stream(&At { shared, listener, facts, table: &self.table }, &self.port.streams, Some(access)))
    }

    /// Judges whoever comes to a workload by what no request could change, before there is one; otherwise the error is noted.
    fn admit(&self, http: bool) -> Result<(), Error> {
        let Some(live) = self.table.inbound() else { return Ok(()) };
        access::connection(&live.config.access, &self.conn.facts, http, &self.table.counts)
            .inspect_err(|error| self.record().failed(error))
    }

    /// Whether the way to the server may be made before it is known what comes: an application does not even see a
    /// connection of whom it does not let in.
    fn may_prepare(&self, http: bool) -> bool {
        let inbound = self.table.inbound();
        inbound.is_none_or(|live| access::may_prepare(&live.config.access, &self.conn.facts, http))
    }

    /// Whether nothing but bytes can come.
    pub fn is_bytes(&self) -> bool {
        self.port.speaks == Speaks::Tcp || self.port.http.is_none()
    }
}

impl Visit {
    /// Serves the connection by what is spoken on the port.
    pub async fn serve(mut self) -> Result<(), Error> {
        let judged = self.judge(None).await?;
        self.go_on(judged).await
    }

    /// Looks at the connection as far as is needed to know what it is. With `mutual` it may also be mutual TLS with that
    /// protocol name.
    pub async fn judge(&mut self, mutual: Option<&[u8]>) -> Result<Judged, Error> {
        let bytes_only = self.site.is_bytes();
        if mutual.is_none() && bytes_only {
            return Ok(Judged::Bytes(Box::new(Account { record: self.site.record(), upstream: None })));
        }
        if self.site.port.speaks == Speaks::Http && !bytes_only {
            return self.judge_http(mutual).await;
        }
        let judge = |bytes: &[u8]| match mutual.map_or_else(|| detect::guess(bytes), |m| detect::guess_mutual(bytes, m))
        {
            guess @ (Guess::Mutual | Guess::Hello) => guess,
            _ if bytes_only => Guess::Bytes,
            guess => guess,
        };
        let mut record = self.site.record();
        let ahead = self.site.may_prepare(!bytes_only);
        let mut io = std::mem::replace(&mut self.io, Io::nothing());
        let detected = detect::detect(&mut io, judge, ahead, async { Opened(self.site.open(&mut record).await) }).await;
        self.io = io;
        Ok(match detected {
            Detected::Http { http2 } => {
                record.withdraw();
                Judged::Http { http2 }
            }
            Detected::Mutual => {
                record.withdraw();
                Judged::Mutual
            }
            Detected::Bytes(opened) => {
                Judged::Bytes(Box::new(Account { record, upstream: opened.map(|Opened(upstream)| upstream) }))
            }
        })
    }

    /// In HTTP the client speaks first.
    async fn judge_http(&mut self, mutual: Option<&[u8]>) -> Result<Judged, Error> {
        if let Some(alpn) = mutual {
            let judge = |bytes: &[u8]| match detect::guess_mutual(bytes, alpn) {
                Guess::Hello => None,
                guess => Some(guess == Guess::Mutual),
            };
            if detect::first_words(&mut self.io, self.deadline, HELLO_BYTES, judge).await == Some(true) {
                return Ok(Judged::Mutual);
            }
        }
        let io = std::mem::replace(&mut self.io, Io::nothing());
        let (io, http2) = sniff::http_version(io, self.deadline).await?;
        self.io = io;
        Ok(Judged::Http { http2 })
    }

    /// Serves a connection that was judged.
    pub async fn go_on(self, judged: Judged) -> Result<(), Error> {
        match (judged, &self.site.port.http) {
            (Judged::Http { http2 }, Some(http)) => {
                self.site.admit(true).inspect_err(|_| tunnel::reset(&self.io))?;
                let options = http.config.options.clone();
                let http2 = http2 && options.http2_enabled;
                let Site { conn, table, .. } = self.site;
                // Who has come to a workload in clear text may have to go.
                if table.inbound().is_some() && conn.facts.source.is_none() {
                    let (shared, listener, facts) = (conn.shared.clone(), conn.listener.clone(), conn.facts.clone());
                    let strict = async move { access::until_strict(&shared, &listener, &facts).await };
                    return Box::pin(connection::http_until(strict, self.io, http2, conn, &options, self.drain)).await;
                }
                connection::http(self.io, http2, conn, &options, self.drain).await
            }
            (Judged::Bytes(account), _) => {
                let Account { record, upstream } = *account;
                self.carry(upstream, record).await;
                Ok(())
            }
            // Whoever asks for mutual TLS looks for it in the answer.
            (Judged::Http { .. } | Judged::Mutual, _) => Ok(()),
        }
    }

    /// What is done with a tunnel to the port, whose bytes come later. A server that cannot be reached is told of at once
    /// where only bytes can come, so that the client may try another one.
    ///
    /// # Errors
    /// That server cannot be reached; it has been accounted for.
    pub async fn accept(mut self) -> Result<impl FnOnce(Io) -> Run + Send + 'static, Error> {
        let mut judged = None;
        self.site.admit(!self.site.is_bytes())?;
        if self.site.is_bytes() {
            let mut record = self.site.record();
            match self.site.open(&mut record).await {
                Ok(upstream) => {
                    judged = Some(Judged::Bytes(Box::new(Account { record, upstream: Some(Ok(upstream)) })))
                }
                Err(refusal) => {
                    let error = Error::upstream(Kind::Connect, refusal.to_string());
                    refusal.note(&mut record);
                    return Err(error);
                }
            }
        }
        Ok(move |io| -> Run {
            Box::pin(async move {
                self.io = io;
                self.deadline = Instant::now() + self.site.table.config.options.handshake_timeout;
                let ended = match judged {
                    Some(judged) => self.go_on(judged).await,
                    None => self.serve().await,
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection inside of a tunnel ended");
                }
            })
        })
    }

    /// Passes bytes both ways, after the client has been judged.
    async fn carry(self, upstream: Option<Result<Upstream, Refusal>>, mut record: Record) {
        let Self { io, site, drain, .. } = self;
        let stream = l4::Stream {
            io,
            worker: site.conn.worker,
            facts: site.conn.facts.clone(),
            handle: site.port.handle.clone(),
            metrics: site.port.route.clone(),
            options: site.port.streams.clone(),
            drain,
            live: site.live(),
        };
        if !l4::admitted(&stream, &mut record) {
            return;
        }
        let upstream = match upstream {
            Some(upstream) => upstream,
            None => site.open(&mut record).await,
        };
        l4::carry(stream, upstream, record).await;
    }
}
