//! Where resources come from.

mod files;
pub mod folder;
mod watch;

pub use watch::{Changes, Watcher};
