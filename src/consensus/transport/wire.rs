//! Raft's messages and their twins on the wire.
//!
//! What comes from a peer is decoded by prost, bounded in size and depth, and
//! then checked here for what raft itself takes for granted: [`from_wire`]
//! lets nothing through that raft would meet with a panic of its own, as far
//! as a single message shows. The two encodings are the same.

use protobuf::ProtobufEnum as _;
use raft::eraftpb::{
    ConfState, Entry, EntryType, Message, MessageType, Snapshot, SnapshotMetadata,
};
use thiserror::Error;

use crate::proto::peer::{
    RaftConfState, RaftEntry, RaftMessage, RaftSnapshot, RaftSnapshotMetadata,
};

/// No message of raft that could have been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Garbage {
    #[error("a message of kind {0}, which members do not send")]
    Kind(i32),
    #[error("an entry of kind {0}")]
    EntryKind(i32),
    #[error("entries that do not follow each other at index {0}")]
    Gap(u64),
    #[error("a message without the entry it is about")]
    NoEntry,
}

/// Copies nothing: what is long is shared.
pub fn to_wire(mut message: Message) -> RaftMessage {
    RaftMessage {
        msg_type: message.msg_type.value(),
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.take_entries().into_iter().map(entry_out).collect(),
        commit: message.commit,
        snapshot: message.snapshot.take().map(snapshot_out),
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        request_snapshot: message.request_snapshot,
        deprecated_priority: message.deprecated_priority,
        commit_term: message.commit_term,
        priority: message.priority,
    }
}

fn entry_out(entry: Entry) -> RaftEntry {
    RaftEntry {
        entry_type: entry.entry_type.value(),
        term: entry.term,
        index: entry.index,
        data: entry.data,
        context: entry.context,
    }
}

fn snapshot_out(mut snapshot: Snapshot) -> RaftSnapshot {
    let metadata = snapshot.metadata.take().map(|mut metadata| {
        let conf_state = metadata.conf_state.take().map(|conf_state| RaftConfState {
            voters: conf_state.voters,
            learners: conf_state.learners,
            voters_outgoing: conf_state.voters_outgoing,
            learners_next: conf_state.learners_next,
            auto_leave: conf_state.auto_leave,
        });
        RaftSnapshotMetadata {
            conf_state,
            index: metadata.index,
            term: metadata.term,
        }
    });
    RaftSnapshot {
        data: snapshot.data,
        metadata,
    }
}

/// # Errors
/// When no member could have sent it.
pub fn from_wire(wire: RaftMessage) -> Result<Message, Garbage> {
    let msg_type = MessageType::from_i32(wire.msg_type)
        .filter(|kind| !is_local(*kind))
        .ok_or(Garbage::Kind(wire.msg_type))?;
    let mut entries = Vec::with_capacity(wire.entries.len());
    for entry in wire.entries {
        entries.push(entry_in(entry)?);
    }
    match msg_type {
        MessageType::MsgAppend => check_order(wire.index, &entries)?,
        MessageType::MsgPropose | MessageType::MsgReadIndex if entries.is_empty() => {
            return Err(Garbage::NoEntry);
        }
        _ => {}
    }
    let mut message = Message {
        msg_type,
        to: wire.to,
        from: wire.from,
        term: wire.term,
        log_term: wire.log_term,
        index: wire.index,
        commit: wire.commit,
        reject: wire.reject,
        reject_hint: wire.reject_hint,
        context: wire.context,
        request_snapshot: wire.request_snapshot,
        deprecated_priority: wire.deprecated_priority,
        commit_term: wire.commit_term,
        priority: wire.priority,
        ..Message::default()
    };
    message.set_entries(entries.into());
    if let Some(snapshot) = wire.snapshot {
        message.set_snapshot(snapshot_in(snapshot));
    }
    Ok(message)
}

/// Kinds that a member sends to itself only.
fn is_local(kind: MessageType) -> bool {
    matches!(
        kind,
        MessageType::MsgHup
            | MessageType::MsgBeat
            | MessageType::MsgUnreachable
            | MessageType::MsgSnapStatus
            | MessageType::MsgCheckQuorum
    )
}

fn check_order(before_first: u64, entries: &[Entry]) -> Result<(), Garbage> {
    let mut last = before_first;
    for entry in entries {
        if last.checked_add(1) != Some(entry.index) {
            return Err(Garbage::Gap(entry.index));
        }
        last = entry.index;
    }
    Ok(())
}

fn entry_in(wire: RaftEntry) -> Result<Entry, Garbage> {
    let kind = EntryType::from_i32(wire.entry_type);
    Ok(Entry {
        entry_type: kind.ok_or(Garbage::EntryKind(wire.entry_type))?,
        term: wire.term,
        index: wire.index,
        data: wire.data,
        context: wire.context,
        ..Entry::default()
    })
}

fn snapshot_in(wire: RaftSnapshot) -> Snapshot {
    let mut snapshot = Snapshot {
        data: wire.data,
        ..Snapshot::default()
    };
    if let Some(wire) = wire.metadata {
        let mut metadata = SnapshotMetadata {
            index: wire.index,
            term: wire.term,
            ..SnapshotMetadata::default()
        };
        if let Some(wire) = wire.conf_state {
            metadata.set_conf_state(ConfState {
                voters: wire.voters,
                learners: wire.learners,
                voters_outgoing: wire.voters_outgoing,
                learners_next: wire.learners_next,
                auto_leave: wire.auto_leave,
                ..ConfState::default()
            });
        }
        snapshot.set_metadata(metadata);
    }
    snapshot
}
