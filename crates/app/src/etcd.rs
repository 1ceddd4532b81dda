//! `selvedge apply`, `get` and `delete`: resources in the etcd of control planes.

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args as ClapArgs;
use selvedge_control::{
    Folder,
    publish::version::{canonical, read_key},
    source::{Changes, etcd::Client},
};
use selvedge_model::{Kind, Limits, Resource, ResourceKey, parse};
use std::{future::Future, path::PathBuf, process::ExitCode};
use tonic::transport::Channel;

#[derive(Debug, Clone, ClapArgs)]
pub struct Etcd {
    /// Endpoints of etcd.
    #[arg(long, required = true, value_name = "URL", value_delimiter = ',', env = "SELVEDGE_ETCD")]
    pub etcd: Vec<String>,
    /// Where in etcd everything is.
    #[arg(long, default_value = "/selvedge", value_name = "PATH")]
    pub prefix: String,
}

#[derive(Debug, Clone, ClapArgs)]
pub struct ApplyArgs {
    /// Folder or file of YAML or JSON resources; may be given several times.
    #[arg(short = 'f', long = "file", required = true, value_name = "DIR")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub etcd: Etcd,
}

#[derive(Debug, Clone, ClapArgs)]
pub struct GetArgs {
    /// Kind of resources, such as HTTPRoute; all when not given.
    #[arg(value_name = "KIND")]
    pub kind: Option<String>,
    /// One of them, shown in full.
    #[arg(value_name = "NAMESPACE/NAME")]
    pub name: Option<String>,
    #[command(flatten)]
    pub etcd: Etcd,
}

#[derive(Debug, Clone, ClapArgs)]
pub struct DeleteArgs {
    /// Kind of the resource, such as HTTPRoute.
    #[arg(value_name = "KIND")]
    pub kind: String,
    /// Which one; without NAMESPACE it is that of the namespace `default`.
    #[arg(value_name = "NAMESPACE/NAME")]
    pub name: String,
    #[command(flatten)]
    pub etcd: Etcd,
}

/// Writes all or, when one is broken, none.
pub fn apply(args: &ApplyArgs) -> Result<ExitCode> {
    let mut folder = Folder::new(args.files.clone());
    folder.read(&Changes::Everything);
    let errors: Vec<_> = folder.diagnostics().into_iter().filter(|d| d.is_error()).collect();
    if !errors.is_empty() {
        errors.iter().for_each(|error| eprintln!("{error}"));
        bail!("nothing is written, because of {} errors", errors.len());
    }
    ensure!(!folder.resources().is_empty(), "there are no resources in what was given");
    with(&args.etcd, async |client, channel| {
        for resource in folder.resources().iter() {
            let key = resource.key();
            let json = canonical(&resource).0.to_vec();
            client.put(&channel, &client.path(&key), json, 0).await.map_err(|e| anyhow!("{key}: {e}"))?;
            say!("{key}");
        }
        Ok(ExitCode::SUCCESS)
    })
}

pub fn get(args: &GetArgs) -> Result<ExitCode> {
    let kind = args.kind.as_deref().map(str::parse::<Kind>).transpose()?;
    let one = args.name.as_deref().map(|name| key(args.kind.as_deref().unwrap_or_default(), name)).transpose()?;
    with(&args.etcd, async |client, channel| {
        let all = client.everything(&channel).await.map_err(|e| anyhow!(e))?;
        let mut found = 0;
        for kv in all.kvs {
            let path = String::from_utf8_lossy(&kv.key).into_owned();
            let Some(key) = client.key(&path).filter(|key| kind.is_none_or(|kind| kind == key.kind)) else { continue };
            if one.as_ref().is_some_and(|one| *one != key) {
                continue;
            }
            found += 1;
            match one {
                Some(_) => say!("{}", shown(&path, &kv.value)),
                None => say!("{key}"),
            }
        }
        match one {
            Some(one) if found == 0 => bail!("there is no {one}"),
            _ => Ok(ExitCode::SUCCESS),
        }
    })
}

/// JSON that people can read; what is broken as it is, without what is secret.
fn shown(path: &str, text: &[u8]) -> String {
    let parsed = parse(path, text, &Limits::default());
    let resource = parsed.loaded.into_iter().find_map(|loaded| loaded.resource);
    let Some(resource) = resource else { return parsed.diagnostics.iter().map(|d| format!("{d}\n")).collect() };
    let mut value = Resource::to_value(&resource);
    selvedge_admin::redact(&mut value);
    serde_json::to_string_pretty(&value).unwrap_or_default()
}

pub fn delete(args: &DeleteArgs) -> Result<ExitCode> {
    let key = key(&args.kind, &args.name)?;
    with(&args.etcd, async |client, channel| {
        let gone = client.delete(&channel, &client.path(&key)).await.map_err(|e| anyhow!(e))?;
        ensure!(gone, "there is no {key}");
        say!("{key} is removed");
        Ok(ExitCode::SUCCESS)
    })
}

fn key(kind: &str, name: &str) -> Result<ResourceKey> {
    let kind: Kind = kind.parse()?;
    let text = match kind.namespaced() && !name.contains('/') {
        true => format!("{kind} default/{name}"),
        false => format!("{kind} {name}"),
    };
    read_key(&text).with_context(|| format!("`{name}` is not the name of a {kind}"))
}

fn with<F: Future<Output = Result<ExitCode>>>(
    args: &Etcd,
    work: impl FnOnce(Client, Channel) -> F,
) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::new(args.etcd.clone(), &args.prefix);
        let channel = client.connect().await.map_err(|e| anyhow!(e))?;
        work(client, channel).await
    })
}
