//! Commands on their way to the drive loop.
//!
//! Owns the place where they wait, and the decision whether the loop is woken
//! for one. It is not while it is patient: then it will look by itself, when the
//! log has synced what it is busy with. Otherwise the first that waits wakes it
//! for all.

use parking_lot::Mutex;

use super::drive::Proposal;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Proposals {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// At most [`Proposals::CAPACITY`]; none once closed.
    waiting: Vec<Proposal>,
    is_patient: bool,
    is_closed: bool,
}

/// Why a proposal was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Full,
    Closed,
}

impl Proposals {
    /// As many as may be under way, see [`super::proposer`].
    pub(super) const CAPACITY: usize = super::proposer::MAX_PROPOSALS;

    /// Answers whether the drive loop has to be woken.
    pub(super) fn add(&self, proposal: Proposal) -> Result<bool, Refused> {
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(Refused::Closed);
        }
        if state.waiting.len() >= Proposals::CAPACITY {
            return Err(Refused::Full);
        }
        state.waiting.push(proposal);
        Ok(!state.is_patient && state.waiting.len() == 1)
    }

    /// All that wait; none if the caller `must_wait` for a sync. Until the next
    /// call nobody wakes it then.
    pub(super) fn take(&self, must_wait: bool) -> Vec<Proposal> {
        let mut state = self.state.lock();
        state.is_patient = must_wait;
        if must_wait {
            return Vec::new();
        }
        std::mem::take(&mut state.waiting)
    }

    /// Takes no more, and lets go of those that wait.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        // Outside of the lock: it wakes those who wait for an answer.
        drop(waiting);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::sync::oneshot;

    use super::*;
    use crate::consensus::replica::Payload;
    use crate::consensus::{Outcome, Waiter};

    fn proposal(id: u64) -> (Proposal, oneshot::Receiver<Outcome>) {
        let (reply, outcome) = oneshot::channel();
        let proposal = Proposal {
            id,
            payload: Payload::Command(Bytes::new()),
            waiter: Waiter {
                reply,
                _permit: None,
            },
        };
        (proposal, outcome)
    }

    fn ids(proposals: &[Proposal]) -> Vec<u64> {
        proposals.iter().map(|proposal| proposal.id).collect()
    }

    #[test]
    fn the_first_that_waits_wakes_for_all() {
        let proposals = Proposals::default();
        assert_eq!(proposals.add(proposal(1).0), Ok(true));
        assert_eq!(proposals.add(proposal(2).0), Ok(false));
        assert_eq!(ids(&proposals.take(false)), [1, 2]);
        assert_eq!(proposals.add(proposal(3).0), Ok(true));
    }

    #[test]
    fn nobody_wakes_who_waits_for_a_sync() {
        let proposals = Proposals::default();
        assert!(proposals.take(true).is_empty());
        assert_eq!(proposals.add(proposal(1).0), Ok(false));
        assert_eq!(proposals.add(proposal(2).0), Ok(false));
        assert!(proposals.take(true).is_empty());
        assert_eq!(ids(&proposals.take(false)), [1, 2]);
        assert_eq!(proposals.add(proposal(3).0), Ok(true), "patience is over");
    }

    #[test]
    fn a_full_place_and_a_closed_one_refuse() {
        let proposals = Proposals::default();
        let mut outcomes = Vec::new();
        for id in 0..Proposals::CAPACITY as u64 {
            let (proposal, outcome) = proposal(id);
            assert!(proposals.add(proposal).is_ok());
            outcomes.push(outcome);
        }
        assert_eq!(proposals.add(proposal(0).0), Err(Refused::Full));
        proposals.close();
        assert_eq!(proposals.add(proposal(0).0), Err(Refused::Closed));
        for mut outcome in outcomes {
            let ended = outcome.try_recv();
            assert!(matches!(ended, Err(oneshot::error::TryRecvError::Closed)));
        }
    }
}
