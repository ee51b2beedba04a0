//! The present as a source: one iterator over `Current`, nothing else.

use super::ReadError;
use super::counts::{Counts, WholeBlocks};
use super::range::KeyRange;
use super::record::current_row;
use super::source::{Row, Source};
use crate::storage::{Bounds, Column, Generation, Rows, Snapshot, StorageError, keys};

/// Where the log is read when the counts are of another revision.
#[derive(Clone, Copy)]
pub(super) enum LogReader<'a> {
    Present(&'a Generation),
    Snapshot(&'a Snapshot),
}

impl<'a> LogReader<'a> {
    pub(super) fn rows(self, bounds: Bounds) -> Rows<'a> {
        match self {
            LogReader::Present(generation) => generation.rows(Column::Log, bounds),
            LogReader::Snapshot(snapshot) => snapshot.rows(Column::Log, bounds),
        }
    }
}

pub(super) struct CurrentSource<'a> {
    rows: Rows<'a>,
    /// Of the state the iterator sees.
    revision: i64,
    /// Where to stop short of the end of the iterator.
    end: Option<Vec<u8>>,
    /// `next` has returned the row it is at.
    is_on_row: bool,
    counts: &'a Counts,
    log: LogReader<'a>,
}

impl<'a> CurrentSource<'a> {
    /// The state as of now. Its revision stands in the row under the empty
    /// key, so the same iterator gives the revision and the keys that belong
    /// to it, without a snapshot and whatever is written meanwhile.
    ///
    /// `counts` may be of a neighbouring revision: a commit publishes them
    /// just after its write.
    pub(super) fn now(
        generation: &'a Generation,
        range: &KeyRange<'_>,
        counts: &'a Counts,
    ) -> Result<CurrentSource<'a>, StorageError> {
        let mut rows = generation.rows(Column::Current, bounds(range));
        let revision = read_revision(&mut rows)?;
        Ok(CurrentSource {
            rows,
            revision,
            end: None,
            is_on_row: false,
            counts,
            log: LogReader::Present(generation),
        })
    }

    /// The state a snapshot holds.
    pub(super) fn of_snapshot(
        snapshot: &'a Snapshot,
        revision: i64,
        range: &KeyRange<'_>,
        counts: &'a Counts,
    ) -> CurrentSource<'a> {
        let rows = snapshot.rows(Column::Current, bounds(range));
        CurrentSource {
            rows,
            revision,
            end: None,
            is_on_row: false,
            counts,
            log: LogReader::Snapshot(snapshot),
        }
    }

    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    /// Moves to the first key `>= start`; [`CurrentSource::peek`] shows it.
    pub(super) fn start(&mut self, start: &[u8], end: Option<&[u8]>) {
        debug_assert_ne!(start, keys::REVISION, "no range begins with the empty key");
        self.rows.seek(start);
        self.end = end.map(<[u8]>::to_vec);
        self.is_on_row = false;
    }

    /// The row it is at; `None` past the end.
    pub(super) fn peek(&self) -> Result<Option<Row<'_>>, StorageError> {
        match self.rows.row()? {
            Some((key, value)) if self.end.as_deref().is_none_or(|end| key < end) => {
                let (sub, record) = current_row::parse(key, value)?;
                Ok(Some(Row { key, sub, record }))
            }
            _ => Ok(None),
        }
    }

    /// Moves on; only from a row.
    pub(super) fn step(&mut self) {
        self.rows.step();
    }
}

fn bounds(range: &KeyRange<'_>) -> Bounds {
    Bounds {
        end: range.upper_bound().map(Into::into),
        is_bulk: false,
    }
}

/// The revision row is the first of `Current` and there from the start.
fn read_revision(rows: &mut Rows<'_>) -> Result<i64, StorageError> {
    rows.seek(keys::REVISION);
    match rows.row()? {
        Some((keys::REVISION, value)) => current_row::parse_revision(value),
        _ => Err(StorageError::corrupt(
            Column::Current,
            keys::REVISION,
            "the store's revision is missing",
        )),
    }
}

impl Source for CurrentSource<'_> {
    fn seek(&mut self, start: &[u8], end: Option<&[u8]>) -> Result<(), ReadError> {
        self.start(start, end);
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Row<'_>>, ReadError> {
        if self.is_on_row {
            self.step();
        }
        // Callers stop at the first `None`.
        self.is_on_row = true;
        Ok(self.peek()?)
    }

    fn whole_blocks(&mut self, range: &KeyRange<'_>) -> Result<Option<WholeBlocks>, ReadError> {
        let whole = self.counts.whole_blocks(range);
        if whole.is_none() || self.counts.revision() == self.revision {
            return Ok(whole);
        }
        let counts = self
            .counts
            .as_of(self.revision, |bounds| self.log.rows(bounds))?;
        Ok(counts.and_then(|counts| counts.whole_blocks(range)))
    }
}
