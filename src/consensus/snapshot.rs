//! Where the state of a whole member is asked for and put in place.
//!
//! Owns the two sides that raft has of a snapshot. How the state travels is
//! `transfer`'s business: raft's message says only which state it is, and
//! reaches the receiver after the state itself.

use raft::eraftpb::{Snapshot, SnapshotMetadata};

use crate::machine::Machine;
use crate::storage::StorageError;

/// The sending side: asked by the drive thread when a member needs entries
/// that the log no longer has. Must not block.
pub trait SnapshotSource: Send {
    /// What to tell raft about a snapshot for `to`; `None` when none can be
    /// sent now (then raft asks again, with the next heartbeat).
    ///
    /// `current` is what is applied here at least: its index, its term and the
    /// members as of it. The log has the entries after `truncated`: a state
    /// before that would leave its receiver with a gap. The state that is sent may be of a later index; the
    /// message that reaches the receiver's [`super::PeerInbox`] must carry the
    /// metadata of the very state that was sent.
    fn offer(&self, to: u64, current: &SnapshotMetadata, truncated: u64) -> Option<Snapshot>;
}

/// The receiving side: called by the apply thread, which owns the machine.
pub trait SnapshotInstaller: Send {
    /// Puts the received state in the place of the present one and makes
    /// `machine` read it. Durable on return: after it the log is cut off. May
    /// block; nothing is staged in `machine`, nothing is applied meanwhile.
    ///
    /// A crash at any point must leave the old state or the new one. After it,
    /// `machine.applied()` is the index and term of `snapshot`.
    fn install(&mut self, machine: &mut Machine, snapshot: &Snapshot) -> Result<(), StorageError>;
}

/// For members whose peers never need a snapshot.
pub struct NoSnapshots;

impl SnapshotSource for NoSnapshots {
    fn offer(&self, _: u64, _: &SnapshotMetadata, _: u64) -> Option<Snapshot> {
        None
    }
}

impl SnapshotInstaller for NoSnapshots {
    fn install(&mut self, _machine: &mut Machine, snapshot: &Snapshot) -> Result<(), StorageError> {
        panic!("nobody has sent {:?}", snapshot.get_metadata());
    }
}
