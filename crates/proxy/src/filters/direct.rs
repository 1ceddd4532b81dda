//! A fixed answer instead of forwarding.

use crate::{Body, Response};
use http::{HeaderValue, header::CONTENT_TYPE};
use selvedge_compile::snapshot::DirectResponse;

pub(super) fn answer(direct: &DirectResponse) -> Response {
    let mut response = Response::new(Body::full(direct.body.clone()));
    *response.status_mut() = direct.status;
    if !direct.body.is_empty()
        && let Ok(value) = HeaderValue::from_str(&direct.content_type)
    {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    response
}
