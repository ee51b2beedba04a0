//! Changes of the commands since the last commit, on top of the engine.
//!
//! RocksDB takes whole batches, so until the commit the keys that were changed
//! are found here. A key changed by several commands of one batch is written
//! once.

use super::log_row::Predecessor;
use super::record::{self, current_row};
use super::revision::Revision;
use crate::storage::{Batch, Column, Generation, StorageError, keys};
use bytes::Bytes;
use std::collections::BTreeMap;

pub(super) type Overlay = BTreeMap<Bytes, KeyState>;

/// A key as the next change finds it.
#[derive(Clone, Debug)]
pub(super) struct KeyState {
    pub(super) latest: Latest,
    /// The record before the revision that made `latest`: what a watcher gets
    /// as `prev_kv` of further changes in the same revision (WAT-19).
    before: Option<Bytes>,
    stored: Stored,
}

#[derive(Clone, Debug)]
pub(super) enum Latest {
    Live {
        at: Revision,
        record: Bytes,
    },
    Deleted {
        at: Revision,
    },
    /// Never there, or its deletion is compacted.
    Unknown,
}

/// The key's rows in the engine.
#[derive(Clone, Copy, Debug)]
struct Stored {
    is_live: bool,
    deleted_at: Option<Revision>,
}

impl KeyState {
    /// The key as the engine has it.
    pub(super) fn load(generation: &Generation, key: &[u8]) -> Result<KeyState, StorageError> {
        let (latest, stored) = if let Some(value) = generation.get_pinned(Column::Current, key)? {
            let (sub, record) = current_row::parse(key, &value)?;
            let fields = record::parse_in(Column::Current, key, record)?;
            let at = Revision::new(fields.mod_revision, sub);
            let record = Bytes::copy_from_slice(record);
            (
                Latest::Live { at, record },
                Stored {
                    is_live: true,
                    deleted_at: None,
                },
            )
        } else if let Some(value) =
            generation.get_pinned(Column::Deleted, &keys::deleted_by_key(key))?
        {
            let at = Revision::from_bytes(&value).ok_or_else(|| {
                StorageError::corrupt(Column::Deleted, key, "the value is not a revision")
            })?;
            (
                Latest::Deleted { at },
                Stored {
                    is_live: false,
                    deleted_at: Some(at),
                },
            )
        } else {
            (
                Latest::Unknown,
                Stored {
                    is_live: false,
                    deleted_at: None,
                },
            )
        };
        Ok(KeyState {
            latest,
            before: None,
            stored,
        })
    }

    /// The record, when the key is live.
    pub(super) fn record(&self) -> Option<&Bytes> {
        match &self.latest {
            Latest::Live { record, .. } => Some(record),
            _ => None,
        }
    }

    /// What the log row of the next change, in revision `main`, points to.
    pub(super) fn predecessor(&self, main: i64) -> Predecessor<'_> {
        match &self.latest {
            Latest::Live { at, .. } if at.main == main => Predecessor::Put(*at),
            Latest::Live { at, record } => Predecessor::Inline {
                sub: at.sub,
                record,
            },
            Latest::Deleted { at } => Predecessor::Tombstone(*at),
            Latest::Unknown => Predecessor::None,
        }
    }

    /// The record before revision `main`, which may have changed it already.
    pub(super) fn record_before(&self, main: i64) -> Option<&Bytes> {
        match &self.latest {
            Latest::Live { at, .. } | Latest::Deleted { at } if at.main == main => {
                self.before.as_ref()
            }
            _ => self.record(),
        }
    }

    /// The state after a change in revision `main`.
    pub(super) fn changed(&self, main: i64, latest: Latest) -> KeyState {
        KeyState {
            latest,
            before: self.record_before(main).cloned(),
            stored: self.stored,
        }
    }

    /// By how much the batch changes the number of keys here.
    pub(super) fn growth(&self) -> i64 {
        i64::from(self.record().is_some()) - i64::from(self.stored.is_live)
    }

    /// Adds the rows of a changed key to a batch.
    pub(super) fn write(&self, key: &[u8], batch: &mut Batch) {
        if let Some(at) = self.stored.deleted_at {
            batch.delete(Column::Deleted, &keys::deleted_by_revision(at.main, at.sub));
        }
        match &self.latest {
            Latest::Live { at, record } => {
                batch.put_parts(Column::Current, key, &[&at.sub.to_be_bytes(), record]);
                if self.stored.deleted_at.is_some() {
                    batch.delete(Column::Deleted, &keys::deleted_by_key(key));
                }
            }
            Latest::Deleted { at } => {
                if self.stored.is_live {
                    batch.delete(Column::Current, key);
                }
                batch.put(Column::Deleted, &keys::deleted_by_key(key), &at.to_bytes());
                batch.put(
                    Column::Deleted,
                    &keys::deleted_by_revision(at.main, at.sub),
                    key,
                );
            }
            Latest::Unknown => unreachable!("a key in the overlay was changed"),
        }
    }
}
