//! Checks a document against the schema of its kind and reports everything that is wrong, each with its place.

use crate::diagnostic::{Code, Finding, nearest};
use crate::duration;
use crate::field_path::At;
use crate::meta::Kind;
use crate::node::{Data, Entry, Node};
use crate::refs;
use crate::shape::{Field, Id, Shape, Shapes};
use crate::traffic::STATUS_PATTERN;

/// A finding and its line and column.
pub(crate) type Placed = (Finding, u32, u32);

/// Most findings about one document; a file of another kind would otherwise yield one per line.
const MAX_FINDINGS: usize = 64;

/// What is wrong with the document, in the order of the document.
pub(crate) fn check(kind: Kind, root: &Node) -> Vec<Placed> {
    let mut checker = Checker { shapes: Shapes::of(kind), findings: Vec::new() };
    checker.node(0, root, &At::ROOT);
    checker.findings
}

struct Checker {
    shapes: &'static Shapes,
    findings: Vec<Placed>,
}

impl Checker {
    fn report(&mut self, node: &Node, finding: Finding) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push((finding, node.line, node.column));
        }
    }

    fn node(&mut self, id: Id, node: &Node, at: &At<'_>) {
        match (self.shapes.get(id), &node.data) {
            (Shape::Any, _) | (Shape::Bool, Data::Bool(_)) => {}
            (Shape::Object { fields }, Data::Map(entries)) => self.object(fields, node, entries, at),
            (Shape::Map { values }, Data::Map(entries)) => {
                for entry in entries.iter().filter(|entry| !matches!(entry.value.data, Data::Null)) {
                    self.node(*values, &entry.value, &at.field(&entry.key));
                }
            }
            (Shape::List { items, least, most }, Data::List(list)) => {
                self.length(node, at, list.len(), *least, *most, "items");
                for (index, item) in list.iter().enumerate() {
                    self.node(*items, item, &at.index(index));
                }
            }
            (Shape::Text { least, most, pattern }, Data::Text(text)) => {
                self.length(node, at, text.chars().count(), *least, *most, "characters");
                if let Some(pattern) = pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
                    let message = format!("`{}` is {}", short(text), not_of_the_form(pattern.text()));
                    let mut finding = Finding::error(Code::WrongFormat, at.path(), message);
                    if let Some(help) = statuses_meant(pattern.text(), text) {
                        finding = finding.help(help);
                    }
                    self.report(node, finding);
                }
            }
            (Shape::Number { integer, least, most }, Data::Number(number)) => {
                let value = number.as_f64().unwrap_or(f64::NAN);
                if *integer && !(number.is_i64() || number.is_u64()) {
                    self.wrong_type(node, at, "a whole number");
                } else if value < *least || value > *most {
                    let message = format!("{number} is out of range");
                    let help = match (*least > f64::MIN, *most < 9_007_199_254_740_992.0) {
                        (true, true) => format!("from {least} to {most}"),
                        (true, false) => format!("at least {least}"),
                        _ => format!("at most {most}"),
                    };
                    self.report(node, Finding::error(Code::OutOfRange, at.path(), message).help(help));
                }
            }
            (Shape::Values(values), _) => self.values(values, node, at),
            (Shape::Choice(choices), _) => self.choice(choices, node, at),
            (shape, _) => self.wrong_type(node, at, wanted(shape)),
        }
    }

    fn object(&mut self, fields: &'static [Field], node: &Node, entries: &[Entry], at: &At<'_>) {
        for entry in entries {
            match fields.iter().find(|field| field.name == entry.key) {
                Some(_) if matches!(entry.value.data, Data::Null) => {}
                Some(field) => self.node(field.shape, &entry.value, &at.field(&entry.key)),
                None => self.unknown_field(fields, entry, at),
            }
        }
        for field in fields.iter().filter(|field| field.required) {
            let given = entries.iter().any(|entry| entry.key == field.name && !matches!(entry.value.data, Data::Null));
            if !given {
                let message = format!("required field `{}` is missing", field.name);
                self.report(node, Finding::error(Code::MissingField, at.field(&field.name).path(), message));
            }
        }
    }

    fn unknown_field(&mut self, fields: &[Field], entry: &Entry, at: &At<'_>) {
        let names = || fields.iter().map(|field| field.name.as_str());
        let help = match nearest(&entry.key, names()) {
            Some(name) => format!("did you mean `{name}`?"),
            None if fields.len() <= 24 => format!("fields here are {}", list(names())),
            None => "see the configuration reference for the fields of this object".to_owned(),
        };
        let finding = Finding::error(
            Code::UnknownField,
            at.field(&entry.key).path(),
            format!("unknown field `{}`", short(&entry.key)),
        );
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push((finding.help(help), entry.line, entry.column));
        }
    }

    fn values(&mut self, values: &[serde_json::Value], node: &Node, at: &At<'_>) {
        let value = node.to_value();
        if values.contains(&value) {
            return;
        }
        let same_type = |allowed: &serde_json::Value| allowed.is_string() == value.is_string();
        if !values.iter().any(same_type) || matches!(node.data, Data::List(_) | Data::Map(_)) {
            let wanted = if values.iter().all(serde_json::Value::is_string) { "text" } else { "a number" };
            return self.wrong_type(node, at, wanted);
        }
        let names: Vec<String> = values.iter().map(bare).collect();
        let help = match nearest(&bare(&value), names.iter().map(String::as_str)) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("one of {}", list(names.iter().map(String::as_str))),
        };
        let message = format!("`{}` is not allowed here", short(&bare(&value)));
        self.report(node, Finding::error(Code::UnknownValue, at.path(), message).help(help));
    }

    /// Untagged choices are between plain types, so that the type of the value picks the shape.
    fn choice(&mut self, choices: &'static [Id], node: &Node, at: &At<'_>) {
        let fits = |shape: &Shape| {
            matches!(
                (shape, &node.data),
                (Shape::Text { .. }, Data::Text(_))
                    | (Shape::Number { .. }, Data::Number(_))
                    | (Shape::Bool, Data::Bool(_))
                    | (Shape::Object { .. } | Shape::Map { .. }, Data::Map(_))
                    | (Shape::List { .. }, Data::List(_))
            )
        };
        match choices.iter().find(|choice| fits(self.shapes.get(**choice))) {
            Some(choice) => self.node(*choice, node, at),
            None => {
                let wanted: Vec<&str> = choices.iter().map(|choice| wanted(self.shapes.get(*choice))).collect();
                self.wrong_type(node, at, &wanted.join(" or "));
            }
        }
    }

    fn length(&mut self, node: &Node, at: &At<'_>, length: usize, least: u64, most: u64, unit: &str) {
        let length = length as u64;
        if (least..=most).contains(&length) {
            return;
        }
        let message = if length == 0 {
            "must not be empty".to_owned()
        } else if length > most {
            format!("{length} {unit} are too many; at most {most} are allowed")
        } else {
            format!("{length} {unit} are too few; at least {least} are needed")
        };
        self.report(node, Finding::error(Code::WrongLength, at.path(), message));
    }

    fn wrong_type(&mut self, node: &Node, at: &At<'_>, wanted: &str) {
        let message = format!("expected {wanted}, found {}", node.describe());
        let mut finding = Finding::error(Code::WrongType, at.path(), message);
        if wanted == "text" && matches!(node.data, Data::Bool(_) | Data::Number(_)) {
            finding = finding.help("put the value in quotes");
        }
        self.report(node, finding);
    }
}

/// What a text is not that does not match a pattern, and how to write it.
fn not_of_the_form(pattern: &str) -> &'static str {
    match pattern {
        duration::PATTERN => "not a duration; write one such as 500ms, 10s or 1h30m",
        STATUS_PATTERN => "not a status code or a range of them; write 200 or 200-299, within 100 to 599",
        refs::GROUP_PATTERN => {
            "not an API group; write a DNS name in lower case such as `gateway.networking.k8s.io`, or `\"\"` for the core group"
        }
        refs::KIND_PATTERN => "not a kind; write its name alone, such as `Service`",
        refs::NAMESPACE_PATTERN => "not a namespace; write lower-case letters, digits and `-`, such as `shop`",
        _ => "not of the form that the field asks for; see the configuration reference",
    }
}

/// `2xx` is how people write `200-299`.
fn statuses_meant(pattern: &str, text: &str) -> Option<String> {
    let class = text.to_ascii_lowercase();
    let class = class.strip_suffix("xx").filter(|class| pattern == STATUS_PATTERN && "12345".contains(*class))?;
    (class.len() == 1).then(|| format!("did you mean `{class}00-{class}99`?"))
}

fn wanted(shape: &Shape) -> &'static str {
    match shape {
        Shape::Any => "anything",
        Shape::Bool => "true or false",
        Shape::Object { .. } | Shape::Map { .. } => "an object",
        Shape::List { .. } => "a list",
        Shape::Text { .. } | Shape::Values(_) => "text",
        Shape::Number { integer: true, .. } => "a whole number",
        Shape::Number { .. } => "a number",
        Shape::Choice(_) => "one of several types",
    }
}

fn bare(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// A text cut to what fits a message.
pub(crate) fn short(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
