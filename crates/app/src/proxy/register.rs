//! A workload that joins the mesh with its proxy: checked here, where it runs, and out of the mesh while it is not well.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use selvedge_control::{publish::version::canonical, source::stream::Handle};
use selvedge_model::{
    Limits, Resource, Workload, parse,
    traffic::{HealthCheck, HealthCheckType},
};
use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::net::TcpStream;

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
                ensure!(
                    config.check_type != HealthCheckType::Grpc,
                    "{name}: spec.healthCheck.type GRPC is not possible for a workload that registers itself; use HTTP or TCP"
                );
                let port = config.port.or_else(|| workload.spec.ports.first().map(|port| port.port));
                let port = port.with_context(|| format!("{name}: spec.healthCheck needs a port"))?;
                let address = workload.spec.addresses.first().and_then(|a| a.parse().ok());
                let address = address.with_context(|| format!("{name}: spec.addresses[0] is no IP address"))?;
                Some(Check { config: config.clone(), address: SocketAddr::new(address, port) })
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

    /// Keeps the workload in the mesh while it is well. Never returns.
    pub async fn keep(self, handle: Handle) {
        let Some(check) = &self.check else {
            handle.register(self.key.clone(), self.json.clone()).await;
            return;
        };
        let time = |value: Option<selvedge_model::Duration>, or| value.map_or(or, Duration::from);
        let interval = time(check.config.interval, Duration::from_secs(10)).max(MIN_INTERVAL);
        let limit = time(check.config.timeout, Duration::from_secs(2));
        let (up, down) = (check.config.healthy_threshold.unwrap_or(2), check.config.unhealthy_threshold.unwrap_or(3));
        let (mut well, mut row, mut first) = (false, 0_u32, true);
        loop {
            let result =
                tokio::time::timeout(limit, check.run()).await.unwrap_or_else(|_| bail!("no answer within {limit:?}"));
            row = if result.is_ok() == well { 0 } else { row + 1 };
            let enough = if well { down } else { up };
            if row >= enough || (first && row > 0) {
                (well, row) = (!well, 0);
                if well {
                    tracing::info!(workload = self.name, "the workload is well: it joins the mesh");
                    handle.register(self.key.clone(), self.json.clone()).await;
                } else {
                    let why = result.err().map(|e| format!("{e:#}")).unwrap_or_default();
                    tracing::warn!(workload = self.name, why, "the workload is not well: it is taken out of the mesh");
                    handle.withdraw(self.key.clone()).await;
                }
            }
            first = false;
            tokio::time::sleep(interval).await;
        }
    }
}

impl Check {
    async fn run(&self) -> Result<()> {
        let stream = TcpStream::connect(self.address).await.with_context(|| self.address.to_string())?;
        if self.config.check_type == HealthCheckType::Tcp {
            return Ok(());
        }
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let host = self.config.host.clone().unwrap_or_else(|| self.address.to_string());
        let request = http::Request::builder()
            .method(self.config.method.as_deref().unwrap_or("GET"))
            .uri(self.config.path.as_deref().unwrap_or("/"))
            .header("host", host)
            .header("user-agent", "selvedge-health")
            .body(Empty::<Bytes>::new())?;
        let status = sender.send_request(request).await.map(|response| response.status().as_u16());
        connection.abort();
        let status = status?;
        let expected = self.config.expected_statuses.as_deref();
        let fine = expected.map_or((200..300).contains(&status), |ranges| {
            ranges.iter().any(|range| (range.first..=range.last).contains(&status))
        });
        ensure!(fine, "status {status}");
        Ok(())
    }
}
