//! Copies of the whole state as of one moment.

use super::generation::Generation;
use super::{Engine, StorageError};
use std::path::Path;

impl Engine {
    /// Writes a copy of all columns, as of one batch, to `dir`, which must not
    /// exist but whose parent must. The files are hard links where the file
    /// system allows, so it costs a flush and little space, and an engine can be
    /// opened on the copy or [install](Engine::install) it.
    pub fn checkpoint(&self, dir: &Path) -> Result<(), StorageError> {
        // RocksDB would flush by itself, but a failure must close the latch.
        self.flush()?;
        let generation = self.generation();
        rocksdb::checkpoint::Checkpoint::new(&generation.db)?.create_checkpoint(dir)?;
        Ok(())
    }

    /// Opens a copy for reading, and leaves it as it is.
    pub(crate) fn open_checkpoint(&self, dir: &Path) -> Result<Generation, StorageError> {
        Generation::open_read_only(dir, &self.memory)
    }

    /// Copies the files as they are, without what is only in memory: what a
    /// kill would leave.
    #[cfg(test)]
    pub(crate) fn copy_files(&self, dir: &Path) -> std::io::Result<()> {
        let generation = self.generation();
        // The manifest names the tables and blobs, so it is copied first, and
        // nothing it names may go meanwhile.
        generation
            .db
            .disable_file_deletions()
            .expect("an open database");
        for is_named in [false, true] {
            for entry in std::fs::read_dir(generation.db.path())? {
                let entry = entry?;
                let name = entry.file_name();
                let extension = Path::new(&name).extension();
                if extension.is_some_and(|end| end == "sst" || end == "blob") == is_named {
                    std::fs::copy(entry.path(), dir.join(name))?;
                }
            }
        }
        generation
            .db
            .enable_file_deletions()
            .expect("an open database");
        Ok(())
    }
}
