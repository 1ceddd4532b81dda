//! A compiled configuration as text for people: what golden tests compare and `selvedge config` prints.

pub(crate) mod mesh;

use crate::{
    Compiled, ResourceStatus, Status,
    router::{Entry, HostMap, Pattern, ValueMatch},
    snapshot::{
        Access, Action, Backend, Cluster, DefaultAccess, Destinations, Discovery, Filter, HttpListener, L4Route,
        LoadBalancing, PathChange, Protocol, Rule, Snapshot, Split, Target, Termination, TlsMode, Trust,
    },
};
use selvedge_model::ResourceKey;
use std::{
    fmt::{self, Write},
    sync::Arc,
};

/// Diagnostics, conditions and what is served, one fact a line.
pub fn summary(compiled: &Compiled) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_all(&mut out, compiled);
    out
}

fn write_all(out: &mut String, compiled: &Compiled) -> fmt::Result {
    writeln!(out, "diagnostics:")?;
    for diagnostic in &compiled.diagnostics {
        for line in diagnostic.to_string().lines() {
            writeln!(out, "  {line}")?;
        }
    }
    writeln!(out, "status:")?;
    write_status(out, &compiled.status)?;
    writeln!(out, "snapshot:")?;
    write_snapshot(out, &compiled.snapshot)
}

fn write_status(out: &mut String, status: &Status) -> fmt::Result {
    for (key, status) in &status.resources {
        write_one_status(out, key, status)?;
    }
    Ok(())
}

fn write_one_status(out: &mut String, key: &ResourceKey, status: &ResourceStatus) -> fmt::Result {
    let conditions = |list: &[crate::Condition]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let listeners = |out: &mut String, list: &[crate::ListenerStatus]| {
        list.iter().try_for_each(|l| {
            let kinds: Vec<&str> = l.supported_kinds.iter().map(|k| k.kind).collect();
            let (name, attached) = (&l.name, l.attached_routes);
            writeln!(out, "    {name} [{}] attached {attached}: {}", kinds.join(" "), conditions(&l.conditions))
        })
    };
    match status {
        ResourceStatus::GatewayClass(s) => writeln!(out, "  {key}: {}", conditions(&s.conditions)),
        ResourceStatus::Gateway(s) => {
            writeln!(out, "  {key}: {}", conditions(&s.conditions))?;
            if !s.addresses.is_empty() {
                let all: Vec<&str> = s.addresses.iter().map(|a| a.value.as_str()).collect();
                writeln!(out, "    addresses {}", all.join(" "))?;
            }
            if s.attached_listener_sets > 0 {
                writeln!(out, "    attached ListenerSets {}", s.attached_listener_sets)?;
            }
            listeners(out, &s.listeners)
        }
        ResourceStatus::ListenerSet(s) => {
            writeln!(out, "  {key}: {}", conditions(&s.conditions))?;
            listeners(out, &s.listeners)
        }
        ResourceStatus::Route(s) => s.parents.iter().try_for_each(|parent| {
            let it = &parent.parent_ref;
            write!(out, "  {key} -> {} {}", it.kind, it.name)?;
            if let Some(section) = &it.section_name {
                write!(out, "/{section}")?;
            }
            if let Some(port) = it.port {
                write!(out, ":{port}")?;
            }
            writeln!(out, ": {}", conditions(&parent.conditions))
        }),
        ResourceStatus::Policy(s) => s.ancestors.iter().try_for_each(|ancestor| {
            let it = &ancestor.ancestor_ref;
            writeln!(out, "  {key} -> {} {}: {}", it.kind, it.name, conditions(&ancestor.conditions))
        }),
    }
}

fn write_snapshot(out: &mut String, snapshot: &Snapshot) -> fmt::Result {
    let mut shown: Vec<&Arc<Destinations>> = Vec::new();
    for listener in &snapshot.listeners {
        writeln!(out, "  {}", listener.bind)?;
        match &listener.protocol {
            Protocol::Http(map) => {
                for (host, http) in sorted(map) {
                    writeln!(out, "    http {host} ({})", http.name)?;
                    write_http(out, snapshot, http)?;
                }
            }
            Protocol::Tls(map) => {
                for (host, tls) in sorted(map) {
                    match &tls.mode {
                        TlsMode::Http { tls: termination, http } => {
                            writeln!(out, "    https {host} ({}) {}", tls.name, Ends(termination))?;
                            write_http(out, snapshot, http)?;
                        }
                        TlsMode::Tcp { tls: termination, routes, listener } => {
                            writeln!(out, "    tls {host} ({}) {}", tls.name, Ends(termination))?;
                            write_access(out, listener.access.as_deref(), "      ")?;
                            write_l4(out, snapshot, routes)?;
                        }
                        TlsMode::Passthrough { routes, listener } => {
                            writeln!(out, "    passthrough {host} ({})", tls.name)?;
                            write_access(out, listener.access.as_deref(), "      ")?;
                            write_l4(out, snapshot, routes)?;
                        }
                    }
                }
            }
            Protocol::Tcp(l4) | Protocol::Udp(l4) => {
                match &l4.route {
                    Some(route) => writeln!(out, "    ({}) {}", l4.options.name, L4(snapshot, route))?,
                    None => writeln!(out, "    ({}) no route", l4.options.name)?,
                }
                write_access(out, l4.options.access.as_deref(), "      ")?;
            }
            Protocol::Outbound(outbound) => {
                mesh::outbound(out, snapshot, outbound)?;
                if !shown.iter().any(|known| Arc::ptr_eq(known, &outbound.destinations)) {
                    mesh::destinations(out, snapshot, &outbound.destinations)?;
                    shown.push(&outbound.destinations);
                }
            }
            Protocol::Inbound(inbound) => mesh::inbound(out, snapshot, inbound)?,
        }
    }
    mesh::dns(out, &snapshot.dns)?;
    for cluster in &snapshot.clusters {
        writeln!(out, "  cluster {}", ClusterLine(cluster))?;
    }
    Ok(())
}

fn sorted<T>(map: &HostMap<T>) -> Vec<(String, &T)> {
    let mut all: Vec<(String, &T)> = map.iter().map(|(h, v)| (h.unwrap_or_else(|| "*".to_owned()), v)).collect();
    all.sort_by(|a, b| (a.0 == "*", &a.0).cmp(&(b.0 == "*", &b.0)));
    all
}

/// One line for each policy that holds at a listener or, further in, for a route of it.
fn write_access(out: &mut String, access: Option<&Access>, indent: &str) -> fmt::Result {
    let Some(access) = access else { return Ok(()) };
    if access.default != DefaultAccess::Allow {
        writeln!(out, "{indent}access by default {:?}", access.default)?;
    }
    if let Some(auth) = &access.auth {
        let providers: Vec<String> = auth
            .providers
            .iter()
            .map(|provider| {
                let keys: Vec<String> = provider.keys.iter().map(|key| format!("{:?}", key.material)).collect();
                format!("{} ({})", provider.name, keys.join(", "))
            })
            .collect();
        let optional = if auth.optional { " optional" } else { "" };
        let broken = if auth.broken.is_some() { " (broken)" } else { "" };
        writeln!(out, "{indent}auth{optional} {} by jwt [{}]{broken}", auth.name, providers.join("; "))?;
    }
    for policy in &access.policies {
        let rules: Vec<&str> = policy.rules.iter().map(|rule| rule.name.as_str()).collect();
        let broken = if policy.broken.is_some() { " (broken)" } else { "" };
        writeln!(out, "{indent}access {:?} {} [{}]{broken}", policy.action, policy.name, rules.join(" "))?;
    }
    for ((kind, namespace, name), of_route) in &access.routes {
        writeln!(out, "{indent}for {kind} {namespace}/{name}")?;
        write_access(out, Some(of_route), &format!("{indent}  "))?;
    }
    Ok(())
}

fn write_http(out: &mut String, snapshot: &Snapshot, http: &HttpListener) -> fmt::Result {
    write_access(out, http.access.as_deref(), "      ")?;
    for (host, entries) in http.router.table() {
        writeln!(out, "      {}", host.as_deref().unwrap_or("*"))?;
        for entry in entries {
            let rule = &http.router.rules()[entry.rule as usize];
            writeln!(out, "        {} -> {}", Match(entry), RuleLine(snapshot, rule))?;
        }
    }
    Ok(())
}

fn write_l4(out: &mut String, snapshot: &Snapshot, routes: &HostMap<std::sync::Arc<L4Route>>) -> fmt::Result {
    for (host, route) in sorted(routes) {
        writeln!(out, "      {host} {}", L4(snapshot, route))?;
    }
    Ok(())
}

struct Ends<'a>(&'a Termination);

impl fmt::Display for Ends<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets: Vec<&str> = self.0.certificates.iter().map(|c| c.secret.as_str()).collect();
        write!(f, "certificate {}", secrets.join(" "))?;
        if let Some(client) = &self.0.client {
            let trust = client.trust.as_ref().map_or("nobody", |t| t.origin.as_str());
            write!(f, ", clients by {trust}{}", if client.insecure_fallback { " or none" } else { "" })?;
        }
        Ok(())
    }
}

/// What a rule does, without its name.
pub(crate) fn behaviour(snapshot: &Snapshot, rule: &Rule) -> String {
    let text = RuleLine(snapshot, rule).to_string();
    let name = rule.name.to_string();
    format!("{} by {name}", text.strip_prefix(&name).unwrap_or(&text).trim())
}

/// Where a stream route sends.
pub(crate) fn stream(snapshot: &Snapshot, route: &L4Route) -> String {
    match &route.split {
        Some(split) => format!("{} by {}", Targets(snapshot, split), route.name),
        None => format!("closed by {}", route.name),
    }
}

/// One match: `GET /cart* header x=1 query q~re`.
pub(crate) struct Match<'a>(pub(crate) &'a Entry);

impl fmt::Display for Match<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(method) = &self.0.method {
            write!(f, "{method} ")?;
        }
        match &self.0.path {
            Pattern::Exact(path) => write!(f, "={path}")?,
            Pattern::Prefix(path) => write!(f, "{path}/*")?,
            Pattern::Regex(re) => write!(f, "~{}", bare(re.as_str()))?,
        }
        if let Some(method) = &self.0.grpc_method {
            write!(f, " method{}", Value(method))?;
        }
        for header in &self.0.headers {
            write!(f, " header {}{}", header.name, Value(&header.value))?;
        }
        for query in &self.0.query {
            write!(f, " query {}{}", query.name, Value(&query.value))?;
        }
        Ok(())
    }
}

/// The expression as the user wrote it, without the anchors that the compiler adds.
fn bare(text: &str) -> &str {
    text.strip_prefix("^(?:").and_then(|t| t.strip_suffix(")$")).unwrap_or(text)
}

struct Value<'a>(&'a ValueMatch);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ValueMatch::Exact(text) => write!(f, "={text}"),
            ValueMatch::Regex(re) => write!(f, "~{}", bare(re.as_str())),
        }
    }
}

struct RuleLine<'a>(&'a Snapshot, &'a Rule);

impl fmt::Display for RuleLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RuleLine(snapshot, rule) = self;
        write!(f, "{}", rule.name)?;
        for filter in &rule.filters {
            write!(f, " {}", FilterText(snapshot, filter))?;
        }
        match &rule.action {
            Action::Forward(split) => write!(f, " {}", Targets(snapshot, split))?,
            // Never reached behind a filter that answers.
            Action::Fixed { .. }
                if rule.filters.iter().any(|f| matches!(f, Filter::Redirect(_) | Filter::Direct(_))) => {}
            Action::Fixed { status, reason } => write!(f, " answer {status} ({reason})")?,
        }
        let times = &rule.timeouts;
        let named = [("request", times.request), ("backend", times.backend_request), ("idle", times.stream_idle)];
        for (name, time) in named.into_iter().filter_map(|(n, t)| t.map(|t| (n, t))) {
            write!(f, " {name}-timeout={time:?}")?;
        }
        if let Some(retry) =
            rule.retry.as_ref().filter(|r| crate::traffic::retry(None, None, None).as_ref() != Some(*r))
        {
            write!(f, " {}", RetryText(retry))?;
        }
        if let Some(hedging) = &rule.hedging {
            write!(f, " hedge={}x{:?}", hedging.max_attempts, hedging.delay)?;
        }
        if let Some(session) = &rule.session {
            write!(f, " session={:?}:{}", session.kind, session.name)?;
        }
        Ok(())
    }
}

pub(crate) struct RetryText<'a>(pub(crate) &'a crate::snapshot::Retry);

impl fmt::Display for RetryText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let it = self.0;
        write!(f, "retry={}", it.attempts)?;
        let codes: Vec<String> = it.codes.iter().map(ToString::to_string).collect();
        let on = [
            ("connect", it.on.connect_failure),
            ("reset", it.on.reset),
            ("refused", it.on.refused_stream),
            ("timeout", it.on.timeout),
        ];
        let on: Vec<&str> = on.into_iter().filter(|(_, yes)| *yes).map(|(name, _)| name).collect();
        write!(f, "[{}]", on.into_iter().map(str::to_owned).chain(codes).collect::<Vec<_>>().join(","))
    }
}

struct L4<'a>(&'a Snapshot, &'a L4Route);

impl fmt::Display for L4<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.1.name)?;
        match &self.1.split {
            Some(split) => write!(f, "{}", Targets(self.0, split)),
            None => f.write_str("no backend"),
        }
    }
}

struct Targets<'a>(&'a Snapshot, &'a Split);

impl fmt::Display for Targets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, backend) in self.1.backends.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            let Backend { weight, target, filters } = backend;
            match target {
                Target::Cluster(id) => f.write_str(&self.0.cluster(*id).key)?,
                Target::Invalid { status, .. } => write!(f, "answer {status}")?,
            }
            if self.1.backends.len() > 1 {
                write!(f, " {weight}/{}", self.1.total)?;
            }
            for filter in filters {
                write!(f, " {{{}}}", FilterText(self.0, filter))?;
            }
        }
        Ok(())
    }
}

/// One filter in a few words.
pub(crate) struct FilterText<'a>(pub(crate) &'a Snapshot, pub(crate) &'a Filter);

impl fmt::Display for FilterText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers = |f: &mut fmt::Formatter<'_>, what: &str, change: &crate::snapshot::HeaderChange| {
            write!(f, "{what}(")?;
            let text = |v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
            let set = change.set.iter().map(|(n, v)| format!("{n}={}", text(v)));
            let add = change.add.iter().map(|(n, v)| format!("+{n}={}", text(v)));
            let all: Vec<String> = set.chain(add).chain(change.remove.iter().map(|n| format!("-{n}"))).collect();
            write!(f, "{})", all.join(" "))
        };
        let path = |path: &Option<PathChange>| match path {
            Some(PathChange::Full(p)) => format!(" path={p}"),
            Some(PathChange::Prefix(p)) => format!(" prefix={p}"),
            None => String::new(),
        };
        match self.1 {
            Filter::RequestHeaders(change) => headers(f, "request", change),
            Filter::ResponseHeaders(change) => headers(f, "response", change),
            Filter::Rewrite(r) => {
                let host = r.host.as_ref().map(|h| format!(" host={h}")).unwrap_or_default();
                write!(f, "rewrite({})", format!("{host}{}", path(&r.path)).trim())
            }
            Filter::Redirect(r) => {
                write!(f, "redirect({}", r.status)?;
                let scheme = r.scheme.as_ref().map(|s| format!(" scheme={s}")).unwrap_or_default();
                let host = r.host.as_ref().map(|h| format!(" host={h}")).unwrap_or_default();
                let port = r.port.map(|p| format!(" port={p}")).unwrap_or_default();
                write!(f, "{scheme}{host}{port}{})", path(&r.path))
            }
            Filter::Mirror(m) => {
                let to = m.cluster.map_or("nowhere", |id| self.0.cluster(id).key.as_str());
                write!(f, "mirror({to} {}/{})", m.numerator, m.denominator)
            }
            Filter::Cors(c) => write!(f, "cors({} origins)", c.allow_origins.len()),
            Filter::Fault(_) => f.write_str("fault"),
            Filter::Direct(d) => write!(f, "direct({})", d.status.as_u16()),
            Filter::Compression(c) => write!(f, "compression({:?})", c.algorithms),
            Filter::BodyLimit(n) => write!(f, "body-limit({n})"),
        }
    }
}

struct ClusterLine<'a>(&'a Cluster);

impl fmt::Display for ClusterLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cluster = self.0;
        write!(f, "{} {:?}", cluster.key, cluster.protocol)?;
        match &cluster.discovery {
            Discovery::Static(list) if list.is_empty() => f.write_str(" no endpoints")?,
            Discovery::Static(list) => {
                for endpoint in list {
                    write!(f, " {}", endpoint.address)?;
                    if let Some(zone) = &endpoint.zone {
                        write!(f, "({zone})")?;
                    }
                    if endpoint.weight != 1 {
                        write!(f, " weight {}", endpoint.weight)?;
                    }
                    if endpoint.priority != 0 {
                        write!(f, " priority {}", endpoint.priority)?;
                    }
                    if let Some(peer) = &endpoint.peer {
                        write!(f, " <{}>", mesh::PeerText(peer))?;
                    }
                }
            }
            Discovery::Dns { host, port } => write!(f, " dns {host}:{port}")?,
        }
        if let Some(zone) = &cluster.load_balancing.own_zone {
            write!(f, " only zone {zone}")?;
        }
        if let Some(tls) = &cluster.tls {
            let trust = match &tls.trust {
                Trust::System => "System",
                Trust::Roots(bundle) => bundle.origin.as_str(),
            };
            write!(f, " tls(sni={} trust={trust}", tls.sni)?;
            if !tls.subject_alt_names.is_empty() {
                write!(f, " names={:?}", tls.subject_alt_names)?;
            }
            if let Some(certificate) = &tls.client_certificate {
                write!(f, " client={}", certificate.secret)?;
            }
            f.write_str(")")?;
        }
        if cluster.load_balancing != LoadBalancing::default() {
            write!(f, " lb={:?}", cluster.load_balancing.algorithm)?;
        }
        if !cluster.health_checks.is_empty() {
            write!(f, " health-checks={}", cluster.health_checks.len())?;
        }
        if cluster.outlier_detection.is_some() {
            f.write_str(" outlier-detection")?;
        }
        Ok(())
    }
}
