//! HTTPRoute: matches into router entries, rules into what the proxy does.

use crate::{
    backends::Reference,
    filters::{self, Filters},
    router::{Entry, HeaderMatch, Pattern, QueryMatch, ValueMatch},
    rules::{self, Dropped, RuleBuilder},
    snapshot::{Rule, SessionKind, SessionPersistence, Timeouts},
};
use http::Method;
use regex::Regex;
use selvedge_model::{
    Duration,
    http::{
        CookieLifetime, HeaderMatch as HeaderSpec, HttpMethod, HttpPathMatch, HttpQueryParamMatch, HttpRouteMatch,
        HttpRouteRule, PathMatchType, SessionPersistence as SessionSpec, SessionPersistenceType, ValueMatchType,
    },
};
use selvedge_wire::uri::{EscapedSlashes, PathOptions};

/// Compiled size of one regular expression, in bytes. A few hundred of them are then still harmless.
const REGEX_SIZE: usize = 1 << 20;

/// The matches of a rule; its index in `Entry::rule` is set by the caller.
pub(crate) fn entries(
    meta: &selvedge_model::ObjectMeta,
    i: usize,
    rule: &HttpRouteRule,
) -> Result<Vec<Entry>, Dropped> {
    let all = [HttpRouteMatch::default()];
    let matches = if rule.matches.is_empty() { &all[..] } else { &rule.matches };
    let compiled = matches.iter().enumerate().map(|(j, spec)| {
        let at = format_args!("matches[{j}]").to_string();
        Ok(Entry {
            path: path(&spec.path, &at)?,
            method: spec.method.map(method),
            headers: headers(&spec.headers, &at)?,
            query: queries(&spec.query_params, &at)?,
            grpc_method: None,
            rule: 0,
            age: rules::age(meta, i, j),
        })
    });
    compiled.collect()
}

/// A rule in one situation, and why it is closed if it is.
pub(crate) fn rule(
    builder: &mut RuleBuilder<'_, '_, '_>,
    i: usize,
    spec: &HttpRouteRule,
) -> Result<(Rule, Option<String>), Dropped> {
    let path = format!("spec.rules[{i}]");
    let prefix = match spec.matches.as_slice() {
        [] => true,
        [only] => only.path.match_type == PathMatchType::PathPrefix,
        _ => false,
    };
    let filters = filters::compile(builder, spec.filters.iter().map(|f| f.filter()), &path, prefix)?;
    let mut closed = None;
    let mut backends = Vec::with_capacity(spec.backend_refs.len());
    for (j, backend) in spec.backend_refs.iter().enumerate() {
        let at = format!("{path}.backendRefs[{j}]");
        let mut compiled = builder.backend(Reference::from(&backend.backend), backend.backend.weight, &at);
        match filters::compile(builder, backend.filters.iter().map(|f| f.filter()), &at, prefix)? {
            Filters::Fine(list) => compiled.filters = list,
            // Only the share of this backend is refused.
            Filters::Closed(reason) => {
                compiled.target = crate::snapshot::Target::Invalid { status: 500, reason: reason.clone() };
                closed.get_or_insert(reason);
            }
        }
        backends.push(compiled);
    }
    let mut rule = Rule {
        name: builder.name(i, spec.name.as_ref()),
        grpc: false,
        filters: Vec::new(),
        action: builder.action(backends),
        timeouts: timeouts(spec),
        retry: None,
        hedging: None,
        session: spec.session_persistence.as_ref().map(|s| session(s, &builder.head.key().to_string(), spec, i)),
    };
    match filters {
        Filters::Fine(list) => rule.filters = list,
        Filters::Closed(reason) => {
            rules::closed(&mut rule, reason.clone());
            closed = Some(reason);
            return Ok((rule, closed));
        }
    }
    builder.finish(&mut rule, spec.retry.as_ref());
    Ok((rule, closed))
}

fn timeouts(spec: &HttpRouteRule) -> Timeouts {
    let own = spec.timeouts.as_ref();
    Timeouts {
        request: own.and_then(|t| t.request).map(Duration::as_std),
        backend_request: own.and_then(|t| t.backend_request).map(Duration::as_std),
        stream_idle: None,
    }
}

/// GEP-1619. Without a name one is made up from the rule's, so that two rules do not share a cookie.
pub(crate) fn session(spec: &SessionSpec, route: &str, rule: &HttpRouteRule, index: usize) -> SessionPersistence {
    let made_up = || {
        let hash = xxhash_rust::xxh3::xxh3_64(format!("{route}#{index}").as_bytes());
        format!("selvedge-session-{:08x}", hash as u32)
    };
    let path = match rule.matches.as_slice() {
        [only] if only.path.match_type != PathMatchType::RegularExpression => only.path.value.clone(),
        _ => "/".to_owned(),
    };
    let permanent = spec.cookie_config.as_ref().is_some_and(|c| c.lifetime_type == CookieLifetime::Permanent);
    SessionPersistence {
        name: spec.session_name.clone().unwrap_or_else(made_up),
        kind: match spec.persistence_type {
            SessionPersistenceType::Cookie => SessionKind::Cookie,
            SessionPersistenceType::Header => SessionKind::Header,
        },
        absolute_timeout: spec.absolute_timeout.map(Duration::as_std),
        idle_timeout: spec.idle_timeout.map(Duration::as_std),
        path,
        permanent,
    }
}

fn path(spec: &HttpPathMatch, at: &str) -> Result<Pattern, Dropped> {
    match spec.match_type {
        PathMatchType::Exact => Ok(Pattern::Exact(normal_path(&spec.value, at)?)),
        PathMatchType::PathPrefix => {
            let mut prefix = normal_path(&spec.value, at)?;
            prefix.truncate(prefix.trim_end_matches('/').len());
            Ok(Pattern::Prefix(prefix))
        }
        PathMatchType::RegularExpression => regex(&spec.value, at).map(Pattern::Regex),
    }
}

/// The form in which requests are looked at, so that a pattern written with a needless escape still matches.
fn normal_path(text: &str, at: &str) -> Result<String, Dropped> {
    let options = PathOptions { escaped_slashes: EscapedSlashes::Keep, ..PathOptions::default() };
    let refused = |why: &str| Dropped::unsupported(format!("{at}: path `{text}` cannot be matched: {why}"));
    if !text.starts_with('/') {
        return Err(refused("it must begin with `/`"));
    }
    let target =
        selvedge_wire::uri::parse(&Method::GET, text.as_bytes(), &options).map_err(|e| refused(&e.to_string()))?;
    if target.query().is_some() {
        return Err(refused("a query is matched by queryParams"));
    }
    Ok(target.path().to_owned())
}

/// A regular expression that must match the whole text.
pub(crate) fn regex(text: &str, at: &str) -> Result<Regex, Dropped> {
    regex::RegexBuilder::new(&format!("^(?:{text})$"))
        .size_limit(REGEX_SIZE)
        .build()
        .map_err(|error| Dropped::unsupported(format!("{at}: `{text}` is no usable regular expression: {error}")))
}

fn method(spec: HttpMethod) -> Method {
    match spec {
        HttpMethod::Get => Method::GET,
        HttpMethod::Head => Method::HEAD,
        HttpMethod::Post => Method::POST,
        HttpMethod::Put => Method::PUT,
        HttpMethod::Delete => Method::DELETE,
        HttpMethod::Connect => Method::CONNECT,
        HttpMethod::Options => Method::OPTIONS,
        HttpMethod::Trace => Method::TRACE,
        HttpMethod::Patch => Method::PATCH,
    }
}

/// Of several with one name only the first counts (HTTPHeaderMatch.name).
pub(crate) fn headers(specs: &[HeaderSpec], at: &str) -> Result<Vec<HeaderMatch>, Dropped> {
    let mut list: Vec<HeaderMatch> = Vec::with_capacity(specs.len());
    for spec in specs {
        let name = filters::header_name(&spec.name, at)?;
        if !list.iter().any(|known| known.name == name) {
            list.push(HeaderMatch { name, value: value(spec.match_type, &spec.value, at)? });
        }
    }
    Ok(list)
}

fn queries(specs: &[HttpQueryParamMatch], at: &str) -> Result<Vec<QueryMatch>, Dropped> {
    let mut list: Vec<QueryMatch> = Vec::with_capacity(specs.len());
    for spec in specs {
        if !list.iter().any(|known| known.name == spec.name) {
            list.push(QueryMatch { name: spec.name.clone(), value: value(spec.match_type, &spec.value, at)? });
        }
    }
    Ok(list)
}

fn value(kind: ValueMatchType, text: &str, at: &str) -> Result<ValueMatch, Dropped> {
    match kind {
        ValueMatchType::Exact => Ok(ValueMatch::Exact(text.to_owned())),
        ValueMatchType::RegularExpression => regex(text, at).map(ValueMatch::Regex),
    }
}
