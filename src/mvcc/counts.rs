//! How many keys live where: exact counts without reading the keys.
//!
//! The live keys, in order, are cut into blocks of about 64; the index holds
//! the first possible key of each block (its *fence*) and the number of keys in
//! it. A count of a range is the sum over the blocks that lie wholly within it
//! plus its two edges, which the caller reads: at most two blocks. An overwrite
//! touches nothing here, a create or delete one number.
//!
//! The index belongs to the apply thread ([`CountIndex`]); readers get an
//! immutable [`Counts`] with every commit. The two share structure: a commit
//! copies the groups it touches (some hundred bytes each) and the list of
//! groups, never the fences. So a reader has counts of one exact revision and
//! no lock is shared.
//!
//! It is not derived from scratch at a start: checkpoints of it lie in `Meta`,
//! and the creates and deletes of the log since then are applied to the last.

use super::log_row::LogRow;
use super::range::{KeyRange, RangeEnd};
use super::record;
use super::revision::Revision;
use crate::storage::{Batch, Bounds, Column, Generation, Rows, StorageError, keys};
use bytes::{Buf, Bytes};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A block is split when it has more keys than the maximum, and merged with a
/// neighbour when it has fewer than the minimum and both fit the target.
/// Smaller blocks make cheaper edges and a larger index: at 64 a million keys
/// take 1.5 MB, and an edge costs some 10 us.
/// Tests make do with a few keys.
const TARGET_BLOCK_KEYS: u32 = if cfg!(test) { 4 } else { 64 };
const MAX_BLOCK_KEYS: u32 = TARGET_BLOCK_KEYS * 3 / 2;
const MIN_BLOCK_KEYS: u32 = TARGET_BLOCK_KEYS / 4;

/// Blocks in a group: what a commit copies when it touches one of them.
const MAX_GROUP_BLOCKS: usize = if cfg!(test) { 3 } else { 128 };

/// The counts of one revision; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    revision: i64,
    /// Never empty; the first fence of the first group is the empty key, so
    /// every key lies in a block.
    groups: Arc<Vec<Arc<Group>>>,
}

/// Neighbouring blocks. Fences ascend strictly, also over groups.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    /// Shared by all versions of the group until a block is split or merged.
    fences: Arc<Vec<Bytes>>,
    block_keys: Vec<u32>,
    /// The sum of `block_keys`.
    total: i64,
}

/// The part of a range that needs no reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WholeBlocks {
    /// First key of the part; everything before it in the range is an edge.
    pub(super) first: Bytes,
    /// End of the part, exclusive, and start of the other edge. `None` when
    /// the part reaches to the end of all keys.
    pub(super) last: Option<Bytes>,
    pub(super) keys: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    group: usize,
    block: usize,
}

impl Group {
    fn new(fences: Vec<Bytes>, block_keys: Vec<u32>) -> Group {
        assert_eq!(fences.len(), block_keys.len());
        let total = block_keys.iter().map(|&keys| i64::from(keys)).sum();
        Group {
            fences: Arc::new(fences),
            block_keys,
            total,
        }
    }

    /// Groups of a sensible size from any number of neighbouring blocks.
    fn many(fences: &[Bytes], block_keys: &[u32]) -> Vec<Arc<Group>> {
        let parts = fences.len().div_ceil(MAX_GROUP_BLOCKS).max(1);
        let len = fences.len().div_ceil(parts).max(1);
        fences
            .chunks(len)
            .zip(block_keys.chunks(len))
            .map(|(fences, block_keys)| Arc::new(Group::new(fences.to_vec(), block_keys.to_vec())))
            .collect()
    }
}

impl Counts {
    /// Of a store without keys.
    pub(super) fn empty(revision: i64) -> Counts {
        Counts::from_blocks(revision, &[Bytes::new()], &[0])
    }

    fn from_blocks(revision: i64, fences: &[Bytes], block_keys: &[u32]) -> Counts {
        Counts {
            revision,
            groups: Arc::new(Group::many(fences, block_keys)),
        }
    }

    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    /// All keys. One addition per group: some 200 at a million keys.
    pub(super) fn total(&self) -> i64 {
        self.groups.iter().map(|group| group.total).sum()
    }

    /// The blocks wholly within `range`; `None` when there are none.
    pub(super) fn whole_blocks(&self, range: &KeyRange<'_>) -> Option<WholeBlocks> {
        let first = self.first_fence_from(range.start)?;
        let end = match range.end {
            RangeEnd::Single => return None,
            RangeEnd::Before(end) => self.position(end),
            RangeEnd::Open => Position {
                group: self.groups.len(),
                block: 0,
            },
        };
        if first >= end {
            return None;
        }
        let last = self
            .groups
            .get(end.group)
            .map(|group| group.fences[end.block].clone());
        let first_fence = self.groups[first.group].fences[first.block].clone();
        Some(WholeBlocks {
            first: first_fence,
            last,
            keys: self.sum(first, end),
        })
    }

    /// The block that `key` belongs to, whether or not it is there.
    fn position(&self, key: &[u8]) -> Position {
        let group = self.groups.partition_point(|group| group.fences[0] <= key) - 1;
        let block = self.groups[group]
            .fences
            .partition_point(|fence| fence <= key)
            - 1;
        Position { group, block }
    }

    /// The first block whose fence is `>= key`.
    fn first_fence_from(&self, key: &[u8]) -> Option<Position> {
        let at = self.position(key);
        let group = &self.groups[at.group];
        if group.fences[at.block] == key {
            Some(at)
        } else if at.block + 1 < group.fences.len() {
            Some(Position {
                block: at.block + 1,
                ..at
            })
        } else {
            (at.group + 1 < self.groups.len()).then_some(Position {
                group: at.group + 1,
                block: 0,
            })
        }
    }

    /// Keys in the blocks `first..end`.
    fn sum(&self, first: Position, end: Position) -> i64 {
        let part = |keys: &[u32]| keys.iter().map(|&keys| i64::from(keys)).sum::<i64>();
        let groups = &self.groups;
        if first.group == end.group {
            return part(&groups[first.group].block_keys[first.block..end.block]);
        }
        let head = part(&groups[first.group].block_keys[first.block..]);
        let between: i64 = groups[first.group + 1..end.group]
            .iter()
            .map(|group| group.total)
            .sum();
        let tail = groups
            .get(end.group)
            .map_or(0, |group| part(&group.block_keys[..end.block]));
        head + between + tail
    }

    /// The counts of another revision, in the same blocks: these, corrected by
    /// the creates and deletes between the two, which `log` reads. `None` when
    /// the log does not have them all: a compaction may be dropping its files.
    pub(super) fn as_of<'l>(
        &self,
        revision: i64,
        log: impl FnOnce(Bounds) -> Rows<'l>,
    ) -> Result<Option<Counts>, StorageError> {
        let mut counts = self.clone();
        counts.revision = revision;
        if revision == self.revision {
            return Ok(Some(counts));
        }
        let (older, newer) = (self.revision.min(revision), self.revision.max(revision));
        let sign = if newer == revision { 1 } else { -1 };
        // Summed up before they are applied: backwards, a key that came and went
        // again would leave its block with less than nothing.
        let mut growth = BTreeMap::<Position, i64>::new();
        let is_whole = life_changes(older, newer, log, |change| {
            if change.delta != 0 {
                *growth.entry(self.position(change.key)).or_default() += sign * change.delta;
            }
        })?;
        if !is_whole {
            return Ok(None);
        }
        for (at, delta) in growth.into_iter().filter(|(_, delta)| *delta != 0) {
            if counts.adjust(at, delta).is_none() {
                return Ok(None);
            }
        }
        Ok(Some(counts))
    }

    /// Returns how many keys the block has then. `None`, and nothing is changed,
    /// when more keys would go than it has.
    fn adjust(&mut self, at: Position, delta: i64) -> Option<u32> {
        let group = Arc::make_mut(&mut Arc::make_mut(&mut self.groups)[at.group]);
        let block_keys = &mut group.block_keys[at.block];
        *block_keys = u32::try_from(i64::from(*block_keys) + delta).ok()?;
        group.total += delta;
        Some(*block_keys)
    }
}

/// What a row of the log did to a key's life.
struct LifeChange<'r> {
    key: &'r [u8],
    /// By how much the number of keys changed.
    delta: i64,
    row_bytes: usize,
}

/// Visits the changes after revision `older` up to `newer`, in their order.
/// False when the log does not have them all.
fn life_changes<'l>(
    older: i64,
    newer: i64,
    log: impl FnOnce(Bounds) -> Rows<'l>,
    mut visit: impl FnMut(LifeChange<'_>),
) -> Result<bool, StorageError> {
    let mut rows = log(Bounds::until(keys::log(newer + 1, 0)));
    rows.seek(&keys::log(older + 1, 0));
    let mut seen = older;
    while let Some((key, value)) = rows.row()? {
        let at = Revision::from_log_key(key)?;
        if at.main > seen + 1 {
            return Ok(false);
        }
        seen = at.main;
        let row = LogRow::parse(at, value)?;
        visit(LifeChange {
            key: record::parse_in(Column::Log, key, row.record)?.key,
            delta: i64::from(row.is_create) - i64::from(row.is_tombstone),
            row_bytes: key.len() + value.len(),
        });
        rows.step();
    }
    Ok(seen == newer)
}

/// The index as the apply thread keeps it.
#[derive(Debug)]
pub(super) struct CountIndex {
    counts: Counts,
    /// Fences of blocks that may have become too large or too small.
    unbalanced: BTreeSet<Bytes>,
    /// Revision of the last checkpoint, and its groups: rows that a shorter
    /// next one does not overwrite have to go.
    saved_revision: i64,
    saved_groups: u32,
    /// Bytes of log written since the last checkpoint, see [`CountIndex::is_save_due`].
    log_bytes_since_save: usize,
}

/// The checkpoint's first row: revision (i64), number of groups (u32).
const HEAD_ROW: &[u8] = b"counts";
/// Its other rows: this and the group's number (u32).
const GROUP_ROW_PREFIX: &[u8] = b"counts/";

/// No checkpoint: older than any revision.
const NEVER_SAVED: i64 = -1;

/// At a start, the log since the last checkpoint is read again: some 0.1 s for
/// this many bytes.
const SAVE_EVERY_LOG_BYTES: usize = if cfg!(test) { 2 << 10 } else { 32 << 20 };
/// With many keys a checkpoint is large; it may take a twelfth of what is
/// written. (A fence and its number take about 48 bytes.)
const SAVE_EVERY_LOG_BYTES_PER_BLOCK: usize = if cfg!(test) { 1 } else { 12 * 48 };

impl CountIndex {
    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    fn new(counts: Counts, saved_revision: i64, saved_groups: u32) -> CountIndex {
        CountIndex {
            counts,
            unbalanced: BTreeSet::new(),
            saved_revision,
            saved_groups,
            log_bytes_since_save: 0,
        }
    }

    /// The index as of `revision`, the engine's state.
    ///
    /// From the last checkpoint if the log after it is still whole, which
    /// [`super::compaction`] sees to; else by reading every key once.
    pub(super) fn open(
        generation: &Generation,
        revision: i64,
        compacted_revision: i64,
    ) -> Result<CountIndex, StorageError> {
        let (saved, saved_groups) = load(generation)?.unzip();
        let saved_groups = saved_groups.unwrap_or(0);
        if let Some(counts) = saved
            && (compacted_revision..=revision).contains(&counts.revision)
        {
            let saved_revision = counts.revision;
            let mut index = CountIndex::new(counts, saved_revision, saved_groups);
            if index.replay(generation, revision)? {
                return Ok(index);
            }
        }
        let counts = count_all(generation, revision)?;
        // With no usable checkpoint the next commit makes one, so that the next
        // start need not read every key again.
        Ok(CountIndex::new(counts, NEVER_SAVED, saved_groups))
    }

    /// Applies the log after the index's revision. False when it is not whole.
    fn replay(&mut self, generation: &Generation, revision: i64) -> Result<bool, StorageError> {
        let log = |bounds: Bounds| generation.rows(Column::Log, bounds.bulk());
        let is_whole = life_changes(self.counts.revision, revision, log, |change| {
            if change.delta != 0 {
                self.adjust(change.key, change.delta);
            }
            self.log_bytes_since_save += change.row_bytes;
        })?;
        if is_whole {
            self.advance(generation, revision)?;
        }
        Ok(is_whole)
    }

    /// One key more (1) or less (-1). The engine may show the change already
    /// or not yet; it must at the next [`CountIndex::advance`].
    pub(super) fn adjust(&mut self, key: &[u8], delta: i64) {
        let at = self.counts.position(key);
        let adjusted = self.counts.adjust(at, delta);
        let block_keys = adjusted.expect("a key that goes was counted");
        if !(MIN_BLOCK_KEYS..=MAX_BLOCK_KEYS).contains(&block_keys) {
            let fence = self.counts.groups[at.group].fences[at.block].clone();
            self.unbalanced.insert(fence);
        }
    }

    /// Makes the index one of `revision`, whose state the engine shows now.
    pub(super) fn advance(
        &mut self,
        generation: &Generation,
        revision: i64,
    ) -> Result<(), StorageError> {
        self.counts.revision = revision;
        while let Some(fence) = self.unbalanced.pop_first() {
            let at = self.counts.position(&fence);
            let group = &self.counts.groups[at.group];
            if group.fences[at.block] != fence {
                continue; // Merged away meanwhile.
            }
            if group.block_keys[at.block] > MAX_BLOCK_KEYS {
                self.split(generation, at)?;
            } else if group.block_keys[at.block] < MIN_BLOCK_KEYS {
                self.merge(at);
            }
        }
        Ok(())
    }

    /// Cuts a block into several, at fences that are keys read from it.
    fn split(&mut self, generation: &Generation, at: Position) -> Result<(), StorageError> {
        let group = &self.counts.groups[at.group];
        let end = match group.fences.get(at.block + 1) {
            Some(fence) => Some(fence),
            None => self
                .counts
                .groups
                .get(at.group + 1)
                .map(|group| &group.fences[0]),
        };
        let start = &group.fences[at.block];
        let expected = group.block_keys[at.block];
        // Blocks of one size, rather than some of the target and a rest.
        let block_len = expected.div_ceil(expected.div_ceil(TARGET_BLOCK_KEYS));
        let bounds = Bounds {
            end: end.map(|fence| fence.to_vec()),
            is_bulk: false,
        };
        let blocks = count_blocks(generation.rows(Column::Current, bounds), start, block_len)?;
        let counted: u32 = blocks.iter().map(|(_, keys)| keys).sum();
        if counted != expected {
            let problem = format!("{counted} keys follow, {expected} were counted");
            return Err(StorageError::corrupt(Column::Current, start, problem));
        }
        self.replace(at.group, at.block..at.block + 1, blocks);
        Ok(())
    }

    /// Joins a small block with a neighbour of its group, or, when it is the
    /// group's last, the group with the one before.
    fn merge(&mut self, at: Position) {
        let group = &self.counts.groups[at.group];
        let pair = match at.block {
            0 if group.fences.len() == 1 => return self.join_group_with_previous(at.group),
            0 => 0..2,
            block => block - 1..block + 1,
        };
        let keys = group.block_keys[pair.start] + group.block_keys[pair.start + 1];
        if keys <= TARGET_BLOCK_KEYS {
            let fence = group.fences[pair.start].clone();
            self.replace(at.group, pair, vec![(fence, keys)]);
        }
    }

    fn join_group_with_previous(&mut self, group: usize) {
        if group == 0 {
            return;
        }
        let groups = Arc::make_mut(&mut self.counts.groups);
        let removed = groups.remove(group);
        let previous = &groups[group - 1];
        let mut fences = previous.fences.to_vec();
        let mut block_keys = previous.block_keys.clone();
        fences.extend_from_slice(&removed.fences);
        block_keys.extend_from_slice(&removed.block_keys);
        // The small block now has a neighbour.
        self.unbalanced.extend(removed.fences.iter().cloned());
        groups.splice(group - 1..group, Group::many(&fences, &block_keys));
    }

    fn replace(&mut self, group: usize, blocks: std::ops::Range<usize>, by: Vec<(Bytes, u32)>) {
        let groups = Arc::make_mut(&mut self.counts.groups);
        let (new_fences, new_keys): (Vec<_>, Vec<_>) = by.into_iter().unzip();
        let mut fences = groups[group].fences.to_vec();
        let mut block_keys = groups[group].block_keys.clone();
        fences.splice(blocks.clone(), new_fences);
        block_keys.splice(blocks, new_keys);
        groups.splice(group..=group, Group::many(&fences, &block_keys));
    }

    /// `bytes` more were written to the log.
    pub(super) fn note_log_bytes(&mut self, bytes: usize) {
        self.log_bytes_since_save = self.log_bytes_since_save.saturating_add(bytes);
    }

    /// Is it time for a checkpoint? Also when the log is about to be compacted
    /// beyond the last one, which could then not be brought up to date.
    pub(super) fn is_save_due(&self, compacted_revision: i64) -> bool {
        let blocks = self.counts.groups.len() * MAX_GROUP_BLOCKS;
        let log_bytes = SAVE_EVERY_LOG_BYTES.max(blocks * SAVE_EVERY_LOG_BYTES_PER_BLOCK);
        self.log_bytes_since_save > log_bytes || self.saved_revision < compacted_revision.max(0)
    }

    /// Adds a checkpoint of the index to a batch. It is of the index's own
    /// revision, which may be older than the rest of the batch.
    pub(super) fn save(&mut self, batch: &mut Batch) {
        let groups = u32::try_from(self.counts.groups.len()).expect("fewer than 2^32 groups");
        batch.put_parts(
            Column::Meta,
            HEAD_ROW,
            &[&self.counts.revision.to_be_bytes(), &groups.to_be_bytes()],
        );
        for (number, group) in (0..).zip(self.counts.groups.iter()) {
            let mut row = Vec::new();
            for (fence, keys) in group.fences.iter().zip(&group.block_keys) {
                row.extend_from_slice(&(fence.len() as u32).to_be_bytes());
                row.extend_from_slice(fence);
                row.extend_from_slice(&keys.to_be_bytes());
            }
            batch.put(Column::Meta, &group_row(number), &row);
        }
        for number in groups..self.saved_groups {
            batch.delete(Column::Meta, &group_row(number));
        }
        self.saved_revision = self.counts.revision;
        self.saved_groups = groups;
        self.log_bytes_since_save = 0;
    }
}

fn group_row(number: u32) -> Vec<u8> {
    [GROUP_ROW_PREFIX, &number.to_be_bytes()].concat()
}

/// The last checkpoint and its number of groups.
fn load(generation: &Generation) -> Result<Option<(Counts, u32)>, StorageError> {
    let Some(head) = generation.get(Column::Meta, HEAD_ROW)? else {
        return Ok(None);
    };
    let corrupt = |problem: &str| StorageError::corrupt(Column::Meta, HEAD_ROW, problem);
    let mut head = head.as_slice();
    if head.len() != 12 {
        return Err(corrupt("the row is malformed"));
    }
    let (revision, saved_groups) = (head.get_i64(), head.get_u32());
    let (mut fences, mut block_keys) = (Vec::new(), Vec::new());
    for number in 0..saved_groups {
        let row = generation
            .get(Column::Meta, &group_row(number))?
            .ok_or_else(|| corrupt("a group's row is missing"))?;
        let mut row = Bytes::from(row);
        while row.has_remaining() {
            let fence_len =
                row.try_get_u32()
                    .map_err(|_| corrupt("a group's row is malformed"))? as usize;
            if row.len() < fence_len + size_of::<u32>() {
                return Err(corrupt("a group's row is malformed"));
            }
            fences.push(row.split_to(fence_len));
            block_keys.push(row.get_u32());
        }
    }
    if fences.first().is_none_or(|fence| !fence.is_empty()) || !fences.is_sorted_by(|a, b| a < b) {
        return Err(corrupt("the fences are out of order"));
    }
    Ok(Some((
        Counts::from_blocks(revision, &fences, &block_keys),
        saved_groups,
    )))
}

fn count_all(generation: &Generation, revision: i64) -> Result<Counts, StorageError> {
    let rows = generation.rows(Column::Current, Bounds::default().bulk());
    let (fences, block_keys): (Vec<_>, Vec<_>) = count_blocks(rows, b"", TARGET_BLOCK_KEYS)?
        .into_iter()
        .unzip();
    Ok(Counts::from_blocks(revision, &fences, &block_keys))
}

/// Reads the keys from `start` on and cuts them into blocks of `block_len`,
/// the first of which has `start` as its fence.
fn count_blocks(
    mut rows: Rows<'_>,
    start: &[u8],
    block_len: u32,
) -> Result<Vec<(Bytes, u32)>, StorageError> {
    // The empty key is the store's revision, not a key.
    rows.seek(if start.is_empty() { b"\0" } else { start });
    let mut blocks = vec![(Bytes::copy_from_slice(start), 0)];
    while let Some((key, _)) = rows.row()? {
        match blocks.last_mut() {
            Some((_, keys)) if *keys < block_len => *keys += 1,
            _ => blocks.push((Bytes::copy_from_slice(key), 1)),
        }
        rows.step();
    }
    Ok(blocks)
}
