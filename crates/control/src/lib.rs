//! The control plane: sources of resources, the last good state, and the loop from a change to a new snapshot.
//!
//! It knows nothing of the data plane: whoever wires it says what to do with a snapshot.

pub mod ca;
pub mod domain;
pub mod engine;
pub mod identity;
pub mod proto;
pub mod publish;
pub mod saved;
pub mod source;
pub mod transport;

pub use engine::{Current, Engine, Install, Problem, Settings};
pub use source::folder::Folder;
