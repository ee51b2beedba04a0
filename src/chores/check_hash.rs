//! Compares the members' data.
//!
//! The same entries must leave the same keys on every member; if they ever do
//! not, clients have to know before they build on it. The leader now and then
//! asks all members for their hash of the key space at one revision
//! (`--corrupt-check-time`), and raises the alarm CORRUPT for each member whose
//! answer is wrong, which stops all writes until an operator has decided. A
//! member may also compare itself with the others before it serves clients
//! ([`check_first`], feature `InitialCorruptCheck`); it takes part by then, since
//! without the entries of its log its state is that of the last flush.
//!
//! A hash depends on the compacted revision too, so only answers with the same
//! one are compared. Facts and order as etcd's `etcdserver/corrupt.go`; there
//! the leader is always believed, here a majority is, if there is one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::consensus::{Consensus, Peers, ProposeError};
use crate::machine::Published;
use crate::mvcc::{ReadError, Store};
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::{AlarmRequest, AlarmType};

/// How often to look whether a member is reached, before the first comparison.
const REACH_RETRY: Duration = Duration::from_millis(10);

/// How long a member may take to answer: it reads all its keys.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// This member's keys are not those of its peers.
#[derive(Debug, Error)]
pub enum Mismatch {
    #[error("{member_id:x} found data inconsistency with peers")]
    Inconsistent { member_id: u64 },
    #[error("cannot hash the keys: {0}")]
    Read(#[from] ReadError),
}

/// Whom and what to compare.
#[derive(Clone)]
pub struct Subject {
    pub store: Store,
    pub peers: Peers,
    pub published: Arc<Published>,
    pub member_id: u64,
}

impl Subject {
    fn others(&self) -> impl Iterator<Item = u64> {
        let members = self.published.members();
        let ids: Vec<u64> = members.iter().map(|member| member.id).collect();
        ids.into_iter().filter(|id| *id != self.member_id)
    }
}

/// A member's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    hash: u32,
    compact_revision: i64,
    /// The member's revision at that time.
    revision: i64,
}

/// Runs until consensus stops.
pub async fn run(consensus: Consensus, subject: Subject, interval: Duration) {
    let mut rounds = tokio::time::interval(interval);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick comes at once.
    rounds.tick().await;
    loop {
        tokio::select! {
            _ = rounds.tick() => {}
            () = consensus.stopped() => return,
        }
        if !consensus.status().is_leader {
            continue;
        }
        match corrupt_members(&consensus, &subject).await {
            Ok(corrupt) => {
                for member_id in corrupt {
                    raise(&consensus, &subject.published, member_id).await;
                }
            }
            Err(reason) => tracing::warn!(reason, "the members' data were not compared"),
        }
    }
}

/// Compares this member's keys with those of the others that can be reached
/// within `limit`.
///
/// # Errors
/// When another member has other keys at the same revision. This one should
/// serve nobody then.
pub async fn check_first(subject: &Subject, limit: Duration) -> Result<(), Mismatch> {
    let others: Vec<u64> = subject.others().collect();
    let reach = async {
        let is_out_of_reach = |id: &u64| subject.peers.is_connected(*id).is_none();
        while others.iter().any(is_out_of_reach) {
            tokio::time::sleep(REACH_RETRY).await;
        }
    };
    if tokio::time::timeout(limit, reach).await.is_err() {
        tracing::warn!("not all members can be reached for the comparison of data");
    }
    let (at, own) = own_answer(&subject.store).await?;
    let answers = ask_others(subject, at).await;
    let is_other = |answer: &Answer| {
        answer.compact_revision == own.compact_revision && answer.hash != own.hash
    };
    if answers.values().any(is_other) {
        return Err(Mismatch::Inconsistent {
            member_id: subject.member_id,
        });
    }
    tracing::info!(
        members = others.len(),
        answered = answers.len(),
        "the data agree with those of the members that have answered"
    );
    Ok(())
}

async fn corrupt_members(consensus: &Consensus, subject: &Subject) -> Result<Vec<u64>, String> {
    let own = own_answer(&subject.store).await;
    let (at, own) = own.map_err(|error| error.to_string())?;
    let answers = ask_others(subject, at).await;
    // What others knew when they answered is known here after this.
    let barrier = consensus.read_barrier().await;
    barrier.map_err(|error| error.to_string())?;
    let now = Answer {
        compact_revision: subject.store.compacted_revision(),
        revision: subject.store.revision(),
        ..own
    };
    let members = subject.published.members().len();
    Ok(judge(subject.member_id, own, now, &answers, members))
}

/// Whose data are wrong. `own` is the answer of this member, which leads;
/// `now` its state after all answers had come in.
fn judge(
    own_id: u64,
    own: Answer,
    now: Answer,
    answers: &BTreeMap<u64, Answer>,
    members: usize,
) -> Vec<u64> {
    let is_ahead = |answer: &Answer| {
        answer.revision > now.revision || answer.compact_revision > now.compact_revision
    };
    let comparable = answers
        .iter()
        .filter(|(_, answer)| !is_ahead(answer) && answer.compact_revision == own.compact_revision);
    let mut voices: Vec<(u64, u32)> = comparable.map(|(&id, answer)| (id, answer.hash)).collect();
    voices.push((own_id, own.hash));
    let count = |hash: u32| voices.iter().filter(|(_, other)| *other == hash).count();
    let majority = voices.iter().map(|(_, hash)| *hash);
    let believed = majority
        .clone()
        .find(|hash| count(*hash) > members / 2)
        .unwrap_or(own.hash);
    let ahead = answers.iter().filter(|(_, answer)| is_ahead(answer));
    let odd = voices.iter().filter(|(_, hash)| *hash != believed);
    let mut corrupt: Vec<u64> = ahead.map(|(&id, _)| id).collect();
    corrupt.extend(odd.map(|(id, _)| *id));
    corrupt
}

/// The revision that was hashed, and the answer.
async fn own_answer(store: &Store) -> Result<(i64, Answer), ReadError> {
    let store = store.clone();
    let hashing = tokio::task::spawn_blocking(move || store.hash_kv(0));
    // It panics only if the store does, which stops this member anyway.
    let found = hashing.await.expect("hashing does not panic")?;
    let answer = Answer {
        hash: found.hash,
        compact_revision: found.compact_revision,
        revision: found.revision,
    };
    Ok((found.hash_revision, answer))
}

/// The answers of those that can give one: not of a member that is behind, or
/// has compacted further.
async fn ask_others(subject: &Subject, revision: i64) -> BTreeMap<u64, Answer> {
    let mut calls = JoinSet::new();
    for id in subject.others() {
        let peers = subject.peers.clone();
        calls.spawn(async move {
            let call = peers.hash_kv(id, revision);
            (id, tokio::time::timeout(ANSWER_LIMIT, call).await)
        });
    }
    let mut answers = BTreeMap::new();
    for (id, outcome) in calls.join_all().await {
        let member = format_args!("{id:x}").to_string();
        match outcome {
            Ok(Ok(response)) => {
                let answer = Answer {
                    hash: response.hash,
                    compact_revision: response.compact_revision,
                    revision: response.header.map_or(0, |header| header.revision),
                };
                answers.insert(id, answer);
            }
            Ok(Err(status)) => {
                tracing::warn!(member, reason = status.message(), "a member gave no hash");
            }
            Err(_) => tracing::warn!(member, "a member gave no hash in time"),
        }
    }
    answers
}

async fn raise(consensus: &Consensus, published: &Published, member_id: u64) {
    let kind = AlarmType::Corrupt as i32;
    let alarms = published.alarms();
    if alarms
        .iter()
        .any(|up| up.member_id == member_id && up.alarm == kind)
    {
        return;
    }
    let member = format_args!("{member_id:x}").to_string();
    tracing::error!(member, "the member's data differ from those of the others");
    let request = AlarmRequest {
        action: AlarmAction::Activate as i32,
        member_id,
        alarm: kind,
    };
    match consensus.propose_first(request).await {
        Ok(_) | Err(ProposeError::Stopped) => {}
        Err(error) => tracing::warn!(%error, "the alarm was not raised, will retry"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(hash: u32, compact_revision: i64, revision: i64) -> Answer {
        Answer {
            hash,
            compact_revision,
            revision,
        }
    }

    fn corrupt(own: u32, others: &[(u64, Answer)], members: usize) -> Vec<u64> {
        let own = answer(own, 5, 10);
        let now = Answer {
            revision: 12,
            compact_revision: 6,
            ..own
        };
        judge(1, own, now, &others.iter().copied().collect(), members)
    }

    #[test]
    fn equal_hashes_are_no_reason_for_alarm() {
        let others = [(2, answer(7, 5, 10)), (3, answer(7, 5, 11))];
        assert_eq!(corrupt(7, &others, 3), [0; 0]);
        assert_eq!(corrupt(7, &[], 3), [0; 0]);
    }

    #[test]
    fn the_odd_one_is_named_whoever_it_is() {
        let odd_follower = [(2, answer(8, 5, 10)), (3, answer(7, 5, 10))];
        assert_eq!(corrupt(7, &odd_follower, 3), [2]);
        let odd_leader = [(2, answer(8, 5, 10)), (3, answer(8, 5, 10))];
        assert_eq!(corrupt(7, &odd_leader, 3), [1]);
        // Two against two: the leader's word counts.
        let undecided = [
            (2, answer(8, 5, 10)),
            (3, answer(8, 5, 10)),
            (4, answer(7, 5, 10)),
        ];
        assert_eq!(corrupt(7, &undecided, 4), [2, 3]);
    }

    #[test]
    fn another_compacted_revision_says_nothing_unless_it_is_ahead() {
        let others = [(2, answer(8, 4, 10)), (3, answer(8, 6, 10))];
        assert_eq!(corrupt(7, &others, 3), [0; 0]);
        assert_eq!(corrupt(7, &[(2, answer(7, 5, 13))], 3), [2]);
        assert_eq!(corrupt(7, &[(2, answer(7, 7, 10))], 3), [2]);
    }
}
