//! The parts of gRPC over HTTP/2 that a proxy must understand: timeouts, status, messages.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

pub static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Bytes of a decoded `grpc-message` that are kept.
pub const MAX_MESSAGE: usize = 4096;

/// A gRPC status code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum GrpcStatus {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

const ALL: [GrpcStatus; 17] = [
    GrpcStatus::Ok,
    GrpcStatus::Cancelled,
    GrpcStatus::Unknown,
    GrpcStatus::InvalidArgument,
    GrpcStatus::DeadlineExceeded,
    GrpcStatus::NotFound,
    GrpcStatus::AlreadyExists,
    GrpcStatus::PermissionDenied,
    GrpcStatus::ResourceExhausted,
    GrpcStatus::FailedPrecondition,
    GrpcStatus::Aborted,
    GrpcStatus::OutOfRange,
    GrpcStatus::Unimplemented,
    GrpcStatus::Internal,
    GrpcStatus::Unavailable,
    GrpcStatus::DataLoss,
    GrpcStatus::Unauthenticated,
];

impl GrpcStatus {
    /// `None` for numbers that are not in the specification.
    pub fn from_code(code: u8) -> Option<Self> {
        ALL.get(usize::from(code)).copied()
    }

    pub fn code(self) -> u8 {
        self as u8
    }

    /// The name as the specification writes it.
    pub fn name(self) -> &'static str {
        const NAMES: [&str; 17] = [
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
        NAMES[usize::from(self.code())]
    }

    /// What a gRPC client makes of an HTTP answer without `grpc-status` (http-grpc-status-mapping.md).
    pub fn from_http(status: StatusCode) -> Self {
        match status.as_u16() {
            200 => GrpcStatus::Ok,
            400 => GrpcStatus::Internal,
            401 => GrpcStatus::Unauthenticated,
            403 => GrpcStatus::PermissionDenied,
            404 => GrpcStatus::Unimplemented,
            429 | 502 | 503 | 504 => GrpcStatus::Unavailable,
            _ => GrpcStatus::Unknown,
        }
    }

    /// The HTTP status of the same meaning (google/rpc/code.proto), for metrics, retries and transcoding.
    pub fn to_http(self) -> StatusCode {
        let code = match self {
            GrpcStatus::Ok => 200,
            GrpcStatus::Cancelled => 499,
            GrpcStatus::InvalidArgument | GrpcStatus::FailedPrecondition | GrpcStatus::OutOfRange => 400,
            GrpcStatus::DeadlineExceeded => 504,
            GrpcStatus::NotFound => 404,
            GrpcStatus::AlreadyExists | GrpcStatus::Aborted => 409,
            GrpcStatus::PermissionDenied => 403,
            GrpcStatus::Unauthenticated => 401,
            GrpcStatus::ResourceExhausted => 429,
            GrpcStatus::Unimplemented => 501,
            GrpcStatus::Unavailable => 503,
            GrpcStatus::Unknown | GrpcStatus::Internal | GrpcStatus::DataLoss => 500,
        };
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// Whether a message is gRPC by its content type: `application/grpc`, alone or followed by `+` or `;`. gRPC-Web is not.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    const TYPE: &[u8] = b"application/grpc";
    headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).is_some_and(|value| {
        value.len() >= TYPE.len()
            && value[..TYPE.len()].eq_ignore_ascii_case(TYPE)
            && matches!(value.get(TYPE.len()), None | Some(b'+' | b';' | b' '))
    })
}

/// The status in trailers, or in the head of an answer without body. A number we do not know is `Unknown`.
pub fn status(fields: &HeaderMap) -> Option<GrpcStatus> {
    let value = fields.get(&GRPC_STATUS)?.as_bytes();
    let code = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u8>().ok());
    Some(code.and_then(GrpcStatus::from_code).unwrap_or(GrpcStatus::Unknown))
}

/// Writes `grpc-status` and, unless it is empty, `grpc-message`.
pub fn write_status(status: GrpcStatus, message: &str, fields: &mut HeaderMap) {
    fields.insert(GRPC_STATUS.clone(), HeaderValue::from(u16::from(status.code())));
    match HeaderValue::try_from(encode_message(message)) {
        Ok(value) if !value.is_empty() => drop(fields.insert(GRPC_MESSAGE.clone(), value)),
        _ => drop(fields.remove(&GRPC_MESSAGE)),
    }
}

/// The deadline the caller set; `None` if there is none or it is malformed.
pub fn timeout(headers: &HeaderMap) -> Option<Duration> {
    parse_timeout(headers.get(&GRPC_TIMEOUT)?.as_bytes())
}

/// Parses one to eight digits and a unit.
pub fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0u64, |sum, d| sum * 10 + u64::from(d - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(value * 3600),
        b'M' => Duration::from_secs(value * 60),
        b'S' => Duration::from_secs(value),
        b'm' => Duration::from_millis(value),
        b'u' => Duration::from_micros(value),
        b'n' => Duration::from_nanos(value),
        _ => return None,
    })
}

/// Writes a timeout in the finest unit that eight digits can hold, rounded down; at most 99999999 hours.
pub fn format_timeout(timeout: Duration) -> String {
    let nanos = timeout.as_nanos();
    let units = [(1u128, 'n'), (1_000, 'u'), (1_000_000, 'm'), (1_000_000_000, 'S'), (60_000_000_000, 'M')];
    for (size, unit) in units {
        if nanos / size <= 99_999_999 {
            return format!("{}{unit}", nanos / size);
        }
    }
    format!("{}H", (nanos / 3_600_000_000_000).min(99_999_999))
}

/// Percent-encodes a message: everything but visible ASCII, space, and `%` itself.
pub fn encode_message(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    for b in message.bytes() {
        match b {
            b' '..=b'~' if b != b'%' => out.push(b as char),
            _ => {
                out.push('%');
                for digit in [b >> 4, b & 15] {
                    out.push(b"0123456789ABCDEF"[usize::from(digit)] as char);
                }
            }
        }
    }
    out
}

/// Decodes a message as far as it can be decoded, as the specification asks; at most [`MAX_MESSAGE`] bytes.
pub fn decode_message(value: &[u8]) -> String {
    let mut out = Vec::with_capacity(value.len().min(MAX_MESSAGE));
    let mut rest = value;
    while let [b, tail @ ..] = rest
        && out.len() < MAX_MESSAGE
    {
        let digit = |at: usize| tail.get(at).and_then(|d| (*d as char).to_digit(16));
        match (*b, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => {
                out.push(*b);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn timeouts_are_read_and_written() {
        assert_eq!(parse_timeout(b"1H"), Some(Duration::from_secs(3600)));
        assert_eq!(parse_timeout(b"99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(parse_timeout(b"0m"), Some(Duration::ZERO));
        for bad in ["", "H", "1", "1h", "-1S", "+1S", "1.5S", "123456789S", " 1S", "1S "] {
            assert_eq!(parse_timeout(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(format_timeout(Duration::from_millis(50)), "50000000n");
        assert_eq!(format_timeout(Duration::from_secs(10)), "10000000u");
        assert_eq!(format_timeout(Duration::from_secs(100_000)), "100000S");
        assert_eq!(format_timeout(Duration::MAX), "99999999H");
    }

    #[test]
    fn status_is_mapped_both_ways() {
        for status in ALL {
            assert_eq!(GrpcStatus::from_code(status.code()), Some(status));
        }
        assert_eq!(GrpcStatus::from_code(17), None);
        assert_eq!(GrpcStatus::Unauthenticated.name(), "UNAUTHENTICATED");
        assert_eq!(GrpcStatus::from_http(StatusCode::SERVICE_UNAVAILABLE), GrpcStatus::Unavailable);
        assert_eq!(GrpcStatus::from_http(StatusCode::NOT_FOUND), GrpcStatus::Unimplemented);
        assert_eq!(GrpcStatus::DeadlineExceeded.to_http(), StatusCode::GATEWAY_TIMEOUT);
        let mut fields = HeaderMap::new();
        assert_eq!(status(&fields), None);
        write_status(GrpcStatus::Unavailable, "no bäckend\n", &mut fields);
        assert_eq!(
            (status(&fields), &fields["grpc-message"]),
            (Some(GrpcStatus::Unavailable), &"no b%C3%A4ckend%0A".parse().unwrap())
        );
        fields.insert("grpc-status", "99".parse().unwrap());
        assert_eq!(status(&fields), Some(GrpcStatus::Unknown));
    }

    #[test]
    fn content_types_are_told_apart() {
        let is = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("content-type", value.parse().unwrap());
            is_grpc(&headers)
        };
        assert!(is("application/grpc") && is("application/grpc+proto") && is("Application/gRPC; a=b"));
        assert!(!is("application/grpc-web") && !is("application/json") && !is("application/grp"));
    }

    proptest! {
        #[test]
        fn messages_survive(message in "\\PC{0,40}") {
            prop_assert_eq!(decode_message(encode_message(&message).as_bytes()), message);
        }

        #[test]
        fn timeouts_never_grow(nanos in any::<u64>()) {
            let timeout = Duration::from_nanos(nanos);
            let text = format_timeout(timeout);
            prop_assert!(text.len() <= 9);
            let read = parse_timeout(text.as_bytes()).unwrap();
            prop_assert!(read <= timeout && timeout - read <= timeout / 100 + Duration::from_nanos(1));
        }
    }
}
