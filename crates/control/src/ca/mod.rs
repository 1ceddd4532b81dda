//! The embedded certificate authority of a trust domain: root and intermediate, certificates of workloads (X.509 SVIDs),
//! join tokens, rotation and revocation. [`core`] decides, without IO; [`Ca`] stores each step before it counts, and tells
//! who listens of new bundles.

pub mod alarm;
pub mod authority;
pub mod bundle;
pub mod core;
pub mod csr;
pub mod error;
pub mod etcd;
pub mod file;
pub mod files;
pub mod seal;
pub mod state;
pub mod store;
pub mod time;
pub mod tokens;

mod live;
#[cfg(test)]
mod tests;

pub use alarm::{Alarm, Expiry};
pub use authority::{Der, Leaf};
pub use bundle::{Bundle, Revoked};
pub use core::{AuthorityStatus, Lifetimes, Rotate};
pub use error::Error;
pub use etcd::Etcd;
pub use file::File;
pub use files::Files;
pub use live::{Ca, Clock, Current, Issued, Options};
pub use selvedge_identity::Serial;
pub use store::{Key, Memory, Store, StoreError};
pub use tokens::{Order, Token};
