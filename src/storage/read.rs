//! Reading rows: point reads, iterators and snapshots, for `mvcc`.

use super::engine::KeyAndValue;
use super::generation::Generation;
use super::{Column, StorageError, keys};
use rocksdb::{DBPinnableSlice, DBRawIterator, ReadOptions};
use std::ops::Deref;
use std::sync::Arc;

/// A value where RocksDB keeps it: no copy is made until the caller makes one.
pub(crate) struct Value<'a>(pub(super) DBPinnableSlice<'a>);

impl Deref for Value<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// What an iterator may touch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bounds {
    /// First key not to be read; `None` for no end. RocksDB then never steps
    /// over dead rows beyond the range.
    pub(crate) end: Option<Vec<u8>>,
    /// A pass over everything must not push out of the cache what clients read.
    pub(crate) is_bulk: bool,
}

impl Bounds {
    pub(crate) fn until(end: impl Into<Vec<u8>>) -> Bounds {
        Bounds {
            end: Some(end.into()),
            is_bulk: false,
        }
    }

    pub(crate) fn bulk(self) -> Bounds {
        Bounds {
            is_bulk: true,
            ..self
        }
    }

    fn into_options(self) -> ReadOptions {
        let mut options = ReadOptions::default();
        if let Some(end) = self.end {
            options.set_iterate_upper_bound(end);
        }
        if self.is_bulk {
            options.fill_cache(false);
            options.set_readahead_size(1 << 20);
        }
        options
    }
}

/// Key and value.
pub(crate) type Row<'a> = (&'a [u8], &'a [u8]);

/// An iterator over one column's state as of the moment it was made.
pub(crate) struct Rows<'a> {
    iterator: DBRawIterator<'a>,
}

impl Rows<'_> {
    /// Moves to the first row whose key is `>= key`.
    pub(crate) fn seek(&mut self, key: &[u8]) {
        self.iterator.seek(key);
    }

    /// Moves one row on; only from a row.
    pub(crate) fn step(&mut self) {
        self.iterator.next();
    }

    /// The row the iterator is at; `None` past the end. The bytes stay valid
    /// until it moves.
    pub(crate) fn row(&self) -> Result<Option<Row<'_>>, StorageError> {
        match self.iterator.item() {
            Some(row) => Ok(Some(row)),
            None => {
                self.iterator.status()?;
                Ok(None)
            }
        }
    }
}

/// All columns as of one moment, for as long as it lives, wherever it is
/// moved: it holds its generation open, also when another has taken its place.
///
/// One exception: files of the log that a compaction drops whole
/// ([`Generation::drop_files_after_flush`]) are gone for snapshots too.
pub(crate) struct Snapshot {
    // Before `generation`: fields are dropped in order, and releasing the
    // snapshot needs the database.
    _snapshot: rocksdb::Snapshot<'static>,
    options: ReadOptions,
    generation: Arc<Generation>,
}

impl Snapshot {
    pub(super) fn new(generation: &Arc<Generation>) -> Snapshot {
        let snapshot = generation.db.snapshot();
        // SAFETY: the snapshot borrows the `DB` in the `Generation`, which has
        // a stable address behind the `Arc` and is never moved out of it. The
        // clone of that `Arc` stored beside the snapshot is dropped after it
        // (field order), so the borrow cannot dangle; the extended lifetime
        // does not leave this struct.
        #[allow(unsafe_code)]
        let snapshot = unsafe {
            std::mem::transmute::<rocksdb::Snapshot<'_>, rocksdb::Snapshot<'static>>(snapshot)
        };
        let mut options = ReadOptions::default();
        options.set_snapshot(&snapshot);
        Snapshot {
            _snapshot: snapshot,
            options,
            generation: Arc::clone(generation),
        }
    }

    pub(crate) fn get(
        &self,
        column: Column,
        key: &[u8],
    ) -> Result<Option<Value<'_>>, StorageError> {
        self.generation.get_with(column, key, &self.options)
    }

    pub(crate) fn rows(&self, column: Column, bounds: Bounds) -> Rows<'_> {
        let mut options = bounds.into_options();
        options.set_snapshot(&self._snapshot);
        self.generation.rows_with(column, options)
    }
}

impl Generation {
    /// All columns as of now.
    pub(crate) fn snapshot(self: &Arc<Self>) -> Snapshot {
        Snapshot::new(self)
    }

    pub(crate) fn get(&self, column: Column, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.get_pinned(column, key)?.map(|value| value.to_vec()))
    }

    /// See [`Engine::scan_prefix`](super::Engine::scan_prefix).
    pub(crate) fn scan_prefix(
        &self,
        column: Column,
        prefix: &[u8],
    ) -> Result<Vec<KeyAndValue>, StorageError> {
        let mut rows = self.rows(
            column,
            Bounds {
                end: keys::prefix_end(prefix),
                is_bulk: false,
            },
        );
        let mut found = Vec::new();
        rows.seek(prefix);
        while let Some((key, value)) = rows.row()? {
            found.push((key.to_vec(), value.to_vec()));
            rows.step();
        }
        Ok(found)
    }

    /// The value of a row as of now.
    pub(crate) fn get_pinned(
        &self,
        column: Column,
        key: &[u8],
    ) -> Result<Option<Value<'_>>, StorageError> {
        self.get_with(column, key, &self.read_options)
    }

    /// An iterator over one column as of now.
    pub(crate) fn rows(&self, column: Column, bounds: Bounds) -> Rows<'_> {
        self.rows_with(column, bounds.into_options())
    }

    fn get_with(
        &self,
        column: Column,
        key: &[u8],
        options: &ReadOptions,
    ) -> Result<Option<Value<'_>>, StorageError> {
        Ok(self
            .db
            .get_pinned_cf_opt(self.handle(column), key, options)?
            .map(Value))
    }

    fn rows_with(&self, column: Column, options: ReadOptions) -> Rows<'_> {
        Rows {
            iterator: self.db.raw_iterator_cf_opt(self.handle(column), options),
        }
    }
}
