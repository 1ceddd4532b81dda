//! Filters of HTTPRoute and GRPCRoute rules.

use crate::{
    backends::Reference,
    rules::{Dropped, RuleBuilder},
    secrets::qualified,
    snapshot::{Cors, Filter, HeaderChange, Mirror, OriginMatch, PathChange, Redirect, Rewrite},
};
use http::{HeaderName, HeaderValue};
use selvedge_model::{
    Code,
    http::{
        Cors as CorsSpec, HeaderModifier, HttpFilter, HttpHeader, HttpPathModifier, PathModifierType, RedirectScheme,
        RequestMirror, RequestRedirect, UrlRewrite,
    },
};
use std::sync::Arc;

/// Filters of a rule or backend.
pub(crate) enum Filters {
    Fine(Vec<Filter>),
    /// One of them cannot be honoured, so that nothing may pass: why.
    Closed(String),
}

/// Compiles filters in their order. `None` in the list is a filter whose field is missing. `prefix` is whether the rule
/// matches by one path prefix, which `ReplacePrefixMatch` needs.
pub(crate) fn compile<'f>(
    builder: &mut RuleBuilder<'_, '_, '_>,
    filters: impl Iterator<Item = Option<HttpFilter<'f>>>,
    path: &str,
    prefix: bool,
) -> Result<Filters, Dropped> {
    let mut list = Vec::new();
    let mut closed = None;
    let (mut redirects, mut rewrites) = (false, false);
    for (i, filter) in filters.enumerate() {
        let at = format!("{path}.filters[{i}]");
        let Some(filter) = filter else {
            return Err(Dropped::unsupported(format!("{at}: the field that `type` names is missing")));
        };
        match filter {
            HttpFilter::RequestHeaderModifier(m) => list.push(Filter::RequestHeaders(headers(m, true, &at)?)),
            HttpFilter::ResponseHeaderModifier(m) => list.push(Filter::ResponseHeaders(headers(m, false, &at)?)),
            HttpFilter::RequestMirror(m) => list.push(Filter::Mirror(mirror(builder, m, &at)?)),
            HttpFilter::RequestRedirect(r) => {
                redirects = true;
                list.push(Filter::Redirect(redirect(r, &at, prefix)?));
            }
            HttpFilter::UrlRewrite(r) => {
                rewrites = true;
                list.push(Filter::Rewrite(rewrite(r, &at, prefix)?));
            }
            HttpFilter::Cors(c) => list.push(Filter::Cors(Arc::new(cors(c, &at)?))),
            HttpFilter::ExternalAuth(_) => {
                let message = "the filter ExternalAuth is not supported yet: the rule answers 500, so that nothing passes unchecked";
                builder.error(Code::UnsupportedValue, &at, message);
                closed.get_or_insert(message.to_owned());
            }
            HttpFilter::ExtensionRef(r) => {
                let kind = qualified(&r.group, &r.kind);
                let message = format!("the filter {kind} {} is not known: the rule answers 500", r.name);
                builder.error(Code::UnsupportedReference, &at, &message);
                builder.refs.get_or_insert(crate::status::Fault::new("InvalidKind", message.clone()));
                closed.get_or_insert(message);
            }
        }
    }
    if redirects && rewrites {
        let message = format!("{path}.filters: RequestRedirect and URLRewrite exclude each other");
        return Err(Dropped { reason: "IncompatibleFilters", message });
    }
    Ok(closed.map_or(Filters::Fine(list), Filters::Closed))
}

/// Fields that frame messages or belong to one connection: only who writes the message knows them.
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

fn headers(spec: &HeaderModifier, request: bool, at: &str) -> Result<HeaderChange, Dropped> {
    let all = spec.set.iter().chain(&spec.add).map(|header| header.name.as_str());
    let all = all.chain(spec.remove.iter().map(String::as_str));
    if let Some(name) = all.clone().find(|name| FRAMING.iter().any(|f| name.eq_ignore_ascii_case(f))) {
        let message = format!(
            "{at}: header {name} frames the message or belongs to one connection, which a filter cannot change: remove it from the filter"
        );
        return Err(Dropped::unsupported(message));
    }
    // One that is set in requests is what a backend is asked for; there is one always, and never another beside it.
    let settable = if request { spec.set.len() } else { 0 };
    if all.skip(settable).any(|name| name.eq_ignore_ascii_case("host")) {
        let message = format!(
            "{at}: requests have one Host, which can be set (better by URLRewrite) but neither added nor removed; responses have none"
        );
        return Err(Dropped::unsupported(message));
    }
    let pairs = |list: &[HttpHeader]| list.iter().map(|h| pair(h, at)).collect::<Result<Vec<_>, _>>();
    let remove = spec.remove.iter().map(|name| header_name(name, at)).collect::<Result<Vec<_>, _>>()?;
    Ok(HeaderChange { set: pairs(&spec.set)?, add: pairs(&spec.add)?, remove })
}

fn pair(header: &HttpHeader, at: &str) -> Result<(HeaderName, HeaderValue), Dropped> {
    let value = HeaderValue::from_bytes(header.value.trim_matches([' ', '\t']).as_bytes()).map_err(|_| {
        Dropped::unsupported(format!("{at}: the value of header {} holds control characters", header.name))
    })?;
    Ok((header_name(&header.name, at)?, value))
}

pub(crate) fn header_name(name: &str, at: &str) -> Result<HeaderName, Dropped> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| Dropped::unsupported(format!("{at}: `{name}` is no header name")))
}

fn mirror(builder: &mut RuleBuilder<'_, '_, '_>, spec: &RequestMirror, at: &str) -> Result<Mirror, Dropped> {
    let (numerator, denominator) = match (spec.percent, &spec.fraction) {
        (Some(percent), _) => (percent.min(100), 100),
        (None, Some(fraction)) if fraction.denominator == 0 => {
            return Err(Dropped::unsupported(format!("{at}.requestMirror.fraction: the denominator is 0")));
        }
        (None, Some(fraction)) => (fraction.numerator.min(fraction.denominator), fraction.denominator),
        (None, None) => (1, 1),
    };
    let reference = Reference::from(&spec.backend_ref);
    let cluster = builder.cluster(reference, &format!("{at}.requestMirror.backendRef")).ok();
    Ok(Mirror { cluster, numerator, denominator })
}

fn redirect(spec: &RequestRedirect, at: &str, prefix: bool) -> Result<Redirect, Dropped> {
    let status = spec.status_code.unwrap_or(302);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return Err(Dropped::unsupported(format!(
            "{at}: {status} is no redirect status: 301, 302, 303, 307 and 308 are"
        )));
    }
    Ok(Redirect {
        scheme: spec.scheme.map(|s| if s == RedirectScheme::Https { "https" } else { "http" }.to_owned()),
        host: spec.hostname.as_deref().map(|h| host(h, at)).transpose()?,
        path: spec.path.as_ref().map(|p| path_change(p, at, prefix)).transpose()?,
        port: spec.port,
        status,
    })
}

fn rewrite(spec: &UrlRewrite, at: &str, prefix: bool) -> Result<Rewrite, Dropped> {
    Ok(Rewrite {
        host: spec.hostname.as_deref().map(|h| host(h, at)).transpose()?,
        path: spec.path.as_ref().map(|p| path_change(p, at, prefix)).transpose()?,
    })
}

fn host(name: &str, at: &str) -> Result<String, Dropped> {
    let name = crate::hosts::normal(name);
    if crate::hosts::valid(&name) && !name.starts_with("*.") {
        Ok(name)
    } else {
        Err(Dropped::unsupported(format!("{at}: `{name}` is no hostname")))
    }
}

fn path_change(spec: &HttpPathModifier, at: &str, prefix: bool) -> Result<PathChange, Dropped> {
    let missing = || Dropped::unsupported(format!("{at}: the field that path.type names is missing"));
    let text = match spec.modifier_type {
        PathModifierType::ReplaceFullPath => spec.replace_full_path.as_ref(),
        PathModifierType::ReplacePrefixMatch if !prefix => {
            let message = format!("{at}: ReplacePrefixMatch needs exactly one match of the rule, of type PathPrefix");
            return Err(Dropped::unsupported(message));
        }
        PathModifierType::ReplacePrefixMatch => spec.replace_prefix_match.as_ref(),
    };
    let text = text.ok_or_else(missing)?;
    if text.bytes().any(|b| !b.is_ascii_graphic() || b == b'#') {
        return Err(Dropped::unsupported(format!("{at}: the path `{text}` holds what must be percent-encoded")));
    }
    Ok(match spec.modifier_type {
        PathModifierType::ReplaceFullPath => PathChange::Full(text.clone()),
        PathModifierType::ReplacePrefixMatch => PathChange::Prefix(text.clone()),
    })
}

fn cors(spec: &CorsSpec, at: &str) -> Result<Cors, Dropped> {
    let any = |list: &[String]| list.iter().any(|item| item == "*");
    let rest = |list: &[String]| list.iter().filter(|item| *item != "*").cloned().collect::<Vec<_>>();
    for name in spec.allow_headers.iter().chain(&spec.expose_headers).filter(|n| *n != "*") {
        header_name(name, at)?;
    }
    let allow_origins = spec.allow_origins.iter().map(|o| origin(o, at)).collect::<Result<Vec<_>, _>>()?;
    Ok(Cors {
        allow_origins,
        allow_credentials: spec.allow_credentials.unwrap_or(false),
        allow_methods: rest(&spec.allow_methods),
        any_method: any(&spec.allow_methods),
        allow_headers: rest(&spec.allow_headers),
        any_header: any(&spec.allow_headers),
        expose_headers: spec.expose_headers.clone(),
        max_age: spec.max_age,
    })
}

fn origin(text: &str, at: &str) -> Result<OriginMatch, Dropped> {
    let text = text.to_ascii_lowercase();
    if text == "*" {
        return Ok(OriginMatch::Any);
    }
    if !text.contains("://") {
        return Err(Dropped::unsupported(format!(
            "{at}: `{text}` is no origin: write a scheme, as in https://shop.example"
        )));
    }
    Ok(match text.split_once('*') {
        Some((prefix, suffix)) => OriginMatch::Wildcard { prefix: prefix.to_owned(), suffix: suffix.to_owned() },
        None => OriginMatch::Exact(text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framing_is_not_for_filters() {
        let list = |name: &str| vec![HttpHeader { name: name.to_owned(), value: "1".to_owned() }];
        for name in ["Content-Length", "connection", "Transfer-Encoding", "UPGRADE", "TE", "Keep-Alive"] {
            let change = |set, add, remove| HeaderModifier { set, add, remove };
            for spec in [
                change(list(name), vec![], vec![]),
                change(vec![], list(name), vec![]),
                change(vec![], vec![], vec![name.to_owned()]),
            ] {
                for request in [true, false] {
                    let refused = headers(&spec, request, "spec.rules[0].filters[0]").expect_err(name);
                    assert!(refused.message.contains(name), "{}", refused.message);
                }
            }
        }
        let set = HeaderModifier { set: list("Host"), add: vec![], remove: vec![] };
        assert!(headers(&set, true, "").is_ok());
        assert!(headers(&set, false, "").is_err());
        let remove = HeaderModifier { set: list("x-a"), add: list("x-b"), remove: vec!["host".to_owned()] };
        assert!(headers(&remove, true, "").is_err());
    }
}
