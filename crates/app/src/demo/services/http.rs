//! What the HTTP services share: one connection after the other, small JSON answers.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use std::{convert::Infallible, sync::Arc};
use tokio::net::TcpListener;

/// Longest request body that is read.
const MAX_BODY: usize = 64 * 1024;

/// A request with its body read.
pub struct Call {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub body: Bytes,
    /// Who calls, as the proxy beside the service has verified.
    pub peer: Option<String>,
}

/// Something that answers.
pub trait Service: Send + Sync + 'static {
    fn answer(&self, call: Call) -> impl Future<Output = (StatusCode, Value)> + Send;
}

/// Serves HTTP/1.1 on a listener.
pub async fn serve<S: Service>(listener: TcpListener, service: Arc<S>) {
    super::connections(listener, move |stream| {
        let service = service.clone();
        async move {
            let each = service_fn(move |request| {
                let service = service.clone();
                async move { Ok::<_, Infallible>(respond(&*service, request).await) }
            });
            // A client that goes away is none of the service's business.
            let _ = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), each).await;
        }
    })
    .await;
}

pub fn not_found() -> (StatusCode, Value) {
    (StatusCode::NOT_FOUND, json!({"error": "there is nothing here"}))
}

async fn respond<S: Service>(service: &S, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let peer = head.headers.get("x-forwarded-client-cert");
    let (status, value) = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => {
            let call = Call {
                method: head.method,
                path: head.uri.path().to_owned(),
                query: head.uri.query().unwrap_or_default().to_owned(),
                body: body.to_bytes(),
                peer: peer.and_then(|value| value.to_str().ok()).map(str::to_owned),
            };
            service.answer(call).await
        }
        Err(_) => (StatusCode::PAYLOAD_TOO_LARGE, json!({"error": "the body is too long or broke off"})),
    };
    let mut response = Response::new(Full::from(format!("{value:#}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}
