//! What commands say on standard output.

use std::{
    fmt::Arguments,
    io::{self, Write},
};

/// As `println!`, but for a reader that has seen enough (`| head`), which is no error.
macro_rules! say {
    ($($text:tt)*) => { crate::output::line(format_args!($($text)*)) };
}

/// Ends the process when standard output cannot be written, such as a file on a full disk: nobody would know what was done.
pub fn line(text: Arguments<'_>) {
    if let Err(error) = print(&format!("{text}\n")) {
        eprintln!("standard output cannot be written: {error}");
        std::process::exit(1);
    }
}

/// Writes to standard output. A reader that has seen enough is no error.
///
/// # Errors
/// Standard output cannot be written, such as a file on a full disk.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
