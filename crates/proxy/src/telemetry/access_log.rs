//! Access log lines: which records are written, in which words. Nothing that a client sends can break a line or forge
//! one: whatever could is escaped.

use super::{
    Flags, Record,
    handle::Capture,
    log_output::Output,
    record::{Offset, Progress},
};
use http::HeaderName;
use selvedge_compile::snapshot::{AccessLog, LogCondition, LogFormat};
use selvedge_wire::log_template::{DEFAULT_JSON, Field, GrpcFormat, Operator, Part, Plain, Template, TemplateError};
use std::{
    cell::RefCell,
    fmt::Display,
    io::Write,
    net::SocketAddr,
    sync::{Arc, OnceLock, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

/// Bytes of one value; longer ones are cut.
const MAX_VALUE: usize = 8 * 1024;
/// Bytes after which a line gets no further values.
const MAX_LINE: usize = 64 * 1024;

/// One access log of a listener.
#[derive(Debug)]
pub(super) struct Log {
    format: Format,
    per_million: u32,
    condition: LogCondition,
    output: Arc<Output>,
}

#[derive(Debug)]
pub(super) enum Format {
    Text(Template),
    Json(Vec<(String, Template)>),
}

impl Format {
    pub fn new(format: &LogFormat) -> Result<Self, TemplateError> {
        Ok(match format {
            LogFormat::Text(text) => {
                let mut template = Template::parse(text)?;
                // A line is one line, whether the template ends it or not.
                if let Some(Part::Literal(last)) = template.parts.last_mut() {
                    last.truncate(last.trim_end_matches('\n').len());
                }
                Self::Text(template)
            }
            LogFormat::Json => Self::Json(
                DEFAULT_JSON
                    .iter()
                    .map(|(name, template)| Ok(((*name).to_owned(), Template::parse(template)?)))
                    .collect::<Result<_, _>>()?,
            ),
            LogFormat::JsonFields(fields) => Self::Json(
                fields
                    .iter()
                    .map(|(name, template)| Ok((name.clone(), Template::parse(template)?)))
                    .collect::<Result<_, _>>()?,
            ),
        })
    }

    fn templates(&self) -> impl Iterator<Item = &Template> {
        let (text, json) = match self {
            Self::Text(template) => (Some(template), [].as_slice()),
            Self::Json(fields) => (None, fields.as_slice()),
        };
        text.into_iter().chain(json.iter().map(|(_, template)| template))
    }

    /// Adds the headers that this format names.
    fn capture(&self, into: &mut Capture) {
        for operator in self.templates().flat_map(Template::operators) {
            match operator {
                Operator::Request(first, second) | Operator::RequestWithoutQuery(first, second) => {
                    for field in [Some(first), second.as_ref()].into_iter().flatten() {
                        if let Field::Header(name) = field {
                            add(&mut into.request, name);
                        }
                    }
                }
                Operator::Response(first, second) => {
                    [Some(first), second.as_ref()].into_iter().flatten().for_each(|n| add(&mut into.response, n));
                }
                Operator::Trailer(first, second) => {
                    [Some(first), second.as_ref()].into_iter().flatten().for_each(|n| add(&mut into.trailers, n));
                }
                Operator::StartTime(_) | Operator::EmitTime(_) | Operator::GrpcStatus(_) | Operator::Plain(_) => {}
            }
        }
    }

    fn names_trace(&self) -> bool {
        self.templates().flat_map(Template::operators).any(|o| matches!(o, Operator::Plain(Plain::TraceId)))
    }

    /// Appends one line (with its end) for a record that is finished.
    pub fn write(&self, values: &Values<'_>, out: &mut Vec<u8>) {
        SCRATCH.with_borrow_mut(|scratch| match self {
            Self::Text(template) => {
                for part in &template.parts {
                    match part {
                        Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
                        Part::Value(operator, limit) => {
                            scratch.clear();
                            if out.len() < MAX_LINE && values.get(operator, scratch) {
                                cut(scratch, *limit);
                                escape_text(scratch, out);
                            } else {
                                out.push(b'-');
                            }
                        }
                    }
                }
                out.push(b'\n');
            }
            Self::Json(fields) => {
                out.push(b'{');
                for (i, (name, template)) in fields.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    json_string(name.as_bytes(), out);
                    out.push(b':');
                    values.json(template, scratch, out);
                }
                out.extend_from_slice(b"}\n");
            }
        });
    }

    /// The same as fields, for OTLP: name and value (`None`: absent) of each; a text format is one field without name.
    pub fn fields(&self, values: &Values<'_>, mut each: impl FnMut(&str, Option<FieldValue>)) {
        match self {
            Self::Text(_) => {
                let mut line = Vec::with_capacity(256);
                self.write(values, &mut line);
                line.pop();
                each("", Some(FieldValue::Text(String::from_utf8_lossy(&line).into_owned())));
            }
            Self::Json(fields) => {
                let mut scratch = Vec::new();
                for (name, template) in fields {
                    scratch.clear();
                    let present = values.join(template, &mut scratch);
                    let text = String::from_utf8_lossy(&scratch);
                    let number = template.only().is_some_and(Operator::is_number).then(|| text.parse().ok()).flatten();
                    each(
                        name,
                        present.then(|| number.map_or_else(|| FieldValue::Text(text.into()), FieldValue::Number)),
                    );
                }
            }
        }
    }
}

/// A value of [`Format::fields`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FieldValue {
    Text(String),
    Number(i64),
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn add(names: &mut Vec<HeaderName>, name: &HeaderName) {
    if !names.contains(name) {
        names.push(name.clone());
    }
}

impl Log {
    pub fn new(log: &AccessLog, output: Arc<Output>) -> Result<Self, TemplateError> {
        Ok(Self {
            format: Format::new(&log.format)?,
            per_million: log.per_million,
            condition: log.condition.clone(),
            output,
        })
    }

    pub fn capture(&self, into: &mut Capture) {
        self.format.capture(into);
    }

    /// Whether it says which trace a request belongs to.
    pub fn names_trace(&self) -> bool {
        self.format.names_trace()
    }

    /// Hands the record to the output, if it is one of those to be written.
    pub fn write(&self, values: &Values<'_>) {
        // Sampling thins out what is normal: an error of ours or of an upstream is always written.
        let error = values.record.status >= 500;
        if wanted(&self.condition, values) && (error || sampled(self.per_million)) {
            self.output.write(&self.format, values);
        }
    }
}

/// One of `per_million` in a million, by chance.
pub(super) fn sampled(per_million: u32) -> bool {
    match per_million {
        0 => false,
        1_000_000.. => true,
        n => rand::random_range(0..1_000_000) < n,
    }
}

fn wanted(condition: &LogCondition, values: &Values<'_>) -> bool {
    let record = values.record;
    let harmless = Flags::DELAY_INJECTED;
    condition.min_status.is_none_or(|min| record.status >= min)
        && condition.min_duration_ms.is_none_or(|min| values.duration.as_millis() >= u128::from(min))
        && (!condition.errors_only || record.flags.bits() & !harmless.bits() != 0)
}

/// A finished record, as operators see it.
pub(super) struct Values<'a> {
    pub record: &'a Record,
    pub capture: &'a Capture,
    pub listener: &'a str,
    pub route: &'a str,
    pub duration: Duration,
    /// Now.
    pub ended: SystemTime,
}

impl Values<'_> {
    pub fn started(&self) -> SystemTime {
        self.ended.checked_sub(self.duration).unwrap_or(self.ended)
    }

    fn json(&self, template: &Template, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
        scratch.clear();
        if out.len() >= MAX_LINE || !self.join(template, scratch) {
            out.extend_from_slice(b"null");
        } else if template.only().is_some_and(Operator::is_number) {
            out.extend_from_slice(scratch);
        } else {
            json_string(scratch, out);
        }
    }

    /// The template's value, unescaped; false when it is one operator that has none.
    fn join(&self, template: &Template, out: &mut Vec<u8>) -> bool {
        let alone = template.parts.len() == 1;
        for part in &template.parts {
            match part {
                Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Part::Value(operator, limit) => {
                    let mut value = Vec::new();
                    // The one operator of a field is the common case, and needs no copy.
                    let target = if alone { &mut *out } else { &mut value };
                    if self.get(operator, target) {
                        cut(target, *limit);
                    } else if alone {
                        return false;
                    } else {
                        target.push(b'-');
                    }
                    out.append(&mut value);
                }
            }
        }
        true
    }

    /// Appends an operator's value, unescaped. False: it has none.
    fn get(&self, operator: &Operator, out: &mut Vec<u8>) -> bool {
        let record = self.record;
        match operator {
            Operator::StartTime(format) => write_time(format, self.started(), out),
            Operator::EmitTime(format) => write_time(format, self.ended, out),
            Operator::Request(first, second) => self.request(first, second.as_ref(), out),
            Operator::RequestWithoutQuery(first, second) => {
                let start = out.len();
                let present = self.request(first, second.as_ref(), out);
                if let Some(query) = out[start..].iter().position(|b| *b == b'?') {
                    out.truncate(start + query);
                }
                present
            }
            Operator::Response(first, second) => {
                let skip = self.capture.request.len();
                self.captured(&self.capture.response, skip, first, out)
                    || second.as_ref().is_some_and(|n| self.captured(&self.capture.response, skip, n, out))
            }
            Operator::Trailer(first, second) => {
                let skip = self.capture.request.len() + self.capture.response.len();
                self.captured(&self.capture.trailers, skip, first, out)
                    || second.as_ref().is_some_and(|n| self.captured(&self.capture.trailers, skip, n, out))
            }
            Operator::GrpcStatus(format) => match (record.grpc_status, format) {
                (None, _) => false,
                (Some(status), GrpcFormat::Number) => show(status, out),
                (Some(status), format) => show(grpc_name(status, *format), out),
            },
            Operator::Plain(plain) => self.plain(*plain, out),
        }
    }

    fn request(&self, first: &Field, second: Option<&Field>, out: &mut Vec<u8>) -> bool {
        self.field(first, out) || second.is_some_and(|field| self.field(field, out))
    }

    fn field(&self, field: &Field, out: &mut Vec<u8>) -> bool {
        let record = self.record;
        let rewritten = record.rare.as_ref().and_then(|rare| rare.rewritten.as_ref());
        match field {
            _ if record.layer == super::Layer::Stream => false,
            Field::Method => show(&record.method, out),
            Field::Path => present(rewritten.or(record.path.as_ref()).map(|p| p.as_str()), out),
            Field::OriginalPath => present(rewritten.and(record.path.as_ref()).map(|p| p.as_str()), out),
            Field::Authority => bytes(record.authority.as_ref().map(|a| a.as_bytes()), out),
            Field::Scheme => show(if record.facts.tls.is_some() { "https" } else { "http" }, out),
            Field::RequestId => present(record.request_id.as_ref(), out),
            Field::Header(name) => self.captured(&self.capture.request, 0, name, out),
        }
    }

    fn captured(&self, names: &[HeaderName], skip: usize, name: &HeaderName, out: &mut Vec<u8>) -> bool {
        let slot = names.iter().position(|n| n == name).and_then(|i| self.record.captured.get(skip + i));
        bytes(slot.and_then(|value| value.as_ref()).map(|value| value.as_bytes()), out)
    }

    /// The request's own trace, else the one that its caller has told, which is passed on as it is.
    pub(super) fn trace_id(&self) -> Option<u128> {
        let own = self.record.trace_context().map(|context| context.trace_id);
        own.or_else(|| self.record.told_trace())
    }

    fn plain(&self, plain: Plain, out: &mut Vec<u8>) -> bool {
        let record = self.record;
        let facts = &record.facts;
        let tls = facts.tls.as_ref();
        let client =
            SocketAddr::new(record.client, if record.client == facts.client.ip() { facts.client.port() } else { 0 });
        match plain {
            Plain::Protocol => self.protocol(out),
            Plain::ResponseCode => show(record.status, out),
            Plain::ResponseCodeDetails if !record.details.is_empty() => show(&record.details, out),
            Plain::ResponseCodeDetails if record.first_byte > 0 => show("via_upstream", out),
            Plain::ResponseCodeDetails => false,
            Plain::ResponseFlags => show(record.flags, out),
            Plain::ResponseFlagsLong => show(record.flags.long(), out),
            Plain::BytesReceived => show(record.received_bytes(), out),
            Plain::BytesSent => show(record.sent_bytes(), out),
            Plain::RequestHeadersBytes => show(record.request_header_bytes, out),
            Plain::Duration => show(self.duration.as_millis(), out),
            Plain::RequestDuration => millis(self.request_end(), out),
            Plain::ResponseDuration => millis(record.first_byte, out),
            Plain::ResponseTxDuration if record.first_byte > 0 => {
                let first_byte = Duration::from_micros(record.first_byte.into());
                show(self.duration.saturating_sub(first_byte).as_millis(), out)
            }
            Plain::ResponseTxDuration => false,
            Plain::UpstreamHost => present(record.upstream, out),
            Plain::UpstreamCluster => present(record.cluster.as_ref().map(|c| &c.key), out),
            Plain::UpstreamAttempts => show(record.attempts, out),
            Plain::RouteName => nonempty(self.route, out),
            Plain::ListenerName => nonempty(self.listener, out),
            Plain::RemoteAddress if client.port() == 0 => show(client.ip(), out),
            Plain::RemoteAddress => show(client, out),
            Plain::RemoteIp => show(client.ip(), out),
            Plain::RemotePort => present((client.port() > 0).then_some(client.port()), out),
            Plain::DirectAddress => show(facts.peer, out),
            Plain::DirectIp => show(facts.peer.ip(), out),
            Plain::DirectPort => show(facts.peer.port(), out),
            Plain::LocalAddress => show(facts.local, out),
            Plain::LocalIp => show(facts.local.ip(), out),
            Plain::LocalPort => show(facts.local.port(), out),
            Plain::ServerName => present(tls.and_then(|t| t.sni.as_ref()), out),
            Plain::TlsVersion => {
                let version = tls.map_or("", |t| t.version);
                !version.is_empty() && show("TLSv", out) && show(version, out)
            }
            Plain::TlsCipher => nonempty(tls.map_or("", |t| t.cipher), out),
            Plain::PeerSubject => present(tls.and_then(|t| t.peer_subject.as_ref()), out),
            Plain::PeerUriSan => present(tls.and_then(|t| t.peer_identity.as_ref()), out),
            Plain::SourcePrincipal => present(facts.source.as_ref(), out),
            Plain::DestinationPrincipal => present(record.destination(), out),
            Plain::TraceId => present(self.trace_id().map(|id| format!("{id:032x}")), out),
            Plain::SpanId => present(record.trace_context().map(|t| format!("{:016x}", t.span_id)), out),
            Plain::Hostname => nonempty(hostname(), out),
            Plain::GrpcStatusNumber => present(record.grpc_status, out),
        }
    }

    fn protocol(&self, out: &mut Vec<u8>) -> bool {
        if self.record.layer == super::Layer::Stream {
            return false;
        }
        let version = match self.record.version {
            http::Version::HTTP_09 | http::Version::HTTP_10 => "HTTP/1.0",
            http::Version::HTTP_2 => "HTTP/2",
            http::Version::HTTP_3 => "HTTP/3",
            _ => "HTTP/1.1",
        };
        show(version, out)
    }

    fn request_end(&self) -> Offset {
        // Without a body the request ends with its head, at the start.
        let end = |p: &Arc<Progress>| p.request_end.load(Relaxed);
        self.record.progress.as_ref().map_or(1, end)
    }
}

fn write_time(format: &selvedge_wire::log_time::TimeFormat, time: SystemTime, out: &mut Vec<u8>) -> bool {
    let mut text = String::with_capacity(32);
    let _ = format.write(time, &mut text);
    out.extend_from_slice(text.as_bytes());
    true
}

fn show(value: impl Display, out: &mut Vec<u8>) -> bool {
    let _ = write!(out, "{value}");
    true
}

fn present(value: Option<impl Display>, out: &mut Vec<u8>) -> bool {
    value.is_some_and(|value| show(value, out))
}

fn nonempty(value: &str, out: &mut Vec<u8>) -> bool {
    !value.is_empty() && show(value, out)
}

fn bytes(value: Option<&[u8]>, out: &mut Vec<u8>) -> bool {
    value.map(|value| out.extend_from_slice(value)).is_some()
}

fn millis(offset: Offset, out: &mut Vec<u8>) -> bool {
    offset > 0 && show(offset / 1000, out)
}

/// Cuts a value to its limit, between characters.
fn cut(value: &mut Vec<u8>, limit: Option<usize>) {
    let limit = limit.unwrap_or(MAX_VALUE).min(MAX_VALUE);
    if value.len() > limit {
        let mut end = limit;
        while end > 0 && value[end] & 0xc0 == 0x80 {
            end -= 1;
        }
        value.truncate(end);
    }
}

fn grpc_name(status: u8, format: GrpcFormat) -> String {
    const SNAKE: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let Some(name) = SNAKE.get(usize::from(status)) else { return status.to_string() };
    match (format, *name) {
        (GrpcFormat::Camel, "OK") => "OK".to_owned(),
        (GrpcFormat::Camel, name) => name
            .split('_')
            .flat_map(|word| word.char_indices().map(|(i, c)| if i == 0 { c } else { c.to_ascii_lowercase() }))
            .collect(),
        (_, name) => name.to_owned(),
    }
}

pub(super) fn hostname() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        kernel.or_else(|| std::env::var("HOSTNAME").ok()).map(|name| name.trim().to_owned()).unwrap_or_default()
    })
}

/// What must not reach a terminal or a line-based reader as it is: controls (C0, DEL, C1) and Unicode line and
/// direction changes.
fn is_dangerous(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Backslash, quotes and dangerous characters are escaped as in C; bytes that are not UTF-8 become `\xHH`.
fn escape_text(value: &[u8], out: &mut Vec<u8>) {
    for chunk in value.utf8_chunks() {
        for c in chunk.valid().chars() {
            let _ = match c {
                '"' | '\\' => write!(out, "\\{c}"),
                '\n' => write!(out, "\\n"),
                '\r' => write!(out, "\\r"),
                '\t' => write!(out, "\\t"),
                c if is_dangerous(c) && (c as u32) < 0x80 => write!(out, "\\x{:02x}", c as u32),
                c if is_dangerous(c) => write!(out, "\\u{{{:04x}}}", c as u32),
                c => {
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    Ok(())
                }
            };
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
}

/// A JSON string, with quotes; bytes that are not UTF-8 become U+FFFD.
fn json_string(value: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    // Most values are plain ASCII: copied as they are.
    if value.iter().all(|b| matches!(b, 0x20..=0x7e) && !matches!(b, b'"' | b'\\')) {
        out.extend_from_slice(value);
    } else {
        for c in String::from_utf8_lossy(value).chars() {
            let _ = match c {
                '"' | '\\' => write!(out, "\\{c}"),
                '\n' => write!(out, "\\n"),
                '\r' => write!(out, "\\r"),
                '\t' => write!(out, "\\t"),
                // All of them lie in the basic plane.
                c if is_dangerous(c) => write!(out, "\\u{:04x}", c as u32),
                c => {
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    Ok(())
                }
            };
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{RequestId, Telemetry, record::tests::facts};
    use crate::worker::WorkerCount;
    use http::HeaderMap;
    use std::time::UNIX_EPOCH;

    /// A finished record with hostile values.
    fn record(capture: &Capture) -> Record {
        let telemetry = Telemetry::new(WorkerCount(1));
        let mut headers = HeaderMap::new();
        let evil = b"Mozilla \"x\"\t\\ \xff\xc2\x85end".as_slice();
        headers.insert("user-agent", http::HeaderValue::from_bytes(evil).unwrap());
        let mut request = http::Request::get("http://shop.example/cart?a=1&b=2").body(()).unwrap();
        *request.headers_mut() = headers;
        let mut record = Record::start(facts(&telemetry), &request);
        record.captured = capture.request.iter().map(|name| request.headers().get(name).cloned()).collect();
        record.request_id(RequestId::Made(1));
        record.status = 503;
        record.flag(Flags::UPSTREAM_OVERFLOW);
        record.sent = 17;
        record
    }

    fn render(format: &LogFormat) -> String {
        let format = Format::new(format).unwrap();
        let mut capture = Capture::default();
        format.capture(&mut capture);
        let record = record(&capture);
        let values = Values {
            record: &record,
            capture: &capture,
            listener: "ns/gw/web",
            route: "ns/shop#0",
            duration: Duration::from_micros(12_345),
            ended: UNIX_EPOCH + Duration::from_secs(1_000_000_000),
        };
        let mut out = Vec::new();
        format.write(&values, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn text(template: &str) -> String {
        render(&LogFormat::Text(template.to_owned()))
    }

    #[test]
    fn the_default_text_line() {
        assert_eq!(
            text(selvedge_wire::log_template::DEFAULT),
            "[2001-09-09T01:46:39.987Z] \"GET /cart?a=1&b=2 HTTP/1.1\" 503 UO 0 17 12 - \"-\" \
             \"Mozilla \\\"x\\\"\\t\\\\ \\xff\\u{0085}end\" \"00000000-0000-0000-0000-000000000001\" \"shop.example\" \"-\"\n"
        );
    }

    #[test]
    fn operators_take_arguments() {
        assert_eq!(text("%REQ(:PATH):5%|%REQ_WITHOUT_QUERY(:PATH)%|%REQ(X-NONE?:METHOD)%\n"), "/cart|/cart|GET\n");
        assert_eq!(
            text("%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS%"),
            "198.51.100.9:2000 192.0.2.7:1000\n"
        );
        assert_eq!(
            text("%DOWNSTREAM_TLS_VERSION% %REQUESTED_SERVER_NAME% %TRAILER(X)% %RESP(Y)%"),
            "TLSv1.3 shop.example - -\n"
        );
        assert_eq!(
            text("%ROUTE_NAME% %LISTENER_NAME% %RESPONSE_FLAGS_LONG% 100%%"),
            "ns/shop#0 ns/gw/web UpstreamOverflow 100%\n"
        );
    }

    #[test]
    fn the_default_json_line_parses_and_is_typed() {
        let line = render(&LogFormat::Json);
        assert_eq!(line.matches('\n').count(), 1);
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["status"], 503);
        assert_eq!(json["duration_ms"], 12);
        assert_eq!(json["grpc_status"], serde_json::Value::Null);
        assert_eq!(json["user_agent"], "Mozilla \"x\"\t\\ \u{fffd}\u{85}end");
        assert!(line.contains("\\u0085"), "{line}");
        assert_eq!(json["path"], "/cart?a=1&b=2");
        assert_eq!(json["start_time"], "2001-09-09T01:46:39.987Z");
        assert_eq!(json.as_object().unwrap().len(), DEFAULT_JSON.len());
    }

    #[test]
    fn json_fields_mix_text_and_numbers() {
        let fields =
            [("a", "%REQ(:METHOD)% %RESPONSE_CODE%"), ("b\"", "%BYTES_SENT%"), ("c", "%GRPC_STATUS%"), ("d", "x")];
        let line = render(&LogFormat::JsonFields(fields.map(|(n, t)| (n.to_owned(), t.to_owned())).to_vec()));
        assert_eq!(line, "{\"a\":\"GET 503\",\"b\\\"\":17,\"c\":null,\"d\":\"x\"}\n");
    }

    #[test]
    fn nothing_can_forge_a_line_or_reach_a_terminal() {
        for value in ["a\nb", "a\r\nb", "\x1b[31m", "\u{9b}31m", "\u{2028}", "\u{202e}", "\x7f", "\0"] {
            for escape in [escape_text, json_string] {
                let mut out = Vec::new();
                escape(value.as_bytes(), &mut out);
                let shown = String::from_utf8(out).unwrap();
                assert!(shown.chars().all(|c| !is_dangerous(c)), "{value:?} became {shown:?}");
            }
            let mut json = Vec::new();
            json_string(value.as_bytes(), &mut json);
            assert_eq!(serde_json::from_slice::<String>(&json).unwrap(), value);
        }
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        let mut value = "aé".repeat(10).into_bytes();
        cut(&mut value, Some(5));
        assert_eq!(value, "aéa".as_bytes());
        let mut value = vec![b'x'; MAX_VALUE + 1];
        cut(&mut value, None);
        assert_eq!(value.len(), MAX_VALUE);
    }

    #[test]
    fn conditions_pick_records() {
        let capture = Capture::default();
        let mut record = record(&capture);
        let mut holds = |status: u16, flags: Flags, condition: LogCondition| {
            record.status = status;
            record.flags = flags;
            let values = Values {
                record: &record,
                capture: &capture,
                listener: "",
                route: "",
                duration: Duration::from_millis(50),
                ended: UNIX_EPOCH,
            };
            wanted(&condition, &values)
        };
        let any = LogCondition::default;
        assert!(holds(200, Flags::NONE, any()));
        assert!(!holds(499, Flags::NONE, LogCondition { min_status: Some(500), ..any() }));
        assert!(holds(500, Flags::NONE, LogCondition { min_status: Some(500), ..any() }));
        assert!(!holds(200, Flags::NONE, LogCondition { min_duration_ms: Some(51), ..any() }));
        assert!(holds(200, Flags::NONE, LogCondition { min_duration_ms: Some(50), ..any() }));
        assert!(!holds(200, Flags::DELAY_INJECTED, LogCondition { errors_only: true, ..any() }));
        assert!(holds(200, Flags::UPSTREAM_RESET, LogCondition { errors_only: true, ..any() }));
        assert!(sampled(1_000_000) && !sampled(0));
    }

    #[test]
    fn grpc_names() {
        assert_eq!(grpc_name(4, GrpcFormat::Camel), "DeadlineExceeded");
        assert_eq!(grpc_name(4, GrpcFormat::Snake), "DEADLINE_EXCEEDED");
        assert_eq!(grpc_name(0, GrpcFormat::Camel), "OK");
        assert_eq!(grpc_name(99, GrpcFormat::Camel), "99");
    }
}
