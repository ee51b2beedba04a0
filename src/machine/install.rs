//! The state of another member in the place of this one's.
//!
//! A member that is too far behind the log, or has just joined, is sent the
//! whole state as another one has it. What comes is replicated and the same
//! everywhere but for one row, which says who this member is and is carried
//! over. Everything the machine keeps in memory is then read again.

use std::path::Path;

use super::alarms::Alarms;
use super::members::{Conf, Identity, Members};
use super::{LeaseTable, Machine, Reloaded};
use crate::mvcc;
use crate::storage::{Batch, Column, Engine, StorageError};

/// Which state a copy holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Index and term of the last entry applied to it.
    pub applied: (u64, u64),
    /// The members as of that entry.
    pub conf: Conf,
}

/// Looks into a copy made by [`Engine::checkpoint`], and leaves it as it is.
pub fn describe(engine: &Engine, dir: &Path) -> Result<Description, StorageError> {
    let checkpoint = engine.open_checkpoint(dir)?;
    Ok(Description {
        applied: mvcc::applied_in(&checkpoint)?,
        conf: Members::open(&checkpoint)?.conf(),
    })
}

impl Machine {
    /// Puts the copy in `dir`, whose last entry is `applied`, in the place of
    /// the state, durably, and reads it. Nothing may wait for a commit. The next
    /// one tells in its effects.
    ///
    /// # Errors
    /// Is the copy not what it is said to be, or not ahead of the state, nothing
    /// has changed. After any other failure the machine must not be used again;
    /// a restart finds the one state or the other.
    pub fn install(&mut self, dir: &Path, applied: (u64, u64)) -> Result<(), StorageError> {
        assert!(self.effects.events.is_empty(), "a commit comes before");
        let engine = self.engine.clone();
        let next = engine.open_next(dir)?;
        let found = mvcc::applied_in(next.generation())?;
        if found != applied || found.0 <= self.applied.0 {
            let problem = format!(
                "the last entry of the received state is {found:?}: {applied:?} was announced, \
                 and {:?} is applied here",
                self.applied
            );
            return Err(StorageError::corrupt(Column::Meta, b"applied", problem));
        }
        let mut own = Batch::new();
        if let Some(identity) = Identity::load(&engine)? {
            identity.put(&mut own);
        }
        engine.write_next(&next, own)?;
        engine.switch(next)?;
        self.reload()
    }

    /// Reads everything again from the engine, whose state has been replaced.
    pub fn reload(&mut self) -> Result<(), StorageError> {
        self.writer.reload()?;
        self.leases = LeaseTable::open(&self.engine)?;
        self.alarms = Alarms::open(&self.engine)?;
        self.members = Members::open(&self.engine.generation())?;
        self.published.set_alarms(self.alarms.list());
        self.publish_members();
        self.applied = self.writer.applied();
        self.effects.members_changed = true;
        self.effects.reloaded = Some(Reloaded {
            revision: self.writer.revision(),
            leases: self.leases.leases().collect(),
        });
        Ok(())
    }
}
