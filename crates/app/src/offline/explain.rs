//! `selvedge explain`: what a request would meet, or what a code of a diagnostic means.

use super::{input, text, tint::Tint};
use crate::output::print;
use anyhow::{Context, Result, bail, ensure};
use clap::{Args as ClapArgs, ValueEnum};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header::HOST};
use selvedge_compile::{
    Arrival, BackendShare, Explanation, LocalWorkload, Options, Ports, Position, Question, Request, Ruling, explain,
    explain_outbound, may,
};
use selvedge_model::{Code, Resources, diagnostic::nearest};
use selvedge_wire::{hop, host, spiffe::SpiffeId};
use serde_json::{Map, Value};
use std::{
    fmt::{self, Write},
    io,
    net::IpAddr,
    path::PathBuf,
    process::ExitCode,
};

#[derive(Debug, Clone, ClapArgs)]
#[command(
    override_usage = "selvedge explain [OPTIONS] --file <DIR> [METHOD] <URL>\n       selvedge explain <CODE>",
    after_help = "Examples:
  selvedge explain -f conf GET https://shop.example/cart -H 'x-canary: 1' --from 10.0.0.1
  selvedge explain -f conf https://shop.example/admin --from-identity spiffe://cluster.local/ns/shop/sa/cart
  selvedge explain -f conf https://shop.example/admin --claim sub=anna --claim 'roles=[\"admin\"]'
  selvedge explain -f conf --workload shop/web GET http://orders/cart
  selvedge explain SELV0204"
)]
pub struct Args {
    /// Folder or file of YAML or JSON resources, or `-` for standard input; may be given several times.
    #[arg(short = 'f', long = "file", value_name = "DIR")]
    pub files: Vec<PathBuf>,
    /// Method (GET when it is left out) and URL; or the code of a diagnostic.
    #[arg(value_names = ["METHOD", "URL"], num_args = 1..=2, required = true)]
    pub what: Vec<String>,
    /// Workload of a mesh that makes the request; without it, a client of a Gateway does. Whether the workloads that it leads to
    /// let it in is told too, as `selvedge may` tells it for any caller.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub workload: Option<String>,
    /// Header of the request; may be given several times.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub headers: Vec<String>,
    /// Address of whoever connects: the client, or the last proxy in front of the gateway.
    #[arg(long, value_name = "IP")]
    pub from: Option<IpAddr>,
    /// Identity of the client, as mutual TLS would prove it.
    #[arg(long, value_name = "SPIFFE ID")]
    pub from_identity: Option<SpiffeId>,
    /// Claim of the client's token, as if it had been verified; `/` leads into objects. Values are JSON, such as `["admin"]`, or
    /// else texts; a name that is given again makes a list.
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    pub claims: Vec<String>,
    /// How the answer is written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// Exits with 2 when no route takes the request.
pub fn run(args: &Args) -> Result<ExitCode> {
    let (method, url) = match args.what.as_slice() {
        [code] if is_code(code) => return meaning(code),
        [url] => ("GET", url.as_str()),
        [method, url] => (method.as_str(), url.as_str()),
        _ => bail!("name a method and a URL"),
    };
    ensure!(!args.files.is_empty(), "name the folder with the resources: -f DIR");
    let mut request = request(method, url, &args.headers, args.from)?;
    request.identity.clone_from(&args.from_identity);
    request.claims = claims(&args.claims)?;
    let (input, explanation) = match &args.workload {
        None => {
            let input = input::read(&args.files)?;
            let explanation = explain(&input.compiled.snapshot, &request);
            (input, explanation)
        }
        Some(workload) => {
            let (namespace, name) = workload.split_once('/').unwrap_or(("default", workload));
            let input = input::read_for(&args.files, beside(namespace, name))?;
            let mut explanation = explain_outbound(&input.compiled.snapshot, (namespace, name), &request);
            explanation.admission = admission(input.folder.resources(), (namespace, name), &request, &explanation);
            (input, explanation)
        }
    };
    match args.format {
        Format::Json => print(&format!("{}\n", serde_json::to_string_pretty(&explanation)?))?,
        Format::Text => {
            let tint = Tint::of(&io::stdout());
            if input.has_errors() {
                eprintln!(
                    "{}; `selvedge check` shows them. What follows is without the broken parts.\n",
                    text::summary(&input, tint)
                );
            }
            let from = args.from.map(|ip| format!(" from {ip}")).unwrap_or_default();
            let mut out = String::new();
            // Writing to a String cannot fail.
            let _ = render(&mut out, &explanation, &from, tint);
            print(&out)?;
        }
    }
    Ok(ExitCode::from(if explanation.rule.is_some() { 0 } else { 2 }))
}

/// What a token would say. Values are JSON (`3`, `true`, `["a", "b"]`), or else texts.
pub(super) fn claims(args: &[String]) -> Result<Option<Value>> {
    let mut all = Value::Object(Map::new());
    for arg in args {
        let (name, value) = arg.split_once('=').with_context(|| format!("`{arg}`: write NAME=VALUE"))?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        let mut place = &mut all;
        for part in name.split('/') {
            ensure!(!part.is_empty(), "`{arg}`: the name of a claim is empty");
            let Value::Object(members) = place else { bail!("`{arg}`: a part of `{name}` has a value already") };
            place = members.entry(part).or_insert_with(|| Value::Object(Map::new()));
        }
        match place {
            Value::Object(members) if members.is_empty() => *place = value,
            Value::Array(list) => list.push(value),
            _ => *place = Value::Array(vec![place.take(), value]),
        }
    }
    Ok((!args.is_empty()).then_some(all))
}

/// Whether the workloads behind the backends let the request in. It is judged with the headers that the caller sent, and where
/// nothing is a Service, such as outside the mesh, by nobody.
fn admission(
    resources: &Resources,
    (namespace, name): (&str, &str),
    request: &Request,
    explanation: &Explanation,
) -> Vec<Ruling> {
    let own = resources.workloads().get(namespace, name).and_then(|workload| workload.spec.addresses.first().cloned());
    let mut question = Question {
        identity: explanation.identity.as_ref().and_then(|identity| identity.parse().ok()),
        from: request.from.or_else(|| own?.parse().ok()),
        method: request.method.clone(),
        url: explanation.final_url.clone().unwrap_or_else(|| request.url.clone()),
        at: None,
        headers: request.headers.clone(),
        claims: request.claims.clone(),
    };
    let mut rulings = Vec::new();
    for backend in &explanation.backends {
        question.at = arrival(&backend.to);
        if question.at.is_some() {
            rulings.extend(may(resources, &Options::default(), &question).unwrap_or_default());
        }
    }
    rulings
}

/// Of the key of a cluster: `shop/orders:80~shop/web`.
fn arrival(cluster: &str) -> Option<Arrival> {
    let (service, port) = cluster.split('~').next()?.rsplit_once(':')?;
    let (namespace, service) = service.split_once('/')?;
    Some(Arrival { namespace: namespace.to_owned(), service: service.to_owned(), port: port.parse().ok()? })
}

/// A proxy beside one workload that captures its connections.
fn beside(namespace: &str, workload: &str) -> Position {
    Position::Workloads(vec![LocalWorkload {
        namespace: namespace.to_owned(),
        workload: workload.to_owned(),
        own: None,
        netns: Default::default(),
        ports: Ports { capture: true, ..Ports::default() },
    }])
}

fn is_code(text: &str) -> bool {
    text.len() >= 4
        && text[..4.min(text.len())].eq_ignore_ascii_case("selv")
        && text[4..].bytes().all(|b| b.is_ascii_digit())
}

fn meaning(text: &str) -> Result<ExitCode> {
    let wanted = text.to_ascii_uppercase();
    let Some(code) = Code::ALL.iter().find(|code| code.to_string() == wanted) else {
        let all: Vec<String> = Code::ALL.iter().map(ToString::to_string).collect();
        let near = nearest(&wanted, all.iter().map(String::as_str)).map(|n| format!("; did you mean {n}?"));
        bail!("there is no diagnostic {wanted}{}", near.unwrap_or_default());
    };
    let tint = Tint::of(&io::stdout());
    print(&format!("{}: {}\n\n{}\n", tint.bold(code), tint.bold(code.title()), wrapped(code.doc(), 100)))?;
    Ok(ExitCode::SUCCESS)
}

/// Breaks lines between words.
fn wrapped(text: &str, width: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > width {
            out.push('\n');
            column = 0;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out
}

/// The request without what concerns one connection only; what is believed of the rest is up to the listener.
fn request(method: &str, url: &str, lines: &[String], from: Option<IpAddr>) -> Result<Request> {
    let method = Method::from_bytes(method.as_bytes()).with_context(|| format!("`{method}` is no HTTP method"))?;
    ensure!(
        method != Method::CONNECT && method != Method::TRACE,
        "{method} is answered with 405: this is neither a forward proxy nor a mirror"
    );
    let mut url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = header(line)?;
        headers.append(name, value);
    }
    if let Some(named) = headers.get(HOST).cloned() {
        url = with_host(&url, &named)?;
    }
    let secure = url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"));
    // A URL that cannot be understood is explained as such.
    if let Ok(authority) = host::parse(authority(&url).as_bytes()) {
        let text = HeaderValue::from_str(&authority.text(secure)).context("the host is not valid")?;
        headers.insert(HOST, text);
        hop::strip_request(&mut headers);
    }
    Ok(Request { method, url, headers, from, identity: None, claims: None })
}

/// A header as `-H` gives it.
pub(super) fn header(line: &str) -> Result<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':').with_context(|| format!("`-H '{line}'` is not `name: value`"))?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).with_context(|| format!("`{name}` is no header name"))?;
    let value = HeaderValue::from_str(value.trim()).with_context(|| format!("the value of `{name}` is not valid"))?;
    Ok((name, value))
}

fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

/// As curl does: the connection goes where the URL says, the request asks for the host of the header.
fn with_host(url: &str, named: &HeaderValue) -> Result<String> {
    let given = host::parse(named.as_bytes()).context("the Host header is not valid")?;
    let old = authority(url);
    let port = host::parse(old.as_bytes()).ok().and_then(|a| a.port);
    let new = port.map_or_else(|| given.host.to_string(), |port| format!("{}:{port}", given.host));
    Ok(url.replacen(old, &new, 1))
}

fn render(out: &mut String, explanation: &Explanation, from: &str, tint: Tint) -> fmt::Result {
    writeln!(out, "{}{from}\n", tint.bold(&explanation.request))?;
    for (what, chosen) in [
        ("client", &explanation.client),
        ("listener", &explanation.listener),
        ("destination", &explanation.destination),
        ("rule", &explanation.rule),
    ] {
        if let Some(chosen) = chosen {
            line(out, tint, what, &tint.cyan(&chosen.name))?;
            line(out, tint, "", &tint.dim(format!("because {}", chosen.why)))?;
        }
    }
    if let Some(access) = &explanation.access {
        let name = if access.name == "allowed" { tint.green(&access.name) } else { tint.red(&access.name) };
        line(out, tint, "access", &name)?;
        line(out, tint, "", &tint.dim(&access.why))?;
    }
    for (number, filter) in explanation.filters.iter().enumerate() {
        line(out, tint, if number == 0 { "filters" } else { "" }, &format!("{}. {filter}", number + 1))?;
    }
    for (number, setting) in explanation.settings.iter().enumerate() {
        line(out, tint, if number == 0 { "with" } else { "" }, setting)?;
    }
    for (number, backend) in explanation.backends.iter().enumerate() {
        share(out, tint, if number == 0 { "backends" } else { "" }, backend)?;
    }
    if let Some(url) = &explanation.final_url {
        line(out, tint, "asks for", url)?;
    }
    for (number, ruling) in explanation.admission.iter().enumerate() {
        let word = if ruling.allowed { tint.green("allowed") } else { tint.red("denied") };
        line(out, tint, if number == 0 { "there" } else { "" }, &format!("{word} by {}", ruling.place))?;
        line(out, tint, "", &tint.dim(&ruling.why))?;
    }
    match &explanation.answer {
        Some(answer) if answer.status == 0 => line(out, tint, "no answer", &tint.red(&answer.why))?,
        Some(answer) => {
            let status = if answer.status >= 400 { tint.red(answer.status) } else { tint.green(answer.status) };
            line(out, tint, "answers", &format!("{status} {}", answer.why))?;
        }
        None => {}
    }
    for (number, lost) in explanation.lost.iter().enumerate() {
        if number == 0 {
            writeln!(out)?;
        }
        line(out, tint, if number == 0 { "not" } else { "" }, &lost.what)?;
        line(out, tint, "", &tint.dim(format!("because {}", lost.why)))?;
    }
    Ok(())
}

fn share(out: &mut String, tint: Tint, what: &str, backend: &BackendShare) -> fmt::Result {
    let percent = f64::from(backend.weight) * 100.0 / f64::from(backend.total.max(1));
    let weight = if backend.weight == backend.total {
        String::new()
    } else {
        format!("  {percent:.1} % (weight {} of {})", backend.weight, backend.total)
    };
    line(out, tint, what, &format!("{}{weight}", tint.cyan(&backend.to)))?;
    let tls = backend.tls.iter().map(|tls| format!("over TLS, {tls}"));
    let more = backend.endpoints.iter().cloned().chain(tls).chain(backend.filters.iter().cloned());
    more.into_iter().try_for_each(|more| line(out, tint, "", &format!("  {more}")))
}

fn line(out: &mut String, tint: Tint, what: &str, text: &str) -> fmt::Result {
    writeln!(out, "{}{text}", tint.bold(format!("{what:<10} ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_the_proxy_would_see() {
        let lines = ["X-A: 1".to_owned(), "connection: x-b".to_owned(), "x-b: 1".to_owned()];
        let seen = request("GET", "https://Shop.Example:8443/a", &lines, "10.1.2.3".parse().ok()).unwrap();
        assert_eq!(seen.headers["x-a"], "1");
        assert!(!seen.headers.contains_key("x-b"), "hop by hop");
        assert_eq!(seen.headers[HOST], "shop.example:8443");
        assert_eq!(seen.from, "10.1.2.3".parse().ok());
    }

    #[test]
    fn the_host_header_wins_over_the_url() {
        let seen = request("POST", "127.0.0.1:8080/a?b", &["Host: shop.example".to_owned()], None).unwrap();
        assert_eq!(seen.url, "http://shop.example:8080/a?b");
        assert!(request("GET", "http://a/", &["Host: a b".to_owned()], None).is_err());
        assert!(request("GET", "http://a/", &["nonsense".to_owned()], None).is_err());
        assert!(request("CONNECT", "a:1", &[], None).is_err());
        assert!(request("G T", "http://a/", &[], None).is_err());
    }

    #[test]
    fn codes_are_told_from_urls() {
        assert!(is_code("SELV0204") && is_code("selv0204"));
        assert!(!is_code("selvedge.dev/x") && !is_code("äöü") && !is_code("sel"));
        assert_eq!(wrapped("one two three", 7), "one two\nthree");
    }
}
