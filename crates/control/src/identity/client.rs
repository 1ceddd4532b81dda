//! The client of a control plane's CA.

use super::{convert, lapsed};
use crate::{
    ca::{Token, authority::fingerprint},
    proto::identity::{
        self as wire, ComeBackRequest, JoinRequest, RenewRequest, WatchBundleRequest, identity_client::IdentityClient,
    },
    source::stream::Dial,
    transport::{self, Dialer, Io},
};
use hyper_util::rt::TokioIo;
use selvedge_identity::{
    Bundle, Expect, Identities, Issued, Issuer, Issuing, NotIssued, Svid, Trust, control_id, joining_config,
    pinned_config,
};
use selvedge_wire::spiffe::SpiffeId;
use std::{
    io,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};
use tokio::sync::watch;
use tokio_rustls::{TlsConnector, rustls};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// One attempt at one control plane, from connecting to the certificate.
const ATTEMPT: Duration = Duration::from_secs(10);

/// Bytes of one answer: a bundle with all revocations there can be fits.
const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// The longest wait until the bundle is watched again after a failure; half of it and more by chance.
const PAUSE: Duration = Duration::from_secs(10);

/// What a node needs to begin: where control planes are, and join tokens unless it has certificates.
#[derive(Debug, Clone)]
pub struct Joining {
    /// `https://HOST:PORT` each.
    pub control: Vec<String>,
    pub tokens: JoinTokens,
}

/// Join tokens, each for one identity.
#[derive(Debug, Clone)]
pub enum JoinTokens {
    Given(Vec<Token>),
    /// One in a line. Read whenever one is needed: who was revoked comes back by a new token in the file.
    File(PathBuf),
}

impl JoinTokens {
    /// Those that there are now; none without the file, for it may be removed after the first start.
    pub fn all(&self) -> Result<Vec<Token>, String> {
        let path = match self {
            Self::Given(tokens) => return Ok(tokens.clone()),
            Self::File(path) => path,
        };
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            read => read.map_err(|error| format!("{}: {error}", path.display()))?,
        };
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.map(|line| line.parse().map_err(|error| format!("{}: {error}", path.display()))).collect()
    }
}

/// A certificate of another CA to join with. All three files are read whenever it is needed, for whoever renews it.
#[derive(Debug, Clone)]
pub struct JoinFiles {
    /// PEM, leaf first.
    pub chain: PathBuf,
    pub key: PathBuf,
    /// Roots of the mesh, by which the control plane is known.
    pub trust: PathBuf,
}

impl JoinFiles {
    /// None while there is no certificate, for it may be removed after the first start.
    fn config(&self, domain: &str) -> Result<Option<rustls::ClientConfig>, String> {
        if !self.chain.exists() {
            return Ok(None);
        }
        let read = |path: &PathBuf| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        let roots = Bundle::from_pem(&read(&self.trust)?).map_err(|e| format!("{}: {e}", self.trust.display()))?;
        let (chain, key) = (read(&self.chain)?, read(&self.key)?);
        let config = joining_config(domain, roots, (&chain, &key), &[b"h2"]);
        config.map(Some).map_err(|e| format!("{} with {}: {e}", self.chain.display(), self.key.display()))
    }
}

/// Gets certificates from control planes: the first by a join token, or a certificate of another CA, the next by the one before.
pub struct RemoteIssuer {
    shared: Arc<Shared>,
}

struct Shared {
    joining: Joining,
    certificate: OnceLock<JoinFiles>,
    domain: String,
    /// Whom we trust and what we show when we renew.
    identities: Arc<Identities>,
    trust: watch::Sender<Option<Arc<Trust>>>,
    /// Which control plane answered last.
    next: AtomicUsize,
}

impl RemoteIssuer {
    /// Of the control planes of `domain`. `identities` must hold the SVIDs that are renewed.
    pub fn new(domain: &str, joining: Joining, identities: Arc<Identities>) -> Result<Self, NotIssued> {
        if joining.control.is_empty() {
            return Err(NotIssued::Never("no control plane is named: give --control https://HOST:PORT".to_owned()));
        }
        let tokens = joining.tokens.all().map_err(NotIssued::Never)?;
        if let Some(why) = tokens.iter().find_map(|token| foreign(token, domain)) {
            return Err(NotIssued::Never(why));
        }
        let (trust, next) = (watch::Sender::new(None), AtomicUsize::new(0));
        let (certificate, domain) = (OnceLock::new(), domain.to_owned());
        Ok(Self { shared: Arc::new(Shared { joining, certificate, domain, identities, trust, next }) })
    }

    /// Joins by this certificate of another CA too, when there is no token that does it.
    pub fn with_certificate(self, files: JoinFiles) -> Self {
        let _ = self.shared.certificate.set(files);
        self
    }

    /// Follows the bundle for ever, showing `own`.
    pub async fn follow(&self, own: &SpiffeId) {
        let shared = Arc::clone(&self.shared);
        loop {
            let told = shared.follow_once(own).await;
            tracing::debug!(reason = %told, "the bundle is not watched for a moment");
            let pause = PAUSE.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            tokio::time::sleep(pause).await;
        }
    }
}

impl Issuer for RemoteIssuer {
    fn issue(&self, id: &SpiffeId, current: Option<Arc<Svid>>, request: Vec<u8>) -> Issuing {
        let (shared, id) = (Arc::clone(&self.shared), id.clone());
        Box::pin(async move { shared.issue(&id, current, request).await })
    }

    fn trust(&self) -> watch::Receiver<Option<Arc<Trust>>> {
        self.shared.trust.subscribe()
    }
}

/// What proves who asks.
enum Proof {
    Token,
    /// The certificate that is shown.
    Valid,
    /// A certificate that has ended.
    Lapsed(Arc<Svid>),
}

impl Shared {
    /// Asks one control plane after the other, beginning with the one that answered last. One that refuses may lag behind
    /// the others, or be of an older version: only when all refuse it is no use to ask again.
    async fn issue(&self, id: &SpiffeId, current: Option<Arc<Svid>>, request: Vec<u8>) -> Result<Issued, NotIssued> {
        let proof = match current {
            None => Proof::Token,
            Some(svid) if SystemTime::now() < svid.not_after() => Proof::Valid,
            Some(svid) => Proof::Lapsed(svid),
        };
        let (count, first) = (self.joining.control.len(), self.next.load(Ordering::Relaxed));
        let (mut never, mut later) = (None, None);
        for turn in 0..count {
            let place = (first + turn) % count;
            let url = &self.joining.control[place];
            let attempt = self.attempt(url, id, &proof, &request);
            let answered = tokio::time::timeout(ATTEMPT, attempt).await;
            match answered.unwrap_or_else(|_| Err(NotIssued::Later("no answer within 10 s".to_owned()))) {
                Ok(issued) => {
                    self.next.store(place, Ordering::Relaxed);
                    return Ok(issued);
                }
                Err(NotIssued::Later(text)) => later = Some(format!("{url}: {text}")),
                Err(NotIssued::Never(text)) => never = Some(format!("{url}: {text}")),
            }
        }
        Err(match (later, never) {
            (None, Some(never)) => NotIssued::Never(never),
            (Some(later), None) => NotIssued::Later(later),
            // What was refused is what can be mended.
            (Some(later), Some(never)) => NotIssued::Later(format!("{never}; {later}")),
            (None, None) => NotIssued::Later("no control plane is named".to_owned()),
        })
    }

    async fn attempt(&self, url: &str, id: &SpiffeId, proof: &Proof, request: &[u8]) -> Result<Issued, NotIssued> {
        let renewed = match proof {
            Proof::Valid => self.renew(url, id, request).await,
            Proof::Lapsed(svid) => self.come_back(url, svid, request).await,
            Proof::Token => return self.take_issued(self.join(url, id, request).await?, id),
        };
        let answer = match renewed {
            Ok(answer) => answer,
            // A revoked certificate opens no connection, and one that ended long ago renews nothing: a token may.
            Err(why) => match self.join(url, id, request).await {
                Ok(answer) => answer,
                Err(NotIssued::Never(also)) if self.has_token() => {
                    let by = self.certificate.get().map_or("the join token", |_| "the certificate to join with");
                    return Err(NotIssued::Never(format!("{why}; and by {by}: {also}")));
                }
                Err(_) => return Err(why),
            },
        };
        self.take_issued(answer, id)
    }

    fn has_token(&self) -> bool {
        self.certificate.get().is_some() || self.joining.tokens.all().map_or(true, |tokens| !tokens.is_empty())
    }

    async fn renew(&self, url: &str, id: &SpiffeId, request: &[u8]) -> Result<wire::Issued, NotIssued> {
        let request = RenewRequest { certificate_request: request.to_vec() };
        let mut client = self.client(url, id).await.map_err(NotIssued::Later)?;
        let answer = client.renew(request).await;
        Ok(answer.map_err(|status| refused(&status))?.into_inner())
    }

    fn take_issued(&self, answer: wire::Issued, id: &SpiffeId) -> Result<Issued, NotIssued> {
        if answer.identity != id.as_str() {
            let got: String = answer.identity.chars().take(200).collect();
            return Err(NotIssued::Never(format!("asked for {id} and got {}", got.escape_debug())));
        }
        let trust = self.take(answer.bundle.unwrap_or_default()).map_err(NotIssued::Later)?;
        Ok(Issued { chain: answer.chain.into_iter().map(Into::into).collect(), trust })
    }

    /// With a certificate that has ended. The control plane proves itself by one of the roots that we know.
    async fn come_back(&self, url: &str, svid: &Svid, request: &[u8]) -> Result<wire::Issued, NotIssued> {
        let unsigned = |e: selvedge_identity::Error| NotIssued::Never(format!("the key of the last certificate: {e}"));
        let signature = svid.sign(&lapsed::message(request)).map_err(unsigned)?;
        let chain = svid.chain().iter().map(|der| der.to_vec()).collect();
        let request = ComeBackRequest { chain, certificate_request: request.to_vec(), signature };
        let bundles = self.identities.bundles();
        let mut why = "no root of the mesh is known here: join again with a new token".to_owned();
        for root in bundles.get(&self.domain).into_iter().flat_map(selvedge_identity::Bundle::roots) {
            match pinned(url, &self.domain, fingerprint(root)).await {
                Ok(channel) => {
                    let mut client = IdentityClient::new(channel).max_decoding_message_size(MAX_ANSWER);
                    let answer = client.come_back(request).await;
                    return answer.map(tonic::Response::into_inner).map_err(|status| refused(&status));
                }
                Err(failed) => why = failed,
            }
        }
        Err(NotIssued::Later(why))
    }

    /// With the first token that is for `id`; asking with another one does not use it up.
    async fn join(&self, url: &str, id: &SpiffeId, request: &[u8]) -> Result<wire::Issued, NotIssued> {
        let mut why = NotIssued::Never(format!(
            "{id} has no valid certificate and nothing to join with: make a token on the control plane (`selvedge token \
             create`) and give it with --join-token-file, or give a certificate that may join with --join-cert"
        ));
        for token in self.joining.tokens.all().map_err(NotIssued::Never)? {
            if let Some(foreign) = foreign(&token, &self.domain) {
                why = NotIssued::Never(foreign);
                continue;
            }
            let channel = pinned(url, &token.trust_domain, token.root).await.map_err(NotIssued::Later)?;
            let request =
                JoinRequest { token: token.reveal(), identity: id.to_string(), certificate_request: request.to_vec() };
            let mut client = IdentityClient::new(channel).max_decoding_message_size(MAX_ANSWER);
            match client.join(request).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => match refused(&status) {
                    NotIssued::Never(text) => why = NotIssued::Never(text),
                    later => return Err(later),
                },
            }
        }
        match self.certificate.get() {
            Some(files) => self.join_by_certificate(files, url, id, request, why).await,
            None => Err(why),
        }
    }

    /// `why`: what is told when there is no certificate either.
    async fn join_by_certificate(
        &self,
        files: &JoinFiles,
        url: &str,
        id: &SpiffeId,
        request: &[u8],
        why: NotIssued,
    ) -> Result<wire::Issued, NotIssued> {
        let Some(config) = files.config(&self.domain).map_err(NotIssued::Never)? else { return Err(why) };
        // What ends a connection may not arrive.
        let hint = |text: String| format!("{text}; if it does not take our certificate to join with, its log says why");
        let channel = connected(url, config).await.map_err(|text| NotIssued::Later(hint(text)))?;
        let request =
            JoinRequest { token: String::new(), identity: id.to_string(), certificate_request: request.to_vec() };
        let mut client = IdentityClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let answer = client.join(request).await.map_err(|status| match refused(&status) {
            NotIssued::Never(text) => NotIssued::Never(text),
            NotIssued::Later(text) => NotIssued::Later(hint(text)),
        })?;
        Ok(answer.into_inner())
    }

    async fn client(&self, url: &str, own: &SpiffeId) -> Result<IdentityClient<Channel>, String> {
        let control = control_id(&self.domain).map_err(|e| e.to_string())?;
        let identities = Arc::clone(&self.identities);
        let dialer = Dialer { identities, own: Some(own.clone()), expect: Expect::Exactly(control) };
        let channel = dialer.dial(url).await?;
        Ok(IdentityClient::new(channel).max_decoding_message_size(MAX_ANSWER))
    }

    /// A bundle of our trust domain, unless it is older than what we have.
    fn take(&self, bundle: wire::Bundle) -> Result<Arc<Trust>, String> {
        let trust = Arc::new(convert::from_wire(bundle).map_err(|e| format!("its bundle cannot be used: {e}"))?);
        if trust.domain != self.domain {
            return Err(format!("its bundle is of trust domain {}, and ours is {}", trust.domain, self.domain));
        }
        self.trust.send_if_modified(|held| {
            let newer = held.as_ref().is_none_or(|h| h.sequence < trust.sequence);
            if newer {
                *held = Some(Arc::clone(&trust));
            }
            newer
        });
        Ok(trust)
    }

    /// Until the stream ends; returns why.
    async fn follow_once(&self, own: &SpiffeId) -> String {
        let first = self.next.load(Ordering::Relaxed) % self.joining.control.len();
        let url = &self.joining.control[first];
        let told = self.follow_at(url, own).await;
        // The next time another one; who answers to a request comes first again.
        self.next.store(first + 1, Ordering::Relaxed);
        told
    }

    async fn follow_at(&self, url: &str, own: &SpiffeId) -> String {
        let client = tokio::time::timeout(ATTEMPT, self.client(url, own)).await;
        let mut client = match client {
            Ok(Ok(client)) => client,
            Ok(Err(why)) => return format!("{url}: {why}"),
            Err(_) => return format!("{url}: no answer within 10 s"),
        };
        let sequence = self.trust.borrow().as_ref().map_or(0, |t| t.sequence);
        let mut bundles = match client.watch_bundle(WatchBundleRequest { sequence }).await {
            Ok(bundles) => bundles.into_inner(),
            Err(status) => return format!("{url}: {}", status.message()),
        };
        loop {
            match bundles.message().await {
                Ok(Some(bundle)) => {
                    if let Err(why) = self.take(bundle) {
                        return format!("{url}: {why}");
                    }
                }
                Ok(None) => return format!("{url}: the stream has ended"),
                Err(status) => return format!("{url}: {}", status.message()),
            }
        }
    }
}

/// What is wrong with a token of another trust domain.
fn foreign(token: &Token, domain: &str) -> Option<String> {
    (token.trust_domain != domain).then(|| {
        let theirs = &token.trust_domain;
        format!("the join token is of trust domain {theirs}, but this proxy is of {domain}: use a token of {domain}")
    })
}

fn refused(status: &Status) -> NotIssued {
    // What ended the connection, such as the other side's alert that a certificate is revoked, is at the bottom.
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        text = format!("{}: {error}", status.message());
        source = error.source();
    }
    let text: String = text.chars().filter(|c| !c.is_control()).take(1000).collect();
    match status.code() {
        Code::InvalidArgument | Code::PermissionDenied | Code::FailedPrecondition | Code::Unauthenticated => {
            NotIssued::Never(text)
        }
        Code::Unimplemented => NotIssued::Never("this control plane has no certificate authority".to_owned()),
        _ => NotIssued::Later(text),
    }
}

/// A connection to a control plane that is known only by the SHA-256 of its root.
async fn pinned(url: &str, domain: &str, root: [u8; 32]) -> Result<Channel, String> {
    connected(url, pinned_config(domain, root, &[b"h2"]).map_err(|e| e.to_string())?).await
}

async fn connected(url: &str, config: rustls::ClientConfig) -> Result<Channel, String> {
    let Some(rest) = url.strip_prefix("https://") else {
        return Err(format!("`{url}` is not an https:// URL: certificates are only asked for over TLS"));
    };
    let endpoint = Endpoint::from_shared(format!("http://{rest}")).map_err(|e| format!("`{url}` is no URL: {e}"))?;
    let connector = Pinned { config: Arc::new(config) };
    endpoint.connect_with_connector(connector).await.map_err(|error| {
        let mut innermost: &dyn std::error::Error = &error;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        format!("cannot connect: {innermost}")
    })
}

/// A client that shows nothing but what `config` does.
#[cfg(test)]
pub(super) async fn raw(url: &str, config: rustls::ClientConfig) -> IdentityClient<Channel> {
    IdentityClient::new(connected(url, config).await.expect("a connection"))
}

struct Pinned {
    config: Arc<rustls::ClientConfig>,
}

impl tonic::codegen::Service<tonic::codegen::http::Uri> for Pinned {
    type Response = TokioIo<Io>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Io>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: tonic::codegen::http::Uri) -> Self::Future {
        let config = Arc::clone(&self.config);
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let stream = transport::connect(&host, uri.port_u16().unwrap_or(443)).await?;
            stream.set_nodelay(true)?;
            let name = rustls::pki_types::ServerName::try_from(host).map_err(io::Error::other)?;
            let tls = TlsConnector::from(config).connect(name, stream).await?;
            Ok(TokioIo::new(Io::Tls(Box::new(tls.into()))))
        })
    }
}
