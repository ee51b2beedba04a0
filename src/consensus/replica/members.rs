//! Who takes part, and who of them leads: changes of the members, handing
//! leadership over and giving it up.

use raft::StateRole;
use raft::eraftpb::{ConfChange, ConfChangeType, ConfState};

use super::{Replica, StoredLog, Waits};
use crate::machine::Conf;

/// A change of the members that was handed out for applying.
pub(super) struct PendingConf {
    pub(super) index: u64,
    /// The save that makes its commitment durable.
    pub(super) save: u64,
    /// The members after it, once the machine has decided.
    pub(super) decided: Option<Conf>,
}

impl<L: StoredLog, W: Waits, R: Waits> Replica<L, W, R> {
    /// The machine has decided about the change at `index`: these are the
    /// members now.
    pub fn conf_applied(&mut self, index: u64, conf: Conf) {
        let pending = self.pending_confs.iter_mut();
        for pending in pending.filter(|pending| pending.index == index) {
            pending.decided = Some(conf.clone());
        }
        self.apply_confs();
    }

    /// Hands leadership to `to`; answers false if this member does not lead or
    /// `to` is no other voter. It takes an election timeout at most, or fails.
    pub fn transfer_leadership(&mut self, to: u64) -> bool {
        let is_voter = self.node.raft.prs().conf().voters().contains(to);
        if !self.is_leader() || !is_voter || to == self.id {
            return false;
        }
        self.node.transfer_leader(to);
        true
    }

    /// Hands leadership to whoever is furthest; answers false if this member
    /// does not lead or nobody else can.
    pub fn hand_over(&mut self) -> bool {
        match self.best_successor() {
            Some(to) if self.is_leader() => self.transfer_leadership(to),
            _ => false,
        }
    }

    /// Whether there is no other member.
    pub fn is_alone(&self) -> bool {
        self.is_sole_voter() && self.node.raft.prs().iter().count() == 1
    }

    /// Whether this member alone decides.
    pub fn is_sole_voter(&self) -> bool {
        let voters = self.node.raft.prs().conf().voters();
        voters.contains(self.id) && voters.ids().len() == 1
    }

    /// Lets the decided changes of the members take effect whose commitment is
    /// durable.
    pub(super) fn apply_confs(&mut self) {
        while let Some(pending) = self.pending_confs.front()
            && pending.save <= self.last_persisted
            && let Some(conf) = &pending.decided
        {
            let (index, conf) = (pending.index, conf.clone());
            self.pending_confs.pop_front();
            self.set_members(&conf);
            self.applied(index);
        }
    }

    /// Brings raft's members up to the machine's, which are one step further
    /// at most: a refused change is none.
    pub(super) fn set_members(&mut self, conf: &Conf) {
        let raft = &self.node.raft;
        let now = raft.prs().conf().to_conf_state();
        let Some(change) = difference(&now, conf) else {
            return;
        };
        let is_removed =
            change.node_id == self.id && change.get_change_type() == ConfChangeType::RemoveNode;
        if is_removed && self.is_leader() {
            if let Some(successor) = self.best_successor() {
                // Whoever takes over must know first that this is committed:
                // with the old members, one of two would need the vote of the
                // one that leaves.
                self.node.raft.bcast_append();
                self.node.raft.send_timeout_now(successor);
            }
            // A leader that is no member makes raft panic: its last messages
            // are taken out, then it is none.
            self.urgent.append(&mut self.node.raft.msgs);
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, 0);
        }
        match self.node.apply_conf_change(&change) {
            Ok(now) => {
                assert!(
                    difference(&now, conf).is_none(),
                    "raft's members {now:?} are not the machine's {conf:?}"
                );
                self.node.mut_store().set_conf(now);
            }
            Err(error) => panic!("raft refuses {change:?}, which was applied: {error}"),
        }
    }

    /// The voter that would lose least time as the next leader.
    pub(super) fn best_successor(&self) -> Option<u64> {
        let progress = self.node.raft.prs();
        let voters = progress.conf().voters();
        let others = progress.iter().filter(|&(&id, _)| {
            id != self.id && voters.contains(id) && self.has_heard(id, self.election_ticks)
        });
        let best = others.max_by_key(|&(&id, progress)| (progress.matched, id));
        best.map(|(&id, _)| id)
    }

    /// Whether winning an election now would find raft in order.
    pub(super) fn may_campaign(&self) -> bool {
        let is_log_durable =
            self.is_saved() && self.node.raft.raft_log.unstable_entries().is_empty();
        self.installing.is_none() && (is_log_durable || !self.is_sole_voter())
    }

    /// Lets a candidate try again after 4, 6 or 8 tenths of an election timeout,
    /// by its place among the voters. Raft waits for up to two of them, which
    /// with the first wait makes four until somebody leads: after a split vote,
    /// or when the only one who can win was early and the others still believed
    /// in the old leader. Only with pre-votes, which disturb nobody: a term that
    /// rises would set the others' clocks back each time.
    pub(super) fn hurry_candidate(&mut self) {
        let raft = &mut self.node.raft;
        let is_candidate = matches!(raft.state, StateRole::Candidate | StateRole::PreCandidate);
        if !self.has_pre_vote || !is_candidate {
            return;
        }
        let voters = raft.prs().conf().voters().ids();
        let place = voters.iter().filter(|voter| *voter < self.id).count() % 3;
        let wait = raft.election_timeout() * (4 + 2 * place) / 10;
        let until = raft.randomized_election_timeout();
        let waited = until.saturating_sub(wait.max(1));
        raft.election_elapsed = raft.election_elapsed.max(waited);
    }

    /// A leader whose disk has stood still for an election timeout hands over,
    /// and steps down if nobody takes it: heartbeats do not pass the disk, so
    /// the others would follow it for ever.
    pub(super) fn step_down_if_stalled(&mut self) {
        let Some(since) = self.waiting_since else {
            return;
        };
        if !self.is_leader() || self.is_sole_voter() {
            return;
        }
        let stalled = self.tick - since;
        if stalled == self.election_ticks {
            tracing::warn!("the log has not been written for an election timeout, handing over");
            self.hand_over();
        } else if stalled >= 2 * self.election_ticks {
            tracing::warn!("the log is still not written, stepping down");
            let term = self.node.raft.term;
            self.urgent.append(&mut self.node.raft.msgs);
            self.node.raft.become_follower(term, 0);
        }
    }
}

pub fn conf_state(conf: &Conf) -> ConfState {
    ConfState {
        voters: conf.voters.clone(),
        learners: conf.learners.clone(),
        ..ConfState::default()
    }
}

/// The first step from raft's members to `conf`.
fn difference(now: &ConfState, conf: &Conf) -> Option<ConfChange> {
    let step = |kind, member_id| {
        let mut change = ConfChange {
            node_id: member_id,
            ..ConfChange::default()
        };
        change.set_change_type(kind);
        change
    };
    let added = |kind, wanted: &[u64], present: &[u64]| {
        let id = wanted.iter().find(|id| !present.contains(id));
        id.map(|id| step(kind, *id))
    };
    let removed = || {
        let mut present = now.voters.iter().chain(&now.learners);
        let id = present.find(|id| !conf.voters.contains(id) && !conf.learners.contains(id));
        id.map(|id| step(ConfChangeType::RemoveNode, *id))
    };
    added(ConfChangeType::AddNode, &conf.voters, &now.voters)
        .or_else(|| {
            added(
                ConfChangeType::AddLearnerNode,
                &conf.learners,
                &now.learners,
            )
        })
        .or_else(removed)
}
