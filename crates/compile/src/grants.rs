//! References into other namespaces need a ReferenceGrant there.

use ahash::AHashMap;
use selvedge_model::ReferenceGrant;

/// All grants, by the namespace that gives them.
#[derive(Debug, Default)]
pub(crate) struct Grants<'a>(AHashMap<&'a str, Vec<&'a ReferenceGrant>>);

/// Who refers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct From<'a> {
    pub(crate) group: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) namespace: &'a str,
}

/// What is referred to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct To<'a> {
    pub(crate) group: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

impl<'a> Grants<'a> {
    pub(crate) fn new(all: impl Iterator<Item = &'a ReferenceGrant>) -> Self {
        let mut grants = Grants::default();
        for grant in all {
            grants.0.entry(grant.metadata.namespace.as_str()).or_default().push(grant);
        }
        grants
    }

    /// Whether the reference stays in its namespace or is granted. Grants add up.
    pub(crate) fn allow(&self, from: From<'_>, to: To<'_>) -> bool {
        if from.namespace == to.namespace {
            return true;
        }
        let Some(grants) = self.0.get(to.namespace) else { return false };
        grants.iter().any(|grant| {
            let who = grant.spec.from.iter();
            let what = grant.spec.to.iter();
            who.into_iter().any(|f| f.group == from.group && f.kind == from.kind && f.namespace == from.namespace)
                && what.into_iter().any(|t| {
                    t.group == to.group && t.kind == to.kind && t.name.as_deref().is_none_or(|name| name == to.name)
                })
        })
    }
}

/// What the person who owns the other namespace has to write.
pub(crate) fn advice(from: From<'_>, to: To<'_>) -> String {
    format!(
        "{} {}/{} is in another namespace: a ReferenceGrant in namespace {} must allow {} of namespace {} to refer to it",
        to.kind, to.namespace, to.name, to.namespace, from.kind, from.namespace
    )
}
