//! What control planes and proxies share: who they are to each other.

use anyhow::{Context, Result, bail, ensure};
use clap::Args as ClapArgs;
use selvedge_control::transport::Mutual;
use selvedge_identity::{Bundle, Bundles, Expect, Identities, Svid};
use selvedge_wire::spiffe::SpiffeId;
use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Certificates from files. They are read again when they change, so that whoever renews them need tell nobody.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct Files {
    /// Certificate chain of this process, PEM: an X.509 SVID, with its SPIFFE ID.
    #[arg(long, value_name = "FILE", requires = "key", requires = "trust")]
    pub cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Roots of the trust domain, PEM.
    #[arg(long, value_name = "FILE")]
    pub trust: Option<PathBuf>,
}

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(5);

impl Files {
    /// Reads them and keeps them up to date in `identities`. None when none are given.
    pub fn follow(&self, identities: &Arc<Identities>) -> Result<Option<SpiffeId>> {
        let (Some(cert), Some(key), Some(trust)) = (&self.cert, &self.key, &self.trust) else { return Ok(None) };
        let read = [cert.clone(), key.clone(), trust.clone()];
        let id = load(&read, identities)?;
        let identities = identities.clone();
        tokio::spawn(async move {
            let mut seen = stamps(&read);
            loop {
                tokio::time::sleep(LOOK).await;
                let now = stamps(&read);
                if now == seen {
                    continue;
                }
                match load(&read, &identities) {
                    Ok(id) => {
                        seen = now;
                        tracing::info!(identity = id.as_str(), "certificate read again");
                    }
                    // Perhaps half of them are written.
                    Err(error) => tracing::warn!("the new certificate is not used yet: {error:#}"),
                }
            }
        });
        Ok(Some(id))
    }
}

fn stamps(files: &[PathBuf; 3]) -> Vec<Option<SystemTime>> {
    files.iter().map(|file| fs::metadata(file).and_then(|m| m.modified()).ok()).collect()
}

fn load([cert, key, trust]: &[PathBuf; 3], identities: &Identities) -> Result<SpiffeId> {
    let read = |path: &PathBuf| fs::read(path).with_context(|| format!("{} cannot be read", path.display()));
    let svid = Svid::from_pem(&read(cert)?, &read(key)?)
        .with_context(|| format!("{} and {}", cert.display(), key.display()))?;
    let bundle = Bundle::from_pem(&read(trust)?).with_context(|| trust.display().to_string())?;
    let id = svid.id().clone();
    identities.set_bundles(Bundles::of(id.trust_domain(), bundle)?);
    identities.set(svid);
    Ok(id)
}

/// How a control plane proves who it is.
pub fn mutual(files: &Files, insecure: bool, identities: &Arc<Identities>) -> Result<Option<Mutual>> {
    let own = files.follow(identities)?;
    match own {
        Some(_) if insecure => bail!("--insecure and --cert exclude each other"),
        Some(own) => Ok(Some(Mutual { identities: identities.clone(), own, joining: false })),
        None => {
            ensure!(
                insecure,
                "a control plane needs an identity: give --cert, --key and --trust, or --insecure to try it without"
            );
            Ok(None)
        }
    }
}

/// Whom a proxy takes for a control plane: identities of the root namespace.
pub fn control_plane(own: Option<&SpiffeId>, account: &str) -> Result<Expect> {
    let Some(own) = own else { return Ok(Expect::Known) };
    let namespace = selvedge_control::publish::graph::ROOT_NAMESPACE;
    Ok(Expect::Exactly(SpiffeId::workload(own.trust_domain(), namespace, account)?))
}

/// A name for this process that others do not have: that of the machine.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
