//! A state that is being received: its files as far as they have come.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use raft::eraftpb::Message;

use super::incoming::ReceiveError;
use super::{CHUNK_BYTES, Key};
use crate::metrics;
use crate::proto::peer::{SnapshotChunk, SnapshotFile, SnapshotResume};

/// A state that is not complete yet. Everything before `file` and `offset` is on
/// disk, and synced for all files but the open one.
pub(super) struct Receiving {
    pub(super) key: Key,
    /// The call that brings it; an earlier one may still hang somewhere.
    pub(super) call: u64,
    pub(super) message: Message,
    pub(super) files: Vec<SnapshotFile>,
    pub(super) dir: PathBuf,
    file: usize,
    offset: u64,
    open: Option<File>,
    pub(super) touched_at: Instant,
}

impl Receiving {
    /// A transfer that begins, in an empty folder.
    pub(super) fn begin(
        key: Key,
        call: u64,
        message: Message,
        files: Vec<SnapshotFile>,
        dir: PathBuf,
    ) -> io::Result<Receiving> {
        let mut receiving = Receiving {
            key,
            call,
            message,
            files,
            dir,
            file: 0,
            offset: 0,
            open: None,
            touched_at: Instant::now(),
        };
        // Files without content at the beginning.
        receiving.close_complete()?;
        Ok(receiving)
    }

    pub(super) fn position(&self) -> SnapshotResume {
        SnapshotResume {
            file: u32::try_from(self.file).expect("the number of files was checked"),
            offset: self.offset,
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.file == self.files.len()
    }

    pub(super) fn store(&mut self, chunk: &SnapshotChunk) -> Result<bool, ReceiveError> {
        let wrong = |problem| ReceiveError::Chunk {
            file: chunk.file,
            offset: chunk.offset,
            problem,
        };
        if chunk.file as usize != self.file || chunk.offset != self.offset {
            return Err(wrong("it does not follow the one before"));
        }
        let len = chunk.data.len();
        if len == 0 || len > CHUNK_BYTES {
            return Err(wrong("its size is not one that members send"));
        }
        if len as u64 > self.files[self.file].bytes - self.offset {
            return Err(wrong("it reaches beyond the end of the file"));
        }
        if crc32c::crc32c(&chunk.data) != chunk.crc32c {
            return Err(wrong("its checksum is wrong"));
        }
        let path = self.dir.join(&self.files[self.file].name);
        let file = match &mut self.open {
            Some(file) => file,
            None => self.open.insert(create(&path)?),
        };
        file.write_all(&chunk.data)?;
        self.offset += len as u64;
        self.touched_at = Instant::now();
        self.close_complete()?;
        Ok(self.is_complete())
    }

    /// Syncs and closes the file that is complete, and creates those after it
    /// that have no content.
    fn close_complete(&mut self) -> io::Result<()> {
        while let Some(SnapshotFile { name, bytes }) = self.files.get(self.file)
            && self.offset == *bytes
        {
            let file = match self.open.take() {
                Some(file) => file,
                None => create(&self.dir.join(name))?,
            };
            let began = Instant::now();
            file.sync_all()?;
            metrics::SNAP_FSYNC_DURATION_SECONDS.observe(began.elapsed().as_secs_f64());
            self.file += 1;
            self.offset = 0;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn bytes_stored(&self) -> u64 {
        let complete = self.files[..self.file].iter().map(|file| file.bytes);
        complete.sum::<u64>() + self.offset
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
}
