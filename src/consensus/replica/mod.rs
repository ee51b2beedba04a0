//! One member's part in the group, as a function of what happens to it.
//!
//! Owns raft's state machine and everything whose order matters to it: who
//! waits for which command, the rounds of safe reads, changes of the members,
//! what is saved and what is not yet. It has no thread, no disk, no clock and
//! no channel: events come in by its methods (time as ticks), and [`Replica::take`]
//! answers what is to be sent, saved and applied. The drive thread is a loop
//! around it; a simulation can be another.
//!
//! Rules for the caller, which the safety of the group rests on:
//!
//! - An [`Output`] is carried out in its order: `messages` may leave at once,
//!   those in a [`Save`] only when it is durable. Saves become durable in
//!   order; [`Replica::persisted`] says so.
//! - `apply` goes to the machine in order; [`Replica::tick`] is told how far it
//!   is, [`Replica::conf_applied`] what became of a change of the members.
//! - After a restart `run` is another number.
//!
//! What raft 0.7 does not do, this does around it:
//!
//! - A change of the members takes effect only when a commit index that covers
//!   it is durable. Otherwise a restart could come up with the old members,
//!   none of which has to ask the new ones, and decide alone.
//! - Messages that raft would drop though they only come at a bad moment
//!   (proposals during a hand-over, reads before the leader's term has begun,
//!   changes of the members while one is under way) are held for a while.
//! - A candidate that nobody elects tries again within an election timeout, at
//!   another time than the others.
//! - A rejection that is older than what the follower has acknowledged does not
//!   set it back (raft-rs #557).
//! - A sole voter leads before its own vote is durable. What it has to tell its
//!   learners waits for that: after a crash it would lead the same term again,
//!   and put other entries in the places of those they have.

mod log_view;
mod members;
mod output;
mod reads;
mod step;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType, Entry, EntryType, HardState, Message};
use raft::{RawNode, StateRole};

use super::shared::Progress;
use super::snapshot::SnapshotSource;
use crate::machine::Conf;
pub(super) use log_view::LogView;
pub use log_view::{Recovered, StoredLog};
use members::PendingConf;
pub use members::conf_state;
pub use output::{Batch, Output, Role, Save};
use reads::Reads;

/// How often the log is left as it is for the sake of a member that still
/// needs it. The log is cut every 32 MB or 32,768 entries.
const MAX_SPARED_TRIMS: u32 = 16;

/// Somebody who waits for an answer.
pub trait Waits {
    /// Nobody will take the answer.
    fn is_gone(&self) -> bool;
}

/// What a replica is made with.
pub struct Start<L> {
    pub config: raft::Config,
    pub log: L,
    pub recovered: Recovered,
    pub conf: Conf,
    pub source: Box<dyn SnapshotSource>,
    pub logger: slog::Logger,
    /// Never the same for two runs of this member.
    pub run: u64,
    /// Ticks after which a read is asked for again.
    pub read_retry_ticks: u64,
    /// The first election comes early.
    pub advance_election: bool,
    /// Applied entries that stay in the log for others; none: those since the
    /// flush before the last.
    pub catch_up_entries: Option<u64>,
}

/// A command on its way into the log.
pub struct Proposal<W> {
    /// Unique among the proposals of all members.
    pub id: u64,
    pub payload: Payload,
    pub waiter: W,
}

/// An encoded command.
pub enum Payload {
    Command(Bytes),
    /// With what it means to raft if the machine agrees.
    ConfChange {
        kind: ConfChangeType,
        member_id: u64,
        command: Bytes,
    },
}

/// See the [module](self).
pub struct Replica<L: StoredLog, W, R> {
    node: RawNode<LogView<L>>,
    id: u64,
    election_ticks: u64,
    has_pre_vote: bool,
    read_retry_ticks: u64,
    tick: u64,
    /// Commands not yet given to raft: it drops them while it has no leader.
    queued: Vec<Entry>,
    /// Changes of the members; the leader takes one at a time.
    queued_confs: VecDeque<Entry>,
    /// Who waits for a command, by the id its entry carries as context, and
    /// the term it was taken in. On a leader a waiter that has given up stays,
    /// for the room its command takes, until the command is applied or may be
    /// lost.
    waiters: HashMap<u64, (u64, W)>,
    reads: Reads<R>,
    /// Messages of peers that raft cannot take yet, with the tick they came at.
    held: VecDeque<(u64, Message)>,
    held_bytes: usize,
    /// When each peer was last heard.
    heard: Vec<(u64, u64)>,
    pending_confs: VecDeque<PendingConf>,
    /// The last committed entry that was handed out for applying.
    last_handed_on: u64,
    /// To be sent at once though raft has changed its role since.
    urgent: Vec<Message>,
    /// A newer hard state than the one on disk that need not be there: it goes
    /// with the next write.
    unsaved_hard_state: Option<HardState>,
    /// Numbers of the last `Ready`, of the last one that was saved and of the
    /// last one that is durable.
    last_ready: u64,
    last_save: u64,
    last_persisted: u64,
    /// Term and vote, and the number of the save that they are part of.
    vote: (u64, u64),
    vote_save: u64,
    /// The tick since which the oldest save has made no progress.
    waiting_since: Option<u64>,
    /// The number of the save that puts a received state in place of the log.
    installing: Option<u64>,
    last_role: Role,
    spared_trims: u32,
    /// What was applied before the last flush of the state.
    last_flushed: u64,
    catch_up_entries: Option<u64>,
}

impl<L: StoredLog, W: Waits, R: Waits> Replica<L, W, R> {
    pub fn new(start: Start<L>) -> Result<Replica<L, W, R>, raft::Error> {
        let Start { config, conf, .. } = start;
        let id = config.id;
        let applied = (config.applied, conf_state(&conf));
        let hard_state = &start.recovered.hard_state;
        let vote = (hard_state.term, hard_state.vote);
        let view = LogView::new(start.log, start.recovered, applied, start.source);
        let mut node = RawNode::new(&config, view, &start.logger)?;
        if start.advance_election && config.pre_vote {
            // As etcd's `advanceTicks`: whoever has a leader will not be
            // disturbed, since it is asked before a vote.
            node.raft.election_elapsed = config.election_tick.saturating_sub(2);
        }
        let last_role = Role {
            leader: 0,
            term: node.raft.term,
            role: StateRole::Follower,
        };
        Ok(Replica {
            node,
            id,
            election_ticks: config.election_tick as u64,
            has_pre_vote: config.pre_vote,
            read_retry_ticks: start.read_retry_ticks.max(1),
            tick: 0,
            queued: Vec::new(),
            queued_confs: VecDeque::new(),
            waiters: HashMap::new(),
            reads: Reads::new(id, start.run),
            held: VecDeque::new(),
            held_bytes: 0,
            heard: Vec::new(),
            pending_confs: VecDeque::new(),
            last_handed_on: config.applied,
            urgent: Vec::new(),
            unsaved_hard_state: None,
            last_ready: 0,
            last_save: 0,
            last_persisted: 0,
            vote,
            vote_save: 0,
            waiting_since: None,
            installing: None,
            last_role,
            spared_trims: 0,
            last_flushed: 0,
            catch_up_entries: start.catch_up_entries,
        })
    }

    /// Wins the election at once if nobody else could. Called once, before
    /// anything else.
    pub fn campaign_if_alone(&mut self) -> Result<(), raft::Error> {
        if self.is_sole_voter() {
            self.node.campaign()?;
        }
        Ok(())
    }

    pub fn propose(&mut self, proposal: Proposal<W>) {
        let Proposal {
            id,
            payload,
            waiter,
        } = proposal;
        let mut entry = Entry {
            context: Bytes::copy_from_slice(&id.to_be_bytes()),
            ..Entry::default()
        };
        match payload {
            Payload::Command(command) => {
                entry.data = command;
                self.queued.push(entry);
            }
            Payload::ConfChange {
                kind,
                member_id,
                command,
            } => {
                let mut change = ConfChange {
                    node_id: member_id,
                    context: command,
                    ..ConfChange::default()
                };
                change.set_change_type(kind);
                let data = change.write_to_bytes();
                entry.data = data.expect("all fields are set").into();
                entry.set_entry_type(EntryType::EntryConfChange);
                self.queued_confs.push_back(entry);
            }
        }
        self.waiters.insert(id, (self.node.raft.term, waiter));
    }

    /// Readers that want to see all that was acknowledged before.
    pub fn read(&mut self, readers: Vec<R>) {
        self.reads.add(readers);
    }

    /// Everything up to `index` has been applied.
    pub fn applied(&mut self, index: u64) {
        let log = &self.node.raft.raft_log;
        let unknown = self.pending_confs.front().map(|pending| pending.index - 1);
        let index = index
            .min(log.committed)
            .min(log.persisted)
            .min(unknown.unwrap_or(u64::MAX));
        if index > log.applied {
            self.node.advance_apply_to(index);
            self.node.mut_store().set_applied(index);
        }
    }

    /// One step of the clock; `applied` as in [`Replica::applied`]. Answers
    /// whether readers had to ask again.
    pub fn tick(&mut self, applied: u64) -> bool {
        self.tick += 1;
        self.applied(applied);
        self.drop_what_nobody_waits_for();
        let context = self
            .reads
            .retry(self.tick, self.read_retry_ticks, R::is_gone);
        let is_read_slow = context.is_some();
        if let Some(context) = context {
            self.node.read_index(context);
        }
        // While a state is put in place raft must not look at the log, and a
        // sole voter must not win before its log is durable.
        if self.may_campaign() || self.is_leader() {
            self.node.tick();
            self.hurry_candidate();
        }
        self.step_down_if_stalled();
        is_read_slow
    }

    /// Where to cut the log, now that the state up to `applied` is on disk;
    /// `None`: not yet, a peer still needs it.
    pub fn trim(&mut self, applied: u64) -> Option<(u64, u64)> {
        // Before an election raft looks at what it believes not applied yet;
        // that must still be in the log.
        self.applied(applied);
        let applied = applied.min(self.node.raft.raft_log.applied);
        let mut index = applied;
        if !self.is_alone() {
            // One stretch more than a restart needs: whoever leads next should
            // not have to send a whole state for a few entries.
            let stretch = std::mem::replace(&mut self.last_flushed, applied);
            let wanted = self.catch_up_entries;
            index = wanted.map_or(stretch, |entries| applied.saturating_sub(entries));
        }
        if self.spared_trims < MAX_SPARED_TRIMS {
            index = index.min(self.needed_by_peers());
        }
        let view = self.node.mut_store();
        if index <= view.truncated_index() {
            self.spared_trims += 1;
            return None;
        }
        self.spared_trims = 0;
        let term = raft::Storage::term(view, index).ok()?;
        view.truncate((index, term));
        Some((index, term))
    }

    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    pub fn role(&self) -> Role {
        self.last_role
    }

    /// Whether commands still wait here for their outcome.
    pub fn has_waiters(&self) -> bool {
        !self.waiters.is_empty() || !self.reads.is_empty()
    }

    /// Whether everything handed out is durable.
    pub fn is_saved(&self) -> bool {
        self.last_save == self.last_persisted
    }

    pub fn is_installing(&self) -> bool {
        self.installing.is_some()
    }

    /// As a leader: how far the others are.
    pub fn progress(&self) -> Vec<(u64, Progress)> {
        if !self.is_leader() {
            return Vec::new();
        }
        let all = self.node.raft.prs().iter();
        all.map(|(&id, progress)| {
            let progress = Progress {
                matched: progress.matched,
                is_recent_active: id == self.id || self.has_heard(id, self.election_ticks),
            };
            (id, progress)
        })
        .collect()
    }

    /// As a leader: whether a majority was heard lately; else, whether the
    /// leader was. True while there is no leader to hear.
    pub fn is_in_contact(&self, within_ticks: u64) -> bool {
        let raft = &self.node.raft;
        if raft.leader_id == 0 {
            return true;
        }
        if raft.leader_id != self.id {
            return self.has_heard(raft.leader_id, within_ticks);
        }
        let voters = raft.prs().conf().voters();
        let ids = voters.ids();
        let heard = ids.iter();
        let heard = heard.filter(|&id| id == self.id || self.has_heard(id, within_ticks));
        heard.count() > ids.len() / 2
    }

    /// As a leader: the index up to which every member that answers has the
    /// log, or will have it from the snapshot under way.
    fn needed_by_peers(&self) -> u64 {
        if !self.is_leader() {
            return u64::MAX;
        }
        let all = self.node.raft.prs().iter();
        let others =
            all.filter(|&(&id, _)| id != self.id && self.has_heard(id, 2 * self.election_ticks));
        let needed = others.map(|(_, progress)| progress.matched.max(progress.pending_snapshot));
        needed.min().unwrap_or(u64::MAX)
    }

    fn drop_what_nobody_waits_for(&mut self) {
        let waiters = &self.waiters;
        let is_awaited = |entry: &Entry| {
            let id = proposal_id(entry);
            id.and_then(|id| waiters.get(&id))
                .is_some_and(|(_, waiter)| !waiter.is_gone())
        };
        self.queued.retain(is_awaited);
        self.queued_confs.retain(is_awaited);
        let is_leader = self.is_leader();
        let current_term = self.node.raft.term;
        self.waiters
            .retain(|_, (term, waiter)| (is_leader && *term == current_term) || !waiter.is_gone());
    }
}

fn is_conf_change(entry: &Entry) -> bool {
    entry.get_entry_type() != EntryType::EntryNormal
}

fn proposal_id(entry: &Entry) -> Option<u64> {
    let context = entry.context.as_ref().try_into().ok()?;
    Some(u64::from_be_bytes(context))
}
