//! The gRPC service around the CA.

use super::{convert, joins::JoinCas, lapsed, limit::Limit};
use crate::{
    ca::{Ca, Current, Error, Issued, tokens::Refused},
    proto::identity::{
        self as wire, ComeBackRequest, JoinRequest, RenewRequest, WatchBundleRequest,
        identity_server::{Identity, IdentityServer},
    },
    transport::PeerInfo,
};
use futures_util::{Stream, StreamExt};
use selvedge_identity::Peer;
use selvedge_wire::spiffe::SpiffeId;
use std::{
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::time::Instant;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

/// Bytes of one request: a token and a certificate request.
const MAX_MESSAGE: usize = 16 * 1024;

/// Serves certificates to proxies.
#[derive(Clone)]
pub struct IdentityService {
    ca: Arc<Ca>,
    /// Certificates of other CAs that may join; none may without.
    joins: Option<Arc<JoinCas>>,
    limit: Arc<Mutex<Limit>>,
}

impl IdentityService {
    /// The service, to be mounted on a server whose connections have a [`PeerInfo`].
    pub fn server(ca: Arc<Ca>, joins: Option<Arc<JoinCas>>) -> IdentityServer<Self> {
        let limit = Arc::new(Mutex::new(Limit::new(Instant::now())));
        IdentityServer::new(Self { ca, joins, limit }).max_decoding_message_size(MAX_MESSAGE)
    }

    fn admit(&self, address: Option<IpAddr>) -> Result<(), Status> {
        let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        limit.admit(address, Instant::now()).map_err(Status::resource_exhausted)
    }

    /// A first certificate for whoever has shown one of another CA, in the handshake of this connection.
    fn join_by_certificate(
        &self,
        peer: &PeerInfo,
        wanted: Option<SpiffeId>,
        csr: &[u8],
    ) -> Result<Response<wire::Issued>, Status> {
        let none = "there is neither a token nor a certificate to join with (--join-token-file, --join-cert)";
        let shown = peer.joins_with.as_ref().ok_or_else(|| Status::unauthenticated(none))?;
        let closed = "this control plane takes no certificates of other CAs (--join-ca)";
        let joins = self.joins.as_ref().ok_or_else(|| Status::permission_denied(closed))?;
        let (certificate, allowed) = joins.judge(shown).map_err(|why| Status::permission_denied(why.to_string()))?;
        let names = || allowed.iter().map(SpiffeId::as_str).collect::<Vec<_>>().join(", ");
        let id = match wanted {
            _ if allowed.is_empty() => {
                let told = "no rule of --join-ca gives an identity to what this certificate names";
                return Err(Status::permission_denied(format!("{told}: {}", certificate.names())));
            }
            Some(id) if allowed.contains(&id) => id,
            Some(id) => {
                let told = format!("this certificate may be {}, not {id}", names());
                return Err(Status::permission_denied(format!("{told}: see the rules of --join-ca")));
            }
            None => match allowed.first() {
                Some(only) if allowed.len() == 1 => only.clone(),
                _ => return Err(Status::invalid_argument(format!("say which identity is meant: one of {}", names()))),
            },
        };
        let issued = self.ca.join_by_certificate(&id, &certificate, csr).map_err(|e| status(&e))?;
        Ok(Response::new(answer(issued)))
    }

    fn refused(&self, address: Option<IpAddr>) {
        self.limit.lock().unwrap_or_else(PoisonError::into_inner).failed(address, Instant::now());
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<wire::Issued>, Status> {
        let peer = peer(&request);
        let address = peer.address.map(|a| a.ip());
        self.admit(address)?;
        let request = request.into_inner();
        let wanted = match request.identity.as_str() {
            "" => None,
            id => Some(id.parse::<SpiffeId>().map_err(|e| Status::invalid_argument(format!("identity: {e}")))?),
        };
        if request.token.is_empty() {
            return self.join_by_certificate(&peer, wanted, &request.certificate_request).inspect_err(|status| {
                self.refused(address);
                let address = address.map(tracing::field::display);
                tracing::warn!(address, reason = status.message(), "a join by certificate was refused");
            });
        }
        match self.ca.join(&request.token, wanted.as_ref(), &request.certificate_request).await {
            Ok(issued) => Ok(Response::new(answer(issued))),
            Err(error) => {
                if matches!(error, Error::Token(_)) {
                    // A node with several tokens finds the right one by trying.
                    if !matches!(error, Error::Token(Refused::Identity { .. })) {
                        self.refused(address);
                    }
                    tracing::warn!(address = address.map(tracing::field::display), %error, "a join was refused");
                }
                Err(status(&error))
            }
        }
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<wire::Issued>, Status> {
        let peer = member(&request)?;
        let current = current(&peer).ok_or_else(|| Status::unauthenticated("your certificate cannot be read"))?;
        let issued = self.ca.renew(&current, &request.get_ref().certificate_request);
        issued.map(|i| Response::new(answer(i))).map_err(|e| status(&e))
    }

    async fn come_back(&self, request: Request<ComeBackRequest>) -> Result<Response<wire::Issued>, Status> {
        let address = peer(&request).address.map(|a| a.ip());
        self.admit(address)?;
        let refuse = |status: Status| {
            self.refused(address);
            tracing::warn!(
                address = address.map(tracing::field::display),
                reason = status.message(),
                "a node with a certificate that has ended was refused"
            );
            status
        };
        let request = request.into_inner();
        let current = lapsed::prove(&self.ca, &request).map_err(|why| {
            refuse(Status::permission_denied(format!("{why}: join again with a new token (`selvedge token create`)")))
        })?;
        match self.ca.come_back(&current, &request.certificate_request) {
            Ok(issued) => Ok(Response::new(answer(issued))),
            Err(error) if matches!(error, Error::Expired { .. } | Error::Revoked { .. }) => Err(refuse(status(&error))),
            Err(error) => Err(status(&error)),
        }
    }

    type WatchBundleStream = Pin<Box<dyn Stream<Item = Result<wire::Bundle, Status>> + Send>>;

    async fn watch_bundle(
        &self,
        request: Request<WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        let _ = member(&request)?;
        let known = request.get_ref().sequence;
        let bundles = WatchStream::new(self.ca.bundles()).enumerate();
        let news = bundles.filter_map(move |(turn, bundle)| async move {
            (turn > 0 || bundle.sequence != known).then(|| Ok(convert::to_wire(&bundle)))
        });
        // Who is revoked goes on to hear: that is how it learns of it, and roots are no secret.
        Ok(Response::new(Box::pin(news)))
    }
}

fn peer<T>(request: &Request<T>) -> PeerInfo {
    request.extensions().get::<PeerInfo>().cloned().unwrap_or_default()
}

fn member<T>(request: &Request<T>) -> Result<Peer, Status> {
    let why = "this needs the certificate of a member of the mesh (mutual TLS); a new node joins with a token first";
    peer(request).peer.ok_or_else(|| Status::unauthenticated(why))
}

pub(super) fn current(peer: &Peer) -> Option<Current> {
    let (_, leaf) = x509_parser::parse_x509_certificate(peer.chain.first()?).ok()?;
    let validity = leaf.validity();
    Some(Current {
        id: peer.id.clone(),
        serial: peer.serial.clone(),
        not_before: u64::try_from(validity.not_before.timestamp()).ok()?,
        not_after: u64::try_from(validity.not_after.timestamp()).ok()?,
    })
}

fn answer(issued: Issued) -> wire::Issued {
    wire::Issued {
        identity: issued.id.to_string(),
        chain: issued.leaf.chain,
        bundle: Some(convert::to_wire(&issued.bundle)),
    }
}

fn status(error: &Error) -> Status {
    let text = error.to_string();
    match error {
        Error::Request(_) | Error::Token(Refused::Malformed | Refused::Damaged) => Status::invalid_argument(text),
        Error::Token(Refused::OtherDomain { .. }) | Error::Foreign { .. } => Status::failed_precondition(text),
        Error::Token(_) | Error::Revoked { .. } | Error::JoinRevoked { .. } | Error::Expired { .. } => {
            Status::permission_denied(text)
        }
        // Trying again helps once somebody has made room, started the store or mended the clock.
        _ => {
            tracing::error!(%error, "no certificate was issued");
            Status::unavailable(text)
        }
    }
}
