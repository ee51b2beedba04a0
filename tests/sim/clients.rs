//! Clients: one operation at a time each, through some member.
//!
//! Owns what they ask, how the edge of the server would carry it out (with the
//! real handles: propose, read barrier, store, lessor), and how each answer is
//! checked. An operation that gets no answer in time may have happened or not.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, IteratorRandom as _};
use stele::consensus::{Consensus, ProposeError};
use stele::lease::{Lessor, Renewal};
use stele::machine::CommandError;
use stele::mvcc::{ReadError, Store};
use stele::proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RequestOp, TxnRequest, compare, request_op, response_op,
};

use super::Fault;
use super::clock::Clock;
use super::oracle::Oracle;

/// Few, so that clients meet.
const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

#[derive(Debug, Clone)]
pub enum Op {
    Put {
        key: Bytes,
        value: Bytes,
        lease: i64,
    },
    Delete {
        key: Bytes,
    },
    /// Puts if the key was last changed at that revision.
    Swap {
        key: Bytes,
        value: Bytes,
        expected: i64,
    },
    PutMany {
        puts: Vec<(Bytes, Bytes)>,
    },
    Get {
        key: Bytes,
        /// 0: the present.
        revision: i64,
        is_serializable: bool,
    },
    Grant {
        id: i64,
        ttl: i64,
    },
    Renew {
        id: i64,
    },
    Revoke {
        id: i64,
    },
    Compact {
        revision: i64,
    },
}

pub enum Answer {
    /// At this revision; of a deletion, whether there was something.
    Done(i64, bool),
    /// The comparison failed: the key as it is.
    NotSwapped(i64, Option<Bytes>),
    Read(i64, Option<Bytes>),
    /// 0: gone.
    Renewed(i64),
    Refused(CommandError),
    ReadRefused,
    Unknown,
}

impl Answer {
    pub fn show(&self) -> String {
        match self {
            Answer::Done(revision, is_any) => format!("done at {revision} ({is_any})"),
            Answer::NotSwapped(revision, _) => format!("not swapped at {revision}"),
            Answer::Read(revision, found) => format!("at {revision} {found:?}"),
            Answer::Renewed(ttl) => format!("renewed for {ttl} s"),
            Answer::Refused(error) => format!("refused: {error}"),
            Answer::ReadRefused => "read refused".to_owned(),
            Answer::Unknown => "no answer".to_owned(),
        }
    }
}

pub type Asking = Pin<Box<dyn Future<Output = Answer>>>;

pub struct InFlight {
    pub op: Op,
    pub number: u64,
    pub host: usize,
    pub life: u64,
    pub began: u64,
    /// What had been shown when it began.
    pub floor: i64,
    pub asking: Asking,
}

pub struct Client {
    id: u64,
    pub host: usize,
    pub in_flight: Option<InFlight>,
    pub count: u64,
    /// Leases it has been granted, and their TTL.
    leases: Vec<(i64, i64)>,
    /// Where it last saw a key changed.
    seen: Vec<(Bytes, i64)>,
}

/// What clients do more or less of in a run.
#[derive(Clone, Copy)]
pub struct Traffic {
    pub has_compactions: bool,
    pub has_many_leases: bool,
    /// Clients renew leases that others have revoked meanwhile.
    pub has_shared_leases: bool,
}

/// What an operation is carried out with, on one member.
pub struct Edge {
    pub consensus: Consensus,
    pub store: Store,
    /// Of the member that leads, if it can be asked.
    pub leader: Option<(Consensus, Arc<Lessor>)>,
    pub clock: Clock,
    pub fault: Option<Fault>,
}

impl Client {
    pub fn new(id: u64, host: usize) -> Client {
        Client {
            id,
            host,
            in_flight: None,
            count: 0,
            leases: Vec::new(),
            seen: Vec::new(),
        }
    }

    pub fn next_op(&mut self, rng: &mut StdRng, oracle: &Oracle, traffic: Traffic) -> Op {
        self.count += 1;
        let value = |part: u32| Bytes::from(format!("{}-{}-{part}", self.id, self.count));
        let mut key = || Bytes::from_static(KEYS.choose(rng).expect("not empty").as_bytes());
        let (key, other) = (key(), key());
        if traffic.has_shared_leases
            && rng.random_ratio(1, 4)
            && let Some(id) = oracle.leases.keys().rev().take(4).choose(rng)
        {
            return Op::Renew { id: *id };
        }
        if traffic.has_many_leases
            && rng.random_ratio(1, 4)
            && let Some((id, _)) = self.leases.choose(rng)
        {
            return Op::Renew { id: *id };
        }
        match rng.random_range(0..100) {
            0..32 => {
                let lease = self.leases.choose(rng).filter(|_| rng.random_ratio(1, 3));
                Op::Put {
                    key,
                    value: value(0),
                    lease: lease.map_or(0, |(id, _)| *id),
                }
            }
            32..52 => Op::Get {
                key,
                revision: 0,
                is_serializable: false,
            },
            52..60 => Op::Get {
                key,
                revision: 0,
                is_serializable: true,
            },
            60..64 => Op::Get {
                key,
                revision: rng.random_range(1..=oracle.shown.max(1)),
                is_serializable: rng.random(),
            },
            64..70 => Op::Delete { key },
            70..80 => {
                let seen = self.seen.iter().rev().find(|(seen, _)| *seen == key);
                Op::Swap {
                    key: key.clone(),
                    value: value(0),
                    expected: seen.map_or(0, |(_, at)| *at),
                }
            }
            80..86 => {
                let mut puts = vec![(key.clone(), value(0))];
                if other != key {
                    puts.push((other, value(1)));
                }
                Op::PutMany { puts }
            }
            86..90 if self.leases.len() < 3 => Op::Grant {
                id: (self.id * 10_000 + self.count) as i64,
                ttl: rng.random_range(2..=4),
            },
            86..98 => match self.leases.choose(rng) {
                Some((id, _)) if rng.random_ratio(1, 8) => Op::Revoke { id: *id },
                Some((id, _)) => Op::Renew { id: *id },
                None => Op::Delete { key },
            },
            _ if traffic.has_compactions && oracle.shown > 10 => Op::Compact {
                revision: oracle.shown - rng.random_range(0..10),
            },
            _ => Op::Delete { key },
        }
    }

    /// Checks an answer, and remembers what it says.
    pub fn check(&mut self, asked: &InFlight, answer: Answer, oracle: &mut Oracle) {
        let (floor, began) = (asked.floor, asked.began);
        match (&asked.op, answer) {
            (op, Answer::Unknown) => {
                oracle.counts.unknown += 1;
                if let Op::Revoke { id } = op {
                    self.leases.retain(|(held, _)| held != id);
                }
            }
            (Op::Put { key, value, .. }, Answer::Done(revision, _)) => {
                oracle.wrote(revision, floor, &[(key.clone(), Some(value.clone()))]);
                self.saw(key, revision);
            }
            (Op::Put { value, lease, .. }, Answer::Refused(error)) => {
                assert_eq!(error, CommandError::LeaseNotFound);
                self.leases.retain(|(held, _)| held != lease);
                oracle.refused(value.clone());
            }
            (Op::Delete { key }, Answer::Done(revision, true)) => {
                oracle.wrote(revision, floor, &[(key.clone(), None)]);
            }
            (Op::Delete { key }, Answer::Done(revision, false)) => {
                oracle.sees("a deletion", revision, floor);
                oracle.read(key, revision, None);
            }
            (
                Op::Swap {
                    key,
                    value,
                    expected,
                },
                Answer::Done(revision, _),
            ) => {
                oracle.wrote(revision, floor, &[(key.clone(), Some(value.clone()))]);
                let before = oracle.at(key, revision - 1).map_or(0, |kv| kv.mod_revision);
                if before != *expected {
                    oracle.fail(format!(
                        "swapped at {revision}, where {key:?} was of {before}, not {expected}"
                    ));
                }
                self.saw(key, revision);
            }
            (
                Op::Swap {
                    key,
                    value,
                    expected,
                },
                Answer::NotSwapped(revision, found),
            ) => {
                oracle.sees("a comparison", revision, floor);
                oracle.read(key, revision, found.as_ref());
                oracle.refused(value.clone());
                let at = oracle.at(key, revision).map_or(0, |kv| kv.mod_revision);
                if at == *expected {
                    oracle.fail(format!(
                        "not swapped at {revision}, where {key:?} is of {at}"
                    ));
                }
                self.saw(key, at);
            }
            (Op::PutMany { puts }, Answer::Done(revision, _)) => {
                let changes: Vec<_> = puts
                    .iter()
                    .map(|(key, value)| (key.clone(), Some(value.clone())))
                    .collect();
                oracle.wrote(revision, floor, &changes);
            }
            (
                Op::Get {
                    key,
                    revision,
                    is_serializable,
                },
                Answer::Read(shown, found),
            ) => {
                if !is_serializable {
                    oracle.sees("a read", shown, floor);
                }
                let at = if *revision == 0 { shown } else { *revision };
                oracle.read(key, at, found.as_ref());
                let at = oracle.at(key, at).map_or(0, |kv| kv.mod_revision);
                self.saw(key, at);
            }
            (
                Op::Get {
                    revision,
                    is_serializable,
                    ..
                },
                Answer::ReadRefused,
            ) => {
                // Compacted, or not yet known to this member.
                if *revision == 0 || !is_serializable && *revision >= oracle.compacted {
                    oracle.fail(format!("a read at {revision} was refused"));
                }
            }
            (Op::Grant { id, ttl }, Answer::Done(_, _)) => {
                oracle.lease_promised(*id, began, *ttl);
                self.leases.push((*id, *ttl));
            }
            (Op::Renew { id }, Answer::Renewed(0)) => {
                oracle.lease_gone(*id);
                self.leases.retain(|(held, _)| held != id);
            }
            (Op::Renew { id }, Answer::Renewed(ttl)) => {
                oracle.counts.renewals += 1;
                oracle.lease_promised(*id, began, ttl);
            }
            (Op::Revoke { id }, Answer::Done(..) | Answer::Refused(_)) => {
                self.leases.retain(|(held, _)| held != id);
            }
            (Op::Compact { .. }, Answer::Done(..) | Answer::Refused(_)) => {}
            (op, _) => oracle.fail(format!("not an answer to {op:?}")),
        }
    }

    fn saw(&mut self, key: &Bytes, at: i64) {
        self.seen.retain(|(seen, _)| seen != key);
        self.seen.push((key.clone(), at));
    }
}

impl Op {
    /// Begins to carry it out.
    pub fn ask(&self, edge: Edge) -> Asking {
        let op = self.clone();
        Box::pin(async move {
            match op.answer(edge).await {
                Ok(answer) => answer,
                Err(ProposeError::Rejected(error)) => Answer::Refused(error),
                Err(_) => Answer::Unknown,
            }
        })
    }

    async fn answer(self, edge: Edge) -> Result<Answer, ProposeError> {
        let consensus = &edge.consensus;
        match self {
            Op::Put { key, value, lease } => {
                let reply = consensus.propose(put(key, value, lease)).await?;
                Ok(Answer::Done(revision_of(reply.header), true))
            }
            Op::Delete { key } => {
                let request = DeleteRangeRequest {
                    key,
                    ..DeleteRangeRequest::default()
                };
                let reply = consensus.propose(request).await?;
                Ok(Answer::Done(revision_of(reply.header), reply.deleted > 0))
            }
            Op::Swap {
                key,
                value,
                expected,
            } => {
                let compare = Compare {
                    key: key.clone(),
                    result: compare::CompareResult::Equal.into(),
                    target: compare::CompareTarget::Mod.into(),
                    target_union: Some(compare::TargetUnion::ModRevision(expected)),
                    ..Compare::default()
                };
                let request = TxnRequest {
                    compare: vec![compare],
                    success: vec![op(request_op::Request::RequestPut(put(
                        key.clone(),
                        value,
                        0,
                    )))],
                    failure: vec![op(request_op::Request::RequestRange(range(key, 0)))],
                };
                let reply = consensus.propose(request).await?;
                let revision = revision_of(reply.header);
                if reply.succeeded {
                    return Ok(Answer::Done(revision, true));
                }
                let Some(Some(response_op::Response::ResponseRange(found))) =
                    reply.responses.into_iter().next().map(|op| op.response)
                else {
                    return Ok(Answer::ReadRefused);
                };
                Ok(Answer::NotSwapped(revision, found.kvs.into_iter().next()))
            }
            Op::PutMany { puts } => {
                let puts = puts.into_iter().map(|(key, value)| put(key, value, 0));
                let request = TxnRequest {
                    success: puts
                        .map(|put| op(request_op::Request::RequestPut(put)))
                        .collect(),
                    ..TxnRequest::default()
                };
                let reply = consensus.propose(request).await?;
                Ok(Answer::Done(revision_of(reply.header), true))
            }
            Op::Get {
                key,
                revision,
                is_serializable,
            } => {
                let is_trusting =
                    edge.fault == Some(Fault::ReadWithoutIndex) && consensus.status().is_leader;
                if !is_serializable && !is_trusting {
                    consensus.read_barrier().await?;
                }
                Ok(match edge.store.range(&range(key, revision)) {
                    Ok(found) => Answer::Read(found.revision, found.kvs.into_iter().next()),
                    Err(ReadError::Storage(error)) => panic!("{error}"),
                    Err(_) => Answer::ReadRefused,
                })
            }
            Op::Grant { id, ttl } => {
                let reply = consensus.propose(LeaseGrantRequest { ttl, id }).await?;
                Ok(Answer::Done(revision_of(reply.header), true))
            }
            Op::Renew { id } => {
                let Some((consensus, lessor)) = &edge.leader else {
                    return Ok(Answer::Unknown);
                };
                renew(consensus, lessor, &edge.clock, edge.fault, id).await
            }
            Op::Revoke { id } => {
                let reply = consensus.propose(LeaseRevokeRequest { id }).await?;
                Ok(Answer::Done(revision_of(reply.header), true))
            }
            Op::Compact { revision } => {
                let request = CompactionRequest {
                    revision,
                    ..CompactionRequest::default()
                };
                let reply = consensus.propose(request).await?;
                Ok(Answer::Done(revision_of(reply.header), true))
            }
        }
    }
}

/// As `rpc` renews a lease on the member that leads.
async fn renew(
    consensus: &Consensus,
    lessor: &Lessor,
    clock: &Clock,
    fault: Option<Fault>,
    id: i64,
) -> Result<Answer, ProposeError> {
    let mut is_applied = false;
    loop {
        let status = consensus.status();
        if !status.is_leader {
            lessor.follow();
            return Ok(Answer::Unknown);
        }
        lessor.lead(status.term, clock.instant());
        match lessor.renew_at(id, clock.instant()) {
            Renewal::Renewed { ttl_seconds, .. } => {
                if fault == Some(Fault::RenewUnconfirmed) {
                    return Ok(Answer::Renewed(ttl_seconds));
                }
                consensus.read_barrier().await?;
                let now = consensus.status();
                if !now.is_leader || now.term != status.term {
                    return Ok(Answer::Unknown);
                }
                if lessor.remaining_at(id, clock.instant()).is_some() {
                    return Ok(Answer::Renewed(ttl_seconds));
                }
                is_applied = true;
            }
            Renewal::NotFound if is_applied => return Ok(Answer::Renewed(0)),
            Renewal::NotFound => {
                consensus.read_barrier().await?;
                is_applied = true;
            }
            // The edge waits until it is gone; this client does not.
            Renewal::Expired => return Ok(Answer::Unknown),
        }
    }
}

fn put(key: Bytes, value: Bytes, lease: i64) -> PutRequest {
    PutRequest {
        key,
        value,
        lease,
        ..PutRequest::default()
    }
}

fn range(key: Bytes, revision: i64) -> RangeRequest {
    RangeRequest {
        key,
        revision,
        ..RangeRequest::default()
    }
}

fn op(request: request_op::Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

fn revision_of(header: Option<stele::proto::etcdserverpb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}
