//! The embedded certificate authority of a control plane, and the commands for its administrator.

use crate::duration;
use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use selvedge_control::{
    ca::{self, Ca, File, Files, Key, Lifetimes, Memory, Options, Store, StoreError},
    domain::Domain,
    identity::{IdentityService, JoinCas, LocalIssuer, administer, administrator},
    proto::identity::{
        CreateTokenRequest, DeleteTokenRequest, ListTokensRequest, RevokeRequest, RotateRequest, ShowRequest,
        revoke_request::What,
    },
    source::etcd::{Client, Keeper as Lease, Leader},
    transport::Mutual,
};
use selvedge_identity::{Identities, control_id};
use selvedge_mesh::identity::{self as keeper, Keeper};
use selvedge_wire::log_time;
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// The administrator's socket, in the state folder.
const SOCKET: &str = "ca.sock";

/// Between two tries to reach the store that control planes share.
const PAUSE: Duration = Duration::from_secs(1);

/// The control plane's own first certificate is there at once, unless the clock is wrong by years.
const FIRST: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, ClapArgs)]
#[group(id = "authority")]
pub struct Args {
    /// Trust domain of the certificates that are issued. When not given, that of the store; for a new store the
    /// `trustDomain` of the Mesh, or cluster.local.
    #[arg(long, value_name = "NAME")]
    pub trust_domain: Option<String>,
    /// Store of the certificate authority; when not given, etcd with --etcd, else ca.redb in the state folder.
    #[arg(long, value_name = "FILE")]
    pub ca_store: Option<PathBuf>,
    /// Key that the store is sealed with, made at the first start; ca.key beside the store when not given. Control planes
    /// that share an etcd share it: copy it from the first to the others.
    #[arg(long, value_name = "FILE", conflicts_with = "ca_passphrase_file")]
    pub ca_key_file: Option<PathBuf>,
    /// File with a passphrase that seals the store, instead of a key.
    #[arg(long, value_name = "FILE", env = "SELVEDGE_CA_PASSPHRASE_FILE")]
    pub ca_passphrase_file: Option<PathBuf>,
    /// Intermediate of another certificate authority, PEM, with what leads to its root; read again when it changes.
    #[arg(long, value_name = "FILE", requires = "ca_intermediate_key")]
    pub ca_intermediate: Option<PathBuf>,
    /// Private key of that intermediate, PEM.
    #[arg(long, value_name = "FILE", requires = "ca_intermediate")]
    pub ca_intermediate_key: Option<PathBuf>,
    /// Roots of that intermediate, PEM; the last certificate of its chain when not given.
    #[arg(long, value_name = "FILE", requires = "ca_intermediate")]
    pub ca_roots: Option<PathBuf>,
    /// File that names CAs of others, and who nodes may be that join with their certificates instead of a token; read again
    /// when it changes.
    #[arg(long, value_name = "FILE")]
    pub join_ca: Option<PathBuf>,
    /// How long certificates of workloads live: 90s, 15m, 24h, 7d.
    #[arg(long, default_value = "24h", value_parser = duration::parse, value_name = "TIME")]
    pub svid_ttl: Duration,
    /// How long an intermediate lives.
    #[arg(long, default_value = "365d", value_parser = duration::parse, value_name = "TIME")]
    pub ca_intermediate_ttl: Duration,
    /// How long a root lives.
    #[arg(long, default_value = "3650d", value_parser = duration::parse, value_name = "TIME")]
    pub ca_root_ttl: Duration,
    /// How long all nodes have to learn of a new root before certificates are signed under it; as long as --svid-ttl when
    /// not given.
    #[arg(long, value_parser = duration::parse, value_name = "TIME")]
    pub ca_overlap: Option<Duration>,
    /// How long after the end of its certificate a node gets back without a new token, if it was not revoked; 0s: not at
    /// all.
    #[arg(long, default_value = "7d", value_parser = duration::parse_or_zero, value_name = "TIME")]
    pub renew_grace: Duration,
}

/// An etcd that control planes share.
pub struct Shared {
    pub client: Client,
    /// Knows which of them leads.
    pub keeper: Lease,
}

/// An authority that runs.
pub struct Authority {
    pub ca: Arc<Ca>,
    identities: Arc<Identities>,
    /// Renews the control plane's own certificate.
    pub keeper: Arc<Keeper>,
    joins: Option<Arc<JoinCas>>,
}

impl Args {
    /// Opens the authority, and gets the control plane its own certificate. `state` is `None` when nothing is to be kept.
    /// With `shared`, other control planes have the same. `mesh` is what the Mesh says of the trust domain.
    pub async fn open(
        &self,
        state: Option<&Path>,
        identities: &Arc<Identities>,
        shared: Option<&Shared>,
        mesh: Option<String>,
    ) -> Result<Authority> {
        let lifetimes = Lifetimes {
            root: self.ca_root_ttl,
            intermediate: self.ca_intermediate_ttl,
            svid: self.svid_ttl,
            overlap: self.ca_overlap.unwrap_or(self.svid_ttl),
            grace: self.renew_grace,
        };
        let files = self.ca_intermediate.clone().zip(self.ca_intermediate_key.clone());
        let files = files.map(|(chain, key)| Files { chain, key, roots: self.ca_roots.clone() });
        let (store, key) = self.store(state, shared)?;
        let options = Options { trust_domain: self.trust_domain.clone(), mesh, lifetimes, files };
        let clock = Arc::new(SystemTime::now);
        let ca = Arc::new(match shared {
            Some(shared) => loop {
                let (store, leads) = (Arc::clone(&store), shared.keeper.leads());
                match Ca::open_shared(store, &key, options.clone(), clock.clone(), leads).await {
                    Err(ca::Error::Store(StoreError::Unreachable { place, why })) => {
                        tracing::warn!(%place, reason = %why, "the CA's store is not reachable; trying again, no proxy is let in before");
                        tokio::time::sleep(PAUSE).await;
                    }
                    opened => break opened?,
                }
            },
            None => Ca::open(store, &key, options, clock).await?,
        });
        let joins = self.joins(&ca, identities)?;
        let running = Arc::clone(&ca);
        tokio::spawn(async move { running.run().await });
        if let Some(state) = state {
            let (served, path) = (Arc::clone(&ca), state.join(SOCKET));
            tokio::spawn(async move {
                if let Err(error) = administer(served, &path).await {
                    tracing::error!(path = %path.display(), %error, "the administrator's socket is not served");
                }
            });
        }
        let issuer = Arc::new(LocalIssuer::new(Arc::clone(&ca)));
        let keeper = Arc::new(Keeper::new(Arc::clone(identities), issuer, keeper::Options::new(None))?);
        let own = control_id(ca.trust_domain())?;
        keeper.keep(&own);
        let ready = tokio::time::timeout(FIRST, keeper.ready(&own)).await;
        ready.context("the control plane has no certificate of its own; see the log, and the clock of this machine")?;
        Ok(Authority { ca, identities: Arc::clone(identities), keeper, joins })
    }

    /// Certificates of other CAs that may join, from now on.
    fn joins(&self, ca: &Arc<Ca>, identities: &Arc<Identities>) -> Result<Option<Arc<JoinCas>>> {
        let Some(path) = &self.join_ca else { return Ok(None) };
        let joins = JoinCas::open(path, ca.trust_domain(), identities);
        let joins = Arc::new(joins.map_err(|why| anyhow!("--join-ca {why}"))?);
        let (following, remembers) = (Arc::clone(&joins), Arc::clone(ca));
        remembers.remember_revocations(joins.ends());
        tokio::spawn(following.follow(move |ends| remembers.remember_revocations(ends)));
        Ok(Some(joins))
    }

    /// The first flag that was given, for who has no authority.
    pub fn given(&self) -> Option<&'static str> {
        let same = |given: Duration, default: u64| given == Duration::from_secs(default);
        let flags = [
            ("--trust-domain", self.trust_domain.is_some()),
            ("--ca-store", self.ca_store.is_some()),
            ("--ca-key-file", self.ca_key_file.is_some()),
            ("--ca-intermediate", self.ca_intermediate.is_some()),
            ("--join-ca", self.join_ca.is_some()),
            ("--svid-ttl", !same(self.svid_ttl, 24 * 3600)),
            ("--ca-intermediate-ttl", !same(self.ca_intermediate_ttl, 365 * 86_400)),
            ("--ca-root-ttl", !same(self.ca_root_ttl, 3650 * 86_400)),
            ("--ca-overlap", self.ca_overlap.is_some()),
            ("--renew-grace", !same(self.renew_grace, 7 * 86_400)),
        ];
        flags.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }

    fn store(&self, state: Option<&Path>, shared: Option<&Shared>) -> Result<(Arc<dyn Store>, Key)> {
        let path = self.ca_store.clone().or_else(|| state.map(|s| s.join("ca.redb")));
        let passphrase = self.ca_passphrase_file.as_deref().map(passphrase).transpose()?;
        if let Some(shared) = shared.filter(|_| self.ca_store.is_none()) {
            let file = self.ca_key_file.clone().or_else(|| state.map(|s| s.join("ca.key")));
            let key = passphrase.map(Key::Passphrase).or_else(|| file.map(Key::File)).context(
                "the certificate authority in etcd needs the key that all its control planes share: give --ca-key-file or \
                 --ca-passphrase-file",
            )?;
            return Ok((Arc::new(selvedge_control::ca::Etcd::new(&shared.client)), key));
        }
        let Some(path) = path else {
            tracing::warn!(
                "--no-state: the certificate authority ends with this process, and every node must join again"
            );
            let mut random = [0; 32];
            rand::fill(&mut random);
            let random: String = random.iter().map(|b: &u8| format!("{b:02x}")).collect();
            return Ok((Arc::new(Memory::new()), Key::Passphrase(random)));
        };
        let beside = || self.ca_key_file.clone().unwrap_or_else(|| path.with_extension("key"));
        let own_key = self.ca_key_file.is_none() && passphrase.is_none();
        not_lost(&path, own_key.then(beside).as_deref())?;
        let key = passphrase.map_or_else(|| Key::File(beside()), Key::Passphrase);
        Ok((Arc::new(File::open(&path)?), key))
    }
}

/// A store that is gone, while the key that was made with it stays, or that is empty is an accident: a new authority in its
/// place would make every node join again.
fn not_lost(store: &Path, key: Option<&Path>) -> Result<()> {
    let (what, remove) = match (fs::metadata(store), key) {
        (Ok(found), _) if found.len() == 0 => ("is empty", store),
        (Err(error), Some(key)) if error.kind() == std::io::ErrorKind::NotFound && key.exists() => {
            ("is gone, and its key is not", key)
        }
        _ => return Ok(()),
    };
    bail!(
        "the CA's store {} {what}: restore it from a backup; or remove {} to begin a new CA (every node must join again)",
        store.display(),
        remove.display()
    )
}

fn passphrase(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let text = text.trim_end_matches(['\r', '\n']);
    ensure!(
        !text.is_empty(),
        "{} is empty: it should hold the passphrase of the certificate authority",
        path.display()
    );
    Ok(text.to_owned())
}

impl Authority {
    /// Issues for this process.
    pub fn issuer(&self) -> LocalIssuer {
        LocalIssuer::new(Arc::clone(&self.ca))
    }

    /// What its certificates are of.
    pub fn domain(&self) -> Domain {
        let place = format!("the certificate authority in {}", self.ca.place());
        Domain { name: self.ca.trust_domain().to_owned(), place }
    }

    /// The service for proxies.
    pub fn service(&self) -> selvedge_control::proto::identity::identity_server::IdentityServer<IdentityService> {
        IdentityService::server(Arc::clone(&self.ca), self.joins.clone())
    }

    /// How the control plane proves itself to proxies; those that want to join are let in.
    pub fn mutual(&self) -> Result<Mutual> {
        let own = control_id(self.ca.trust_domain())?;
        Ok(Mutual { identities: Arc::clone(&self.identities), own, joining: true })
    }
}

/// Which control plane is asked.
#[derive(Debug, Clone, ClapArgs)]
pub struct At {
    /// State folder of the control plane, on this machine.
    #[arg(long, global = true, default_value = ".selvedge-control", value_name = "DIR")]
    pub state: PathBuf,
}

#[derive(Debug, Clone, ClapArgs)]
pub struct TokenArgs {
    #[command(subcommand)]
    pub command: TokenCommand,
    #[command(flatten)]
    pub at: At,
}

#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// Print a new token, with which a node gets its first certificate.
    Create {
        /// Who the node may then prove to be.
        #[arg(long, value_name = "NAMESPACE/SERVICEACCOUNT")]
        identity: String,
        /// How long it is good.
        #[arg(long, default_value = "1h", value_parser = duration::parse, value_name = "TIME")]
        ttl: Duration,
        /// How many nodes may join with it.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
        uses: u32,
    },
    /// List tokens; their secrets are not known any more.
    List,
    /// Delete a token, by the ID that the list shows.
    Delete {
        /// As `token list` shows it.
        id: String,
    },
}

#[derive(Debug, Clone, ClapArgs)]
pub struct CaArgs {
    #[command(subcommand)]
    pub command: CaCommand,
    #[command(flatten)]
    pub at: At,
}

#[derive(Debug, Clone, Subcommand)]
pub enum CaCommand {
    /// Show roots, intermediates and what is revoked.
    Show,
    /// Print the roots that members trust, PEM: for `--trust`, for a Mesh that federates, for a peer such as Envoy.
    Roots,
    /// Take a new intermediate, or begin to take a new root.
    Rotate {
        /// What is to be new.
        what: Rotated,
        /// A root: sign under it at once, without waiting until all nodes know it.
        #[arg(long)]
        at_once: bool,
    },
    /// Revoke all certificates that an identity has now, or one by its serial number.
    Revoke {
        /// SPIFFE ID or NAMESPACE/SERVICEACCOUNT.
        #[arg(long, required_unless_present = "serial", conflicts_with = "serial")]
        identity: Option<String>,
        /// Serial number of one certificate, in hexadecimal.
        #[arg(long)]
        serial: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rotated {
    Root,
    Intermediate,
}

/// `selvedge token`.
pub fn token(args: &TokenArgs) -> Result<ExitCode> {
    block_on(async {
        let mut client = administrator(&args.at.state.join(SOCKET)).await.map_err(anyhow::Error::msg)?;
        match &args.command {
            TokenCommand::Create { identity, ttl, uses } => {
                let Some((namespace, service_account)) = identity.split_once('/') else {
                    bail!("--identity {identity}: write NAMESPACE/SERVICEACCOUNT");
                };
                let (namespace, service_account) = (namespace.to_owned(), service_account.to_owned());
                let request = CreateTokenRequest { namespace, service_account, seconds: ttl.as_secs(), uses: *uses };
                let made = client.create_token(request).await.map_err(said)?.into_inner();
                // The token alone, so that it can go straight into a file.
                say!("{}", made.token);
                eprintln!("token {} for {}; it is shown only now", made.id, made.identity);
            }
            TokenCommand::List => {
                let all = client.list_tokens(ListTokensRequest {}).await.map_err(said)?.into_inner().tokens;
                say!("{:<18} {:<50} {:>9} {:>12}", "ID", "IDENTITY", "USED", "EXPIRES IN");
                for token in all {
                    let used = format!("{}/{}", token.used, token.uses);
                    say!("{:<18} {:<50} {used:>9} {:>12}", token.id, token.identity, remaining(token.expires));
                }
            }
            TokenCommand::Delete { id } => {
                client.delete_token(DeleteTokenRequest { id: id.clone() }).await.map_err(said)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// `selvedge ca`.
pub fn ca(args: &CaArgs) -> Result<ExitCode> {
    block_on(async {
        let mut client = administrator(&args.at.state.join(SOCKET)).await.map_err(anyhow::Error::msg)?;
        match &args.command {
            CaCommand::Show => {
                let shown = client.show(ShowRequest {}).await.map_err(said)?.into_inner();
                say!("trust domain {}, bundle {}", shown.trust_domain, shown.sequence);
                for authority in shown.authorities {
                    let what = if authority.root { "root" } else { "intermediate" };
                    let fingerprint: String = authority.fingerprint.iter().map(|b| format!("{b:02x}")).collect();
                    let phase = match authority.phase.as_str() {
                        "next" => format!("next, signs {}", when(authority.until)),
                        "retiring" => format!("retiring, gone {}", when(authority.until)),
                        other => other.to_owned(),
                    };
                    say!("{what:<13} {fingerprint}  ends {}  {phase}", when(authority.not_after));
                }
                for revoked in shown.revoked {
                    say!("revoked       {revoked}");
                }
            }
            CaCommand::Roots => {
                for root in client.show(ShowRequest {}).await.map_err(said)?.into_inner().roots {
                    say!("{}", pem("CERTIFICATE", &root));
                }
            }
            CaCommand::Rotate { what, at_once } => {
                let root = *what == Rotated::Root;
                ensure!(root || !at_once, "an intermediate is always rotated at once");
                client.rotate(RotateRequest { root, at_once: *at_once }).await.map_err(said)?;
            }
            CaCommand::Revoke { identity, serial } => {
                let what = identity.clone().map(What::Identity).or_else(|| serial.clone().map(What::Serial));
                client.revoke(RevokeRequest { what }).await.map_err(said)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let base64 = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = base64.as_bytes().chunks(64).filter_map(|line| str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----", lines.join("\n"))
}

fn said(status: tonic::Status) -> anyhow::Error {
    anyhow::Error::msg(status.message().to_owned())
}

fn block_on(work: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(work)
}

/// A moment (seconds since 1970), and how far away it is.
fn when(then: u64) -> String {
    let left = remaining(then);
    match left.as_str() {
        "over" => format!("{} (over)", log_time::rfc3339(then)),
        _ => format!("{} (in {left})", log_time::rfc3339(then)),
    }
}

/// The time from now until then (seconds since 1970).
fn remaining(then: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    match then.checked_sub(now) {
        None => "over".to_owned(),
        Some(left) if left < 120 => format!("{left}s"),
        Some(left) if left < 7200 => format!("{}m", left / 60),
        Some(left) if left < 172_800 => format!("{}h", left / 3600),
        Some(left) => format!("{}d", left / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_was_lost_is_not_begun_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, key) = (folder.path().join("ca.redb"), folder.path().join("ca.key"));
        assert!(not_lost(&store, Some(&key)).is_ok(), "the first start");
        fs::write(&key, "key").expect("written");
        let why = not_lost(&store, Some(&key)).expect_err("gone").to_string();
        assert!(why.contains("ca.redb is gone, and its key is not") && why.contains("remove"), "{why}");
        assert!(not_lost(&store, None).is_ok(), "a key from elsewhere may be there before the store");
        fs::write(&store, "").expect("written");
        for key in [None, Some(&*key)] {
            let why = not_lost(&store, key).expect_err("empty").to_string();
            assert!(why.contains("ca.redb is empty"), "{why}");
        }
        fs::write(&store, "redb").expect("written");
        assert!(not_lost(&store, Some(&key)).is_ok());
    }
}
