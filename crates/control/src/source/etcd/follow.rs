//! Following etcd: everything once, then each change, for as long as it takes.

use super::client::{Client, Everything, failed};
use crate::proto::etcd::{WatchCreateRequest, WatchRequest, event::EventType, watch_request::RequestUnion};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_stream::StreamExt;
use tonic::transport::Channel;

/// What has come.
#[derive(Debug)]
pub enum Batch {
    Everything(Everything),
    /// Keys with their new values; `None` when they are gone. As of the revision.
    Changes(Vec<(Vec<u8>, Option<Vec<u8>>)>, i64),
    /// It cannot be reached, or reached again (`None`).
    Down(Option<String>),
}

/// First and longest wait between tries.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Follows until nobody wants to know any more. `again`: everything is to be looked at once more.
pub async fn follow(client: Arc<Client>, batches: mpsc::Sender<Batch>, again: Arc<Notify>) {
    let mut revision = 0;
    let mut wait = BACKOFF.0;
    loop {
        let (before, began) = (revision, Instant::now());
        let why = match once(&client, &mut revision, &batches, &again).await {
            Ok(()) => return,
            Err(why) => why,
        };
        if revision != before || began.elapsed() > BACKOFF.1 {
            wait = BACKOFF.0;
        }
        client.another();
        if batches.send(Batch::Down(Some(why))).await.is_err() {
            return;
        }
        let jitter: f64 = rand::random_range(0.5..1.0);
        tokio::time::sleep(wait.mul_f64(jitter)).await;
        wait = (wait * 2).min(BACKOFF.1);
    }
}

/// One connection. `revision` is what is known already; 0 when nothing is.
async fn once(
    client: &Client,
    revision: &mut i64,
    batches: &mpsc::Sender<Batch>,
    again: &Notify,
) -> Result<(), String> {
    let channel = client.connect().await?;
    loop {
        if *revision == 0 {
            let all = client.everything(&channel).await?;
            *revision = all.revision;
            if batches.send(Batch::Everything(all)).await.is_err() {
                return Ok(());
            }
        }
        let watched = tokio::select! {
            watched = watch(client, channel.clone(), revision, batches) => watched?,
            () = again.notified() => Watched::Stale,
        };
        match watched {
            Watched::Unwanted => return Ok(()),
            // Everything must be looked at again.
            Watched::Stale => *revision = 0,
        }
    }
}

enum Watched {
    Unwanted,
    /// What happened meanwhile is forgotten, or never happened: etcd was put back to a former state.
    Stale,
}

async fn watch(
    client: &Client,
    channel: Channel,
    revision: &mut i64,
    batches: &mpsc::Sender<Batch>,
) -> Result<Watched, String> {
    let key = format!("{}/", client.prefix()).into_bytes();
    let create = WatchCreateRequest {
        range_end: super::client::end(&key),
        key,
        start_revision: *revision + 1,
        progress_notify: true,
        prev_kv: false,
        watch_id: 0,
        fragment: true,
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    // The stream of requests stays open: its end would end the watch.
    let requests = tokio_stream::once(request).chain(tokio_stream::pending());
    let mut answers = Client::watch(channel, requests).await?;
    let (mut changes, mut newest) = (Vec::new(), 0);
    while let Some(answer) = answers.message().await.map_err(failed)? {
        if answer.canceled {
            return match answer.compact_revision {
                0 => Err(format!("etcd has ended the watch: {}", answer.cancel_reason)),
                _ => Ok(Watched::Stale),
            };
        }
        if answer.created && answer.header.as_ref().is_some_and(|header| header.revision < *revision) {
            return Ok(Watched::Stale);
        }
        if answer.created && batches.send(Batch::Down(None)).await.is_err() {
            return Ok(Watched::Unwanted);
        }
        for event in answer.events {
            let deleted = event.r#type() == EventType::Delete;
            let Some(kv) = event.kv else { continue };
            newest = kv.mod_revision.max(newest);
            changes.push((kv.key, (!deleted).then_some(kv.value)));
        }
        // All fragments belong to one revision.
        if answer.fragment {
            continue;
        }
        if !changes.is_empty() {
            if batches.send(Batch::Changes(std::mem::take(&mut changes), newest)).await.is_err() {
                return Ok(Watched::Unwanted);
            }
            // The header tells of the present, while changes from before may be yet to come.
            *revision = newest.max(*revision);
        } else if let Some(header) = answer.header.filter(|_| !answer.created) {
            *revision = header.revision.max(*revision);
        }
    }
    Err("etcd has ended the watch".to_owned())
}
