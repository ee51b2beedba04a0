//! One command's changes while it runs.

use super::buffer::Buffer;
use super::counts::WholeBlocks;
use super::current::CurrentSource;
use super::events::{Event, EventKind, RevisionEvents};
use super::log_row::{self, LogRow};
use super::overlay::{KeyState, Latest, Overlay};
use super::range::KeyRange;
use super::record::{self, Fields};
use super::revision::Revision;
use super::select;
use super::source::{Row, Source};
use super::view::{self, Reads};
use super::writer::Writer;
use super::{RangeResult, ReadError};
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::mvccpb::KeyValue;
use crate::storage::{Column, StorageError};
use bytes::Bytes;
use prost::Message;
use std::cmp::Ordering;
use std::collections::btree_map;
use std::iter::Peekable;
use std::ops::{Bound, ControlFlow};

/// A command between [`Writer::begin`] and [`Staged::finish`]. It sees its own
/// changes and those of the commands before it. Dropped without `finish` it
/// leaves no trace; with changes it is one new revision (REV-2).
pub struct Staged<'a> {
    writer: &'a mut Writer,
    /// The store's revision before the command.
    base_revision: i64,
    /// The writer's log and size before the command.
    log_len: usize,
    staged_bytes: usize,
    events: Vec<Event>,
    is_finished: bool,
}

impl<'a> Staged<'a> {
    pub(super) fn new(writer: &'a mut Writer) -> Staged<'a> {
        debug_assert!(writer.undo.is_empty());
        Staged {
            base_revision: writer.revision,
            log_len: writer.log.len(),
            staged_bytes: writer.staged_bytes,
            events: Vec::new(),
            is_finished: false,
            writer,
        }
    }

    /// The pair as the command sees it.
    pub fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, StorageError> {
        match self.writer.state(key)?.record() {
            None => Ok(None),
            Some(record) => Ok(Some(record::to_key_value(
                Column::Current,
                key,
                record.clone(),
            )?)),
        }
    }

    /// Writes a pair; returns the encoded pair it replaces, if any.
    pub fn put(
        &mut self,
        key: Bytes,
        value: Bytes,
        lease: i64,
    ) -> Result<Option<Bytes>, StorageError> {
        let state = self.writer.state(&key)?;
        let main = self.base_revision + 1;
        let previous = state.record().cloned();
        let (create_revision, version) = match &previous {
            None => (main, 1),
            Some(previous) => {
                let fields = record::parse_in(Column::Current, &key, previous)?;
                (fields.create_revision, fields.version + 1)
            }
        };
        let kv = KeyValue {
            key,
            create_revision,
            mod_revision: main,
            version,
            value,
            lease,
        };
        self.change(&state, kv);
        Ok(previous)
    }

    /// Deletes the live keys of a range; returns their encoded pairs in key
    /// order. One revision whatever their number (DEL-3, DEL-7).
    pub fn delete_range(
        &mut self,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<Vec<Bytes>, StorageError> {
        let range = KeyRange::new(key, range_end);
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let doomed = if range.is_single() {
            vec![Bytes::copy_from_slice(key)]
        } else {
            self.keys(&range)?
        };
        let mut previous = Vec::with_capacity(doomed.len());
        for key in doomed {
            let state = self.writer.state(&key)?;
            if let Some(record) = state.record() {
                previous.push(record.clone());
                let mod_revision = self.base_revision + 1;
                self.change(
                    &state,
                    KeyValue {
                        key,
                        mod_revision,
                        ..KeyValue::default()
                    },
                );
            }
        }
        Ok(previous)
    }

    /// Does the command make a new revision?
    pub fn has_changed(&self) -> bool {
        !self.events.is_empty()
    }

    /// Keeps the command's changes for the next commit.
    pub fn finish(mut self) {
        self.is_finished = true;
        self.writer.undo.clear();
        if self.has_changed() {
            let revision = self.base_revision + 1;
            self.writer.revision = revision;
            let events = std::mem::take(&mut self.events);
            self.writer.events.push(RevisionEvents { revision, events });
        }
    }

    /// Logs one change and makes it the key's latest.
    fn change(&mut self, state: &KeyState, kv: KeyValue) {
        let sub = u32::try_from(self.events.len()).expect("a command has fewer than 2^32 changes");
        let at = Revision::new(kv.mod_revision, sub);
        let scratch = &mut self.writer.scratch;
        scratch.clear();
        kv.encode(scratch).expect("a vector grows as needed");
        // WAT-19: a key created in this revision has no prev_kv, whatever the
        // revision deleted before.
        let prev = if kv.create_revision == at.main {
            None
        } else {
            state.record_before(at.main)
        };
        let row = log_row::encode(scratch, state.predecessor(at.main), prev.map(Bytes::as_ref));

        // From here on everything is a slice of the row.
        let parsed = LogRow::parse(at, &row).expect("a row just encoded");
        let record = row.slice_ref(parsed.record);
        let key = record.slice_ref(Fields::parse(&record).expect("a record just encoded").key);
        self.events.push(Event {
            key: key.clone(),
            kind: if parsed.is_tombstone {
                EventKind::Delete
            } else {
                EventKind::Put
            },
            encoded: row.slice_ref(parsed.event),
            without_prev_len: parsed.without_prev_len,
        });
        let latest = if parsed.is_tombstone {
            Latest::Deleted { at }
        } else {
            Latest::Live { at, record }
        };
        let state = state.changed(at.main, latest);

        // Roughly what the batch will hold: the row, the record again, and keys.
        self.writer.staged_bytes += 2 * row.len() + 2 * key.len();
        self.writer.log.push((at, row));
        let earlier = self.writer.overlay.insert(key.clone(), state);
        self.writer.undo.push((key, earlier));
    }

    fn keys(&self, range: &KeyRange<'_>) -> Result<Vec<Bytes>, StorageError> {
        let mut buffer = Buffer::default();
        let mut keys = Vec::new();
        let mut source = StagedSource::new(self.writer, range)?;
        source.start(range.start, None);
        while let Some(row) = source.next_row()? {
            keys.push(buffer.copy(row.key));
        }
        Ok(keys)
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        let writer = &mut *self.writer;
        while let Some((key, earlier)) = writer.undo.pop() {
            match earlier {
                Some(state) => writer.overlay.insert(key, state),
                None => writer.overlay.remove(&key),
            };
        }
        writer.log.truncate(self.log_len);
        writer.staged_bytes = self.staged_bytes;
    }
}

impl Reads for Staged<'_> {
    /// An explicit revision shows exactly that revision, never what this
    /// command changed (TXN-15); it needs a writer that was clean before the
    /// command, so that every revision a client can name is in the engine.
    fn range(&self, request: &RangeRequest) -> Result<RangeResult, ReadError> {
        if request.revision <= 0 {
            let range = KeyRange::new(&request.key, &request.range_end);
            let mut source = StagedSource::new(self.writer, &range)?;
            return select::select(&mut source, request, self.revision());
        }
        if request.revision > self.base_revision {
            return Err(ReadError::FutureRevision);
        }
        assert!(
            request.revision <= self.writer.committed_revision(),
            "reads at a revision need a commit before the command"
        );
        let result = self.writer.store().range(request)?;
        Ok(RangeResult {
            revision: self.revision(),
            ..result
        })
    }

    fn scan(
        &self,
        key: &[u8],
        range_end: &[u8],
        visit: &mut dyn FnMut(&KeyValue) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let range = KeyRange::new(key, range_end);
        if range.is_single() {
            if let Some(kv) = self.get(key)? {
                // Nothing follows that could be broken off.
                let _ = visit(&kv);
            }
            return Ok(());
        }
        view::scan(&mut StagedSource::new(self.writer, &range)?, &range, visit)
    }

    fn revision(&self) -> i64 {
        self.base_revision + i64::from(self.has_changed())
    }

    fn compacted_revision(&self) -> i64 {
        self.writer.compacted_revision()
    }
}

/// The present and the overlay as one source.
struct StagedSource<'a> {
    stored: CurrentSource<'a>,
    overlay: &'a Overlay,
    staged: Peekable<btree_map::Range<'a, Bytes, KeyState>>,
    /// Of the range the source was made for.
    upper_bound: Option<Vec<u8>>,
    /// Where the row last returned stands; it is stepped over next.
    at: Option<Side>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Stored,
    Staged,
    /// In both: the staged one counts.
    Both,
}

impl<'a> StagedSource<'a> {
    fn new(writer: &'a Writer, range: &KeyRange<'_>) -> Result<StagedSource<'a>, StorageError> {
        let stored = CurrentSource::now(writer.generation(), range, writer.counts())?;
        Ok(StagedSource {
            stored,
            overlay: &writer.overlay,
            staged: writer.overlay.range(Bytes::new()..Bytes::new()).peekable(),
            upper_bound: range.upper_bound().map(Into::into),
            at: None,
        })
    }

    fn start(&mut self, start: &[u8], end: Option<&[u8]>) {
        self.stored.start(start, end);
        let end = end.or(self.upper_bound.as_deref());
        let range = (
            Bound::Included(start),
            end.map_or(Bound::Unbounded, Bound::Excluded),
        );
        self.staged = self.overlay.range::<[u8], _>(range).peekable();
        self.at = None;
    }

    fn step(&mut self) {
        if matches!(self.at, Some(Side::Stored | Side::Both)) {
            self.stored.step();
        }
        if matches!(self.at, Some(Side::Staged | Side::Both)) {
            self.staged.next();
        }
    }

    /// Moves to the next key that is live.
    fn advance(&mut self) -> Result<(), StorageError> {
        loop {
            self.step();
            let stored = self.stored.peek()?.map(|row| row.key);
            let staged = self
                .staged
                .peek()
                .map(|(key, state)| (key.as_ref(), state.record().is_some()));
            let (side, is_live) = match (stored, staged) {
                (None, None) => {
                    self.at = None;
                    return Ok(());
                }
                (Some(_), None) => (Side::Stored, true),
                (None, Some((_, is_live))) => (Side::Staged, is_live),
                (Some(stored), Some((staged, is_live))) => match stored.cmp(staged) {
                    Ordering::Less => (Side::Stored, true),
                    Ordering::Equal => (Side::Both, is_live),
                    Ordering::Greater => (Side::Staged, is_live),
                },
            };
            self.at = Some(side);
            if is_live {
                return Ok(());
            }
        }
    }

    fn next_row(&mut self) -> Result<Option<Row<'_>>, StorageError> {
        self.advance()?;
        match self.at {
            None => Ok(None),
            Some(Side::Stored) => self.stored.peek(),
            Some(Side::Staged | Side::Both) => {
                Ok(self
                    .staged
                    .peek()
                    .and_then(|(key, state)| match &state.latest {
                        Latest::Live { at, record } => Some(Row {
                            key,
                            sub: at.sub,
                            record,
                        }),
                        _ => None,
                    }))
            }
        }
    }
}

impl Source for StagedSource<'_> {
    fn seek(&mut self, start: &[u8], end: Option<&[u8]>) -> Result<(), ReadError> {
        self.start(start, end);
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Row<'_>>, ReadError> {
        Ok(self.next_row()?)
    }

    fn whole_blocks(&mut self, range: &KeyRange<'_>) -> Result<Option<WholeBlocks>, ReadError> {
        let Some(mut whole) = self.stored.whole_blocks(range)? else {
            return Ok(None);
        };
        for (key, state) in self.overlay.range::<Bytes, _>(&whole.first..) {
            if whole.last.as_ref().is_some_and(|last| key >= last) {
                break;
            }
            whole.keys += state.growth();
        }
        Ok(Some(whole))
    }
}
