//! The trace of a request: where it comes from, whether it is sampled, what goes upstream, and the spans in the end.
//! Attribute names are those of OpenTelemetry's semantic conventions for HTTP (stable since 1.23).

use super::{
    Flags, Record,
    access_log::{Values, sampled},
    otlp::{SpanExport, number, text, unix_nanos},
    record::{Offset, offset_since},
};
use http::{HeaderMap, Method, Version};
use opentelemetry_proto::tonic::trace::v1::{Span, Status, span::SpanKind, status::StatusCode as SpanStatus};
use selvedge_compile::snapshot::{Cluster, Tracing};
use selvedge_wire::trace::{Format, Incoming, TraceContext, check_baggage, check_tracestate, extract};
use std::{net::SocketAddr, sync::Arc, time::Duration};

/// Tries with a span of their own.
const MAX_TRIES: usize = 16;

/// How a listener traces.
#[derive(Debug)]
pub(super) struct Tracer {
    pub config: Arc<Tracing>,
    pub export: Option<SpanExport>,
}

/// The trace of one request.
#[derive(Debug)]
pub(super) struct Trace {
    /// Of our span.
    pub context: TraceContext,
    /// In which B3 form it goes upstream.
    b3: Option<Format>,
    state: String,
    tries: Vec<Try>,
}

#[derive(Debug)]
struct Try {
    span_id: u64,
    cluster: Arc<Cluster>,
    address: SocketAddr,
    started: Offset,
    /// 0: it still ran when the record ended.
    ended: Offset,
    /// 0: no answer.
    status: u16,
    flags: Flags,
}

impl Trace {
    /// Continues the trace of a request or begins one; cleans what it says about it.
    pub fn begin(tracer: &Tracer, headers: &mut HeaderMap) -> Self {
        let mut incoming = extract(headers);
        let is_b3 = matches!(incoming.format, Some(Format::B3Single | Format::B3Multi));
        if is_b3 && !tracer.config.b3 {
            incoming = Incoming::default();
        }
        check_tracestate(headers, &incoming);
        check_baggage(headers);
        let state = headers.get("tracestate").and_then(|s| s.to_str().ok()).unwrap_or_default().to_owned();
        // The caller's decision holds; without one it is ours.
        let asked = incoming.sampled.filter(|_| tracer.config.follow_caller);
        let decision = asked.unwrap_or_else(|| sampled(tracer.config.per_million));
        let mut context = match incoming.context {
            Some(parent) => parent.child(nonzero()),
            None => root(),
        };
        context.sampled = decision;
        let b3 = tracer.config.b3.then(|| incoming.format.filter(|_| is_b3).unwrap_or(Format::B3Multi));
        Self { context, b3, state, tries: Vec::new() }
    }

    pub fn tried(&mut self, cluster: &Arc<Cluster>, address: SocketAddr, started: Offset) {
        if self.context.sampled && self.tries.len() < MAX_TRIES {
            let cluster = cluster.clone();
            let span_id = nonzero();
            self.tries.push(Try { span_id, cluster, address, started, ended: 0, status: 0, flags: Flags::NONE });
        }
    }

    pub fn try_ended(&mut self, address: SocketAddr, at: Offset, status: u16, flags: Flags) {
        let running = self.tries.iter_mut().rev().find(|t| t.address == address && t.ended == 0);
        if let Some(running) = running {
            (running.ended, running.status, running.flags) = (at, status, flags);
        }
    }

    /// Replaces the caller's context: the upstream's parent is the try, or our span where the try has none.
    pub fn inject(&self, headers: &mut HeaderMap) {
        let context = match self.tries.last() {
            Some(last) => self.context.child(last.span_id),
            None => self.context,
        };
        context.inject(Format::W3c, headers);
        if let Some(format) = self.b3 {
            context.inject(format, headers);
        }
    }

    /// The request's span and one for each try.
    pub fn export(&self, values: &Values<'_>, tracer: &Tracer) {
        let Some(to) = &tracer.export else { return };
        let attributes = &tracer.config.attributes;
        let start = values.started();
        for (i, each) in self.tries.iter().enumerate() {
            let at = |offset: Offset| unix_nanos(start + Duration::from_micros(offset.into()));
            let mut span = self.span(each.span_id, self.context.span_id, values.record);
            span.kind = SpanKind::Client.into();
            span.start_time_unix_nano = at(each.started);
            span.end_time_unix_nano = if each.ended == 0 { unix_nanos(values.ended) } else { at(each.ended) };
            span.attributes.push(text("server.address", each.address.ip().to_string()));
            span.attributes.push(number("server.port", each.address.port()));
            span.attributes.push(text("selvedge.cluster", each.cluster.key.clone()));
            if i > 0 {
                span.attributes.push(number("http.request.resend_count", i as i64));
            }
            let last = i + 1 == self.tries.len();
            let (status, flags) = match each.ended {
                0 if last => (values.record.status, values.record.flags),
                _ => (each.status, each.flags),
            };
            span.attributes.extend(attributes.iter().map(|(name, value)| text(name, value.as_str())));
            // To a client, 4xx are errors as well.
            outcome(&mut span, status, flags, 400);
            to.send(span);
        }
        let mut span = self.server_span(values);
        span.attributes.extend(attributes.iter().map(|(name, value)| text(name, value.as_str())));
        to.send(span);
    }

    fn server_span(&self, values: &Values<'_>) -> Span {
        let record = values.record;
        let mut span = self.span(self.context.span_id, self.context.parent_id.unwrap_or(0), record);
        span.kind = SpanKind::Server.into();
        span.start_time_unix_nano = unix_nanos(values.started());
        span.end_time_unix_nano = unix_nanos(values.ended);
        let attributes = &mut span.attributes;
        attributes.push(text("url.scheme", if record.facts.tls.is_some() { "https" } else { "http" }));
        if let Some(path) = &record.path {
            attributes.push(text("url.path", path.path()));
            attributes.extend(path.query().map(|query| text("url.query", query)));
        }
        if let Some(authority) = &record.authority {
            let authority = String::from_utf8_lossy(authority.as_bytes());
            attributes.push(text("server.address", authority));
        }
        attributes.push(text("client.address", record.client.to_string()));
        attributes.push(text("network.peer.address", record.facts.peer.ip().to_string()));
        attributes.push(number("network.peer.port", record.facts.peer.port()));
        attributes.push(text("network.protocol.version", protocol_version(record.version)));
        let captured = values.capture.request.iter().zip(&record.captured);
        if let Some(agent) = captured.filter(|(n, _)| *n == http::header::USER_AGENT).find_map(|(_, v)| v.as_ref()) {
            attributes.push(text("user_agent.original", String::from_utf8_lossy(agent.as_bytes())));
        }
        attributes.push(number("http.request.body.size", record.received_bytes() as i64));
        attributes.push(number("http.response.body.size", record.sent_bytes() as i64));
        attributes.push(text("selvedge.listener", values.listener));
        if !values.route.is_empty() {
            attributes.push(text("selvedge.route", values.route));
            span.name = format!("{} {}", method_name(&record.method), values.route);
        }
        if let Some(id) = &record.request_id {
            span.attributes.push(text("selvedge.request_id", id.to_string()));
        }
        outcome(&mut span, record.status, record.flags, 500);
        if let Some(grpc) = record.grpc_status {
            span.attributes.push(number("rpc.grpc.status_code", grpc));
        }
        span
    }

    fn span(&self, id: u64, parent: u64, record: &Record) -> Span {
        let name = method_name(&record.method);
        let mut attributes = vec![text("http.request.method", if name == "HTTP" { "_OTHER" } else { name })];
        if name == "HTTP" {
            attributes.push(text("http.request.method_original", record.method.as_str()));
        }
        Span {
            trace_id: self.context.trace_id.to_be_bytes().to_vec(),
            span_id: id.to_be_bytes().to_vec(),
            parent_span_id: if parent == 0 { Vec::new() } else { parent.to_be_bytes().to_vec() },
            trace_state: self.state.clone(),
            flags: 1 | u32::from(self.context.random) << 1,
            name: name.to_owned(),
            attributes,
            ..Span::default()
        }
    }
}

/// Status, and an error from this status on.
fn outcome(span: &mut Span, status: u16, flags: Flags, error_from: u16) {
    if status > 0 {
        span.attributes.push(number("http.response.status_code", status));
    }
    let harmless = Flags::DELAY_INJECTED | Flags::DOWNSTREAM_CLOSED | Flags::NO_ROUTE;
    let failed = flags.bits() & !harmless.bits() != 0 && status == 0;
    if !flags.is_empty() {
        span.attributes.push(text("selvedge.response_flags", flags.to_string()));
    }
    if status >= error_from || failed {
        let kind = if status > 0 { status.to_string() } else { flags.to_string() };
        span.attributes.push(text("error.type", kind));
        span.status = Some(Status { code: SpanStatus::Error.into(), message: String::new() });
    }
}

/// Names of spans must not follow a client's fancy.
fn method_name(method: &Method) -> &str {
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    if known.contains(&method.as_str()) { method.as_str() } else { "HTTP" }
}

fn protocol_version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 | Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    }
}

fn root() -> TraceContext {
    TraceContext {
        trace_id: rand::random::<u128>().max(1),
        span_id: nonzero(),
        parent_id: None,
        sampled: false,
        debug: false,
        random: true,
    }
}

fn nonzero() -> u64 {
    rand::random::<u64>().max(1)
}

impl Record {
    /// Continues the request's trace (or begins one) as its listener says, and cleans its trace headers. Call it once
    /// the listener is known.
    pub fn begin_trace(&mut self, headers: &mut HeaderMap) {
        let Some(listener) = self.listener.clone() else { return };
        if let Some(tracer) = &listener.tracer {
            self.rare().trace = Some(Trace::begin(tracer, headers));
        }
    }

    /// Puts the context of the last try into the headers that go upstream; without tracing they are left alone.
    pub fn inject_trace(&self, headers: &mut HeaderMap) {
        if let Some(trace) = self.trace() {
            trace.inject(headers);
        }
    }

    /// The try at this endpoint ended with a status (0: none), and why it failed if it did.
    pub fn try_ended(&mut self, address: SocketAddr, status: u16, flags: Flags) {
        let at = offset_since(self.start);
        if let Some(trace) = self.rare.as_mut().and_then(|rare| rare.trace.as_mut()) {
            trace.try_ended(address, at, status, flags);
        }
    }

    /// The request's own span, when its listener traces.
    pub fn trace_context(&self) -> Option<&TraceContext> {
        self.trace().map(|trace| &trace.context)
    }

    pub(super) fn trace(&self) -> Option<&Trace> {
        self.rare.as_ref()?.trace.as_ref()
    }
}
