//! What the hub needs of the store, and nothing more.

use crate::mvcc::{EventsPage, ReadError, Store};

/// The revisions of a store, as the hub reads them. The store implements it;
/// tests put a scripted one in its place.
pub trait History: Send + Sync + 'static {
    /// The last committed revision. May be ahead of the published one. Called
    /// under the hub's lock: must not block.
    fn revision(&self) -> i64;

    /// The last compacted revision, below every revision when there is none.
    /// Called under the hub's lock: must not block.
    fn compacted_revision(&self) -> i64;

    /// Whole revisions from `from_revision` on, up to about the limits.
    fn events(
        &self,
        from_revision: i64,
        max_revisions: usize,
        max_bytes: usize,
    ) -> Result<EventsPage, ReadError>;
}

impl History for Store {
    fn revision(&self) -> i64 {
        Store::revision(self)
    }

    fn compacted_revision(&self) -> i64 {
        Store::compacted_revision(self)
    }

    fn events(
        &self,
        from_revision: i64,
        max_revisions: usize,
        max_bytes: usize,
    ) -> Result<EventsPage, ReadError> {
        Store::events(self, from_revision, max_revisions, max_bytes)
    }
}
