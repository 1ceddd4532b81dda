//! The SPIFFE Workload API: applications fetch their X.509 SVIDs and bundles over a Unix socket, and are sent each change.
//!
//! Who asks is known by the user ID of its process (SO_PEERCRED), and only users that are named get anything. The socket
//! itself is open to all, for its folder's mode is the administrator's.

mod authority;

#[doc(hidden)]
pub use authority::rewritten;

use crate::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
    spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
};
use authority::AnyAuthority;
use rustls_pki_types::PrivateKeyDer;
use selvedge_identity::{Bundle, Identities, Svid};
use selvedge_wire::spiffe::SpiffeId;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    future::Future,
    io,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};
use tokio::{
    net::UnixListener,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{ReceiverStream, UnixListenerStream},
};
use tonic::{Request, Response, Status, transport::server::UdsConnectInfo};

/// Streams that are open at the same time; each is one application.
const MAX_STREAMS: usize = 1024;

/// The largest request; those of X.509 are empty.
const MAX_MESSAGE: usize = 16 * 1024;

/// Which users get which identities.
#[derive(Debug, Clone)]
pub struct Callers {
    users: BTreeMap<u32, Option<BTreeSet<SpiffeId>>>,
}

impl Callers {
    /// The user of this process, and root.
    pub fn own_user() -> Self {
        let own = rustix::process::getuid().as_raw();
        Self { users: BTreeMap::from([(own, None), (0, None)]) }
    }

    /// Users by ID, each with the identities it gets, or all of them.
    pub fn of(users: impl IntoIterator<Item = (u32, Option<BTreeSet<SpiffeId>>)>) -> Self {
        Self { users: users.into_iter().collect() }
    }

    fn may(&self, uid: u32, id: &SpiffeId) -> bool {
        self.users.get(&uid).is_some_and(|ids| ids.as_ref().is_none_or(|ids| ids.contains(id)))
    }
}

/// A socket that is listened on. Its file is removed with it.
pub struct WorkloadApi {
    listener: UnixListener,
    path: SocketFile,
}

struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl WorkloadApi {
    /// Listens; a socket that a former process has left is replaced.
    ///
    /// # Errors
    /// When another process serves there, or the place cannot be written.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let explain = |error: io::Error| {
            io::Error::new(error.kind(), format!("the Workload API cannot listen on {}: {error}", path.display()))
        };
        if path.exists() {
            if UnixStream::connect(path).is_ok() {
                let other = io::Error::new(io::ErrorKind::AddrInUse, "another process serves there");
                return Err(explain(other));
            }
            let is_socket = fs::symlink_metadata(path).is_ok_and(|m| {
                use std::os::unix::fs::FileTypeExt;
                m.file_type().is_socket()
            });
            if !is_socket {
                return Err(explain(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket")));
            }
            fs::remove_file(path).map_err(explain)?;
        }
        if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(explain)?;
        }
        let listener = UnixListener::bind(path).map_err(explain)?;
        let file = SocketFile(path.to_owned());
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).map_err(explain)?;
        Ok(Self { listener, path: file })
    }

    /// Serves until `shutdown` resolves.
    ///
    /// # Errors
    /// When the listener breaks.
    pub async fn serve(
        self,
        identities: Arc<Identities>,
        callers: Callers,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), tonic::transport::Error> {
        let api = Api { identities, callers: Arc::new(callers), places: Arc::new(Semaphore::new(MAX_STREAMS)) };
        let service = SpiffeWorkloadApiServer::new(api).max_decoding_message_size(MAX_MESSAGE);
        let incoming = UnixListenerStream::new(self.listener).map(|io| io.map(AnyAuthority::new));
        // Streams never end by themselves, so a graceful shutdown would wait for the applications.
        let serving = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
        let served = tokio::select! {
            served = serving => served,
            () = shutdown => Ok(()),
        };
        drop(self.path);
        served
    }
}

struct Api {
    identities: Arc<Identities>,
    callers: Arc<Callers>,
    places: Arc<Semaphore>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for Api {
    type FetchX509SVIDStream = Answers<X509svidResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let uid = caller(&request)?;
        let callers = Arc::clone(&self.callers);
        self.stream(move |identities| svids(identities, &callers, uid))
    }

    type FetchX509BundlesStream = Answers<X509BundlesResponse>;

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let uid = caller(&request)?;
        let callers = Arc::clone(&self.callers);
        self.stream(move |identities| bundles(identities, &callers, uid))
    }

    async fn fetch_jwtsvid(&self, request: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        caller(&request).and_then(|_| Err(no_jwt()))
    }

    type FetchJWTBundlesStream = Answers<JwtBundlesResponse>;

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        caller(&request).and_then(|_| Err(no_jwt()))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        caller(&request).and_then(|_| Err(no_jwt()))
    }
}

impl Api {
    /// An answer now, and another one whenever it would differ.
    fn stream<T: Clone + PartialEq + Send + Sync + 'static>(
        &self,
        answer: impl Fn(&Identities) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<Answers<T>>, Status> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| Status::resource_exhausted("too many applications ask at once: try again"))?;
        let identities = Arc::clone(&self.identities);
        let changed = identities.changed();
        let first = answer(&identities)?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(follow(identities, changed, answer, first, sender, place));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn follow<T: Clone + PartialEq>(
    identities: Arc<Identities>,
    mut changed: tokio::sync::watch::Receiver<u64>,
    answer: impl Fn(&Identities) -> Result<T, Status>,
    first: T,
    sender: mpsc::Sender<Result<T, Status>>,
    _place: OwnedSemaphorePermit,
) {
    let mut last = first.clone();
    if sender.send(Ok(first)).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
        match answer(&identities) {
            Ok(next) if next == last => {}
            Ok(next) => {
                last = next.clone();
                if sender.send(Ok(next)).await.is_err() {
                    return;
                }
            }
            Err(status) => {
                // Nothing is left to tell; the application asks again.
                let _ = sender.send(Err(status)).await;
                return;
            }
        }
    }
}

/// The user that asks, if the request has the header that keeps web pages out.
fn caller<T>(request: &Request<T>) -> Result<u32, Status> {
    let header = request.metadata().get("workload.spiffe.io");
    if header.is_none_or(|value| value != "true") {
        return Err(Status::invalid_argument("the metadata `workload.spiffe.io: true` is missing"));
    }
    let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred.as_ref());
    peer.map(|peer| peer.uid()).ok_or_else(|| Status::permission_denied("it is not known who asks"))
}

fn no_jwt() -> Status {
    Status::unimplemented("only X.509 SVIDs are issued; there are no JWT SVIDs")
}

fn nothing(uid: u32) -> Status {
    Status::permission_denied(format!(
        "there is no identity for user {uid}: it is not named for the Workload API, or has no certificate yet"
    ))
}

fn svids(identities: &Identities, callers: &Callers, uid: u32) -> Result<X509svidResponse, Status> {
    let all = identities.bundles();
    let (mut found, mut crl, mut own) = (Vec::new(), Vec::new(), BTreeSet::new());
    for svid in identities.svids() {
        if !callers.may(uid, svid.id()) {
            continue;
        }
        let Some(bundle) = all.of_id(svid.id()) else { continue };
        let Some(entry) = entry(&svid, bundle) else { continue };
        found.push(entry);
        if own.insert(svid.id().trust_domain().to_owned()) {
            crl.extend(bundle.crls().map(<[u8]>::to_vec));
        }
    }
    if found.is_empty() {
        return Err(nothing(uid));
    }
    let others = all.iter().filter(|(domain, _)| !own.contains(*domain));
    let federated_bundles = others.map(|(domain, bundle)| (format!("spiffe://{domain}"), roots(bundle)));
    Ok(X509svidResponse { svids: found, crl, federated_bundles: federated_bundles.collect() })
}

fn entry(svid: &Svid, bundle: &Bundle) -> Option<X509svid> {
    let PrivateKeyDer::Pkcs8(key) = svid.key() else { return None };
    Some(X509svid {
        spiffe_id: svid.id().to_string(),
        x509_svid: svid.chain().iter().flat_map(|c| c.iter().copied()).collect(),
        x509_svid_key: key.secret_pkcs8_der().to_vec(),
        bundle: roots(bundle),
        hint: String::new(),
    })
}

fn bundles(identities: &Identities, callers: &Callers, uid: u32) -> Result<X509BundlesResponse, Status> {
    if !identities.svids().iter().any(|svid| callers.may(uid, svid.id())) {
        return Err(nothing(uid));
    }
    let all = identities.bundles();
    let bundles: HashMap<String, Vec<u8>> =
        all.iter().map(|(domain, bundle)| (format!("spiffe://{domain}"), roots(bundle))).collect();
    Ok(X509BundlesResponse { crl: all.iter().flat_map(|(_, b)| b.crls().map(<[u8]>::to_vec)).collect(), bundles })
}

fn roots(bundle: &Bundle) -> Vec<u8> {
    bundle.roots().flat_map(|root| root.iter().copied()).collect()
}
