//! A change as the requests of etcd's API that ask for it.

use bytes::Bytes;
use stele::proto::client::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use stele::proto::client::etcdserverpb::request_op::Request as Op;
use stele::proto::client::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest,
};

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

/// Puts the key if its mod_revision is still `seen` (0: absent), else does nothing.
pub fn put_if_unchanged(key: &Bytes, seen: i64, value: &Bytes) -> TxnRequest {
    TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(seen)),
            ..Compare::default()
        }],
        success: vec![RequestOp {
            request: Some(Op::RequestPut(put_request(key, value, 0))),
        }],
        ..TxnRequest::default()
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
