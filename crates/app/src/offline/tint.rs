//! Colours of a terminal, and output that minds neither a missing terminal nor a closed pipe.

use std::{env, fmt::Display, io::IsTerminal};

/// Whether and how text is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tint(bool);

impl Tint {
    /// Colours for a terminal, unless `NO_COLOR` (no-color.org) is set or the terminal has none.
    pub fn of(stream: &impl IsTerminal) -> Self {
        let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        let forced = env::var("CLICOLOR_FORCE").is_ok_and(|value| !value.is_empty() && value != "0");
        let able = stream.is_terminal() && env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self(!set("NO_COLOR") && (able || forced))
    }

    /// No colours.
    pub const fn none() -> Self {
        Self(false)
    }

    /// Whether a person with a terminal looks at it.
    pub const fn is_on(self) -> bool {
        self.0
    }

    pub fn bold(self, text: impl Display) -> String {
        self.paint("1", text)
    }

    pub fn dim(self, text: impl Display) -> String {
        self.paint("2", text)
    }

    pub fn red(self, text: impl Display) -> String {
        self.paint("1;31", text)
    }

    pub fn green(self, text: impl Display) -> String {
        self.paint("32", text)
    }

    pub fn yellow(self, text: impl Display) -> String {
        self.paint("1;33", text)
    }

    pub fn cyan(self, text: impl Display) -> String {
        self.paint("36", text)
    }

    fn paint(self, code: &str, text: impl Display) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }
}
