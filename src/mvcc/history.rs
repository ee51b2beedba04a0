//! An older revision as a source.
//!
//! The keys that were live at revision R are among those that are live now
//! (`Current`) and those deleted since (`Deleted`). Both are read in key order;
//! a key whose last change is after R is followed back through the log, from
//! change to predecessor, until a change at or before R says what it was then.

use super::ReadError;
use super::counts::{Counts, WholeBlocks};
use super::current::LogReader;
use super::log_row::{LogRow, Predecessor};
use super::range::KeyRange;
use super::record::{self, current_row};
use super::revision::Revision;
use super::shared::Shared;
use super::source::{Row, Source};
use crate::storage::{Bounds, Column, Rows, Snapshot, StorageError, keys};
use std::cmp::Ordering;

/// A snapshot as of an older revision. The revision must not be compacted in
/// the snapshot.
pub(super) struct HistorySource<'a> {
    snapshot: &'a Snapshot,
    shared: &'a Shared,
    revision: i64,
    live: Rows<'a>,
    deleted: Rows<'a>,
    /// Where to stop short of the end of the iterators.
    end: Option<Vec<u8>>,
    counts: &'a Counts,
    /// The row last returned.
    key: Vec<u8>,
    record: Vec<u8>,
}

/// What the log or an index says a key was at some revision.
enum Version<'a> {
    Put { sub: u32, record: &'a [u8] },
    Tombstone,
}

impl<'a> HistorySource<'a> {
    pub(super) fn new(
        snapshot: &'a Snapshot,
        shared: &'a Shared,
        revision: i64,
        range: &KeyRange<'_>,
        counts: &'a Counts,
    ) -> HistorySource<'a> {
        let end = range.upper_bound();
        let live = Bounds {
            end: end.as_deref().map(<[u8]>::to_vec),
            is_bulk: false,
        };
        // Without an end, the rows by user key end where those by revision begin.
        let deleted_end = end.map_or(keys::DELETED_BY_REVISION.to_vec(), |end| {
            keys::deleted_by_key(&end)
        });
        HistorySource {
            snapshot,
            shared,
            revision,
            live: snapshot.rows(Column::Current, live),
            deleted: snapshot.rows(Column::Deleted, Bounds::until(deleted_end)),
            end: None,
            counts,
            key: Vec::new(),
            record: Vec::new(),
        }
    }

    /// Looks at the smaller of the two next keys and steps over it. True when
    /// it was live at the revision; `key` and `record` then hold it.
    fn advance(&mut self) -> Result<Option<Option<u32>>, ReadError> {
        let is_before_end = |key: &[u8]| self.end.as_deref().is_none_or(|end| key < end);
        let live = self.live.row()?.filter(|(key, _)| is_before_end(key));
        let deleted = match self.deleted.row()? {
            Some((key, at)) => {
                Some((keys::parse_deleted_by_key(key)?, at)).filter(|(key, _)| is_before_end(key))
            }
            None => None,
        };
        let order = match (live, deleted) {
            (None, None) => return Ok(None),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((live, _)), Some((deleted, _))) => live.cmp(deleted),
        };
        let walk = Walk {
            snapshot: self.snapshot,
            shared: self.shared,
            target: self.revision,
        };
        let sub = match (order, live, deleted) {
            (Ordering::Less, Some((key, value)), _) => {
                self.key.clear();
                self.key.extend_from_slice(key);
                let (sub, record) = current_row::parse(key, value)?;
                let main = record::parse_in(Column::Current, key, record)?.mod_revision;
                let sub = walk.back(
                    Revision::new(main, sub),
                    Version::Put { sub, record },
                    &mut self.record,
                )?;
                self.live.step();
                sub
            }
            (Ordering::Greater, _, Some((key, at))) => {
                self.key.clear();
                self.key.extend_from_slice(key);
                let at = Revision::from_bytes(at).ok_or_else(|| {
                    StorageError::corrupt(Column::Deleted, key, "the value is not a revision")
                })?;
                let sub = walk.back(at, Version::Tombstone, &mut self.record)?;
                self.deleted.step();
                sub
            }
            _ => {
                let key = live.map_or(keys::REVISION, |(key, _)| key);
                return Err(StorageError::corrupt(
                    Column::Deleted,
                    key,
                    "a live key is marked as deleted",
                )
                .into());
            }
        };
        Ok(Some(sub))
    }
}

impl Source for HistorySource<'_> {
    fn seek(&mut self, start: &[u8], end: Option<&[u8]>) -> Result<(), ReadError> {
        self.live.seek(start);
        self.deleted.seek(&keys::deleted_by_key(start));
        self.end = end.map(<[u8]>::to_vec);
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Row<'_>>, ReadError> {
        while let Some(found) = self.advance()? {
            if let Some(sub) = found {
                return Ok(Some(Row {
                    key: &self.key,
                    sub,
                    record: &self.record,
                }));
            }
        }
        Ok(None)
    }

    fn whole_blocks(&mut self, range: &KeyRange<'_>) -> Result<Option<WholeBlocks>, ReadError> {
        let compacted_revision = || self.shared.load().compacted_revision;
        let past = &self.shared.past_counts;
        let nearest = past.nearest(self.revision, self.counts, compacted_revision());
        let Some(whole) = nearest.whole_blocks(range) else {
            return Ok(None);
        };
        let distance = nearest.revision().abs_diff(self.revision);
        if distance > whole.keys.unsigned_abs() {
            // To read the keys is less work.
            return Ok(None);
        }
        let log = LogReader::Snapshot(self.snapshot);
        let counts = nearest.as_of(self.revision, |bounds| log.rows(bounds))?;
        // Files of the log may have been dropped while it was read, taking a
        // part of a revision unnoticed.
        let is_reliable = compacted_revision() <= nearest.revision().min(self.revision);
        let Some(counts) = counts.filter(|_| is_reliable) else {
            return Ok(None);
        };
        let whole = counts.whole_blocks(range);
        if distance > 0 {
            past.keep(counts);
        }
        Ok(whole)
    }
}

/// The way back from a key's last change to what it was at `target`.
struct Walk<'a> {
    snapshot: &'a Snapshot,
    shared: &'a Shared,
    target: i64,
}

impl Walk<'_> {
    /// Follows predecessors from `version`, made by the change `at`. When the
    /// key was live at the target, copies its record to `out` and returns its
    /// sub-revision.
    fn back(
        &self,
        at: Revision,
        version: Version<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Option<u32>, ReadError> {
        if at.main <= self.target {
            return Ok(settle(version, out));
        }
        let mut at = at;
        loop {
            let value = self
                .snapshot
                .get(Column::Log, &at.to_bytes())?
                .ok_or_else(|| self.missing(at))?;
            let earlier = match LogRow::parse(at, &value)?.predecessor {
                Predecessor::None => return Ok(None),
                Predecessor::Tombstone(revision) if revision.main <= self.target => {
                    return Ok(None);
                }
                Predecessor::Tombstone(revision) | Predecessor::Put(revision) => revision,
                Predecessor::Inline { sub, record } => {
                    let main = record::parse_in(Column::Log, &at.to_bytes(), record)?.mod_revision;
                    if main <= self.target {
                        return Ok(settle(Version::Put { sub, record }, out));
                    }
                    Revision::new(main, sub)
                }
            };
            if earlier >= at {
                let problem = format!("the predecessor {earlier} is not earlier");
                return Err(StorageError::corrupt(Column::Log, &at.to_bytes(), problem).into());
            }
            at = earlier;
        }
    }

    /// Rows are only ever missing because a compaction dropped their file,
    /// which it announces before.
    fn missing(&self, at: Revision) -> ReadError {
        if self.shared.load().compacted_revision > self.target {
            ReadError::Compacted
        } else {
            StorageError::corrupt(Column::Log, &at.to_bytes(), "the row is missing").into()
        }
    }
}

fn settle(version: Version<'_>, out: &mut Vec<u8>) -> Option<u32> {
    match version {
        Version::Tombstone => None,
        Version::Put { sub, record } => {
            out.clear();
            out.extend_from_slice(record);
            Some(sub)
        }
    }
}
