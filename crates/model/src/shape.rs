//! A JSON Schema made ready for checking: only the words that the resource schemas use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use regex::Regex;
use serde_json::Value;

use crate::meta::Kind;

/// Index of a shape in its [`Shapes`].
pub(crate) type Id = usize;

/// All shapes of one kind; the first is the resource itself.
#[derive(Debug)]
pub(crate) struct Shapes {
    shapes: Vec<Shape>,
}

/// What a value must be.
#[derive(Debug)]
pub(crate) enum Shape {
    Any,
    Bool,
    Object {
        fields: Vec<Field>,
    },
    Map {
        values: Id,
    },
    List {
        items: Id,
        least: u64,
        most: u64,
    },
    Text {
        least: u64,
        most: u64,
        pattern: Option<Arc<Pattern>>,
    },
    Number {
        integer: bool,
        least: f64,
        most: f64,
    },
    /// One of these values.
    Values(Vec<Value>),
    /// One of these shapes.
    Choice(Vec<Id>),
}

/// A field of an object.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) shape: Id,
    pub(crate) required: bool,
}

/// An expression that a text must match. The few that there are occur hundreds of times in the schemas, so equal ones
/// are one, and it takes memory (about 50 KB) only when a text was to be matched.
#[derive(Debug)]
pub(crate) struct Pattern {
    text: String,
    regex: OnceLock<Option<Regex>>,
}

impl Pattern {
    fn of(text: &str) -> Arc<Pattern> {
        static ALL: Mutex<Vec<Arc<Pattern>>> = Mutex::new(Vec::new());
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pattern) = all.iter().find(|pattern| pattern.text == text) {
            return pattern.clone();
        }
        let pattern = Arc::new(Pattern { text: text.to_owned(), regex: OnceLock::new() });
        all.push(pattern.clone());
        pattern
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn is_match(&self, text: &str) -> bool {
        let regex = self.regex.get_or_init(|| Regex::new(&self.text).ok());
        regex.as_ref().is_none_or(|regex| regex.is_match(text))
    }
}

impl Shapes {
    /// The shapes of a kind, made when the first resource of the kind is read: a proxy sees few kinds. The schema that
    /// they are made of is a hundred times their size with all its texts, and is not kept.
    pub(crate) fn of(kind: Kind) -> &'static Shapes {
        static SHAPES: OnceLock<Vec<OnceLock<Shapes>>> = OnceLock::new();
        let all = SHAPES.get_or_init(|| Kind::ALL.iter().map(|_| OnceLock::new()).collect());
        all[kind as usize].get_or_init(|| Shapes::compile(&crate::schema::build(kind)))
    }

    /// The shape of that index.
    pub(crate) fn get(&self, id: Id) -> &Shape {
        &self.shapes[id]
    }

    fn compile(root: &Value) -> Shapes {
        let mut compiler = Compiler { root, shapes: Vec::new(), definitions: HashMap::new() };
        compiler.shape(root);
        Shapes { shapes: compiler.shapes }
    }
}

struct Compiler<'a> {
    root: &'a Value,
    shapes: Vec<Shape>,
    definitions: HashMap<&'a str, Id>,
}

impl<'a> Compiler<'a> {
    fn shape(&mut self, schema: &'a Value) -> Id {
        if let Some(name) = schema["$ref"].as_str() {
            if let Some(id) = self.definitions.get(name) {
                return *id;
            }
            self.definitions.insert(name, self.shapes.len());
            let target = self.root.pointer(name.trim_start_matches('#')).unwrap_or(&Value::Null);
            return self.shape(target);
        }
        let id = self.shapes.len();
        self.shapes.push(Shape::Any);
        self.shapes[id] = self.inline(schema);
        id
    }

    fn inline(&mut self, schema: &'a Value) -> Shape {
        if let Some(value) = schema.get("const") {
            return Shape::Values(vec![value.clone()]);
        }
        if let Some(Value::Array(values)) = schema.get("enum") {
            return Shape::Values(values.clone());
        }
        if let Some(Value::Array(choices)) = schema.get("oneOf") {
            let values = choices.iter().flat_map(|choice| match choice.get("const") {
                Some(value) => vec![value.clone()],
                None => choice["enum"].as_array().cloned().unwrap_or_default(),
            });
            return Shape::Values(values.collect());
        }
        if let Some(Value::Array(choices)) = schema.get("anyOf") {
            return Shape::Choice(choices.iter().map(|choice| self.shape(choice)).collect());
        }
        let limit = |name: &str| schema[name].as_u64();
        match schema["type"].as_str() {
            Some("boolean") => Shape::Bool,
            Some("integer") => Shape::Number {
                integer: true,
                least: schema["minimum"].as_f64().unwrap_or(f64::MIN),
                most: schema["maximum"].as_f64().unwrap_or(match schema["format"].as_str() {
                    Some("uint32") => f64::from(u32::MAX),
                    _ => 9_007_199_254_740_992.0,
                }),
            },
            Some("number") => Shape::Number {
                integer: false,
                least: schema["minimum"].as_f64().unwrap_or(f64::MIN),
                most: schema["maximum"].as_f64().unwrap_or(f64::MAX),
            },
            Some("string") => Shape::Text {
                least: limit("minLength").unwrap_or(0),
                most: limit("maxLength").unwrap_or(u64::MAX),
                pattern: schema["pattern"].as_str().map(Pattern::of),
            },
            Some("array") => Shape::List {
                items: self.shape(&schema["items"]),
                least: limit("minItems").unwrap_or(0),
                most: limit("maxItems").unwrap_or(u64::MAX),
            },
            Some("object") => self.object(schema),
            _ => Shape::Any,
        }
    }

    fn object(&mut self, schema: &'a Value) -> Shape {
        let Some(properties) = schema["properties"].as_object() else {
            return match schema.get("additionalProperties") {
                Some(values) => Shape::Map { values: self.shape(values) },
                None => Shape::Any,
            };
        };
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let fields = properties
            .iter()
            .map(|(name, field)| Field {
                name: name.clone(),
                shape: self.shape(field),
                required: required.contains(&name.as_str()),
            })
            .collect();
        Shape::Object { fields }
    }
}
