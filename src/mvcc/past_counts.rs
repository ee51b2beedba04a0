//! The counts of a few revisions that are past.
//!
//! A list in pages asks with every page how many keys are left, at the revision
//! of the first one. The counts of that revision follow from those of any other
//! and what the log says of the time between, which takes about half a
//! microsecond a change. So what was found is kept, for the pages to come and
//! for other lists that began at about the same time.

use super::counts::Counts;
use parking_lot::Mutex;

/// Shared by all readers, and held only to look something up. The counts of a
/// revision are the same whoever finds them, and whichever state they are from.
#[derive(Default)]
pub(super) struct PastCounts {
    /// Oldest first.
    kept: Mutex<Vec<Counts>>,
}

impl PastCounts {
    /// They share most of their memory: one for itself holds a few kilobytes,
    /// for each block of keys that has changed a handful of bytes, and at worst,
    /// when all blocks have been cut anew since, a whole index.
    const MAX_KEPT: usize = 8;

    /// Of those kept and the `current` ones the counts with the least to correct
    /// for `revision`. Those that were compacted cannot be corrected any more.
    pub(super) fn nearest(
        &self,
        revision: i64,
        current: &Counts,
        compacted_revision: i64,
    ) -> Counts {
        let mut kept = self.kept.lock();
        kept.retain(|counts| counts.revision() >= compacted_revision);
        let distance = |counts: &Counts| counts.revision().abs_diff(revision);
        kept.iter()
            .min_by_key(|counts| distance(counts))
            .filter(|counts| distance(counts) < distance(current))
            .unwrap_or(current)
            .clone()
    }

    pub(super) fn keep(&self, counts: Counts) {
        let mut kept = self.kept.lock();
        kept.retain(|earlier| earlier.revision() != counts.revision());
        if kept.len() == PastCounts::MAX_KEPT {
            kept.remove(0);
        }
        kept.push(counts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_are_found_among_the_last_that_are_not_compacted() {
        let past = PastCounts::default();
        let nearest = |revision, compacted_revision| {
            past.nearest(revision, &Counts::empty(100), compacted_revision)
                .revision()
        };
        assert_eq!(nearest(5, -1), 100);
        for revision in [10, 20, 30, 40, 50, 60, 70, 80, 30, 90] {
            past.keep(Counts::empty(revision));
        }
        // One of 30 went for the other, 10 for 90.
        assert_eq!(nearest(10, -1), 20);
        assert_eq!(nearest(33, -1), 30);
        assert_eq!(nearest(96, -1), 100);
        assert_eq!(nearest(94, -1), 90);
        assert_eq!(nearest(33, 31), 40);
        past.keep(Counts::empty(95));
        assert_eq!(nearest(20, -1), 40, "compacted, and gone for good");
    }
}
