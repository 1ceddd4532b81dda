//! `selvedge may`: whether one workload may call another.

use super::{
    explain::{Format, claims, header},
    input, text,
    tint::Tint,
};
use crate::output::print;
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args as ClapArgs;
use http::{HeaderMap, Method};
use selvedge_compile::{Options, Question, may};
use selvedge_wire::spiffe::SpiffeId;
use std::{fmt::Write, io, net::IpAddr, path::PathBuf, process::ExitCode};

#[derive(Debug, Clone, ClapArgs)]
#[command(
    override_usage = "selvedge may [OPTIONS] --file <DIR> <CALLER> [METHOD] <URL>",
    after_help = "Examples:
  selvedge may -f conf spiffe://cluster.local/ns/shop/sa/cart GET http://orders.shop/orders/7
  selvedge may -f conf spiffe://cluster.local/ns/shop/sa/cart tcp://db.shop:5432
  selvedge may -f conf anybody http://orders.shop/ --from 10.0.0.1
  selvedge may -f conf anybody http://orders.shop/ --claim sub=anna"
)]
pub struct Args {
    /// Folder or file of YAML or JSON resources, or `-` for standard input; may be given several times.
    #[arg(short = 'f', long = "file", value_name = "DIR", required = true)]
    pub files: Vec<PathBuf>,
    /// SPIFFE ID of the caller, or `anybody` for one without mutual TLS.
    #[arg(value_name = "CALLER")]
    pub caller: String,
    /// Method (GET when it is left out) and URL of a Service.
    #[arg(value_names = ["METHOD", "URL"], num_args = 1..=2, required = true)]
    pub what: Vec<String>,
    /// Header of the request; may be given several times.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub headers: Vec<String>,
    /// Address of the caller.
    #[arg(long, value_name = "IP")]
    pub from: Option<IpAddr>,
    /// Claim of the caller's token, as if it had been verified; `/` leads into objects. Values are JSON, such as `["admin"]`, or
    /// else texts; a name that is given again makes a list.
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    pub claims: Vec<String>,
    /// How the answer is written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// Exits with 1 when some workload behind the Service would refuse.
pub fn run(args: &Args) -> Result<ExitCode> {
    let (method, url) = match args.what.as_slice() {
        [url] => ("GET", url),
        [method, url] => (method.as_str(), url),
        _ => bail!("name a method and a URL"),
    };
    let identity = match args.caller.as_str() {
        "anybody" => None,
        id => Some(id.parse::<SpiffeId>().with_context(|| format!("`{id}` is neither a SPIFFE ID nor `anybody`"))?),
    };
    let mut headers = HeaderMap::new();
    for line in &args.headers {
        let (name, value) = header(line)?;
        headers.append(name, value);
    }
    let method = Method::from_bytes(method.as_bytes()).with_context(|| format!("`{method}` is no HTTP method"))?;
    let question = Question {
        identity,
        from: args.from,
        method,
        url: url.clone(),
        at: None,
        headers,
        claims: claims(&args.claims)?,
    };
    let input = input::read(&args.files)?;
    let rulings = may(input.folder.resources(), &Options::default(), &question).map_err(|error| anyhow!(error))?;
    ensure!(!rulings.is_empty(), "nothing is behind the Service");
    let allowed = rulings.iter().all(|ruling| ruling.allowed);
    if args.format == Format::Json {
        print(&format!("{}\n", serde_json::to_string_pretty(&rulings)?))?;
        return Ok(ExitCode::from(u8::from(!allowed)));
    }
    let tint = Tint::of(&io::stdout());
    if input.has_errors() {
        eprintln!("{}; `selvedge check` shows them.\n", text::summary(&input, tint));
    }
    let mut out = String::new();
    for ruling in &rulings {
        let word = if ruling.allowed { tint.green("allowed") } else { tint.red("denied") };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{word}  {}: {}", tint.bold(&ruling.place), ruling.why);
        for policy in &ruling.audited {
            let _ = writeln!(out, "         audited by policy {policy}");
        }
    }
    print(&out)?;
    Ok(ExitCode::from(u8::from(!allowed)))
}
