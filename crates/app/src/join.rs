//! How a proxy comes to its identities, and hands them to applications.

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args as ClapArgs;
use selvedge_control::identity::{JoinFiles, JoinTokens, Joining, RemoteIssuer};
use selvedge_identity::Identities;
use selvedge_mesh::{
    identity::{Keeper, Options},
    workload_api::{Callers, WorkloadApi},
};
use selvedge_wire::spiffe::SpiffeId;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where SVIDs and the bundle are, in the state folder.
const FOLDER: &str = "identity";

#[derive(Debug, Clone, Default, ClapArgs)]
#[group(id = "join")]
pub struct Args {
    /// Identity of this proxy, whose certificate it gets from the control plane; the first one speaks to the control plane.
    #[arg(long, value_name = "NAMESPACE/SERVICEACCOUNT", conflicts_with = "cert")]
    pub identity: Vec<String>,
    /// File with join tokens, one a line (`selvedge token create`). Not needed once there is a certificate.
    #[arg(long, value_name = "FILE", requires = "identity", env = "SELVEDGE_JOIN_TOKEN_FILE")]
    pub join_token_file: Option<PathBuf>,
    /// Certificate of another CA to join with instead of a token, PEM, where the control plane takes such (`selvedge control
    /// --join-ca`); the control plane is known by --trust. Not needed once there is a certificate of the mesh.
    #[arg(long, value_name = "FILE", requires = "identity", requires = "join_key", requires = "trust")]
    pub join_cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE", requires = "join_cert")]
    pub join_key: Option<PathBuf>,
    /// Trust domain; that of the join token when not given, or else cluster.local.
    #[arg(long, value_name = "NAME", requires = "identity")]
    pub trust_domain: Option<String>,
    /// Hand certificates to applications by the SPIFFE Workload API, on this Unix socket.
    #[arg(long, value_name = "PATH")]
    pub workload_api: Option<PathBuf>,
    /// User that may fetch from the Workload API, all identities or one; the user of this process and root when not given.
    #[arg(long, value_name = "UID[=NAMESPACE/SERVICEACCOUNT]", requires = "workload_api")]
    pub workload_api_user: Vec<String>,
}

impl Args {
    /// Keeps the identities, if any is named, from now on. The first one is that of the proxy. To be called on a runtime.
    pub fn keep(
        &self,
        control: &[String],
        state: Option<&Path>,
        trust: Option<&Path>,
        identities: &Arc<Identities>,
    ) -> Result<Option<(SpiffeId, Arc<Keeper>)>> {
        if self.identity.is_empty() {
            return Ok(None);
        }
        for url in control {
            ensure!(
                url.starts_with("https://"),
                "--control {url}: certificates are only fetched from https://HOST:PORT"
            );
        }
        let file = self.join_token_file.clone();
        if let Some(path) = file.as_ref().filter(|path| !path.exists()) {
            // It may have been removed after the first start; what is missing then is told when it is needed.
            tracing::warn!(path = %path.display(), "the file with the join token does not exist");
        }
        let tokens = file.map_or_else(|| JoinTokens::Given(Vec::new()), JoinTokens::File);
        let known = tokens.all().map_err(|why| anyhow!("--join-token-file {why}"))?;
        let domain = match (&self.trust_domain, known.first()) {
            (Some(domain), _) => domain.clone(),
            (None, Some(token)) => token.trust_domain.clone(),
            (None, None) => "cluster.local".to_owned(),
        };
        let ids: Result<Vec<SpiffeId>> = self.identity.iter().map(|name| id(&domain, name)).collect();
        let ids = ids?;
        let joining = Joining { control: control.to_vec(), tokens };
        let mut issuer = RemoteIssuer::new(&domain, joining, Arc::clone(identities))?;
        if let (Some(chain), Some(key), Some(trust)) = (&self.join_cert, &self.join_key, trust) {
            if !chain.exists() {
                tracing::warn!(path = %chain.display(), "the certificate to join with does not exist");
            }
            issuer =
                issuer.with_certificate(JoinFiles { chain: chain.clone(), key: key.clone(), trust: trust.to_owned() });
        }
        let issuer = Arc::new(issuer);
        let folder = state.map(|s| s.join(FOLDER));
        let keeper = Keeper::new(Arc::clone(identities), issuer.clone(), Options::new(folder))
            .context("the folder for certificates cannot be made")?;
        let keeper = Arc::new(keeper);
        for id in &ids {
            keeper.keep(id);
        }
        let own = ids[0].clone();
        let (follows, kept) = (own.clone(), Arc::clone(&keeper));
        // Until the process ends.
        tokio::spawn(async move {
            kept.ready(&follows).await;
            issuer.follow(&follows).await;
        });
        Ok(Some((own, keeper)))
    }

    /// All identities that are kept; `own` is that of the proxy.
    pub fn kept(&self, own: &SpiffeId) -> BTreeSet<SpiffeId> {
        let named = self.identity.iter().filter_map(|name| id(own.trust_domain(), name).ok());
        named.chain([own.clone()]).collect()
    }

    /// Serves the Workload API from now on, if it is wanted. To be called on a runtime.
    pub fn serve_workloads(&self, identities: &Arc<Identities>, domain: Option<&str>) -> Result<()> {
        let Some(path) = &self.workload_api else { return Ok(()) };
        let callers = self.callers(domain.unwrap_or("cluster.local"))?;
        let api = WorkloadApi::bind(path)?;
        tracing::info!(path = %path.display(), "serving the SPIFFE Workload API");
        let identities = Arc::clone(identities);
        tokio::spawn(async move {
            if let Err(error) = api.serve(identities, callers, std::future::pending()).await {
                tracing::error!(%error, "the Workload API has ended");
            }
        });
        Ok(())
    }

    fn callers(&self, domain: &str) -> Result<Callers> {
        if self.workload_api_user.is_empty() {
            return Ok(Callers::own_user());
        }
        let mut users: BTreeMap<u32, Option<BTreeSet<SpiffeId>>> = BTreeMap::new();
        for text in &self.workload_api_user {
            let (uid, name) = text.split_once('=').map_or((text.as_str(), None), |(uid, name)| (uid, Some(name)));
            let uid =
                uid.parse().with_context(|| format!("--workload-api-user {text}: write UID, or UID=NAMESPACE/NAME"))?;
            match name {
                None => _ = users.insert(uid, None),
                Some(name) => {
                    let id = id(domain, name)?;
                    if let Some(ids) = users.entry(uid).or_insert_with(|| Some(BTreeSet::new())) {
                        ids.insert(id);
                    }
                }
            }
        }
        Ok(Callers::of(users))
    }
}

fn id(domain: &str, name: &str) -> Result<SpiffeId> {
    let Some((namespace, account)) = name.split_once('/') else {
        bail!("`{name}` is no identity: write NAMESPACE/SERVICEACCOUNT");
    };
    SpiffeId::workload(domain, namespace, account).with_context(|| format!("`{name}` in trust domain {domain}"))
}
