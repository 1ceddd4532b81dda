//! Rules of filters.

use super::super::route::backend_object;
use super::super::{Report, header_name, header_value, hostname, path_characters};
use crate::diagnostic::Code;
use crate::field_path::At;
use crate::grpc::{GrpcFilterType, GrpcRouteFilter};
use crate::http::{
    Cors, ExternalAuth, ExternalAuthProtocol, HeaderModifier, HttpFilterType, HttpHeader, HttpMethod, HttpPathModifier,
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
        let same_place = redirect.scheme.is_none() && redirect.hostname.is_none() && redirect.port.is_none();
        if same_place && redirect.path.is_none() {
            let message = "it leads back to where the request went, and clients would follow it in circles; say \
                           `scheme`, `hostname`, `path` or `port`";
            report.warning(Code::NoEffect, &at, message);
        }
    }
    if let Some(one) = &filter.url_rewrite {
        let at = at.field("urlRewrite");
        rewrite(report, one.hostname.as_deref(), one.path.as_ref(), &at);
        if one.hostname.is_none() && one.path.is_none() {
            report.warning(Code::NoEffect, &at, "it changes nothing; say `hostname` or `path`, or remove the filter");
        }
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
                let message = format!("`{name}` must be set for this type");
                report.error(Code::InconsistentUnion, &at.field(name), message);
            }
            (false, true) => {
                let message = format!("`{name}` does not fit the type");
                report.error(Code::InconsistentUnion, &at.field(name), message);
            }
            _ => {}
        }
    }
}

fn header_modifier(report: &mut Report, modifier: &HeaderModifier, at: &At<'_>) {
    if modifier.set.is_empty() && modifier.add.is_empty() && modifier.remove.is_empty() {
        let message = "it changes no header; say what to `set`, `add` or `remove`, or remove the filter";
        report.warning(Code::NoEffect, at, message);
    }
    for (field, headers) in [("set", &modifier.set), ("add", &modifier.add)] {
        let list = at.field(field);
        let names: Vec<String> = headers.iter().map(|header| header.name.to_ascii_lowercase()).collect();
        report.unique(&list, &names, "header", String::clone);
        for (index, HttpHeader { name, value }) in headers.iter().enumerate() {
            let item = list.index(index);
            report.check(Code::InvalidHeaderName, &item.field("name"), header_name(name));
            report.check(Code::InvalidHeaderValue, &item.field("value"), modified_value(value));
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
    // Allowed, and a way to switch it off for a while: the more it should be seen.
    let nothing = "no request is copied; write a share above 0, or remove the filter";
    if mirror.percent == Some(0) {
        report.warning(Code::NoEffect, &at.field("percent"), nothing);
    }
    if let Some(fraction) = &mirror.fraction {
        if fraction.numerator == 0 {
            report.warning(Code::NoEffect, &at.field("fraction").field("numerator"), nothing);
        }
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
            report.check(Code::InvalidPath, &at.field(name), new_path(value));
        }
    }
}

/// What takes the place of a path or prefix; a prefix may become nothing.
fn new_path(text: &str) -> Result<(), String> {
    path_characters(text.split('?').next().unwrap_or_default())?;
    if !text.is_empty() && !text.starts_with('/') {
        return Err(format!("`{text}` must begin with `/`"));
    }
    Ok(())
}

fn cors(report: &mut Report, cors: &Cors, at: &At<'_>) {
    if cors.allow_origins.is_empty() {
        let message = "no origin may read responses; say which, or `*` for all";
        report.warning(Code::NoEffect, &at.field("allowOrigins"), message);
    }
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
                "allowMethods" => report.check(Code::UnknownValue, &at, cors_method(item)),
                _ => report.check(Code::InvalidHeaderName, &at, header_name(item)),
            }
        }
    }
}

/// One of the methods that routes know.
fn cors_method(text: &str) -> Result<(), String> {
    let names = HttpMethod::ALL.map(HttpMethod::as_str);
    if names.contains(&text) {
        return Ok(());
    }
    Err(format!("`{text}` is not one of {} or `*`", names.join(", ")))
}

/// An origin as `http(s)://host[:port]`, where the host may be or begin with a wildcard.
fn origin(text: &str) -> Result<(), String> {
    let error =
        || format!("`{text}` is not an origin: write `https://shop.example`, `https://*.shop.example:8443` or `*`");
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).ok_or_else(error)?;
    let (host, port) = rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
    let label =
        |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let host_fits = host == "*" || host.strip_prefix("*.").unwrap_or(host).split('.').all(label);
    let port_fits = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    if host_fits && port_fits { Ok(()) } else { Err(error()) }
}

fn external_auth(report: &mut Report, auth: &ExternalAuth, at: &At<'_>) {
    backend_object(report, &auth.backend_ref, &at.field("backendRef"));
    let fields = [
        ("grpc", ExternalAuthProtocol::Grpc, auth.grpc.is_some()),
        ("http", ExternalAuthProtocol::Http, auth.http.is_some()),
    ];
    union(report, &auth.protocol, &fields, at);
    if let Some(grpc) = &auth.grpc {
        header_names(report, &grpc.allowed_headers, &at.field("grpc").field("allowedHeaders"));
    }
    if let Some(http) = &auth.http {
        let at = at.field("http");
        header_names(report, &http.allowed_headers, &at.field("allowedHeaders"));
        header_names(report, &http.allowed_response_headers, &at.field("allowedResponseHeaders"));
        if let Some(path) = &http.path {
            report.check(Code::InvalidPath, &at.field("path"), new_path(path));
        }
    }
}

fn header_names(report: &mut Report, names: &[String], at: &At<'_>) {
    for (index, name) in names.iter().enumerate() {
        report.check(Code::InvalidHeaderName, &at.index(index), header_name(name));
    }
}

/// A header value as the standard allows it in filters: visible ASCII characters, single spaces and tabs between.
fn modified_value(text: &str) -> Result<(), String> {
    header_value(text)?;
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let fits = text.bytes().all(|byte| byte.is_ascii_graphic() || blank(&byte))
        && !text.as_bytes().windows(2).any(|pair| pair.iter().all(blank))
        && !text.as_bytes().first().is_some_and(blank)
        && !text.as_bytes().last().is_some_and(blank);
    if fits {
        return Ok(());
    }
    Err("the value may hold only visible ASCII characters with single spaces between".to_owned())
}
