//! A YAML or JSON document that is no resource, such as a settings file.

use crate::node::{self, NodeLimits};

/// The one document in `text`, as JSON. Such files are small: 1 MiB, 10,000 values, 20 levels at most.
///
/// # Errors
/// What is wrong first, with its line.
pub fn plain(text: &str) -> Result<serde_json::Value, String> {
    if text.len() > 1024 * 1024 {
        return Err("it is larger than 1 MiB".to_owned());
    }
    let limits = NodeLimits { depth: 20, nodes: 10_000, alias_bytes: 0 };
    let document = node::read(text, 1, limits);
    if let Some(error) = document.errors.first() {
        return Err(format!("line {}: {}", error.line, error.message));
    }
    document.root.map(|root| root.to_value()).ok_or_else(|| "it is empty".to_owned())
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn one_document() {
        assert_eq!(plain("a: [1, {b: c}]").unwrap(), serde_json::json!({"a": [1, {"b": "c"}]}));
        assert!(plain("a: 1\na: 2").unwrap_err().starts_with("line 2"));
        assert!(plain("a: [").is_err());
        assert!(plain("").is_err());
    }
}
