//! What requests see of a cluster: its settings and the endpoints that belong to them. Both change in one step, and a
//! request takes both at once: it never reaches an endpoint of one configuration in the way of another.

use super::Settings;
use crate::{balance::Picker, endpoint::LiveEndpoint};
use arc_swap::Guard;
use selvedge_compile::snapshot::Cluster;
use std::{ops::Deref, sync::Arc};

/// Replaced as a whole, by whoever holds the lock of the members.
pub(super) struct View {
    pub(super) settings: Arc<Settings>,
    pub(super) picker: Picker,
}

/// The settings of now, for a moment and without an `await` in it.
pub(crate) struct Current(pub(super) Guard<Arc<View>>);

impl Deref for Current {
    type Target = Settings;

    fn deref(&self) -> &Settings {
        &self.0.settings
    }
}

/// An endpoint for one try, and how it is to be reached: of one configuration.
#[derive(Debug, Clone)]
pub struct Picked {
    pub endpoint: Arc<LiveEndpoint>,
    pub(crate) settings: Arc<Settings>,
}

impl Picked {
    /// The configuration that the endpoint was picked by.
    pub fn config(&self) -> &Arc<Cluster> {
        &self.settings.config
    }
}

impl Deref for Picked {
    type Target = Arc<LiveEndpoint>;

    fn deref(&self) -> &Arc<LiveEndpoint> {
        &self.endpoint
    }
}
