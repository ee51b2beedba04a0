//! What a request led to, with everything taken out in which two servers may
//! rightly differ.
//!
//! Taken out: the numbers of cluster, member and term in headers (only whether
//! they are set remains), how much of a lease's time is left, the order of a
//! lease's keys, and how a RangeStream is cut into messages. What breaks the
//! protocol itself is kept as [`Outcome::Broken`].

use std::fmt::Debug;

use prost::Message;
use stele::proto::client::etcdserverpb::response_op::Response as OpReply;
use stele::proto::client::etcdserverpb::{
    AlarmResponse, CompactionResponse, DeleteRangeResponse, HashKvResponse, LeaseGrantResponse,
    LeaseKeepAliveResponse, LeaseLeasesResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse,
    PutResponse, RangeResponse, RangeStreamResponse, ResponseHeader, TxnResponse,
};

use super::call::{Answer, Failure};
use super::request::Request;

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Reply(Reply),
    Failure(Failure),
    /// The answer is not one that any request can have; the text says why.
    Broken(String),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Also a RangeStream, its messages put together.
    Range(RangeResponse),
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    /// A txn nested more deeply than our decoder goes.
    DeepTxn(DeepTxnResponse),
    Compact(CompactionResponse),
    HashKv(HashKvResponse),
    LeaseGrant(LeaseGrantResponse),
    LeaseRevoke(LeaseRevokeResponse),
    LeaseKeepAlive(LeaseKeepAliveResponse),
    LeaseTimeToLive(LeaseTimeToLiveResponse),
    LeaseLeases(LeaseLeasesResponse),
    Alarm(AlarmResponse),
}

/// [`TxnResponse`] with its nested responses left encoded: the headers in them
/// carry nothing but revisions, so the bytes can be compared as they are.
#[derive(Clone, PartialEq, Message)]
pub struct DeepTxnResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(bool, tag = "2")]
    succeeded: bool,
    #[prost(bytes = "vec", repeated, tag = "3")]
    responses: Vec<Vec<u8>>,
}

impl Outcome {
    pub fn read(request: &Request, answer: Answer) -> Outcome {
        match answer.failure {
            Some(failure) => Outcome::Failure(failure),
            None => match read_reply(request, &answer) {
                Ok(reply) => Outcome::Reply(masked(reply)),
                Err(reason) => Outcome::Broken(reason),
            },
        }
    }

    /// The store's revision as far as this outcome tells.
    pub fn revision(&self) -> Option<i64> {
        let Outcome::Reply(reply) = self else {
            return None;
        };
        let header = match reply {
            Reply::Range(reply) => &reply.header,
            Reply::Put(reply) => &reply.header,
            Reply::DeleteRange(reply) => &reply.header,
            Reply::Txn(reply) => &reply.header,
            Reply::DeepTxn(reply) => &reply.header,
            Reply::Compact(reply) => &reply.header,
            Reply::HashKv(reply) => &reply.header,
            Reply::LeaseGrant(reply) => &reply.header,
            Reply::LeaseRevoke(reply) => &reply.header,
            Reply::LeaseKeepAlive(reply) => &reply.header,
            Reply::LeaseTimeToLive(reply) => &reply.header,
            Reply::LeaseLeases(reply) => &reply.header,
            Reply::Alarm(reply) => &reply.header,
        };
        header.as_ref().map(|header| header.revision)
    }

    pub fn is_reply(&self) -> bool {
        matches!(self, Outcome::Reply(_))
    }
}

fn read_reply(request: &Request, answer: &Answer) -> Result<Reply, String> {
    Ok(match request {
        Request::Range(_) => Reply::Range(only(answer)?),
        Request::RangeStream(_) => Reply::Range(merged(answer)?),
        Request::Put(_) => Reply::Put(only(answer)?),
        Request::DeleteRange(_) => Reply::DeleteRange(only(answer)?),
        Request::Txn(_) => match only(answer) {
            Ok(reply) => Reply::Txn(reply),
            Err(reason) if reason.contains("recursion") => Reply::DeepTxn(only(answer)?),
            Err(reason) => return Err(reason),
        },
        Request::Compact(_) => Reply::Compact(only(answer)?),
        Request::HashKv(_) => Reply::HashKv(only(answer)?),
        Request::LeaseGrant(_) => Reply::LeaseGrant(only(answer)?),
        Request::LeaseRevoke(_) => Reply::LeaseRevoke(only(answer)?),
        Request::LeaseKeepAlive(_) => Reply::LeaseKeepAlive(only(answer)?),
        Request::LeaseTimeToLive(_) => Reply::LeaseTimeToLive(only(answer)?),
        Request::LeaseLeases(_) => Reply::LeaseLeases(only(answer)?),
        Request::Alarm(_) => Reply::Alarm(only(answer)?),
        Request::Malformed { meaning, .. } => return read_reply(meaning, answer),
    })
}

fn only<M: Message + Default + Debug>(answer: &Answer) -> Result<M, String> {
    let [bytes] = answer.messages.as_slice() else {
        return Err(format!("{} messages instead of one", answer.messages.len()));
    };
    decoded(bytes)
}

/// Decodes a message; nothing in it may be unknown, or encoded in two ways.
fn decoded<M: Message + Default + Debug>(bytes: &[u8]) -> Result<M, String> {
    let message = M::decode(bytes).map_err(|error| format!("not decodable: {error}"))?;
    let again = message.encoded_len();
    if again != bytes.len() {
        let sent = bytes.len();
        return Err(format!(
            "{sent} bytes that encode to {again} again: {message:?}"
        ));
    }
    Ok(message)
}

/// Puts the messages of a RangeStream together; all but the last carry keys
/// and nothing else (RST-2).
fn merged(answer: &Answer) -> Result<RangeResponse, String> {
    let total = answer.messages.len();
    let mut whole = RangeResponse::default();
    for (index, bytes) in answer.messages.iter().enumerate() {
        let part: RangeStreamResponse = decoded(bytes)?;
        let part = part
            .range_response
            .ok_or("a message without range_response")?;
        let is_last = index + 1 == total;
        if part.header.is_some() != is_last || (!is_last && (part.more || part.count != 0)) {
            return Err(format!(
                "message {index} of {total}: header, more or count misplaced"
            ));
        }
        if part.kvs.is_empty() && total > 1 {
            return Err(format!("message {index} of {total} is empty"));
        }
        whole.kvs.extend(part.kvs);
        whole.header = part.header;
        whole.more = part.more;
        whole.count = part.count;
    }
    if total == 0 {
        return Err("a stream without any message".to_owned());
    }
    Ok(whole)
}

fn masked(mut reply: Reply) -> Reply {
    match &mut reply {
        Reply::Range(reply) => mask_header(&mut reply.header),
        Reply::Put(reply) => mask_header(&mut reply.header),
        Reply::DeleteRange(reply) => mask_header(&mut reply.header),
        Reply::Txn(reply) => mask_txn(reply),
        Reply::DeepTxn(reply) => mask_header(&mut reply.header),
        Reply::Compact(reply) => mask_header(&mut reply.header),
        Reply::HashKv(reply) => mask_header(&mut reply.header),
        Reply::LeaseGrant(reply) => mask_header(&mut reply.header),
        Reply::LeaseRevoke(reply) => mask_header(&mut reply.header),
        Reply::LeaseKeepAlive(reply) => mask_header(&mut reply.header),
        Reply::LeaseTimeToLive(reply) => {
            mask_header(&mut reply.header);
            reply.keys.sort();
            if 0 < reply.ttl && reply.ttl <= reply.granted_ttl {
                reply.ttl = reply.granted_ttl;
            }
        }
        Reply::LeaseLeases(reply) => mask_header(&mut reply.header),
        Reply::Alarm(reply) => mask_header(&mut reply.header),
    }
    reply
}

fn mask_txn(txn: &mut TxnResponse) {
    mask_header(&mut txn.header);
    for op in &mut txn.responses {
        match &mut op.response {
            Some(OpReply::ResponseRange(reply)) => mask_header(&mut reply.header),
            Some(OpReply::ResponsePut(reply)) => mask_header(&mut reply.header),
            Some(OpReply::ResponseDeleteRange(reply)) => mask_header(&mut reply.header),
            Some(OpReply::ResponseTxn(reply)) => mask_txn(reply),
            None => {}
        }
    }
}

/// Leaves the revision, and of the other numbers whether they are set.
pub fn mask_header(header: &mut Option<ResponseHeader>) {
    if let Some(header) = header {
        header.cluster_id = header.cluster_id.min(1);
        header.member_id = header.member_id.min(1);
        header.raft_term = header.raft_term.min(1);
    }
}
