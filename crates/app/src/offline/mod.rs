//! Commands that look at resources without serving them: `check`, `explain`, `may`, `diff` and `schema`.

pub mod check;
pub mod diff;
pub mod explain;
mod github;
mod input;
pub mod may;
pub mod schema;
mod text;
mod tint;
