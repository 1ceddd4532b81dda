//! Destinations on demand: what an application uses is asked for, and stays.

use selvedge_control::{publish::scope::Wanted, source::stream::Handle};
use selvedge_proxy::discover::{self, Discover};
use std::{future::Future, pin::Pin, time::Duration};

/// A connection waits no longer than this for the control plane.
const LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct OnDemand {
    handle: Handle,
}

impl OnDemand {
    pub fn new(handle: Handle) -> Self {
        Self { handle }
    }
}

impl Discover for OnDemand {
    fn wanted(&self, what: discover::Wanted) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let wanted = match what {
            discover::Wanted::Address(address) => Wanted::Address(address.ip().to_canonical()),
            discover::Wanted::Host(host, _) => match host.parse() {
                Ok(address) => Wanted::Address(address),
                Err(_) => Wanted::Host(host),
            },
        };
        let known = self.handle.want(wanted.clone());
        Box::pin(async move {
            if tokio::time::timeout(LIMIT, known).await.is_err() {
                tracing::debug!(?wanted, "the control plane has not answered in time");
            }
        })
    }
}
