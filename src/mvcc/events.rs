//! What watchers are sent: made once by the writer, or read from the log.

use super::ReadError;
use super::buffer::Buffer;
use super::log_row::LogRow;
use super::record;
use super::revision::{FIRST_MAIN, Revision};
use super::shared::Shared;
use crate::storage::{Bounds, Column, StorageError, keys};
use bytes::Bytes;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// One change, as the encoded `mvccpb.Event`. `prev_kv` is its last field, so
/// the event without it is a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub key: Bytes,
    pub kind: EventKind,
    pub encoded: Bytes,
    pub without_prev_len: usize,
}

impl Event {
    /// The event for a watcher that asked for `prev_kv`, where there is one
    /// (WAT-19).
    pub fn with_prev(&self) -> Bytes {
        self.encoded.clone()
    }

    pub fn without_prev(&self) -> Bytes {
        self.encoded.slice(..self.without_prev_len)
    }
}

/// The changes of one revision, in the order they were made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionEvents {
    pub revision: i64,
    pub events: Vec<Event>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsPage {
    /// Without gaps.
    pub revisions: Vec<RevisionEvents>,
    /// Where the next page begins.
    pub next_revision: i64,
    /// The store's revision; the page was the last when `next_revision` is
    /// beyond.
    pub store_revision: i64,
}

/// Reads a page of the log.
pub(super) fn read(
    shared: &Shared,
    from_revision: i64,
    max_revisions: usize,
    max_bytes: usize,
) -> Result<EventsPage, ReadError> {
    // One state for all of the page, whatever takes its place meanwhile.
    let published = shared.load();
    let store_revision = published.revision;
    if from_revision < published.compacted_revision {
        return Err(ReadError::Compacted);
    }
    let mut page = Page::new(from_revision);
    // Not beyond what is published, although the engine may show it already:
    // those revisions reach the hub from the writer.
    let end = keys::log(store_revision.max(0) + 1, 0);
    let mut rows = published.generation.rows(Column::Log, Bounds::until(end));
    rows.seek(&keys::log(page.first_revision, 0));
    let mut is_full = false;
    while let Some((key, value)) = rows.row()? {
        let at = Revision::from_log_key(key)?;
        if at.sub == 0 && page.is_full(max_revisions, max_bytes) {
            is_full = true;
            break;
        }
        if !page.push(at, value)? {
            return Err(missing(shared, from_revision, at));
        }
        rows.step();
    }
    let next_revision = page.next_revision();
    if !is_full && next_revision <= store_revision {
        return Err(missing(
            shared,
            from_revision,
            Revision::new(next_revision, 0),
        ));
    }
    // Rows may have been dropped while they were read, which a compaction
    // announces before.
    let compacted_revision = shared.load().compacted_revision;
    if from_revision < compacted_revision {
        return Err(ReadError::Compacted);
    }
    for revision in page
        .revisions
        .iter_mut()
        .take_while(|page| page.revision <= compacted_revision)
    {
        drop_prev(revision);
    }
    Ok(EventsPage {
        revisions: page.revisions,
        next_revision,
        store_revision,
    })
}

/// A revision before the compacted one cannot be read any more, and so is not
/// given as `prev_kv` either (WAT-19).
fn drop_prev(revision: &mut RevisionEvents) {
    for event in &mut revision.events {
        event.encoded.truncate(event.without_prev_len);
    }
}

fn missing(shared: &Shared, from_revision: i64, at: Revision) -> ReadError {
    if from_revision < shared.load().compacted_revision {
        ReadError::Compacted
    } else {
        StorageError::corrupt(Column::Log, &at.to_bytes(), "rows before it are missing").into()
    }
}

/// Revisions being read, row by row.
struct Page {
    first_revision: i64,
    revisions: Vec<RevisionEvents>,
    byte_len: usize,
    buffer: Buffer,
}

impl Page {
    fn new(from_revision: i64) -> Page {
        // Revision 1 is the empty store.
        let first_revision = from_revision.max(FIRST_MAIN + 1);
        Page {
            first_revision,
            revisions: Vec::new(),
            byte_len: 0,
            buffer: Buffer::default(),
        }
    }

    fn next_revision(&self) -> i64 {
        self.revisions
            .last()
            .map_or(self.first_revision, |last| last.revision + 1)
    }

    fn is_full(&self, max_revisions: usize, max_bytes: usize) -> bool {
        !self.revisions.is_empty()
            && (self.revisions.len() >= max_revisions || self.byte_len >= max_bytes)
    }

    /// Adds a row; false when it does not follow the one before.
    fn push(&mut self, at: Revision, value: &[u8]) -> Result<bool, StorageError> {
        let next = self.next_revision();
        if at.sub == 0 {
            if at.main != next {
                return Ok(false);
            }
            self.revisions.push(RevisionEvents {
                revision: at.main,
                events: Vec::new(),
            });
        }
        let Some(revision) = self.revisions.last_mut() else {
            return Ok(false);
        };
        if at.main != revision.revision || at.sub as usize != revision.events.len() {
            return Ok(false);
        }
        let row = LogRow::parse(at, value)?;
        let encoded = self.buffer.copy(row.event);
        self.byte_len += encoded.len();
        // Where the key stands in the event, it stands in the copy.
        let key = record::parse_in(Column::Log, &at.to_bytes(), row.record)?.key;
        let key_at = key.as_ptr() as usize - row.event.as_ptr() as usize;
        revision.events.push(Event {
            key: encoded.slice(key_at..key_at + key.len()),
            kind: if row.is_tombstone {
                EventKind::Delete
            } else {
                EventKind::Put
            },
            encoded,
            without_prev_len: row.without_prev_len,
        });
        Ok(true)
    }
}
