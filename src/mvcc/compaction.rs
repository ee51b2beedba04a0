//! Removing what a compaction has made unreadable.
//!
//! A compaction to R takes effect when its revision is committed
//! ([`Writer::compact`]): reads below R are refused from then on. What it
//! removes is removed afterwards, in steps that each take a bounded time, and
//! after a restart from wherever it stopped:
//!
//! 1. The `Deleted` rows of deletions at or before R go: no revision that can
//!    still be read shows those keys. They are found by revision, so a step
//!    costs what it removes and not what there is.
//! 2. The log below R goes by whole files, with the next flush. Rows that share
//!    a file with later ones stay until a further compaction or until the store
//!    is defragmented: nobody reads them. R's own rows stay in any case, because
//!    a watch may start at R and must see its deletions (CMP-4).
//!
//! `Current` is left alone: live keys carry no history. Later log rows carry
//! what they replaced, so none of them points at a row that goes, except to
//! tombstones, which are not looked up below R.

use super::meta;
use super::revision::{NEVER_COMPACTED, Revision};
use super::shared::Shared;
use super::writer::Writer;
use crate::storage::{Batch, Bounds, Column, Generation, StorageError, keys};
use std::sync::Arc;

/// How far the removal is.
pub(super) struct Compaction {
    scheduled_revision: i64,
    finished_revision: i64,
    /// The rows of `Deleted` before this one are done.
    next_row: Vec<u8>,
}

impl Writer {
    /// Does a part of the pending removal, looking at about `max_rows` rows.
    /// True when there is more to do.
    pub fn compaction_step(&mut self, max_rows: usize) -> Result<bool, StorageError> {
        let generation = Arc::clone(self.generation());
        self.compaction.step(&self.shared, &generation, max_rows)
    }
}

impl Compaction {
    pub(super) fn open(generation: &Generation) -> Result<Compaction, StorageError> {
        let scheduled_revision =
            meta::read_revision(generation, meta::COMPACT_SCHEDULED)?.unwrap_or(NEVER_COMPACTED);
        let finished_revision =
            meta::read_revision(generation, meta::COMPACT_FINISHED)?.unwrap_or(NEVER_COMPACTED);
        if finished_revision > scheduled_revision {
            let problem =
                format!("compacted to {finished_revision}, but {scheduled_revision} was asked for");
            return Err(StorageError::corrupt(
                Column::Meta,
                meta::COMPACT_FINISHED,
                problem,
            ));
        }
        // The process may have ended between the last removal and its files.
        drop_files(generation, finished_revision);
        Ok(Compaction {
            scheduled_revision,
            finished_revision,
            next_row: keys::DELETED_BY_REVISION.to_vec(),
        })
    }

    pub(super) fn scheduled_revision(&self) -> i64 {
        self.scheduled_revision
    }

    pub(super) fn finished_revision(&self) -> i64 {
        self.finished_revision
    }

    /// A compaction was committed. One that is still going on just goes further.
    pub(super) fn schedule(&mut self, revision: i64) {
        self.scheduled_revision = revision;
    }

    fn step(
        &mut self,
        shared: &Shared,
        generation: &Generation,
        max_rows: usize,
    ) -> Result<bool, StorageError> {
        if self.finished_revision >= self.scheduled_revision {
            return Ok(false);
        }
        let engine = &shared.engine;
        let mut batch = Batch::new();
        if self.clear_deleted(generation, max_rows, &mut batch)? {
            engine.write(batch)?;
            return Ok(true);
        }
        let target = self.scheduled_revision;
        batch.put(Column::Meta, meta::COMPACT_FINISHED, &target.to_be_bytes());
        engine.write(batch)?;
        drop_files(generation, target);
        self.finished_revision = target;
        self.next_row = keys::DELETED_BY_REVISION.to_vec();
        shared.set_finished_revision(target);
        Ok(false)
    }

    /// True when there are more rows to look at.
    fn clear_deleted(
        &mut self,
        generation: &Generation,
        max_rows: usize,
        batch: &mut Batch,
    ) -> Result<bool, StorageError> {
        let end = keys::deleted_by_revision(self.scheduled_revision.max(0) + 1, 0);
        let mut rows = generation.rows(Column::Deleted, Bounds::until(end));
        rows.seek(&self.next_row);
        for _ in 0..max_rows.max(1) {
            let Some((row_key, user_key)) = rows.row()? else {
                return Ok(false);
            };
            let (main, sub) = keys::parse_deleted_by_revision(row_key)?;
            let at = Revision::new(main, sub);
            let by_key = keys::deleted_by_key(user_key);
            // The two rows of a deletion come and go together.
            match generation.get_pinned(Column::Deleted, &by_key)? {
                Some(value) if Revision::from_bytes(&value) == Some(at) => {}
                _ => {
                    let problem = format!("the key was not last deleted at {at}");
                    return Err(StorageError::corrupt(Column::Deleted, &by_key, problem));
                }
            }
            batch.delete(Column::Deleted, row_key);
            batch.delete(Column::Deleted, &by_key);
            self.next_row = keys::successor(row_key);
            rows.step();
        }
        Ok(true)
    }
}

/// Lets the files of the log below `revision` go once that is safe.
fn drop_files(generation: &Generation, revision: i64) {
    if revision > 0 {
        generation.drop_files_after_flush(
            Column::Log,
            &keys::log(0, 0),
            &keys::log(revision - 1, u32::MAX),
        );
    }
}
