//! What the apply thread tells readers.

use super::counts::Counts;
use super::past_counts::PastCounts;
use super::revision::NEVER_COMPACTED;
use crate::storage::{Engine, Generation};
use arc_swap::{ArcSwap, Guard};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// One per store, shared by the writer and every reader. Readers and the writer
/// take no lock of each other's: a commit replaces the published state as a
/// whole, and so does the install of another member's state.
pub(super) struct Shared {
    /// For its sizes, and for the writer. What is read is read from the
    /// published generation.
    pub(super) engine: Arc<Engine>,
    published: ArcSwap<Published>,
    pub(super) past_counts: PastCounts,
    finished_revision: AtomicI64,
}

/// The state as of the last commit. One load of it gives a reader what belongs
/// together, also while another state takes this one's place.
#[derive(Clone)]
pub(super) struct Published {
    /// Shows the revision below, or a later one: a write comes first.
    pub(super) generation: Arc<Generation>,
    pub(super) revision: i64,
    pub(super) compacted_revision: i64,
    pub(super) counts: Counts,
}

impl Shared {
    pub(super) fn new(engine: Arc<Engine>, published: Published) -> Shared {
        Shared {
            engine,
            published: ArcSwap::from_pointee(published),
            past_counts: PastCounts::default(),
            finished_revision: AtomicI64::new(NEVER_COMPACTED),
        }
    }

    pub(super) fn load(&self) -> Guard<Arc<Published>> {
        self.published.load()
    }

    /// Only after the write that made it true: what is published can be read.
    pub(super) fn publish(&self, published: Published) {
        self.published.store(Arc::new(published));
    }

    /// Up to which revision a compaction has removed what it removes.
    pub(super) fn finished_revision(&self) -> i64 {
        self.finished_revision.load(Ordering::Acquire)
    }

    pub(super) fn set_finished_revision(&self, revision: i64) {
        self.finished_revision.store(revision, Ordering::Release);
    }
}
