//! The engine: the present generation, its writes, flushes and sizes, and its
//! replacement by another state.

use super::generation::Generation;
use super::options::Memory;
use super::state_dirs::{self, StateDirs};
use super::{Batch, Column, OpenError, Settings, StorageError};
use arc_swap::{ArcSwap, Guard};
use fail::fail_point;
use parking_lot::Mutex;
use rocksdb::WriteOptions;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

pub(super) type KeyAndValue = (Vec<u8>, Vec<u8>);

/// The state, shared as `Arc<Engine>`: reads from any thread, batches from the
/// apply thread.
///
/// After a write or a flush has failed no further one is accepted: RocksDB may
/// recover by itself from a full disk, and a state with a hole in it would be
/// worse than a stopped member.
pub struct Engine {
    present: ArcSwap<Generation>,
    dirs: Mutex<StateDirs>,
    pub(super) memory: Memory,
    write_options: WriteOptions,
    failure: OnceLock<StorageError>,
    sizes: Sizes,
    /// Written since the last flush that was asked for began.
    unflushed_bytes: AtomicU64,
}

/// A state that lies beside the present one, opened, and does not count yet:
/// [`Engine::switch`] puts it in its place. Dropping it leaves everything as it
/// was; its files go at the next attempt or open.
pub(crate) struct NextState {
    generation: Arc<Generation>,
}

impl Engine {
    /// Opens the state in `dir`, creating it when the directory is missing or
    /// empty. Installed states lie beside `dir`, named after it.
    pub fn open(dir: &Path, settings: &Settings) -> Result<Engine, OpenError> {
        let dirs = StateDirs::open(dir)?;
        let memory = Memory::new(settings);
        let generation = Generation::open(&dirs.current(), &memory)?;
        let mut write_options = WriteOptions::default();
        write_options.disable_wal(true);
        let sizes = Sizes::new(generation.memtable_bytes());
        Ok(Engine {
            present: ArcSwap::from_pointee(generation),
            dirs: Mutex::new(dirs),
            memory,
            write_options,
            failure: OnceLock::new(),
            sizes,
            unflushed_bytes: AtomicU64::new(0),
        })
    }

    /// The present generation, for reads that belong together.
    pub(crate) fn generation(&self) -> Arc<Generation> {
        self.present.load_full()
    }

    pub(super) fn present(&self) -> Guard<Arc<Generation>> {
        self.present.load()
    }

    pub fn get(&self, column: Column, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.present().get(column, key)
    }

    /// All rows whose key begins with `prefix`, in key order. For sets that
    /// are small by nature: alarms, members, the keys of one lease.
    pub fn scan_prefix(
        &self,
        column: Column,
        prefix: &[u8],
    ) -> Result<Vec<KeyAndValue>, StorageError> {
        self.present().scan_prefix(column, prefix)
    }

    /// Applies a batch: visible to every reader when this returns, durable
    /// after the next [`Engine::flush`].
    pub fn write(&self, batch: Batch) -> Result<(), StorageError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.check_not_failed()?;
        self.write_to(&self.present(), &batch)?;
        let bytes = batch.byte_size() as u64;
        self.sizes.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.unflushed_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn write_to(&self, generation: &Generation, batch: &Batch) -> Result<(), StorageError> {
        let rows = batch.to_rocksdb(|column| generation.handle(column));
        generation
            .db
            .write_opt(rows, &self.write_options)
            .map_err(|error| self.fail(error.into()))
    }

    /// Makes everything written so far durable, all columns as of the same
    /// batch. Blocks for as long as the disk takes; writes go on meanwhile.
    pub fn flush(&self) -> Result<(), StorageError> {
        self.check_not_failed()?;
        self.unflushed_bytes.store(0, Ordering::Relaxed);
        self.generation()
            .flush()
            .map_err(|error| self.fail(error.into()))?;
        self.sizes.forget();
        Ok(())
    }

    /// Bytes written since the last [`Engine::flush`] began. RocksDB may have
    /// flushed some of them by itself.
    pub fn unflushed_bytes(&self) -> u64 {
        self.unflushed_bytes.load(Ordering::Relaxed)
    }

    /// Whether a compaction has left files whose space comes back with the
    /// next flush.
    pub fn has_droppable_files(&self) -> bool {
        self.present().has_droppable_files()
    }

    /// Puts the state in `dir` in the place of the present one: a checkpoint
    /// of another engine whose files are durable, on the same file system.
    /// `dir` is moved away. Who reads the present state goes on doing so; its
    /// files go when all of them are done. A crash meanwhile leaves one state or
    /// the other.
    ///
    /// Nobody may write meanwhile, and what was not flushed is given up.
    pub fn install(&self, dir: &Path) -> Result<(), StorageError> {
        let next = self.open_next(dir)?;
        self.switch(next)
    }

    /// The first half of [`Engine::install`]: moves `dir` to its place and
    /// opens it. Nothing has changed when this fails.
    pub(crate) fn open_next(&self, dir: &Path) -> Result<NextState, StorageError> {
        self.check_not_failed()?;
        let path = self
            .dirs
            .lock()
            .move_to_next(dir)
            .map_err(|error| StorageError::files(dir, &error))?;
        fail_point!("install_before_open", |_| std::process::abort());
        let generation = Generation::open(&path, &self.memory)?;
        Ok(NextState {
            generation: Arc::new(generation),
        })
    }

    /// Writes to a state that does not count yet, durably.
    pub(crate) fn write_next(&self, next: &NextState, batch: Batch) -> Result<(), StorageError> {
        self.check_not_failed()?;
        self.write_to(&next.generation, &batch)?;
        next.generation
            .flush()
            .map_err(|error| self.fail(error.into()))
    }

    /// The second half of [`Engine::install`]: makes the next state the present
    /// one, on disk and then for readers. When this fails nobody knows which of
    /// the two is found after a restart, so no write is accepted any more.
    pub(crate) fn switch(&self, next: NextState) -> Result<(), StorageError> {
        self.check_not_failed()?;
        let replaced_dir = {
            let mut dirs = self.dirs.lock();
            let replaced = dirs.current();
            dirs.switch()
                .map_err(|error| self.fail(StorageError::files(&replaced, &error)))?;
            replaced
        };
        let replaced = self.present.swap(next.generation);
        self.sizes.forget();
        retire(replaced, replaced_dir);
        Ok(())
    }

    /// Rewrites all columns without their dead rows, in the caller's thread.
    /// Reads and writes go on meanwhile. There is nothing for the caller to do
    /// about a write or flush that fails: it is remembered, and the next write
    /// says so.
    pub fn compact_all(&self) {
        if self.flush().is_err() || self.write(self.present().leftovers()).is_err() {
            return;
        }
        if let Err(error) = self.generation().compact() {
            tracing::warn!(%error, "a compaction of all files was not completed");
        }
        self.sizes.forget();
    }

    /// Bytes the state takes, in files and in memory. Cheap enough to be asked
    /// at every request; includes every batch written before the call.
    pub fn total_bytes(&self) -> u64 {
        self.measure_sizes();
        self.sizes.total.load(Ordering::Relaxed) + self.sizes.written_bytes.load(Ordering::Relaxed)
    }

    /// How much of [`Engine::total_bytes`] is not dead rows: an estimate.
    pub fn live_bytes(&self) -> u64 {
        let total = self.total_bytes();
        total.min(
            self.sizes.live.load(Ordering::Relaxed)
                + self.sizes.written_bytes.load(Ordering::Relaxed),
        )
    }

    fn check_not_failed(&self) -> Result<(), StorageError> {
        self.failure
            .get()
            .map_or(Ok(()), |failure| Err(failure.clone()))
    }

    fn fail(&self, error: StorageError) -> StorageError {
        self.failure.get_or_init(|| error.clone());
        error
    }

    fn measure_sizes(&self) {
        if !self.sizes.take_turn() {
            return;
        }
        let generation = self.present();
        let memtables = generation
            .memtable_bytes()
            .saturating_sub(self.sizes.empty_memtables);
        self.sizes
            .total
            .store(generation.file_bytes() + memtables, Ordering::Relaxed);
        self.sizes
            .live
            .store(generation.live_file_bytes() + memtables, Ordering::Relaxed);
    }
}

impl NextState {
    /// For looking at what is about to be installed.
    pub(crate) fn generation(&self) -> &Generation {
        &self.generation
    }
}

/// Closes a replaced generation when nobody reads from it any more, and removes
/// its files. On a thread of its own: the last reader is a client's request, and
/// closing takes a while. What a crash leaves, the next open removes.
fn retire(generation: Arc<Generation>, dir: PathBuf) {
    /// Readers hold a state for one request; nothing is lost by being late.
    const LOOK_AGAIN: Duration = Duration::from_millis(50);
    let close = move || {
        // Nobody can get hold of it any more, so the number only falls.
        while Arc::strong_count(&generation) > 1 {
            thread::sleep(LOOK_AGAIN);
        }
        drop(generation);
        // Tried again at the next open.
        let _ = state_dirs::remove_dir(&dir);
    };
    // Without a thread the files stay until the next open.
    let _ = thread::Builder::new()
        .name("stele-retire".into())
        .spawn(close);
}

/// The last measurement of the sizes and what was written since. Asking
/// RocksDB walks its file lists, too slow for a quota check at every put, so
/// it is asked at most every [`Sizes::MAX_AGE`].
struct Sizes {
    opened_at: Instant,
    /// What RocksDB counts for memtables without a row in them.
    empty_memtables: u64,
    total: AtomicU64,
    live: AtomicU64,
    written_bytes: AtomicU64,
    /// Milliseconds after `opened_at` from which the next call measures.
    due_ms: AtomicU64,
}

impl Sizes {
    const MAX_AGE: Duration = Duration::from_millis(500);

    fn new(empty_memtables: u64) -> Sizes {
        Sizes {
            opened_at: Instant::now(),
            empty_memtables,
            total: AtomicU64::new(0),
            live: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            due_ms: AtomicU64::new(0),
        }
    }

    /// True for one caller whenever a measurement is due.
    fn take_turn(&self) -> bool {
        let now_ms = self.opened_at.elapsed().as_millis() as u64;
        let due_ms = self.due_ms.load(Ordering::Relaxed);
        let next_ms = now_ms + Sizes::MAX_AGE.as_millis() as u64;
        let is_mine = now_ms >= due_ms
            && self
                .due_ms
                .compare_exchange(due_ms, next_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_mine {
            self.written_bytes.store(0, Ordering::Relaxed);
        }
        is_mine
    }

    /// The next call measures again.
    fn forget(&self) {
        self.due_ms.store(0, Ordering::Relaxed);
    }
}
