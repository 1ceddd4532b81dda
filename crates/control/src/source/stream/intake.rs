//! What a proxy takes in of the updates that come, without IO: what is bad is refused, and what was good is kept.

use super::machine::{Change, Outcome};
use crate::publish::version::{Version, canonical, read_key};
use selvedge_compile::Compiled;
use selvedge_model::{Code, Diagnostic, Kind, Resource, ResourceKey, Resources};
use std::collections::{BTreeMap, BTreeSet};

/// See the module. For each update: [`Intake::take_in`], compile, [`Intake::judge`], maybe compile again, and
/// [`Intake::installed`] when it is in effect.
#[derive(Default)]
pub struct Intake {
    resources: Resources,
    /// Newer versions that are not served, because they are bad.
    rejected: BTreeMap<ResourceKey, Rejected>,
    round: Option<Round>,
    /// Errors about certificates before this round.
    certificates: BTreeSet<String>,
}

/// A version that is not served.
struct Rejected {
    version: Version,
    /// It can be read: it is tried again when something else has changed, which may be what it lacked.
    resource: Option<Resource>,
    why: Vec<String>,
}

/// A change that is being taken in.
#[derive(Default)]
struct Round {
    number: u64,
    /// What it touched, with what was there before.
    before: BTreeMap<ResourceKey, (Version, Option<Resource>)>,
    judged: bool,
}

impl Intake {
    /// What an earlier run has left.
    pub fn remember(&mut self, resources: Resources) {
        self.resources = resources;
    }

    /// What is served.
    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// What need not be sent.
    pub fn have(&self) -> BTreeMap<String, Version> {
        self.resources.iter().map(|resource| (resource.key().to_string(), canonical(&resource).1)).collect()
    }

    /// Newer versions that are not served.
    pub fn rejected(&self) -> impl Iterator<Item = (&ResourceKey, Version)> {
        self.rejected.iter().map(|(key, rejected)| (key, rejected.version))
    }

    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let about = |(key, rejected): (&ResourceKey, &Rejected)| {
            let message = format!("the newest version is not served: {}", rejected.why.join("; "));
            Diagnostic::error(Code::InvalidPolicyValue, key.clone(), selvedge_model::FieldPath::root(), message)
        };
        self.rejected.iter().map(about).collect()
    }

    /// Whether an older version of something is served.
    pub fn is_last_good(&self) -> bool {
        self.rejected.keys().any(|key| self.resources.get(key).is_some())
    }

    /// The answer to the update that is in effect now, if there was one.
    pub fn installed(&mut self, problems: Vec<String>) -> Option<Outcome> {
        let round = self.round.take()?;
        let rejected = self.rejected.iter().map(|(key, r)| (key.to_string(), r.version, r.why.clone())).collect();
        Some(Outcome { number: round.number, rejected, problems })
    }

    /// Hears what the compiler says of it. Returns whether something is taken back, so that it must be compiled again.
    pub fn judge(&mut self, compiled: &Compiled) -> bool {
        let errors = || compiled.diagnostics.iter().filter(|d| d.is_error());
        let certificates: BTreeSet<String> =
            errors().filter(|d| is_about_certificates(d.code)).map(ToString::to_string).collect();
        let new_about_certificates: Vec<String> = certificates.difference(&self.certificates).cloned().collect();
        self.certificates = certificates;
        let Some(round) = self.round.as_mut().filter(|round| !round.judged) else { return false };
        round.judged = true;
        let before = std::mem::take(&mut round.before);
        let mut faults: BTreeMap<&ResourceKey, Vec<String>> = BTreeMap::new();
        for fault in errors().filter(|d| is_fault(d.code)) {
            if let Some((key, _)) = fault.resource.as_ref().and_then(|key| before.get_key_value(key)) {
                faults.entry(key).or_default().push(fault.to_string());
            }
        }
        if !new_about_certificates.is_empty() {
            for key in before.keys().filter(|key| matches!(key.kind, Kind::Secret | Kind::ConfigMap)) {
                faults.entry(key).or_default().extend(new_about_certificates.iter().cloned());
            }
        }
        let mut reverts = false;
        for (key, why) in faults {
            if let Some((version, good)) = before.get(key) {
                reverts |= self.reject(key, *version, good.clone(), why);
            }
        }
        reverts
    }

    /// Takes an update in, to be judged.
    pub fn take_in(&mut self, change: Change) {
        let mut round = Round { number: change.number, ..Round::default() };
        let again: Vec<(ResourceKey, Version, Resource)> = self
            .rejected
            .iter()
            .filter_map(|(key, rejected)| Some((key.clone(), rejected.version, rejected.resource.clone()?)))
            .collect();
        for (key, version, resource) in again {
            self.put(&mut round, key, version, resource);
        }
        for (name, version, json) in change.upserts {
            let Some(key) = read_key(&name) else {
                tracing::warn!(
                    resource = name,
                    "the control plane sends a kind that this version does not know; update this proxy"
                );
                continue;
            };
            match read(&key, &json) {
                Ok(resource) => self.put(&mut round, key, version, resource),
                Err(why) => _ = self.rejected.insert(key, Rejected { version, resource: None, why }),
            }
        }
        for key in change.removals.iter().filter_map(|name| read_key(name)) {
            self.resources.remove(&key);
            self.rejected.remove(&key);
            round.before.remove(&key);
        }
        self.round = Some(round);
    }

    fn put(&mut self, round: &mut Round, key: ResourceKey, version: Version, resource: Resource) {
        let before = match round.before.remove(&key) {
            Some((_, before)) => before,
            None => self.resources.get(&key),
        };
        self.rejected.remove(&key);
        self.resources.upsert(resource);
        round.before.insert(key, (version, before));
    }

    /// Puts back what was served before, if there was something else.
    fn reject(&mut self, key: &ResourceKey, version: Version, before: Option<Resource>, why: Vec<String>) -> bool {
        let resource = self.resources.get(key);
        let reverts = before.is_some() && before != resource;
        if let Some(before) = before {
            self.resources.upsert(before);
        }
        self.rejected.insert(key.clone(), Rejected { version, resource, why });
        reverts
    }
}

/// Reads one resource, which must be the one that it is called.
fn read(key: &ResourceKey, json: &[u8]) -> Result<Resource, Vec<String>> {
    let value = serde_json::from_slice(json).map_err(|error| vec![format!("not JSON: {error}")])?;
    let resource = Resource::from_value(&value)
        .map_err(|findings| findings.iter().map(|f| format!("{}: {}", f.path, f.message)).collect::<Vec<_>>())?;
    if resource.key() == *key { Ok(resource) } else { Err(vec![format!("it is called {}", resource.key())]) }
}

/// Errors in a resource itself, for which its last good version is better. What it refers to may be missing for other
/// reasons, and the Gateway API says what is served then.
fn is_fault(code: Code) -> bool {
    use Code::*;
    matches!(code, UnsupportedReference | UnsupportedValue | DroppedRule | UnsupportedListener | InvalidPolicyValue)
}

fn is_about_certificates(code: Code) -> bool {
    matches!(code, Code::InvalidCertificate | Code::InvalidCaCertificate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::testing::{route, service};
    use selvedge_model::FieldPath;

    fn change(number: u64, resource: &Resource) -> Change {
        let (json, version) = canonical(resource);
        let mut change = Change::default();
        change.number = number;
        change.upserts.push((resource.key().to_string(), version, json));
        change
    }

    /// What the compiler says of it. Returns whether something was taken back, and what is not served then.
    fn judged(intake: &mut Intake, diagnostics: Vec<Diagnostic>) -> (bool, Vec<String>) {
        let back = intake.judge(&Compiled { diagnostics, ..Compiled::default() });
        let rejected = intake.installed(Vec::new()).unwrap().rejected;
        (back, rejected.into_iter().map(|(key, ..)| key).collect())
    }

    #[test]
    fn what_is_refused_is_tried_again_with_the_next_update() {
        let mut intake = Intake::default();
        let (good, bad) = (route("shop", "r", ("Gateway", "edge"), "a"), route("shop", "r", ("Gateway", "edge"), "b"));
        let fault = || Diagnostic::error(Code::UnsupportedValue, good.key(), FieldPath::root(), "bad".to_owned());
        intake.take_in(change(1, &good));
        assert_eq!(judged(&mut intake, Vec::new()), (false, Vec::new()));
        intake.take_in(change(2, &bad));
        assert_eq!(judged(&mut intake, vec![fault()]), (true, vec!["HTTPRoute shop/r".to_owned()]));
        assert_eq!(intake.resources().get(&good.key()).as_ref(), Some(&good));
        intake.take_in(change(3, &service("shop", "a", "10.0.0.1")));
        assert_eq!(intake.resources().get(&good.key()).as_ref(), Some(&bad), "it may be good now");
        assert_eq!(judged(&mut intake, vec![fault()]), (true, vec!["HTTPRoute shop/r".to_owned()]), "it is not");
        intake.take_in(change(4, &service("shop", "b", "10.0.0.2")));
        assert_eq!(judged(&mut intake, Vec::new()), (false, Vec::new()));
        assert_eq!(intake.resources().get(&good.key()).as_ref(), Some(&bad));
    }
}
