//! Tests of the key space as a whole. Parts have theirs in their own files.
//!
//! [`random`] runs random histories against [`model`], a plain map of
//! histories; [`vectors`] holds fixed cases, most of them observed on etcd;
//! [`recorded`] replays what etcd hashed; [`concurrent`] reads while a writer
//! writes; [`corrupt`] breaks rows.

mod concurrent;
mod corrupt;
mod model;
mod random;
mod recorded;
mod vectors;

use super::{Store, Writer};
use crate::storage::{Engine, Settings};
use bytes::Bytes;
use std::sync::Arc;
use tempfile::TempDir;

/// A store in a directory of its own.
struct Fixture {
    engine: Arc<Engine>,
    store: Store,
    writer: Writer,
    /// Last, so that it is removed when the engine has closed.
    dir: TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture::open(temp_dir())
    }

    fn open(dir: TempDir) -> Fixture {
        let settings = Settings {
            block_cache_bytes: 2 << 20,
            memtable_bytes: 1 << 20,
            background_jobs: 2,
            is_stepped: false,
        };
        let engine = Arc::new(Engine::open(dir.path(), &settings).unwrap());
        let (store, writer) = Store::open(Arc::clone(&engine)).unwrap();
        Fixture {
            engine,
            store,
            writer,
            dir,
        }
    }

    /// Closes everything and opens it again.
    fn reopen(self) -> Fixture {
        let Fixture {
            engine,
            store,
            writer,
            dir,
        } = self;
        drop((engine, store, writer));
        Fixture::open(dir)
    }

    /// Opens what is on disk now, as if the process had been killed.
    fn crash(self) -> Fixture {
        let left = temp_dir();
        self.engine.copy_files(left.path()).unwrap();
        Fixture::open(left)
    }

    fn commit(&mut self) {
        let (index, term) = self.writer.applied();
        self.writer.commit(index + 1, term.max(1)).unwrap();
    }

    /// One put, committed.
    fn put(&mut self, key: &str, value: &str) {
        let mut staged = self.writer.begin();
        staged.put(bytes(key), bytes(value), 0).unwrap();
        staged.finish();
        self.commit();
    }

    /// One delete, committed.
    fn delete(&mut self, key: &str, range_end: &str) {
        let mut staged = self.writer.begin();
        staged
            .delete_range(key.as_bytes(), range_end.as_bytes())
            .unwrap();
        staged.finish();
        self.commit();
    }

    /// A compaction with all its removal.
    fn compact(&mut self, revision: i64) {
        self.writer.compact(revision).unwrap();
        self.commit();
        while self.writer.compaction_step(2).unwrap() {}
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// In memory where there is such a directory: these tests open and flush
/// hundreds of stores, and nothing here is about the disk.
fn temp_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}
