//! A service that says who called it, as far as the proxy beside it could find out.

use super::http::{Call, Service};
use http::StatusCode;
use serde_json::{Value, json};

pub struct Greeter(pub String);

impl Service for Greeter {
    async fn answer(&self, call: Call) -> (StatusCode, Value) {
        let caller = call.peer.as_deref().and_then(|peer| peer.split(';').find_map(|part| part.strip_prefix("URI=")));
        (StatusCode::OK, json!({"served_by": self.0, "called_by": caller.unwrap_or("somebody without an identity")}))
    }
}
