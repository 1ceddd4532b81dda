//! A workload that joins the mesh with its proxy: checked here, where it runs, and out of the mesh while it is not well.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use selvedge_compile::{
    health_check,
    snapshot::{HealthCheck, Netns},
};
use selvedge_control::{publish::version::canonical, source::stream::Handle};
use selvedge_model::{Limits, Resource, Workload, parse};
use selvedge_proxy::{dial::Dial, health::Checker};
use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

/// A Workload and how it is checked.
#[derive(Debug)]
pub struct Registration {
    key: String,
    name: String,
    json: Bytes,
    workload: Arc<Workload>,
    check: Option<Check>,
}

#[derive(Debug)]
struct Check {
    config: HealthCheck,
    address: SocketAddr,
}

/// Below this a check would be load.
const MIN_INTERVAL: Duration = Duration::from_millis(50);

impl Registration {
    pub fn read(file: &Path) -> Result<Self> {
        let name = file.display().to_string();
        let text = fs::read(file).with_context(|| format!("--register {name} cannot be read"))?;
        let parsed = parse(&name, &text, &Limits::default());
        if let Some(error) = parsed.diagnostics.iter().find(|d| d.is_error()) {
            bail!("{error}");
        }
        let resources: Vec<_> = parsed.loaded.into_iter().filter_map(|loaded| loaded.resource).collect();
        ensure!(
            resources.len() == 1,
            "--register {name} must hold one Workload, and holds {} resources",
            resources.len()
        );
        let Some(resource @ Resource::Workload(workload)) = resources.first() else {
            bail!("--register {name} must hold a Workload");
        };
        let check = match &workload.spec.health_check {
            None => None,
            Some(config) => {
                let port = config.port.or_else(|| workload.spec.ports.first().map(|port| port.port));
                let port = port.with_context(|| format!("{name}: spec.healthCheck needs a port"))?;
                let address = workload.spec.addresses.first().and_then(|a| a.parse().ok());
                let address = address.with_context(|| format!("{name}: spec.addresses[0] is no IP address"))?;
                Some(Check { config: health_check(config), address: SocketAddr::new(address, port) })
            }
        };
        let key = resource.key();
        Ok(Self {
            name: format!("{}/{}", key.namespace, key.name),
            key: key.to_string(),
            json: canonical(resource).0,
            workload: workload.clone(),
            check,
        })
    }

    /// `namespace/name`
    pub fn name(&self) -> String {
        self.name.clone()
    }

    pub fn workload(&self) -> Arc<Workload> {
        self.workload.clone()
    }

    /// Keeps the workload in the mesh while it is well. It is checked in its network namespace, with what `dial` lends. Never
    /// returns.
    pub async fn keep(self, handle: Handle, netns: Netns, dial: Arc<Dial>) {
        let Some(check) = self.check else {
            handle.register(self.key.clone(), self.json.clone()).await;
            return;
        };
        let mut check = Checker::new(&self.name, check.config, check.address, netns, &dial);
        let config = check.config();
        let (interval, up, down) =
            (config.interval.max(MIN_INTERVAL), config.healthy_threshold, config.unhealthy_threshold);
        let (mut well, mut row, mut first) = (false, 0_u32, true);
        loop {
            let result = check.check().await;
            row = if result.is_ok() == well { 0 } else { row + 1 };
            let enough = if well { down } else { up };
            if row >= enough || (first && row > 0) {
                (well, row) = (!well, 0);
                if well {
                    tracing::info!(workload = self.name, "the workload is well: it joins the mesh");
                    handle.register(self.key.clone(), self.json.clone()).await;
                } else {
                    let why = result.err().unwrap_or_default();
                    tracing::warn!(workload = self.name, why, "the workload is not well: it is taken out of the mesh");
                    handle.withdraw(self.key.clone()).await;
                }
            }
            first = false;
            tokio::time::sleep(interval).await;
        }
    }
}
