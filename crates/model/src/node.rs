//! A YAML or JSON document as a tree in which every value knows its place.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use granit_parser::{Event, Parser, ScalarStyle, Span, Tag};
use serde_json::{Number, Value};

/// One value and its place: line and column from 1, columns in characters.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) data: Data,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) value: Node,
}

/// Why a document cannot be read, and where.
#[derive(Debug)]
pub(crate) struct NodeError {
    pub(crate) kind: NodeErrorKind,
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) message: String,
}

/// The class of the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeErrorKind {
    Syntax,
    TooComplex,
    DuplicateKey,
}

/// Limits on one document.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeLimits {
    /// Levels of nesting.
    pub(crate) depth: usize,
    /// Values, those from aliases included.
    pub(crate) nodes: usize,
    /// Bytes that aliases may add, about 64 for each value and those of its text.
    pub(crate) alias_bytes: usize,
}

/// A document without its syntax: the tree, if it could be read, and what is wrong with it.
#[derive(Debug, Default)]
pub(crate) struct Document {
    pub(crate) root: Option<Node>,
    pub(crate) errors: Vec<NodeError>,
}

impl Node {
    /// The value under a key, if this is a map that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The entry of a key, if this is a map that has it.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.data {
            Data::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The text, if this is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.data {
            Data::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What the value is, in words.
    pub(crate) fn describe(&self) -> &'static str {
        match &self.data {
            Data::Null => "nothing",
            Data::Bool(_) => "true or false",
            Data::Number(_) => "a number",
            Data::Text(_) => "text",
            Data::List(_) => "a list",
            Data::Map(_) => "an object",
        }
    }

    /// The same as JSON; keys without a value are left out.
    pub(crate) fn to_value(&self) -> Value {
        match &self.data {
            Data::Null => Value::Null,
            Data::Bool(bool) => Value::Bool(*bool),
            Data::Number(number) => Value::Number(number.clone()),
            Data::Text(text) => Value::String(text.clone()),
            Data::List(items) => items.iter().map(Node::to_value).collect(),
            Data::Map(entries) => Value::Object(
                entries
                    .iter()
                    .filter(|entry| !matches!(entry.value.data, Data::Null))
                    .map(|entry| (entry.key.clone(), entry.value.to_value()))
                    .collect(),
            ),
        }
    }

    /// The tree of a JSON value, without places.
    pub(crate) fn from_value(value: &Value) -> Node {
        let data = match value {
            Value::Null => Data::Null,
            Value::Bool(bool) => Data::Bool(*bool),
            Value::Number(number) => Data::Number(number.clone()),
            Value::String(text) => Data::Text(text.clone()),
            Value::Array(items) => Data::List(items.iter().map(Node::from_value).collect()),
            Value::Object(fields) => Data::Map(
                fields
                    .iter()
                    .map(|(key, value)| Entry { key: key.clone(), line: 0, column: 0, value: Node::from_value(value) })
                    .collect(),
            ),
        };
        Node { line: 0, column: 0, data }
    }

    fn weight(&self) -> (usize, usize) {
        match &self.data {
            Data::Text(text) => (1, 64 + text.len()),
            Data::List(items) => items.iter().map(Node::weight).fold((1, 64), add),
            Data::Map(entries) => {
                entries.iter().map(|entry| add(entry.value.weight(), (0, 64 + entry.key.len()))).fold((1, 64), add)
            }
            _ => (1, 64),
        }
    }
}

fn add(a: (usize, usize), b: (usize, usize)) -> (usize, usize) {
    (a.0.saturating_add(b.0), a.1.saturating_add(b.1))
}

/// Reads one document. `first_line` is the line of the file that the text begins on.
pub(crate) fn read(text: &str, first_line: u32, limits: NodeLimits) -> Document {
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: limits.depth,
        block_nesting_limit: limits.depth,
    };
    let mut builder = Builder {
        limits,
        line_offset: first_line.saturating_sub(1),
        stack: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
        alias_bytes: 0,
        document: Document::default(),
    };
    for event in Parser::new_from_str_with_options(text, options) {
        let result = match event {
            Ok((event, span)) => builder.event(event, span),
            Err(error) => {
                let marker = error.marker();
                let kind = match error.kind() {
                    granit_parser::ErrorKind::RecursionLimitExceeded => NodeErrorKind::TooComplex,
                    _ => NodeErrorKind::Syntax,
                };
                Err(NodeError {
                    kind,
                    line: line(marker.line()) + builder.line_offset,
                    column: column(marker.col()),
                    message: error.info().to_owned(),
                })
            }
        };
        if let Err(error) = result {
            builder.document.root = None;
            builder.document.errors.push(error);
            break;
        }
    }
    builder.document
}

fn line(line: usize) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX).max(1)
}

fn column(column: usize) -> u32 {
    u32::try_from(column).unwrap_or(u32::MAX - 1) + 1
}

struct Builder {
    limits: NodeLimits,
    line_offset: u32,
    stack: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    nodes: usize,
    alias_bytes: usize,
    document: Document,
}

/// A list or map that is not closed yet.
struct Open {
    node: Node,
    anchor: usize,
    /// The key of a map that waits for its value.
    key: Option<(String, u32, u32)>,
    keys: HashSet<String>,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), NodeError> {
        let line = line(span.start.line()).saturating_add(self.line_offset);
        let column = column(span.start.col());
        let node = |data| Node { line, column, data };
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if self.wants_key() {
                    return self.key(text.into_owned(), style, line, column);
                }
                let data = scalar(&text, style, tag.as_deref())
                    .map_err(|message| self.error(NodeErrorKind::Syntax, line, column, message))?;
                self.value(node(data), anchor)
            }
            Event::SequenceStart(_, anchor, _) => self.open(node(Data::List(Vec::new())), anchor),
            Event::MappingStart(_, anchor, _) => self.open(node(Data::Map(Vec::new())), anchor),
            Event::SequenceEnd | Event::MappingEnd => match self.stack.pop() {
                Some(mut open) => {
                    merge(&mut open.node);
                    self.value(open.node, open.anchor)
                }
                None => Ok(()),
            },
            Event::Alias(anchor) => {
                let Some(target) = self.anchors.get(&anchor).cloned() else {
                    let message = "an alias cannot be inside of what it refers to".to_owned();
                    return Err(self.error(NodeErrorKind::Syntax, line, column, message));
                };
                if self.wants_key() {
                    return Err(self.complex_key(line, column));
                }
                let copy = Node { line, column, data: target.data.clone() };
                self.charge(&copy)?;
                if depth(&copy) + self.stack.len() > self.limits.depth {
                    let message = format!("the document nests deeper than {} levels", self.limits.depth);
                    return Err(self.error(NodeErrorKind::TooComplex, line, column, message));
                }
                self.value(copy, 0)
            }
            _ => Ok(()),
        }
    }

    /// Accounts for a copy of a value, made for an anchor or an alias.
    fn charge(&mut self, node: &Node) -> Result<(), NodeError> {
        let (nodes, bytes) = node.weight();
        self.nodes = self.nodes.saturating_add(nodes);
        self.alias_bytes = self.alias_bytes.saturating_add(bytes);
        if self.alias_bytes <= self.limits.alias_bytes {
            return Ok(());
        }
        let message = "the anchors and aliases of this document expand to too much".to_owned();
        Err(self.error(NodeErrorKind::TooComplex, node.line, node.column, message))
    }

    fn error(&self, kind: NodeErrorKind, line: u32, column: u32, message: String) -> NodeError {
        NodeError { kind, line, column, message }
    }

    fn complex_key(&self, line: u32, column: u32) -> NodeError {
        let message = "a key must be text, not a list, object or alias".to_owned();
        self.error(NodeErrorKind::Syntax, line, column, message)
    }

    fn wants_key(&self) -> bool {
        self.stack.last().is_some_and(|open| open.key.is_none() && matches!(open.node.data, Data::Map(_)))
    }

    fn open(&mut self, node: Node, anchor: usize) -> Result<(), NodeError> {
        if self.wants_key() {
            return Err(self.complex_key(node.line, node.column));
        }
        if self.stack.len() >= self.limits.depth {
            let message = format!("the document nests deeper than {} levels", self.limits.depth);
            return Err(self.error(NodeErrorKind::TooComplex, node.line, node.column, message));
        }
        self.stack.push(Open { node, anchor, key: None, keys: HashSet::new() });
        Ok(())
    }

    fn key(&mut self, key: String, style: ScalarStyle, line: u32, column: u32) -> Result<(), NodeError> {
        let Some(open) = self.stack.last_mut() else { return Ok(()) };
        let is_merge = key == "<<" && style == ScalarStyle::Plain;
        if !is_merge && !open.keys.insert(key.clone()) {
            let message = format!("`{key}` is given twice in this object");
            let error = NodeError { kind: NodeErrorKind::DuplicateKey, line, column, message };
            self.document.errors.push(error);
        }
        if let Some(open) = self.stack.last_mut() {
            open.key = Some((key, line, column));
        }
        Ok(())
    }

    fn value(&mut self, node: Node, anchor: usize) -> Result<(), NodeError> {
        self.nodes = self.nodes.saturating_add(1);
        if self.nodes > self.limits.nodes {
            let message = format!("the document holds more than {} values", self.limits.nodes);
            return Err(self.error(NodeErrorKind::TooComplex, node.line, node.column, message));
        }
        if anchor != 0 {
            self.charge(&node)?;
            self.anchors.insert(anchor, Rc::new(node.clone()));
        }
        match self.stack.last_mut() {
            None => self.document.root = Some(node),
            Some(open) => match &mut open.node.data {
                Data::List(items) => items.push(node),
                Data::Map(entries) => {
                    if let Some((key, line, column)) = open.key.take() {
                        entries.push(Entry { key, line, column, value: node });
                    }
                }
                _ => {}
            },
        }
        Ok(())
    }
}

fn depth(node: &Node) -> usize {
    match &node.data {
        Data::List(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Data::Map(entries) => 1 + entries.iter().map(|entry| depth(&entry.value)).max().unwrap_or(0),
        _ => 0,
    }
}

/// Puts the entries of `<<: *other` into a map; its own entries win.
fn merge(node: &mut Node) {
    let Data::Map(entries) = &mut node.data else { return };
    let Some(position) =
        entries.iter().position(|entry| entry.key == "<<" && matches!(entry.value.data, Data::Map(_) | Data::List(_)))
    else {
        return;
    };
    let merged = entries.remove(position).value;
    let sources = match merged.data {
        Data::List(items) => items,
        _ => vec![merged],
    };
    let mut keys: HashSet<String> = entries.iter().map(|entry| entry.key.clone()).collect();
    for source in sources {
        if let Data::Map(inherited) = source.data {
            entries.extend(inherited.into_iter().filter(|entry| keys.insert(entry.key.clone())));
        }
    }
}

/// The value of a scalar by the core schema of YAML 1.2.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Data, String> {
    let wrong = |wanted: &str| Err(format!("`{text}` is not {wanted}"));
    match tag.map(|tag| (tag.core_suffix(), tag)) {
        None => {}
        Some((Some("str"), _)) => return Ok(Data::Text(text.to_owned())),
        Some((Some(suffix @ ("int" | "float" | "bool" | "null")), _)) => {
            let data = plain(text);
            return match (suffix, &data) {
                ("int" | "float", Data::Number(_)) | ("bool", Data::Bool(_)) | ("null", Data::Null) => Ok(data),
                _ => wrong(suffix),
            };
        }
        Some((_, tag)) if tag.original() == "!" => return Ok(Data::Text(text.to_owned())),
        Some((_, tag)) => return Err(format!("the tag `{}` is not known", tag.original())),
    }
    match style {
        ScalarStyle::Plain => Ok(plain(text)),
        _ => Ok(Data::Text(text.to_owned())),
    }
}

fn plain(text: &str) -> Data {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Data::Null,
        "true" | "True" | "TRUE" => return Data::Bool(true),
        "false" | "False" | "FALSE" => return Data::Bool(false),
        _ => {}
    }
    match number(text) {
        Some(number) => Data::Number(number),
        None => Data::Text(text.to_owned()),
    }
}

fn number(text: &str) -> Option<Number> {
    let radix = |digits: &str, radix| u64::from_str_radix(digits, radix).ok().map(Number::from);
    if let Some(digits) = text.strip_prefix("0x").filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit())) {
        return radix(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o").filter(|digits| digits.bytes().all(|b| b.is_ascii_digit())) {
        return radix(digits, 8);
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let starts_like_number = |text: &str| {
        let text = text.strip_prefix('.').unwrap_or(text);
        text.bytes().next().is_some_and(|byte| byte.is_ascii_digit())
    };
    if !starts_like_number(unsigned) {
        return None;
    }
    if unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        let text = text.strip_prefix('+').unwrap_or(text);
        if let Ok(number) = text.parse::<i64>() {
            return Some(number.into());
        }
        if let Ok(number) = text.parse::<u64>() {
            return Some(number.into());
        }
    }
    let allowed = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-');
    if !unsigned.bytes().all(allowed) {
        return None;
    }
    text.parse::<f64>().ok().and_then(Number::from_f64)
}
