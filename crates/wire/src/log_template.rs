//! Access log templates: Envoy's command operators (`%REQ(:METHOD)% %RESPONSE_CODE% …`), parsed once.
//!
//! The compiler parses a template to check it, the proxy to evaluate it. What an operator means when the log is written
//! is the proxy's business; here is what may be written.

use crate::log_time::TimeFormat;
use http::HeaderName;

/// Bytes of a template.
pub const MAX_TEMPLATE: usize = 8 * 1024;
/// Operators in a template; a line of a log is written for every request.
pub const MAX_OPERATORS: usize = 128;

/// Envoy's default format, without its internal fields: what a text log without a template looks like.
pub const DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESPONSE_DURATION% \
    \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"";

/// The fields of a JSON log without a format of its own: names, and the templates of their values.
pub const DEFAULT_JSON: &[(&str, &str)] = &[
    ("start_time", "%START_TIME%"),
    ("client", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
    ("method", "%REQ(:METHOD)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("status", "%RESPONSE_CODE%"),
    ("status_details", "%RESPONSE_CODE_DETAILS%"),
    ("flags", "%RESPONSE_FLAGS%"),
    ("grpc_status", "%GRPC_STATUS_NUMBER%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration_ms", "%DURATION%"),
    ("upstream_response_ms", "%RESPONSE_DURATION%"),
    ("listener", "%LISTENER_NAME%"),
    ("route", "%ROUTE_NAME%"),
    ("cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream", "%UPSTREAM_HOST%"),
    ("attempts", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("trace_id", "%TRACE_ID%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("referer", "%REQ(REFERER)%"),
    ("forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("sni", "%REQUESTED_SERVER_NAME%"),
    ("tls_version", "%DOWNSTREAM_TLS_VERSION%"),
    ("peer_identity", "%DOWNSTREAM_PEER_URI_SAN%"),
    ("source_principal", "%SOURCE_PRINCIPAL%"),
    ("destination_principal", "%DESTINATION_PRINCIPAL%"),
];

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Template {
    pub parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Literal(String),
    /// An operator, and the number of bytes after which its value is cut.
    Value(Operator, Option<usize>),
}

/// What an operator stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    StartTime(TimeFormat),
    EmitTime(TimeFormat),
    /// A request field, or the second when the first is absent.
    Request(Field, Option<Field>),
    /// As [`Operator::Request`], with the query cut off.
    RequestWithoutQuery(Field, Option<Field>),
    Response(HeaderName, Option<HeaderName>),
    Trailer(HeaderName, Option<HeaderName>),
    GrpcStatus(GrpcFormat),
    Plain(Plain),
}

/// A field of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    Method,
    /// With its query, as it went upstream.
    Path,
    Authority,
    Scheme,
    /// The path as the client sent it, when it was rewritten (`X-ENVOY-ORIGINAL-PATH`).
    OriginalPath,
    /// The id that the request has, whoever made it.
    RequestId,
    Header(HeaderName),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrpcFormat {
    Camel,
    Snake,
    Number,
}

macro_rules! plain {
    ($($id:ident $name:literal $number:literal $help:literal,)*) => {
        /// Operators without arguments.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Plain { $(#[doc = $help] $id,)* }

        /// Each operator without arguments: name, whether it is a number, meaning.
        pub const PLAIN: &[(Plain, &str, bool, &str)] = &[$((Plain::$id, $name, $number, $help),)*];
    };
}

plain! {
    Protocol "PROTOCOL" false "`HTTP/1.1`, `HTTP/2` …; empty for TCP.",
    ResponseCode "RESPONSE_CODE" true "Status sent to the client; 0 when none was.",
    ResponseCodeDetails "RESPONSE_CODE_DETAILS" false "Why Selvedge answered so; `via_upstream` when the upstream did.",
    ResponseFlags "RESPONSE_FLAGS" false "Response flags, see metrics.md.",
    ResponseFlagsLong "RESPONSE_FLAGS_LONG" false "Response flags by their long names.",
    BytesReceived "BYTES_RECEIVED" true "Bytes of the request body (TCP: from the client).",
    BytesSent "BYTES_SENT" true "Bytes of the response body (TCP: to the client).",
    RequestHeadersBytes "REQUEST_HEADERS_BYTES" true "Bytes of the request's header block.",
    Duration "DURATION" true "Milliseconds from the start to the end.",
    RequestDuration "REQUEST_DURATION" true "Milliseconds from the start to the last byte of the request body.",
    ResponseDuration "RESPONSE_DURATION" true "Milliseconds from the start to the head of the upstream's response.",
    ResponseTxDuration "RESPONSE_TX_DURATION" true "Milliseconds from the head of the upstream's response to the end.",
    UpstreamHost "UPSTREAM_HOST" false "Address of the endpoint that answered.",
    UpstreamCluster "UPSTREAM_CLUSTER" false "The cluster.",
    UpstreamAttempts "UPSTREAM_REQUEST_ATTEMPT_COUNT" true "Tries sent upstream.",
    RouteName "ROUTE_NAME" false "`namespace/route#rule`.",
    ListenerName "LISTENER_NAME" false "`namespace/gateway/section`.",
    RemoteAddress "DOWNSTREAM_REMOTE_ADDRESS" false "The client, after trusted hops and PROXY protocol, with its port.",
    RemoteIp "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" false "The client's address.",
    RemotePort "DOWNSTREAM_REMOTE_PORT" true "The client's port.",
    DirectAddress "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" false "Who holds the other end of the socket.",
    DirectIp "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" false "The same without its port.",
    DirectPort "DOWNSTREAM_DIRECT_REMOTE_PORT" true "Its port.",
    LocalAddress "DOWNSTREAM_LOCAL_ADDRESS" false "The address that the client connected to.",
    LocalIp "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" false "The same without its port.",
    LocalPort "DOWNSTREAM_LOCAL_PORT" true "Its port.",
    ServerName "REQUESTED_SERVER_NAME" false "SNI of the TLS handshake.",
    TlsVersion "DOWNSTREAM_TLS_VERSION" false "`TLSv1.3`.",
    TlsCipher "DOWNSTREAM_TLS_CIPHER" false "IANA name of the cipher suite.",
    PeerSubject "DOWNSTREAM_PEER_SUBJECT" false "Subject of the client's certificate.",
    PeerUriSan "DOWNSTREAM_PEER_URI_SAN" false "URI SAN of the client's certificate.",
    SourcePrincipal "SOURCE_PRINCIPAL" false "SPIFFE ID of the workload that called; proven, else absent.",
    DestinationPrincipal "DESTINATION_PRINCIPAL" false "SPIFFE ID of the workload that was called.",
    TraceId "TRACE_ID" false "The trace, 32 hexadecimal digits; without `telemetry.tracing` the one that the request names in `traceparent`, `b3` or `x-b3-traceid`, if it does.",
    SpanId "SPAN_ID" false "The request's own span, 16 hexadecimal digits; only with `telemetry.tracing`.",
    Hostname "HOSTNAME" false "Name of this machine.",
    GrpcStatusNumber "GRPC_STATUS_NUMBER" true "gRPC status as a number.",
}

/// Operators with arguments, for messages and documentation.
pub const WITH_ARGUMENTS: &[(&str, &str)] = &[
    ("START_TIME", "When the request began: `%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%`, UTC."),
    ("EMIT_TIME", "When the line is written, in the same formats."),
    (
        "REQ",
        "A request header or `:METHOD`, `:PATH`, `:AUTHORITY`, `:SCHEME`: `%REQ(X?Y):Z%` is X, else Y, cut to Z bytes.",
    ),
    ("REQ_WITHOUT_QUERY", "The same, cut at the first `?`."),
    ("RESP", "A response header: `%RESP(X?Y):Z%`."),
    ("TRAILER", "A response trailer: `%TRAILER(X?Y):Z%`."),
    ("GRPC_STATUS", "gRPC status by name, `(CAMEL_STRING)` (default), `(SNAKE_STRING)` or `(NUMBER)`."),
];

/// The operators and default formats as the document that users read (`docs/access-log.md`).
pub fn markdown() -> String {
    let mut out = String::from(
        "# Access log templates\n\n<!-- Made from crates/wire/src/log_template.rs: `UPDATE=1 cargo test -p selvedge-wire log_template` rewrites it. -->\n\n\
         A template is text with operators between percent signs, as in Envoy; `%%` is a percent sign. `:N` behind an operator cuts\n\
         its value to N bytes. What has no value is `-` in text and `null` in JSON. Controls, quotes and whatever else could break or\n\
         forge a line are escaped. Operators that are not in this list are errors of the configuration.\n\n| operator | meaning |\n|---|---|\n",
    );
    let plain =
        PLAIN.iter().map(|(_, name, number, help)| (name, help, if *number { " (a number in JSON)" } else { "" }));
    for (name, help, note) in WITH_ARGUMENTS.iter().map(|(name, help)| (name, help, "")).chain(plain) {
        out.push_str(&format!("| `%{name}%` | {help}{note} |\n"));
    }
    out.push_str("\n## Default JSON fields\n\n| field | template |\n|---|---|\n");
    for (name, template) in DEFAULT_JSON {
        out.push_str(&format!("| `{name}` | `{template}` |\n"));
    }
    out
}

/// What is wrong with a template, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (at byte {position} of the template)")]
pub struct TemplateError {
    pub position: usize,
    pub message: String,
}

impl Template {
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > MAX_TEMPLATE {
            return Err(error(MAX_TEMPLATE, format!("the template is longer than {MAX_TEMPLATE} bytes")));
        }
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(start) = rest.find('%') {
            literal.push_str(&rest[..start]);
            let position = text.len() - rest.len() + start;
            rest = &rest[start + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                literal.push('%');
                rest = after;
                continue;
            }
            let (part, after) = operator(rest, position)?;
            rest = after;
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(part);
            if parts.len() > 2 * MAX_OPERATORS {
                return Err(error(position, format!("more than {MAX_OPERATORS} operators in one template")));
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self { parts })
    }

    /// The operator, when the template is nothing else.
    pub fn only(&self) -> Option<&Operator> {
        match self.parts.as_slice() {
            [Part::Value(operator, None)] => Some(operator),
            _ => None,
        }
    }

    pub fn operators(&self) -> impl Iterator<Item = &Operator> {
        self.parts.iter().filter_map(|part| match part {
            Part::Value(operator, _) => Some(operator),
            Part::Literal(_) => None,
        })
    }
}

impl Operator {
    /// Whether the value is a number (or absent), so that JSON may write it as one.
    pub fn is_number(&self) -> bool {
        match self {
            Self::Plain(plain) => PLAIN.iter().any(|(p, _, number, _)| p == plain && *number),
            Self::GrpcStatus(format) => *format == GrpcFormat::Number,
            _ => false,
        }
    }
}

fn error(position: usize, message: impl Into<String>) -> TemplateError {
    TemplateError { position, message: message.into() }
}

/// Parses what follows a `%`; returns what follows the closing one.
fn operator(text: &str, position: usize) -> Result<(Part, &str), TemplateError> {
    let end = text.find(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (name, mut rest) = text.split_at(end);
    if name.is_empty() {
        return Err(error(position, "a lone `%`: write `%%` for a percent sign, or `%OPERATOR%`"));
    }
    let mut argument = None;
    if let Some(inner) = rest.strip_prefix('(') {
        let close = inner.find(')').ok_or_else(|| error(position, format!("`%{name}(` has no closing parenthesis")))?;
        argument = Some(&inner[..close]);
        rest = &inner[close + 1..];
    }
    let mut limit = None;
    if let Some(number) = rest.strip_prefix(':') {
        let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
        limit = Some(
            number[..end]
                .parse::<usize>()
                .map_err(|_| error(position, format!("`%{name}…:` must be followed by a number of bytes")))?,
        );
        rest = &number[end..];
    }
    let rest = rest.strip_prefix('%').ok_or_else(|| error(position, format!("`%{name}` is not closed by a `%`")))?;
    let operator = resolve(name, argument).map_err(|message| error(position, message))?;
    Ok((Part::Value(operator, limit), rest))
}

fn resolve(name: &str, argument: Option<&str>) -> Result<Operator, String> {
    let operator = match (name, argument) {
        ("START_TIME", format) => Operator::StartTime(TimeFormat::parse(format.unwrap_or_default())?),
        ("EMIT_TIME", format) => Operator::EmitTime(TimeFormat::parse(format.unwrap_or_default())?),
        ("REQ", Some(names)) => {
            let (first, second) = alternatives(names, request_field)?;
            Operator::Request(first, second)
        }
        ("REQ_WITHOUT_QUERY", Some(names)) => {
            let (first, second) = alternatives(names, request_field)?;
            Operator::RequestWithoutQuery(first, second)
        }
        ("RESP", Some(names)) => {
            let (first, second) = alternatives(names, header)?;
            Operator::Response(first, second)
        }
        ("TRAILER", Some(names)) => {
            let (first, second) = alternatives(names, header)?;
            Operator::Trailer(first, second)
        }
        ("REQ" | "REQ_WITHOUT_QUERY" | "RESP" | "TRAILER", None) => {
            return Err(format!("`%{name}%` needs the name of a header: `%{name}(USER-AGENT)%`"));
        }
        ("GRPC_STATUS", None | Some("CAMEL_STRING")) => Operator::GrpcStatus(GrpcFormat::Camel),
        ("GRPC_STATUS", Some("SNAKE_STRING")) => Operator::GrpcStatus(GrpcFormat::Snake),
        ("GRPC_STATUS", Some("NUMBER")) => Operator::GrpcStatus(GrpcFormat::Number),
        ("GRPC_STATUS", Some(other)) => {
            return Err(format!("`%GRPC_STATUS({other})%`: use CAMEL_STRING, SNAKE_STRING or NUMBER"));
        }
        (name, argument) => match PLAIN.iter().find(|(_, known, ..)| *known == name) {
            Some((plain, ..)) if argument.is_none() => Operator::Plain(*plain),
            Some(_) => return Err(format!("`%{name}%` takes no argument")),
            None => return Err(unknown(name)),
        },
    };
    Ok(operator)
}

/// `X` or `X?Y`.
fn alternatives<T>(names: &str, parse: fn(&str) -> Result<T, String>) -> Result<(T, Option<T>), String> {
    match names.split_once('?') {
        Some((first, second)) => Ok((parse(first)?, Some(parse(second)?))),
        None => Ok((parse(names)?, None)),
    }
}

fn request_field(name: &str) -> Result<Field, String> {
    let lower = name.to_ascii_lowercase();
    Ok(match lower.as_str() {
        ":method" => Field::Method,
        ":path" => Field::Path,
        ":authority" | "host" => Field::Authority,
        ":scheme" => Field::Scheme,
        "x-envoy-original-path" => Field::OriginalPath,
        "x-request-id" => Field::RequestId,
        _ if lower.starts_with(':') => {
            return Err(format!(
                "`{name}` is no request field: use :METHOD, :PATH, :AUTHORITY, :SCHEME or a header name"
            ));
        }
        _ => Field::Header(header(name)?),
    })
}

fn header(name: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{name}` is not a header name"))
}

fn unknown(name: &str) -> String {
    let known = PLAIN.iter().map(|(_, known, ..)| *known).chain(WITH_ARGUMENTS.iter().map(|(known, _)| *known));
    let nearest = known.map(|known| (distance(name, known), known)).min();
    match nearest {
        Some((edits, nearest)) if edits <= name.len() / 3 + 1 => {
            format!("unknown operator `%{name}%`; did you mean `%{nearest}%`?")
        }
        _ => format!("unknown operator `%{name}%`"),
    }
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<Part> {
        Template::parse(text).unwrap().parts
    }

    #[test]
    fn literals_and_operators_alternate() {
        assert_eq!(
            parse("a %PROTOCOL% 100%% %REQ(X-A?:PATH):5%"),
            [
                Part::Literal("a ".into()),
                Part::Value(Operator::Plain(Plain::Protocol), None),
                Part::Literal(" 100% ".into()),
                Part::Value(
                    Operator::Request(Field::Header(HeaderName::from_static("x-a")), Some(Field::Path)),
                    Some(5)
                ),
            ]
        );
        assert_eq!(parse(""), []);
        assert_eq!(parse("%%"), [Part::Literal("%".into())]);
    }

    #[test]
    fn the_defaults_and_every_operator_parse() {
        Template::parse(DEFAULT).unwrap();
        for (_, template) in DEFAULT_JSON {
            assert!(Template::parse(template).unwrap().only().is_some());
        }
        for (plain, name, ..) in PLAIN {
            assert_eq!(parse(&format!("%{name}%")), [Part::Value(Operator::Plain(*plain), None)]);
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let message = |text: &str| Template::parse(text).unwrap_err().to_string();
        assert_eq!(
            message("x %RESPONSE_COD%"),
            "unknown operator `%RESPONSE_COD%`; did you mean `%RESPONSE_CODE%`? (at byte 2 of the template)"
        );
        assert!(message("%XYZZY%").starts_with("unknown operator `%XYZZY%` (at"));
        assert!(message("50% off").contains("a lone `%`"));
        assert!(message("%PROTOCOL").contains("not closed"));
        assert!(message("%REQ(X%").contains("closing parenthesis"));
        assert!(message("%REQ%").contains("needs the name of a header"));
        assert!(message("%REQ(:STATUS)%").contains(":METHOD"));
        assert!(message("%REQ(a b)%").contains("not a header name"));
        assert!(message("%REQ(A):x%").contains("number of bytes"));
        assert!(message("%PROTOCOL(x)%").contains("takes no argument"));
        assert!(message("%GRPC_STATUS(x)%").contains("CAMEL_STRING"));
        assert!(message("%START_TIME(%Q)%").contains("%Q"));
        assert!(message(&"x".repeat(MAX_TEMPLATE + 1)).contains("longer than"));
        assert!(message(&"%PROTOCOL% ".repeat(MAX_OPERATORS + 1)).contains("more than"));
    }

    #[test]
    fn log_template_document_is_current() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/access-log.md");
        let want = markdown();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &want).unwrap();
        }
        let have = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(have == want, "docs/access-log.md is old: run UPDATE=1 cargo test -p selvedge-wire log_template");
    }

    #[test]
    fn time_formats_may_hold_percent_signs() {
        let parts = parse("[%START_TIME(%Y/%m/%dT%H:%M:%S%z, %s)%]");
        assert_eq!(parts.len(), 3);
        assert!(matches!(&parts[1], Part::Value(Operator::StartTime(_), None)));
    }
}
