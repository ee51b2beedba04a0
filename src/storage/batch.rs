//! Changes that reach the columns together.

use super::Column;

/// An ordered list of changes, applied by [`Engine::write`](super::Engine::write)
/// whole or not at all.
///
/// Keys and values stand one after another in a single buffer, so staging a
/// change costs a copy and no allocation. (RocksDB's own batch would need a
/// column handle, hence a borrow of the engine, at every call.)
#[derive(Default)]
pub struct Batch {
    buffer: Vec<u8>,
    changes: Vec<Change>,
}

/// The next `key_len + value_len` bytes of the buffer and what to do with them.
struct Change {
    column: Column,
    kind: ChangeKind,
    key_len: usize,
    value_len: usize,
}

#[derive(Clone, Copy)]
enum ChangeKind {
    Put,
    Delete,
    /// The "value" is the end of the range, exclusive.
    DeleteRange,
}

impl Batch {
    pub fn new() -> Batch {
        Batch::default()
    }

    pub fn put(&mut self, column: Column, key: &[u8], value: &[u8]) {
        self.put_parts(column, key, &[value]);
    }

    /// A put whose value is the concatenation of `parts`.
    pub fn put_parts(&mut self, column: Column, key: &[u8], parts: &[&[u8]]) {
        self.push(column, ChangeKind::Put, key, parts);
    }

    pub fn delete(&mut self, column: Column, key: &[u8]) {
        self.push(column, ChangeKind::Delete, key, &[]);
    }

    /// Deletes `from <= key < to`; nothing when `from >= to`.
    pub fn delete_range(&mut self, column: Column, from: &[u8], to: &[u8]) {
        if from < to {
            self.push(column, ChangeKind::DeleteRange, from, &[to]);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Bytes of keys and values, about what the batch adds to the memtables.
    pub fn byte_size(&self) -> usize {
        self.buffer.len()
    }

    fn push(&mut self, column: Column, kind: ChangeKind, key: &[u8], parts: &[&[u8]]) {
        self.buffer.extend_from_slice(key);
        let value_start = self.buffer.len();
        for part in parts {
            self.buffer.extend_from_slice(part);
        }
        let value_len = self.buffer.len() - value_start;
        self.changes.push(Change {
            column,
            kind,
            key_len: key.len(),
            value_len,
        });
    }

    /// The same changes as RocksDB takes them.
    pub(super) fn to_rocksdb<'e>(
        &self,
        handle: impl Fn(Column) -> &'e rocksdb::ColumnFamily,
    ) -> rocksdb::WriteBatch {
        // Room for the record headers RocksDB adds, so that it allocates once.
        const HEADER_BYTES: usize = 16;
        let mut batch = rocksdb::WriteBatch::with_capacity_bytes(
            self.buffer.len() + HEADER_BYTES * (self.changes.len() + 1),
        );
        let handles = Column::ALL.map(handle);
        let mut rest = self.buffer.as_slice();
        for change in &self.changes {
            let (key, after_key) = rest.split_at(change.key_len);
            let (value, after_value) = after_key.split_at(change.value_len);
            rest = after_value;
            let column = handles[change.column as usize];
            match change.kind {
                ChangeKind::Put => batch.put_cf(column, key, value),
                ChangeKind::Delete => batch.delete_cf(column, key),
                ChangeKind::DeleteRange => batch.delete_range_cf(column, key, value),
            }
        }
        batch
    }
}
