//! Revokes the leases whose time is up.
//!
//! Owns the rhythm: every half second up to 500 revocations, some at a time,
//! each a command and so a revision of its own (LEA-14, LEA-15). A lease that
//! was not revoked (the proposal was lost, the leader changed) is reported
//! again by the lessor, so nothing is remembered here.
//!
//! A member may lead by its own lights only: another one has been elected,
//! and has renewed the lease. So what is proposed names the term in which the
//! lease was found expired, and means nothing in an entry of another term. The
//! entry has that term only if this very leader appended it, and while it led
//! nobody else could renew (etcd issue 15247).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::consensus::{Consensus, ProposeError};
use crate::lease::Lessor;
use crate::machine::CommandError;
use crate::machine::command::LeaseExpiry;
use crate::metrics;

/// How often expired leases are looked for. A key so lives at most this much
/// longer than its lease, plus one commit.
const INTERVAL: Duration = Duration::from_millis(500);

/// Revocations of one round: a thousand a second, which leaves the log to the
/// clients when very many leases run out together.
const REVOCATIONS_PER_ROUND: usize = 500;

/// Proposals in flight. They commit as one group, so more gains nothing.
const CONCURRENT_PROPOSALS: usize = 16;

/// Runs until consensus stops.
pub async fn run(consensus: Consensus, lessor: Arc<Lessor>) {
    let mut rounds = tokio::time::interval(INTERVAL);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = rounds.tick() => {}
            () = consensus.stopped() => return,
        }
        let status = consensus.status();
        if !status.is_leader {
            lessor.follow();
            continue;
        }
        lessor.lead(status.term, Instant::now());
        let expired = lessor.expired(Instant::now(), REVOCATIONS_PER_ROUND);
        for ids in expired.chunks(CONCURRENT_PROPOSALS) {
            if revoke(&consensus, status.term, ids).await.is_break() {
                return;
            }
        }
    }
}

/// Breaks when consensus has stopped.
async fn revoke(consensus: &Consensus, term: u64, ids: &[i64]) -> std::ops::ControlFlow<()> {
    let mut proposals = JoinSet::new();
    for &id in ids {
        let consensus = consensus.clone();
        proposals.spawn(async move {
            let request = LeaseExpiry { id, term };
            (id, consensus.propose_first(request).await)
        });
    }
    let outcomes = proposals.join_all().await;
    for (id, outcome) in outcomes {
        match outcome {
            Ok(_) => metrics::DEBUGGING_SERVER_LEASE_EXPIRED_TOTAL.inc(),
            // A client has revoked it meanwhile, or this is another's to do.
            Err(ProposeError::Rejected(
                CommandError::LeaseNotFound | CommandError::LeaderChanged,
            )) => {}
            Err(ProposeError::Stopped) => return std::ops::ControlFlow::Break(()),
            Err(error) => {
                tracing::warn!(lease = id, %error, "an expired lease was not revoked, will retry");
            }
        }
    }
    std::ops::ControlFlow::Continue(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::consensus;
    use crate::machine::members::{Identity, Start};
    use crate::machine::{Effects, LeaseChange, Machine};
    use crate::proto::etcdserverpb::{LeaseGrantRequest, Member, PutRequest, RangeRequest};
    use crate::storage::{self, Engine};

    fn put(key: &'static str, lease: i64) -> PutRequest {
        PutRequest {
            key: Bytes::from_static(key.as_bytes()),
            lease,
            ..PutRequest::default()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn expired_leases_go_with_their_keys_and_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(&dir.path().join("state"), &storage::Settings::default());
        let engine = Arc::new(engine.unwrap());
        let identity = Identity {
            cluster_id: 1,
            member_id: 1,
        };
        let members = [Member {
            id: 1,
            ..Member::default()
        }];
        identity
            .bootstrap(&engine, &members, Start::NewCluster)
            .unwrap();
        let (machine, store) = Machine::open(engine.clone()).unwrap();
        let election_timeout = Duration::from_secs(1);
        let lessor = Arc::new(Lessor::new([], election_timeout, Instant::now()));
        let settings = consensus::Settings {
            raft_dir: dir.path().join("raft"),
            member_id: 1,
            heartbeat: Duration::from_millis(100),
            election_timeout,
            max_request_bytes: 1 << 20,
            pre_vote: true,
            initial_election_tick_advance: true,
            is_forced_new: false,
            entries_per_flush: consensus::ENTRIES_PER_FLUSH,
            catch_up_entries: None,
            unsafe_no_fsync: true,
            slow_apply: Duration::from_secs(1),
        };
        let follower = lessor.clone();
        let on_effects = move |effects: &Effects| {
            for change in &effects.leases {
                match *change {
                    LeaseChange::Granted { id, ttl_seconds } => follower.granted(id, ttl_seconds),
                    LeaseChange::Revoked { id } => follower.revoked(id),
                    LeaseChange::Checkpointed { .. } => {}
                }
            }
        };
        let (consensus, threads) = consensus::start(
            settings,
            machine,
            engine,
            consensus::inbox().1,
            consensus::Links::none(),
            Box::new(on_effects),
        )
        .unwrap();
        for (id, ttl) in [(1, 1), (2, 1), (3, 3600)] {
            let grant = LeaseGrantRequest { ttl, id };
            consensus.propose(grant).await.unwrap();
        }
        for (key, lease) in [("a", 1), ("b", 2), ("c", 3), ("d", 0)] {
            consensus.propose(put(key, lease)).await.unwrap();
        }
        assert_eq!(store.revision(), 5);
        let chore = tokio::spawn(run(consensus.clone(), lessor.clone()));
        let deadline = Instant::now() + Duration::from_secs(20);
        while lessor.list() != [3] {
            assert!(Instant::now() < deadline, "left: {:?}", lessor.list());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // A revision for each (LEA-15).
        assert_eq!(store.revision(), 7);
        let all = RangeRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            ..RangeRequest::default()
        };
        assert_eq!(store.range(&all).unwrap().count, 2);
        tokio::task::spawn_blocking(move || threads.stop())
            .await
            .unwrap();
        chore.await.expect("ends with consensus");
    }
}
