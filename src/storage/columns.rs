//! The columns: what each is for and what RocksDB calls it.

/// A RocksDB column family. All of them are written in one atomic batch and
/// flushed in one atomic flush.
///
/// | column | key | value |
/// |---|---|---|
/// | `Current` | user key; the empty key for the store's revision | sub-revision and the encoded `KeyValue` |
/// | `Log` | revision (main, sub) | what changed there, and what it replaced |
/// | `Deleted` | by user key, and by revision | where a key that is gone was deleted |
/// | `Meta` | a name | applied index, compaction, counts, leases, alarms, members |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Column {
    Current,
    Log,
    Deleted,
    Meta,
}

impl Column {
    pub const ALL: [Column; 4] = [Column::Current, Column::Log, Column::Deleted, Column::Meta];

    /// The name in RocksDB's manifest: part of the on-disk format.
    pub const fn name(self) -> &'static str {
        match self {
            Column::Current => "current",
            Column::Log => "log",
            Column::Deleted => "deleted",
            // RocksDB insists on a column of this name; the smallest one has it.
            Column::Meta => "default",
        }
    }
}
