//! Several reads of one state.

use super::current::CurrentSource;
use super::history::HistorySource;
use super::range::KeyRange;
use super::record::{self, current_row};
use super::select;
use super::shared::{Published, Shared};
use super::source::Source;
use super::{RangeResult, ReadError};
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::mvccpb::KeyValue;
use crate::storage::{Column, Snapshot, StorageError, keys};
use std::ops::ControlFlow;
use std::sync::Arc;

/// What evaluating a transaction needs, whether it only reads ([`View`]) or
/// also writes ([`Staged`](super::Staged)).
pub trait Reads {
    /// Answers a range request; a revision of 0 or less is this state.
    fn range(&self, request: &RangeRequest) -> Result<RangeResult, ReadError>;

    /// Visits the live pairs of a range in key order until told to break.
    fn scan(
        &self,
        key: &[u8],
        range_end: &[u8],
        visit: &mut dyn FnMut(&KeyValue) -> ControlFlow<()>,
    ) -> Result<(), ReadError>;

    /// The revision of this state.
    fn revision(&self) -> i64;

    fn compacted_revision(&self) -> i64;
}

/// The state of one moment, for as long as the view lives. It keeps RocksDB
/// from removing what was replaced since, so it should not outlive a request.
///
/// Reads of the pinned revision itself never fail because of a compaction
/// (CMP-10); who pages through a view over a longer time and wants to stop when
/// its revision is compacted (RST-9) compares with
/// [`Store::compacted_revision`](super::Store::compacted_revision).
pub struct View {
    shared: Arc<Shared>,
    snapshot: Snapshot,
    revision: i64,
    compacted_revision: i64,
    /// What was published just before the snapshot: its counts are of the
    /// pinned revision or of one shortly before.
    published: Arc<Published>,
}

impl View {
    pub(super) fn new(shared: &Arc<Shared>) -> Result<View, ReadError> {
        let published = Arc::clone(&shared.load());
        let snapshot = published.generation.snapshot();
        // After the snapshot, see `Store::range_at`.
        let compacted_revision = shared.load().compacted_revision;
        let revision = match snapshot.get(Column::Current, keys::REVISION)? {
            Some(value) => current_row::parse_revision(&value)?,
            None => {
                let problem = "the store's revision is missing";
                return Err(StorageError::corrupt(Column::Current, keys::REVISION, problem).into());
            }
        };
        Ok(View {
            shared: Arc::clone(shared),
            snapshot,
            revision,
            compacted_revision,
            published,
        })
    }

    fn now(&self, range: &KeyRange<'_>) -> CurrentSource<'_> {
        CurrentSource::of_snapshot(&self.snapshot, self.revision, range, &self.published.counts)
    }
}

impl Reads for View {
    fn range(&self, request: &RangeRequest) -> Result<RangeResult, ReadError> {
        let range = KeyRange::new(&request.key, &request.range_end);
        if request.revision > self.revision {
            return Err(ReadError::FutureRevision);
        }
        if request.revision <= 0 || request.revision == self.revision {
            return select::select(&mut self.now(&range), request, self.revision);
        }
        if request.revision < self.compacted_revision {
            return Err(ReadError::Compacted);
        }
        let mut source = HistorySource::new(
            &self.snapshot,
            &self.shared,
            request.revision,
            &range,
            &self.published.counts,
        );
        select::select(&mut source, request, self.revision)
    }

    fn scan(
        &self,
        key: &[u8],
        range_end: &[u8],
        visit: &mut dyn FnMut(&KeyValue) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let range = KeyRange::new(key, range_end);
        scan(&mut self.now(&range), &range, visit)
    }

    fn revision(&self) -> i64 {
        self.revision
    }

    fn compacted_revision(&self) -> i64 {
        self.compacted_revision
    }
}

/// Visits the pairs of a range in key order until told to break.
pub(super) fn scan(
    source: &mut impl Source,
    range: &KeyRange<'_>,
    visit: &mut dyn FnMut(&KeyValue) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    if range.is_empty() {
        return Ok(());
    }
    source.seek(range.start, None)?;
    while let Some(row) = source.next()? {
        let kv = record::to_key_value(Column::Current, row.key, row.record)?;
        if visit(&kv).is_break() {
            break;
        }
    }
    Ok(())
}
