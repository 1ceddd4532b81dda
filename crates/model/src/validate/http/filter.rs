//! Rules of filters.

use super::super::route::backend_object;
use super::super::{Report, header_name, header_value, hostname, method, path_characters};
use crate::diagnostic::Code;
use crate::field_path::At;
use crate::grpc::{GrpcFilterType, GrpcRouteFilter};
use crate::http::{
    Cors, ExternalAuth, ExternalAuthProtocol, HeaderModifier, HttpFilterType, HttpHeader, HttpPathModifier,
    HttpRouteFilter, PathModifierType, RequestMirror,
};

pub(super) fn http_filters(report: &mut Report, filters: &[HttpRouteFilter], at: &At<'_>) {
    for (index, filter) in filters.iter().enumerate() {
        let item = at.index(index);
        let repeatable = [HttpFilterType::RequestMirror, HttpFilterType::ExtensionRef, HttpFilterType::ExternalAuth];
        let before = &filters[..index];
        if !repeatable.contains(&filter.filter_type)
            && before.iter().any(|other| other.filter_type == filter.filter_type)
        {
            report.error(
                Code::DuplicateItem,
                &item,
                format!("the filter {:?} can be given only once", filter.filter_type),
            );
        }
        let excluded = match filter.filter_type {
            HttpFilterType::RequestRedirect => Some(HttpFilterType::UrlRewrite),
            HttpFilterType::UrlRewrite => Some(HttpFilterType::RequestRedirect),
            _ => None,
        };
        if excluded.is_some_and(|excluded| before.iter().any(|other| other.filter_type == excluded)) {
            report.error(Code::ConflictingFields, &item, "RequestRedirect and URLRewrite exclude each other");
        }
        http_filter(report, filter, &item);
    }
}

fn http_filter(report: &mut Report, filter: &HttpRouteFilter, at: &At<'_>) {
    let fields = [
        ("requestHeaderModifier", HttpFilterType::RequestHeaderModifier, filter.request_header_modifier.is_some()),
        ("responseHeaderModifier", HttpFilterType::ResponseHeaderModifier, filter.response_header_modifier.is_some()),
        ("requestMirror", HttpFilterType::RequestMirror, filter.request_mirror.is_some()),
        ("requestRedirect", HttpFilterType::RequestRedirect, filter.request_redirect.is_some()),
        ("urlRewrite", HttpFilterType::UrlRewrite, filter.url_rewrite.is_some()),
        ("cors", HttpFilterType::Cors, filter.cors.is_some()),
        ("externalAuth", HttpFilterType::ExternalAuth, filter.external_auth.is_some()),
        ("extensionRef", HttpFilterType::ExtensionRef, filter.extension_ref.is_some()),
    ];
    union(report, &filter.filter_type, &fields, at);
    let modifiers = [
        ("requestHeaderModifier", &filter.request_header_modifier),
        ("responseHeaderModifier", &filter.response_header_modifier),
    ];
    for (name, modifier) in modifiers {
        if let Some(modifier) = modifier {
            header_modifier(report, modifier, &at.field(name));
        }
    }
    if let Some(one) = &filter.request_mirror {
        mirror(report, one, &at.field("requestMirror"));
    }
    if let Some(redirect) = &filter.request_redirect {
        let at = at.field("requestRedirect");
        rewrite(report, redirect.hostname.as_deref(), redirect.path.as_ref(), &at);
    }
    if let Some(one) = &filter.url_rewrite {
        rewrite(report, one.hostname.as_deref(), one.path.as_ref(), &at.field("urlRewrite"));
    }
    if let Some(one) = &filter.cors {
        cors(report, one, &at.field("cors"));
    }
    if let Some(auth) = &filter.external_auth {
        external_auth(report, auth, &at.field("externalAuth"));
    }
}

pub(super) fn grpc_filters(report: &mut Report, filters: &[GrpcRouteFilter], at: &At<'_>) {
    for (index, filter) in filters.iter().enumerate() {
        let item = at.index(index);
        let once = [GrpcFilterType::RequestHeaderModifier, GrpcFilterType::ResponseHeaderModifier];
        let repeated = filters[..index].iter().any(|other| other.filter_type == filter.filter_type);
        if once.contains(&filter.filter_type) && repeated {
            report.error(
                Code::DuplicateItem,
                &item,
                format!("the filter {:?} can be given only once", filter.filter_type),
            );
        }
        let fields = [
            ("requestHeaderModifier", GrpcFilterType::RequestHeaderModifier, filter.request_header_modifier.is_some()),
            (
                "responseHeaderModifier",
                GrpcFilterType::ResponseHeaderModifier,
                filter.response_header_modifier.is_some(),
            ),
            ("requestMirror", GrpcFilterType::RequestMirror, filter.request_mirror.is_some()),
            ("extensionRef", GrpcFilterType::ExtensionRef, filter.extension_ref.is_some()),
        ];
        union(report, &filter.filter_type, &fields, &item);
        if let Some(modifier) = &filter.request_header_modifier {
            header_modifier(report, modifier, &item.field("requestHeaderModifier"));
        }
        if let Some(modifier) = &filter.response_header_modifier {
            header_modifier(report, modifier, &item.field("responseHeaderModifier"));
        }
        if let Some(one) = &filter.request_mirror {
            mirror(report, one, &item.field("requestMirror"));
        }
    }
}

/// The field that the type names must be set, and no other.
fn union<T: PartialEq>(report: &mut Report, chosen: &T, fields: &[(&str, T, bool)], at: &At<'_>) {
    for (name, kind, set) in fields {
        match (kind == chosen, set) {
            (true, false) => {
                let message = format!("`{name}` must be set for this type of filter");
                report.error(Code::InconsistentUnion, &at.field(name), message);
            }
            (false, true) => {
                let message = format!("`{name}` does not fit the type of the filter");
                report.error(Code::InconsistentUnion, &at.field(name), message);
            }
            _ => {}
        }
    }
}

fn header_modifier(report: &mut Report, modifier: &HeaderModifier, at: &At<'_>) {
    for (field, headers) in [("set", &modifier.set), ("add", &modifier.add)] {
        let list = at.field(field);
        let names: Vec<String> = headers.iter().map(|header| header.name.to_ascii_lowercase()).collect();
        report.unique(&list, &names, "header", String::clone);
        for (index, HttpHeader { name, value }) in headers.iter().enumerate() {
            let item = list.index(index);
            report.check(Code::InvalidHeaderName, &item.field("name"), header_name(name));
            report.check(Code::InvalidHeaderValue, &item.field("value"), header_value(value));
        }
    }
    let list = at.field("remove");
    let names: Vec<String> = modifier.remove.iter().map(|name| name.to_ascii_lowercase()).collect();
    report.unique(&list, &names, "header", String::clone);
    for (index, name) in modifier.remove.iter().enumerate() {
        report.check(Code::InvalidHeaderName, &list.index(index), header_name(name));
    }
}

fn mirror(report: &mut Report, mirror: &RequestMirror, at: &At<'_>) {
    backend_object(report, &mirror.backend_ref, &at.field("backendRef"));
    if let Some(fraction) = &mirror.fraction {
        let at = at.field("fraction");
        if mirror.percent.is_some() {
            report.error(Code::ConflictingFields, &at, "`percent` and `fraction` exclude each other");
        }
        if fraction.numerator > fraction.denominator {
            report.error(Code::OutOfRange, &at.field("numerator"), "the fraction is larger than 1");
        }
    }
}

fn rewrite(report: &mut Report, host: Option<&str>, path: Option<&HttpPathModifier>, at: &At<'_>) {
    if let Some(host) = host {
        report.check(Code::InvalidHostname, &at.field("hostname"), hostname(host));
    }
    let Some(path) = path else { return };
    let at = at.field("path");
    let fields = [
        ("replaceFullPath", PathModifierType::ReplaceFullPath, path.replace_full_path.is_some()),
        ("replacePrefixMatch", PathModifierType::ReplacePrefixMatch, path.replace_prefix_match.is_some()),
    ];
    union(report, &path.modifier_type, &fields, &at);
    let values = [("replaceFullPath", &path.replace_full_path), ("replacePrefixMatch", &path.replace_prefix_match)];
    for (name, value) in values {
        if let Some(value) = value {
            report.check(
                Code::InvalidPath,
                &at.field(name),
                path_characters(value.split('?').next().unwrap_or_default()),
            );
        }
    }
}

fn cors(report: &mut Report, cors: &Cors, at: &At<'_>) {
    let lists = [
        ("allowOrigins", &cors.allow_origins),
        ("allowMethods", &cors.allow_methods),
        ("allowHeaders", &cors.allow_headers),
        ("exposeHeaders", &cors.expose_headers),
    ];
    for (name, items) in lists {
        let list = at.field(name);
        report.unique(&list, items, "item", String::clone);
        if items.len() > 1 && items.iter().any(|item| item == "*") {
            report.error(Code::ConflictingFields, &list, "`*` cannot stand beside other items");
        }
        for (index, item) in items.iter().enumerate().filter(|(_, item)| *item != "*") {
            let at = list.index(index);
            match name {
                "allowOrigins" => report.check(Code::WrongFormat, &at, origin(item)),
                "allowMethods" => report.check(Code::WrongFormat, &at, method(item)),
                _ => report.check(Code::InvalidHeaderName, &at, header_name(item)),
            }
        }
    }
}

/// An origin as `scheme://host[:port]`, where the host may begin with a wildcard.
fn origin(text: &str) -> Result<(), String> {
    let error =
        || format!("`{text}` is not an origin: write `https://shop.example`, `https://*.shop.example:8443` or `*`");
    let (scheme, rest) = text.split_once("://").ok_or_else(error)?;
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let scheme_fits = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let host_fits = !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._*[]:".contains(&byte))
        && !host[1..].contains('*');
    let port_fits = port.is_none_or(|port| port == "*" || port.parse::<u16>().is_ok_and(|port| port > 0));
    if scheme_fits && host_fits && port_fits { Ok(()) } else { Err(error()) }
}

fn external_auth(report: &mut Report, auth: &ExternalAuth, at: &At<'_>) {
    backend_object(report, &auth.backend_ref, &at.field("backendRef"));
    let misfits = [
        ("grpc", auth.grpc.is_some() && auth.protocol != ExternalAuthProtocol::Grpc),
        ("http", auth.http.is_some() && auth.protocol != ExternalAuthProtocol::Http),
    ];
    for (name, misfit) in misfits {
        if misfit {
            report.error(Code::InconsistentUnion, &at.field(name), format!("`{name}` does not fit the protocol"));
        }
    }
}
