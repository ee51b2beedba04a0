//! The one that changes the key space: owned by the apply thread.

use super::CompactError;
use super::compaction::Compaction;
use super::counts::{CountIndex, Counts};
use super::events::RevisionEvents;
use super::meta;
use super::overlay::{KeyState, Overlay};
use super::revision::Revision;
use super::shared::{Published, Shared};
use super::staged::Staged;
use super::store::{Loaded, Store};
use crate::storage::{Batch, Column, Generation, StorageError, keys};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Collects the changes of many commands and commits them as one batch.
///
/// Invariants: there is one writer per store; `revision` is the committed
/// revision plus one per finished command that changed something; everything
/// staged becomes visible to readers, durable and undone together.
pub struct Writer {
    pub(super) shared: Arc<Shared>,
    /// The engine's present one: written to by nobody else.
    generation: Arc<Generation>,
    /// As of the last commit.
    committed_revision: i64,
    applied: (u64, u64),
    counts: CountIndex,
    pub(super) compaction: Compaction,

    // Staged since the last commit:
    pub(super) revision: i64,
    compacted_revision: i64,
    pub(super) overlay: Overlay,
    /// New rows of the log, in order.
    pub(super) log: Vec<(Revision, Bytes)>,
    pub(super) events: Vec<RevisionEvents>,
    meta: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    pub(super) staged_bytes: usize,

    // Of the command that runs now:
    /// What the overlay held before, in the order of the changes.
    pub(super) undo: Vec<(Bytes, Option<KeyState>)>,
    /// Where a record is encoded before it is copied into its log row.
    pub(super) scratch: Vec<u8>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, loaded: Loaded) -> Writer {
        Writer {
            shared,
            generation: loaded.generation,
            committed_revision: loaded.revision,
            applied: loaded.applied,
            counts: loaded.counts,
            revision: loaded.revision,
            compacted_revision: loaded.compaction.scheduled_revision(),
            compaction: loaded.compaction,
            overlay: Overlay::new(),
            log: Vec::new(),
            events: Vec::new(),
            meta: BTreeMap::new(),
            staged_bytes: 0,
            undo: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Starts over from the engine's present state, after another one was put in
    /// its place, and shows that one to readers. The writer must be clean.
    ///
    /// Readers that began before see the old state to their end. The two agree
    /// on every revision that both of them have.
    pub fn reload(&mut self) -> Result<(), StorageError> {
        assert!(self.is_clean(), "a commit comes before a reload");
        let loaded = Loaded::load(self.shared.engine.generation())?;
        if loaded.revision < self.committed_revision || loaded.applied < self.applied {
            let problem = format!(
                "the state that was installed ends at {} and entry {:?}, the one before it at {} and {:?}",
                loaded.revision, loaded.applied, self.committed_revision, self.applied
            );
            return Err(StorageError::corrupt(
                Column::Current,
                keys::REVISION,
                problem,
            ));
        }
        self.shared.publish(loaded.published());
        self.shared
            .set_finished_revision(loaded.compaction.finished_revision());
        *self = Writer::new(Arc::clone(&self.shared), loaded);
        Ok(())
    }

    /// The store's revision with everything staged.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The compacted revision, also before it is committed.
    pub fn compacted_revision(&self) -> i64 {
        self.compacted_revision
    }

    /// Index and term of the last commit; zeros on a new store.
    pub fn applied(&self) -> (u64, u64) {
        self.applied
    }

    /// Starts a command.
    pub fn begin(&mut self) -> Staged<'_> {
        Staged::new(self)
    }

    /// Sets a row of `Meta`, in the same batch as the changes around it.
    pub fn put_meta(&mut self, key: &[u8], value: &[u8]) {
        self.staged_bytes += key.len() + value.len();
        self.meta.insert(key.to_vec(), Some(value.to_vec()));
    }

    /// Removes a row of `Meta`.
    pub fn delete_meta(&mut self, key: &[u8]) {
        self.staged_bytes += key.len();
        self.meta.insert(key.to_vec(), None);
    }

    /// About the size of the batch a commit would write now.
    pub fn staged_bytes(&self) -> usize {
        self.staged_bytes
    }

    /// True when nothing is staged: the engine holds all there is.
    pub fn is_clean(&self) -> bool {
        self.overlay.is_empty() && self.meta.is_empty() && self.log.is_empty()
    }

    /// Raises the compacted revision: with the next commit, reads below it are
    /// refused, and [`Writer::compaction_step`] has work. Needs a clean writer.
    pub fn compact(&mut self, revision: i64) -> Result<(), CompactError> {
        assert!(self.is_clean(), "a compaction needs a commit before");
        if revision <= self.compacted_revision {
            return Err(CompactError::Compacted);
        }
        if revision > self.revision {
            return Err(CompactError::FutureRevision);
        }
        self.compacted_revision = revision;
        self.put_meta(meta::COMPACT_SCHEDULED, &revision.to_be_bytes());
        Ok(())
    }

    /// Writes everything staged as one batch and shows it to readers; returns
    /// the events of the new revisions. After an error the writer must not be
    /// used any more.
    pub fn commit(
        &mut self,
        applied_index: u64,
        applied_term: u64,
    ) -> Result<Vec<RevisionEvents>, StorageError> {
        assert!(
            applied_index >= self.applied.0,
            "the applied index never goes back"
        );
        let batch = self.batch(applied_index, applied_term);
        self.shared.engine.write(batch)?;
        self.applied = (applied_index, applied_term);
        self.meta.clear();
        self.staged_bytes = 0;
        self.committed_revision = self.revision;
        // At once, although the counts are not: readers see the new state
        // already, and correct older counts by the log.
        self.publish();
        self.update_counts()?;
        self.publish();
        self.compaction.schedule(self.compacted_revision);
        Ok(std::mem::take(&mut self.events))
    }

    fn publish(&self) {
        self.shared.publish(Published {
            generation: Arc::clone(&self.generation),
            revision: self.committed_revision,
            compacted_revision: self.compacted_revision,
            counts: self.counts.counts().clone(),
        });
    }

    fn batch(&mut self, applied_index: u64, applied_term: u64) -> Batch {
        let mut batch = Batch::new();
        for (revision, row) in &self.log {
            batch.put(Column::Log, &revision.to_bytes(), row);
        }
        for (key, state) in &self.overlay {
            state.write(key, &mut batch);
        }
        if self.revision > self.committed_revision {
            batch.put(
                Column::Current,
                keys::REVISION,
                &self.revision.to_be_bytes(),
            );
        }
        for (key, value) in &self.meta {
            match value {
                Some(value) => batch.put(Column::Meta, key, value),
                None => batch.delete(Column::Meta, key),
            }
        }
        batch.put(
            Column::Meta,
            meta::APPLIED,
            &meta::encode_applied(applied_index, applied_term),
        );
        if self.counts.is_save_due(self.compacted_revision) {
            self.counts.save(&mut batch);
        }
        batch
    }

    fn update_counts(&mut self) -> Result<(), StorageError> {
        for (key, state) in std::mem::take(&mut self.overlay) {
            match state.growth() {
                0 => {}
                growth => self.counts.adjust(&key, growth),
            }
        }
        let log_bytes = self.log.drain(..).map(|(_, row)| row.len()).sum();
        self.counts.note_log_bytes(log_bytes);
        self.counts.advance(&self.generation, self.revision)
    }

    pub(super) fn generation(&self) -> &Arc<Generation> {
        &self.generation
    }

    pub(super) fn store(&self) -> Store {
        Store::new(Arc::clone(&self.shared))
    }

    pub(super) fn committed_revision(&self) -> i64 {
        self.committed_revision
    }

    pub(super) fn counts(&self) -> &Counts {
        self.counts.counts()
    }

    /// A key with everything staged.
    pub(super) fn state(&self, key: &[u8]) -> Result<KeyState, StorageError> {
        match self.overlay.get(key) {
            Some(state) => Ok(state.clone()),
            None => KeyState::load(&self.generation, key),
        }
    }
}
