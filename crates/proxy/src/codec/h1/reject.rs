//! Requests that are refused before they become one: the only answers that are not made by `reply`.

use super::{date, out::Out};
use crate::{Error, error::Kind, telemetry::Limit};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use selvedge_wire::http1::{FramingError, HeadError, Persist, WriteLength, write_response};

/// Why a request is refused; the connection is closed after it.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) error: Error,
    /// Whoever sends this does not speak HTTP: no answer of ours would be understood.
    pub(super) silent: bool,
}

impl Refusal {
    pub(super) fn new(status: u16, message: &'static str) -> Box<Self> {
        Box::new(Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST),
            error: Error::bad_request(status, message),
            silent: false,
        })
    }

    /// Writes the answer.
    pub(super) fn write(&self, out: &mut Out) {
        let text = format!("{}\n", self.error.message);
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(header::DATE, date::now());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        let length = WriteLength::Length(text.len() as u64);
        write_response(self.status, &headers, length, Persist::Close, out.small());
        out.small().extend_from_slice(text.as_bytes());
    }
}

impl From<HeadError> for Box<Refusal> {
    fn from(error: HeadError) -> Self {
        let status = error.status();
        let silent = matches!(error, HeadError::NotHttp);
        let refused = match limit(&error) {
            Some(limit) => Error::downstream(Kind::TooLarge { status: status.as_u16() }, error.to_string()).over(limit),
            None => Error::bad_request(status.as_u16(), error.to_string()),
        };
        Box::new(Refusal { status, error: refused, silent })
    }
}

/// The limit that a head, or a trailer section, is over.
pub(super) fn limit(error: &HeadError) -> Option<Limit> {
    match error {
        HeadError::TargetTooLong => Some(Limit::TargetBytes),
        HeadError::TooLarge => Some(Limit::HeaderBytes),
        HeadError::TooManyHeaders => Some(Limit::HeaderCount),
        _ => None,
    }
}

impl From<FramingError> for Box<Refusal> {
    fn from(error: FramingError) -> Self {
        let status = error.status();
        Box::new(Refusal { status, error: Error::bad_request(status.as_u16(), error.to_string()), silent: false })
    }
}
