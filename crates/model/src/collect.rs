//! Puts the resources of several files together, and finds the place of later diagnostics in them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::diagnostic::{Code, Diagnostic, Finding};
use crate::field_path::FieldPath;
use crate::load::{Limits, Locator, Origin, Parsed};
use crate::meta::ResourceKey;
use crate::resource::Resource;
use crate::resources::Resources;

/// Where each resource came from.
pub type Origins = BTreeMap<ResourceKey, Origin>;

/// What a set of files holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Collected {
    /// The sound resources, and what stands for broken ones that must not simply be missing.
    pub resources: Resources,
    /// Where the resources came from, broken ones included.
    pub origins: Origins,
    /// Resources that are there but broken, and so left out.
    pub broken: BTreeSet<ResourceKey>,
    /// What is wrong, by file and place.
    pub diagnostics: Vec<Diagnostic>,
}

impl Collected {
    /// Puts files together, in the order given. Of two resources of one name the first stays.
    pub fn from_files(files: impl IntoIterator<Item = Parsed>) -> Collected {
        let mut collected = Collected::default();
        for file in files {
            collected.diagnostics.extend(file.diagnostics);
            for loaded in file.loaded {
                let Some(key) = loaded.key else { continue };
                if let Some(first) = collected.origins.get(&key) {
                    let message = format!("{key} is given twice: here and at {}", first.location);
                    let diagnostic = Diagnostic::error(Code::DuplicateResource, key, FieldPath::root(), message)
                        .at(loaded.origin.location)
                        .help("the first is used; rename or remove one of them");
                    collected.diagnostics.push(diagnostic);
                    continue;
                }
                match loaded.resource {
                    Some(resource) => {
                        collected.resources.upsert(resource);
                    }
                    None => {
                        collected.broken.insert(key.clone());
                        if let Some(stand_in) = loaded.stand_in {
                            collected.resources.upsert(stand_in);
                        }
                    }
                }
                collected.origins.insert(key, loaded.origin);
            }
        }
        collected
    }
}

/// Gives diagnostics about resources their place. Each file is read at most once, by `read`.
pub fn fill_locations(
    diagnostics: &mut [Diagnostic],
    origins: &Origins,
    limits: &Limits,
    mut read: impl FnMut(&str) -> Option<Vec<u8>>,
) {
    let mut locators: BTreeMap<&str, Option<Locator>> = BTreeMap::new();
    for diagnostic in diagnostics.iter_mut().filter(|diagnostic| diagnostic.location.is_none()) {
        let Some(origin) = diagnostic.resource.as_ref().and_then(|key| origins.get(key)) else { continue };
        let file: &str = &origin.location.file;
        let locator = locators.entry(file).or_insert_with(|| read(file).map(|text| Locator::new(file, &text, limits)));
        let exact = locator.as_ref().and_then(|locator| locator.locate(origin, &diagnostic.path));
        diagnostic.location = Some(exact.unwrap_or_else(|| origin.location.clone()));
    }
}

impl Resources {
    /// Reads what [`Resources::to_value`] wrote.
    ///
    /// Items that are not sound are left out and reported with their paths in `value`, so that one bad item
    /// never costs the rest.
    pub fn from_value(value: &Value) -> (Resources, Vec<Finding>) {
        let mut resources = Resources::default();
        let mut findings = Vec::new();
        let items = value["items"].as_array();
        if items.is_none() {
            let message = "expected a List with `items`";
            findings.push(Finding::error(Code::NotAnObject, FieldPath::root(), message));
        }
        for (index, item) in items.into_iter().flatten().enumerate() {
            match Resource::from_value(item) {
                Ok(resource) => {
                    resources.upsert(resource);
                }
                Err(errors) => findings.extend(errors.into_iter().map(|mut finding| {
                    finding.path = FieldPath::root().field("items").index(index).join(&finding.path);
                    finding
                })),
            }
        }
        (resources, findings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::parse;

    const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: cart, namespace: shop}\nspec:\n  rules:\n  - backendRefs:\n    - name: cart\n      port: 80\n";

    #[test]
    fn two_resources_of_one_name_are_told_with_both_places() {
        let limits = Limits::default();
        let second = format!("# moved\n{ROUTE}");
        let files = [parse("a.yaml", ROUTE.as_bytes(), &limits), parse("b.yaml", second.as_bytes(), &limits)];
        let collected = Collected::from_files(files);
        assert_eq!(collected.resources.len(), 1);
        let [diagnostic] = collected.diagnostics.as_slice() else { panic!("{:?}", collected.diagnostics) };
        assert_eq!(
            diagnostic.to_string(),
            "b.yaml:2:1: error[SELV0008] HTTPRoute shop/cart: HTTPRoute shop/cart is given twice: here and at a.yaml:1:1\n  help: the first is used; rename or remove one of them"
        );
    }

    #[test]
    fn later_diagnostics_find_their_place() {
        let limits = Limits::default();
        let text = format!("---\n---\n{ROUTE}");
        let collected = Collected::from_files([parse("a.yaml", text.as_bytes(), &limits)]);
        let key = collected.origins.keys().next().cloned().expect("one");
        let place = |path: &str| {
            let path = path.parse().expect("a path");
            let mut found = [Diagnostic::error(Code::MissingField, key.clone(), path, "x")];
            fill_locations(&mut found, &collected.origins, &limits, |_| Some(text.clone().into_bytes()));
            let location = found[0].location.clone().expect("found");
            (location.line, location.column)
        };
        assert_eq!(place("spec.rules[0].backendRefs[0].port"), (10, 13));
        assert_eq!(place("spec.rules[0].backendRefs[0].weight"), (9, 7));
        assert_eq!(place("spec.rules[0].backendRefs"), (8, 5));
        assert_eq!(place("spec.hostnames"), (6, 1));
        assert_eq!(place("metadata.namespace"), (5, 35));
        assert_eq!(place(""), (3, 1));
    }

    #[test]
    fn resources_survive_their_json() {
        let limits = Limits::default();
        let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {a: b}\ndata: {c: aGk=}\n";
        let text = format!("{ROUTE}---\n{secret}");
        let collected = Collected::from_files([parse("a.yaml", text.as_bytes(), &limits)]);
        assert_eq!(collected.diagnostics, []);
        let json = serde_json::to_string(&collected.resources.to_value()).expect("JSON");
        let (again, findings) = Resources::from_value(&serde_json::from_str(&json).expect("JSON"));
        assert_eq!(findings, []);
        assert_eq!(again, collected.resources);
        let as_file = Collected::from_files([parse("last-good.json", json.as_bytes(), &limits)]);
        assert_eq!(as_file.diagnostics, []);
        assert_eq!(as_file.resources, collected.resources);
    }
}
