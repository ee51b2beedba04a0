//! Raft's view of the log: what is stored, and in front of it the entries that
//! are not known to be there yet or were not handed out for applying.

use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, Storage};

use crate::consensus::snapshot::SnapshotSource;

/// Where entries that have been saved are read again: the log on disk, or the
/// memory of a simulated one.
pub trait StoredLog {
    /// The entries `[low, high)`, or as many of the first ones as fit in
    /// `max_bytes` (at least one).
    fn entries(
        &self,
        low: u64,
        high: u64,
        max_bytes: Option<usize>,
    ) -> Result<Vec<Entry>, raft::Error>;

    fn term(&self, index: u64) -> Result<u64, raft::Error>;
}

/// What a start finds in the log.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Recovered {
    pub hard_state: HardState,
    /// Index and term of the last entry cut off, zero when none was.
    pub truncated: (u64, u64),
    pub last_index: u64,
}

/// Invariants: `recent` is contiguous and ends at `last_index`; what is not in
/// it is stored; nothing at or below `truncated` is asked of the store.
pub(in crate::consensus) struct LogView<L> {
    log: L,
    source: Box<dyn SnapshotSource>,
    start: RaftState,
    /// An index up to which everything is applied, and the members as of it.
    applied: (u64, ConfState),
    truncated: (u64, u64),
    last_index: u64,
    recent: VecDeque<Entry>,
}

impl<L: StoredLog> LogView<L> {
    pub(in crate::consensus) fn new(
        log: L,
        recovered: Recovered,
        applied: (u64, ConfState),
        source: Box<dyn SnapshotSource>,
    ) -> LogView<L> {
        LogView {
            log,
            source,
            start: RaftState::new(recovered.hard_state, applied.1.clone()),
            applied,
            truncated: recovered.truncated,
            last_index: recovered.last_index,
            recent: VecDeque::new(),
        }
    }

    pub(in crate::consensus) fn applied_index(&self) -> u64 {
        self.applied.0
    }

    pub(in crate::consensus) fn truncated_index(&self) -> u64 {
        self.truncated.0
    }

    /// Never lower: while a received state is put in place, what was applied
    /// before it may still be reported.
    pub(in crate::consensus) fn set_applied(&mut self, index: u64) {
        self.applied.0 = self.applied.0.max(index);
    }

    /// The members as of an entry that is applied.
    pub(in crate::consensus) fn set_conf(&mut self, conf: ConfState) {
        self.applied.1 = conf;
    }

    /// Takes entries that are about to be written. A new leader's may replace
    /// some of the last ones.
    pub(in crate::consensus) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index > self.truncated.0 && first.index <= self.last_index + 1,
            "entry {} does not follow {}",
            first.index,
            self.last_index
        );
        while self.recent.back().is_some_and(|e| e.index >= first.index) {
            self.recent.pop_back();
        }
        self.recent.extend(entries.iter().cloned());
        self.last_index = entries[entries.len() - 1].index;
    }

    /// Lets go of entries that are durable and handed on, up to `index`. The
    /// last one stays: raft keeps asking for its term.
    pub(in crate::consensus) fn forget_to(&mut self, index: u64) {
        let index = index.min(self.last_index.saturating_sub(1));
        while self.recent.front().is_some_and(|e| e.index <= index) {
            self.recent.pop_front();
        }
    }

    /// Notes that the entries up to `truncated` are about to be cut off.
    pub(in crate::consensus) fn truncate(&mut self, truncated: (u64, u64)) {
        if truncated.0 > self.truncated.0 {
            self.truncated = truncated;
            while self.recent.front().is_some_and(|e| e.index <= truncated.0) {
                self.recent.pop_front();
            }
        }
    }

    /// Notes that all entries are replaced by a state.
    pub(in crate::consensus) fn restore(&mut self, state: &SnapshotMetadata) {
        self.truncated = (state.index, state.term);
        self.last_index = state.index;
        self.recent.clear();
        self.applied = (state.index, state.get_conf_state().clone());
    }

    #[cfg(test)]
    pub(in crate::consensus) fn recent_len(&self) -> usize {
        self.recent.len()
    }

    fn recent_start(&self) -> u64 {
        let first = self.recent.front();
        first.map_or(self.last_index + 1, |entry| entry.index)
    }
}

impl<L: StoredLog> Storage for LogView<L> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.start.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.truncated.0 {
            return Err(raft::StorageError::Compacted.into());
        }
        assert!(
            high <= self.last_index + 1,
            "entries up to {high} asked for"
        );
        let max_size = max_size.into();
        let recent_start = self.recent_start();
        let mut entries = Vec::new();
        if low < recent_start {
            let stored_high = high.min(recent_start);
            let max_bytes = max_size.map(|max| usize::try_from(max).unwrap_or(usize::MAX));
            entries = self.log.entries(low, stored_high, max_bytes)?;
            if (entries.len() as u64) < stored_high - low {
                return Ok(entries);
            }
        }
        if high > recent_start {
            let from = (low.max(recent_start) - recent_start) as usize;
            let to = (high - recent_start) as usize;
            entries.extend(self.recent.range(from..to).cloned());
        }
        raft::util::limit_size(&mut entries, max_size);
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.truncated.0 {
            return Ok(self.truncated.1);
        }
        if index < self.truncated.0 {
            return Err(raft::StorageError::Compacted.into());
        }
        if index > self.last_index {
            return Err(raft::StorageError::Unavailable.into());
        }
        match index.checked_sub(self.recent_start()) {
            Some(offset) => Ok(self.recent[offset as usize].term),
            None => self.log.term(index),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.truncated.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last_index)
    }

    /// Says what a member gets that is too far behind for entries.
    fn snapshot(&self, _request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let (index, conf) = &self.applied;
        let mut current = SnapshotMetadata {
            index: *index,
            term: self.term(*index)?,
            ..SnapshotMetadata::default()
        };
        current.set_conf_state(conf.clone());
        let offer = self.source.offer(to, &current, self.truncated.0);
        offer.ok_or_else(|| raft::StorageError::SnapshotTemporarilyUnavailable.into())
    }
}
