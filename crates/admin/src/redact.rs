//! Takes secrets out of resources before they are shown.

use serde_json::Value;

/// In the place of what was taken out.
const REDACTED: &str = "<redacted>";
/// The fields of a Secret that hold what is secret.
const SECRET_FIELDS: [&str; 2] = ["data", "stringData"];

/// Redacts a resource or a `List` of them: every value of a Secret (its keys stay, they are needed to find mistakes),
/// and annotations that repeat a Secret's content.
pub fn redact(value: &mut Value) {
    if let Some(items) = value.get_mut("items").and_then(Value::as_array_mut) {
        items.iter_mut().for_each(redact);
    }
    if value.get("kind").and_then(Value::as_str) != Some("Secret") {
        return;
    }
    for field in SECRET_FIELDS {
        match value.get_mut(field) {
            Some(Value::Object(map)) => map.values_mut().for_each(|v| *v = Value::from(REDACTED)),
            Some(other) if !other.is_null() => *other = Value::from(REDACTED),
            _ => {}
        }
    }
    // `kubectl apply` keeps the whole resource, data included, in an annotation; others may as well.
    if let Some(Value::Object(annotations)) = value.pointer_mut("/metadata/annotations") {
        annotations.values_mut().for_each(|v| *v = Value::from(REDACTED));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_secret_is_left() {
        let mut list = json!({"kind": "List", "items": [
            {"kind": "Secret", "metadata": {"name": "s", "annotations": {"last": "hunter2"}},
             "data": {"tls.key": "hunter2"}, "stringData": {"a": "hunter2"}},
            {"kind": "Secret", "metadata": {"name": "odd"}, "data": "hunter2"},
            {"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "shown"}},
        ]});
        redact(&mut list);
        let text = list.to_string();
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("tls.key") && text.contains("shown"), "{text}");
    }
}
