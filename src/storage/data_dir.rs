//! The data directory: who may use it, and in which format it is.
//!
//! ```text
//! <data-dir>/FORMAT   one line that names the format version
//!            LOCK     locked while a process uses the directory
//!            state/   RocksDB (`state-<n>/` after an install, see `state_dirs`)
//!            raft/    the raft log
//!            outgoing/, incoming/   copies of the state on their way to and
//!                     from other members, if any
//!            fixtures/       certificates the server has made for itself, if any
//! ```
//!
//! [`open_data_dir`] promises: the directory is ours or was empty, no other
//! process uses it, its format is one this program reads, and it will still be
//! there after a power cut (each new directory entry is synced). It refuses
//! anything else in words that tell the operator what was found.

use super::OpenError;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The format this program writes, and the only one it reads so far.
pub const FORMAT_VERSION: u32 = 1;

const FORMAT: &str = "FORMAT";
const FORMAT_NEW: &str = "FORMAT.new";
const FORMAT_PREFIX: &str = "stele data directory, format ";
const LOCK: &str = "LOCK";
/// Certificates that a server has made for itself; the same place in etcd.
const SELF_MADE: &str = "fixtures";
/// What a file system puts at the root of a volume.
const LOST_AND_FOUND: &str = "lost+found";

/// A data directory that this process has locked, until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where [`Engine::open`](super::Engine::open) finds the state.
    pub fn state_dir(&self) -> PathBuf {
        self.path.join("state")
    }

    /// Copies of the state that are being sent to other members.
    pub fn outgoing_dir(&self) -> PathBuf {
        self.path.join("outgoing")
    }

    /// A copy of another member's state while it is received.
    pub fn incoming_dir(&self) -> PathBuf {
        self.path.join("incoming")
    }

    /// The raft log's folder.
    pub fn raft_dir(&self) -> PathBuf {
        self.path.join("raft")
    }
}

/// Opens `path` as data directory, creating it (mode 0700) when it is missing.
pub fn open_data_dir(path: &Path) -> Result<DataDir, OpenError> {
    let io_error = |source| OpenError::Io {
        path: path.to_path_buf(),
        source,
    };
    create_dir_durably(path).map_err(io_error)?;
    // Looked at before the lock file is made: nothing is ever added to a
    // directory that is not ours.
    check_ours_or_empty(path)?;
    let lock = lock(path)?;
    if !path.join(FORMAT).exists() {
        write_format(path).map_err(io_error)?;
    }
    check_format(path)?;
    let dir = DataDir {
        path: path.to_path_buf(),
        _lock: lock,
    };
    create_dir_durably(&dir.raft_dir()).map_err(io_error)?;
    Ok(dir)
}

fn refused(path: &Path, problem: impl Into<String>) -> OpenError {
    OpenError::Refused {
        path: path.to_path_buf(),
        problem: problem.into(),
    }
}

fn check_ours_or_empty(path: &Path) -> Result<(), OpenError> {
    if path.join(FORMAT).exists() {
        return check_format(path);
    }
    let io_error = |source| OpenError::Io {
        path: path.to_path_buf(),
        source,
    };
    let mut foreign = Vec::new();
    for entry in fs::read_dir(path).map_err(io_error)? {
        let name = entry.map_err(io_error)?.file_name();
        // The first two: a first start that was interrupted.
        if ![LOCK, FORMAT_NEW, LOST_AND_FOUND, SELF_MADE]
            .iter()
            .any(|&own| name == *own)
        {
            foreign.push(name);
        }
    }
    if foreign.iter().any(|name| name == "member") {
        return Err(refused(
            path,
            "this is the data directory of an etcd member; stele does not read etcd's files. \
             Give it a directory of its own (--data-dir)",
        ));
    }
    match foreign.first() {
        None => Ok(()),
        Some(name) => {
            let name = name.display();
            Err(refused(
                path,
                format!("not a stele data directory, and not empty (it holds \"{name}\")"),
            ))
        }
    }
}

fn check_format(path: &Path) -> Result<(), OpenError> {
    let text = fs::read_to_string(path.join(FORMAT)).map_err(|source| OpenError::Io {
        path: path.join(FORMAT),
        source,
    })?;
    let version = text
        .trim_end()
        .strip_prefix(FORMAT_PREFIX)
        .and_then(|version| version.parse::<u32>().ok());
    match version {
        Some(FORMAT_VERSION) => Ok(()),
        Some(version) => Err(refused(
            path,
            format!(
                "written in format {version}, this version of stele reads format {FORMAT_VERSION}"
            ),
        )),
        None => Err(refused(
            path,
            format!("the file {FORMAT} is not one that stele writes"),
        )),
    }
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let io_error = |source| OpenError::Io {
        path: path.join(LOCK),
        source,
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path.join(LOCK))
        .map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(refused(path, "in use by another process")),
        Err(TryLockError::Error(source)) => Err(io_error(source)),
    }
}

/// Written aside and renamed, so that a half-written version never counts.
fn write_format(path: &Path) -> io::Result<()> {
    let new = path.join(FORMAT_NEW);
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)?;
    writeln!(file, "{FORMAT_PREFIX}{FORMAT_VERSION}")?;
    file.sync_all()?;
    fs::rename(&new, path.join(FORMAT))?;
    sync_dir(path)
}

/// Creates a directory and its missing parents; each parent is synced, or the
/// new entry could be gone after a power cut.
pub(super) fn create_dir_durably(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = parent_of(path);
    create_dir_durably(parent)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_dir(parent),
    }
}

/// The parent of a bare name is "", which means the working directory.
pub(super) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn problem(path: &Path) -> String {
        open_data_dir(path)
            .expect_err("must be refused")
            .to_string()
    }

    #[test]
    fn a_missing_directory_is_created_private() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        let dir = open_data_dir(&path).unwrap();
        assert_eq!(
            fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert!(dir.raft_dir().is_dir());
        drop(dir);
        open_data_dir(&path).expect("opens again");
    }

    #[test]
    fn a_second_user_is_refused_until_the_first_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let first = open_data_dir(root.path()).unwrap();
        assert!(problem(root.path()).contains("in use by another process"));
        drop(first);
        open_data_dir(root.path()).unwrap();
    }

    #[test]
    fn foreign_directories_are_refused_and_left_alone() {
        let etcd = tempfile::tempdir().unwrap();
        fs::create_dir_all(etcd.path().join("member/snap")).unwrap();
        assert!(problem(etcd.path()).contains("data directory of an etcd member"));
        assert!(!etcd.path().join(LOCK).exists());

        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("thesis.txt"), "precious").unwrap();
        assert!(problem(other.path()).contains("holds \"thesis.txt\""));

        let newer = tempfile::tempdir().unwrap();
        fs::write(newer.path().join(FORMAT), format!("{FORMAT_PREFIX}2\n")).unwrap();
        assert!(problem(newer.path()).contains("written in format 2"));

        let file = tempfile::NamedTempFile::new().unwrap();
        open_data_dir(file.path()).expect_err("a file is no directory");
    }

    #[test]
    fn an_interrupted_first_start_is_finished() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(LOCK), "").unwrap();
        fs::write(root.path().join(FORMAT_NEW), "ste").unwrap();
        fs::create_dir(root.path().join(LOST_AND_FOUND)).unwrap();
        fs::create_dir_all(root.path().join(SELF_MADE).join("client")).unwrap();
        open_data_dir(root.path()).unwrap();
    }
}
