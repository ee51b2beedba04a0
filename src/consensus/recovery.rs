//! Brings the log and the state together at a start.
//!
//! Both outlive a crash, but each on its own: the log may be further than the
//! state, or still be the one before a received state. What does not belong
//! together is refused.

use super::StartError;
use super::log::OpenedLog;
use super::replica::Recovered;
use crate::machine::members::FIRST_APPLIED;

/// What raft starts from: the log as it was left, or a new one that begins
/// after the state.
pub(super) fn recover<L: OpenedLog>(
    log: &L,
    member_id: u64,
    applied: (u64, u64),
) -> Result<Recovered, StartError> {
    match log.owner()? {
        Some(owner) if owner != member_id => {
            return Err(StartError::ForeignLog { owner, member_id });
        }
        Some(_) => {}
        // No more than a bootstrap leaves.
        None if applied.0 <= FIRST_APPLIED.0 => {
            let mut start = Recovered {
                truncated: applied,
                last_index: applied.0,
                ..Recovered::default()
            };
            // So that the first election makes term 2, the one clients of a
            // new single etcd see (GEN-6). A member that joins has no term.
            start.hard_state.term = applied.1;
            start.hard_state.commit = applied.0;
            log.bootstrap(&start, member_id)?;
        }
        None => {
            return Err(StartError::LogMismatch {
                first: 1,
                last: 0,
                applied: applied.0,
            });
        }
    }
    if log.installing()? == Some(applied) {
        tracing::info!(
            index = applied.0,
            "the log begins after the state received last"
        );
        log.restart_after(applied, member_id)?;
    }
    let mut recovered = log.recover()?;
    let (first, last) = (recovered.truncated.0 + 1, recovered.last_index);
    if applied.0 + 1 < first || applied.0 > last || recovered.hard_state.commit > last {
        return Err(StartError::LogMismatch {
            first,
            last,
            applied: applied.0,
        });
    }
    let is_known = applied.0 + 1 == first && applied.1 == recovered.truncated.1;
    if !is_known && !matches!(log.term(applied.0), Ok(term) if term == applied.1) {
        return Err(StartError::OtherHistory { index: applied.0 });
    }
    if recovered.truncated.0 < FIRST_APPLIED.0 {
        // A log of the first version begins with the first entry. Who joins
        // must get the state instead: the first members are not in the log.
        recovered.truncated = applied;
    }
    // Commit indexes are written with the entries after them, so the one on
    // disk may be older than what was applied.
    let commit = &mut recovered.hard_state.commit;
    *commit = (*commit).max(applied.0);
    Ok(recovered)
}
