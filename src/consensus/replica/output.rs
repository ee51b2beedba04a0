//! What comes out of raft, in the order in which it has to be carried out.

use raft::eraftpb::{Entry, HardState, Message, Snapshot, SnapshotMetadata};
use raft::{Ready, StateRole};

use super::members::PendingConf;
use super::{Replica, StoredLog, Waits, is_conf_change, proposal_id};

/// What is to be done after an event, in this order.
pub struct Output<W, R> {
    /// To be sent at once.
    pub messages: Vec<Message>,
    pub save: Option<Save>,
    pub apply: Batch<W, R>,
    /// Their round has been ended by a new leader.
    pub failed_reads: Vec<R>,
    /// Leader, role and term, if one has changed.
    pub role: Option<Role>,
    /// Newly committed up to here.
    pub committed: Option<u64>,
}

/// What one step of raft wants to be stored, all of it or nothing.
pub struct Save {
    pub number: u64,
    /// Before anything else: the log is empty, and begins after this state.
    pub state: Option<SnapshotMetadata>,
    pub entries: Vec<Entry>,
    pub hard_state: Option<HardState>,
    /// To be sent once all of this is durable.
    pub messages: Vec<Message>,
}

/// Work for the machine, in this order.
pub struct Batch<W, R> {
    /// The state to begin with.
    pub state: Option<Snapshot>,
    /// Committed entries, each with who waits for it on this member.
    pub entries: Vec<(Entry, Option<W>)>,
    /// Readers, and the index that must be applied before they go on.
    pub reads: Vec<(u64, Vec<R>)>,
}

impl<W, R> Batch<W, R> {
    pub fn is_empty(&self) -> bool {
        self.state.is_none() && self.entries.is_empty() && self.reads.is_empty()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role {
    /// 0 while none is known.
    pub leader: u64,
    pub term: u64,
    pub role: StateRole,
}

impl<L: StoredLog, W: Waits, R: Waits> Replica<L, W, R> {
    /// What is to be done; `None` when nothing is.
    pub fn take(&mut self) -> Option<Output<W, R>> {
        if self.installing.is_some() {
            return None;
        }
        self.release_held();
        self.propose_queued();
        self.begin_round();
        if !self.node.has_ready() && self.urgent.is_empty() {
            return None;
        }
        let ready = self.node.ready();
        Some(self.take_ready(ready))
    }

    /// Whether [`Replica::take`] would answer something, as far as known.
    pub fn has_output(&self) -> bool {
        self.installing.is_none() && (self.node.has_ready() || !self.urgent.is_empty())
    }

    /// The save of this number, and all before it, are durable. Answers true
    /// when a received state is now in place.
    pub fn persisted(&mut self, number: u64) -> bool {
        self.last_persisted = number;
        if number < self.last_save {
            self.waiting_since = Some(self.tick);
            self.node.on_persist_ready(number);
        } else {
            self.waiting_since = None;
            self.report_persisted();
        }
        self.apply_confs();
        let is_installed = self.installing.take_if(|save| *save <= number).is_some();
        if is_installed {
            // Before raft looks for entries that are no longer there.
            self.applied(self.node.store().applied_index());
        }
        is_installed
    }

    pub(super) fn take_ready(&mut self, mut ready: Ready) -> Output<W, R> {
        self.last_ready = ready.number();
        let mut output = Output {
            messages: std::mem::take(&mut self.urgent),
            save: None,
            apply: Batch {
                state: None,
                entries: Vec::new(),
                reads: Vec::new(),
            },
            failed_reads: Vec::new(),
            role: None,
            committed: None,
        };
        self.take_role(&ready, &mut output);
        for state in ready.take_read_states() {
            if let Some(readers) = self.reads.answered(&state.request_ctx) {
                output.apply.reads.push((state.index, readers));
            }
        }
        if let Some(hard_state) = ready.hs() {
            output.committed = Some(hard_state.commit);
            self.unsaved_hard_state = Some(hard_state.clone());
            let vote = (hard_state.term, hard_state.vote);
            if vote != self.vote {
                (self.vote, self.vote_save) = (vote, self.last_ready);
            }
        }
        let committed = ready.take_committed_entries();
        let entries = ready.take_entries();
        let mut waiting_messages = ready.take_persisted_messages();
        // Raft lets every leader speak at once, as if its vote were durable.
        if self.last_persisted < self.vote_save {
            waiting_messages.append(&mut ready.take_messages());
        } else {
            output.messages.append(&mut ready.take_messages());
        }
        let view = self.node.mut_store();
        if !ready.snapshot().is_empty() {
            view.restore(ready.snapshot().get_metadata());
            output.apply.state = Some(ready.snapshot().clone());
            // What was handed out before is part of that state.
            self.pending_confs.clear();
            self.last_handed_on = ready.snapshot().get_metadata().index;
        }
        view.append(&entries);
        let has_confs = committed.iter().any(is_conf_change);
        let state = output.apply.state.as_ref();
        let state = state.map(|state| state.get_metadata().clone());
        let must_save = ready.must_sync() || (has_confs && self.unsaved_hard_state.is_some());
        output.save = self.save(
            must_save,
            state,
            entries,
            waiting_messages,
            &mut output.messages,
        );
        self.node.advance_append_async(ready);
        self.report_persisted();
        output.apply.entries = self.with_waiters(committed);
        output
    }

    pub(super) fn take_role(&mut self, ready: &Ready, output: &mut Output<W, R>) {
        let raft = &self.node.raft;
        let role = Role {
            leader: ready.ss().map_or(self.last_role.leader, |s| s.leader_id),
            term: raft.term,
            role: ready.ss().map_or(self.last_role.role, |s| s.raft_state),
        };
        if role != self.last_role {
            self.last_role = role;
            output.role = Some(role);
            output.failed_reads = self.reads.leader_changed(role.leader, role.term);
        }
    }

    /// What must be durable. A commit index alone is not; messages that wait
    /// for older writes queue behind them, others go with `now`.
    pub(super) fn save(
        &mut self,
        must_save: bool,
        state: Option<SnapshotMetadata>,
        entries: Vec<Entry>,
        mut messages: Vec<Message>,
        now: &mut Vec<Message>,
    ) -> Option<Save> {
        if !must_save && (messages.is_empty() || self.is_saved()) {
            now.append(&mut messages);
            return None;
        }
        if self.is_saved() {
            self.waiting_since = Some(self.tick);
        }
        self.last_save = self.last_ready;
        if state.is_some() {
            self.installing = Some(self.last_save);
        }
        let hard_state = must_save.then(|| self.unsaved_hard_state.take()).flatten();
        Some(Save {
            number: self.last_save,
            state,
            entries,
            hard_state,
            messages,
        })
    }

    /// With all saves done, the readies after the last one, which held nothing
    /// to save, count as persisted too.
    pub(super) fn report_persisted(&mut self) {
        if self.is_saved() {
            self.node.on_persist_ready(self.last_ready);
        }
    }

    pub(super) fn with_waiters(&mut self, committed: Vec<Entry>) -> Vec<(Entry, Option<W>)> {
        let Some(last) = committed.last() else {
            return Vec::new();
        };
        let last_index = last.index;
        let with_waiters = committed.into_iter().map(|entry| {
            if is_conf_change(&entry) {
                self.pending_confs.push_back(PendingConf {
                    index: entry.index,
                    save: self.last_save,
                    decided: None,
                });
            }
            let waiter = proposal_id(&entry).and_then(|id| self.waiters.remove(&id));
            (entry, waiter.map(|(_, waiter)| waiter))
        });
        let with_waiters = with_waiters.collect();
        self.last_handed_on = last_index;
        self.node.mut_store().forget_to(last_index);
        with_waiters
    }
}
