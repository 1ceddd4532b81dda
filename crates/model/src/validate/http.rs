//! Rules of HTTPRoute and GRPCRoute.

mod filter;
mod session;

use selvedge_wire::hop::HOP_BY_HOP;

use filter::{grpc_filters, http_filters};
use session::session_persistence;

use super::route::{backend, hostnames, parents, rule_names};
use super::{Report, full_match_regex, header_name, header_value, match_path};
use crate::diagnostic::Code;
use crate::duration::Duration;
use crate::field_path::At;
use crate::grpc::{GrpcMethodMatch, GrpcMethodMatchType, GrpcRoute};
use crate::http::{
    HeaderMatch, HttpFilterType, HttpQueryParamMatch, HttpRoute, HttpRouteFilter, HttpRouteMatch, HttpRouteRetry,
    HttpRouteRule, HttpRouteTimeouts, PathMatchType, PathModifierType, ValueMatchType,
};
use crate::refs::ParentReference;

/// Most matches of all rules of a route together.
const MAX_MATCHES: usize = 128;

pub(super) fn http_route(report: &mut Report, route: &HttpRoute, spec: &At<'_>) {
    parents(report, &route.spec.parent_refs, &spec.field("parentRefs"));
    hostnames(report, &route.spec.hostnames, &spec.field("hostnames"));
    let rules = spec.field("rules");
    rule_names(report, route.spec.rules.iter().map(|rule| rule.name.as_deref()), &rules);
    match_count(report, route.spec.rules.iter().map(|rule| rule.matches.len()).sum(), &rules);
    for (index, rule) in route.spec.rules.iter().enumerate() {
        http_rule(report, rule, &rules.index(index));
        let matches = rule.matches.iter().map(|one| one.headers.as_slice());
        host_matches(report, &route.spec.parent_refs, matches, &rules.index(index).field("matches"));
    }
}

pub(super) fn grpc_route(report: &mut Report, route: &GrpcRoute, spec: &At<'_>) {
    parents(report, &route.spec.parent_refs, &spec.field("parentRefs"));
    hostnames(report, &route.spec.hostnames, &spec.field("hostnames"));
    let rules = spec.field("rules");
    rule_names(report, route.spec.rules.iter().map(|rule| rule.name.as_deref()), &rules);
    match_count(report, route.spec.rules.iter().map(|rule| rule.matches.len()).sum(), &rules);
    for (index, rule) in route.spec.rules.iter().enumerate() {
        let at = rules.index(index);
        let matches = at.field("matches");
        let all = rule.matches.iter().map(|one| one.headers.as_slice());
        host_matches(report, &route.spec.parent_refs, all, &matches);
        for (index, one) in rule.matches.iter().enumerate() {
            let at = matches.index(index);
            if let Some(method) = &one.method {
                grpc_method(report, method, &at.field("method"));
            }
            headers(report, &one.headers, &at.field("headers"));
        }
        grpc_filters(report, &rule.filters, &at.field("filters"));
        let backends = at.field("backendRefs");
        for (index, one) in rule.backend_refs.iter().enumerate() {
            let at = backends.index(index);
            backend(report, &one.backend, &at);
            grpc_filters(report, &one.filters, &at.field("filters"));
        }
        if let Some(session) = &rule.session_persistence {
            session_persistence(report, session, &at.field("sessionPersistence"));
        }
    }
}

fn match_count(report: &mut Report, count: usize, at: &At<'_>) {
    if count > MAX_MATCHES {
        let message = format!("{count} matches in all rules are too many; at most {MAX_MATCHES} are allowed");
        report.error(Code::WrongLength, at, message);
    }
}

fn http_rule(report: &mut Report, rule: &HttpRouteRule, at: &At<'_>) {
    let matches = at.field("matches");
    for (index, one) in rule.matches.iter().enumerate() {
        http_match(report, one, &matches.index(index));
    }
    http_filters(report, &rule.filters, &at.field("filters"));
    replaced_prefix(report, rule, &rule.filters, &at.field("filters"));
    let backends = at.field("backendRefs");
    let redirects = |filter: &HttpRouteFilter| filter.filter_type == HttpFilterType::RequestRedirect;
    if !rule.backend_refs.is_empty() && rule.filters.iter().any(redirects) {
        let message = "a rule with a RequestRedirect filter cannot have backends";
        report.error(Code::ConflictingFields, &backends, message);
    }
    for (index, one) in rule.backend_refs.iter().enumerate() {
        let at = backends.index(index);
        backend(report, &one.backend, &at);
        http_filters(report, &one.filters, &at.field("filters"));
        replaced_prefix(report, rule, &one.filters, &at.field("filters"));
    }
    if let Some(limits) = &rule.timeouts {
        timeouts(report, limits, &at.field("timeouts"));
    }
    if let Some(again) = &rule.retry {
        retry(report, again, &at.field("retry"));
    }
    if let Some(session) = &rule.session_persistence {
        session_persistence(report, session, &at.field("sessionPersistence"));
    }
}

fn http_match(report: &mut Report, one: &HttpRouteMatch, at: &At<'_>) {
    let path = at.field("path");
    let value = path.field("value");
    match one.path.match_type {
        PathMatchType::Exact | PathMatchType::PathPrefix => {
            report.check(Code::InvalidPath, &value, match_path(&one.path.value));
        }
        PathMatchType::RegularExpression => {
            regex(report, &one.path.value, &value);
            // The whole path is matched: what begins so never is.
            if one.path.value.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric()) {
                let message = "it never matches, since all paths begin with `/`; begin the expression with `/` or `.*`";
                report.warning(Code::InvalidPath, &value, message);
            }
        }
    }
    headers(report, &one.headers, &at.field("headers"));
    query_params(report, &one.query_params, &at.field("queryParams"));
}

fn headers(report: &mut Report, headers: &[HeaderMatch], at: &At<'_>) {
    let names: Vec<&str> = headers.iter().map(|header| header.name.as_str()).collect();
    report.unique(at, &names, "header", |name| (*name).to_owned());
    for (index, header) in headers.iter().enumerate() {
        let item = at.index(index);
        report.check(Code::InvalidHeaderName, &item.field("name"), header_name(&header.name));
        let same = |name: &&&str| **name != header.name && name.eq_ignore_ascii_case(&header.name);
        if let Some(other) = names[..index].iter().find(same) {
            let message = format!("`{other}` is the same header, and only the first of them counts; remove one");
            report.warning(Code::DuplicateItem, &item, message);
        }
        if header.match_type == ValueMatchType::RegularExpression {
            regex(report, &header.value, &item.field("value"));
        } else {
            report.check(Code::InvalidHeaderValue, &item.field("value"), matched_value(&header.value));
        }
        // They are taken off before routes are looked at.
        if HOP_BY_HOP.iter().any(|hop| header.name.eq_ignore_ascii_case(hop.as_str())) {
            let message = format!(
                "the header {} belongs to one connection and is never seen here; match by another",
                header.name
            );
            report.warning(Code::InvalidHeaderName, &item.field("name"), message);
        }
    }
}

/// A match of the header Host works, but is seldom what was meant. An expression may say what no hostname can, and routes
/// of Services alone have no use for `hostnames`: neither is doubted.
fn host_matches<'a>(
    report: &mut Report,
    parents: &[ParentReference],
    matches: impl Iterator<Item = &'a [HeaderMatch]>,
    at: &At<'_>,
) {
    if !parents.is_empty() && parents.iter().all(|parent| parent.kind == "Service") {
        return;
    }
    for (index, headers) in matches.enumerate() {
        for (number, header) in headers.iter().enumerate() {
            if header.name.eq_ignore_ascii_case("host") && header.match_type == ValueMatchType::Exact {
                let message = "hosts are matched by `hostnames`: with a header, the route is still attached for every host \
                               of its listeners, and the value is compared with the host in lower case, without the \
                               port that belongs to the scheme; write it in `hostnames`";
                let (one, headers) = (at.index(index), "headers");
                report.warning(Code::InvalidHeaderName, &one.field(headers).index(number).field("name"), message);
            }
        }
    }
}

/// What arrives has no blanks around it (RFC 9110 section 5.5), so that a value with some never matches.
fn matched_value(text: &str) -> Result<(), String> {
    header_value(text)?;
    if text.trim_matches([' ', '\t']) != text {
        return Err("the value begins or ends with a blank, which values that arrive do not; remove it".to_owned());
    }
    Ok(())
}

fn query_params(report: &mut Report, params: &[HttpQueryParamMatch], at: &At<'_>) {
    let names: Vec<&str> = params.iter().map(|param| param.name.as_str()).collect();
    report.unique(at, &names, "query parameter", |name| (*name).to_owned());
    for (index, param) in params.iter().enumerate() {
        let item = at.index(index);
        report.check(Code::InvalidHeaderName, &item.field("name"), header_name(&param.name));
        if param.match_type == ValueMatchType::RegularExpression {
            regex(report, &param.value, &item.field("value"));
        }
    }
}

pub(super) fn regex(report: &mut Report, pattern: &str, at: &At<'_>) {
    report.check(Code::InvalidRegex, at, full_match_regex(pattern).map(|_| ()));
}

/// `replacePrefixMatch` needs exactly one match, of type PathPrefix: otherwise there is no one prefix to replace.
fn replaced_prefix(report: &mut Report, rule: &HttpRouteRule, filters: &[HttpRouteFilter], at: &At<'_>) {
    let one_prefix = matches!(rule.matches.as_slice(), [one] if one.path.match_type == PathMatchType::PathPrefix);
    if one_prefix {
        return;
    }
    for (index, filter) in filters.iter().enumerate() {
        let redirect = filter.request_redirect.as_ref().and_then(|redirect| redirect.path.as_ref());
        let rewrite = filter.url_rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref());
        for path in [redirect, rewrite].into_iter().flatten() {
            if path.modifier_type == PathModifierType::ReplacePrefixMatch {
                let message = "`replacePrefixMatch` needs a rule with exactly one match, of type PathPrefix";
                report.error(Code::ConflictingFields, &at.index(index), message);
            }
        }
    }
}

fn timeouts(report: &mut Report, timeouts: &HttpRouteTimeouts, at: &At<'_>) {
    if let (Some(request), Some(backend)) = (timeouts.request, timeouts.backend_request)
        && request > Duration::ZERO
        && backend > request
    {
        let message = format!("`backendRequest` ({backend}) is longer than `request` ({request}), which holds it");
        report.error(Code::InvalidTimeout, &at.field("backendRequest"), message);
    }
}

fn retry(report: &mut Report, retry: &HttpRouteRetry, at: &At<'_>) {
    codes(report, &retry.codes, &at.field("codes"));
}

/// Status codes that can be retried.
pub(super) fn codes(report: &mut Report, codes: &[u16], at: &At<'_>) {
    report.unique(at, codes, "status code", u16::to_string);
    for (index, code) in codes.iter().enumerate() {
        if !(400..=599).contains(code) {
            report.error(Code::OutOfRange, &at.index(index), format!("{code} is not a status code of 400 to 599"));
        }
    }
}

fn grpc_method(report: &mut Report, method: &GrpcMethodMatch, at: &At<'_>) {
    if method.service.is_none() && method.method.is_none() {
        report.error(Code::MissingField, at, "one of `service` and `method`, or both, must be given");
    }
    let identifier = |text: &str| {
        let mut bytes = text.bytes();
        bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    for (field, value) in [("service", &method.service), ("method", &method.method)] {
        let Some(value) = value else { continue };
        let at = at.field(field);
        match method.match_type {
            GrpcMethodMatchType::RegularExpression => regex(report, value, &at),
            GrpcMethodMatchType::Exact => {
                let fits = match field {
                    "service" => value.strip_prefix('.').unwrap_or(value).split('.').all(identifier),
                    _ => identifier(value),
                };
                if !fits {
                    report.error(Code::WrongFormat, &at, format!("`{value}` is not the name of a gRPC {field}"));
                }
            }
        }
    }
}
