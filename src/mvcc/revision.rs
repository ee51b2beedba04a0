//! Revisions: the store's clock.

use crate::storage::{StorageError, keys};
use std::fmt;

/// One change. `main` counts the commands that changed something, `sub` the
/// changes within one of them (REV-2). Clients see only `main`.
///
/// A new store is at main revision 1 (REV-1), so the first change has main 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Revision {
    pub(super) main: i64,
    pub(super) sub: u32,
}

/// Bytes of an encoded revision.
pub(super) const ENCODED_LEN: usize = keys::REVISION_LEN;

/// The revision of a store without any change.
pub(super) const FIRST_MAIN: i64 = 1;

/// The compacted revision of a store that was never compacted (CMP-2).
pub(super) const NEVER_COMPACTED: i64 = -1;

impl Revision {
    pub(super) fn new(main: i64, sub: u32) -> Revision {
        Revision { main, sub }
    }

    /// The key of its row in the log; also its form inside values.
    pub(super) fn to_bytes(self) -> [u8; keys::REVISION_LEN] {
        keys::log(self.main, self.sub)
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Revision> {
        keys::parse_revision(bytes).map(|(main, sub)| Revision { main, sub })
    }

    pub(super) fn from_log_key(key: &[u8]) -> Result<Revision, StorageError> {
        keys::parse_log(key).map(|(main, sub)| Revision { main, sub })
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.main, self.sub)
    }
}
