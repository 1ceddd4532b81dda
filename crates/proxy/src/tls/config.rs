//! Server configurations, shared by content: a reload that changes nothing rebuilds nothing, and sessions survive it.

use super::{client_auth::ClientAuth, provider};
use ahash::AHashMap;
use rustls::{
    ServerConfig, SignatureScheme,
    server::{ClientHello, ProducesTickets, ResolvesServerCert, ServerSessionMemoryCache, StoresServerSessions},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use selvedge_compile::{
    router::HostMap,
    snapshot::{Certificate, ClientValidation, Termination, TlsVersion},
};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};
use xxhash_rust::xxh3::xxh3_128;

/// Sessions kept for TLS 1.2 clients that resume by session id; newer clients carry their session in a ticket.
const MAX_SESSIONS: usize = 4096;

/// Keys, configurations and ticket keys of all TLS listeners of the process, found again by content when a new
/// snapshot is installed. Holds only what some [`Acceptor`](super::Acceptor) uses, plus one ticket key.
#[derive(Default)]
pub struct Store(Mutex<Shared>);

#[derive(Default)]
struct Shared {
    keys: AHashMap<Content, Weak<CertifiedKey>>,
    configs: AHashMap<String, Weak<Config>>,
    /// By what was demanded of the client when the session began: a session may only be resumed where the same is.
    sessions: AHashMap<String, Weak<Sessions>>,
    /// Sessions of clients of which nothing was demanded; kept while no listener is there.
    anonymous: Option<Arc<Sessions>>,
}

/// A chain: fingerprint of the leaf and hash of all.
type Content = (String, u128);

/// How one TLS listener terminates.
pub(super) struct Config {
    pub(super) server: Arc<ServerConfig>,
    pub(super) auth: Option<Arc<ClientAuth>>,
    /// Keeps the ticket keys findable in the [`Store`].
    _sessions: Arc<Sessions>,
}

/// Where sessions are resumed from.
struct Sessions {
    cache: Arc<dyn StoresServerSessions>,
    ticketer: Arc<dyn ProducesTickets>,
}

/// Protocols offered by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    Http2AndHttp1,
    Http1,
    /// The protocol inside is not ours to know: ALPN is not answered.
    Nothing,
}

impl Store {
    /// The configuration for a termination, shared with every equal one that is in use.
    pub(super) fn config(&self, tls: &Termination, offer: Offer) -> Result<Arc<Config>, String> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let contents: Vec<Content> = tls.certificates.iter().map(|c| content(c)).collect();
        let demand = demand(tls.client.as_ref());
        let name = format!("{offer:?} {:?} {demand} {contents:?}", tls.min_version);
        if let Some(config) = shared.configs.get(&name).and_then(Weak::upgrade) {
            return Ok(config);
        }
        let mut certificates = Certificates::default();
        for (certificate, content) in tls.certificates.iter().zip(contents) {
            certificates.add(certificate, shared.key(certificate, content)?);
        }
        if certificates.keys.is_empty() {
            return Err("there is no certificate".to_owned());
        }
        let sessions = shared.sessions(&demand, tls.client.is_some())?;
        let auth = tls.client.as_ref().map(ClientAuth::new);
        let config = Arc::new(Config {
            server: Arc::new(server_config(certificates, tls.min_version, auth.clone(), offer, &sessions)?),
            auth,
            _sessions: sessions,
        });
        shared.configs.insert(name, Arc::downgrade(&config));
        Ok(config)
    }

    /// Forgets what no listener uses any more.
    pub(super) fn prune(&self) {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.configs.retain(|_, config| config.strong_count() > 0);
        shared.keys.retain(|_, key| key.strong_count() > 0);
        shared.sessions.retain(|_, sessions| sessions.strong_count() > 0);
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

impl Shared {
    fn key(&mut self, certificate: &Certificate, content: Content) -> Result<Arc<CertifiedKey>, String> {
        if let Some(key) = self.keys.get(&content).and_then(Weak::upgrade) {
            return Ok(key);
        }
        let key = provider()
            .key_provider
            .load_private_key(certificate.key.0.clone_key())
            .map_err(|e| format!("the key of Secret {} cannot be used: {e}", certificate.secret))?;
        let key = Arc::new(CertifiedKey::new(certificate.chain.clone(), key));
        if let Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) = key.keys_match() {
            return Err(format!("the key of Secret {} does not belong to its certificate", certificate.secret));
        }
        self.keys.insert(content, Arc::downgrade(&key));
        Ok(key)
    }

    fn sessions(&mut self, demand: &str, of_client: bool) -> Result<Arc<Sessions>, String> {
        if !of_client {
            return match &self.anonymous {
                Some(sessions) => Ok(sessions.clone()),
                None => Ok(self.anonymous.insert(Sessions::new()?).clone()),
            };
        }
        if let Some(sessions) = self.sessions.get(demand).and_then(Weak::upgrade) {
            return Ok(sessions);
        }
        let sessions = Sessions::new()?;
        self.sessions.insert(demand.to_owned(), Arc::downgrade(&sessions));
        Ok(sessions)
    }
}

impl Sessions {
    fn new() -> Result<Arc<Self>, String> {
        // Ticket keys are random, rotate every six hours and are good for twelve.
        let ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|e| format!("no ticket key: {e}"))?;
        Ok(Arc::new(Self { cache: ServerSessionMemoryCache::new(MAX_SESSIONS), ticketer }))
    }
}

fn content(certificate: &Certificate) -> Content {
    let all: Vec<u128> = certificate.chain.iter().map(|der| xxh3_128(der)).collect();
    let all: Vec<u8> = all.iter().flat_map(|hash| hash.to_le_bytes()).collect();
    (certificate.fingerprint.clone(), xxh3_128(&all))
}

fn demand(client: Option<&ClientValidation>) -> String {
    match client {
        None => "none".to_owned(),
        Some(validation) => {
            let trust = validation.trust.as_ref().map_or("nothing", |bundle| bundle.fingerprint.as_str());
            format!("{trust} fallback={}", validation.insecure_fallback)
        }
    }
}

fn server_config(
    certificates: Certificates,
    min_version: TlsVersion,
    auth: Option<Arc<ClientAuth>>,
    offer: Offer,
    sessions: &Sessions,
) -> Result<ServerConfig, String> {
    let versions: &[_] = match min_version {
        TlsVersion::V1_2 => &[&TLS13, &TLS12],
        TlsVersion::V1_3 => &[&TLS13],
    };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(|e| format!("the TLS versions cannot be used: {e}"))?;
    let builder = match auth {
        Some(auth) => builder.with_client_cert_verifier(auth),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = match offer {
        Offer::Http2AndHttp1 => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        Offer::Http1 => vec![b"http/1.1".to_vec()],
        Offer::Nothing => Vec::new(),
    };
    config.session_storage = sessions.cache.clone();
    config.ticketer = sessions.ticketer.clone();
    // Tickets are not used up by use, so one is enough. 0-RTT stays off (max_early_data_size 0): it can be replayed.
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// Chooses among the certificates of a listener: the first that carries the SNI and has a key the client can verify,
/// else the first with such a key, else the first.
#[derive(Debug, Default)]
struct Certificates {
    keys: Vec<Arc<CertifiedKey>>,
    /// Indices into `keys`, ascending, by the names of the certificates.
    names: HostMap<Vec<u32>>,
}

impl Certificates {
    fn add(&mut self, certificate: &Certificate, key: Arc<CertifiedKey>) {
        let index = self.keys.len() as u32;
        for name in &certificate.names {
            let slot = self.names.entry(Some(name), Vec::new);
            if slot.last() != Some(&index) {
                slot.push(index);
            }
        }
        self.keys.push(key);
    }

    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Arc<CertifiedKey>> {
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        if self.keys.len() == 1 {
            return self.keys.first();
        }
        let by_name = name.and_then(|name| {
            let exact = self.names.get_pattern(Some(name));
            // A certificate's wildcard stands for one label (RFC 6125 section 6.4.3), unlike a listener's.
            let wild =
                name.split_once('.').and_then(|(_, parent)| self.names.get_pattern(Some(&format!("*.{parent}"))));
            let first = |slot: Option<&Vec<u32>>| slot?.iter().copied().find(|i| fits(&&self.keys[*i as usize]));
            [first(exact), first(wild)].into_iter().flatten().min()
        });
        match by_name {
            Some(index) => self.keys.get(index as usize),
            None => self.keys.iter().find(fits).or(self.keys.first()),
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes()).cloned()
    }
}
