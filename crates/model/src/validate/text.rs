//! Pure checks of texts. Each returns what is wrong in a sentence.

use std::net::IpAddr;

use regex::{Regex, RegexBuilder};

use crate::refs::{LabelOperator, LabelSelector, LabelSelectorRequirement};

type Check = Result<(), String>;

/// Largest compiled size of one regular expression, in bytes.
pub const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// A DNS label of RFC 1123: at most 63 lower-case letters, digits and `-`, beginning and ending with a letter or digit.
pub fn dns_label(text: &str) -> Check {
    if is_label(text) && text.len() <= 63 {
        return Ok(());
    }
    Err(format!(
        "`{}` is not a DNS label: at most 63 lower-case letters, digits and `-`, beginning and ending with a letter or digit",
        crate::check::short(text)
    ))
}

/// A DNS subdomain of RFC 1123: labels joined by dots, at most 253 characters.
pub fn dns_subdomain(text: &str) -> Check {
    if text.len() <= 253 && text.split('.').all(is_label) {
        return Ok(());
    }
    Err(format!(
        "`{}` is not a DNS name: lower-case letters, digits, `-` and `.`, each part beginning and ending with a letter or digit, at most 253 characters",
        crate::check::short(text)
    ))
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// A hostname without wildcard: a DNS subdomain that is not an IP address (`PreciseHostname`).
pub fn hostname(text: &str) -> Check {
    if text.parse::<IpAddr>().is_ok() || is_dotted_numbers(text) {
        return Err(format!("`{text}` is an IP address, not a hostname"));
    }
    if text.contains(':') {
        return Err(format!("`{}` holds a port or scheme; write the hostname alone", crate::check::short(text)));
    }
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(format!("`{}` must be in lower case", crate::check::short(text)));
    }
    dns_subdomain(text)
}

/// A hostname, maybe with one leading `*.` label (`Hostname`).
pub fn wildcard_hostname(text: &str) -> Check {
    match text.strip_prefix("*.") {
        Some(rest) => hostname(rest),
        None if text.contains('*') => {
            let text = crate::check::short(text);
            Err(format!("`{text}`: a wildcard can only be the whole first label, as in `*.example.com`"))
        }
        None => hostname(text),
    }
}

fn is_dotted_numbers(text: &str) -> bool {
    text.split('.').count() == 4 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

/// A header name: a token of RFC 9110 section 5.6.2, at most 256 characters.
pub fn header_name(text: &str) -> Check {
    if text.len() <= 256 && is_token(text) {
        return Ok(());
    }
    Err(format!("`{}` is not a header name: letters, digits and !#$%&'*+-.^_`|~", crate::check::short(text)))
}

/// A header value of RFC 9110 section 5.5: no control characters but tab.
pub fn header_value(text: &str) -> Check {
    if text.chars().any(|char| char.is_control() && char != '\t') {
        return Err("the value holds a line break or another control character".to_owned());
    }
    Ok(())
}

/// A name of a cookie: a token (RFC 6265 section 4.1.1).
pub fn cookie_name(text: &str) -> Check {
    if is_token(text) {
        return Ok(());
    }
    Err(format!(
        "`{}` is not a name that a cookie can have: write letters, digits and !#$%&'*+-.^_`|~, no spaces",
        crate::check::short(text)
    ))
}

/// The path of a cookie: it would end at a `;`, and what follows would be attributes (RFC 6265 section 4.1.1).
pub fn cookie_path(text: &str) -> Check {
    let text_short = crate::check::short(text);
    if !text.starts_with('/') {
        return Err(format!("`{text_short}` must begin with `/`"));
    }
    if text.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b';') {
        return Err(format!(
            "`{text_short}` holds characters that the path of a cookie cannot have; encode them as %XX"
        ));
    }
    Ok(())
}

/// A media type with its parameters, as in `text/html; charset=utf-8` (RFC 9110 section 8.3.1).
pub fn media_type(text: &str) -> Check {
    let text_short = crate::check::short(text);
    let visible = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
    let essence = text.split(';').next().unwrap_or_default().trim_end();
    let fits = essence.split_once('/').is_some_and(|(family, kind)| is_token(family) && is_token(kind));
    if fits && text.bytes().all(visible) {
        return Ok(());
    }
    Err(format!(
        "`{}` is not a media type; write one such as `application/json` or `text/html; charset=utf-8`",
        text_short.escape_debug()
    ))
}

/// A time as Kubernetes writes it, `2026-01-31T12:00:00Z`: these can be compared as texts.
pub fn timestamp(text: &str) -> Check {
    const FORM: &[u8] = b"0000-00-00T00:00:00Z";
    let fits = |(byte, form): (u8, &u8)| if *form == b'0' { byte.is_ascii_digit() } else { byte == *form };
    if text.len() == FORM.len() && text.bytes().zip(FORM).all(fits) {
        return Ok(());
    }
    Err(format!(
        "`{}` is not a time; write it in UTC and to the second, as in `2026-01-31T12:00:00Z`",
        crate::check::short(text)
    ))
}

/// A method: a token of RFC 9110 section 9.1.
pub fn method(text: &str) -> Check {
    if is_token(text) {
        return Ok(());
    }
    Err(format!("`{}` is not a method", crate::check::short(text)))
}

fn is_token(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(allowed)
}

/// A path of a match of type Exact or PathPrefix.
pub fn match_path(text: &str) -> Check {
    let text_short = crate::check::short(text);
    if !text.starts_with('/') {
        return Err(format!("`{text_short}` must begin with `/`"));
    }
    for part in ["//", "/./", "/../", "%2f", "%2F", "#"] {
        if text.contains(part) {
            return Err(format!("`{text_short}` must not hold `{part}`"));
        }
    }
    for end in ["/..", "/."] {
        if text.ends_with(end) {
            return Err(format!("`{text_short}` must not end with `{end}`"));
        }
    }
    path_characters(text)
}

/// Only characters that RFC 3986 allows in a path.
pub fn path_characters(text: &str) -> Check {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let fine = match byte {
            b'%' => (0..2).all(|_| bytes.next().is_some_and(|byte| byte.is_ascii_hexdigit())),
            _ => byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(&byte),
        };
        if !fine {
            let text = crate::check::short(text);
            return Err(format!("`{text}` holds characters that a path cannot have; encode them as %XX"));
        }
    }
    Ok(())
}

/// A label of a resource and its value, by the rules of Kubernetes.
pub fn label(key: &str, value: &str) -> Check {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if prefix.is_some_and(|prefix| dns_subdomain(prefix).is_err()) || name.is_empty() || !is_label_text(name) {
        return Err(format!("`{}` is not a label name", crate::check::short(key)));
    }
    if !is_label_text(value) {
        return Err(format!(
            "`{}` is not a label value: at most 63 letters, digits, `-`, `_` and `.`",
            crate::check::short(value)
        ));
    }
    Ok(())
}

/// What is first wrong with a selector: it would select nobody.
pub fn label_selector(selector: &LabelSelector) -> Check {
    for (key, value) in &selector.match_labels {
        label(key, value)?;
    }
    for requirement in &selector.match_expressions {
        label(&requirement.key, "")?;
        requirement.values.iter().try_for_each(|value| label(&requirement.key, value))?;
        requirement_values(requirement)?;
    }
    Ok(())
}

/// Only `In` and `NotIn` compare with values, and need some.
pub(super) fn requirement_values(requirement: &LabelSelectorRequirement) -> Check {
    let takes_values = matches!(requirement.operator, LabelOperator::In | LabelOperator::NotIn);
    match (takes_values, requirement.values.is_empty()) {
        (true, true) => Err("In and NotIn need values".to_owned()),
        (false, false) => Err("Exists and DoesNotExist take no values".to_owned()),
        _ => Ok(()),
    }
}

fn is_label_text(text: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && edge(text.bytes().next())
        && edge(text.bytes().last())
}

/// Compiles a regular expression that a whole value must match, as routes use them; size is limited and matching linear.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn full_match_regex(pattern: &str) -> Result<Regex, String> {
    // Compiled alone first: otherwise `a)(b` would slip through inside of the group.
    let build = |pattern: &str| RegexBuilder::new(pattern).size_limit(REGEX_SIZE_LIMIT).build();
    let explain = |error: regex::Error| match error {
        regex::Error::CompiledTooBig(limit) => format!("the regular expression needs more than {limit} bytes"),
        error => {
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            format!("`{}` is not a regular expression: {reason}", crate::check::short(pattern))
        }
    };
    build(pattern).map_err(explain)?;
    build(&format!("^(?:{pattern})$")).map_err(explain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostnames() {
        for good in ["a", "shop.example", "a-b.c1", "1.2.3.4a"] {
            assert_eq!(hostname(good), Ok(()), "{good}");
        }
        for bad in ["", "*.a", "-a", "a-", "a..b", "A.b", "1.2.3.4", "::1", "a:80", "a_b", "a.", "ä.b"] {
            assert!(hostname(bad).is_err(), "{bad}");
        }
        assert_eq!(wildcard_hostname("*.shop.example"), Ok(()));
        for bad in ["*", "*.", "a.*.b", "*a.b", "*.1.2.3.4"] {
            assert!(wildcard_hostname(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths() {
        for good in ["/", "/a/b", "/a%20b", "/a/..b", "/a;b=c", "/@:"] {
            assert_eq!(match_path(good), Ok(()), "{good}");
        }
        for bad in
            ["", "a", "/a//b", "/a/./b", "/a/../b", "/%2f", "/%2F", "/#", "/a/..", "/a/.", "/a b", "/%2", "/?a", "/ä"]
        {
            assert!(match_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn headers() {
        assert_eq!(header_name("x-Foo_1!"), Ok(()));
        for bad in ["", "a b", "a:", "ä", ":path"] {
            assert!(header_name(bad).is_err(), "{bad}");
        }
        assert_eq!(header_value("a\tb ä"), Ok(()));
        assert!(header_value("a\r\nb").is_err());
    }

    #[test]
    fn labels() {
        assert_eq!(label("app.kubernetes.io/name", "shop_1.2"), Ok(()));
        assert_eq!(label("app", ""), Ok(()));
        for (key, value) in [("", "a"), ("/a", "a"), ("A_/b", "c"), ("a", "-b"), ("a", "b c")] {
            assert!(label(key, value).is_err(), "{key}={value}");
        }
    }

    #[test]
    fn regexes_match_whole_values() {
        let regex = full_match_regex("/a|/b+").expect("valid");
        assert!(regex.is_match("/bb") && !regex.is_match("/bbc") && !regex.is_match("x/a"));
        for bad in ["(", "a)(b", "(?=a)", "\\1", "a{1000}{1000}{1000}"] {
            assert!(full_match_regex(bad).is_err(), "{bad}");
        }
    }
}
