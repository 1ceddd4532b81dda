//! Where resources come from.

pub mod folder;
mod files;
mod watch;

pub use watch::{Changes, Watcher};
