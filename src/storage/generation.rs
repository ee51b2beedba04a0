//! One open RocksDB: the state as it was opened, with all that was written
//! since.
//!
//! A generation lives from its opening (at a start, or when the state of
//! another member takes the place of this one's) until the last who reads from
//! it is gone: snapshots hold it, iterators and values borrow it. The engine
//! points at the present one and writes to no other. Where its files lie and
//! when they go is the business of [`super::state_dirs`].

use super::options::{self, Memory};
use super::{Batch, Column, StorageError, keys};
use parking_lot::Mutex;
use rocksdb::{
    BottommostLevelCompaction, ColumnFamily, ColumnFamilyDescriptor, CompactOptions, DB,
    FlushOptions, Options, ReadOptions, properties,
};
use std::ffi::CStr;
use std::path::Path;

/// RocksDB's name; the crate has none for it.
const TOTAL_BLOB_FILE_SIZE: &CStr = c"rocksdb.total-blob-file-size";

pub(crate) struct Generation {
    pub(super) db: DB,
    pub(super) read_options: ReadOptions,
    /// Waiting for a flush; see [`Generation::drop_files_after_flush`].
    droppable: Mutex<Vec<RowRange>>,
    /// Their files are gone; rows may be left in others.
    dropped: Mutex<Vec<RowRange>>,
}

/// The rows `first..=last` of a column.
struct RowRange {
    column: Column,
    first: Vec<u8>,
    last: Vec<u8>,
}

impl Generation {
    /// Opens the database in `dir`, creating it when the directory is empty.
    pub(super) fn open(dir: &Path, memory: &Memory) -> Result<Generation, StorageError> {
        let database = options::database(memory)?;
        Generation::open_with(memory, |columns| {
            DB::open_cf_descriptors(&database, dir, columns)
        })
    }

    /// Opens a copy that nobody writes to, and leaves it as it is.
    pub(super) fn open_read_only(dir: &Path, memory: &Memory) -> Result<Generation, StorageError> {
        let mut database = Options::default();
        // An open file each time one is looked at: there is little to look at.
        database.set_max_open_files(16);
        Generation::open_with(memory, |columns| {
            DB::open_cf_descriptors_read_only(&database, dir, columns, false)
        })
    }

    fn open_with(
        memory: &Memory,
        open: impl FnOnce(Vec<ColumnFamilyDescriptor>) -> Result<DB, rocksdb::Error>,
    ) -> Result<Generation, StorageError> {
        let columns = Column::ALL
            .into_iter()
            .map(|column| {
                let options = options::column(column, memory)?;
                Ok(ColumnFamilyDescriptor::new(column.name(), options))
            })
            .collect::<Result<Vec<_>, rocksdb::Error>>()?;
        Ok(Generation {
            db: open(columns)?,
            read_options: ReadOptions::default(),
            droppable: Mutex::default(),
            dropped: Mutex::default(),
        })
    }

    /// RocksDB finds handles by name, in a map of four short names: cheap, and
    /// done once a read or batch, never once a row.
    pub(super) fn handle(&self, column: Column) -> &ColumnFamily {
        self.db
            .cf_handle(column.name())
            .expect("every column was opened")
    }

    /// Flushes all columns as of one batch; the files that waited for it go.
    pub(super) fn flush(&self) -> Result<(), rocksdb::Error> {
        let droppable = std::mem::take(&mut *self.droppable.lock());
        let handles = Column::ALL.map(|column| self.handle(column));
        self.db
            .flush_cfs_opt(&handles.each_ref(), &FlushOptions::default())?;
        for range in droppable {
            let handle = self.handle(range.column);
            self.db
                .delete_file_in_range_cf(handle, &range.first, &range.last)?;
            let mut dropped = self.dropped.lock();
            dropped.retain(|earlier| !range.covers(earlier));
            dropped.push(range);
        }
        Ok(())
    }

    /// Once the next flush has completed, removes the files that lie wholly
    /// within `first..=last`, but for those of the first level. Rows in other
    /// files stay until a later call covers these or [`Generation::leftovers`]
    /// are written: deleting them here would have a compaction read them all.
    ///
    /// What the caller has written before must have every reader do without the
    /// rows. Files that go before that is durable could outlive it in a crash
    /// and leave a state that misses rows it believes it has.
    pub(crate) fn drop_files_after_flush(&self, column: Column, first: &[u8], last: &[u8]) {
        self.droppable.lock().push(RowRange {
            column,
            first: first.to_vec(),
            last: last.to_vec(),
        });
    }

    pub(super) fn has_droppable_files(&self) -> bool {
        !self.droppable.lock().is_empty()
    }

    /// The deletion of what is left of the ranges whose files were dropped.
    pub(super) fn leftovers(&self) -> Batch {
        let mut deletions = Batch::new();
        for range in std::mem::take(&mut *self.dropped.lock()) {
            deletions.delete_range(range.column, &range.first, &keys::successor(&range.last));
        }
        deletions
    }

    /// Rewrites the files of all columns without their dead rows, in the
    /// caller's thread.
    pub(super) fn compact(&self) -> Result<(), rocksdb::Error> {
        let mut compaction = CompactOptions::default();
        compaction.set_exclusive_manual_compaction(false);
        compaction.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        self.set_blob_gc_age_cutoff(1.0)?;
        for column in Column::ALL {
            self.db.compact_range_cf_opt(
                self.handle(column),
                None::<&[u8]>,
                None::<&[u8]>,
                &compaction,
            );
        }
        self.set_blob_gc_age_cutoff(options::BLOB_GC_AGE_CUTOFF)
    }

    fn set_blob_gc_age_cutoff(&self, part: f64) -> Result<(), rocksdb::Error> {
        let option = ("blob_garbage_collection_age_cutoff", &*part.to_string());
        self.db
            .set_options_cf(self.handle(Column::Current), &[option])
    }

    pub(super) fn memtable_bytes(&self) -> u64 {
        self.sum(properties::CUR_SIZE_ALL_MEM_TABLES)
    }

    pub(super) fn file_bytes(&self) -> u64 {
        self.sum(properties::TOTAL_SST_FILES_SIZE) + self.sum(TOTAL_BLOB_FILE_SIZE)
    }

    pub(super) fn live_file_bytes(&self) -> u64 {
        self.sum(properties::ESTIMATE_LIVE_DATA_SIZE)
    }

    /// A property summed over the columns. The properties asked for exist; if
    /// RocksDB cannot tell one, zero is the honest number for a gauge.
    fn sum(&self, property: &CStr) -> u64 {
        Column::ALL
            .into_iter()
            .map(|column| {
                self.db
                    .property_int_value_cf(self.handle(column), property)
                    .ok()
                    .flatten()
                    .unwrap_or(0)
            })
            .sum()
    }
}

impl RowRange {
    fn covers(&self, other: &RowRange) -> bool {
        self.column == other.column && self.first <= other.first && other.last <= self.last
    }
}
