//! Whether two outcomes of one request are the same, as far as they must be.
//!
//! Three freedoms are granted besides those that [`Outcome`] has taken out:
//! - keys that are equal under a range's sort target come in any order (RNG-16),
//!   and where a limit cuts through such keys, any of them may be the ones left;
//! - a body that etcd cannot decode must be refused with the same code, but the
//!   text is the decoder's own;
//! - [`Damage::Garbage`] may be refused by our decoder where Go's skips a field.

use std::collections::HashMap;

use bytes::Bytes;
use stele::proto::client::etcdserverpb::range_request::{SortOrder, SortTarget};
use stele::proto::client::etcdserverpb::request_op::Request as Op;
use stele::proto::client::etcdserverpb::response_op::Response as OpReply;
use stele::proto::client::etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use stele::proto::client::mvccpb::KeyValue;
use tonic::Code;

use super::call::Failure;
use super::outcome::{Outcome, Reply};
use super::request::{Damage, Request};

#[derive(Debug, PartialEq)]
pub enum Verdict {
    Same,
    Different,
    /// Two answers to this range that agree but for which keys a limit has
    /// left of equal ones: [`are_candidates`] can tell.
    CutThroughTies(RangeRequest),
}

pub fn compare(request: &Request, reference: &Outcome, subject: &Outcome) -> Verdict {
    if let Request::Malformed {
        meaning, damage, ..
    } = request
    {
        let is_refused = is_undecodable(reference) || *damage == Damage::Garbage;
        if is_refused && is_internal(subject) {
            return Verdict::Same;
        }
        return compare(meaning, reference, subject);
    }
    if reference == subject {
        // What breaks the protocol is no agreement, even when both do it.
        return match reference {
            Outcome::Broken(_) => Verdict::Different,
            _ => Verdict::Same,
        };
    }
    match (request, reference, subject) {
        (
            Request::Range(request),
            Outcome::Reply(Reply::Range(reference)),
            Outcome::Reply(Reply::Range(subject)),
        ) => compare_ranges(request, reference, subject),
        (
            Request::Txn(request),
            Outcome::Reply(Reply::Txn(reference)),
            Outcome::Reply(Reply::Txn(subject)),
        ) if are_txns_same(request, reference, subject) => Verdict::Same,
        _ => Verdict::Different,
    }
}

fn is_internal(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Failure(Failure {
            code: Code::Internal,
            ..
        })
    )
}

fn is_undecodable(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failure(Failure { code: Code::Internal, text })
        if text.contains("unmarshal"))
}

/// Nested ranges cannot be asked again at the moment they ran, so where a
/// limit has cut through ties only the sort order is compared.
fn are_txns_same(request: &TxnRequest, reference: &TxnResponse, subject: &TxnResponse) -> bool {
    if reference.header != subject.header
        || reference.succeeded != subject.succeeded
        || reference.responses.len() != subject.responses.len()
    {
        return false;
    }
    let taken = if reference.succeeded {
        &request.success
    } else {
        &request.failure
    };
    let replies = reference.responses.iter().zip(&subject.responses);
    taken.iter().zip(replies).all(|(op, (reference, subject))| {
        match (&op.request, &reference.response, &subject.response) {
            (
                Some(Op::RequestRange(request)),
                Some(OpReply::ResponseRange(reference)),
                Some(OpReply::ResponseRange(subject)),
            ) => compare_ranges(request, reference, subject) != Verdict::Different,
            (
                Some(Op::RequestTxn(request)),
                Some(OpReply::ResponseTxn(reference)),
                Some(OpReply::ResponseTxn(subject)),
            ) => are_txns_same(request, reference, subject),
            _ => reference == subject,
        }
    })
}

fn compare_ranges(
    request: &RangeRequest,
    reference: &RangeResponse,
    subject: &RangeResponse,
) -> Verdict {
    if reference == subject {
        return Verdict::Same;
    }
    if reference.header != subject.header
        || reference.more != subject.more
        || reference.count != subject.count
        || reference.kvs.len() != subject.kvs.len()
        || request.sort_target() == SortTarget::Key
    {
        return Verdict::Different;
    }
    let is_cut = reference.more;
    if request.keys_only && request.sort_target() == SortTarget::Value {
        // The values that decided about the order are not shown.
        return match (is_cut, are_same_keys(&reference.kvs, &subject.kvs)) {
            (true, _) => Verdict::CutThroughTies(request.clone()),
            (false, true) => Verdict::Same,
            (false, false) => Verdict::Different,
        };
    }
    let target = request.sort_target();
    let order = |kvs: &[KeyValue]| -> Vec<Rank> { kvs.iter().map(|kv| rank(target, kv)).collect() };
    let ranks = order(&reference.kvs);
    if ranks != order(&subject.kvs) {
        return Verdict::Different;
    }
    let mut start = 0;
    while start < ranks.len() {
        let ties = ranks[start..]
            .iter()
            .take_while(|&rank| *rank == ranks[start])
            .count();
        let end = start + ties;
        if !are_same_keys(&reference.kvs[start..end], &subject.kvs[start..end]) {
            return if is_cut && end == ranks.len() {
                Verdict::CutThroughTies(request.clone())
            } else {
                Verdict::Different
            };
        }
        start = end;
    }
    Verdict::Same
}

/// What a key is sorted by.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Number(i64),
    Bytes(Bytes),
}

fn rank(target: SortTarget, kv: &KeyValue) -> Rank {
    match target {
        SortTarget::Key => Rank::Bytes(kv.key.clone()),
        SortTarget::Version => Rank::Number(kv.version),
        SortTarget::Create => Rank::Number(kv.create_revision),
        SortTarget::Mod => Rank::Number(kv.mod_revision),
        SortTarget::Value => Rank::Bytes(kv.value.clone()),
    }
}

fn are_same_keys(reference: &[KeyValue], subject: &[KeyValue]) -> bool {
    fn sorted(kvs: &[KeyValue]) -> Vec<&KeyValue> {
        let mut kvs: Vec<_> = kvs.iter().collect();
        kvs.sort_by(|left, right| left.key.cmp(&right.key));
        kvs
    }
    sorted(reference) == sorted(subject)
}

/// The request whose answer holds every key that `request` may show.
pub fn candidates(request: &RangeRequest) -> RangeRequest {
    RangeRequest {
        limit: 0,
        keys_only: false,
        sort_order: SortOrder::None.into(),
        sort_target: SortTarget::Key.into(),
        ..request.clone()
    }
}

/// Whether `kvs` is one of the right answers to `request`: distinct keys out
/// of `all`, in order, and ranked as the reference's answer is.
pub fn are_candidates(
    request: &RangeRequest,
    all: &[KeyValue],
    reference: &[KeyValue],
    subject: &[KeyValue],
) -> bool {
    let target = request.sort_target();
    let mut unused: HashMap<&Bytes, &KeyValue> = all.iter().map(|kv| (&kv.key, kv)).collect();
    let by_key = unused.clone();
    subject.iter().zip(reference).all(|(subject, reference)| {
        let Some(full) = unused.remove(&subject.key) else {
            return false;
        };
        let mut shown = full.clone();
        if request.keys_only {
            shown.value = Bytes::new();
            shown.lease = subject.lease;
        }
        let expected = by_key.get(&reference.key);
        shown == *subject && expected.is_some_and(|kv| rank(target, kv) == rank(target, full))
    })
}

#[cfg(test)]
mod tests {
    use stele::proto::client::etcdserverpb::{PutResponse, RequestOp, ResponseHeader, ResponseOp};

    use super::*;

    fn kv(key: &str, value: &str, mod_revision: i64) -> KeyValue {
        KeyValue {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            mod_revision,
            create_revision: 2,
            version: 1,
            lease: 0,
        }
    }

    fn reply(kvs: Vec<KeyValue>, more: bool) -> RangeResponse {
        let header = ResponseHeader {
            cluster_id: 1,
            member_id: 1,
            revision: 9,
            raft_term: 1,
        };
        RangeResponse {
            header: Some(header),
            count: 5,
            kvs,
            more,
        }
    }

    fn by_value(limit: i64) -> RangeRequest {
        RangeRequest {
            sort_target: SortTarget::Value.into(),
            sort_order: SortOrder::Ascend.into(),
            limit,
            ..RangeRequest::default()
        }
    }

    fn verdict(request: &RangeRequest, left: &RangeResponse, right: &RangeResponse) -> Verdict {
        let outcome = |reply: &RangeResponse| Outcome::Reply(Reply::Range(reply.clone()));
        compare(
            &Request::Range(request.clone()),
            &outcome(left),
            &outcome(right),
        )
    }

    /// Every way in which one answer can be wrong is found.
    #[test]
    fn planted_differences_in_a_range_are_found() {
        let right = reply(
            vec![kv("a", "1", 3), kv("b", "2", 4), kv("c", "3", 5)],
            false,
        );
        let plants: [fn(&mut RangeResponse); 14] = [
            |reply| reply.header = None,
            |reply| reply.header.as_mut().unwrap().revision = 8,
            |reply| reply.header.as_mut().unwrap().member_id = 0,
            |reply| reply.count = 4,
            |reply| reply.more = true,
            |reply| drop(reply.kvs.pop()),
            |reply| reply.kvs.push(kv("d", "4", 6)),
            |reply| reply.kvs.swap(0, 1),
            |reply| reply.kvs[0].value = Bytes::from("x"),
            |reply| reply.kvs[1].key = Bytes::from("bb"),
            |reply| reply.kvs[1].mod_revision = 3,
            |reply| reply.kvs[1].create_revision = 3,
            |reply| reply.kvs[2].version = 2,
            |reply| reply.kvs[2].lease = 7,
        ];
        for (index, plant) in plants.iter().enumerate() {
            let mut wrong = right.clone();
            plant(&mut wrong);
            for request in [RangeRequest::default(), by_value(0)] {
                assert_eq!(verdict(&request, &right, &right), Verdict::Same);
                let found = verdict(&request, &right, &wrong);
                assert_eq!(found, Verdict::Different, "plant {index}");
            }
        }
    }

    #[test]
    fn ties_may_come_in_any_order() {
        let left = reply(
            vec![kv("a", "1", 3), kv("b", "1", 4), kv("c", "2", 5)],
            false,
        );
        let right = reply(
            vec![kv("b", "1", 4), kv("a", "1", 3), kv("c", "2", 5)],
            false,
        );
        assert_eq!(verdict(&by_value(0), &left, &right), Verdict::Same);
        assert_eq!(
            verdict(&RangeRequest::default(), &left, &right),
            Verdict::Different
        );
        let crossed = reply(
            vec![kv("c", "2", 5), kv("a", "1", 3), kv("b", "1", 4)],
            false,
        );
        assert_eq!(verdict(&by_value(0), &left, &crossed), Verdict::Different);
    }

    #[test]
    fn a_limit_that_cuts_through_ties_leaves_some_of_them() {
        let request = by_value(2);
        let all = vec![
            kv("a", "1", 3),
            kv("b", "2", 4),
            kv("c", "2", 5),
            kv("d", "3", 6),
        ];
        let left = reply(vec![kv("a", "1", 3), kv("b", "2", 4)], true);
        let right = reply(vec![kv("a", "1", 3), kv("c", "2", 5)], true);
        let found = verdict(&request, &left, &right);
        assert_eq!(found, Verdict::CutThroughTies(request.clone()));
        assert!(are_candidates(&request, &all, &left.kvs, &right.kvs));

        let invented = [kv("a", "1", 3), kv("e", "2", 5)];
        assert!(!are_candidates(&request, &all, &left.kvs, &invented));
        let twice = [kv("a", "1", 3), kv("a", "1", 3)];
        assert!(!are_candidates(&request, &all, &left.kvs, &twice));
        let misranked = [kv("a", "1", 3), kv("d", "3", 6)];
        assert!(!are_candidates(&request, &all, &left.kvs, &misranked));
    }

    #[test]
    fn planted_differences_in_failures_are_found() {
        let request = Request::Range(RangeRequest::default());
        let failure = |code, text: &str| {
            Outcome::Failure(Failure {
                code,
                text: text.to_owned(),
            })
        };
        let right = failure(Code::OutOfRange, "etcdserver: mvcc: required revision");
        assert_eq!(compare(&request, &right, &right), Verdict::Same);
        for wrong in [
            failure(Code::InvalidArgument, "etcdserver: mvcc: required revision"),
            failure(Code::OutOfRange, "etcdserver: mvcc: required revision."),
            Outcome::Reply(Reply::Range(RangeResponse::default())),
            Outcome::Broken(String::new()),
        ] {
            assert_eq!(compare(&request, &right, &wrong), Verdict::Different);
            assert_eq!(compare(&request, &wrong, &right), Verdict::Different);
        }
        let broken = Outcome::Broken("two messages".to_owned());
        assert_eq!(compare(&request, &broken, &broken), Verdict::Different);
    }

    #[test]
    fn planted_differences_inside_a_txn_are_found() {
        let range = by_value(0);
        let request = TxnRequest {
            success: vec![
                RequestOp {
                    request: Some(Op::RequestRange(range)),
                },
                RequestOp {
                    request: Some(Op::RequestPut(<_>::default())),
                },
            ],
            ..TxnRequest::default()
        };
        let replies = |kvs: Vec<KeyValue>, revision| {
            let header = Some(ResponseHeader {
                revision,
                ..ResponseHeader::default()
            });
            let put = PutResponse {
                header,
                prev_kv: None,
            };
            let responses = vec![
                ResponseOp {
                    response: Some(OpReply::ResponseRange(reply(kvs, false))),
                },
                ResponseOp {
                    response: Some(OpReply::ResponsePut(put)),
                },
            ];
            let txn = TxnResponse {
                header: None,
                succeeded: true,
                responses,
            };
            Outcome::Reply(Reply::Txn(txn))
        };
        let request = Request::Txn(request);
        let right = replies(vec![kv("a", "1", 3), kv("b", "1", 4)], 3);
        let tied = replies(vec![kv("b", "1", 4), kv("a", "1", 3)], 3);
        assert_eq!(compare(&request, &right, &tied), Verdict::Same);
        for wrong in [
            replies(vec![kv("a", "1", 3), kv("b", "1", 4)], 4),
            replies(vec![kv("b", "1", 4), kv("a", "1", 3)], 4),
            replies(vec![kv("a", "1", 3)], 3),
            replies(vec![kv("b", "1", 5), kv("a", "1", 3)], 3),
        ] {
            assert_eq!(compare(&request, &right, &wrong), Verdict::Different);
        }
    }

    #[test]
    fn bodies_that_cannot_be_decoded_need_the_same_code_only() {
        let internal = |text: &str| {
            Outcome::Failure(Failure {
                code: Code::Internal,
                text: text.to_owned(),
            })
        };
        let malformed = |damage| Request::Malformed {
            meaning: Box::new(Request::Range(RangeRequest::default())),
            body: Bytes::from_static(b"\x0a"),
            damage,
        };
        let refused = internal("grpc: error unmarshalling request: unexpected EOF");
        let ours = internal("failed to decode");
        let invalid = Outcome::Failure(Failure {
            code: Code::InvalidArgument,
            text: "etcdserver: key is not provided".to_owned(),
        });
        let structured = malformed(Damage::Structured);
        assert_eq!(compare(&structured, &refused, &ours), Verdict::Same);
        assert_eq!(compare(&structured, &refused, &invalid), Verdict::Different);
        assert_eq!(compare(&structured, &invalid, &ours), Verdict::Different);
        assert_eq!(
            compare(&malformed(Damage::Garbage), &invalid, &ours),
            Verdict::Same
        );
    }
}
