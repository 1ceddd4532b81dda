//! Who may do what, compiled from AccessPolicies.

use serde::Serialize;

/// All AccessPolicies that hold at one place, and what is done where none says anything.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Access {
    pub default: DefaultAccess,
}

/// What is done with what no policy allows or denies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum DefaultAccess {
    #[default]
    Allow,
    /// Allowed, and logged and counted as what `Deny` would refuse.
    Audit,
    Deny,
}
