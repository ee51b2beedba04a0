//! The thread that keeps the log short.
//!
//! Owns the flushes of the store and what follows from them: the log may lose
//! the entries up to an index that had been applied before a flush began that
//! has since completed, for their effects are on disk without it. How often
//! that happens bounds what a restart after a crash has to apply again. How
//! much of it is really cut off is for the replica to say, which knows what the
//! other members still need.
//!
//! A flush takes as long as the disk needs for some tens of megabytes; neither
//! applying nor the log waits for it.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::drive::Event;
use super::log::{Log, LogError};
use super::queue::{Receiver, RecvTimeoutError, Sender, bounded};
use super::shared::Shared;
use crate::storage::{Engine, StorageError};

/// Index and term of an entry whose effects, and those of all before it, were
/// in the store when this was sent.
pub(super) type Applied = (u64, u64);

/// Without a request for so long the trimmer looks what else there is to do.
const LOOK: Duration = Duration::from_millis(500);

/// Files that a compaction has left wait for at most so many looks.
const LOOKS_UNTIL_FILES_GO: u32 = 4;

/// What a pause in writing is used for: bytes that are not flushed, times the
/// looks it has lasted for, at most [`LONGEST_PAUSE`]. So a full memtable is
/// flushed soon and smaller ones later; less than a quarter of this makes no
/// read slow, and would only leave small files.
const WORTH_A_FLUSH_BYTES: u64 = 4 << 20;
const LONGEST_PAUSE: u64 = 4;

#[derive(Debug, Error)]
enum TrimFailure {
    #[error("flushing the store: {0}")]
    Flush(#[from] StorageError),
    #[error(transparent)]
    Log(#[from] LogError),
}

pub(super) struct Trimmer {
    pub(super) engine: Arc<Engine>,
    pub(super) log: Arc<Log>,
    pub(super) requests: Receiver<Applied>,
    pub(super) drive: Sender<Event>,
    pub(super) shared: Arc<Shared>,
}

/// What the trimmer saw when there was nothing to trim.
#[derive(Default)]
struct Looks {
    taken: u32,
    unflushed_bytes: u64,
    /// How many in a row have seen no write.
    pause: u64,
}

impl Looks {
    fn take(&mut self, unflushed_bytes: u64) {
        self.taken = self.taken.wrapping_add(1);
        self.pause = if unflushed_bytes == self.unflushed_bytes {
            (self.pause + 1).min(LONGEST_PAUSE)
        } else {
            0
        };
        self.unflushed_bytes = unflushed_bytes;
    }

    fn is_worth_a_flush(&self) -> bool {
        self.unflushed_bytes * self.pause >= WORTH_A_FLUSH_BYTES
    }
}

impl Trimmer {
    /// Runs until the apply thread ends or something fails.
    pub(super) fn run(self) {
        let mut looks = Looks::default();
        loop {
            let done = match self.requests.recv_timeout(LOOK) {
                Ok(applied) => self.trim(applied),
                Err(RecvTimeoutError::Timeout) => self.tidy(&mut looks),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Err(failure) = done {
                self.shared.fail(failure);
                return;
            }
        }
    }

    /// What a compaction has removed leaves the disk with a flush; with little
    /// traffic the next one would be long in coming. And a memtable may hold
    /// many versions of its keys, over which every list has to step: RocksDB
    /// notices, and flushes it with the next write. When writing has paused
    /// there is none.
    fn tidy(&self, looks: &mut Looks) -> Result<(), TrimFailure> {
        looks.take(self.engine.unflushed_bytes());
        let do_files_go =
            looks.taken.is_multiple_of(LOOKS_UNTIL_FILES_GO) && self.engine.has_droppable_files();
        if looks.is_worth_a_flush() || do_files_go {
            self.engine.flush()?;
        }
        Ok(())
    }

    fn trim(&self, applied: Applied) -> Result<(), TrimFailure> {
        self.engine.flush()?;
        let (written, is_written) = bounded(1);
        let trim = Event::Trim {
            applied: applied.0,
            written,
        };
        // Both fail when the drive loop has ended: the log is trimmed by
        // whoever stops it then, or by the next start. The second one also
        // when a peer still needs the entries.
        if self.drive.send(trim).is_ok() && is_written.recv().is_ok() {
            self.log.purge()?;
            tracing::debug!(index = applied.0, "flushed the store and trimmed the log");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_less_is_unflushed_the_longer_a_pause_must_be() {
        let looks_until_flush = |unflushed_bytes| {
            let mut looks = Looks::default();
            looks.take(unflushed_bytes - 1);
            (0..10).find(|_| {
                looks.take(unflushed_bytes);
                looks.is_worth_a_flush()
            })
        };
        // The first look still sees a write.
        assert_eq!(looks_until_flush(64 << 20), Some(1));
        assert_eq!(looks_until_flush(2 << 20), Some(2));
        assert_eq!(looks_until_flush(1 << 20), Some(4));
        assert_eq!(looks_until_flush((1 << 20) - 1), None);
    }
}
