//! A copy of the state that is kept for sending.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use raft::eraftpb::{Snapshot, SnapshotMetadata};
use thiserror::Error;
use tokio::time::Instant;

use super::{Key, remove_dir};
use crate::machine::{self, Description};
use crate::metrics;
use crate::proto::peer::SnapshotFile;
use crate::storage::{Engine, StorageError};

#[derive(Debug, Error)]
pub(super) enum CheckpointError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// Its files go when the last transfer has let go of it.
pub(super) struct Checkpoint {
    pub(super) key: Key,
    pub(super) made_at: Instant,
    pub(super) files: Vec<SnapshotFile>,
    description: Description,
    dir: PathBuf,
    /// How many there are, this one included.
    _count: Counted,
}

impl Checkpoint {
    /// Takes as long as a flush, in the caller's thread.
    pub(super) fn make(
        engine: &Engine,
        parent: &Path,
        key: Key,
        count: &Arc<AtomicUsize>,
    ) -> Result<Checkpoint, CheckpointError> {
        let began = Instant::now();
        let dir = parent.join(key.number.to_string());
        let io_error = |path: &Path| {
            let path = path.to_path_buf();
            move |source| CheckpointError::Io { path, source }
        };
        fs::create_dir_all(parent).map_err(io_error(parent))?;
        remove_dir(&dir).map_err(io_error(&dir))?;
        // From here on the folder goes with the value.
        let mut made = Checkpoint {
            key,
            made_at: Instant::now(),
            files: Vec::new(),
            description: Description {
                applied: (0, 0),
                conf: machine::Conf::default(),
            },
            dir: dir.clone(),
            _count: Counted::new(count),
        };
        engine.checkpoint(&dir)?;
        made.description = machine::describe(engine, &dir)?;
        made.files = list(&dir).map_err(io_error(&dir))?;
        metrics::DEBUGGING_SNAP_SAVE_TOTAL_DURATION_SECONDS.observe(began.elapsed().as_secs_f64());
        Ok(made)
    }

    pub(super) fn index(&self) -> u64 {
        self.description.applied.0
    }

    /// Whether the state has that member.
    pub(super) fn is_of_member(&self, id: u64) -> bool {
        let conf = &self.description.conf;
        conf.voters.contains(&id) || conf.learners.contains(&id)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// What raft is told.
    pub(super) fn snapshot(&self) -> Snapshot {
        let mut metadata = SnapshotMetadata::default();
        (metadata.index, metadata.term) = self.description.applied;
        let conf_state = metadata.mut_conf_state();
        conf_state.voters = self.description.conf.voters.clone();
        conf_state.learners = self.description.conf.learners.clone();
        let mut snapshot = Snapshot {
            data: self.key.to_bytes().into(),
            ..Snapshot::default()
        };
        snapshot.set_metadata(metadata);
        snapshot
    }

    /// The bytes of a file from `offset` on. They are there: the files of a
    /// checkpoint never change.
    pub(super) fn read(&self, file: usize, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        File::open(self.dir.join(&self.files[file].name))?.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        // Whatever stays is removed by the next start.
        let _ = remove_dir(&self.dir);
    }
}

fn list(dir: &Path) -> io::Result<Vec<SnapshotFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // RocksDB names its files in ASCII.
        let name = entry.file_name().into_string();
        let name = name.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let bytes = entry.metadata()?.len();
        files.push(SnapshotFile { name, bytes });
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(files)
}

/// One of a number of things that exist.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Counted {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
