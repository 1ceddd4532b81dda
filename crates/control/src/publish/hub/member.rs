//! A proxy and who it is.

use super::{ViewId, life::Heard};
use crate::{
    proto::discovery::Hello,
    publish::{
        node::{Millis, Node},
        pace::Pace,
        scope::Role,
    },
    source::Mark,
};
use selvedge_wire::spiffe::SpiffeId;
use std::sync::Arc;

/// A proxy and who it is.
pub struct Member {
    pub hello: Hello,
    pub role: Option<Role>,
    pub identity: Option<SpiffeId>,
    /// Whether identities are proven at all on this listener.
    pub(super) proves: bool,
    pub since: Millis,
    pub(super) view: Option<ViewId>,
    /// What it has seen that is newer than what is known here, with the looks at the source until then.
    pub(super) ahead: Option<Mark>,
    pub(super) heard: Arc<Heard>,
    pub(super) pace: Pace,
    /// It has said goodbye.
    pub left: bool,
    pub node: Node,
}

impl Member {
    /// The newer state that it has seen, and that this control plane must reach first.
    pub fn ahead(&self) -> Option<&Mark> {
        self.ahead.as_ref()
    }
}
