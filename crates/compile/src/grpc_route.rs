//! GRPCRoute: a call is `POST /package.Service/Method`.

use crate::{
    backends::Reference,
    filters::{self, Filters},
    http_route,
    router::{Entry, Pattern, ValueMatch},
    rules::{self, Dropped, RuleBuilder},
    snapshot::{Rule, Timeouts},
};
use selvedge_model::{
    grpc::{GrpcMethodMatch, GrpcMethodMatchType, GrpcRouteMatch, GrpcRouteRule},
    http::HttpRouteRule,
};

/// The matches of a rule; its index in `Entry::rule` is set by the caller.
pub(crate) fn entries(
    meta: &selvedge_model::ObjectMeta,
    i: usize,
    rule: &GrpcRouteRule,
) -> Result<Vec<Entry>, Dropped> {
    let all = [GrpcRouteMatch::default()];
    let matches = if rule.matches.is_empty() { &all[..] } else { &rule.matches };
    let compiled = matches.iter().enumerate().map(|(j, spec)| {
        let at = format!("matches[{j}]");
        let (path, grpc_method) = path(spec.method.as_ref(), &at)?;
        Ok(Entry {
            path,
            method: None,
            headers: http_route::headers(&spec.headers, &at)?,
            query: Vec::new(),
            grpc_method,
            rule: 0,
            age: rules::age(meta, i, j),
        })
    });
    compiled.collect()
}

/// A match by method alone has no path to look up, so it is a condition on the last path segment; that also gives it
/// its place behind every match that names a service (GRPCRouteRule.matches).
fn path(spec: Option<&GrpcMethodMatch>, at: &str) -> Result<(Pattern, Option<ValueMatch>), Dropped> {
    let Some(spec) = spec else { return Ok((Pattern::Prefix(String::new()), None)) };
    let service = spec.service.as_deref().filter(|s| !s.is_empty());
    let method = spec.method.as_deref().filter(|m| !m.is_empty());
    if spec.match_type == GrpcMethodMatchType::Exact {
        let bad = |text: &str| !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
        if let Some(text) = service.into_iter().chain(method).find(|text| bad(text)) {
            return Err(Dropped::unsupported(format!("{at}: `{text}` is no gRPC service or method")));
        }
    }
    match (spec.match_type, service, method) {
        (_, None, None) => {
            Err(Dropped::unsupported(format!("{at}: a method match names a service, a method, or both")))
        }
        (GrpcMethodMatchType::Exact, Some(service), Some(method)) => {
            Ok((Pattern::Exact(format!("/{service}/{method}")), None))
        }
        (GrpcMethodMatchType::Exact, Some(service), None) => Ok((Pattern::Prefix(format!("/{service}")), None)),
        (GrpcMethodMatchType::Exact, None, Some(method)) => {
            Ok((Pattern::Prefix(String::new()), Some(ValueMatch::Exact(method.to_owned()))))
        }
        (GrpcMethodMatchType::RegularExpression, None, Some(method)) => {
            Ok((Pattern::Prefix(String::new()), Some(ValueMatch::Regex(http_route::regex(method, at)?))))
        }
        (GrpcMethodMatchType::RegularExpression, Some(service), method) => {
            let text = format!("/(?:{service})/(?:{})", method.unwrap_or("[^/]+"));
            Ok((Pattern::Regex(http_route::regex(&text, at)?), None))
        }
    }
}

/// A rule in one situation, and why it is closed if it is.
pub(crate) fn rule(
    builder: &mut RuleBuilder<'_, '_, '_>,
    i: usize,
    spec: &GrpcRouteRule,
) -> Result<(Rule, Option<String>), Dropped> {
    let path = format!("spec.rules[{i}]");
    let filters = filters::compile(builder, spec.filters.iter().map(|f| f.filter()), &path, false)?;
    let mut closed = None;
    let mut backends = Vec::with_capacity(spec.backend_refs.len());
    for (j, backend) in spec.backend_refs.iter().enumerate() {
        let at = format!("{path}.backendRefs[{j}]");
        let mut compiled = builder.backend(Reference::from(&backend.backend), backend.backend.weight, &at);
        match filters::compile(builder, backend.filters.iter().map(|f| f.filter()), &at, false)? {
            Filters::Fine(list) => compiled.filters = list,
            Filters::Closed(reason) => {
                compiled.target = crate::snapshot::Target::Invalid { status: 500, reason: reason.clone() };
                closed.get_or_insert(reason);
            }
        }
        backends.push(compiled);
    }
    let session = spec.session_persistence.as_ref();
    let mut rule = Rule {
        name: builder.name(i, spec.name.as_ref()),
        grpc: true,
        filters: Vec::new(),
        action: builder.action(backends),
        timeouts: Timeouts::default(),
        retry: None,
        hedging: None,
        session: session.map(|s| http_route::session(s, &builder.head.key().to_string(), &HttpRouteRule::default(), i)),
    };
    match filters {
        Filters::Fine(list) => rule.filters = list,
        Filters::Closed(reason) => {
            rules::closed(&mut rule, reason.clone());
            closed = Some(reason);
            return Ok((rule, closed));
        }
    }
    builder.finish(&mut rule, None);
    Ok((rule, closed))
}
