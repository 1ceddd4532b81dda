//! The catalogue, in two versions whose answers differ visibly.

use super::http::{Call, Service, not_found};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Stock keeping unit, name, price in cents.
pub const PRODUCTS: [(u32, &str, u32); 4] =
    [(1, "linen towel", 1290), (2, "wool blanket", 8900), (3, "silk scarf", 4450), (4, "cotton apron", 2375)];

pub struct Catalog {
    instance: &'static str,
    version: &'static str,
    /// It was told to fail, and does until it is mended.
    failing: AtomicBool,
}

impl Catalog {
    pub fn v1(instance: &'static str) -> Self {
        Self { instance, version: "v1", failing: AtomicBool::new(false) }
    }

    /// Knows prices in euros, with a currency.
    pub fn v2(instance: &'static str) -> Self {
        Self { instance, version: "v2", failing: AtomicBool::new(false) }
    }

    fn product(&self, (sku, name, cents): (u32, &str, u32)) -> Value {
        if self.version == "v1" {
            json!({"sku": sku, "name": name, "cents": cents})
        } else {
            json!({"sku": sku, "name": name, "price": {"amount": f64::from(cents) / 100.0, "currency": "EUR"}, "new_in_v2": true})
        }
    }
}

impl Service for Catalog {
    async fn answer(&self, call: Call) -> (StatusCode, Value) {
        if call.method == Method::POST && matches!(call.path.as_str(), "/fail" | "/mend") {
            self.failing.store(call.path == "/fail", Relaxed);
            return (StatusCode::OK, json!({"served_by": self.instance, "fails_from_now_on": call.path == "/fail"}));
        }
        if self.failing.load(Relaxed) {
            return (
                StatusCode::INTERNAL_SERVER_ERROR,
                json!({"error": format!("{} was told to fail", self.instance)}),
            );
        }
        if call.method != Method::GET && call.method != Method::HEAD {
            return (StatusCode::METHOD_NOT_ALLOWED, json!({"error": "the catalogue is only read"}));
        }
        let Some(rest) = call.path.strip_prefix("/catalog") else { return not_found() };
        let head = json!({"served_by": self.instance, "version": self.version});
        let Value::Object(mut answer) = head else { return not_found() };
        match rest.trim_matches('/') {
            "" => {
                answer.insert("products".to_owned(), PRODUCTS.iter().map(|p| self.product(*p)).collect());
            }
            sku => {
                let Some(found) = PRODUCTS.iter().find(|p| p.0.to_string() == sku) else { return not_found() };
                answer.insert("product".to_owned(), self.product(*found));
            }
        }
        (StatusCode::OK, Value::Object(answer))
    }
}
