//! A recorded request as etcd's API has it, and its answer as it is recorded.

use bytes::Bytes;
use stele::proto::client::etcdserverpb::request_op::Request as Op;
use stele::proto::client::etcdserverpb::response_op::Response as Shown;
use stele::proto::client::etcdserverpb::{
    CompactionRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, RangeRequest,
    RequestOp, ResponseHeader, TxnRequest, TxnResponse,
};
use tonic::{Code, Status};

use crate::load::TTL_SECONDS;
use crate::record::{Outcome, Read, Request};
use crate::support::client::Clients;
use crate::support::operation::{Change, Intent};
use crate::support::requests::{delete_request, op, put_if_unchanged, put_request};

/// The outcome, or why there is none that is certain.
pub type Answer = Result<Outcome, Status>;

/// Whether an error says that the request did not take place and never will.
pub fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
    )
}

pub async fn send(clients: Clients, request: &Request) -> Answer {
    match request {
        Request::Write(Intent::Write(changes)) => write(clients, changes).await,
        Request::Write(Intent::Increment { key, seen, value }) => {
            increment(clients, key, *seen, value).await
        }
        Request::Write(Intent::Grant { lease }) => grant(clients, *lease).await,
        Request::Write(Intent::Revoke { lease }) => revoke(clients, *lease).await,
        Request::Read(read) => range(clients, read).await,
        Request::KeepAlive { lease } => keep_alive(clients, *lease).await,
        Request::Compact { revision } => compact(clients, *revision).await,
    }
}

/// The changes as the plainest request that can carry them.
async fn write(mut clients: Clients, changes: &[Change]) -> Answer {
    let revision = match changes {
        [Change::Put { key, value, lease }] => {
            let reply = clients.kv.put(put_request(key, value, *lease)).await?;
            revision_of(reply.into_inner().header)?
        }
        [Change::Delete { key, end }] => {
            let reply = clients.kv.delete_range(delete_request(key, end)).await?;
            let reply = reply.into_inner();
            let revision = revision_of(reply.header)?;
            if reply.deleted == 0 {
                return Ok(Outcome::Unchanged { revision });
            }
            revision
        }
        changes => {
            let txn = TxnRequest {
                success: changes.iter().map(op).collect(),
                ..TxnRequest::default()
            };
            revision_of(clients.kv.txn(txn).await?.into_inner().header)?
        }
    };
    Ok(Outcome::Wrote { revision })
}

/// Puts if nobody has written since, otherwise shows what is there.
async fn increment(mut clients: Clients, key: &Bytes, seen: i64, value: &Bytes) -> Answer {
    let range = RangeRequest {
        key: key.clone(),
        ..RangeRequest::default()
    };
    let txn = TxnRequest {
        failure: vec![RequestOp {
            request: Some(Op::RequestRange(range)),
        }],
        ..put_if_unchanged(key, seen, value)
    };
    let reply = clients.kv.txn(txn).await?.into_inner();
    let revision = revision_of(reply.header)?;
    if reply.succeeded {
        return Ok(Outcome::Wrote { revision });
    }
    let kvs = kvs_of(reply).ok_or_else(|| Status::internal("no range in the answer"))?;
    Ok(Outcome::Shown { revision, kvs })
}

fn kvs_of(reply: TxnResponse) -> Option<Vec<stele::proto::client::mvccpb::KeyValue>> {
    match reply.responses.into_iter().next()?.response? {
        Shown::ResponseRange(range) => Some(range.kvs),
        _ => None,
    }
}

async fn range(mut clients: Clients, read: &Read) -> Answer {
    let request = RangeRequest {
        key: read.key.clone(),
        range_end: read.end.clone(),
        revision: read.revision,
        serializable: read.is_serializable,
        ..RangeRequest::default()
    };
    let reply = clients.kv.range(request).await?.into_inner();
    let revision = revision_of(reply.header)?;
    let kvs = reply.kvs;
    Ok(Outcome::Shown { revision, kvs })
}

async fn grant(mut clients: Clients, lease: i64) -> Answer {
    let request = LeaseGrantRequest {
        id: lease,
        ttl: TTL_SECONDS,
    };
    let reply = clients.lease.lease_grant(request).await?.into_inner();
    let ttl_seconds = reply.ttl;
    Ok(Outcome::Lives { ttl_seconds })
}

async fn revoke(mut clients: Clients, lease: i64) -> Answer {
    let request = LeaseRevokeRequest { id: lease };
    let reply = clients.lease.lease_revoke(request).await?.into_inner();
    let revision = revision_of(reply.header)?;
    Ok(Outcome::Wrote { revision })
}

async fn keep_alive(mut clients: Clients, lease: i64) -> Answer {
    let request = LeaseKeepAliveRequest { id: lease };
    let stream = clients.lease.lease_keep_alive(tokio_stream::once(request));
    let reply = stream.await?.into_inner().message().await?;
    let reply = reply.ok_or_else(|| Status::unavailable("the stream ended without an answer"))?;
    let ttl_seconds = reply.ttl;
    Ok(Outcome::Lives { ttl_seconds })
}

async fn compact(mut clients: Clients, revision: i64) -> Answer {
    let request = CompactionRequest {
        revision,
        // Both kinds: physical ones wait until the removal is done.
        physical: revision % 2 == 0,
    };
    clients.kv.compact(request).await?;
    Ok(Outcome::Compacted)
}

fn revision_of(header: Option<ResponseHeader>) -> Result<i64, Status> {
    header
        .map(|header| header.revision)
        .ok_or_else(|| Status::internal("no header in the answer"))
}
