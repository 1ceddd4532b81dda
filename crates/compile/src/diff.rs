//! What a change of configuration means for traffic: `selvedge diff`.

use crate::{
    router::Entry,
    snapshot::{
        Cluster, Discovery, Endpoint, Find, HttpListener, Inbound, L4Route, Listener, Outbound, Protocol, Rule,
        Snapshot, Speaks, Termination, TlsListener, TlsMode,
    },
    summary::{
        Match, behaviour,
        mesh::{PeerText, by_destination},
        stream,
    },
    words::{self, Settings},
};
use serde::Serialize;
use std::{collections::BTreeMap, fmt, sync::Arc};

/// One difference that traffic would meet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// What it is about: a socket, a listener, a match or a cluster.
    pub subject: String,
    pub kind: ChangeKind,
    /// As it was; absent for what is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// As it will be; absent for what goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ChangeKind {
    Listener,
    Certificate,
    Route,
    Settings,
    Endpoints,
    Backend,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.before, &self.after) {
            (None, Some(after)) => write!(f, "+ {}: {after}", self.subject),
            (Some(before), None) => write!(f, "- {}: was {before}", self.subject),
            (Some(before), Some(after)) => write!(f, "~ {}: {before} becomes {after}", self.subject),
            (None, None) => write!(f, "~ {}", self.subject),
        }
    }
}

/// Differences in the order of sockets, listeners, matches, clusters. Empty when traffic would meet the same.
pub fn diff(old: &Snapshot, new: &Snapshot) -> Vec<Change> {
    let (before, after) = (Facts::of(old), Facts::of(new));
    let mut changes = Vec::new();
    for (key, was) in &before.texts {
        match after.texts.get(key) {
            Some(is) if is == was => {}
            is => changes.push(change(key, Some(was), is)),
        }
    }
    for (key, is) in after.texts.iter().filter(|(key, _)| !before.texts.contains_key(*key)) {
        changes.push(change(key, None, Some(is)));
    }
    for (key, was) in &before.settings {
        if let Some(is) = after.settings.get(key).filter(|is| *is != was) {
            let (was, is) = words::difference(was, is);
            changes.push(change(key, Some(&was), Some(&is)));
        }
    }
    changes.sort_by(|a, b| (a.kind, &a.subject).cmp(&(b.kind, &b.subject)));
    changes
}

/// Changes as JSON.
pub fn diff_to_json(changes: &[Change]) -> String {
    serde_json::to_string_pretty(changes).unwrap_or_default()
}

fn change((kind, subject): &(ChangeKind, String), before: Option<&String>, after: Option<&String>) -> Change {
    Change { subject: subject.clone(), kind: *kind, before: before.cloned(), after: after.cloned() }
}

/// Everything that traffic can notice, one fact each, by subject.
#[derive(Default)]
struct Facts {
    texts: BTreeMap<(ChangeKind, String), String>,
    /// Of these only what differs is told, and nothing of what comes or goes as a whole.
    settings: BTreeMap<(ChangeKind, String), Settings>,
}

impl Facts {
    fn of(snapshot: &Snapshot) -> Self {
        let mut facts = Facts::default();
        for listener in &snapshot.listeners {
            facts.socket(snapshot, listener);
        }
        for cluster in &snapshot.clusters {
            facts.cluster(cluster);
        }
        for (name, addresses) in snapshot.dns.values().next().into_iter().flat_map(|dns| dns.names.iter()) {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            facts.set(ChangeKind::Endpoints, format!("addresses of the name {name}"), addresses.join(" "));
        }
        facts
    }

    fn set(&mut self, kind: ChangeKind, subject: String, value: String) {
        self.texts.insert((kind, subject), value);
    }

    fn socket(&mut self, snapshot: &Snapshot, listener: &Listener) {
        let bind = listener.bind.to_string();
        let key = (ChangeKind::Settings, format!("connections of {bind}"));
        self.settings.insert(key, words::socket(&listener.options));
        match &listener.protocol {
            Protocol::Http(map) => {
                for http in map.values() {
                    self.listener(&bind, "HTTP", &http.hostname, &http.name.to_string());
                    self.http(snapshot, &bind, http);
                }
            }
            Protocol::Tls(map) => map.values().for_each(|tls| self.tls(snapshot, &bind, tls)),
            Protocol::Tcp(l4) | Protocol::Udp(l4) => {
                self.listener(&bind, "stream", &None, &l4.options.name.to_string());
                self.stream(snapshot, &format!("connections to {bind}"), l4.route.as_ref());
            }
            Protocol::Outbound(out) => self.outbound(snapshot, &bind, out),
            Protocol::Inbound(inbound) => self.inbound(snapshot, &bind, inbound),
        }
    }

    fn outbound(&mut self, snapshot: &Snapshot, bind: &str, out: &Outbound) {
        let identity = out.identity.as_ref().map_or("nobody", |id| id.as_str());
        let to = match &out.find {
            Find::OriginalDestination => "captured connections".to_owned(),
            Find::HttpProxy => "HTTP proxy".to_owned(),
            Find::Fixed(to) => format!("to {}", to.name),
        };
        self.listener(bind, "outbound", &None, &format!("{} as {identity}, {to}", out.name));
        let workload = format!("{}/{}", out.name.namespace, out.name.name);
        let settings = format!("unknown destinations of {workload}");
        self.set(ChangeKind::Settings, settings, format!("{:?}", out.unknown));
        for (to, ways) in by_destination(&out.destinations) {
            let subject = format!("{} from {workload}", to.name);
            // Several hosts of an ExternalService have one name.
            let subject = if to.http.is_none() && to.tcp.is_none() { ways.join(" ") } else { subject };
            self.set(ChangeKind::Listener, format!("ways to {subject}"), ways.join(" "));
            self.served(snapshot, &subject, to.speaks, to.http.as_deref(), to.tcp.as_ref());
        }
    }

    fn inbound(&mut self, snapshot: &Snapshot, bind: &str, inbound: &Inbound) {
        let identity = inbound.identity.as_ref().map_or("nobody", |id| id.as_str());
        let addresses: Vec<String> = inbound.addresses.iter().map(ToString::to_string).collect();
        let what = format!("{} as {identity} for {}", inbound.name, addresses.join(" "));
        self.listener(bind, "inbound", &None, &what);
        let workload = format!("{}/{}", inbound.name.namespace, inbound.name.name);
        self.set(ChangeKind::Settings, format!("access to {workload}"), format!("{:?}", inbound.access));
        let other = std::iter::once(("other ports".to_owned(), &inbound.other));
        for (port, served) in inbound.ports.iter().map(|(n, p)| (format!("port {n}"), p)).chain(other) {
            let subject = format!("{port} of {workload}");
            self.set(ChangeKind::Settings, format!("mutual TLS of {subject}"), format!("{:?}", served.mtls));
            self.served(snapshot, &subject, served.speaks, served.http.as_deref(), served.tcp.as_ref());
        }
    }

    fn served(
        &mut self,
        snapshot: &Snapshot,
        subject: &str,
        speaks: Speaks,
        http: Option<&HttpListener>,
        tcp: Option<&Arc<L4Route>>,
    ) {
        self.set(ChangeKind::Settings, format!("protocol of {subject}"), format!("{speaks:?}"));
        let mut seen = BTreeMap::new();
        for (_, entries) in http.map(|http| http.router.table()).into_iter().flatten() {
            for entry in entries {
                let rule = &http.map(|http| &http.router.rules()[entry.rule as usize]);
                let Some(rule) = rule else { continue };
                self.entry(snapshot, subject, "every host", entry, rule, &mut seen);
            }
        }
        if tcp.is_some() {
            self.stream(snapshot, &format!("connections to {subject}"), tcp);
        }
    }

    fn listener(&mut self, bind: &str, protocol: &str, hostname: &Option<String>, name: &str) {
        let host = hostname.as_deref().unwrap_or("every host");
        self.set(ChangeKind::Listener, format!("listener {bind} for {host}"), format!("{protocol} by {name}"));
    }

    fn tls(&mut self, snapshot: &Snapshot, bind: &str, tls: &Arc<TlsListener>) {
        let name = tls.name.to_string();
        let host = tls.hostname.as_deref().unwrap_or("every host").to_owned();
        match &tls.mode {
            TlsMode::Http { tls: ends, http } => {
                self.listener(bind, "HTTPS", &tls.hostname, &name);
                self.termination(&format!("{bind} for {host}"), ends);
                self.http(snapshot, bind, http);
            }
            TlsMode::Tcp { tls: ends, routes, .. } => {
                self.listener(bind, "TLS", &tls.hostname, &name);
                self.termination(&format!("{bind} for {host}"), ends);
                for (host, route) in routes.iter() {
                    let subject = format!("TLS connections to {bind} for {}", host.as_deref().unwrap_or("every host"));
                    self.stream(snapshot, &subject, Some(route));
                }
            }
            TlsMode::Passthrough { routes, .. } => {
                self.listener(bind, "TLS passthrough", &tls.hostname, &name);
                for (host, route) in routes.iter() {
                    let subject = format!("TLS connections to {bind} for {}", host.as_deref().unwrap_or("every host"));
                    self.stream(snapshot, &subject, Some(route));
                }
            }
        }
    }

    fn termination(&mut self, subject: &str, ends: &Termination) {
        let short = |print: &str| print.get(..12).unwrap_or(print).to_owned();
        let all: Vec<String> =
            ends.certificates.iter().map(|c| format!("{} ({})", c.secret, short(&c.fingerprint))).collect();
        self.set(ChangeKind::Certificate, format!("certificate of {subject}"), all.join(", "));
        if let Some(client) = &ends.client {
            let trust = client
                .trust
                .as_ref()
                .map_or("nobody".to_owned(), |t| format!("{} ({})", t.origin, short(&t.fingerprint)));
            let mode = if client.insecure_fallback { "asked for" } else { "required" };
            self.set(
                ChangeKind::Certificate,
                format!("client certificates of {subject}"),
                format!("{mode}, signed by {trust}"),
            );
        }
    }

    fn http(&mut self, snapshot: &Snapshot, bind: &str, http: &HttpListener) {
        let listener = http.hostname.as_deref().unwrap_or("every host");
        let key = (ChangeKind::Settings, format!("HTTP of {bind} for {listener}"));
        self.settings.insert(key, words::http(&http.options));
        for (host, entries) in http.router.table() {
            let host = host.as_deref().unwrap_or("every host");
            let mut seen: BTreeMap<String, u32> = BTreeMap::new();
            for entry in entries {
                let rule = &http.router.rules()[entry.rule as usize];
                self.entry(snapshot, bind, host, entry, rule, &mut seen);
            }
        }
    }

    /// Only the first of several equal matches meets requests.
    fn entry(
        &mut self,
        snapshot: &Snapshot,
        bind: &str,
        host: &str,
        entry: &Entry,
        rule: &Rule,
        seen: &mut BTreeMap<String, u32>,
    ) {
        let subject = format!("{host} {} on {bind}", Match(entry));
        if seen.insert(subject.clone(), entry.rule).is_none() {
            self.set(ChangeKind::Route, subject, behaviour(snapshot, rule));
        }
    }

    fn stream(&mut self, snapshot: &Snapshot, subject: &str, route: Option<&Arc<L4Route>>) {
        let to = route.map_or_else(|| "closed".to_owned(), |route| stream(snapshot, route));
        self.set(ChangeKind::Route, subject.to_owned(), to);
    }

    fn cluster(&mut self, cluster: &Cluster) {
        let endpoints = match &cluster.discovery {
            Discovery::Static(list) if list.is_empty() => "none".to_owned(),
            Discovery::Static(list) => {
                let weight = |w: u32| if w == 1 { String::new() } else { format!(" weight {w}") };
                let peer = |e: &Endpoint| e.peer.as_ref().map(|p| format!(" <{}>", PeerText(p))).unwrap_or_default();
                let text = |e: &Endpoint| format!("{}{}{}", e.address, weight(e.weight), peer(e));
                list.iter().map(text).collect::<Vec<_>>().join(" ")
            }
            Discovery::Dns { host, port } => format!("{host}:{port} by DNS"),
        };
        self.set(ChangeKind::Endpoints, format!("endpoints of {}", cluster.key), endpoints);
        let key = (ChangeKind::Backend, format!("connections to {}", cluster.key));
        self.settings.insert(key, words::backend(cluster));
    }
}
