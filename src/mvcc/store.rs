//! The key space for readers.

use super::compaction::Compaction;
use super::counts::CountIndex;
use super::current::CurrentSource;
use super::events;
use super::hash;
use super::history::HistorySource;
use super::meta;
use super::range::KeyRange;
use super::record::{self, current_row};
use super::revision::FIRST_MAIN;
use super::select;
use super::shared::{Published, Shared};
use super::single::SingleSource;
use super::{EventsPage, HashKv, RangeResult, ReadError, View, Writer};
use crate::proto::etcdserverpb::RangeRequest;
use crate::storage::{Batch, Column, Engine, Generation, StorageError, keys};
use std::sync::Arc;

/// A handle for reading, cheap to clone and usable from any thread. Reads see
/// whole commits only and wait for no write; those of the past share a lock
/// among themselves, held for a moment.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

impl Store {
    /// Opens the key space in an engine; on an empty one, creates it at
    /// revision 1 (REV-1).
    pub fn open(engine: Arc<Engine>) -> Result<(Store, Writer), StorageError> {
        create_if_empty(&engine)?;
        let loaded = Loaded::load(engine.generation())?;
        let shared = Arc::new(Shared::new(engine, loaded.published()));
        shared.set_finished_revision(loaded.compaction.finished_revision());
        let store = Store::new(Arc::clone(&shared));
        Ok((store, Writer::new(shared, loaded)))
    }

    pub(super) fn new(shared: Arc<Shared>) -> Store {
        Store { shared }
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The revision of the last commit; 1 on a new store.
    pub fn revision(&self) -> i64 {
        self.shared.load().revision
    }

    /// -1 when nothing was ever compacted.
    pub fn compacted_revision(&self) -> i64 {
        self.shared.load().compacted_revision
    }

    /// The last compaction whose removal is done; -1 before the first.
    pub fn compaction_finished_revision(&self) -> i64 {
        self.shared.finished_revision()
    }

    /// The number of live keys.
    pub fn keys_total(&self) -> i64 {
        self.shared.load().counts.total()
    }

    /// Bytes the state takes on disk and in memory.
    pub fn total_bytes(&self) -> u64 {
        self.shared.engine.total_bytes()
    }

    /// The part of [`Store::total_bytes`] that is not garbage: an estimate.
    pub fn live_bytes(&self) -> u64 {
        self.shared.engine.live_bytes()
    }

    /// Answers a range request. Sort order and target must be numbers of their
    /// enums (RNG-13); everything else is answered as it stands.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResult, ReadError> {
        let published = self.shared.load();
        let range = KeyRange::new(&request.key, &request.range_end);
        let is_now = request.revision <= 0;
        if is_now
            && range.is_single()
            && let Some(result) = self.get_now(request, &published)?
        {
            return Ok(result);
        }
        if is_now || request.revision >= published.revision {
            let mut source = CurrentSource::now(&published.generation, &range, &published.counts)?;
            let revision = source.revision();
            if request.revision > revision {
                return Err(ReadError::FutureRevision);
            }
            if is_now || request.revision == revision {
                return select::select(&mut source, request, revision);
            }
            // A commit came between: what was asked for is history now.
        }
        self.range_at(request, &range, &published)
    }

    /// The present of one key without an iterator. `None` when a commit came
    /// in between and the answer could not be given one revision.
    fn get_now(
        &self,
        request: &RangeRequest,
        published: &Published,
    ) -> Result<Option<RangeResult>, ReadError> {
        let generation = &published.generation;
        let key = request.key.as_ref();
        let value = generation.get_pinned(Column::Current, key)?;
        let is_of_published = match &value {
            // Changed no later than the published revision and read after it
            // was published: this is what the key was at that revision.
            Some(value) => {
                let (_, record) = current_row::parse(key, value)?;
                record::parse_in(Column::Current, key, record)?.mod_revision <= published.revision
            }
            // A key that is not there tells no revision. If the store still is
            // at the published one, it was so when the key was looked for.
            None => stored_revision(generation)? == Some(published.revision),
        };
        if !is_of_published {
            return Ok(None);
        }
        let mut source = SingleSource::new(key, value);
        select::select(&mut source, request, published.revision).map(Some)
    }

    fn range_at(
        &self,
        request: &RangeRequest,
        range: &KeyRange<'_>,
        published: &Published,
    ) -> Result<RangeResult, ReadError> {
        let snapshot = published.generation.snapshot();
        // In this order: what a compaction clears, it clears after it has
        // published its revision, so a snapshot older than this look has all
        // that the revision needs.
        let latest = self.shared.load();
        if request.revision < latest.compacted_revision {
            return Err(ReadError::Compacted);
        }
        let mut source = HistorySource::new(
            &snapshot,
            &self.shared,
            request.revision,
            range,
            &published.counts,
        );
        select::select(&mut source, request, latest.revision)
    }

    /// The state as of now, pinned for several reads.
    pub fn view(&self) -> Result<View, ReadError> {
        View::new(&self.shared)
    }

    /// The events from a revision on, from the log: whole revisions, at least
    /// one if there is one, up to about `max_revisions` or `max_bytes`.
    pub fn events(
        &self,
        from_revision: i64,
        max_revisions: usize,
        max_bytes: usize,
    ) -> Result<EventsPage, ReadError> {
        events::read(&self.shared, from_revision, max_revisions, max_bytes)
    }

    /// The hash etcd would give for the same history (MNT-19 to MNT-21); 0 is
    /// the current revision. Reads everything, on the caller's thread.
    pub fn hash_kv(&self, revision: i64) -> Result<HashKv, ReadError> {
        hash::hash_kv(&self.shared, revision)
    }

    /// A hash over the present state: the same number for the same state, and
    /// comparable only with our own (MNT-18).
    pub fn hash(&self) -> Result<u32, StorageError> {
        hash::hash(&self.shared)
    }
}

/// Index and term of the last entry in a state.
pub(crate) fn applied_in(generation: &Generation) -> Result<(u64, u64), StorageError> {
    meta::read_applied(generation)
}

/// What the writer keeps in memory of a state, read from it.
pub(super) struct Loaded {
    pub(super) generation: Arc<Generation>,
    pub(super) revision: i64,
    pub(super) applied: (u64, u64),
    pub(super) counts: CountIndex,
    pub(super) compaction: Compaction,
}

impl Loaded {
    pub(super) fn load(generation: Arc<Generation>) -> Result<Loaded, StorageError> {
        let revision = stored_revision(&generation)?.ok_or_else(|| {
            let problem = "the store's revision is missing";
            StorageError::corrupt(Column::Current, keys::REVISION, problem)
        })?;
        let compaction = Compaction::open(&generation)?;
        let counts = CountIndex::open(&generation, revision, compaction.scheduled_revision())?;
        let applied = meta::read_applied(&generation)?;
        Ok(Loaded {
            generation,
            revision,
            applied,
            counts,
            compaction,
        })
    }

    pub(super) fn published(&self) -> Published {
        Published {
            generation: Arc::clone(&self.generation),
            revision: self.revision,
            compacted_revision: self.compaction.scheduled_revision(),
            counts: self.counts.counts().clone(),
        }
    }
}

fn stored_revision(generation: &Generation) -> Result<Option<i64>, StorageError> {
    generation
        .get_pinned(Column::Current, keys::REVISION)?
        .map(|value| current_row::parse_revision(&value))
        .transpose()
}

/// A new store is at revision 1 (REV-1).
fn create_if_empty(engine: &Engine) -> Result<(), StorageError> {
    let generation = engine.generation();
    if stored_revision(&generation)?.is_some() {
        return Ok(());
    }
    for column in [Column::Current, Column::Log, Column::Deleted] {
        let mut rows = generation.rows(column, crate::storage::Bounds::default());
        rows.seek(b"");
        if let Some((key, _)) = rows.row()? {
            return Err(StorageError::corrupt(
                column,
                key,
                "there is a row, but no store revision",
            ));
        }
    }
    let mut batch = Batch::new();
    batch.put(Column::Current, keys::REVISION, &FIRST_MAIN.to_be_bytes());
    engine.write(batch)
}
