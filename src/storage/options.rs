//! RocksDB's settings, and why each differs from the default.

use super::Column;
use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, LogLevel, Options, WriteBufferManager};
use std::thread;

/// From this length on values lie apart from their keys. Shorter ones cost
/// more to be looked for in another file than to be copied by compactions.
const MIN_BLOB_BYTES: u64 = 2 << 10;

/// The part of the blob files, oldest first, that compactions empty.
pub(super) const BLOB_GC_AGE_CUTOFF: f64 = 0.25;

/// What a process may spend on the engine. Memory in all is about
/// `block_cache_bytes` plus what RocksDB needs beside its caches (table
/// readers, compaction buffers: some tens of MB).
#[derive(Clone, Debug)]
pub struct Settings {
    /// Blocks, indexes, filters and, charged to the same budget, memtables.
    pub block_cache_bytes: usize,
    /// Memtables of all columns together: what is written but not yet in a
    /// file. They are flushed, all columns at once, when nearly this much is
    /// in use. At most half of the block cache, which has to hold them.
    pub memtable_bytes: usize,
    /// Threads for flushes and compactions.
    pub background_jobs: usize,
    /// Files change only when a flush or a compaction is asked for, and closing
    /// loses what was not flushed, as a crash would: for simulations, whose runs
    /// must repeat exactly. So the memtables must hold all that is written between
    /// two flushes; full ones are flushed whenever RocksDB's threads get to it.
    pub is_stepped: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            block_cache_bytes: 128 << 20,
            memtable_bytes: 64 << 20,
            // One flush beside one compaction at least; more than four would
            // take cores from the clients of a small machine.
            background_jobs: thread::available_parallelism()
                .map_or(2, |cores| cores.get().clamp(2, 4)),
            is_stepped: false,
        }
    }
}

impl Settings {
    fn memtable_limit_bytes(&self) -> usize {
        self.memtable_bytes.min(self.block_cache_bytes / 2)
    }
}

/// What all generations share: the caches, so that two of them that are open
/// for a while take no more than one, and the settings they were made from.
pub(super) struct Memory {
    settings: Settings,
    cache: Cache,
    write_buffers: WriteBufferManager,
}

impl Memory {
    pub(super) fn new(settings: &Settings) -> Memory {
        let cache = Cache::new_lru_cache(settings.block_cache_bytes);
        let write_buffers = WriteBufferManager::new_write_buffer_manager_with_cache(
            settings.memtable_limit_bytes(),
            // A stall would block the apply thread; the flush is soon enough.
            false,
            cache.clone(),
        );
        Memory {
            settings: settings.clone(),
            cache,
            write_buffers,
        }
    }
}

/// Options of the database as a whole.
pub(super) fn database(memory: &Memory) -> Result<Options, rocksdb::Error> {
    let settings = &memory.settings;
    let mut options = Options::default();
    if settings.is_stepped {
        options = options.get_options_from_string("avoid_flush_during_shutdown=true")?;
    }
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // All columns reach the disk as of the same batch: with the WAL off this
    // is what keeps data, indexes and applied index together over a crash.
    options.set_atomic_flush(true);
    options.set_write_buffer_manager(&memory.write_buffers);
    options.set_max_background_jobs(i32::try_from(settings.background_jobs).unwrap_or(4));
    // One thread writes batches, so the lock-free memtable insert only costs.
    options.set_allow_concurrent_memtable_write(false);
    // Files are written out as they grow instead of all at once at the end,
    // which would make the raft log's syncs wait.
    options.set_bytes_per_sync(1 << 20);
    options.set_max_open_files(-1);
    options.set_skip_stats_update_on_db_open(true);
    // RocksDB's own text log: warnings only, at most three files of 4 MB.
    options.set_log_level(LogLevel::Warn);
    options.set_max_log_file_size(4 << 20);
    options.set_keep_log_file_num(3);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    Ok(options)
}

/// Options of one column.
pub(super) fn column(column: Column, memory: &Memory) -> Result<Options, rocksdb::Error> {
    // A list over keys that are overwritten or deleted all the time steps over
    // their dead versions in the memtable, up to twenty times slower; these
    // flush the memtable when one step met 256 of them, or four a step on
    // average. The crate has no call for them.
    let mut options = Options::default();
    if memory.settings.is_stepped {
        options.set_disable_auto_compactions(true);
    } else {
        options = options.get_options_from_string(
            "memtable_op_scan_flush_trigger=256;memtable_avg_op_scan_flush_trigger=4",
        )?;
    }
    options.set_write_buffer_size(memory.settings.memtable_limit_bytes());
    // A flush sets in when the memtables are full, and again when half of that
    // was written meanwhile. With RocksDB's two, the second would have writes
    // wait until the first has reached the disk.
    options.set_max_write_buffer_number(4);
    options.set_target_file_size_base(32 << 20);
    options.set_compression_type(DBCompressionType::Lz4);
    let mut table = table_options(&memory.cache);
    match column {
        Column::Current | Column::Deleted => {
            table.set_block_size(8 << 10);
            table.set_bloom_filter(10.0, false);
            // What a flush writes is merged with the next level within seconds.
            options.set_compression_per_level(&[DBCompressionType::None, DBCompressionType::Lz4]);
            // Point reads of absent keys (every create is one, in both
            // columns) end at the memtable's filter.
            options.set_memtable_prefix_bloom_ratio(0.02);
            options.set_memtable_whole_key_filtering(true);
            // A prefix that was deleted as a whole must not stay a desert of
            // tombstones for every list that crosses it.
            options.add_compact_on_deletion_collector_factory(1024, 512, 0.5);
        }
        Column::Log => {
            // Read in order and rarely at a point, written once, dropped by
            // the file: big blocks, no filter, and on every level the same
            // compression. Then a file moves down as it is; with zstd below,
            // writing all of it again took a tenth of a put's time.
            table.set_block_size(32 << 10);
        }
        Column::Meta => table.set_block_size(4 << 10),
    }
    options.set_block_based_table_factory(&table);
    if column == Column::Current {
        keep_large_values_apart(&mut options);
    }
    Ok(options)
}

/// A compaction then moves 30 bytes for such a value and not the value: puts of
/// 4 KB take a fifth less CPU, and a list of them is none the slower.
///
/// What is overwritten stays in its file until compactions have carried off what
/// is left of the oldest files.
fn keep_large_values_apart(options: &mut Options) {
    options.set_enable_blob_files(true);
    options.set_min_blob_size(MIN_BLOB_BYTES);
    options.set_blob_file_size(32 << 20);
    options.set_blob_compression_type(DBCompressionType::Lz4);
    options.set_enable_blob_gc(true);
    options.set_blob_gc_age_cutoff(BLOB_GC_AGE_CUTOFF);
    // Also where no key is written that would have its neighbours compacted.
    options.set_blob_gc_force_threshold(0.5);
}

fn table_options(cache: &Cache) -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    // Indexes and filters count against the one budget too.
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_optimize_filters_for_memory(true);
    table.set_format_version(6);
    table
}
