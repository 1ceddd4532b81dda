//! What this process is and whom it trusts, live.

use crate::{
    Bundle, Bundles, Error, Expect, JoinCa, JoinCertificate, Peer, Refused, Role, Svid, config::Configs, join, verify,
};
use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, UnixTime};
use selvedge_wire::spiffe::SpiffeId;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;

/// Our SVIDs and bundles. Whoever obtains them sets them here; whoever needs them sees the newest, at each handshake.
pub struct Identities {
    live: Live,
    version: watch::Sender<u64>,
    /// Serialises changes, which are rare; readers take no lock.
    changing: Mutex<()>,
    configs: Configs,
}

/// What verifiers hold of [`Identities`].
pub(crate) type Live = Arc<ArcSwap<State>>;

#[derive(Clone, Default)]
pub(crate) struct State {
    pub(crate) svids: BTreeMap<SpiffeId, Arc<Svid>>,
    pub(crate) bundles: Arc<Bundles>,
    /// Those of other trust domains, as the mesh names them; in `bundles` unless a domain is our own.
    federated: BTreeMap<String, Bundle>,
    /// Whose certificates are good for joining.
    pub(crate) join_cas: Arc<[JoinCa]>,
    /// Counts changes of the bundles.
    pub(crate) trust: u64,
}

impl Default for Identities {
    fn default() -> Self {
        Self {
            live: Live::default(),
            version: watch::Sender::new(0),
            changing: Mutex::default(),
            configs: Configs::default(),
        }
    }
}

impl Identities {
    /// From now on we prove this identity with this SVID. Connections made with the one before go on.
    pub fn set(&self, svid: Svid) {
        self.change(|state| {
            state.svids.insert(svid.id().clone(), Arc::new(svid));
            true
        });
    }

    /// We are not this identity any more. False when we were not.
    pub fn remove(&self, id: &SpiffeId) -> bool {
        self.change(|state| state.svids.remove(id).is_some())
    }

    /// Trusts these and no others from now on, besides those of [`Self::federate`].
    pub fn set_bundles(&self, mut bundles: Bundles) {
        self.change(|state| {
            for (domain, bundle) in &state.federated {
                if bundles.get(domain).is_none() {
                    // A name that was taken once is sound.
                    let _ = bundles.insert(domain, bundle.clone());
                }
            }
            let changed = *state.bundles != bundles;
            if changed {
                state.bundles = Arc::new(bundles);
                state.trust += 1;
            }
            changed
        });
    }

    /// Trusts this bundle for one trust domain from now on; the others stay.
    pub fn set_bundle(&self, domain: &str, bundle: Bundle) -> Result<(), Error> {
        let mut failed = Ok(());
        self.change(|state| {
            // Our own CA decides about our own domain, whatever was said of it before.
            let other = state.federated.remove(domain).is_some();
            if state.bundles.get(domain) == Some(&bundle) {
                return other;
            }
            let mut bundles = Bundles::clone(&state.bundles);
            failed = bundles.insert(domain, bundle);
            if failed.is_ok() {
                state.bundles = Arc::new(bundles);
                state.trust += 1;
            }
            failed.is_ok()
        });
        failed
    }

    /// Believes identities of these other trust domains from now on, and no longer those of a former call. Our own domains,
    /// which have their bundles otherwise, stay as they are.
    ///
    /// # Errors
    /// When a name is no trust domain; then nothing has changed.
    pub fn federate(&self, others: BTreeMap<String, Bundle>) -> Result<(), Error> {
        let mut failed = Ok(());
        self.change(|state| {
            let own = |domain: &String| {
                let has = state.svids.keys().any(|id| id.trust_domain() == domain);
                has || (state.bundles.get(domain).is_some() && !state.federated.contains_key(domain))
            };
            let others: BTreeMap<String, Bundle> = others.into_iter().filter(|(domain, _)| !own(domain)).collect();
            if others == state.federated {
                return false;
            }
            let mut bundles = Bundles::default();
            let kept = state.bundles.iter().filter(|(domain, _)| !state.federated.contains_key(*domain));
            for (domain, bundle) in kept.chain(others.iter().map(|(domain, bundle)| (domain.as_str(), bundle))) {
                if let Err(error) = bundles.insert(domain, bundle.clone()) {
                    failed = Err(error);
                    return false;
                }
            }
            (state.bundles, state.federated) = (Arc::new(bundles), others);
            state.trust += 1;
            true
        });
        failed
    }

    pub fn get(&self, id: &SpiffeId) -> Option<Arc<Svid>> {
        self.live.load().svids.get(id).cloned()
    }

    /// All of ours, by ID; for metrics (when each ends), the Workload API and status.
    pub fn svids(&self) -> Vec<Arc<Svid>> {
        self.live.load().svids.values().cloned().collect()
    }

    pub fn bundles(&self) -> Arc<Bundles> {
        self.live.load().bundles.clone()
    }

    /// Tells of each change by a version that grows.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Judges a presented chain, leaf first, by the bundles of now.
    pub fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        expect: &Expect,
        role: Role,
        now: UnixTime,
    ) -> Result<Peer, Refused> {
        verify::verify(&self.live.load().bundles, chain, expect, role, now)
    }

    /// Whether a peer that was accepted once still would be: its certificate is not revoked, and its root still there.
    /// That the certificate has ended since does not count against a connection that lives.
    pub fn still_accepts(&self, peer: &Peer) -> Result<(), Refused> {
        verify::still(&self.live.load().bundles, peer)
    }

    /// Resolves when the peer of a live connection is accepted no more.
    pub async fn until_refused(&self, peer: &Peer) -> Refused {
        let mut changed = self.changed();
        let mut seen = None;
        loop {
            changed.mark_unchanged();
            let (trust, bundles) = {
                let state = self.live.load();
                (state.trust, state.bundles.clone())
            };
            if seen != Some(trust) {
                seen = Some(trust);
                if let Err(refused) = verify::still(&bundles, peer) {
                    return refused;
                }
            }
            if changed.changed().await.is_err() {
                // Cannot be: the sender is ours.
                std::future::pending::<()>().await;
            }
        }
    }

    /// To prove `own` as a TLS client, to whom we expect. To be asked for at each handshake: the same one is given
    /// while our SVID and the bundles stay, and with it the sessions to resume.
    ///
    /// # Errors
    /// When we have no SVID of that name, or it has expired.
    pub fn client_config(&self, own: &SpiffeId, expect: &Expect, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
        self.configs.client(&self.live, &self.own(own)?, expect, alpn)
    }

    /// To prove `own` as a TLS server, to anybody of a known trust domain. Otherwise as [`Self::client_config`].
    pub fn server_config(&self, own: &SpiffeId, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
        self.configs.server(&self.live, &self.own(own)?, false, alpn)
    }

    /// As [`Self::server_config`], but who has no certificate yet is let in, to ask for one. Such a peer has proved
    /// nothing.
    pub fn open_server_config(&self, own: &SpiffeId, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
        self.configs.server(&self.live, &self.own(own)?, true, alpn)
    }

    /// From now on, who comes by [`Self::open_server_config`] may show a certificate of these CAs, and of no others.
    pub fn set_join_cas(&self, cas: Vec<JoinCa>) {
        self.change(|state| {
            let changed = *state.join_cas != *cas;
            if changed {
                state.join_cas = cas.into();
                state.trust += 1;
            }
            changed
        });
    }

    /// Judges a presented chain, leaf first, by the CAs whose certificates are good for joining.
    pub fn judge_join(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<JoinCertificate, Refused> {
        join::judge(&self.live.load().join_cas, chain, now)
    }

    pub(crate) fn live(&self) -> &Live {
        &self.live
    }

    fn own(&self, id: &SpiffeId) -> Result<Arc<Svid>, Error> {
        let svid = self.get(id).ok_or_else(|| Error::NoSvid(id.clone()))?;
        match svid.expired(UnixTime::now().as_secs()) {
            Some(at) => Err(Error::OwnExpired { id: id.clone(), at }),
            None => Ok(svid),
        }
    }

    fn change(&self, change: impl FnOnce(&mut State) -> bool) -> bool {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = State::clone(&self.live.load());
        let changed = change(&mut state);
        if changed {
            self.live.store(Arc::new(state));
            self.version.send_modify(|version| *version += 1);
        }
        changed
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.live.load();
        write!(f, "Identities({:?} {:?})", state.svids.values(), state.bundles)
    }
}
