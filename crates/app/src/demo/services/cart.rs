//! The cart: a little state, and two endpoints that misbehave so that retries and timeouts have something to do.

use super::{
    catalog::PRODUCTS,
    http::{Call, Service, not_found},
};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Items that are kept; the oldest go first.
const MAX_ITEMS: usize = 20;
/// Longest sleep of `/cart/slow`, milliseconds.
const MAX_SLEEP: u64 = 10_000;

#[derive(Default)]
pub struct Cart {
    items: Mutex<VecDeque<u32>>,
    flaky: AtomicU64,
    flaky_bare: AtomicU64,
}

impl Service for Cart {
    async fn answer(&self, call: Call) -> (StatusCode, Value) {
        match (call.method.as_str(), call.path.as_str()) {
            ("GET", "/cart") => (StatusCode::OK, self.contents()),
            ("POST", "/cart") => self.add(&call.body),
            ("POST", "/cart/checkout") => {
                let items = std::mem::take(&mut *self.items());
                (StatusCode::OK, json!({"ordered": items}))
            }
            ("GET", "/cart/flaky") => every_other(&self.flaky),
            ("GET", "/cart/flaky-bare") => every_other(&self.flaky_bare),
            ("GET", "/cart/slow") => {
                let asked = call.query.strip_prefix("ms=").and_then(|ms| ms.parse().ok()).unwrap_or(2000);
                let slept = asked.min(MAX_SLEEP);
                tokio::time::sleep(Duration::from_millis(slept)).await;
                (StatusCode::OK, json!({"slept_ms": slept}))
            }
            _ if call.method == Method::GET || call.method == Method::POST => not_found(),
            _ => (StatusCode::METHOD_NOT_ALLOWED, json!({"error": "GET or POST"})),
        }
    }
}

impl Cart {
    fn contents(&self) -> Value {
        json!({"items": *self.items()})
    }

    fn add(&self, body: &[u8]) -> (StatusCode, Value) {
        let sku = serde_json::from_slice::<Value>(body).ok().and_then(|v| v["sku"].as_u64());
        let Some((sku, name, _)) = PRODUCTS.iter().find(|p| Some(u64::from(p.0)) == sku) else {
            return (StatusCode::BAD_REQUEST, json!({"error": r#"send {"sku": N} with a product of the catalogue"#}));
        };
        let mut items = self.items();
        while items.len() >= MAX_ITEMS {
            items.pop_front();
        }
        items.push_back(*sku);
        (StatusCode::CREATED, json!({"added": name, "items": *items}))
    }

    fn items(&self) -> MutexGuard<'_, VecDeque<u32>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn every_other(counter: &AtomicU64) -> (StatusCode, Value) {
    let call = counter.fetch_add(1, Ordering::Relaxed) + 1;
    if call % 2 == 1 {
        (StatusCode::SERVICE_UNAVAILABLE, json!({"error": "every other call fails", "call": call}))
    } else {
        (StatusCode::OK, json!({"ok": true, "call": call}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cart_is_bounded_and_every_other_call_fails() {
        let cart = Cart::default();
        for _ in 0..2 * MAX_ITEMS {
            assert_eq!(cart.add(br#"{"sku": 2}"#).0, StatusCode::CREATED);
        }
        assert_eq!(cart.items().len(), MAX_ITEMS);
        for wrong in [&b""[..], b"{}", br#"{"sku": 99}"#, br#"{"sku": "2"}"#] {
            assert_eq!(cart.add(wrong).0, StatusCode::BAD_REQUEST);
        }
        assert_eq!(every_other(&cart.flaky).0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(every_other(&cart.flaky).0, StatusCode::OK);
    }
}
