//! One request of any kind, and how it goes onto the wire.

use std::fmt::Write;

use bytes::Bytes;
use prost::Message;
use stele::proto::client::etcdserverpb::request_op::Request as Op;
use stele::proto::client::etcdserverpb::{
    AlarmRequest, CompactionRequest, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest,
    LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    PutRequest, RangeRequest, TxnRequest,
};

#[derive(Clone, Debug)]
pub enum Request {
    Range(RangeRequest),
    RangeStream(RangeRequest),
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    HashKv(HashKvRequest),
    LeaseGrant(LeaseGrantRequest),
    LeaseRevoke(LeaseRevokeRequest),
    LeaseKeepAlive(LeaseKeepAliveRequest),
    LeaseTimeToLive(LeaseTimeToLiveRequest),
    LeaseLeases(LeaseLeasesRequest),
    Alarm(AlarmRequest),
    /// A body that no encoder makes, sent in place of the request it came
    /// from. Where it still decodes to something, that is `meaning`.
    Malformed {
        meaning: Box<Request>,
        body: Bytes,
        damage: Damage,
    },
}

/// What was done to an encoded request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Odd but legal protobuf (unknown fields, repeated scalar fields), or cut
    /// short: both servers must read it the same way.
    Structured,
    /// Arbitrary bytes. Go's decoder skips a known field of the wrong wire
    /// type, prost refuses the message: both are right, see `compare`.
    Garbage,
}

impl Request {
    pub fn path(&self) -> &'static str {
        match self {
            Request::Range(_) => "/etcdserverpb.KV/Range",
            Request::RangeStream(_) => "/etcdserverpb.KV/RangeStream",
            Request::Put(_) => "/etcdserverpb.KV/Put",
            Request::DeleteRange(_) => "/etcdserverpb.KV/DeleteRange",
            Request::Txn(_) => "/etcdserverpb.KV/Txn",
            Request::Compact(_) => "/etcdserverpb.KV/Compact",
            Request::HashKv(_) => "/etcdserverpb.Maintenance/HashKV",
            Request::LeaseGrant(_) => "/etcdserverpb.Lease/LeaseGrant",
            Request::LeaseRevoke(_) => "/etcdserverpb.Lease/LeaseRevoke",
            Request::LeaseKeepAlive(_) => "/etcdserverpb.Lease/LeaseKeepAlive",
            Request::LeaseTimeToLive(_) => "/etcdserverpb.Lease/LeaseTimeToLive",
            Request::LeaseLeases(_) => "/etcdserverpb.Lease/LeaseLeases",
            Request::Alarm(_) => "/etcdserverpb.Maintenance/Alarm",
            Request::Malformed { meaning, .. } => meaning.path(),
        }
    }

    pub fn body(&self) -> Bytes {
        let body = match self {
            Request::Range(request) | Request::RangeStream(request) => request.encode_to_vec(),
            Request::Put(request) => request.encode_to_vec(),
            Request::DeleteRange(request) => request.encode_to_vec(),
            Request::Txn(request) => request.encode_to_vec(),
            Request::Compact(request) => request.encode_to_vec(),
            Request::HashKv(request) => request.encode_to_vec(),
            Request::LeaseGrant(request) => request.encode_to_vec(),
            Request::LeaseRevoke(request) => request.encode_to_vec(),
            Request::LeaseKeepAlive(request) => request.encode_to_vec(),
            Request::LeaseTimeToLive(request) => request.encode_to_vec(),
            Request::LeaseLeases(request) => request.encode_to_vec(),
            Request::Alarm(request) => request.encode_to_vec(),
            Request::Malformed { body, .. } => return body.clone(),
        };
        Bytes::from(body)
    }

    /// Whether the request may run beside others without changing what they
    /// answer. A keep-alive may not: it moves its lease to the end of the list.
    pub fn is_read(&self) -> bool {
        match self {
            Request::Range(_)
            | Request::RangeStream(_)
            | Request::HashKv(_)
            | Request::LeaseTimeToLive(_)
            | Request::LeaseLeases(_) => true,
            Request::Txn(txn) => {
                let is_range = |op: &_| matches!(op, Some(Op::RequestRange(_)));
                txn.success
                    .iter()
                    .chain(&txn.failure)
                    .all(|op| is_range(&op.request))
            }
            Request::Malformed { meaning, .. } => meaning.is_read(),
            _ => false,
        }
    }

    /// Whether the header of the answer is the asked member's own, while the
    /// rest comes from the leader (LEA-22).
    pub fn is_keep_alive(&self) -> bool {
        match self {
            Request::LeaseKeepAlive(_) => true,
            Request::Malformed { meaning, .. } => meaning.is_keep_alive(),
            _ => false,
        }
    }

    /// The name under which the request is counted.
    pub fn kind(&self) -> &'static str {
        if matches!(self, Request::Malformed { .. }) {
            return "Malformed";
        }
        let path = self.path();
        &path[path.rfind('/').map_or(0, |slash| slash + 1)..]
    }

    /// The request as a line for people.
    pub fn summary(&self) -> String {
        let mut text = format!("{self:?}");
        shorten(&mut text, 1_500);
        text
    }
}

/// Cuts a text to about `limit` bytes and says so.
pub fn shorten(text: &mut String, limit: usize) {
    if text.len() <= limit {
        return;
    }
    let total = text.len();
    let end = (0..=limit)
        .rev()
        .find(|&end| text.is_char_boundary(end))
        .unwrap_or(0);
    text.truncate(end);
    write!(text, "... ({total} bytes)").expect("writing to a string does not fail");
}
