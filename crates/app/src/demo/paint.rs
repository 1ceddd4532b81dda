//! Colours for people at a terminal.

use std::io::IsTerminal;

/// Writes ANSI colours or leaves them out.
#[derive(Debug, Clone, Copy)]
pub struct Paint {
    colours: bool,
}

impl Paint {
    /// Colours on a terminal, unless `NO_COLOR` (no-color.org) is set or the terminal is a dumb one.
    pub fn for_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { colours: !refused && !dumb && std::io::stdout().is_terminal() }
    }

    pub fn title(self, text: &str) -> String {
        self.with("1", text)
    }

    pub fn command(self, text: &str) -> String {
        self.with("36", text)
    }

    pub fn remark(self, text: &str) -> String {
        self.with("2", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
