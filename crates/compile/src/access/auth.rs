//! One AuthPolicy, from what a user wrote to what tokens are verified by.

use super::jwks;
use crate::{
    index::Name,
    report::did_you_mean,
    snapshot::{Auth, ClaimHeader, JwtKey, JwtProvider, TokenAt, TokenPlace},
};
use ahash::AHashMap;
use aws_lc_rs::digest;
use http::HeaderName;
use selvedge_model::{
    self as model, Code, Diagnostic, FieldPath, Kind, ResourceKey, Secret,
    auth::{ClaimToHeader, JwtHeader, JwtKeys, JwtProvider as Provider},
    validate,
};
use selvedge_wire::hop::HOP_BY_HOP;
use std::{sync::Arc, time::Duration};

/// The name of the keys in a Secret.
const SECRET_KEY: &str = "jwks.json";
const DEFAULT_SKEW: Duration = Duration::from_secs(60);
const MAX_SKEW: Duration = Duration::from_secs(300);
/// Headers that no claim can be told in, besides those that end at every hop: others go by them, or we set them.
const RESERVED: [&str; 24] = [
    "accept-encoding",
    "authorization",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "origin",
    "range",
    "te",
    "trailer",
    "traceparent",
    "tracestate",
    "via",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
    "x-request-id",
];

/// A compiled policy, with what it was made from.
pub(super) struct Built {
    from: Arc<model::AuthPolicy>,
    secrets: Secrets,
    pub(super) auth: Arc<Auth>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// Of each provider that names one, the Secret, and names of others that it may have meant.
type Secrets = Vec<Option<Result<Arc<Secret>, String>>>;

/// The Secrets that a policy names.
pub(super) fn secrets(policy: &model::AuthPolicy, all: &AHashMap<Name<'_>, &Arc<Secret>>) -> Secrets {
    let namespace = policy.metadata.namespace.as_str();
    let find = |provider: &Provider| {
        let name = provider.jwks.secret_ref.as_ref()?.name.as_str();
        Some(all.get(&(namespace, name)).map(|secret| Arc::clone(secret)).ok_or_else(|| {
            let others = all.keys().filter(|(ns, _)| *ns == namespace).map(|(_, name)| *name);
            did_you_mean(name, others)
        }))
    };
    policy.spec.jwt.providers.iter().map(find).collect()
}

impl Built {
    pub(super) fn new(policy: &Arc<model::AuthPolicy>, secrets: Secrets) -> Self {
        let (auth, diagnostics) = compile(policy, &secrets);
        Built { from: Arc::clone(policy), secrets, auth: Arc::new(auth), diagnostics }
    }

    /// Whether it would be made again as it is.
    pub(super) fn is_of(&self, policy: &Arc<model::AuthPolicy>, secrets: &Secrets) -> bool {
        Arc::ptr_eq(&self.from, policy) && self.secrets == *secrets
    }
}

fn compile(policy: &model::AuthPolicy, secrets: &Secrets) -> (Auth, Vec<Diagnostic>) {
    let (namespace, name) = (&policy.metadata.namespace, &policy.metadata.name);
    let spec = &policy.spec;
    let mut build =
        Build { namespace, errors: Vec::new(), warnings: Vec::new(), places: Vec::new(), strip: Vec::new() };
    if spec.unreadable {
        build.errors.push(("spec".to_owned(), "it cannot be read".to_owned()));
    } else if spec.jwt.providers.is_empty() {
        build.errors.push(("spec.jwt.providers".to_owned(), "nobody is believed: name an issuer".to_owned()));
    }
    if !spec.target_refs.is_empty() && spec.selector.is_some() {
        build.errors.push(("spec.selector".to_owned(), "`targetRefs` and `selector` exclude each other".to_owned()));
    }
    if let Some(Err(why)) = spec.selector.as_ref().map(validate::label_selector) {
        build.errors.push(("spec.selector".to_owned(), why));
    }
    let mut providers = Vec::with_capacity(spec.jwt.providers.len());
    for (i, provider) in spec.jwt.providers.iter().enumerate() {
        let at = format!("spec.jwt.providers[{i}]");
        if spec.jwt.providers[..i].iter().any(|other| other.name == provider.name) {
            build.errors.push((format!("{at}.name"), format!("there are two providers named `{}`", provider.name)));
        }
        let secret = secrets.get(i).and_then(Option::as_ref);
        providers.push(build.provider(i, provider, secret, &at));
    }
    build.headers_meet();
    let broken = build.errors.first().map(|(at, why)| format!("{at}: {why}"));
    let key = ResourceKey::new(Kind::AuthPolicy, namespace.as_str(), name.as_str());
    let path = |at: &str| at.parse::<FieldPath>().unwrap_or_default();
    let error = |(at, why): (String, String)| {
        Diagnostic::error(Code::BrokenAuthPolicy, key.clone(), path(&at), why)
            .help("until it is corrected, no request is answered where the policy holds")
    };
    let warning = |(at, why): (String, String)| Diagnostic::warning(Code::UnusableKey, key.clone(), path(&at), why);
    let warnings: Vec<Diagnostic> = build.warnings.into_iter().map(warning).collect();
    let diagnostics = build.errors.into_iter().map(error).chain(warnings).collect();
    let mut auth = Auth {
        name: format!("{namespace}/{name}"),
        optional: spec.jwt.optional,
        providers,
        places: build.places,
        strip: build.strip,
        broken,
        digest: [0; 32],
    };
    auth.digest = identify(&auth);
    (auth, diagnostics)
}

/// A digest of everything that decides about tokens and what is told of them.
fn identify(auth: &Auth) -> [u8; 32] {
    let mut all = digest::Context::new(&digest::SHA256);
    let mut add = |bytes: &[u8]| {
        all.update(&(bytes.len() as u64).to_be_bytes());
        all.update(bytes);
    };
    add(auth.name.as_bytes());
    for provider in &auth.providers {
        add(provider.name.as_bytes());
        add(provider.issuer.as_bytes());
        add(&(provider.audiences.len() as u64).to_be_bytes());
        provider.audiences.iter().for_each(|audience| add(audience.as_bytes()));
        add(&provider.skew.as_millis().to_be_bytes());
        for told in &provider.claim_headers {
            add(format!("{told:?}").as_bytes());
        }
        for key in provider.keys.iter() {
            add(format!("{:?} {:?}", key.id, key.algorithms).as_bytes());
            match &key.material {
                crate::snapshot::JwtMaterial::Rsa { n, e } => {
                    add(n);
                    add(e);
                }
                crate::snapshot::JwtMaterial::Ec(bytes) | crate::snapshot::JwtMaterial::Ed(bytes) => add(bytes),
            }
        }
    }
    let mut out = [0; 32];
    out.copy_from_slice(all.finish().as_ref());
    out
}

struct Build<'p> {
    namespace: &'p str,
    /// Field and what is wrong with it.
    errors: Vec<(String, String)>,
    /// Field and what is left out.
    warnings: Vec<(String, String)>,
    places: Vec<TokenPlace>,
    strip: Vec<HeaderName>,
}

impl Build<'_> {
    fn check<T>(&mut self, at: String, result: Result<T, String>) -> Option<T> {
        result.map_err(|why| self.errors.push((at, why))).ok()
    }

    fn provider(
        &mut self,
        number: usize,
        provider: &Provider,
        secret: Option<&Result<Arc<Secret>, String>>,
        at: &str,
    ) -> JwtProvider {
        let skew = provider.clock_skew.map_or(DEFAULT_SKEW, Into::into);
        if skew > MAX_SKEW {
            self.errors.push((format!("{at}.clockSkew"), "more than 5m: set the clocks instead".to_owned()));
        }
        let keys = self.keys(&provider.jwks, secret, &format!("{at}.jwks"));
        for (i, header) in provider.from_headers.iter().enumerate() {
            self.token_header(number, header, &format!("{at}.fromHeaders[{i}]"));
        }
        for param in &provider.from_params {
            self.place(number, TokenAt::Param(param.clone()));
        }
        if provider.from_headers.is_empty() && provider.from_params.is_empty() {
            self.place(number, TokenAt::Header(http::header::AUTHORIZATION, "bearer ".to_owned()));
        }
        let mut claim_headers: Vec<ClaimHeader> = Vec::with_capacity(provider.claim_to_headers.len());
        for (i, told) in provider.claim_to_headers.iter().enumerate() {
            let at = format!("{at}.claimToHeaders[{i}]");
            let Some(told) = self.claim_header(told, &at) else { continue };
            if claim_headers.iter().any(|other| other.header == told.header) {
                self.errors.push((format!("{at}.header"), format!("two claims are told in {}", told.header)));
            }
            if !self.strip.contains(&told.header) {
                self.strip.push(told.header.clone());
            }
            claim_headers.push(told);
        }
        JwtProvider {
            name: provider.name.clone(),
            issuer: provider.issuer.clone(),
            audiences: provider.audiences.clone(),
            keys: Arc::new(keys.unwrap_or_default()),
            skew,
            claim_headers,
            forward: provider.forward,
        }
    }

    fn keys(&mut self, jwks: &JwtKeys, secret: Option<&Result<Arc<Secret>, String>>, at: &str) -> Option<Vec<JwtKey>> {
        let (at, text) = match (&jwks.inline, &jwks.secret_ref) {
            (Some(text), None) => (format!("{at}.inline"), Ok(text.as_bytes())),
            (None, Some(named)) => {
                let at = format!("{at}.secretRef.name");
                let which = format!("Secret {}/{}", self.namespace, named.name);
                (at, of_secret(secret, &which))
            }
            _ => (at.to_owned(), Err("exactly one of `inline` and `secretRef` must be given".to_owned())),
        };
        let set = self.check(at.clone(), text.and_then(jwks::read))?;
        self.warnings.extend(set.skipped.into_iter().map(|why| (at.clone(), why)));
        Some(set.keys)
    }

    fn token_header(&mut self, number: usize, header: &JwtHeader, at: &str) {
        let Some(name) = self.check(format!("{at}.name"), header_name(&header.name)) else { return };
        let prefix = header.prefix.as_deref().unwrap_or_default();
        if !prefix.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
            self.errors.push((format!("{at}.prefix"), "it can have printable ASCII only".to_owned()));
        }
        self.place(number, TokenAt::Header(name, prefix.to_ascii_lowercase()));
    }

    fn place(&mut self, number: usize, at: TokenAt) {
        match self.places.iter_mut().find(|place| place.at == at) {
            Some(place) if place.providers.contains(&number) => {}
            Some(place) => place.providers.push(number),
            None => self.places.push(TokenPlace { at, providers: vec![number] }),
        }
    }

    fn claim_header(&mut self, told: &ClaimToHeader, at: &str) -> Option<ClaimHeader> {
        let header = self.check(format!("{at}.header"), header_name(&told.header).and_then(free))?;
        let claim: Vec<String> = told.claim.split('/').map(str::to_owned).collect();
        if claim.iter().any(String::is_empty) {
            self.errors.push((format!("{at}.claim"), format!("`{}` has an empty name between slashes", told.claim)));
        }
        Some(ClaimHeader { header, claim })
    }

    /// A header that claims are told in is taken from clients, and no token could come in it.
    fn headers_meet(&mut self) {
        let tokens = self.places.iter().filter_map(|place| match &place.at {
            TokenAt::Header(name, _) => Some(name),
            TokenAt::Param(_) => None,
        });
        let both: Vec<HeaderName> = tokens.filter(|name| self.strip.contains(name)).cloned().collect();
        for name in both {
            self.errors.push(("spec.jwt.providers".to_owned(), format!("{name} has both tokens and a claim")));
        }
    }
}

fn of_secret<'s>(secret: Option<&'s Result<Arc<Secret>, String>>, which: &str) -> Result<&'s [u8], String> {
    match secret {
        Some(Ok(secret)) => secret.get(SECRET_KEY).ok_or_else(|| format!("{which} has no key {SECRET_KEY}")),
        Some(Err(near)) => Err(format!("{which} does not exist{near}")),
        None => Err(format!("{which} does not exist")),
    }
}

fn header_name(text: &str) -> Result<HeaderName, String> {
    validate::header_name(text)?;
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|error| error.to_string())?;
    if HOP_BY_HOP.contains(&name) || name == http::header::HOST {
        return Err(format!("{name} belongs to the connection, and is not seen here"));
    }
    Ok(name)
}

fn free(name: HeaderName) -> Result<HeaderName, String> {
    let ours = name.as_str().starts_with("x-selvedge-");
    if ours || RESERVED.contains(&name.as_str()) {
        return Err(format!("{name} belongs to the message or to the proxy: tell the claim in a header of its own"));
    }
    Ok(name)
}
