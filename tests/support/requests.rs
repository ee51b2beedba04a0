//! A change as the requests of etcd's API that ask for it.

use bytes::Bytes;
use stele::proto::client::etcdserverpb::request_op::Request as Op;
use stele::proto::client::etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp};

use super::operation::Change;

pub fn put_request(key: &Bytes, value: &Bytes, lease: i64) -> PutRequest {
    PutRequest {
        key: key.clone(),
        value: value.clone(),
        lease,
        ..PutRequest::default()
    }
}

pub fn delete_request(key: &Bytes, end: &Bytes) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: key.clone(),
        range_end: end.clone(),
        prev_kv: false,
    }
}

/// A change as one operation of a transaction.
pub fn op(change: &Change) -> RequestOp {
    let request = match change {
        Change::Put { key, value, lease } => Op::RequestPut(put_request(key, value, *lease)),
        Change::Delete { key, end } => Op::RequestDeleteRange(delete_request(key, end)),
    };
    RequestOp {
        request: Some(request),
    }
}
