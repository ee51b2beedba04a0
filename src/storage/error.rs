//! What can go wrong below the key space.

use super::Column;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A read or a write failed, or what was read cannot have been written by us.
/// Every member keeps its own disk, so none of this may become part of a
/// replicated reply: during apply it stops the member.
#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum StorageError {
    #[error("storage engine: {0}")]
    Engine(String),
    /// The files of the state could not be moved or made durable.
    #[error("{path}: {problem}")]
    Files { path: PathBuf, problem: String },
    #[error("corrupt row in column {column}, key {key}: {problem}")]
    Corrupt {
        column: &'static str,
        key: String,
        problem: String,
    },
}

impl StorageError {
    /// A row that breaks an invariant. The key is shown escaped.
    pub fn corrupt(column: Column, key: &[u8], problem: impl Into<String>) -> StorageError {
        StorageError::Corrupt {
            column: column.name(),
            key: format!("\"{}\"", key.escape_ascii()),
            problem: problem.into(),
        }
    }
}

impl StorageError {
    pub(super) fn files(path: &Path, error: &io::Error) -> StorageError {
        StorageError::Files {
            path: path.to_path_buf(),
            problem: error.to_string(),
        }
    }
}

impl From<rocksdb::Error> for StorageError {
    fn from(error: rocksdb::Error) -> StorageError {
        StorageError::Engine(error.into_string())
    }
}

/// Why a data directory could not be opened; the texts are for an operator.
#[derive(Error, Debug)]
pub enum OpenError {
    #[error("data directory {path}: {problem}")]
    Refused { path: PathBuf, problem: String },
    #[error("data directory {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Storage(#[from] StorageError),
}
