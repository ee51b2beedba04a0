//! Puts on record how much is left of long leases.
//!
//! Without that a new leader gives each lease its full time again: hours, for
//! a lease of hours that nobody renews any more (LEA-30, LEA-32). The lessor
//! says which leases are due, five minutes after their last renewal or
//! checkpoint. Numbers as etcd's (`lease/lessor.go`), where this is off by
//! default.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::consensus::{Consensus, ProposeError};
use crate::lease::Lessor;
use crate::machine::CommandError;
use crate::machine::command::{LeaseCheckpoint, LeaseCheckpoints};

/// How often leases that are due are looked for.
const INTERVAL: Duration = Duration::from_millis(500);

/// Leases in one command: some 20 KB.
const LEASES_PER_COMMAND: usize = 1000;

/// Commands in a round. 16,000 leases a second: five million long leases are
/// done within the five minutes.
const COMMANDS_PER_ROUND: usize = 8;

/// Runs until consensus stops.
pub async fn run(consensus: Consensus, lessor: Arc<Lessor>) {
    let mut rounds = tokio::time::interval(INTERVAL);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = rounds.tick() => {}
            () = consensus.stopped() => return,
        }
        for _ in 0..COMMANDS_PER_ROUND {
            let status = consensus.status();
            if !status.is_leader {
                break;
            }
            lessor.lead(status.term, Instant::now());
            let due = lessor.due_checkpoints(Instant::now(), LEASES_PER_COMMAND);
            if due.remaining.is_empty() {
                break;
            }
            let checkpoint = |(id, remaining_seconds)| LeaseCheckpoint {
                id,
                remaining_seconds,
            };
            let request = LeaseCheckpoints {
                checkpoints: due.remaining.into_iter().map(checkpoint).collect(),
                term: status.term,
                sequence: due.sequence,
            };
            match consensus.propose_first(request).await {
                Ok(()) | Err(ProposeError::Rejected(CommandError::LeaderChanged)) => {}
                Err(ProposeError::Stopped) => return,
                // They come round again; until then they count as unrecorded.
                Err(error) => {
                    tracing::warn!(%error, "remaining times of leases were not recorded");
                    break;
                }
            }
        }
    }
}
