//! Reads resources from the text of a file: YAML or JSON, several documents, lists.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use crate::check::{check, short};
use crate::diagnostic::{Code, Diagnostic, Finding, Location, Severity, nearest};
use crate::field_path::{FieldPath, Segment};
use crate::meta::{Kind, ResourceKey};
use crate::node::{self, Data, Document, Node, NodeErrorKind, NodeLimits};
use crate::resource::{self, Resource};
use crate::validate::validate;
use crate::{AccessPolicy, AuthPolicy};

/// Limits on what is read.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one file; larger ones are not parsed. 32 MiB holds some 30,000 routes.
    pub file_bytes: usize,
    /// Levels of nesting of a document; the deepest resource has about 12.
    pub depth: usize,
    /// Values of one document, those from aliases included.
    pub values: usize,
    /// Bytes that aliases may add to one document.
    pub alias_bytes: usize,
    /// Diagnostics about one file; the rest is counted only.
    pub diagnostics: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            file_bytes: 32 * 1024 * 1024,
            depth: 100,
            values: 8_000_000,
            alias_bytes: 16 * 1024 * 1024,
            diagnostics: 1000,
        }
    }
}

impl Limits {
    fn nodes(&self) -> NodeLimits {
        NodeLimits { depth: self.depth, nodes: self.values, alias_bytes: self.alias_bytes }
    }
}

/// Where in its file a resource begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Line and column of its first key.
    pub location: Location,
    /// Number of the document in the file, from 0, empty ones included.
    pub document: usize,
    /// The way from the document to the resource: empty, or `items[3]` of a list.
    pub path: FieldPath,
}

/// One resource of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// Which resource it is, if that much can be read.
    pub key: Option<ResourceKey>,
    /// The resource; none if a diagnostic of severity error is about it.
    pub resource: Option<Resource>,
    /// What must hold in its place when there was no sound one before: an AccessPolicy or AuthPolicy that cannot be read
    /// denies.
    pub stand_in: Option<Resource>,
    /// Where it is.
    pub origin: Origin,
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// Resources in the order of the file, broken ones included.
    pub loaded: Vec<Loaded>,
    /// What is wrong.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads the resources of a file. Never fails as a whole: a bad document costs only itself.
///
/// `file` is how diagnostics name the file. Resources without a namespace get `default`.
pub fn parse(file: &str, text: &[u8], limits: &Limits) -> Parsed {
    let file: Arc<str> = file.into();
    whole_file(&file, text, limits, |chunk| Arc::new(read_chunk(&file, chunk.text, limits)))
}

/// Reads files again and again, and each time only the documents that changed: one route among 10,000 costs
/// milliseconds. Keeps the text and the resources of the files it read last.
#[derive(Debug, Default)]
pub struct Reader {
    files: HashMap<Arc<str>, HashMap<Box<str>, Arc<Parsed>>>,
}

impl Reader {
    /// Like [`parse`].
    pub fn parse(&mut self, file: &str, text: &[u8], limits: &Limits) -> Parsed {
        let file: Arc<str> = file.into();
        let mut before = self.files.remove(&file).unwrap_or_default();
        let mut now: HashMap<Box<str>, Arc<Parsed>> = HashMap::new();
        let parsed = whole_file(&file, text, limits, |chunk| {
            if let Some(known) = now.get(chunk.text) {
                return Arc::clone(known);
            }
            let (text, document) = match before.remove_entry(chunk.text) {
                Some(known) => known,
                None => (chunk.text.into(), Arc::new(read_chunk(&file, chunk.text, limits))),
            };
            now.insert(text, Arc::clone(&document));
            document
        });
        self.files.insert(file, now);
        parsed
    }

    /// Forgets the files for which `keep` says no, such as those that are gone.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.files.retain(|file, _| keep(file));
    }
}

/// Puts the documents of a file together; `read` yields each as if its file began with it.
fn whole_file(
    file: &Arc<str>,
    text: &[u8],
    limits: &Limits,
    mut read: impl FnMut(&Chunk<'_>) -> Arc<Parsed>,
) -> Parsed {
    let location = |line, column| Location { file: Arc::clone(file), line, column };
    let mut all = Parsed::default();
    if text.len() > limits.file_bytes {
        let message = format!("the file has {} bytes; at most {} are read", text.len(), limits.file_bytes);
        let diagnostic = Diagnostic::file_error(Code::FileTooLarge, location(1, 1), message);
        all.diagnostics.push(diagnostic.help("split the file into several"));
        return all;
    }
    let text = match std::str::from_utf8(text) {
        Ok(text) => text,
        Err(error) => {
            let (line, column) = place_of_byte(text, error.valid_up_to());
            let message = "the file is not UTF-8 text";
            let diagnostic = Diagnostic::file_error(Code::NotUtf8, location(line, column), message);
            all.diagnostics.push(diagnostic.help("convert the file to UTF-8"));
            return all;
        }
    };
    let mut suppressed = 0;
    for (number, chunk) in chunks(text).enumerate() {
        let document = read(&chunk);
        let down = |location: &Location| Location {
            line: location.line.saturating_add(chunk.first_line - 1),
            ..location.clone()
        };
        all.loaded.extend(document.loaded.iter().map(|loaded| Loaded {
            origin: Origin {
                location: down(&loaded.origin.location),
                document: number,
                path: loaded.origin.path.clone(),
            },
            ..loaded.clone()
        }));
        for diagnostic in &document.diagnostics {
            if all.diagnostics.len() < limits.diagnostics {
                let location = diagnostic.location.as_ref().map(down);
                all.diagnostics.push(Diagnostic { location, ..diagnostic.clone() });
            } else {
                suppressed += 1;
            }
        }
    }
    if suppressed > 0 {
        let message = format!("{suppressed} more diagnostics about this file are not shown");
        all.diagnostics.push(Diagnostic::file_error(Code::TooComplex, location(1, 1), message));
    }
    all
}

fn read_chunk(file: &Arc<str>, text: &str, limits: &Limits) -> Parsed {
    let mut builder = Builder { file: Arc::clone(file), limits, parsed: Parsed::default() };
    builder.document(text, node::read(text, 1, limits.nodes()));
    builder.parsed
}

impl Resource {
    /// Reads a resource from its JSON form, with the same checks as from a file.
    ///
    /// # Errors
    /// Everything that is wrong, if any of it is an error; paths are those in the value.
    pub fn from_value(value: &Value) -> Result<Resource, Vec<Finding>> {
        let root = Node::from_value(value);
        let kind = kind_of(&root)?;
        let findings: Vec<Finding> = check(kind, &root).into_iter().map(|(finding, _, _)| finding).collect();
        if !findings.is_empty() {
            return Err(findings);
        }
        let resource = resource::deserialize(kind, fields(&root)).map_err(|finding| vec![finding])?;
        let findings = validate(&resource);
        if findings.iter().any(|finding| finding.severity == Severity::Error) { Err(findings) } else { Ok(resource) }
    }
}

struct Chunk<'a> {
    text: &'a str,
    first_line: u32,
}

/// Cuts a file at its document markers, which YAML allows nowhere else at the start of a line.
fn chunks(text: &str) -> impl Iterator<Item = Chunk<'_>> {
    let mut starts = vec![(0, 1)];
    let mut offset = 0;
    for (number, line) in (1u32..).zip(text.split_inclusive('\n')) {
        let marker = |marker: &str| {
            line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        if marker("---") && offset > 0 {
            starts.push((offset, number));
        } else if marker("...") {
            starts.push((offset + line.len(), number.saturating_add(1)));
        }
        offset += line.len();
    }
    let ends: Vec<usize> = starts.iter().skip(1).map(|(start, _)| *start).chain([text.len()]).collect();
    starts.into_iter().zip(ends).filter_map(|((start, first_line), end)| {
        let text = &text[start..end];
        (!is_empty(text)).then_some(Chunk { text, first_line })
    })
}

/// Whether there is nothing in a chunk but comments and directives.
fn is_empty(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.trim_start_matches('\u{feff}').trim();
        line.is_empty() || line.starts_with(['#', '%']) || line == "---" || line == "..."
    })
}

fn place_of_byte(text: &[u8], offset: usize) -> (u32, u32) {
    let before = &text[..offset];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |position| position + 1);
    let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
    (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
}

/// Turns one document into resources; lines are those of the document.
struct Builder<'a> {
    file: Arc<str>,
    limits: &'a Limits,
    parsed: Parsed,
}

impl Builder<'_> {
    fn location(&self, line: u32, column: u32) -> Location {
        Location { file: Arc::clone(&self.file), line, column }
    }

    fn report(&mut self, diagnostic: Diagnostic) {
        // One more than is shown, so that the whole file knows that there are more.
        if self.parsed.diagnostics.len() <= self.limits.diagnostics {
            self.parsed.diagnostics.push(diagnostic);
        }
    }

    fn document(&mut self, text: &str, document: Document) {
        let broken = !document.errors.is_empty();
        for error in document.errors {
            let code = match error.kind {
                NodeErrorKind::Syntax => Code::Syntax,
                NodeErrorKind::TooComplex => Code::TooComplex,
                NodeErrorKind::DuplicateKey => Code::DuplicateKey,
            };
            let mut diagnostic = Diagnostic::file_error(code, self.location(error.line, error.column), error.message);
            if code == Code::Syntax && text.contains("{{") {
                diagnostic = diagnostic.help("render the template first; Selvedge reads plain YAML and JSON");
            }
            self.report(diagnostic);
        }
        let Some(root) = document.root else { return };
        match &root.data {
            Data::Null => {}
            _ if is_list(&root) => self.list(&root, broken),
            Data::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.resource(item, FieldPath::root().index(index), broken);
                }
            }
            _ => self.resource(&root, FieldPath::root(), broken),
        }
    }

    fn list(&mut self, root: &Node, broken: bool) {
        match root.get("items").map(|items| &items.data) {
            Some(Data::List(items)) => {
                for (index, item) in items.iter().enumerate() {
                    self.resource(item, FieldPath::root().field("items").index(index), broken);
                }
            }
            Some(Data::Null) | None => {}
            Some(_) => {
                let location = self.location(root.line, root.column);
                self.report(Diagnostic::file_error(Code::WrongType, location, "`items` of a List must be a list"));
            }
        }
    }

    fn resource(&mut self, root: &Node, path: FieldPath, broken: bool) {
        let location = self.location(root.line, root.column);
        let origin = Origin { location: location.clone(), document: 0, path };
        let kind = match kind_of(root) {
            Ok(kind) => kind,
            Err(findings) => {
                for finding in findings {
                    let place = locate(root, &finding.path);
                    let name = root.get("metadata").and_then(|metadata| metadata.get("name")).and_then(Node::text);
                    let mut diagnostic = Diagnostic {
                        resource: None,
                        location: Some(self.location(place.0, place.1)),
                        severity: finding.severity,
                        code: finding.code,
                        path: finding.path,
                        message: finding.message,
                        help: finding.help,
                    };
                    if let Some(name) = name {
                        diagnostic.message = format!("{} (`{}`)", diagnostic.message, short(name));
                    }
                    self.report(diagnostic);
                }
                return;
            }
        };
        let key = key_of(kind, root);
        let (resource, findings) = read_resource(kind, root);
        for (finding, line, column) in findings {
            let diagnostic = match &key {
                Some(key) => finding.about(key.clone()),
                None => Diagnostic { resource: None, ..finding.about(ResourceKey::new(kind, "", "")) },
            };
            let location = self.location(line, column);
            self.report(diagnostic.at(location));
        }
        let resource = resource.filter(|_| !broken);
        let stand_in = key.as_ref().filter(|_| resource.is_none()).and_then(|key| stand_in(key, root));
        self.parsed.loaded.push(Loaded { key, resource, stand_in, origin });
    }
}

fn is_list(root: &Node) -> bool {
    let text = |key: &str| root.get(key).and_then(Node::text);
    let Some(kind) = text("kind") else { return false };
    let known = |name: &str| name.is_empty() || name.parse::<Kind>().is_ok();
    kind.strip_suffix("List").is_some_and(known) && root.get("items").is_some()
}

fn key_of(kind: Kind, root: &Node) -> Option<ResourceKey> {
    let metadata = root.get("metadata")?;
    let name = metadata.get("name")?.text()?;
    let namespace = metadata.get("namespace").and_then(Node::text).unwrap_or("default");
    Some(ResourceKey::new(kind, namespace, name))
}

/// What must hold instead of a resource that cannot be used. Targets that cannot be read either are the whole namespace.
fn stand_in(key: &ResourceKey, root: &Node) -> Option<Resource> {
    if !matches!(key.kind, Kind::AccessPolicy | Kind::AuthPolicy) {
        return None;
    }
    let mut fields = root.to_value();
    let spec = fields.get_mut("spec").map(Value::take).unwrap_or_default();
    let targets = serde_json::from_value(spec["targetRefs"].clone()).unwrap_or_default();
    let selector = serde_json::from_value(spec["selector"].clone()).unwrap_or_default();
    Some(match key.kind {
        Kind::AuthPolicy => AuthPolicy::unreadable(&key.namespace, &key.name, targets, selector).into(),
        _ => AccessPolicy::unreadable(&key.namespace, &key.name, targets, selector).into(),
    })
}

/// The resource, unless something is wrong with it, and what is wrong with its place.
fn read_resource(kind: Kind, root: &Node) -> (Option<Resource>, Vec<(Finding, u32, u32)>) {
    let findings = check(kind, root);
    if !findings.is_empty() {
        return (None, findings);
    }
    let placed = |finding: Finding| {
        let (line, column) = locate(root, &finding.path);
        (finding, line, column)
    };
    match resource::deserialize(kind, fields(root)) {
        Err(finding) => (None, vec![placed(finding)]),
        Ok(resource) => {
            let findings: Vec<_> = validate(&resource).into_iter().map(placed).collect();
            let bad = findings.iter().any(|(finding, _, _)| finding.severity == Severity::Error);
            ((!bad).then_some(resource), findings)
        }
    }
}

fn fields(root: &Node) -> Value {
    let mut value = root.to_value();
    if let Some(object) = value.as_object_mut() {
        object.remove("apiVersion");
        object.remove("kind");
    }
    value
}

/// Kinds of Kubernetes that often lie beside the resources of a gateway and mean nothing to it.
const IGNORED_GROUPS: &[&str] = &[
    "apps",
    "batch",
    "autoscaling",
    "policy",
    "rbac.authorization.k8s.io",
    "apiextensions.k8s.io",
    "admissionregistration.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
    "coordination.k8s.io",
    "monitoring.coreos.com",
];
const IGNORED_CORE_KINDS: &[&str] = &[
    "Pod",
    "ServiceAccount",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "ReplicationController",
    "LimitRange",
    "ResourceQuota",
    "Endpoints",
    "Event",
    "Node",
];

/// The kind of a document, or why it has none that Selvedge reads.
fn kind_of(root: &Node) -> Result<Kind, Vec<Finding>> {
    if !matches!(root.data, Data::Map(_)) {
        let message = format!("expected a resource with apiVersion, kind and metadata, found {}", root.describe());
        return Err(vec![Finding::error(Code::NotAnObject, FieldPath::root(), message)]);
    }
    let mut missing = Vec::new();
    let mut text = |name: &str| {
        let text = root.get(name).and_then(Node::text);
        if text.is_none() {
            let (code, message) = match root.get(name) {
                Some(value) if !matches!(value.data, Data::Null) => {
                    (Code::WrongType, format!("`{name}` must be text, found {}", value.describe()))
                }
                _ => (Code::MissingField, format!("required field `{name}` is missing")),
            };
            missing.push(Finding::error(code, FieldPath::root().field(name), message));
        }
        text.unwrap_or_default().to_owned()
    };
    let (api_version, name) = (text("apiVersion"), text("kind"));
    if !missing.is_empty() {
        return Err(missing);
    }
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
    match Kind::find(group, &name) {
        Some(kind) if kind.versions().contains(&version) => Ok(kind),
        Some(kind) => Err(vec![unknown_version(&api_version, kind)]),
        None => Err(vec![unknown_kind(group, &api_version, &name)]),
    }
}

fn unknown_version(api_version: &str, kind: Kind) -> Finding {
    let versions: Vec<String> = kind
        .versions()
        .iter()
        .map(|version| match kind.group() {
            "" => format!("`{version}`"),
            group => format!("`{group}/{version}`"),
        })
        .collect();
    let message = format!("there is no {kind} in apiVersion `{}`", short(api_version));
    Finding::error(Code::UnknownVersion, FieldPath::root().field("apiVersion"), message)
        .help(format!("write {}", versions.join(" or ")))
}

fn unknown_kind(group: &str, api_version: &str, name: &str) -> Finding {
    if IGNORED_GROUPS.contains(&group) || (group.is_empty() && IGNORED_CORE_KINDS.contains(&name)) {
        let message = format!("{} of `{}` is not used by Selvedge and left alone", short(name), short(api_version));
        return Finding {
            severity: Severity::Info,
            ..Finding::error(Code::IgnoredKind, FieldPath::root().field("kind"), message)
        };
    }
    if let Ok(kind) = name.parse::<Kind>() {
        return unknown_version(api_version, kind);
    }
    let message = format!("unknown kind `{}`", short(name));
    let help = match nearest(name, Kind::ALL.iter().map(|kind| kind.name())) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => {
            let names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            format!("kinds are {}", names.join(", "))
        }
    };
    Finding::error(Code::UnknownKind, FieldPath::root().field("kind"), message).help(help)
}

/// Line and column of a field, or of the nearest part of the way to it that exists.
///
/// Plain values are found at the value, lists and objects at their key.
fn locate(root: &Node, path: &FieldPath) -> (u32, u32) {
    let mut node = root;
    let mut place = (root.line, root.column);
    for segment in path.segments() {
        let next = match (segment, &node.data) {
            (Segment::Field(name), Data::Map(_)) => node.entry(name).map(|entry| {
                let key = (entry.line, entry.column);
                let value = (entry.value.line, entry.value.column);
                let inside = matches!(entry.value.data, Data::Map(_) | Data::List(_) | Data::Null);
                (&entry.value, if inside { key } else { value })
            }),
            (Segment::Index(index), Data::List(items)) => {
                items.get(*index).map(|item| (item, (item.line, item.column)))
            }
            _ => None,
        };
        match next {
            Some((child, found)) => (node, place) = (child, found),
            None => break,
        }
    }
    place
}

/// Finds fields of resources in the text of their file.
#[derive(Debug)]
pub struct Locator {
    file: Arc<str>,
    roots: Vec<Option<Node>>,
}

impl Locator {
    /// A locator for the text of a file; nothing is found in documents that cannot be read.
    pub fn new(file: &str, text: &[u8], limits: &Limits) -> Locator {
        let text = if text.len() > limits.file_bytes { "" } else { std::str::from_utf8(text).unwrap_or_default() };
        let roots = chunks(text).map(|chunk| node::read(chunk.text, chunk.first_line, limits.nodes()).root).collect();
        Locator { file: file.into(), roots }
    }

    /// Where a field of the resource from `origin` is, or the nearest part of the way to it that exists.
    pub fn locate(&self, origin: &Origin, path: &FieldPath) -> Option<Location> {
        let root = self.roots.get(origin.document)?.as_ref()?;
        let (line, column) = locate(root, &origin.path.clone().join(path));
        Some(Location { file: Arc::clone(&self.file), line, column })
    }
}
