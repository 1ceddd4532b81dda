//! The one normaliser of request targets.
//!
//! Routing, every policy and the backend must see the same path, byte for byte: whatever a policy was not shown can be
//! used to dodge it. So a target is parsed once, strictly (RFC 9112 section 3.2, RFC 3986 section 3), brought into one
//! form (RFC 3986 section 6.2.2), and that form is what is matched, logged and sent on.
//!
//! A target that is already in normal form is borrowed, not copied: one pass over a byte table decides.
//!
//! What is accepted beyond RFC 3986: the bytes `"<>^`{|}` that browsers and scripts put into targets unescaped are
//! escaped, and a `%` in a query that escapes nothing becomes `%25`; both mean the same to every decoder.

use std::borrow::Cow;

use http::Method;

/// How targets are normalised. The default is what Envoy recommends for an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathOptions {
    /// Removes dot segments (also written `%2e`), decodes escaped unreserved characters, writes escapes in upper case.
    pub normalize: bool,
    /// `//` becomes `/`.
    pub merge_slashes: bool,
    /// What `%2F` and `%5C` become.
    pub escaped_slashes: EscapedSlashes,
    /// What an unescaped backslash becomes; it is never passed on, for some servers read it as a slash.
    pub backslash: Backslash,
    /// What happens to `;name=value` inside path segments.
    pub path_params: PathParams,
}

impl Default for PathOptions {
    fn default() -> Self {
        PathOptions {
            normalize: true,
            merge_slashes: true,
            escaped_slashes: EscapedSlashes::UnescapeAndRedirect,
            backslash: Backslash::Reject,
            path_params: PathParams::Keep,
        }
    }
}

/// What `%2F` and `%5C` in a path become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// They stay escaped: for APIs that carry slashes inside one segment.
    Keep,
    /// The request is refused.
    Reject,
    /// They become slashes before dot segments are removed.
    Unescape,
    /// As `Unescape`, and [`Target::redirect`] asks the caller to send the client to the result, so that caches and
    /// servers in front of us learn the form that was judged.
    UnescapeAndRedirect,
}

/// What an unescaped backslash in a path becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backslash {
    /// The request is refused, as RFC 3986 has no such character.
    Reject,
    /// It becomes a slash, as browsers and Envoy do.
    Slash,
}

/// What happens to path parameters (`/cart;jsessionid=1`), which some servers strip before they look at dot segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathParams {
    /// Kept, except that `.;x` and `..;x` are refused: a server that strips parameters would climb up there.
    Keep,
    /// Removed, before dot segments are.
    Strip,
    /// Any `;` is refused.
    Reject,
}

/// The form of a request target (RFC 9112 section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `/path?query`
    Origin,
    /// `http://host/path?query`
    Absolute,
    /// `host:port`, only with CONNECT
    Authority,
    /// `*`, only with OPTIONS
    Asterisk,
}

/// A parsed and normalised request target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target<'a> {
    pub form: Form,
    /// `true` for `https`, `None` unless the form is absolute.
    pub secure: Option<bool>,
    /// As received; give it to [`crate::host::parse`]. Present in absolute and authority form.
    pub authority: Option<&'a [u8]>,
    /// Path and query to match and to forward: begins with `/`, or is `*`, or is empty in authority form. ASCII.
    pub path_and_query: Cow<'a, str>,
    path_len: usize,
    /// The client should be redirected to `path_and_query` ([`EscapedSlashes::UnescapeAndRedirect`]).
    pub redirect: bool,
}

impl Target<'_> {
    /// The normalised path, without query.
    pub fn path(&self) -> &str {
        self.path_and_query.get(..self.path_len).unwrap_or(&self.path_and_query)
    }

    /// What follows the first `?`.
    pub fn query(&self) -> Option<&str> {
        self.path_and_query.get(self.path_len + 1..)
    }

    /// Whether normalising changed nothing.
    pub fn is_clean(&self) -> bool {
        matches!(self.path_and_query, Cow::Borrowed(_))
    }
}

/// Why a target is refused; all of them are answered 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    #[error("the request target is empty")]
    Empty,
    #[error("the request target has a form that its method does not allow (RFC 9112 section 3.2)")]
    Form,
    #[error("the scheme of an absolute request target must be http or https")]
    Scheme,
    #[error("the authority of the request target is empty or malformed")]
    Authority,
    #[error("the request target has a byte that RFC 3986 does not allow: {0:#04x}")]
    Byte(u8),
    #[error("the path has a `%` that is not followed by two hex digits")]
    Escape,
    #[error("the path has an escaped NUL")]
    Nul,
    #[error("the path has an overlong UTF-8 sequence")]
    Overlong,
    #[error("the path has an escaped slash or backslash, which this listener refuses")]
    EscapedSlash,
    #[error("the path has a backslash, which this listener refuses")]
    Backslash,
    #[error("the path has a dot segment with parameters (`..;`)")]
    DotParams,
    #[error("the path has a path parameter (`;`), which this listener refuses")]
    PathParams,
}

/// Parses and normalises the target of an HTTP/1 request line, or `:path` of HTTP/2 and HTTP/3.
pub fn parse<'a>(method: &Method, target: &'a [u8], options: &PathOptions) -> Result<Target<'a>, UriError> {
    if *method == Method::CONNECT {
        return authority_form(target);
    }
    match target {
        [] => Err(UriError::Empty),
        [b'/', ..] => origin(target, options),
        b"*" if *method == Method::OPTIONS => Ok(Target {
            form: Form::Asterisk,
            secure: None,
            authority: None,
            path_and_query: Cow::Borrowed("*"),
            path_len: 1,
            redirect: false,
        }),
        _ => absolute(target, options),
    }
}

fn authority_form(target: &[u8]) -> Result<Target<'_>, UriError> {
    if target.is_empty() {
        return Err(UriError::Empty);
    }
    if let Some(&b) = target.iter().find(|b| !b.is_ascii_graphic()) {
        return Err(UriError::Byte(b));
    }
    // Only `host:port`: a path, a scheme or user information has no place here.
    if target.iter().any(|b| b"/?#@\\".contains(b)) || !target.contains(&b':') {
        return Err(UriError::Form);
    }
    Ok(Target {
        form: Form::Authority,
        secure: None,
        authority: Some(target),
        path_and_query: Cow::Borrowed(""),
        path_len: 0,
        redirect: false,
    })
}

fn absolute<'a>(target: &'a [u8], options: &PathOptions) -> Result<Target<'a>, UriError> {
    let colon = target.iter().position(|&b| b == b':').ok_or(UriError::Form)?;
    let (scheme, rest) = target.split_at(colon);
    let rest = rest.strip_prefix(b"://").ok_or(UriError::Form)?;
    let secure = if scheme.eq_ignore_ascii_case(b"http") {
        false
    } else if scheme.eq_ignore_ascii_case(b"https") {
        true
    } else {
        return Err(UriError::Scheme);
    };
    let end = rest.iter().position(|b| b"/?#\\".contains(b)).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() {
        return Err(UriError::Authority);
    }
    let target = match path {
        [] => clean("/", 1),
        [b'?', ..] => {
            let mut whole = Vec::with_capacity(path.len() + 1);
            whole.push(b'/');
            whole.extend_from_slice(path);
            let owned = origin(&whole, options)?;
            let path_len = owned.path_len;
            let text = owned.path_and_query.into_owned();
            Target { path_and_query: Cow::Owned(text), ..clean("/", path_len) }
        }
        _ => origin(path, options)?,
    };
    Ok(Target { form: Form::Absolute, secure: Some(secure), authority: Some(authority), ..target })
}

fn clean(text: &str, path_len: usize) -> Target<'_> {
    Target {
        form: Form::Origin,
        secure: None,
        authority: None,
        path_and_query: Cow::Borrowed(text),
        path_len,
        redirect: false,
    }
}

/// `target` begins with `/`, or is what follows an authority.
fn origin<'a>(target: &'a [u8], options: &PathOptions) -> Result<Target<'a>, UriError> {
    let (path_len, path_is_clean) = scan_path(target, options);
    let (path, query) = target.split_at(path_len);
    let query_is_clean = scan_query(query);
    if path_is_clean
        && query_is_clean
        && let Ok(text) = std::str::from_utf8(target)
    {
        return Ok(clean(text, path_len));
    }
    let mut out = Vec::with_capacity(target.len() + 16);
    let mut redirect = false;
    if path_is_clean {
        out.extend_from_slice(path);
    } else {
        redirect = rewrite_path(path, options, &mut out)?;
    }
    let path_len = out.len();
    rewrite_query(query, &mut out)?;
    // Every byte pushed is ASCII; a target that needed no change is given back borrowed all the same.
    let text = String::from_utf8(out).map_err(|_| UriError::Byte(0x80))?;
    let text = match std::str::from_utf8(target) {
        Ok(same) if same == text => Cow::Borrowed(same),
        _ => Cow::Owned(text),
    };
    Ok(Target { path_and_query: text, redirect, ..clean("/", path_len) })
}

/// A plain byte of a path: `pchar` without the ones below.
const PLAIN: u8 = 0;
/// `/`, `.`, `;`, `%`: fine or not by what stands beside it.
const LOOK: u8 = 1;
/// Not allowed unescaped by RFC 3986 but common: escaped.
const UNWISE: u8 = 2;
/// CTL, space, `#`, bytes over 0x7e.
const BAD: u8 = 3;
/// `?`
const QUERY: u8 = 4;

const CLASS: [u8; 256] = {
    let mut table = [BAD; 256];
    let mut b = 0x21;
    while b < 0x7f {
        table[b] = match b as u8 {
            b'/' | b'.' | b';' | b'%' => LOOK,
            b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | b'\\' => UNWISE,
            b'#' => BAD,
            b'?' => QUERY,
            _ => PLAIN,
        };
        b += 1;
    }
    table
};

/// The length of the path, and whether it is in normal form already.
fn scan_path(target: &[u8], options: &PathOptions) -> (usize, bool) {
    let mut clean = true;
    for (at, &b) in target.iter().enumerate() {
        match CLASS[usize::from(b)] {
            PLAIN => {}
            QUERY => return (at, clean),
            LOOK => clean = clean && keeps(target, at, b, options),
            _ => clean = false,
        }
    }
    (target.len(), clean)
}

/// Whether the byte `b` at `at` stays as it is in normal form.
fn keeps(target: &[u8], at: usize, b: u8, options: &PathOptions) -> bool {
    let before = |back: usize| at.checked_sub(back).and_then(|i| target.get(i)).copied();
    match b {
        b'/' => !(options.merge_slashes && before(1) == Some(b'/')),
        b'.' if before(1) == Some(b'/') && options.normalize => {
            let rest = target.get(at + 1..).unwrap_or_default();
            let rest = rest.strip_prefix(b".").unwrap_or(rest);
            // `.`, `..` and what could still become one of them after decoding or stripping.
            !matches!(rest.first(), None | Some(b'/' | b'?' | b'%' | b';' | b'\\'))
        }
        b';' => options.path_params == PathParams::Keep,
        b'%' => match escape(target, at) {
            // Lower-case digits, unreserved characters, slashes, NUL and possibly overlong UTF-8 need the long way.
            Some(value) => {
                let upper = |i: usize| target.get(i).is_some_and(|d| !d.is_ascii_lowercase());
                (!options.normalize || (upper(at + 1) && upper(at + 2) && !unreserved(value)))
                    && !matches!(value, 0 | b'/' | b'\\' | 0xC0 | 0xC1 | 0xE0 | 0xF0)
            }
            None => false,
        },
        _ => true,
    }
}

/// `query` is empty or begins with `?`.
fn scan_query(query: &[u8]) -> bool {
    query.iter().enumerate().all(|(at, &b)| match CLASS[usize::from(b)] {
        PLAIN | QUERY => true,
        LOOK => b != b'%' || escape(query, at).is_some(),
        _ => false,
    })
}

fn rewrite_query(query: &[u8], out: &mut Vec<u8>) -> Result<(), UriError> {
    for (at, &b) in query.iter().enumerate() {
        match CLASS[usize::from(b)] {
            BAD => return Err(UriError::Byte(b)),
            UNWISE => push_escape(b, out),
            LOOK if b == b'%' && escape(query, at).is_none() => push_escape(b'%', out),
            _ => out.push(b),
        }
    }
    Ok(())
}

/// Appends the normal form of `path`; says whether the client should be redirected to it.
fn rewrite_path(path: &[u8], options: &PathOptions, out: &mut Vec<u8>) -> Result<bool, UriError> {
    let mut redirect = false;
    let mut decoded = Vec::with_capacity(path.len() + 16);
    let mut at = 0;
    while let Some(&b) = path.get(at) {
        at += 1;
        match CLASS[usize::from(b)] {
            BAD | QUERY => return Err(UriError::Byte(b)),
            UNWISE if b != b'\\' => push_escape(b, &mut decoded),
            UNWISE => match options.backslash {
                Backslash::Reject => return Err(UriError::Backslash),
                Backslash::Slash => decoded.push(b'/'),
            },
            LOOK if b == b'%' => {
                let value = escape(path, at - 1).ok_or(UriError::Escape)?;
                overlong(path, at - 1, value)?;
                redirect |= push_decoded(path, at, value, options, &mut decoded)?;
                at += 2;
            }
            _ => decoded.push(b),
        }
    }
    segments(&decoded, options, out)?;
    Ok(redirect)
}

/// Pushes the meaning of one escape whose digits stand at `at`; says whether it was an escaped slash to redirect for.
fn push_decoded(path: &[u8], at: usize, value: u8, options: &PathOptions, out: &mut Vec<u8>) -> Result<bool, UriError> {
    match value {
        0 => return Err(UriError::Nul),
        b'/' | b'\\' => match options.escaped_slashes {
            EscapedSlashes::Reject => return Err(UriError::EscapedSlash),
            EscapedSlashes::Keep => {}
            EscapedSlashes::Unescape => {
                out.push(b'/');
                return Ok(false);
            }
            EscapedSlashes::UnescapeAndRedirect => {
                out.push(b'/');
                return Ok(true);
            }
        },
        _ => {}
    }
    if !options.normalize {
        out.push(b'%');
        out.extend_from_slice(path.get(at..at + 2).unwrap_or_default());
    } else if unreserved(value) {
        out.push(value);
    } else {
        push_escape(value, out);
    }
    Ok(false)
}

/// Splits `decoded` into segments, drops parameters, dot segments (RFC 3986 section 5.2.4) and empty segments.
fn segments(decoded: &[u8], options: &PathOptions, out: &mut Vec<u8>) -> Result<(), UriError> {
    let start = out.len();
    let body = decoded.strip_prefix(b"/").ok_or(UriError::Form)?;
    out.push(b'/');
    let mut pieces = body.split(|&b| b == b'/').peekable();
    while let Some(piece) = pieces.next() {
        let last = pieces.peek().is_none();
        let segment = strip_params(piece, options)?;
        match segment {
            b"." if options.normalize => {}
            b".." if options.normalize => pop_segment(start, out),
            b"" if options.merge_slashes && !last => {}
            _ => {
                out.extend_from_slice(segment);
                if !last {
                    out.push(b'/');
                }
            }
        }
    }
    // Dot segments may have brought two slashes together that were apart before.
    if options.merge_slashes {
        let mut previous = 0;
        let mut keep = start;
        for at in start..out.len() {
            let b = out[at];
            if !(b == b'/' && previous == b'/') {
                out[keep] = b;
                keep += 1;
            }
            previous = b;
        }
        out.truncate(keep);
    }
    Ok(())
}

/// Removes the last segment of `out`, which ends in `/`, but never the first slash.
fn pop_segment(start: usize, out: &mut Vec<u8>) {
    if out.len() > start + 1 {
        out.pop();
        while out.len() > start + 1 && out.last() != Some(&b'/') {
            out.pop();
        }
    }
}

fn strip_params<'a>(segment: &'a [u8], options: &PathOptions) -> Result<&'a [u8], UriError> {
    let semicolon = segment.iter().position(|&b| b == b';');
    let stripped = match (semicolon, options.path_params) {
        (Some(_), PathParams::Reject) => return Err(UriError::PathParams),
        (Some(at), PathParams::Strip) => segment.get(..at).unwrap_or(segment),
        _ => segment,
    };
    let dots = stripped.strip_prefix(b".").map(|rest| rest.strip_prefix(b".").unwrap_or(rest));
    let dodges = |rest: &[u8]| rest.starts_with(b";") || (rest.len() >= 3 && rest[..3].eq_ignore_ascii_case(b"%3b"));
    match dots {
        Some(rest) if options.normalize && dodges(rest) => Err(UriError::DotParams),
        _ => Ok(stripped),
    }
}

/// Refuses the two-, three- and four-byte UTF-8 forms of characters that need fewer bytes (RFC 3629 section 3): lenient
/// decoders read `%C0%AF` as a slash.
fn overlong(path: &[u8], at: usize, value: u8) -> Result<(), UriError> {
    let limit = match value {
        0xC0 | 0xC1 => 0xC0,
        0xE0 => 0xA0,
        0xF0 => 0x90,
        _ => return Ok(()),
    };
    match path.get(at + 3).filter(|&&b| b == b'%').and_then(|_| escape(path, at + 3)) {
        Some(next) if (0x80..limit).contains(&next) => Err(UriError::Overlong),
        _ => Ok(()),
    }
}

/// The value of the escape whose `%` stands at `at`.
fn escape(text: &[u8], at: usize) -> Option<u8> {
    let digit = |i: usize| text.get(i).and_then(|&d| (d as char).to_digit(16));
    let value = digit(at + 1)? * 16 + digit(at + 2)?;
    u8::try_from(value).ok()
}

fn push_escape(value: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.extend_from_slice(&[b'%', HEX[usize::from(value >> 4)], HEX[usize::from(value & 15)]]);
}

fn unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(target: &str) -> Result<(String, bool), UriError> {
        with(target, &PathOptions::default())
    }

    fn with(target: &str, options: &PathOptions) -> Result<(String, bool), UriError> {
        parse(&Method::GET, target.as_bytes(), options).map(|t| (t.path_and_query.clone().into_owned(), t.redirect))
    }

    fn same(target: &str) {
        let parsed = parse(&Method::GET, target.as_bytes(), &PathOptions::default());
        let parsed = parsed.unwrap_or_else(|e| panic!("{target}: {e}"));
        assert_eq!(parsed.path_and_query, target);
        assert!(parsed.is_clean(), "{target} was copied");
    }

    #[test]
    fn clean_targets_are_borrowed() {
        for target in [
            "/",
            "/a",
            "/a/",
            "/a/b.c/..d/...",
            "/.well-known/acme",
            "/a%20b",
            "/caf%C3%A9",
            "/cart;id=1",
            "/a?",
            "/a?b=c&d",
            "/a?x=/../y//z",
            "/a:b@c!$&'()*+,=~-_",
            "/a[0]",
            "/%E2%82%AC",
            "/%252f",
            "/a?%2e%2E",
        ] {
            same(target);
        }
    }

    #[test]
    fn dirty_targets_become_one_form() {
        for (from, to) in [
            ("/%61dmin", "/admin"),
            ("/a/../b", "/b"),
            ("/a/./b", "/a/b"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/../../a", "/a"),
            ("/%2e%2e/admin", "/admin"),
            ("/x/%2E%2e/admin", "/admin"),
            ("/x/.%2e/admin", "/admin"),
            ("/x/%2e./admin", "/admin"),
            ("//admin", "/admin"),
            ("/a//b///c", "/a/b/c"),
            ("/a//../b", "/b"),
            ("/a/b/..//c", "/a/c"),
            ("/%c3%a9", "/%C3%A9"),
            ("/a|b{c}", "/a%7Cb%7Bc%7D"),
            ("/a?b=\"x\"", "/a?b=%22x%22"),
            ("/a?b=50%", "/a?b=50%25"),
            ("/a?b=%zz", "/a?b=%25zz"),
            ("/a?b=\\", "/a?b=%5C"),
            ("/x/..?q", "/?q"),
        ] {
            assert_eq!(get(from), Ok((to.into(), false)), "{from}");
        }
    }

    #[test]
    fn escaped_slashes_follow_the_option() {
        let option = |escaped_slashes| PathOptions { escaped_slashes, ..PathOptions::default() };
        assert_eq!(get("/a/..%2fadmin"), Ok(("/admin".into(), true)));
        assert_eq!(get("/a%5cb"), Ok(("/a/b".into(), true)));
        assert_eq!(with("/a%2fb", &option(EscapedSlashes::Keep)), Ok(("/a%2Fb".into(), false)));
        assert_eq!(with("/a%2Fb", &option(EscapedSlashes::Unescape)), Ok(("/a/b".into(), false)));
        assert_eq!(with("/a%2fb", &option(EscapedSlashes::Reject)), Err(UriError::EscapedSlash));
        assert_eq!(with("/a%5Cb", &option(EscapedSlashes::Reject)), Err(UriError::EscapedSlash));
    }

    #[test]
    fn what_could_dodge_a_policy_is_refused() {
        for (target, error) in [
            ("/a/..;/admin", UriError::DotParams),
            ("/user/..;foo=bar/admin", UriError::DotParams),
            ("/a/.;x/b", UriError::DotParams),
            ("/a/%2e%2e;/b", UriError::DotParams),
            ("/a/..%3b/b", UriError::DotParams),
            ("/a\\b", UriError::Backslash),
            ("/a#b", UriError::Byte(b'#')),
            ("/a?b#c", UriError::Byte(b'#')),
            ("/a b", UriError::Byte(b' ')),
            ("/a\tb", UriError::Byte(b'\t')),
            ("/a\u{7f}", UriError::Byte(0x7f)),
            ("/é", UriError::Byte(0xc3)),
            ("/a?é", UriError::Byte(0xc3)),
            ("/a%00", UriError::Nul),
            ("/a%", UriError::Escape),
            ("/a%2", UriError::Escape),
            ("/a%zz", UriError::Escape),
            ("/%c0%af", UriError::Overlong),
            ("/%c0%ae%c0%ae/", UriError::Overlong),
            ("/%E0%80%AF", UriError::Overlong),
            ("/%F0%80%80%AF", UriError::Overlong),
            ("", UriError::Empty),
            ("admin", UriError::Form),
            ("*", UriError::Form),
            ("http:/a", UriError::Form),
            ("http:///a", UriError::Authority),
            ("ftp://a/", UriError::Scheme),
        ] {
            assert_eq!(get(target), Err(error), "{target}");
        }
    }

    #[test]
    fn path_params_follow_the_option() {
        let strip = PathOptions { path_params: PathParams::Strip, ..PathOptions::default() };
        assert_eq!(with("/admin;x=y/b;z", &strip), Ok(("/admin/b".into(), false)));
        assert_eq!(with("/a/..;x/admin", &strip), Ok(("/admin".into(), false)));
        let reject = PathOptions { path_params: PathParams::Reject, ..PathOptions::default() };
        assert_eq!(with("/admin;x", &reject), Err(UriError::PathParams));
        assert_eq!(with("/a?b;c", &reject), Ok(("/a?b;c".into(), false)));
    }

    #[test]
    fn options_off_change_nothing() {
        let off = PathOptions {
            normalize: false,
            merge_slashes: false,
            escaped_slashes: EscapedSlashes::Keep,
            backslash: Backslash::Slash,
            path_params: PathParams::Keep,
        };
        for target in ["/a/../b", "//a", "/%61", "/%c3"] {
            assert_eq!(with(target, &off), Ok((target.into(), false)));
        }
        assert_eq!(with("/a\\b", &off), Ok(("/a/b".into(), false)));
    }

    #[test]
    fn forms_belong_to_methods() {
        let options = PathOptions::default();
        let parsed = parse(&Method::GET, b"HTTP://Shop.example:80/a/../b?c", &options).unwrap();
        assert_eq!((parsed.form, parsed.secure), (Form::Absolute, Some(false)));
        assert_eq!(parsed.authority, Some(&b"Shop.example:80"[..]));
        assert_eq!((parsed.path(), parsed.query()), ("/b", Some("c")));
        let parsed = parse(&Method::GET, b"https://a?x", &options).unwrap();
        assert_eq!((parsed.path(), parsed.query(), parsed.secure), ("/", Some("x"), Some(true)));
        let parsed = parse(&Method::GET, b"http://a", &options).unwrap();
        assert_eq!((parsed.path(), parsed.query()), ("/", None));
        assert_eq!(parse(&Method::OPTIONS, b"*", &options).unwrap().form, Form::Asterisk);
        let connect = parse(&Method::CONNECT, b"a:443", &options).unwrap();
        assert_eq!((connect.form, connect.authority), (Form::Authority, Some(&b"a:443"[..])));
        for bad in ["/", "a", "http://a:1/", "u@a:1", ""] {
            assert!(parse(&Method::CONNECT, bad.as_bytes(), &options).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn normalising_is_idempotent_and_leaves_nothing_to_dodge_with(target in "/([a-c/.;%\\\\?|]|%2[eEfF]|%5c|%61|%C3%A9){0,24}") {
            for escaped_slashes in [EscapedSlashes::Keep, EscapedSlashes::Unescape] {
                for path_params in [PathParams::Keep, PathParams::Strip] {
                    let options = PathOptions { escaped_slashes, path_params, backslash: Backslash::Slash, ..PathOptions::default() };
                    if let Ok(once) = parse(&Method::GET, target.as_bytes(), &options) {
                        let twice = parse(&Method::GET, once.path_and_query.as_bytes(), &options).unwrap();
                        prop_assert_eq!(&twice.path_and_query, &once.path_and_query);
                        prop_assert!(twice.is_clean());
                        let path = once.path();
                        prop_assert!(path.starts_with('/') && !path.contains("//") && !path.contains('\\'), "{}", path);
                        prop_assert!(!path.split('/').any(|s| s == "." || s == ".."), "{}", path);
                    }
                }
            }
        }

        #[test]
        fn any_bytes_are_survived(target in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&Method::GET, &target, &PathOptions::default());
            let _ = parse(&Method::CONNECT, &target, &PathOptions::default());
        }
    }
}
