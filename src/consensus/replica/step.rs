//! What goes into raft: messages of peers, the commands that are queued and
//! the rounds of readers, each when raft would not drop it.

use prost::Message as _;
use protobuf::Message as _;
use raft::SnapshotStatus;
use raft::eraftpb::{ConfChange, Entry, EntryType, Message, MessageType};

use super::{Replica, StoredLog, Waits};
use crate::machine::command::Command;

/// Commands forwarded to the leader in one message: as a full append.
const MAX_FORWARD_BYTES: usize = 1 << 20;

/// Messages of peers held until raft can take them, and their bytes: some
/// full batches of each peer. What does not fit is dropped, as raft would.
const MAX_HELD_MESSAGES: usize = 256;
const MAX_HELD_BYTES: usize = 16 << 20;

impl<L: StoredLog, W: Waits, R: Waits> Replica<L, W, R> {
    /// A message of a peer.
    pub fn step(&mut self, message: Message) {
        if message.to != self.id {
            return;
        }
        self.note_heard(message.from);
        if let Err(reason) = check_changes(&message) {
            let from = format_args!("{:x}", message.from);
            tracing::warn!(from, reason, "dropped a proposal of another member");
            return;
        }
        match message.get_msg_type() {
            MessageType::MsgPropose | MessageType::MsgReadIndex | MessageType::MsgTimeoutNow => {
                self.step_or_hold(self.tick, message);
            }
            MessageType::MsgSnapshot if self.installing.is_some() => {}
            MessageType::MsgAppendResponse if message.reject => self.step_rejection(message),
            _ => self.step_raft(message),
        }
    }

    /// The last message to a peer was not sent.
    pub fn unreachable(&mut self, id: u64) {
        self.node.report_unreachable(id);
    }

    /// What became of a snapshot for a peer.
    pub fn snapshot_sent(&mut self, id: u64, ok: bool) {
        let status = if ok {
            SnapshotStatus::Finish
        } else {
            SnapshotStatus::Failure
        };
        self.node.report_snapshot(id, status);
    }

    pub(super) fn step_raft(&mut self, message: Message) {
        // Errors are about messages of strangers and of the past.
        if let Err(error) = self.node.step(message) {
            tracing::debug!(%error, "raft has not taken a message");
        }
    }

    /// Keeps a rejection from setting a follower back behind what it has
    /// acknowledged since (raft-rs #557): raft would look for it below, where
    /// the log may have been cut off.
    pub(super) fn step_rejection(&mut self, mut message: Message) {
        let raft = &self.node.raft;
        if let Some(progress) = raft.prs().get(message.from)
            && message.term == raft.term
            && message.request_snapshot == 0
            && self.is_leader()
        {
            let matched = progress.matched;
            if message.index <= matched {
                return;
            }
            let mut hint = message.reject_hint;
            if message.log_term > 0 {
                let log = &raft.raft_log;
                hint = log.find_conflict_by_term(hint, message.log_term).0;
            }
            if hint < matched {
                message.reject_hint = matched;
                message.log_term = 0;
            }
        }
        self.step_raft(message);
    }

    pub(super) fn note_heard(&mut self, id: u64) {
        match self.heard.iter_mut().find(|(heard, _)| *heard == id) {
            Some((_, tick)) => *tick = self.tick,
            None => self.heard.push((id, self.tick)),
        }
    }

    pub(super) fn has_heard(&self, id: u64, within_ticks: u64) -> bool {
        let mut heard = self.heard.iter();
        heard.any(|(heard, tick)| *heard == id && self.tick <= tick + within_ticks)
    }

    /// Gives raft a message, or keeps it until raft would not drop it.
    pub(super) fn step_or_hold(&mut self, came_at: u64, message: Message) {
        if !self.must_hold(&message) {
            self.step_raft(message);
            return;
        }
        let bytes: usize = message.entries.iter().map(|e| e.data.len()).sum();
        if self.held.len() < MAX_HELD_MESSAGES && self.held_bytes + bytes <= MAX_HELD_BYTES {
            self.held_bytes += bytes;
            self.held.push_back((came_at, message));
        }
    }

    pub(super) fn must_hold(&self, message: &Message) -> bool {
        let raft = &self.node.raft;
        let is_leader = self.is_leader();
        match message.get_msg_type() {
            MessageType::MsgPropose if is_leader => {
                let mut entries = message.entries.iter();
                raft.lead_transferee.is_some()
                    || raft.has_pending_conf()
                        && entries.any(|e| e.get_entry_type() != EntryType::EntryNormal)
            }
            MessageType::MsgPropose => raft.leader_id == 0,
            MessageType::MsgReadIndex => is_leader && !raft.commit_to_current_term(),
            MessageType::MsgTimeoutNow => {
                // What has just been committed may change the members.
                let has_news = raft.raft_log.committed > self.last_handed_on;
                has_news || !self.may_campaign() || !self.pending_confs.is_empty()
            }
            _ => false,
        }
    }

    pub(super) fn release_held(&mut self) {
        if self.held.is_empty() {
            return;
        }
        self.held_bytes = 0;
        for (came_at, message) in std::mem::take(&mut self.held) {
            // Older than that, nobody waits any more or the sender knows a
            // newer leader.
            if self.tick <= came_at + 2 * self.election_ticks {
                self.step_or_hold(came_at, message);
            }
        }
    }

    /// Gives raft all queued commands at once.
    pub(super) fn propose_queued(&mut self) {
        if self.queued.is_empty() && self.queued_confs.is_empty() {
            return;
        }
        let raft = &self.node.raft;
        if raft.leader_id == 0 || raft.lead_transferee.is_some() {
            return;
        }
        let entries = std::mem::take(&mut self.queued);
        if self.is_leader() {
            self.step_proposal(entries);
        } else {
            let mut rest = entries.into_iter().peekable();
            while rest.peek().is_some() {
                let mut bytes = 0;
                let mut part = Vec::new();
                while let Some(entry) = rest.next_if(|_| bytes < MAX_FORWARD_BYTES) {
                    bytes += entry.data.len();
                    part.push(entry);
                }
                self.step_proposal(part);
            }
        }
        while !(self.is_leader() && self.node.raft.has_pending_conf())
            && let Some(entry) = self.queued_confs.pop_front()
        {
            self.step_proposal(vec![entry]);
        }
    }

    pub(super) fn step_proposal(&mut self, entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.id;
        message.set_entries(entries.into());
        if let Err(error) = self.node.raft.step(message) {
            // Whoever waits for them gives up after the request timeout.
            tracing::warn!(%error, "raft has dropped proposals");
        }
    }

    pub(super) fn begin_round(&mut self) {
        let raft = &self.node.raft;
        if !self.reads.is_due() || raft.leader_id == 0 {
            return;
        }
        if self.is_leader() && !raft.commit_to_current_term() {
            return;
        }
        let (leader, term) = (raft.leader_id, raft.term);
        let context = self.reads.begin(leader, term, self.tick);
        self.node.read_index(context);
    }
}

/// Whether every member will be able to read the changes of the members that
/// another one proposes. In the log, one that nobody can read would stop all.
fn check_changes(message: &Message) -> Result<(), String> {
    if message.get_msg_type() != MessageType::MsgPropose {
        return Ok(());
    }
    for entry in &message.entries {
        match entry.get_entry_type() {
            EntryType::EntryNormal => {}
            EntryType::EntryConfChange => {
                let change = ConfChange::parse_from_bytes(&entry.data);
                let change = change.map_err(|error| error.to_string())?;
                let command = Command::decode(change.context);
                command.map_err(|error| error.to_string())?;
            }
            EntryType::EntryConfChangeV2 => {
                return Err("a change of several members at once".to_owned());
            }
        }
    }
    Ok(())
}
