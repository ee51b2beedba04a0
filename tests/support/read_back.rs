//! Everything a server shows of its store, for comparison with a history.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use stele::proto::client::etcdserverpb::watch_request::RequestUnion;
use stele::proto::client::etcdserverpb::{
    HashKvRequest, LeaseLeasesRequest, LeaseTimeToLiveRequest, RangeRequest, WatchCreateRequest,
    WatchRequest,
};
use stele::proto::client::mvccpb::{Event, KeyValue};
use tonic::Status;

use super::client::Clients;

/// All keys, as a key and as the end of a range.
pub const EVERYTHING: Bytes = Bytes::from_static(b"\0");

const PATIENCE: Duration = Duration::from_secs(60);

/// All keys at `revision` (0: now), and the store's present revision.
pub async fn everything(clients: &Clients, revision: i64) -> Result<(i64, Vec<KeyValue>), String> {
    let request = RangeRequest {
        key: EVERYTHING,
        range_end: EVERYTHING,
        revision,
        ..RangeRequest::default()
    };
    let reply = clients.kv.clone().range(request).await;
    let reply = reply
        .map_err(|status| failed("range", &status))?
        .into_inner();
    let revision = reply.header.map_or(0, |header| header.revision);
    let (count, shown) = (reply.count, reply.kvs.len());
    if usize::try_from(count) != Ok(shown) {
        return Err(format!("count {count} for {shown} keys"));
    }
    Ok((revision, reply.kvs))
}

/// All events after one revision up to another, with previous values.
pub async fn events(clients: &Clients, after: i64, up_to: i64) -> Result<Vec<Event>, String> {
    if after >= up_to {
        return Ok(Vec::new());
    }
    let create = WatchCreateRequest {
        key: EVERYTHING,
        range_end: EVERYTHING,
        start_revision: after + 1,
        prev_kv: true,
        ..WatchCreateRequest::default()
    };
    let request = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    let mut events: Vec<Event> = Vec::new();
    let read = async {
        let mut watch = clients.watch.clone();
        let stream = watch.watch(tokio_stream::once(request)).await;
        let mut stream = stream
            .map_err(|status| failed("watch", &status))?
            .into_inner();
        loop {
            let response = stream
                .message()
                .await
                .map_err(|status| failed("watch", &status))?;
            let response = response.ok_or("the watch stream has ended")?;
            if response.canceled {
                return Err(format!("the watch was canceled: {response:?}"));
            }
            events.extend(response.events);
            let last = events.last().and_then(|event| event.kv.as_ref());
            if last.is_some_and(|kv| kv.mod_revision >= up_to) {
                return Ok(());
            }
        }
    };
    let timely = tokio::time::timeout(PATIENCE, read).await;
    timely.unwrap_or_else(|_| Err("the events do not come".to_owned()))?;
    Ok(events)
}

pub async fn leases(clients: &Clients) -> Result<BTreeSet<i64>, String> {
    let reply = clients
        .lease
        .clone()
        .lease_leases(LeaseLeasesRequest {})
        .await;
    let reply = reply
        .map_err(|status| failed("leases", &status))?
        .into_inner();
    Ok(reply.leases.iter().map(|lease| lease.id).collect())
}

/// The keys of a lease, ascending.
pub async fn keys_of(clients: &Clients, lease: i64) -> Result<Vec<Bytes>, String> {
    let request = LeaseTimeToLiveRequest {
        id: lease,
        keys: true,
    };
    let reply = clients.lease.clone().lease_time_to_live(request).await;
    let mut keys = reply
        .map_err(|status| failed("time to live", &status))?
        .into_inner()
        .keys;
    keys.sort();
    Ok(keys)
}

/// What must not change by a restart: the hash of all that is stored, and the
/// revision and compacted revision it belongs to.
pub async fn hash(clients: &Clients) -> Result<(u32, i64, i64), String> {
    let reply = clients
        .maintenance
        .clone()
        .hash_kv(HashKvRequest { revision: 0 })
        .await;
    let reply = reply
        .map_err(|status| failed("hash", &status))?
        .into_inner();
    Ok((reply.hash, reply.hash_revision, reply.compact_revision))
}

fn failed(what: &str, status: &Status) -> String {
    format!("{what} fails: {status:?}")
}
