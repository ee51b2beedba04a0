//! The whole state on its way from one member to another.
//!
//! Owns the copies of the state that are sent ([`Outgoing`]) and received
//! ([`Incoming`]), and their way over one call between two members. Raft says
//! who needs a state (`MsgSnapshot`) and hears how it went; it never sees the
//! bytes.
//!
//! ```text
//!  raft: who? -> offer -> checkpoint (hard links) ---+
//!  raft: MsgSnapshot -> send ------------------------+--> header, files, sizes
//!                                                           <-- where to begin
//!                                                         chunks, each with CRC32C
//!                 receiver: incoming/<from>-<number>/ <------+
//!                 all there, checked, durable: MsgSnapshot to its raft
//!                                                           <-- done
//!  raft: snapshot_sent <-------------------------------------+
//!                 apply thread: install (see machine::Machine::install)
//! ```
//!
//! Promised: the message of raft names exactly the state that was sent, and
//! reaches the receiver's raft only when that state is complete, checked and
//! durable there. A transfer takes a few megabytes of memory whatever the state
//! takes, and no more of the network than it is allowed. A call that breaks is
//! made again and goes on where it broke off. Every `MsgSnapshot` is answered
//! once.
//!
//! Nothing of this outlives the process: what lies in the two folders at a
//! start is removed.

mod checkpoint;
mod incoming;
mod outgoing;
mod pace;
mod receiving;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::PeerInbox;
use super::transport::{Peers, SnapshotReplies};
use crate::proto::peer::SnapshotPart;
use crate::storage::Engine;

pub use incoming::Incoming;
pub use outgoing::Outgoing;

/// Bytes of a file in one message. Small enough that a few of them on their way
/// are nothing, large enough that their overhead is not seen.
const CHUNK_BYTES: usize = 256 << 10;

/// What a member needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Both on the file system of the state, or nothing could be linked.
    pub outgoing_dir: PathBuf,
    pub incoming_dir: PathBuf,
    pub member_id: u64,
    /// All transfers from here together.
    pub bytes_per_second: u64,
}

impl Settings {
    /// Half of what a gigabit line carries: the rest is for the entries that
    /// must go on being replicated. 2 GB take half a minute.
    pub const BYTES_PER_SECOND: u64 = 64 << 20;
}

/// A transfer: unique among those of one receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    from: u64,
    number: u64,
}

impl Key {
    /// What raft carries as the snapshot's data.
    fn to_bytes(self) -> Vec<u8> {
        [self.from.to_be_bytes(), self.number.to_be_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Key> {
        let (from, number) = bytes.split_at_checked(8)?;
        Some(Key {
            from: u64::from_be_bytes(from.try_into().ok()?),
            number: u64::from_be_bytes(number.try_into().ok()?),
        })
    }
}

type Calling = Pin<Box<dyn Future<Output = Result<SnapshotReplies, Status>> + Send>>;

/// Makes the calls; tests do without a network.
trait Calls: Send + Sync + 'static {
    /// Calls `Snapshot` of the member `to`. Backpressure of the connection is
    /// felt at the sending end of `parts`.
    fn snapshot(&self, to: u64, parts: mpsc::Receiver<SnapshotPart>) -> Calling;
}

impl Calls for Peers {
    fn snapshot(&self, to: u64, parts: mpsc::Receiver<SnapshotPart>) -> Calling {
        let peers = self.clone();
        Box::pin(async move {
            let mut client = peers.snapshot_client(to).await?;
            let replies = client.snapshot(ReceiverStream::new(parts)).await?;
            Ok(Box::pin(replies.into_inner()) as SnapshotReplies)
        })
    }
}

/// The two ends at one member. Removes what an earlier process has left.
/// `runtime` is where transfers run; [`Outgoing::connect`] is to be called
/// before the first.
pub fn open(
    settings: Settings,
    engine: Arc<Engine>,
    inbox: PeerInbox,
    runtime: Handle,
) -> io::Result<(Outgoing, Incoming)> {
    for dir in [&settings.outgoing_dir, &settings.incoming_dir] {
        remove_dir(dir)?;
    }
    let incoming = Incoming::new(settings.incoming_dir.clone(), inbox.clone());
    Ok((Outgoing::new(settings, engine, inbox, runtime), incoming))
}

/// Removes a folder that may not be there.
fn remove_dir(path: &std::path::Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
