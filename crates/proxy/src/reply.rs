//! The only place where an error becomes a response.

use crate::{
    Body, Error, Response,
    error::{Kind, Side},
    jwt::Reason,
};
use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use selvedge_wire::grpc::GrpcStatus;

/// A gRPC error without a message body ("trailers only": the status is in the header block).
pub fn grpc(code: u8, message: &str) -> Response {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let status = GrpcStatus::from_code(code).unwrap_or(GrpcStatus::Unknown);
    selvedge_wire::grpc::write_status(status, message, headers);
    response
}

/// The status that tells a client what became of its request.
pub fn status(error: &Error) -> StatusCode {
    let code = match (error.kind, error.side) {
        (Kind::Protocol { status }, Side::Downstream) | (Kind::TooLarge { status }, _) => status,
        (Kind::Protocol { .. }, _) => 502,
        (Kind::Connect | Kind::Tls | Kind::Reset | Kind::Refused, Side::Upstream) => 503,
        (Kind::Tls, Side::Us) => 503,
        (Kind::ConnectTimeout | Kind::Overflow | Kind::NoEndpoint | Kind::Shed, _) => 503,
        (Kind::Timeout, Side::Downstream) => 408,
        (Kind::Timeout, _) => 504,
        // Nobody is there to read it; the number is nginx's, for the log.
        (Kind::Cancelled, _) => 499,
        (Kind::Denied, _) => 403,
        (Kind::Unproven(Reason::Repeated), _) => 400,
        (Kind::Unproven(Reason::Broken), _) => 500,
        (Kind::Unproven(_), _) => 401,
        (Kind::Internal, _) => 500,
        (Kind::Connect | Kind::Tls | Kind::Reset | Kind::Refused, _) => 400,
    };
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Where gRPC has a better word than the one its mapping of HTTP statuses yields.
fn grpc_status(error: &Error) -> Option<GrpcStatus> {
    match error.kind {
        Kind::Timeout => Some(GrpcStatus::DeadlineExceeded),
        Kind::TooLarge { .. } => Some(GrpcStatus::ResourceExhausted),
        Kind::Cancelled => Some(GrpcStatus::Cancelled),
        _ => None,
    }
}

/// Answers an error in the client's own terms.
pub fn from_error(error: &Error, grpc_request: bool) -> Response {
    // What clients may know: not addresses or certificate details, which are in the log.
    let status = status(error);
    let text = match error.kind {
        Kind::Protocol { .. } if error.side == Side::Downstream => error.message.as_ref(),
        Kind::Protocol { .. } => "the upstream's answer breaks the protocol",
        Kind::Connect | Kind::ConnectTimeout => "the upstream could not be reached",
        Kind::Tls if error.side == Side::Us => {
            "our own certificate or TLS settings towards the upstream cannot be used"
        }
        Kind::Tls => "the upstream's TLS could not be verified or negotiated",
        Kind::Reset | Kind::Refused => "the upstream reset the connection before it answered",
        Kind::Timeout | Kind::TooLarge { .. } => error.message.as_ref(),
        Kind::Overflow => "a limit of the upstream is reached",
        Kind::NoEndpoint => "no healthy upstream",
        Kind::Cancelled => "the client went away",
        Kind::Shed => "overloaded, try again",
        Kind::Denied => "access denied",
        Kind::Unproven(reason) => reason.words(),
        Kind::Internal => "internal error",
    };
    let mut response = match grpc_status(error).filter(|_| grpc_request) {
        Some(code) => grpc(code.code(), text),
        None => from_status(status, text, grpc_request),
    };
    if let Kind::Unproven(reason) = error.kind {
        response.headers_mut().extend(challenge(reason).map(|challenge| (WWW_AUTHENTICATE, challenge)));
    }
    if matches!(error.kind, Kind::Overflow | Kind::Shed) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// How to prove who one is (RFC 6750 section 3). Who has not tried is told of no error.
fn challenge(reason: Reason) -> Option<HeaderValue> {
    const REALM: &str = "Bearer realm=\"gateway\"";
    let error = match reason {
        Reason::Broken => return None,
        Reason::Missing | Reason::NotHttp => return Some(HeaderValue::from_static(REALM)),
        Reason::Repeated => "invalid_request",
        _ => "invalid_token",
    };
    let words = reason.words();
    HeaderValue::try_from(format!("{REALM}, error=\"{error}\", error_description=\"{words}\"")).ok()
}

/// A plain text answer made here, or its gRPC equivalent.
pub fn from_status(status: StatusCode, text: &str, grpc_request: bool) -> Response {
    if grpc_request {
        return grpc(GrpcStatus::from_http(status).code(), text);
    }
    let mut response = Response::new(Body::full(format!("{text}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
