//! JSON Schemas of the resources, and the reference generated from them.

use std::fmt::Write as _;
use std::sync::OnceLock;

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::diagnostic::Code;
use crate::meta::Kind;

/// The JSON Schema (draft 2020-12) of a kind, `apiVersion` and `kind` included. Unknown fields are not allowed;
/// fields that are accepted and ignored, such as `status`, allow anything.
pub fn schema(kind: Kind) -> &'static Value {
    static SCHEMAS: OnceLock<Vec<Value>> = OnceLock::new();
    let schemas = SCHEMAS.get_or_init(|| Kind::ALL.iter().map(|kind| build(*kind)).collect());
    &schemas[kind as usize]
}

/// One JSON Schema that accepts every kind.
pub fn schema_bundle() -> Value {
    let mut definitions = Map::new();
    let mut choices = Vec::new();
    for kind in Kind::ALL {
        let mut root = schema(*kind).clone();
        if let Some(Value::Object(own)) = root.as_object_mut().and_then(|root| root.remove("$defs")) {
            definitions.extend(own);
        }
        if let Some(root) = root.as_object_mut() {
            root.remove("$schema");
        }
        choices.push(json!({ "$ref": format!("#/$defs/{}", root["title"].as_str().unwrap_or_default()) }));
        definitions.insert(root["title"].as_str().unwrap_or_default().to_owned(), root);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Selvedge resources",
        "oneOf": choices,
        "$defs": definitions,
    })
}

/// Makes the schema of a kind anew.
pub(crate) fn build(kind: Kind) -> Value {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    let mut root = crate::resource::root_schema(kind, &mut generator).to_value();
    tidy(&mut root);
    let versions: Vec<String> = kind
        .versions()
        .iter()
        .map(|version| match kind.group() {
            "" => (*version).to_owned(),
            group => format!("{group}/{version}"),
        })
        .collect();
    if let Some(object) = root.as_object_mut() {
        object.insert("title".to_owned(), kind.name().into());
        if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
            let mut all = Map::new();
            let description = "Group and version of the kind.";
            all.insert(
                "apiVersion".to_owned(),
                json!({ "description": description, "type": "string", "enum": versions }),
            );
            all.insert(
                "kind".to_owned(),
                json!({ "description": "The kind.", "type": "string", "const": kind.name() }),
            );
            all.append(properties);
            *properties = all;
        }
        if let Some(required) = object.get_mut("required").and_then(Value::as_array_mut) {
            required.splice(0..0, ["apiVersion".into(), "kind".into()]);
        }
    }
    root
}

/// Removes the choice of null, which a file may always write for "not set", closes objects against unknown fields,
/// and turns the names that are ignored into fields that allow anything.
fn tidy(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Object(schema) => {
            tidy_schema(schema);
            for (name, value) in schema.iter_mut().filter(|(name, _)| *name != "default") {
                match value {
                    // Here `default` is the name of a field.
                    Value::Object(fields) if name == "properties" => fields.values_mut().for_each(tidy),
                    value => tidy(value),
                }
            }
            if let Some(default) = schema.get_mut("default") {
                drop_nulls(default);
            }
        }
        _ => {}
    }
}

fn tidy_schema(schema: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [single] = types.as_slice() {
            schema["type"] = single.clone();
        }
    }
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.retain(|choice| choice["type"] != "null");
        if let [Value::Object(single)] = choices.as_mut_slice() {
            let single = std::mem::take(single);
            schema.remove("anyOf");
            for (name, value) in single {
                schema.entry(name).or_insert(value);
            }
        }
    }
    if schema.get("default").is_some_and(Value::is_null) {
        schema.remove("default");
    }
    let ignored = schema.remove("x-ignored");
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        if let Some(Value::Array(names)) = ignored {
            for name in names.iter().filter_map(Value::as_str) {
                properties.insert(name.to_owned(), Value::Bool(true));
            }
        }
        schema.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// The configuration reference in Markdown: a section for each kind, then one for each type of object in it.
pub fn reference_markdown() -> String {
    let mut out = String::from(
        "# Configuration reference\n\n\
         Generated from the resource types; `UPDATE=1 cargo test -p selvedge-model` writes it anew. JSON Schemas of the\n\
         same are in `schemas/`, for editors.\n\n\
         Durations are written as GEP-2257 says: `500ms`, `10s`, `1h30m`. A field in **bold** is required. Unknown fields\n\
         are errors; `status` and other fields that only Kubernetes needs are accepted and ignored.\n\n",
    );
    for kind in Kind::ALL {
        let anchor = kind.name().to_lowercase();
        let _ = writeln!(out, "- [{}](#{anchor}): {}", kind.name(), first_line(schema(*kind)));
    }
    let mut types = Map::new();
    for kind in Kind::ALL {
        let schema = schema(*kind);
        let _ = write!(out, "\n## {}\n\n", kind.name());
        let _ = write!(out, "{}\n\n", description(schema));
        let versions: Vec<&str> = schema["properties"]["apiVersion"]["enum"]
            .as_array()
            .map(|versions| versions.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let _ = writeln!(out, "`apiVersion`: `{}`.\n", versions.join("`, `"));
        write_fields(&mut out, schema);
        if let Some(definitions) = schema["$defs"].as_object() {
            let own: Vec<&String> = definitions.keys().filter(|name| !types.contains_key(*name)).collect();
            for name in own.clone() {
                write_type(&mut out, name, &definitions[name]);
            }
            types.extend(definitions.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
    }
    out
}

fn write_type(out: &mut String, name: &str, schema: &Value) {
    let _ = write!(out, "\n### {name}\n\n{}\n\n", description(schema));
    if let Some(choices) = schema["oneOf"].as_array() {
        out.push_str("| value | meaning |\n|---|---|\n");
        for choice in choices {
            let values = choice["const"]
                .as_str()
                .map(|value| vec![value])
                .unwrap_or_else(|| choice["enum"].as_array().into_iter().flatten().filter_map(Value::as_str).collect());
            for value in values {
                let _ = writeln!(out, "| `{value}` | {} |", cell(&description(choice)));
            }
        }
    } else {
        write_fields(out, schema);
    }
}

fn write_fields(out: &mut String, schema: &Value) {
    let Some(properties) = schema["properties"].as_object() else { return };
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    out.push_str("| field | type | default | meaning |\n|---|---|---|---|\n");
    for (name, field) in properties {
        if field.is_boolean() || name == "apiVersion" || name == "kind" && field.get("const").is_some() {
            continue;
        }
        let shown = if required.contains(&name.as_str()) { format!("**`{name}`**") } else { format!("`{name}`") };
        let default = match field.get("default") {
            None => String::new(),
            Some(Value::String(text)) if text.is_empty() => "empty".to_owned(),
            Some(Value::String(text)) => format!("`{text}`"),
            Some(Value::Object(fields)) if fields.is_empty() => String::new(),
            Some(other) => format!("`{other}`"),
        };
        let _ = writeln!(
            out,
            "| {shown} | {} | {} | {} |",
            type_name(field),
            cell(&default),
            cell(&format!("{}{}", description(field), limits(field)))
        );
    }
}

fn type_name(field: &Value) -> String {
    if let Some(name) = field["$ref"].as_str() {
        let name = name.trim_start_matches("#/$defs/");
        return format!("[{name}](#{})", name.to_lowercase());
    }
    match field["type"].as_str() {
        Some("array") => format!("list of {}", type_name(&field["items"])),
        Some("object") if field.get("additionalProperties").is_some_and(Value::is_object) => {
            format!("map to {}", type_name(&field["additionalProperties"]))
        }
        Some("string") => match field["format"].as_str() {
            Some("duration") => "duration".to_owned(),
            Some("byte") => "base64".to_owned(),
            _ => "string".to_owned(),
        },
        Some(name) => name.to_owned(),
        None => match field["anyOf"].as_array() {
            Some(choices) => choices.iter().map(type_name).collect::<Vec<_>>().join(" or "),
            None => "any".to_owned(),
        },
    }
}

fn limits(field: &Value) -> String {
    let mut limits = Vec::new();
    let minimum = &field["minimum"];
    match (minimum.as_f64(), natural_maximum(field)) {
        (Some(_), Some(maximum)) => limits.push(format!("{minimum} to {maximum}")),
        (Some(least), None) if least > 0.0 => limits.push(format!("at least {minimum}")),
        _ => {}
    }
    if let Some(values) = field["enum"].as_array() {
        limits = vec![values.iter().map(Value::to_string).collect::<Vec<_>>().join(", ")];
    }
    let most = |limit: &Value, unit: &str| limit.as_u64().map(|limit| format!("at most {limit} {unit}"));
    limits.extend(most(&field["maxLength"], "characters"));
    limits.extend(most(&field["maxItems"], "items"));
    if limits.is_empty() { String::new() } else { format!(" ({})", limits.join("; ")) }
}

/// The largest value, unless it is only that of the number's width.
fn natural_maximum(field: &Value) -> Option<&Value> {
    field.get("maximum").filter(|maximum| {
        field["minimum"].as_u64().is_some_and(|minimum| minimum > 0)
            || !matches!(maximum.as_u64(), Some(65_535 | 4_294_967_295))
    })
}

fn description(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().to_owned()
}

fn first_line(schema: &Value) -> String {
    description(schema).lines().next().unwrap_or_default().to_owned()
}

fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// The reference of all diagnostics in Markdown.
pub fn diagnostics_markdown() -> String {
    let mut out = String::from(
        "# Diagnostics\n\n\
         Generated from the table in `crates/model/src/diagnostic.rs`; `UPDATE=1 cargo test -p selvedge-model` writes it\n\
         anew. Numbers never change their meaning: 0001 to 0099 are about files and syntax, 0100 to 0199 about fields,\n\
         0200 to 0299 about attachment and references, 0300 to 0399 about TLS, 0400 to 0499 about policies, 0500 to 0599\n\
         about running.\n",
    );
    for code in Code::ALL {
        let _ = write!(out, "\n## {code}: {}\n\n{}\n", code.title(), code.doc());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(value: &Value, path: &str, visit: &mut impl FnMut(&Value, &str)) {
        visit(value, path);
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(name, value)| walk(value, &format!("{path}/{name}"), visit));
            }
            Value::Array(items) => items.iter().for_each(|value| walk(value, path, visit)),
            _ => {}
        }
    }

    #[test]
    fn every_field_is_documented() {
        for kind in Kind::ALL {
            walk(schema(*kind), kind.name(), &mut |value, path| {
                for (name, field) in value["properties"].as_object().into_iter().flatten() {
                    if !path.ends_with("properties") && field.is_object() {
                        assert!(field["description"].is_string(), "{path}/{name} has no documentation");
                    }
                }
            });
        }
    }

    #[test]
    fn objects_are_closed_and_nothing_is_nullable() {
        for kind in Kind::ALL {
            walk(schema(*kind), kind.name(), &mut |value, path| {
                if value.get("properties").is_some_and(|properties| properties.get("type").is_none()) {
                    assert_eq!(value["additionalProperties"], false, "{path}");
                }
                assert_ne!(value["type"], "null", "{path}");
                assert!(value.get("x-ignored").is_none(), "{path}");
            });
        }
    }
}
