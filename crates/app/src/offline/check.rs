//! `selvedge check`: what is wrong with resources, before anything serves them.

use super::{github, input, text, tint::Tint};
use crate::output::print;
use anyhow::Result;
use clap::{Args as ClapArgs, ValueEnum};
use selvedge_model::Severity;
use std::{io, path::PathBuf, process::ExitCode};

#[derive(Debug, Clone, ClapArgs)]
pub struct Args {
    /// Folder or file of YAML or JSON resources, or `-` for standard input; may be given several times.
    #[arg(short = 'f', long = "file", required = true, value_name = "DIR")]
    pub files: Vec<PathBuf>,
    /// How findings are written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Exit with 1 on warnings too.
    #[arg(long)]
    pub warnings_as_errors: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// `file:line:col: error[CODE] resource field: message`.
    Text,
    /// An array of objects.
    Json,
    /// Annotations of GitHub Actions.
    Github,
}

/// Exits with 1 when there are errors.
pub fn run(args: &Args) -> Result<ExitCode> {
    let input = input::read(&args.files)?;
    match args.format {
        Format::Text => print(&text::report(&input, Tint::of(&io::stdout())))?,
        Format::Json => print(&format!("{}\n", serde_json::to_string_pretty(&input.diagnostics)?))?,
        Format::Github => {
            print(&github::commands(&input.diagnostics))?;
            eprintln!("{}", text::summary(&input, Tint::none()));
        }
    }
    let failed = input.has_errors() || (args.warnings_as_errors && input.count(Severity::Warning) > 0);
    Ok(ExitCode::from(u8::from(failed)))
}
