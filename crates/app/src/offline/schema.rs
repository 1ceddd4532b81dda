//! `selvedge schema`: JSON Schemas, for editors and for CI.

use crate::output::print;
use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use selvedge_model::{
    Kind,
    diagnostic::nearest,
    schema::{schema, schema_bundle},
};
use std::process::ExitCode;

#[derive(Debug, Clone, ClapArgs)]
pub struct Args {
    /// Kind of resource, such as HTTPRoute; without it, one schema that accepts every kind.
    #[arg(value_name = "KIND")]
    pub kind: Option<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let schema = match &args.kind {
        None => schema_bundle(),
        Some(name) => schema(kind(name)?).clone(),
    };
    print(&format!("{}\n", serde_json::to_string_pretty(&schema)?))?;
    Ok(ExitCode::SUCCESS)
}

fn kind(name: &str) -> Result<Kind> {
    if let Some(kind) = Kind::ALL.iter().find(|kind| kind.name().eq_ignore_ascii_case(name)) {
        return Ok(*kind);
    }
    let names = || Kind::ALL.iter().map(|kind| kind.name());
    match nearest(name, names()) {
        Some(near) => bail!("there is no kind {name}; did you mean {near}?"),
        None => bail!("there is no kind {name}; kinds are {}", names().collect::<Vec<_>>().join(", ")),
    }
}
