//! Commands that look at resources without serving them: `check`, `explain`, `may`, `diff` and `schema`.

pub mod check;
pub mod diff;
pub mod explain;
pub mod may;
mod github;
mod input;
pub mod schema;
mod text;
mod tint;
