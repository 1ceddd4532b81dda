//! Where in a resource a field is: `spec.rules[0].backendRefs[1].name`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One step into a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Segment {
    /// A field of an object, or a key of a map.
    Field(String),
    /// An item of a list, from 0.
    Index(usize),
}

/// The way from a resource to one of its fields. The empty path is the resource itself.
///
/// Shown as `spec.rules[0].name`; keys that hold other than letters, digits, `_` and `-` as `labels["a.b/c"]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FieldPath {
    segments: Vec<Segment>,
}

impl FieldPath {
    /// The resource itself.
    pub const fn root() -> Self {
        FieldPath { segments: Vec::new() }
    }

    /// The path to a field of this.
    #[must_use]
    pub fn field(mut self, name: impl Into<String>) -> Self {
        self.segments.push(Segment::Field(name.into()));
        self
    }

    /// The path to an item of this, from 0.
    #[must_use]
    pub fn index(mut self, index: usize) -> Self {
        self.segments.push(Segment::Index(index));
        self
    }

    /// The steps.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether this is the resource itself.
    pub fn is_root(&self) -> bool {
        self.segments.is_empty()
    }

    /// This path, then the other.
    #[must_use]
    pub fn join(mut self, other: &FieldPath) -> Self {
        self.segments.extend_from_slice(&other.segments);
        self
    }
}

impl From<Vec<Segment>> for FieldPath {
    fn from(segments: Vec<Segment>) -> Self {
        FieldPath { segments }
    }
}

/// A way into a resource that costs nothing until it is reported: each step refers to the one before.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    parent: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
}

impl<'a> At<'a> {
    /// The resource itself.
    pub const ROOT: At<'static> = At { parent: None, step: Step::Root };

    /// A field of this.
    pub fn field(&'a self, name: &'a str) -> At<'a> {
        At { parent: Some(self), step: Step::Field(name) }
    }

    /// An item of this, from 0.
    pub fn index(&'a self, index: usize) -> At<'a> {
        At { parent: Some(self), step: Step::Index(index) }
    }

    /// The path as a value of its own.
    pub fn path(&self) -> FieldPath {
        let mut segments = Vec::new();
        let mut at = Some(self);
        while let Some(here) = at {
            match here.step {
                Step::Root => {}
                Step::Field(name) => segments.push(Segment::Field(name.to_owned())),
                Step::Index(index) => segments.push(Segment::Index(index)),
            }
            at = here.parent;
        }
        segments.reverse();
        FieldPath { segments }
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.segments.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Field(name) if is_plain(name) => {
                    write!(f, "{}{name}", if position == 0 { "" } else { "." })?;
                }
                Segment::Field(name) => write!(f, "[{name:?}]")?,
            }
        }
        Ok(())
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// Why a text is not a field path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a field path: write one such as spec.rules[0].name or metadata.labels[\"a.b/c\"]")]
pub struct FieldPathError(String);

impl FromStr for FieldPath {
    type Err = FieldPathError;

    fn from_str(text: &str) -> Result<Self, FieldPathError> {
        let error = || FieldPathError(text.to_owned());
        let mut segments = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(quoted) = rest.strip_prefix("[\"") {
                let (name, after) = unquote(quoted).ok_or_else(error)?;
                segments.push(Segment::Field(name));
                rest = after.strip_prefix(']').ok_or_else(error)?;
            } else if let Some(number) = rest.strip_prefix('[') {
                let (number, after) = number.split_once(']').ok_or_else(error)?;
                segments.push(Segment::Index(number.parse().map_err(|_| error())?));
                rest = after;
            } else {
                let name = if segments.is_empty() { rest } else { rest.strip_prefix('.').ok_or_else(error)? };
                let end = name.find(['.', '[']).unwrap_or(name.len());
                if !is_plain(&name[..end]) {
                    return Err(error());
                }
                segments.push(Segment::Field(name[..end].to_owned()));
                rest = &name[end..];
            }
        }
        Ok(FieldPath { segments })
    }
}

/// Reads what `{:?}` of a string wrote, up to the closing quote.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((position, char)) = chars.next() {
        match char {
            '"' => return Some((name, &text[position + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => name.push('\n'),
                'r' => name.push('\r'),
                't' => name.push('\t'),
                '0' => name.push('\0'),
                'u' => {
                    chars.next().filter(|(_, char)| *char == '{')?;
                    let digits: String = chars.by_ref().map(|(_, char)| char).take_while(|char| *char != '}').collect();
                    name.push(char::from_u32(u32::from_str_radix(&digits, 16).ok()?)?);
                }
                other => name.push(other),
            },
            other => name.push(other),
        }
    }
    None
}

impl Serialize for FieldPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FieldPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_read_as_people_write_them() {
        let rules = At::ROOT.field("spec");
        let rules = rules.field("rules");
        let rule = rules.index(2);
        assert_eq!(rule.field("name").path().to_string(), "spec.rules[2].name");
        let label = FieldPath::root().field("metadata").field("labels").field("a.b/c");
        assert_eq!(label.to_string(), "metadata.labels[\"a.b/c\"]");
    }

    proptest! {
        #[test]
        fn display_parses_back(names in proptest::collection::vec((".{0,8}", 0usize..9, any::<bool>()), 0..6)) {
            let mut path = FieldPath::root();
            for (name, index, item) in names {
                path = if item { path.index(index) } else { path.field(name) };
            }
            prop_assert_eq!(path.to_string().parse(), Ok(path));
        }
    }
}
