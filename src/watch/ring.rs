//! The last revisions, in memory.
//!
//! Most watchers that fall behind are behind by little: the ring lets them
//! catch up without a read of the store, and lets the last few revisions be
//! handed over under the hub's lock, where I/O would be out of place. It holds
//! an unbroken run of revisions that ends with the published one, or nothing.

use std::collections::VecDeque;
use std::mem::size_of;
use std::sync::Arc;

use crate::mvcc::{Event, RevisionEvents};

pub(super) struct Ring {
    revisions: VecDeque<Arc<RevisionEvents>>,
    bytes: usize,
    limit_revisions: usize,
    limit_bytes: usize,
}

impl Ring {
    pub(super) fn new(limit_revisions: usize, limit_bytes: usize) -> Ring {
        Ring {
            revisions: VecDeque::new(),
            bytes: 0,
            limit_revisions,
            limit_bytes,
        }
    }

    /// Appends the next revision and forgets the oldest ones beyond the limits,
    /// this one too when it alone is too large.
    pub(super) fn push(&mut self, revision: &RevisionEvents) {
        let is_next = self
            .revisions
            .back()
            .is_none_or(|last| last.revision + 1 == revision.revision);
        if !is_next {
            self.clear();
        }
        self.bytes += footprint(revision);
        self.revisions.push_back(Arc::new(revision.clone()));
        while self.revisions.len() > self.limit_revisions || self.bytes > self.limit_bytes {
            let Some(oldest) = self.revisions.pop_front() else {
                break;
            };
            self.bytes -= footprint(&oldest);
        }
    }

    pub(super) fn clear(&mut self) {
        self.revisions.clear();
        self.bytes = 0;
    }

    /// Up to `max_revisions` revisions from `from` on; `None` when the ring
    /// does not reach back that far.
    pub(super) fn page(
        &self,
        from: i64,
        max_revisions: usize,
    ) -> Option<impl Iterator<Item = &Arc<RevisionEvents>>> {
        let first = self.revisions.front()?.revision;
        let offset = usize::try_from(from.checked_sub(first)?).ok()?;
        (offset < self.revisions.len()).then(|| self.revisions.range(offset..).take(max_revisions))
    }
}

/// Bytes that a revision keeps in memory.
fn footprint(revision: &RevisionEvents) -> usize {
    size_of::<RevisionEvents>()
        + revision
            .events
            .iter()
            .map(|event| size_of::<Event>() + event.key.len() + event.encoded.len())
            .sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(revision: i64) -> RevisionEvents {
        RevisionEvents {
            revision,
            events: Vec::new(),
        }
    }

    fn held(ring: &Ring, from: i64) -> Option<Vec<i64>> {
        Some(ring.page(from, 100)?.map(|entry| entry.revision).collect())
    }

    #[test]
    fn keeps_an_unbroken_run_within_its_limits() {
        let mut ring = Ring::new(3, 1 << 20);
        assert_eq!(held(&ring, 1), None);
        for main in 2..=6 {
            ring.push(&revision(main));
        }
        assert_eq!(held(&ring, 3), None);
        assert_eq!(held(&ring, 4), Some(vec![4, 5, 6]));
        assert_eq!(held(&ring, 6), Some(vec![6]));
        assert_eq!(held(&ring, 7), None);
        ring.push(&revision(9));
        assert_eq!(held(&ring, 6), None);
        assert_eq!(held(&ring, 9), Some(vec![9]));
    }

    #[test]
    fn a_revision_beyond_the_limit_empties_it() {
        let mut ring = Ring::new(100, footprint(&revision(2)) - 1);
        ring.push(&revision(2));
        assert_eq!(held(&ring, 2), None);
        ring.push(&revision(3));
        assert_eq!(held(&ring, 3), None);
        assert_eq!(ring.bytes, 0);
    }
}
