//! The other members, as consensus sees them: where messages to them leave,
//! and where theirs come in.
//!
//! Owns no connection: [`Transport`] is what the drive loop sends through, at
//! the moments raft asks for (a leader's messages at once, everybody else's
//! after the entries they speak of are durable). [`PeerInbox`] is its
//! counterpart for whatever receives. Neither ever blocks; what does not fit
//! is lost, which raft makes up for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use raft::eraftpb::Message;
use thiserror::Error;

use super::drive::Event;
use super::queue::{Sender, TrySendError};
use crate::machine::Published;

/// Messages of peers that wait for the drive loop. Raft keeps at most 512 under
/// way to one member; heartbeats and answers come on top.
pub(super) const MAX_MESSAGES: usize = 4096;

/// And the bytes of their entries: a few dozen full appends. A drive loop that
/// has not come round to them is behind, more would not help it.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// How long a report that must not be lost waits for room.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Another member and where it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub id: u64,
    /// Its peer URLs, never empty.
    pub urls: Vec<String>,
}

/// All members but `id`.
pub(super) fn peers_of(published: &Published, id: u64) -> Vec<Peer> {
    let members = published.members();
    let others = members.iter().filter(|member| member.id != id);
    let peers = others.map(|member| Peer {
        id: member.id,
        urls: member.peer_ur_ls.clone(),
    });
    peers.collect()
}

/// Takes messages to peers. Never blocks; a message may be lost, but must not
/// arrive twice: a proposal on its way to the leader would be carried out
/// twice.
pub trait Transport: Send {
    /// `MsgSnapshot` among them goes out with the state it speaks of, see
    /// [`super::SnapshotSource`].
    fn send(&mut self, messages: Vec<Message>);

    /// All members but this one; told at the start and after each change.
    fn set_peers(&mut self, peers: &[Peer]);
}

/// For a member that is alone.
pub struct NoPeers;

impl Transport for NoPeers {
    fn send(&mut self, messages: Vec<Message>) {
        assert!(
            messages.is_empty(),
            "a single voter has nobody to write to: {messages:?}"
        );
    }

    fn set_peers(&mut self, _peers: &[Peer]) {}
}

/// The message was not taken: too many wait already, or the loop has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("too many messages of peers wait")]
pub struct Full;

/// Where messages of peers come in. Made before [`super::start`], so that the
/// transport may hold it.
#[derive(Clone)]
pub struct PeerInbox {
    events: Sender<Event>,
    waiting: Arc<Waiting>,
}

/// What has been sent and not been taken yet.
#[derive(Default)]
pub(super) struct Waiting {
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

impl Waiting {
    /// Makes room for one message of that size, if there is some.
    fn reserve(&self, bytes: usize) -> bool {
        let messages = self.messages.fetch_add(1, Ordering::Relaxed);
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        // A message that is larger than the limit gets through alone.
        let has_room =
            messages < MAX_MESSAGES && (before == 0 || before + bytes <= MAX_MESSAGE_BYTES);
        if !has_room {
            self.release(bytes);
        }
        has_room
    }

    fn release(&self, bytes: usize) {
        self.messages.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A message of a peer, and the room it takes until it is dropped or taken.
pub(super) struct Received {
    message: Message,
    bytes: usize,
    waiting: Arc<Waiting>,
}

impl Received {
    pub(super) fn take(mut self) -> Message {
        std::mem::take(&mut self.message)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.waiting.release(self.bytes);
    }
}

impl PeerInbox {
    pub(super) fn new(events: Sender<Event>) -> PeerInbox {
        PeerInbox {
            events,
            waiting: Arc::default(),
        }
    }

    /// Hands over a message of a peer.
    ///
    /// # Errors
    /// When it has been dropped, which raft survives.
    pub fn step(&self, message: Message) -> Result<(), Full> {
        let bytes = message.entries.iter().map(|entry| entry.data.len()).sum();
        if !self.waiting.reserve(bytes) {
            return Err(Full);
        }
        let received = Received {
            message,
            bytes,
            waiting: self.waiting.clone(),
        };
        self.send(Event::Received(received))
    }

    /// The last message to this peer could not be sent.
    pub fn unreachable(&self, id: u64) {
        // Raft finds out anyway, a heartbeat later.
        let _ = self.send(Event::Unreachable(id));
    }

    /// A snapshot has reached this peer and is in place there, or has failed.
    /// Each `MsgSnapshot` must be answered by this, or raft sends that peer
    /// nothing more.
    pub fn snapshot_sent(&self, id: u64, ok: bool) {
        // Worth a wait when the loop is behind. It fails when that has ended.
        let sent = Event::SnapshotSent { id, ok };
        let _ = self.events.send_timeout(sent, MAX_WAIT);
    }

    /// The others say that this member has been removed.
    pub fn removed(&self) {
        // Said again with the next message.
        let _ = self.send(Event::Removed);
    }

    fn send(&self, event: Event) -> Result<(), Full> {
        self.events.try_send(event).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => Full,
        })
    }
}
