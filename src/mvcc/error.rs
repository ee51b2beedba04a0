//! Why the key space does not answer.

use crate::storage::StorageError;
use thiserror::Error;

#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum ReadError {
    /// The revision is below the compacted one (RNG-10).
    #[error("the revision has been compacted")]
    Compacted,
    /// The revision has not been written yet (RNG-9).
    #[error("the revision is in the future")]
    FutureRevision,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum CompactError {
    /// Compacted to this revision or beyond already (CMP-1).
    #[error("the revision has been compacted already")]
    Compacted,
    #[error("the revision is in the future")]
    FutureRevision,
    #[error(transparent)]
    Storage(#[from] StorageError),
}
