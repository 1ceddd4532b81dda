//! What a request would meet, and why nothing else: `selvedge explain`. It asks the same router that serves requests.

use crate::{
    access::{Asked, By, Layer7, Ruling, Subject},
    hosts,
    router::{Candidate, HostMap, Lookup, Mismatch, Pattern},
    snapshot::{
        Access, Action, Backend, Discovery, Endpoint, Filter, HttpListener, HttpOptions, L4Route, Listener, PathChange,
        Protocol, Redirect, Rule, Snapshot, Split, Target, TlsListener, TlsMode, Unknown,
    },
    summary::{Match, mesh::PeerText},
    words,
};
use http::{HeaderMap, Method};
use selvedge_wire::{forwarded, host, spiffe::SpiffeId, uri};
use serde::Serialize;
use std::{
    borrow::Cow,
    cmp::Ordering,
    fmt::{self, Write},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

/// A request to explain.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: Method,
    /// Absolute: `https://shop.example/cart?x=1`. Scheme and port say which listener it comes to.
    pub url: String,
    pub headers: HeaderMap,
    /// Address of whoever connects: the client, or the last proxy in front. Loopback when it is not given.
    pub from: Option<IpAddr>,
    /// Of the client, as mutual TLS would prove it.
    pub identity: Option<SpiffeId>,
    /// What a verified token of the client says; `None` is who comes without.
    pub claims: Option<serde_json::Value>,
}

/// What a request would meet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// `GET https://shop.example/cart`.
    pub request: String,
    /// Who counts as the client, and why; known once a listener is.
    pub client: Option<Chosen>,
    /// In a mesh: what the URL names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<Chosen>,
    /// In a mesh: who the request is from, by the caller's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// In a mesh: whether the workloads behind the backends let it in. Left empty here, for a caller's proxy does not know;
    /// [`crate::may`] does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub admission: Vec<Ruling>,
    pub listener: Option<Chosen>,
    pub rule: Option<Chosen>,
    /// What AccessPolicies say, and why; `None` where there are none.
    pub access: Option<Chosen>,
    /// In the order in which a request passes them.
    pub filters: Vec<String>,
    /// Where the request goes; empty when it is answered here.
    pub backends: Vec<BackendShare>,
    /// What a backend is asked for, after rewrites.
    pub final_url: Option<String>,
    /// The answer that is given here, if one is.
    pub answer: Option<Answer>,
    /// Timeouts, retries, hedging and session, in words.
    pub settings: Vec<String>,
    /// What lost, most specific first, and why.
    pub lost: Vec<Lost>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chosen {
    pub name: String,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackendShare {
    /// Key of the cluster, or what is answered instead.
    pub to: String,
    pub weight: u32,
    pub total: u32,
    /// `address weight`, or the name that is looked up.
    pub endpoints: Vec<String>,
    pub tls: Option<String>,
    pub filters: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    pub status: u16,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lost {
    pub what: String,
    pub why: String,
}

/// Runner-ups that are shown; the rest is of no help.
const MAX_LOST: usize = 20;

/// Says what a request would meet. A URL that no listener would take is explained too: as an answer of 400.
pub fn explain(snapshot: &Snapshot, request: &Request) -> Explanation {
    explain_by(request, |out| Walk::new(snapshot, request)?.run(out))
}

/// Says what a request of a workload would meet on its way out. The snapshot is that of a proxy beside it
/// ([`crate::Position::Workloads`]).
pub fn explain_outbound(snapshot: &Snapshot, (namespace, workload): (&str, &str), request: &Request) -> Explanation {
    explain_by(request, |out| Walk::new(snapshot, request)?.outbound(namespace, workload, out))
}

fn explain_by(request: &Request, walk: impl FnOnce(&mut Explanation) -> Result<(), Answer>) -> Explanation {
    let mut explanation = Explanation {
        destination: None,
        identity: None,
        admission: Vec::new(),
        request: format!("{} {}", request.method, request.url),
        client: None,
        listener: None,
        rule: None,
        access: None,
        filters: Vec::new(),
        backends: Vec::new(),
        final_url: None,
        answer: None,
        settings: Vec::new(),
        lost: Vec::new(),
    };
    if let Err(answer) = walk(&mut explanation) {
        explanation.answer = Some(answer);
    }
    explanation.lost.truncate(MAX_LOST);
    explanation
}

fn answer(status: u16, why: impl Into<String>) -> Answer {
    Answer { status, why: why.into() }
}

#[derive(Clone)]
struct Walk<'a> {
    snapshot: &'a Snapshot,
    request: &'a Request,
    secure: bool,
    /// The URL is `tcp://…`: bytes of an unknown kind.
    bytes: bool,
    host: String,
    /// What the URL says, if it does.
    port: Option<u16>,
    path: String,
    query: Option<String>,
    /// As routes see them.
    headers: Cow<'a, HeaderMap>,
    client: IpAddr,
}

impl<'a> Walk<'a> {
    fn new(snapshot: &'a Snapshot, request: &'a Request) -> Result<Self, Answer> {
        // How the path is treated is a setting of the listener, which is not known yet.
        let options = uri::PathOptions { escaped_slashes: uri::EscapedSlashes::Keep, ..uri::PathOptions::default() };
        let stream = request.url.strip_prefix("tcp://").map(|rest| format!("http://{rest}"));
        let url = stream.as_deref().unwrap_or(&request.url);
        let target = uri::parse(&request.method, url.as_bytes(), &options).map_err(|e| answer(400, e.to_string()))?;
        let (Some(secure), Some(authority)) = (target.secure, target.authority) else {
            return Err(answer(400, "write the whole URL, as in https://shop.example/cart"));
        };
        let authority = host::parse(authority).map_err(|e| answer(400, e.to_string()))?;
        if stream.is_some() && authority.port.is_none() {
            return Err(answer(400, "name the port, as in tcp://db.shop:5432"));
        }
        Ok(Walk {
            bytes: stream.is_some(),
            snapshot,
            request,
            secure,
            host: authority.host.clone().into_owned(),
            port: authority.port,
            path: target.path().to_owned(),
            query: target.query().map(str::to_owned),
            headers: Cow::Borrowed(&request.headers),
            client: request.from.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        })
    }

    fn lookup(&self) -> Lookup<'_> {
        Lookup {
            host: &self.host,
            path: &self.path,
            query: self.query.as_deref(),
            method: &self.request.method,
            headers: &self.headers,
        }
    }

    fn run(&self, out: &mut Explanation) -> Result<(), Answer> {
        let (socket, how) = self.socket()?;
        match &socket.protocol {
            Protocol::Http(map) => self.http(socket, map, how, out),
            Protocol::Tls(map) => self.tls(socket, map, how, out),
            Protocol::Tcp(l4) | Protocol::Udp(l4) => {
                out.listener = Some(Chosen { name: l4.options.name.to_string(), why: how });
                self.access(l4.options.access.as_ref(), None, out)?;
                self.stream(l4.route.as_ref(), out)
            }
            Protocol::Outbound(_) | Protocol::Inbound(_) => {
                Err(answer(404, format!("{} serves a workload's own connections, not those of a Gateway", socket.bind)))
            }
        }
    }

    /// The way out of a workload.
    fn outbound(&self, namespace: &str, workload: &str, out: &mut Explanation) -> Result<(), Answer> {
        let found = self.snapshot.listeners.iter().find_map(|socket| match &socket.protocol {
            Protocol::Outbound(it) if it.name.namespace == namespace && it.name.name == workload => Some((socket, it)),
            _ => None,
        });
        let Some((socket, outbound)) = found else {
            return Err(answer(0, format!("nothing is served for Workload {namespace}/{workload}: it does not exist")));
        };
        let identity = outbound.identity.as_ref().map_or("nobody", |id| id.as_str());
        out.identity = outbound.identity.as_ref().map(ToString::to_string);
        out.listener = Some(Chosen {
            name: outbound.name.to_string(),
            why: format!("{namespace}/{workload} calls as {identity}"),
        });
        let port = self.port.unwrap_or(host::default_port(self.secure));
        let ip = self.host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
        let found = match ip {
            Some(ip) => outbound.destinations.addresses.get(&(ip, port)),
            None => outbound.destinations.find_name(&self.host, port),
        };
        let Some(found) = found else {
            let why = format!("nothing is known of {}:{port}", self.host);
            return Err(match outbound.unknown {
                Unknown::Pass => answer(0, format!("{why}: the connection is passed on to where it was going")),
                Unknown::Refuse => answer(502, format!("{why}, and the Mesh lets workloads call only what it knows")),
            });
        };
        out.destination = Some(Chosen {
            name: found.name.clone(),
            why: match (ip, found.speaks) {
                (Some(_), _) => "it has that address".to_owned(),
                (None, _) => format!("{} names it in namespace {namespace}", self.host),
            },
        });
        match (&found.http, &found.tcp) {
            (Some(http), _) if !self.secure && !self.bytes => self.route(socket, http, out),
            (_, Some(route)) => self.stream(Some(route), out),
            (Some(_), None) if self.bytes => {
                Err(answer(0, format!("port {port} is declared to speak HTTP: ask for http://{}:{port}/", self.host)))
            }
            (Some(_), None) => {
                Err(answer(0, format!("port {port} is declared to speak HTTP in clear text, so that TLS fails there")))
            }
            (None, None) => Err(answer(0, "the connection is passed on to where it was going")),
        }
    }

    /// The socket that the URL leads to.
    fn socket(&self) -> Result<(&'a Listener, String), Answer> {
        if self.bytes {
            return Err(answer(400, "tcp:// is explained for workloads of a mesh: give --workload NAMESPACE/NAME"));
        }
        let wanted = self.port.unwrap_or(host::default_port(self.secure));
        let tcp = |l: &&'a Arc<Listener>| {
            !matches!(l.protocol, Protocol::Udp(_) | Protocol::Outbound(_) | Protocol::Inbound(_))
        };
        let of_port: Vec<_> = self.snapshot.listeners.iter().filter(tcp).filter(|l| l.bind.port == wanted).collect();
        let suits = |l: &Listener| match l.protocol {
            Protocol::Http(_) => !self.secure,
            Protocol::Tls(_) => self.secure,
            Protocol::Tcp(_) => true,
            Protocol::Udp(_) | Protocol::Outbound(_) | Protocol::Inbound(_) => false,
        };
        // An address in the URL picks among sockets of one port; a name cannot be looked up here.
        let ip = self.host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
        let by_address = of_port.iter().find(|l| ip.is_some() && l.bind.address == ip);
        if let Some(found) = by_address.or_else(|| of_port.iter().find(|l| suits(l))).or(of_port.first()) {
            if !suits(found) {
                let scheme = if self.secure { "https" } else { "http" };
                return Err(answer(400, format!("port {wanted} does not speak {scheme}")));
            }
            return Ok((found, format!("it is on {}", found.bind)));
        }
        // With a port offset, as in the demo, a URL without port means the first socket of its scheme.
        let fallback = self
            .snapshot
            .listeners
            .iter()
            .filter(|_| self.port.is_none())
            .find(|l| suits(l) && !matches!(l.protocol, Protocol::Tcp(_)));
        match fallback {
            Some(found) => {
                Ok((found, format!("nothing is on port {wanted}; {} is the first of its scheme", found.bind)))
            }
            None => {
                let all: Vec<String> = self.snapshot.listeners.iter().map(|l| l.bind.to_string()).collect();
                Err(answer(
                    0,
                    format!("nothing listens on port {wanted}: connection refused; there are: {}", all.join(", ")),
                ))
            }
        }
    }

    fn http(
        &self,
        socket: &'a Listener,
        map: &'a HostMap<Arc<HttpListener>>,
        how: String,
        out: &mut Explanation,
    ) -> Result<(), Answer> {
        let Some(found) = map.find(&self.host) else {
            self.elsewhere(None, out);
            return Err(answer(404, format!("no listener on {} takes the host {}", socket.bind, self.host)));
        };
        let why =
            format!("{how} and its hostname {} is the most specific for {}", host_text(&found.hostname), self.host);
        out.listener = Some(Chosen { name: found.name.to_string(), why });
        self.route(socket, found, out)
    }

    fn tls(
        &self,
        socket: &'a Listener,
        map: &'a HostMap<Arc<TlsListener>>,
        how: String,
        out: &mut Explanation,
    ) -> Result<(), Answer> {
        let Some(found) = map.find(&self.host) else {
            self.elsewhere(None, out);
            return Err(answer(
                0,
                format!("no listener on {} takes the server name {}: the handshake fails", socket.bind, self.host),
            ));
        };
        let why =
            format!("{how} and its hostname {} is the most specific for {}", host_text(&found.hostname), self.host);
        out.listener = Some(Chosen { name: found.name.to_string(), why });
        match &found.mode {
            TlsMode::Http { http, .. } => self.route(socket, http, out),
            TlsMode::Tcp { routes, listener, .. } | TlsMode::Passthrough { routes, listener } => {
                self.access(listener.access.as_ref(), None, out)?;
                self.stream(routes.find(&self.host), out)
            }
        }
    }

    /// What AccessPolicies say to the request, or to bytes that are passed on.
    fn access(&self, access: Option<&Arc<Access>>, rule: Option<&Rule>, out: &mut Explanation) -> Result<(), Answer> {
        let Some(access) = access else { return Ok(()) };
        let of_rule = |rule: &Rule| access.of_route(rule.name.kind, &rule.name.namespace, &rule.name.route);
        let access = rule.map_or(access.as_ref(), of_rule);
        let from = self.request.from.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let identity = self.request.identity.as_ref();
        let layer7 = match rule {
            None => Layer7::Bytes,
            Some(_) => Layer7::Request(Asked {
                method: self.request.method.as_str(),
                host: &self.host,
                path: &self.path,
                query: self.query.as_deref(),
                headers: Some(&self.request.headers),
            }),
        };
        let port = access.port.or(self.port).unwrap_or(host::default_port(self.secure));
        let subject = Subject {
            identity,
            mtls: identity.is_some(),
            peer: from,
            client: self.client,
            port,
            claims: self.request.claims.as_ref(),
            preflight: false,
            layer7,
        };
        let verdict = access.decide(&subject);
        let mut why = verdict.by.to_string();
        for policy in &verdict.audited {
            let _ = write!(why, "; audited by policy {}", policy.name);
        }
        let name = if verdict.allowed { "allowed" } else { "denied" };
        out.access = Some(Chosen { name: name.to_owned(), why: why.clone() });
        match (verdict.allowed, rule) {
            (true, _) => Ok(()),
            (false, Some(_)) => {
                let status = match verdict.by {
                    By::Unproven(auth) if auth.broken.is_some() => 500,
                    By::Unproven(_) => 401,
                    _ => 403,
                };
                Err(answer(status, why))
            }
            (false, None) => Err(answer(0, format!("the connection is reset: {why}"))),
        }
    }

    fn stream(&self, route: Option<&Arc<L4Route>>, out: &mut Explanation) -> Result<(), Answer> {
        let route = route.ok_or_else(|| answer(0, "no route is on the listener: the connection is closed"))?;
        out.rule = Some(Chosen {
            name: format!("{} {}", route.name.kind, route.name),
            why: "it serves all connections".into(),
        });
        match &route.split {
            Some(split) => out.backends = self.shares(split),
            None => return Err(answer(0, "the route has no valid backend: the connection is closed")),
        }
        Ok(())
    }

    /// The request as a listener with these options understands it.
    fn under(&self, options: &HttpOptions, out: &mut Explanation) -> Result<Self, Answer> {
        let bad = |error: uri::UriError| answer(400, error.to_string());
        let target = uri::parse(&self.request.method, self.request.url.as_bytes(), &options.path()).map_err(bad)?;
        let given = self.request.url.split_once("://").map_or("", |(_, rest)| rest);
        let length = given.find(['/', '?']).map_or(0, |at| given.len() - at);
        if length > options.max_target_bytes as usize {
            let limit = options.max_target_bytes;
            return Err(answer(414, format!("path and query have {length} bytes, more than the limit of {limit}")));
        }
        if target.redirect {
            return Err(answer(307, format!("redirect to {}: it has escaped slashes", target.path_and_query)));
        }
        let (peer, trust) = (self.client, options.trust());
        let mut headers = self.request.headers.clone();
        let trusted = trust.trusts(peer);
        if !trusted {
            forwarded::strip_internal(&mut headers);
        }
        let client = forwarded::client(peer, &mut headers, options.forwarded, &trust)
            .map_err(|contradiction| answer(400, contradiction.to_string()))?;
        let port = self.port.unwrap_or(host::default_port(self.secure));
        let hop = forwarded::Hop { peer, host: &self.host, secure: self.secure, port };
        forwarded::write_x_forwarded(&mut headers, &hop);
        let why = match (trusted, client == peer) {
            (false, _) => "it connects, and no proxy in front is trusted".to_owned(),
            (true, true) => format!("{peer} connects, which is trusted to tell the client but does not"),
            (true, false) => format!("{peer} connects, which is trusted to tell the client"),
        };
        out.client = Some(Chosen { name: client.to_string(), why });
        let (path, query) = (target.path().to_owned(), target.query().map(str::to_owned));
        Ok(Self { path, query, headers: Cow::Owned(headers), client, ..self.clone() })
    }

    fn route(&self, socket: &Listener, listener: &'a HttpListener, out: &mut Explanation) -> Result<(), Answer> {
        self.under(&listener.options, out)?.routed(socket, listener, out)
    }

    fn routed(&self, socket: &Listener, listener: &'a HttpListener, out: &mut Explanation) -> Result<(), Answer> {
        let lookup = self.lookup();
        let candidates = listener.router.candidates(&lookup);
        let winner = candidates.iter().position(|c| c.mismatch.is_none());
        for (i, candidate) in candidates.iter().enumerate().filter(|(i, _)| Some(*i) != winner).take(MAX_LOST) {
            out.lost.push(lost(candidate, winner.is_some_and(|w| w < i).then(|| &candidates[winner.unwrap_or(0)])));
        }
        self.elsewhere(Some(listener), out);
        let Some(found) = winner.map(|w| &candidates[w]) else {
            if candidates.is_empty() {
                self.no_path(listener, out);
            }
            return Err(answer(404, format!("no rule on listener {} matches", listener.name)));
        };
        let name = format!("{} {}", found.rule.name.kind, found.rule.name);
        out.rule = Some(Chosen { name, why: format!("it matches {}", Match(found.entry)) });
        self.access(listener.access.as_ref(), Some(found.rule), out)?;
        self.rule(socket, found, out);
        Ok(())
    }

    /// Rules of the right host whose path does not fit.
    fn no_path(&self, listener: &HttpListener, out: &mut Explanation) {
        let mut any_host = false;
        for (host, entries) in listener.router.table() {
            if host.as_deref().is_some_and(|h| !hosts::matches(h, &self.host)) {
                continue;
            }
            any_host = true;
            for entry in entries.into_iter().take(MAX_LOST) {
                let rule = &listener.router.rules()[entry.rule as usize];
                let why = format!("the path {} does not match {}", self.path, Match(entry));
                out.lost.push(Lost { what: format!("{} {}", rule.name.kind, rule.name), why });
            }
        }
        if !any_host {
            let known: Vec<String> = listener.router.hostnames().map(|h| host_text(&h)).take(MAX_LOST).collect();
            let why = format!("it has no route for {}; it has routes for: {}", self.host, known.join(", "));
            out.lost.push(Lost { what: format!("listener {}", listener.name), why });
        }
    }

    /// Routes of other listeners that would take the request if it came there.
    fn elsewhere(&self, chosen: Option<&HttpListener>, out: &mut Explanation) {
        let lookup = self.lookup();
        for socket in &self.snapshot.listeners {
            let all: Vec<&Arc<HttpListener>> = match &socket.protocol {
                Protocol::Http(map) => map.values().collect(),
                Protocol::Tls(map) => map.values().filter_map(|tls| http_of(tls)).collect(),
                _ => Vec::new(),
            };
            let mut all: Vec<_> = all.into_iter().filter(|l| chosen.is_none_or(|c| c.name != l.name)).collect();
            all.sort_by(|a, b| a.name.cmp(&b.name));
            for listener in all {
                let Some(found) = listener.router.find(&lookup) else { continue };
                let hostname = host_text(&listener.hostname);
                let covers = listener.hostname.as_deref().is_none_or(|h| hosts::matches(h, &self.host));
                let why = match chosen {
                    Some(chosen) if covers && self.shares_socket(socket, chosen) => {
                        format!("listener {} has the hostname {hostname}, which is less specific", listener.name)
                    }
                    _ => format!("listener {} is on {} for the hostname {hostname}", listener.name, socket.bind),
                };
                out.lost.push(Lost { what: format!("{} {}", found.rule.name.kind, found.rule.name), why });
            }
        }
    }

    fn shares_socket(&self, socket: &Listener, chosen: &HttpListener) -> bool {
        match &socket.protocol {
            Protocol::Http(map) => map.values().any(|l| l.name == chosen.name),
            Protocol::Tls(map) => map.values().any(|l| l.name == chosen.name),
            _ => false,
        }
    }

    fn rule(&self, socket: &Listener, found: &Candidate<'_>, out: &mut Explanation) {
        let rule = found.rule;
        out.filters = rule.filters.iter().map(|f| words::filter(self.snapshot, f)).collect();
        let (mut host, mut path) = (self.host.clone(), self.path.clone());
        for filter in &rule.filters {
            match filter {
                Filter::Rewrite(rewrite) => {
                    host = rewrite.host.clone().unwrap_or(host);
                    path =
                        rewrite.path.as_ref().map_or(path.clone(), |change| changed(&path, change, &found.entry.path));
                }
                Filter::Redirect(redirect) => {
                    let to = self.location(socket, redirect, &found.entry.path);
                    out.answer = Some(answer(redirect.status, format!("redirect to {to}")));
                    return;
                }
                Filter::Direct(direct) => {
                    out.answer = Some(answer(direct.status.as_u16(), "a direct response of a TrafficPolicy"));
                    return;
                }
                _ => {}
            }
        }
        match &rule.action {
            Action::Forward(split) => {
                out.backends = self.shares(split);
                let query = self.query.as_deref().map(|q| format!("?{q}")).unwrap_or_default();
                let secure = out.backends.iter().any(|b| b.tls.is_some());
                out.final_url = Some(format!("{}://{host}{path}{query}", if secure { "https" } else { "http" }));
            }
            Action::Fixed { status, reason } => out.answer = Some(answer(*status, reason.clone())),
        }
        out.settings = settings(rule);
        if let Action::Forward(split) = &rule.action {
            let clusters = split.backends.iter().filter_map(|backend| match &backend.target {
                Target::Cluster(id) => Some(self.snapshot.cluster(*id)),
                Target::Invalid { .. } => None,
            });
            out.settings.extend(clusters.filter_map(|cluster| words::stickiness(cluster, self.client)));
        }
    }

    /// Gateway API: the port of a redirect is the given one, else that of a given scheme, else that of the listener.
    fn location(&self, socket: &Listener, redirect: &Redirect, matched: &Pattern) -> String {
        let own = if self.secure { "https" } else { "http" };
        let scheme = redirect.scheme.as_deref().unwrap_or(own);
        let standard = host::default_port(scheme == "https");
        let port = match (redirect.port, &redirect.scheme) {
            (Some(port), _) => port,
            (None, Some(_)) => standard,
            // In a mesh the port is that of the destination.
            (None, None) if matches!(socket.protocol, Protocol::Outbound(_)) => self.port.unwrap_or(standard),
            (None, None) => socket.bind.port,
        };
        let port = if port == standard { String::new() } else { format!(":{port}") };
        let host = redirect.host.as_deref().unwrap_or(&self.host);
        let path = redirect.path.as_ref().map_or(self.path.clone(), |change| changed(&self.path, change, matched));
        let query = self.query.as_deref().map(|q| format!("?{q}")).unwrap_or_default();
        format!("{scheme}://{host}{port}{path}{query}")
    }

    fn shares(&self, split: &Split) -> Vec<BackendShare> {
        split.backends.iter().map(|backend| self.share(backend, split.total)).collect()
    }

    fn share(&self, backend: &Backend, total: u32) -> BackendShare {
        let mut share = BackendShare {
            to: String::new(),
            weight: backend.weight,
            total,
            endpoints: Vec::new(),
            tls: None,
            filters: backend.filters.iter().map(|f| words::filter(self.snapshot, f)).collect(),
        };
        match &backend.target {
            Target::Invalid { status, reason } => share.to = format!("answer {status}: {reason}"),
            Target::Cluster(id) => {
                let cluster = self.snapshot.cluster(*id);
                share.to.clone_from(&cluster.key);
                share.tls = cluster.tls.as_ref().map(|tls| format!("verified as {}", tls.sni));
                share.endpoints = match &cluster.discovery {
                    Discovery::Static(list) if list.is_empty() => vec!["none: 503".to_owned()],
                    Discovery::Static(list) => list.iter().map(endpoint).collect(),
                    Discovery::Dns { host, port } => vec![format!("{host}:{port} by DNS")],
                };
            }
        }
        share
    }
}

fn endpoint(endpoint: &Endpoint) -> String {
    let mut text = format!("{} weight {}", endpoint.address, endpoint.weight);
    if endpoint.priority > 0 {
        text.push_str(&format!(" priority {}", endpoint.priority));
    }
    if let Some(peer) = &endpoint.peer {
        text.push_str(&format!(" {}", PeerText(peer)));
    }
    text
}

fn http_of(tls: &Arc<TlsListener>) -> Option<&Arc<HttpListener>> {
    match &tls.mode {
        TlsMode::Http { http, .. } => Some(http),
        _ => None,
    }
}

fn host_text(hostname: &Option<String>) -> String {
    hostname.clone().unwrap_or_else(|| "* (any)".to_owned())
}

fn lost(candidate: &Candidate<'_>, winner: Option<&Candidate<'_>>) -> Lost {
    let what = format!("{} {} ({})", candidate.rule.name.kind, candidate.rule.name, Match(candidate.entry));
    let why = match (&candidate.mismatch, winner) {
        (Some(Mismatch::Method(method)), _) => format!("the method is not {method}"),
        (Some(Mismatch::Header(header)), _) => format!("the header {} does not match", header.name),
        (Some(Mismatch::Query(query)), _) => format!("the query parameter {} does not match", query.name),
        (Some(Mismatch::GrpcMethod(_)), _) => "the gRPC method does not match".to_owned(),
        (None, Some(winner)) => less_specific(candidate, winner),
        (None, None) => "it matches".to_owned(),
    };
    Lost { what, why }
}

/// Which step of the standard's order decided between two rules that both match.
fn less_specific(loser: &Candidate<'_>, winner: &Candidate<'_>) -> String {
    let (own, other) = (loser.entry, winner.entry);
    let kind = |pattern: &Pattern| match pattern {
        Pattern::Exact(path) => (0, usize::MAX - path.len()),
        Pattern::Regex(re) => (1, usize::MAX - re.as_str().len()),
        Pattern::Prefix(prefix) => (2, usize::MAX - prefix.len()),
    };
    // A hostname decides before all of this: where the loser is better in what decides next, its hostname was worse.
    let steps = [
        (kind(&own.path).cmp(&kind(&other.path)), "its path is less specific"),
        (other.method.is_some().cmp(&own.method.is_some()), "it does not name the method"),
        (other.headers.len().cmp(&own.headers.len()), "it matches on fewer headers"),
        (other.query.len().cmp(&own.query.len()), "it matches on fewer query parameters"),
        (own.age.cmp(&other.age), "its route is younger, or comes later by name"),
    ];
    let reason = match steps.iter().find(|(order, _)| order.is_ne()) {
        Some((Ordering::Greater, reason)) => reason,
        Some(_) => "its hostname is less specific",
        None => "it comes later in its route, or its hostname is less specific",
    };
    format!("it matches too, but {reason}")
}

/// The path after a rewrite or redirect.
fn changed(path: &str, change: &PathChange, matched: &Pattern) -> String {
    match change {
        PathChange::Full(full) => full.clone(),
        PathChange::Prefix(new) => {
            let prefix = if let Pattern::Prefix(prefix) = matched { prefix.as_str() } else { "" };
            let rest = path.strip_prefix(prefix).unwrap_or(path);
            let joined = format!("{}{rest}", new.trim_end_matches('/'));
            if joined.is_empty() { "/".to_owned() } else { joined }
        }
    }
}

fn settings(rule: &Rule) -> Vec<String> {
    let mut list = Vec::new();
    let times = &rule.timeouts;
    let named = [("request", times.request), ("backend request", times.backend_request), ("idle", times.stream_idle)];
    for (name, time) in named.into_iter().filter_map(|(n, t)| t.map(|t| (n, t))) {
        list.push(if time.is_zero() { format!("no {name} timeout") } else { format!("{name} timeout {time:?}") });
    }
    list.extend(rule.retry.as_ref().map(words::retry));
    list.extend(
        rule.hedging
            .as_ref()
            .map(|h| format!("asked of another endpoint too after {:?}, of {} at most", h.delay, h.max_attempts)),
    );
    list.extend(
        rule.session.as_ref().map(|s| format!("session kept by {} {}", format!("{:?}", s.kind).to_lowercase(), s.name)),
    );
    list
}

impl Explanation {
    /// A few lines for people.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    /// The same as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "{}", self.request)?;
        let chosen = [
            ("client", &self.client),
            ("listener", &self.listener),
            ("destination", &self.destination),
            ("rule", &self.rule),
        ];
        for (what, chosen) in chosen {
            if let Some(chosen) = chosen {
                writeln!(out, "  {what}  {}", chosen.name)?;
                writeln!(out, "    because {}", chosen.why)?;
            }
        }
        for filter in &self.filters {
            writeln!(out, "  filter  {filter}")?;
        }
        if let Some(url) = &self.final_url {
            writeln!(out, "  sends  {url}")?;
        }
        for backend in &self.backends {
            let percent = f64::from(backend.weight) * 100.0 / f64::from(backend.total.max(1));
            writeln!(out, "  to  {} ({}/{}, {percent:.1} %)", backend.to, backend.weight, backend.total)?;
            for endpoint in &backend.endpoints {
                writeln!(out, "    endpoint  {endpoint}")?;
            }
            for more in backend.tls.iter().map(|t| format!("TLS {t}")).chain(backend.filters.iter().cloned()) {
                writeln!(out, "    {more}")?;
            }
        }
        match &self.answer {
            Some(answer) if answer.status == 0 => writeln!(out, "  no answer: {}", answer.why)?,
            Some(answer) => writeln!(out, "  answers  {}: {}", answer.status, answer.why)?,
            None => {}
        }
        for setting in &self.settings {
            writeln!(out, "  with  {setting}")?;
        }
        for lost in &self.lost {
            writeln!(out, "  not  {}", lost.what)?;
            writeln!(out, "    because {}", lost.why)?;
        }
        Ok(())
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}
