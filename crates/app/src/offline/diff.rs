//! `selvedge diff`: what a change of resources would change for traffic.

use super::{input, text, tint::Tint};
use crate::output::print;
use anyhow::{Result, bail};
use clap::{Args as ClapArgs, ValueEnum};
use selvedge_compile::{Change, diff};
use std::{fmt::Write, io, path::PathBuf, process::ExitCode, slice};

#[derive(Debug, Clone, ClapArgs)]
#[command(
    override_usage = "selvedge diff [OPTIONS] --file <OLD> --file <NEW>",
    after_help = "Exits with 0 when traffic would meet the same, 1 when something would change, 2 when one of the two has errors."
)]
pub struct Args {
    /// Folder or file of resources, or `-` for standard input: first the old, then the new.
    #[arg(short = 'f', long = "file", required = true, value_name = "DIR")]
    pub files: Vec<PathBuf>,
    /// How the answer is written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// What could not be compared.
const TROUBLE: u8 = 2;

/// Exits as diff does.
pub fn run(args: &Args) -> ExitCode {
    compare(args).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(TROUBLE)
    })
}

fn compare(args: &Args) -> Result<ExitCode> {
    let [old, new] = args.files.as_slice() else {
        bail!("name two folders: -f OLD -f NEW");
    };
    let tint = Tint::of(&io::stdout());
    let (before, after) = (input::read(slice::from_ref(old))?, input::read(slice::from_ref(new))?);
    let changes = diff(&before.compiled.snapshot, &after.compiled.snapshot);
    match args.format {
        Format::Json => print(&format!("{}\n", serde_json::to_string_pretty(&changes)?))?,
        Format::Text => print(&render(&changes, tint))?,
    }
    let mut broken = false;
    for (path, input) in [(old, &before), (new, &after)] {
        if input.has_errors() {
            broken = true;
            eprintln!("{}: {}; `selvedge check` shows them", path.display(), text::summary(input, Tint::none()));
        }
    }
    Ok(ExitCode::from(if broken { TROUBLE } else { u8::from(!changes.is_empty()) }))
}

fn render(changes: &[Change], tint: Tint) -> String {
    let mut out = String::new();
    for change in changes {
        // Writing to a String cannot fail.
        let _ = match (&change.before, &change.after) {
            (None, Some(after)) => writeln!(out, "{} {}: {after}", tint.green("+"), tint.bold(&change.subject)),
            (Some(before), None) => writeln!(out, "{} {}: was {before}", tint.red("-"), tint.bold(&change.subject)),
            (Some(before), Some(after)) => {
                let head = format!("{} {}", tint.yellow("~"), tint.bold(&change.subject));
                writeln!(out, "{head}\n    {} {before}\n    {} {after}", tint.red("-"), tint.green("+"))
            }
            (None, None) => writeln!(out, "{} {}", tint.yellow("~"), tint.bold(&change.subject)),
        };
    }
    let _ = match changes.len() {
        0 => writeln!(out, "nothing changes for traffic"),
        number => writeln!(out, "{} for traffic", text::counted(number, "change")),
    };
    out
}
