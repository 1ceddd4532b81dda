//! Joining by a certificate of another CA: which CAs, and who their certificates may be. From a file, read again when it or
//! a file of roots changes.
//!
//! Nothing is given that no rule names: a CA that can write any name into its certificates can still only give the
//! identities of its rules.

use selvedge_identity::{Identities, JoinCa, JoinCertificate, Refused};
use selvedge_wire::spiffe::{SpiffeId, is_trust_domain};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

/// CAs that are named, and rules of each.
const MAX_CAS: usize = 100;
const MAX_RULES: usize = 10_000;
/// Bytes of a file of roots; CRLs are in it too.
const MAX_ROOTS: u64 = 16 * 1024 * 1024;
/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Whoever has an identity of this namespace runs the mesh.
const ROOT_NAMESPACE: &str = crate::publish::graph::ROOT_NAMESPACE;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Written {
    cas: Vec<WrittenCa>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenCa {
    name: String,
    /// PEM, with CRLs if there are any; relative to the file.
    roots: PathBuf,
    allow: Vec<WrittenRule>,
}

/// What a certificate must say, and who it may be then.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenRule {
    dns: Option<String>,
    spiffe_id: Option<String>,
    trust_domain: Option<String>,
    namespaces: Option<Vec<String>>,
    /// `namespace/serviceAccount`.
    identity: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    /// A DNS name, or all with one label more (`*.vm.example`).
    Dns(String, SpiffeId),
    Id(SpiffeId, SpiffeId),
    /// `spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`: the same namespace and account here.
    Domain {
        domain: String,
        namespaces: BTreeSet<String>,
    },
}

/// What the files say.
#[derive(Debug, Default, PartialEq)]
struct Rules {
    by_ca: BTreeMap<String, Vec<Rule>>,
    cas: Vec<JoinCa>,
}

/// The CAs whose certificates may join.
#[derive(Debug)]
pub struct JoinCas {
    path: PathBuf,
    /// Trust domain of this mesh.
    domain: String,
    identities: Arc<Identities>,
    rules: RwLock<Arc<Rules>>,
    /// What was said last of files that cannot be used.
    told: Mutex<String>,
}

impl JoinCas {
    /// Reads the file, and lets `identities` believe these CAs of nodes that join.
    ///
    /// # Errors
    /// What is wrong with the file, or the roots that it names.
    pub fn open(path: &Path, domain: &str, identities: &Arc<Identities>) -> Result<Self, String> {
        let rules = read(path, domain)?;
        identities.set_join_cas(rules.cas.clone());
        Ok(Self {
            path: path.to_owned(),
            domain: domain.to_owned(),
            identities: Arc::clone(identities),
            rules: RwLock::new(Arc::new(rules)),
            told: Mutex::default(),
        })
    }

    /// Reads the files again when they have changed, for ever, and tells when their certificates [end](Self::ends). What
    /// cannot be used changes nothing.
    pub async fn follow(self: Arc<Self>, tell: impl Fn(u64) + Send) {
        loop {
            tokio::time::sleep(LOOK).await;
            let looking = Arc::clone(&self);
            let _ = tokio::task::spawn_blocking(move || looking.look()).await;
            tell(self.ends());
        }
    }

    pub(super) fn look(&self) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match read(&self.path, &self.domain) {
            Ok(rules) => {
                told.clear();
                if *self.rules() == rules {
                    return;
                }
                let cas = rules.cas.clone();
                *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
                self.identities.set_join_cas(cas);
                tracing::info!(file = %self.path.display(), "the CAs whose certificates may join have changed");
            }
            Err(error) if error != *told => {
                tracing::warn!(%error, "the CAs whose certificates may join have changed, but cannot be used; the former ones stay");
                *told = error;
            }
            Err(_) => {}
        }
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// When the last certificate of them ends. Seconds since 1970.
    pub fn ends(&self) -> u64 {
        self.rules().cas.iter().map(JoinCa::ends).max().unwrap_or(0)
    }

    /// Judges what was shown in the handshake by what the files say now, and who it may be.
    pub(super) fn judge(&self, chain: &[CertificateDer<'_>]) -> Result<(JoinCertificate, BTreeSet<SpiffeId>), Refused> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let certificate = self.identities.judge_join(chain, UnixTime::since_unix_epoch(now))?;
        let allowed = self.rules().allowed(&certificate, &self.domain);
        Ok((certificate, allowed))
    }
}

impl Rules {
    /// By the rules of each CA that the certificate leads to. A SPIFFE ID in it decides alone.
    fn allowed(&self, certificate: &JoinCertificate, domain: &str) -> BTreeSet<SpiffeId> {
        let rules = certificate.cas.iter().filter_map(|ca| self.by_ca.get(ca)).flatten();
        rules
            .filter_map(|rule| match (rule, &certificate.id) {
                (Rule::Dns(name, id), None) => certificate.dns.iter().any(|dns| covers(name, dns)).then(|| id.clone()),
                (Rule::Id(from, id), Some(shown)) => (from == shown).then(|| id.clone()),
                (Rule::Domain { domain: theirs, namespaces }, Some(shown)) if shown.trust_domain() == theirs => {
                    let (namespace, account) = (shown.namespace()?, shown.account()?);
                    let named = namespaces.contains(namespace);
                    named.then(|| SpiffeId::workload(domain, namespace, account).ok())?
                }
                _ => None,
            })
            .collect()
    }
}

/// Whether a name of a rule is this one; both are in lower case.
fn covers(name: &str, dns: &str) -> bool {
    match name.strip_prefix("*.") {
        None => name == dns,
        Some(rest) => dns.split_once('.').is_some_and(|(label, above)| !label.is_empty() && above == rest),
    }
}

fn read(path: &Path, domain: &str) -> Result<Rules, String> {
    let at = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let text = fs::read_to_string(path).map_err(|e| at(&e))?;
    let value = selvedge_model::plain(&text).map_err(|e| at(&e))?;
    let written: Written = serde_json::from_value(value).map_err(|e| at(&e))?;
    let all = written.cas.iter().map(|ca| ca.allow.len()).sum::<usize>();
    if written.cas.len() > MAX_CAS || all > MAX_RULES {
        return Err(at(&format!("more than {MAX_CAS} CAs or {MAX_RULES} rules")));
    }
    let mut rules = Rules::default();
    for ca in written.cas {
        let of = |why: String| at(&format!("CA `{}`: {why}", ca.name));
        let roots = path.parent().unwrap_or(Path::new("")).join(&ca.roots);
        let unusable = |why: &dyn std::fmt::Display| of(format!("{}: {why}", roots.display()));
        if fs::metadata(&roots).map_err(|e| unusable(&e))?.len() > MAX_ROOTS {
            return Err(unusable(&"it is larger than 16 MiB"));
        }
        let pem = fs::read(&roots).map_err(|e| unusable(&e))?;
        rules.cas.push(JoinCa::from_pem(&ca.name, &pem).map_err(|e| unusable(&e))?);
        let parsed = ca.allow.into_iter().map(|rule| rule.parse(domain)).collect::<Result<Vec<_>, _>>();
        if rules.by_ca.insert(ca.name.clone(), parsed.map_err(of)?).is_some() {
            return Err(at(&format!("two CAs are called `{}`", ca.name)));
        }
    }
    Ok(rules)
}

impl WrittenRule {
    fn parse(self, own: &str) -> Result<Rule, String> {
        let Self { dns, spiffe_id, trust_domain, namespaces, identity } = self;
        match (dns, spiffe_id, trust_domain, namespaces, identity) {
            (Some(name), None, None, None, Some(id)) => Ok(Rule::Dns(dns_name(&name)?, workload(own, &id)?)),
            (None, Some(from), None, None, Some(id)) => {
                let read = from.parse().map_err(|e| format!("spiffeId `{from}`: {e}"))?;
                Ok(Rule::Id(read, workload(own, &id)?))
            }
            (None, None, Some(domain), Some(namespaces), None) => {
                if !is_trust_domain(&domain) {
                    return Err(format!("trustDomain `{domain}` is not the name of a trust domain"));
                }
                if namespaces.is_empty() {
                    return Err("namespaces is empty: name those that may join".to_owned());
                }
                if namespaces.iter().any(|n| n == ROOT_NAMESPACE) {
                    return Err(format!(
                        "a whole trust domain cannot give identities of {ROOT_NAMESPACE}, which run the mesh: name each by \
                         spiffeId and identity"
                    ));
                }
                Ok(Rule::Domain { domain, namespaces: namespaces.into_iter().collect() })
            }
            _ => Err("a rule is `dns` and `identity`, or `spiffeId` and `identity`, or `trustDomain` and `namespaces`"
                .to_owned()),
        }
    }
}

/// A DNS name in lower case; the first label may be an asterisk, if two more follow.
fn dns_name(name: &str) -> Result<String, String> {
    let lower = name.to_ascii_lowercase();
    let rest = lower.strip_prefix("*.").unwrap_or(&lower);
    let label =
        |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    let wild = rest.len() < lower.len();
    match rest.split('.').all(label) && rest.len() <= 253 && (!wild || rest.contains('.')) {
        true => Ok(lower),
        false => {
            Err(format!("dns `{name}` is no DNS name; an asterisk is only good as the first of three labels or more"))
        }
    }
}

fn workload(domain: &str, name: &str) -> Result<SpiffeId, String> {
    let (namespace, account) =
        name.split_once('/').ok_or_else(|| format!("identity `{name}`: write NAMESPACE/SERVICEACCOUNT"))?;
    let id = SpiffeId::workload(domain, namespace, account).map_err(|e| format!("identity `{name}`: {e}"))?;
    match selvedge_identity::control_id(domain).is_ok_and(|control| control == id) {
        true => Err(format!("identity `{name}` is that of the control planes, which no node may have")),
        false => Ok(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvedge_identity::Serial;
    use selvedge_testkit::certs::Ca;

    const OWN: &str = "mesh.example";

    fn certificate(cas: &[&str], id: Option<&str>, dns: &[&str]) -> JoinCertificate {
        JoinCertificate {
            cas: cas.iter().map(|c| (*c).to_owned()).collect(),
            id: id.map(|id| id.parse().unwrap()),
            dns: dns.iter().map(|d| (*d).to_owned()).collect(),
            serial: Serial::new(&[1]),
            not_before: 0,
            not_after: u64::MAX,
        }
    }

    fn written(allow: &str) -> Result<Rules, String> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("vault.pem"), Ca::new("vault").pem()).unwrap();
        let file = folder.path().join("join.yaml");
        fs::write(&file, format!("cas:\n- name: vault\n  roots: vault.pem\n  allow: {allow}\n")).unwrap();
        read(&file, OWN)
    }

    #[test]
    fn a_certificate_is_who_its_ca_is_allowed_to_say() {
        let rules = written(
            "[{dns: orders.vm.example, identity: shop/orders}, {dns: '*.vm.example', identity: shop/guest}, \
             {spiffeId: 'spiffe://old.example/vm/7', identity: shop/cart}, {trustDomain: old.example, namespaces: [pay]}]",
        )
        .unwrap();
        let who = |cas: &[&str], id: Option<&str>, dns: &[&str]| -> Vec<String> {
            let allowed = rules.allowed(&certificate(cas, id, dns), OWN);
            allowed.iter().map(|id| id.path().to_owned()).collect()
        };
        assert_eq!(who(&["vault"], None, &["orders.vm.example"]), ["/ns/shop/sa/guest", "/ns/shop/sa/orders"]);
        assert_eq!(who(&["vault"], None, &["other.vm.example"]), ["/ns/shop/sa/guest"]);
        assert!(who(&["vault"], None, &["a.b.vm.example", "vm.example", ".vm.example"]).is_empty());
        assert!(who(&["other"], None, &["orders.vm.example"]).is_empty(), "the rules of another CA");
        assert!(who(&["vault"], None, &[]).is_empty());
        // A SPIFFE ID decides alone.
        assert_eq!(who(&["vault"], Some("spiffe://old.example/vm/7"), &["orders.vm.example"]), ["/ns/shop/sa/cart"]);
        assert_eq!(who(&["vault"], Some("spiffe://old.example/ns/pay/sa/till"), &[]), ["/ns/pay/sa/till"]);
        for other in ["ns/shop/sa/orders", "ns/selvedge-system/sa/control", "ns/pay", "ns/pay/sa/till/more"] {
            let id = format!("spiffe://old.example/{other}");
            assert!(who(&["vault"], Some(&id), &["orders.vm.example"]).is_empty(), "{other}");
        }
        let own = "spiffe://mesh.example/ns/pay/sa/till";
        assert!(who(&["vault"], Some(own), &[]).is_empty(), "nor is our own trust domain everybody's");
    }

    #[test]
    fn rules_that_say_too_much_or_nothing() {
        for (rule, why) in [
            ("{dns: a.example}", "a rule is"),
            ("{dns: a.example, spiffeId: 'spiffe://a/b', identity: shop/a}", "a rule is"),
            ("{dns: '*', identity: shop/a}", "no DNS name"),
            ("{dns: '*.example', identity: shop/a}", "no DNS name"),
            ("{dns: 'a.*.example', identity: shop/a}", "no DNS name"),
            ("{dns: a.example, identity: orders}", "NAMESPACE/SERVICEACCOUNT"),
            ("{dns: a.example, identity: selvedge-system/control}", "which no node may have"),
            ("{trustDomain: old.example}", "a rule is"),
            ("{trustDomain: old.example, namespaces: []}", "name those"),
            ("{trustDomain: old.example, namespaces: [selvedge-system]}", "run the mesh"),
            ("{trustDomain: 'Old Example', namespaces: [shop]}", "not the name of a trust domain"),
            ("{trustDomains: old.example, namespaces: [shop]}", "unknown field"),
        ] {
            let told = written(&format!("[{rule}]")).unwrap_err();
            assert!(told.contains(why), "{rule}: {told}");
        }
        assert!(written("[]\n- {name: vault, roots: vault.pem, allow: []}").unwrap_err().contains("two CAs"));
        assert!(read(Path::new("/nowhere/join.yaml"), OWN).unwrap_err().contains("/nowhere/join.yaml"));
    }
}
