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
const QUIET: Duration = Duration::from_secs(2);

/// What a pause in writing is used for: so much that is not flushed. Less makes
/// no read slow, and would only leave small files.
const WORTH_A_FLUSH_BYTES: u64 = 1 << 20;

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

impl Trimmer {
    /// Runs until the apply thread ends or something fails.
    pub(super) fn run(self) {
        let mut unflushed_bytes = 0;
        loop {
            let done = match self.requests.recv_timeout(QUIET) {
                Ok(applied) => self.trim(applied),
                Err(RecvTimeoutError::Timeout) => self.tidy(&mut unflushed_bytes),
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
    /// there is none. `seen_bytes` is what was not flushed at the last look.
    fn tidy(&self, seen_bytes: &mut u64) -> Result<(), TrimFailure> {
        let unflushed = self.engine.unflushed_bytes();
        let has_paused = unflushed == *seen_bytes;
        *seen_bytes = unflushed;
        let is_worth_it = has_paused && unflushed >= WORTH_A_FLUSH_BYTES;
        if is_worth_it || self.engine.has_droppable_files() {
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
