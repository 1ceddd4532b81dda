//! The CA's service for its administrator, over a Unix socket of mode 0600, and the client of it.

use crate::{
    ca::{Ca, Error, Order, Rotate, Serial, state::Phase, time::seconds},
    proto::identity::{
        AuthorityStatus, CreateTokenRequest, CreateTokenResponse, DeleteTokenRequest, DeleteTokenResponse,
        ListTokensRequest, ListTokensResponse, RevokeRequest, RevokeResponse, RotateRequest, RotateResponse,
        ShowRequest, ShowResponse, Token,
        authority_client::AuthorityClient,
        authority_server::{Authority, AuthorityServer},
        revoke_request::What,
    },
};
use hyper_util::rt::TokioIo;
use selvedge_wire::spiffe::SpiffeId;
use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};

/// Serves the administrator of `ca` at `path` until it is dropped.
///
/// # Errors
/// When the socket cannot be made.
pub async fn administer(ca: Arc<Ca>, path: &Path) -> io::Result<()> {
    if path.exists() {
        if UnixStream::connect(path).await.is_ok() {
            let why = format!("another control plane uses {}: give each one its own --state", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
        }
        fs::remove_file(path)?;
    }
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty());
    folder.map_or(Ok(()), fs::create_dir_all)?;
    // Made under another name, and moved when only its user may open it.
    let beside = path.with_extension("new");
    let _ = fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
    fs::rename(&beside, path)?;
    let server = Server::builder().add_service(AuthorityServer::new(Service { ca }));
    server.serve_with_incoming(UnixListenerStream::new(listener)).await.map_err(io::Error::other)
}

/// Connects to the control plane whose socket is at `path`.
pub async fn administrator(path: &Path) -> Result<AuthorityClient<Channel>, String> {
    // The name is only for the form: the connector knows where to go.
    let endpoint = Endpoint::from_static("http://control").timeout(Duration::from_secs(30));
    let channel = endpoint.connect_with_connector(Socket { path: path.to_owned() }).await;
    let channel = channel.map_err(|error| {
        let mut innermost: &dyn std::error::Error = &error;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        format!(
            "no control plane with a certificate authority answers at {} ({innermost}): start `selvedge control` or \
             `selvedge run --listen`, or name its folder with --state",
            path.display()
        )
    })?;
    Ok(AuthorityClient::new(channel))
}

struct Socket {
    path: PathBuf,
}

impl tonic::codegen::Service<tonic::codegen::http::Uri> for Socket {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: tonic::codegen::http::Uri) -> Self::Future {
        let path = self.path.clone();
        Box::pin(async move { Ok(TokioIo::new(UnixStream::connect(path).await?)) })
    }
}

struct Service {
    ca: Arc<Ca>,
}

#[tonic::async_trait]
impl Authority for Service {
    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let asked = request.into_inner();
        let id = SpiffeId::workload(self.ca.trust_domain(), &asked.namespace, &asked.service_account);
        let id = id.map_err(|e| Status::invalid_argument(format!("the identity: {e}")))?;
        let order = Order { id, life: Duration::from_secs(asked.seconds), uses: asked.uses };
        let token = self.ca.create_token(&order).await.map_err(|e| status(&e))?;
        let answer =
            CreateTokenResponse { token: token.reveal(), id: token.id(), identity: order.id.as_str().to_owned() };
        Ok(Response::new(answer))
    }

    async fn list_tokens(&self, _: Request<ListTokensRequest>) -> Result<Response<ListTokensResponse>, Status> {
        let all = self.ca.list_tokens().await.map_err(|e| status(&e))?;
        let tokens = all.into_iter().map(|t| Token {
            id: t.id,
            identity: t.identity,
            expires: t.expires,
            uses: t.uses,
            used: u32::try_from(t.used).unwrap_or(u32::MAX),
        });
        Ok(Response::new(ListTokensResponse { tokens: tokens.collect() }))
    }

    async fn delete_token(
        &self,
        request: Request<DeleteTokenRequest>,
    ) -> Result<Response<DeleteTokenResponse>, Status> {
        match self.ca.delete_token(&request.get_ref().id).await {
            Ok(true) => Ok(Response::new(DeleteTokenResponse {})),
            Ok(false) => Err(Status::not_found("there is no such token; `selvedge token list` shows all")),
            Err(error) => Err(status(&error)),
        }
    }

    async fn rotate(&self, request: Request<RotateRequest>) -> Result<Response<RotateResponse>, Status> {
        let asked = request.into_inner();
        let what = if asked.root { Rotate::Root { at_once: asked.at_once } } else { Rotate::Intermediate };
        self.ca.rotate(what).await.map_err(|e| status(&e))?;
        Ok(Response::new(RotateResponse {}))
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Result<Response<RevokeResponse>, Status> {
        let done = match request.into_inner().what {
            Some(What::Serial(text)) => {
                let wrong = || Status::invalid_argument("a serial number is written in hexadecimal digits");
                self.ca.revoke_serial(&Serial::from_hex(&text).ok_or_else(wrong)?).await
            }
            Some(What::Identity(text)) => self.ca.revoke_identity(&self.identity(&text)?).await,
            None => return Err(Status::invalid_argument("nothing is named: give an identity or a serial number")),
        };
        done.map(|()| Response::new(RevokeResponse {})).map_err(|e| status(&e))
    }

    async fn show(&self, _: Request<ShowRequest>) -> Result<Response<ShowResponse>, Status> {
        let bundle = self.ca.bundle();
        let authorities = self.ca.authorities().into_iter().map(|a| {
            let (phase, until) = match a.phase {
                Phase::Next { from } => ("next", from),
                Phase::Active => ("active", 0),
                Phase::Retiring { until } => ("retiring", until),
            };
            AuthorityStatus {
                root: a.root,
                phase: phase.to_owned(),
                until,
                not_after: seconds(a.not_after),
                fingerprint: a.fingerprint.to_vec(),
            }
        });
        Ok(Response::new(ShowResponse {
            trust_domain: bundle.trust_domain.clone(),
            sequence: bundle.sequence,
            authorities: authorities.collect(),
            roots: bundle.roots.clone(),
            revoked: bundle.revoked.iter().map(ToString::to_string).collect(),
        }))
    }
}

impl Service {
    fn identity(&self, text: &str) -> Result<SpiffeId, Status> {
        let parsed = match text.split_once('/') {
            Some((namespace, account)) if !text.starts_with("spiffe:") => {
                SpiffeId::workload(self.ca.trust_domain(), namespace, account)
            }
            _ => text.parse(),
        };
        parsed.map_err(|e| Status::invalid_argument(format!("the identity: {e}; or write NAMESPACE/SERVICEACCOUNT")))
    }
}

fn status(error: &Error) -> Status {
    let text = error.to_string();
    match error {
        Error::Store(_) | Error::Crypto(_) => Status::unavailable(text),
        _ => Status::failed_precondition(text),
    }
}
