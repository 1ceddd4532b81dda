//! Trace context in and out: W3C `traceparent` and `tracestate`, B3 in one field and in several.
//!
//! Identifiers come from the caller, so that tests are repeatable.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Members of `tracestate` (W3C Trace Context section 3.3.1.1).
pub const MAX_STATE_MEMBERS: usize = 32;
/// Bytes of `tracestate` passed on; the standard asks for at least 512.
pub const MAX_STATE_BYTES: usize = 2048;
/// Bytes and members of `baggage` (W3C Baggage section 3.3.2).
pub const MAX_BAGGAGE_BYTES: usize = 8192;
pub const MAX_BAGGAGE_MEMBERS: usize = 180;

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
static BAGGAGE: HeaderName = HeaderName::from_static("baggage");
static B3: HeaderName = HeaderName::from_static("b3");
static B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
static B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
static B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
static B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
static B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// How a context is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    W3c,
    B3Single,
    B3Multi,
}

/// A place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Never zero.
    pub trace_id: u128,
    /// Never zero.
    pub span_id: u64,
    /// The span above, if known.
    pub parent_id: Option<u64>,
    pub sampled: bool,
    /// B3 debug: sampled, whatever samplers say.
    pub debug: bool,
    /// The trace id was made at random (W3C level 2).
    pub random: bool,
}

/// What a request said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Incoming {
    pub context: Option<TraceContext>,
    /// The decision of the caller. B3 can carry one without a context, and a context without one.
    pub sampled: Option<bool>,
    /// In which form it was said; `None` if nothing valid was.
    pub format: Option<Format>,
}

/// Reads the context of a request. `traceparent` counts first, then `b3`, then `x-b3-*`; an invalid or repeated field
/// counts as absent.
pub fn extract(headers: &HeaderMap) -> Incoming {
    if let Some(context) = single(headers, &TRACEPARENT).and_then(parse_traceparent) {
        return Incoming { context: Some(context), sampled: Some(context.sampled), format: Some(Format::W3c) };
    }
    if let Some((context, sampled)) = single(headers, &B3).and_then(parse_b3) {
        return Incoming { context, sampled, format: Some(Format::B3Single) };
    }
    match parse_b3_multi(headers) {
        Some((context, sampled)) => Incoming { context, sampled, format: Some(Format::B3Multi) },
        None => Incoming::default(),
    }
}

/// The trace that a request names, in whichever form: what [`extract`] finds, for less where there is nothing.
pub fn trace_id(headers: &HeaderMap) -> Option<u128> {
    let any = [&TRACEPARENT, &B3, &B3_TRACE].into_iter().any(|name| headers.contains_key(name));
    if any { extract(headers).context.map(|context| context.trace_id) } else { None }
}

impl TraceContext {
    /// A new trace; `None` if an identifier is zero.
    pub fn root(trace_id: u128, span_id: u64, sampled: bool) -> Option<Self> {
        (trace_id != 0 && span_id != 0).then_some(TraceContext {
            trace_id,
            span_id,
            parent_id: None,
            sampled,
            debug: false,
            random: true,
        })
    }

    /// The context of a span below this one.
    pub fn child(&self, span_id: u64) -> Self {
        TraceContext { span_id, parent_id: Some(self.span_id), ..*self }
    }

    /// Replaces what the request said in this format. `tracestate` is left alone; see [`check_tracestate`].
    pub fn inject(&self, format: Format, headers: &mut HeaderMap) {
        match format {
            Format::W3c => put(headers, &TRACEPARENT, &self.traceparent()),
            Format::B3Single => put(headers, &B3, self.b3().as_bytes()),
            Format::B3Multi => {
                put(headers, &B3_TRACE, &hex::<32>(self.trace_id));
                put(headers, &B3_SPAN, &hex::<16>(self.span_id.into()));
                match self.parent_id {
                    Some(parent) => put(headers, &B3_PARENT, &hex::<16>(parent.into())),
                    None => drop(headers.remove(&B3_PARENT)),
                }
                if self.debug {
                    put(headers, &B3_FLAGS, b"1");
                    headers.remove(&B3_SAMPLED);
                } else {
                    put(headers, &B3_SAMPLED, if self.sampled { b"1" } else { b"0" });
                    headers.remove(&B3_FLAGS);
                }
            }
        }
    }

    /// `00-<trace>-<span>-<flags>`
    pub fn traceparent(&self) -> [u8; 55] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        text[3..35].copy_from_slice(&hex::<32>(self.trace_id));
        text[36..52].copy_from_slice(&hex::<16>(self.span_id.into()));
        text[54] = b'0' + u8::from(self.sampled) + 2 * u8::from(self.random);
        text
    }

    /// `<trace>-<span>-<decision>[-<parent>]`
    pub fn b3(&self) -> String {
        let decision = match (self.debug, self.sampled) {
            (true, _) => 'd',
            (false, true) => '1',
            (false, false) => '0',
        };
        match self.parent_id {
            Some(parent) => format!("{:032x}-{:016x}-{decision}-{parent:016x}", self.trace_id, self.span_id),
            None => format!("{:032x}-{:016x}-{decision}", self.trace_id, self.span_id),
        }
    }
}

/// Parses `traceparent` (W3C Trace Context section 3.2).
pub fn parse_traceparent(value: &[u8]) -> Option<TraceContext> {
    let (head, rest) = value.split_at_checked(55)?;
    let version = number(&head[..2], 2)?;
    let dashes = [head[2], head[35], head[52]].iter().all(|&b| b == b'-');
    // Later versions may append fields; 255 is forbidden.
    let length = if version == 0 { rest.is_empty() } else { rest.is_empty() || rest.starts_with(b"-") };
    if !dashes || !length || version == 0xff {
        return None;
    }
    let flags = number(&head[53..], 2)?;
    Some(TraceContext {
        trace_id: number(&head[3..35], 32).filter(|&id| id != 0)?,
        span_id: span(&head[36..52])?,
        parent_id: None,
        sampled: flags & 1 == 1,
        debug: false,
        random: flags & 2 == 2,
    })
}

/// Parses `b3`: a context with or without decision, or a decision alone.
pub fn parse_b3(value: &[u8]) -> Option<(Option<TraceContext>, Option<bool>)> {
    if let Some((sampled, _)) = decision(value) {
        return Some((None, Some(sampled)));
    }
    let mut parts = value.split(|&b| b == b'-');
    let (trace, span_id) = (parts.next()?, parts.next()?);
    let decision = match parts.next() {
        Some(text) => Some(decision(text)?),
        None => None,
    };
    let parent_id = match parts.next() {
        Some(text) => Some(span(text)?),
        None => None,
    };
    if parts.next().is_some() {
        return None;
    }
    b3_context(trace, span_id, parent_id, decision)
}

fn parse_b3_multi(headers: &HeaderMap) -> Option<(Option<TraceContext>, Option<bool>)> {
    let debug = single(headers, &B3_FLAGS) == Some(b"1");
    let decision = match single(headers, &B3_SAMPLED) {
        _ if debug => Some((true, true)),
        Some(b"true") => Some((true, false)),
        Some(b"false") => Some((false, false)),
        Some(text) => decision(text).filter(|(_, debug)| !debug),
        None => None,
    };
    let parent_id = single(headers, &B3_PARENT).and_then(span);
    match (single(headers, &B3_TRACE), single(headers, &B3_SPAN)) {
        (Some(trace), Some(span_id)) => b3_context(trace, span_id, parent_id, decision),
        _ => decision.map(|(sampled, _)| (None, Some(sampled))),
    }
}

fn b3_context(
    trace: &[u8],
    span_id: &[u8],
    parent_id: Option<u64>,
    decision: Option<(bool, bool)>,
) -> Option<(Option<TraceContext>, Option<bool>)> {
    let digits = if trace.len() == 16 { 16 } else { 32 };
    let context = TraceContext {
        trace_id: number(trace, digits).filter(|&id| id != 0)?,
        span_id: span(span_id)?,
        parent_id,
        sampled: decision.is_some_and(|(sampled, _)| sampled),
        debug: decision.is_some_and(|(_, debug)| debug),
        random: false,
    };
    Some((Some(context), decision.map(|(sampled, _)| sampled)))
}

/// `(sampled, debug)`
fn decision(text: &[u8]) -> Option<(bool, bool)> {
    match text {
        b"0" => Some((false, false)),
        b"1" => Some((true, false)),
        b"d" => Some((true, true)),
        _ => None,
    }
}

/// Checks `tracestate` and merges its lines into one; an invalid or too long one is removed, as the standard allows.
/// Without a valid `traceparent` it means nothing and is removed as well.
pub fn check_tracestate(headers: &mut HeaderMap, incoming: &Incoming) {
    if !headers.contains_key(&TRACESTATE) {
        return;
    }
    let merged = merged(headers, &TRACESTATE, MAX_STATE_BYTES)
        .filter(|text| incoming.format == Some(Format::W3c) && valid_tracestate(text));
    match merged.and_then(|text| HeaderValue::from_bytes(&text).ok()) {
        Some(value) => drop(headers.insert(TRACESTATE.clone(), value)),
        None => drop(headers.remove(&TRACESTATE)),
    }
}

/// Removes `baggage` when it is over the limits of its standard; otherwise it is passed on as it is.
pub fn check_baggage(headers: &mut HeaderMap) {
    let lines = headers.get_all(&BAGGAGE).iter();
    let (bytes, members) = lines.fold((0, 0), |(bytes, members), line| {
        let commas = line.as_bytes().iter().filter(|&&b| b == b',').count();
        (bytes + line.len() + 2, members + commas + 1)
    });
    if bytes > MAX_BAGGAGE_BYTES + 2 || members > MAX_BAGGAGE_MEMBERS {
        headers.remove(&BAGGAGE);
    }
}

/// W3C Trace Context section 3.3.1.
pub fn valid_tracestate(text: &[u8]) -> bool {
    let mut keys: Vec<&[u8]> = Vec::new();
    for member in text.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|m| !m.is_empty()) {
        let Some(equals) = member.iter().position(|&b| b == b'=') else { return false };
        let (key, value) = (&member[..equals], &member[equals + 1..]);
        let fits = valid_key(key) && valid_value(value) && !keys.contains(&key) && keys.len() < MAX_STATE_MEMBERS;
        if !fits {
            return false;
        }
        keys.push(key);
    }
    !keys.is_empty()
}

fn valid_key(key: &[u8]) -> bool {
    let tail = |text: &[u8]| {
        text.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'*' | b'/'))
    };
    match key.iter().position(|&b| b == b'@') {
        Some(at) => {
            let (tenant, system) = (&key[..at], &key[at + 1..]);
            let first = |text: &[u8], digit: bool| {
                text.first().is_some_and(|b| b.is_ascii_lowercase() || (digit && b.is_ascii_digit()))
            };
            first(tenant, true)
                && tenant.len() <= 241
                && tail(tenant)
                && first(system, false)
                && system.len() <= 14
                && tail(system)
        }
        None => key.first().is_some_and(u8::is_ascii_lowercase) && key.len() <= 256 && tail(key),
    }
}

fn valid_value(value: &[u8]) -> bool {
    let allowed = |b: &u8| (0x20..=0x7e).contains(b) && !matches!(b, b',' | b'=');
    (1..=256).contains(&value.len()) && value.iter().all(allowed) && value.last() != Some(&b' ')
}

/// All lines of a field as one list, or `None` if that is longer than `limit`.
fn merged(headers: &HeaderMap, name: &HeaderName, limit: usize) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    for line in headers.get_all(name) {
        if !text.is_empty() {
            text.push(b',');
        }
        text.extend_from_slice(line.as_bytes());
        if text.len() > limit {
            return None;
        }
    }
    Some(text)
}

/// The value of a field that must not be repeated.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Some(value.as_bytes()),
        _ => None,
    }
}

fn span(text: &[u8]) -> Option<u64> {
    number(text, 16).and_then(|id| u64::try_from(id).ok()).filter(|&id| id != 0)
}

/// Exactly so many lower-case hex digits; at most 32.
fn number(text: &[u8], digits: usize) -> Option<u128> {
    if text.len() != digits {
        return None;
    }
    text.iter().try_fold(0u128, |sum, &d| match d {
        b'0'..=b'9' => Some(sum << 4 | u128::from(d - b'0')),
        b'a'..=b'f' => Some(sum << 4 | u128::from(d - b'a' + 10)),
        _ => None,
    })
}

fn hex<const N: usize>(mut value: u128) -> [u8; N] {
    let mut text = [b'0'; N];
    for digit in text.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
    text
}

fn put(headers: &mut HeaderMap, name: &HeaderName, value: &[u8]) {
    // Hex digits and dashes are always a valid value.
    if let Ok(value) = HeaderValue::from_bytes(value) {
        headers.insert(name.clone(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn traceparent_is_read_strictly() {
        let context = parse_traceparent(PARENT.as_bytes()).unwrap();
        assert_eq!(context.trace_id, 0x0af7651916cd43dd8448eb211c80319c);
        assert_eq!((context.span_id, context.sampled), (0xb7ad6b7169203331, true));
        assert_eq!(context.traceparent(), PARENT.as_bytes());
        assert!(parse_traceparent(b"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more").is_some());
        for bad in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
        ] {
            assert_eq!(parse_traceparent(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_trace_is_named_by_the_first_form_that_is_valid() {
        let w3c = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        let b3 = ("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1");
        let multi = [("x-b3-traceid", "64fe8b2a57d3eff7"), ("x-b3-spanid", "e457b5a2e4d86bd1")];
        let id = |fields: &[(&'static str, &'static str)]| trace_id(&map(fields));
        assert_eq!(id(&[w3c, b3, multi[0], multi[1]]), Some(0x0af7651916cd43dd8448eb211c80319c));
        assert_eq!(id(&[("traceparent", "00-0-0-0"), b3]), Some(0x80f198ee56343ba864fe8b2a57d3eff7));
        assert_eq!(id(&multi), Some(0x64fe8b2a57d3eff7));
        for none in [&[][..], &[("b3", "0")], &multi[..1], &[("x-b3-sampled", "1")], &[("x-b3-traceid", "x"), multi[1]]]
        {
            assert_eq!(id(none), None, "{none:?}");
        }
    }

    #[test]
    fn b3_is_read_in_all_its_forms() {
        let (context, sampled) =
            parse_b3(b"80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90").unwrap();
        assert_eq!((context.unwrap().parent_id, sampled), (Some(0x05e3ac9a4f6e3b90), Some(true)));
        let (context, sampled) = parse_b3(b"64fe8b2a57d3eff7-e457b5a2e4d86bd1").unwrap();
        assert_eq!((context.unwrap().trace_id, sampled), (0x64fe8b2a57d3eff7, None));
        assert_eq!(parse_b3(b"0"), Some((None, Some(false))));
        assert!(parse_b3(b"64fe8b2a57d3eff7-e457b5a2e4d86bd1-d").unwrap().0.unwrap().debug);
        for bad in
            ["", "2", "64fe8b2a57d3eff7", "64fe-e457b5a2e4d86bd1-1", "64fe8b2a57d3eff7-e457b5a2e4d86bd1-x", "a-b-c-d-e"]
        {
            assert_eq!(parse_b3(bad.as_bytes()), None, "{bad}");
        }
        let multi =
            map(&[("x-b3-traceid", "64fe8b2a57d3eff7"), ("x-b3-spanid", "e457b5a2e4d86bd1"), ("x-b3-sampled", "true")]);
        let incoming = extract(&multi);
        assert_eq!((incoming.format, incoming.sampled), (Some(Format::B3Multi), Some(true)));
        assert_eq!(extract(&map(&[("x-b3-sampled", "0")])).sampled, Some(false));
    }

    #[test]
    fn w3c_counts_first_and_repeats_count_as_absent() {
        let b3 = ("b3", "64fe8b2a57d3eff7-e457b5a2e4d86bd1-0");
        assert_eq!(extract(&map(&[b3, ("traceparent", PARENT)])).format, Some(Format::W3c));
        assert_eq!(extract(&map(&[b3, ("traceparent", "junk")])).format, Some(Format::B3Single));
        assert_eq!(extract(&map(&[("traceparent", PARENT), ("traceparent", PARENT)])), Incoming::default());
    }

    #[test]
    fn what_is_injected_is_extracted() {
        let root = TraceContext::root(7, 9, true).unwrap();
        assert_eq!(TraceContext::root(0, 9, true), None);
        let child = root.child(11);
        for format in [Format::W3c, Format::B3Single, Format::B3Multi] {
            let mut headers = HeaderMap::new();
            child.inject(format, &mut headers);
            let incoming = extract(&headers);
            let context = incoming.context.unwrap();
            assert_eq!((incoming.format, incoming.sampled), (Some(format), Some(true)));
            assert_eq!((context.trace_id, context.span_id), (7, 11));
            assert_eq!(context.parent_id, (format != Format::W3c).then_some(9));
        }
    }

    #[test]
    fn tracestate_and_baggage_have_limits() {
        assert!(valid_tracestate(b"rojo=00f067aa0ba902b7, congo=t61rcWkgMzE,,fw529a3039@dt=1"));
        for bad in ["", "a", "A=1", "a=1,a=2", "a=", "a=b=c", "1a=b", "a@1b=c", "a=\u{e9}"] {
            assert!(!valid_tracestate(bad.as_bytes()), "{bad}");
        }
        let mut headers = map(&[("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")]);
        let incoming = extract(&headers);
        check_tracestate(&mut headers, &incoming);
        assert_eq!(headers["tracestate"], "a=1,b=2");
        check_tracestate(&mut headers, &Incoming::default());
        assert!(!headers.contains_key("tracestate"));
        headers.insert("baggage", "a=1,b=2".parse().unwrap());
        check_baggage(&mut headers);
        assert_eq!(headers["baggage"], "a=1,b=2");
        headers.insert("baggage", "a".repeat(9000).parse().unwrap());
        check_baggage(&mut headers);
        assert!(!headers.contains_key("baggage"));
    }
}
