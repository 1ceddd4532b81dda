//! Calls to etcd's v3 API (etcd.io/docs/v3.6/learning/api): over whichever endpoint answers.

use crate::{
    proto::etcd::{
        CompactionRequest, Compare, DeleteRangeRequest, KeyValue, LeaseGrantRequest, LeaseKeepAliveRequest,
        LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchRequest, WatchResponse, compare,
        kv_client::KvClient, lease_client::LeaseClient, request_op::Request, watch_client::WatchClient,
    },
    transport::{causes, told},
};
use selvedge_model::{Kind, ResourceKey};
use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};
use tokio_stream::Stream;
use tonic::{
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

/// Longest time for one call.
const CALL: Duration = Duration::from_secs(5);
/// Longest time to keep a lease: what is in it must be there still when another endpoint is asked then.
const RENEWAL: Duration = Duration::from_secs(2);
/// Longest time to connect.
const CONNECT: Duration = Duration::from_secs(2);
/// etcd is asked by HTTP/2 PING whether it is still there after this much silence: a dead connection must not look like
/// peace. It ends connections that ask more often than every 5 s (its `--grpc-keepalive-min-time`).
const SILENCE: Duration = Duration::from_secs(6);
/// Longest time for the answer.
const PONG: Duration = Duration::from_secs(2);
/// Keys per page when everything is read.
const PAGE: i64 = 200;
/// Bytes of one answer: a page of large values.
const MAX_MESSAGE: usize = 512 * 1024 * 1024;

/// Endpoints of one etcd, and where in it our keys are. Whoever has connections of its own has a client of its own: which
/// endpoint is next is for one of them to say.
#[derive(Debug)]
pub struct Client {
    urls: Vec<String>,
    prefix: String,
    /// The endpoint that answered last.
    next: AtomicUsize,
}

/// All keys at one moment.
#[derive(Debug, Default)]
pub struct Everything {
    pub revision: i64,
    /// Which etcd it is.
    pub cluster: u64,
    pub kvs: Vec<KeyValue>,
}

impl Client {
    /// `prefix` begins with `/` and has none at its end.
    pub fn new(urls: Vec<String>, prefix: &str) -> Self {
        Self { urls, prefix: prefix.trim_end_matches('/').to_owned(), next: AtomicUsize::new(0) }
    }

    /// Of the same etcd, for somebody else.
    pub fn apart(&self) -> Self {
        Self { urls: self.urls.clone(), prefix: self.prefix.clone(), next: AtomicUsize::new(self.next.load(Relaxed)) }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Where a resource is written.
    pub fn path(&self, key: &ResourceKey) -> String {
        let Self { prefix, .. } = self;
        let ResourceKey { kind, namespace, name } = key;
        match kind.namespaced() {
            true => format!("{prefix}/resources/{kind}/{namespace}/{name}"),
            false => format!("{prefix}/resources/{kind}/{name}"),
        }
    }

    /// Where a workload is written that has joined by itself.
    pub fn joined(&self, key: &ResourceKey) -> String {
        format!("{}/joined/{}/{}", self.prefix, key.namespace, key.name)
    }

    /// Which resource a path is for.
    pub fn key(&self, path: &str) -> Option<ResourceKey> {
        let below = path.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        let parts: Vec<&str> = below.split('/').collect();
        match parts[..] {
            ["resources", kind, namespace, name] => {
                let kind: Kind = kind.parse().ok()?;
                kind.namespaced().then(|| ResourceKey::new(kind, namespace, name))
            }
            ["resources", kind, name] => {
                let kind: Kind = kind.parse().ok()?;
                (!kind.namespaced()).then(|| ResourceKey::new(kind, "", name))
            }
            ["joined", namespace, name] => Some(ResourceKey::new(Kind::Workload, namespace, name)),
            _ => None,
        }
    }

    /// Connects to the endpoint that answered last, or to the next that does.
    pub async fn connect(&self) -> Result<Channel, String> {
        let mut errors = Vec::new();
        for _ in 0..self.urls.len() {
            let index = self.next.load(Relaxed) % self.urls.len();
            let url = &self.urls[index];
            let endpoint = Endpoint::from_shared(url.clone()).map_err(|e| format!("`{url}` is no URL: {e}"))?;
            let endpoint = endpoint
                .connect_timeout(CONNECT)
                .http2_keep_alive_interval(SILENCE)
                .keep_alive_timeout(PONG)
                // etcd allows none where nothing is asked of it.
                .keep_alive_while_idle(false);
            match endpoint.connect().await {
                Ok(channel) => return Ok(channel),
                Err(error) => errors.push(format!("{url}: {}", causes(&error))),
            }
            self.another();
        }
        Err(format!("etcd cannot be reached ({})", errors.join("; ")))
    }

    /// The endpoint answers no longer: another one is next.
    pub fn another(&self) {
        self.next.fetch_add(1, Relaxed);
    }

    /// Watches, until the member of etcd has been without a leader for some elections: cut off from the others it would
    /// keep silent for ever.
    pub(super) async fn watch(
        channel: Channel,
        requests: impl Stream<Item = WatchRequest> + Send + 'static,
    ) -> Result<tonic::Streaming<WatchResponse>, String> {
        let mut client = WatchClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        client.watch(with_leader(requests)).await.map(tonic::Response::into_inner).map_err(failed)
    }

    /// Reads all our keys, as they were at one moment.
    pub async fn everything(&self, channel: &Channel) -> Result<Everything, String> {
        self.below(channel, &format!("{}/", self.prefix)).await
    }

    /// Reads all keys that begin with `prefix`, as they were at one moment.
    pub async fn below(&self, channel: &Channel, prefix: &str) -> Result<Everything, String> {
        let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let mut key = prefix.as_bytes().to_vec();
        let range_end = end(&key);
        let mut all = Everything::default();
        loop {
            let request = RangeRequest {
                key,
                range_end: range_end.clone(),
                limit: PAGE,
                revision: all.revision,
                keys_only: false,
            };
            let answer = call(kv.range(request)).await?;
            if all.revision == 0 {
                (all.revision, all.cluster) =
                    answer.header.map_or((0, 0), |header| (header.revision, header.cluster_id));
            }
            let last = answer.kvs.last().map(|kv| kv.key.clone());
            all.kvs.extend(answer.kvs);
            match last {
                Some(last) if answer.more => key = [last, vec![0]].concat(),
                _ => return Ok(all),
            }
        }
    }

    /// Writes a key, in a lease unless it is 0.
    pub async fn put(&self, channel: &Channel, path: &str, value: Vec<u8>, lease: i64) -> Result<(), String> {
        let request = PutRequest { key: path.into(), value, lease, prev_kv: false };
        call(KvClient::new(channel.clone()).put(request)).await.map(|_| ())
    }

    /// Removes a key; whether there was one.
    pub async fn delete(&self, channel: &Channel, path: &str) -> Result<bool, String> {
        let request = DeleteRangeRequest { key: path.into(), ..DeleteRangeRequest::default() };
        Ok(call(KvClient::new(channel.clone()).delete_range(request)).await?.deleted > 0)
    }

    /// Removes a key if it is in that lease: nobody has taken it over.
    pub async fn delete_leased(&self, channel: &Channel, path: &str, lease: i64) -> Result<bool, String> {
        let compare = Compare {
            result: compare::CompareResult::Equal.into(),
            target: compare::CompareTarget::Lease.into(),
            key: path.into(),
            target_union: Some(compare::TargetUnion::Lease(lease)),
        };
        let delete = DeleteRangeRequest { key: path.into(), ..DeleteRangeRequest::default() };
        self.transact(channel, compare, Request::RequestDeleteRange(delete)).await
    }

    /// Writes a key in a lease if there is none; whether it did.
    pub async fn create(&self, channel: &Channel, path: &str, value: Vec<u8>, lease: i64) -> Result<bool, String> {
        let compare = Compare {
            result: compare::CompareResult::Equal.into(),
            target: compare::CompareTarget::Create.into(),
            key: path.into(),
            target_union: Some(compare::TargetUnion::CreateRevision(0)),
        };
        let put = PutRequest { key: path.into(), value, lease, prev_kv: false };
        self.transact(channel, compare, Request::RequestPut(put)).await
    }

    /// The lease that a key is in; `None` when there is no such key.
    pub async fn lease_of(&self, channel: &Channel, path: &str) -> Result<Option<i64>, String> {
        Ok(self.get(channel, path).await?.map(|kv| kv.lease))
    }

    /// One key with its value and revision, if there is one.
    pub async fn get(&self, channel: &Channel, path: &str) -> Result<Option<KeyValue>, String> {
        let request = RangeRequest { key: path.into(), ..RangeRequest::default() };
        Ok(call(KvClient::new(channel.clone()).range(request)).await?.kvs.into_iter().next())
    }

    /// Writes and deletes all, if every key of `unchanged` was last changed at its revision (0: it does not exist); whether
    /// it did.
    pub async fn replace(
        &self,
        channel: &Channel,
        unchanged: Vec<(String, i64)>,
        put: Vec<(String, Vec<u8>)>,
        delete: Vec<String>,
    ) -> Result<bool, String> {
        let compare = unchanged.into_iter().map(|(path, revision)| Compare {
            result: compare::CompareResult::Equal.into(),
            target: compare::CompareTarget::Mod.into(),
            key: path.into(),
            target_union: Some(compare::TargetUnion::ModRevision(revision)),
        });
        let puts = put
            .into_iter()
            .map(|(path, value)| Request::RequestPut(PutRequest { key: path.into(), value, lease: 0, prev_kv: false }));
        let deletes = delete.into_iter().map(|path| {
            Request::RequestDeleteRange(DeleteRangeRequest { key: path.into(), ..DeleteRangeRequest::default() })
        });
        let request = TxnRequest {
            compare: compare.collect(),
            success: puts.chain(deletes).map(|request| RequestOp { request: Some(request) }).collect(),
            failure: Vec::new(),
        };
        Ok(call(KvClient::new(channel.clone()).txn(request)).await?.succeeded)
    }

    async fn transact(&self, channel: &Channel, compare: Compare, request: Request) -> Result<bool, String> {
        let request = TxnRequest {
            compare: vec![compare],
            success: vec![RequestOp { request: Some(request) }],
            failure: Vec::new(),
        };
        Ok(call(KvClient::new(channel.clone()).txn(request)).await?.succeeded)
    }

    /// A new lease.
    pub async fn grant(&self, channel: &Channel, life: Duration) -> Result<i64, String> {
        let ttl = i64::try_from(life.as_secs()).unwrap_or(i64::MAX).max(1);
        Ok(call(LeaseClient::new(channel.clone()).lease_grant(LeaseGrantRequest { ttl, id: 0 })).await?.id)
    }

    /// Keeps a lease; false when it has run out.
    pub async fn keep_alive(&self, channel: &Channel, lease: i64) -> Result<bool, String> {
        let requests = with_leader(tokio_stream::once(LeaseKeepAliveRequest { id: lease }));
        let mut client = LeaseClient::new(channel.clone());
        let asking = async { client.lease_keep_alive(requests).await?.into_inner().message().await };
        let answer = tokio::time::timeout(RENEWAL, asking).await;
        let answer = answer.map_err(|_| format!("etcd does not renew a lease within {} s", RENEWAL.as_secs()))?;
        Ok(answer.map_err(failed)?.is_some_and(|answer| answer.ttl > 0))
    }

    /// Forgets the history before a revision.
    pub async fn compact(&self, channel: &Channel, revision: i64) -> Result<(), String> {
        let request = CompactionRequest { revision, physical: true };
        call(KvClient::new(channel.clone()).compact(request)).await.map(|_| ())
    }

    /// Ends a lease, and every key in it.
    pub async fn revoke(&self, channel: &Channel, lease: i64) -> Result<(), String> {
        call(LeaseClient::new(channel.clone()).lease_revoke(LeaseRevokeRequest { id: lease })).await.map(|_| ())
    }
}

async fn call<T>(call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, String> {
    match tokio::time::timeout(CALL, call).await {
        Ok(result) => result.map(tonic::Response::into_inner).map_err(failed),
        Err(_) => Err(format!("etcd does not answer within {} s", CALL.as_secs())),
    }
}

/// Asks a member of etcd to end a stream when it has no leader (etcd's `WithRequireLeader`).
fn with_leader<T>(requests: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(requests);
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    request
}

pub(super) fn failed(status: tonic::Status) -> String {
    format!("etcd: {}", told(&status))
}

/// The end of the range of all keys that begin with a prefix.
pub(super) fn end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // All keys.
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_resources() {
        let client = Client::new(Vec::new(), "/selvedge/");
        for key in [ResourceKey::new(Kind::Service, "shop", "cart"), ResourceKey::new(Kind::GatewayClass, "", "edge")] {
            assert_eq!(client.key(&client.path(&key)), Some(key));
        }
        let workload = ResourceKey::new(Kind::Workload, "shop", "cart-1");
        assert_eq!(client.joined(&workload), "/selvedge/joined/shop/cart-1");
        assert_eq!(client.key("/selvedge/joined/shop/cart-1"), Some(workload));
        for wrong in ["/other/resources/Service/a/b", "/selvedge/resources/Service/b", "/selvedge/resources/Thing/a/b"]
        {
            assert_eq!(client.key(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_end_of_a_prefix_is_the_next_one() {
        assert_eq!(end(b"/a/"), b"/a0");
        assert_eq!(end(&[1, 255]), [2]);
        assert_eq!(end(&[255]), [0]);
    }
}
