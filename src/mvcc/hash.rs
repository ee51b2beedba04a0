//! Hashes over the store.
//!
//! HashKV is a checksum over the entries etcd's database would hold, in
//! revision order (MNT-20, MNT-21): after a compaction to C that is, of each
//! key live at the hashed revision, the last put if it is not after C, and then
//! everything after C. The second part is our log. The first is spread over
//! `Current` and the predecessors in the log, in key order. So it is read
//! several times: once to learn how many bytes of records lie in which part of
//! the revisions, and then for each stretch of revisions whose records fit a
//! fixed amount of memory, where they are sorted.

use super::ReadError;
use super::counts::Counts;
use super::history::HistorySource;
use super::log_row::LogRow;
use super::meta;
use super::range::KeyRange;
use super::record;
use super::revision::{NEVER_COMPACTED, Revision};
use super::shared::Shared;
use super::source::Source;
use crate::storage::{Bounds, Column, Snapshot, StorageError, keys};
use std::ops::Range;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    pub hash: u32,
    /// -1 when nothing was ever compacted.
    pub compact_revision: i64,
    /// The revision that was hashed.
    pub hash_revision: i64,
    /// The store's revision, for the header.
    pub revision: i64,
}

/// What the checksum begins with: the name of etcd's bucket.
const SEED: &[u8] = b"key";

/// Memory for the records of one pass over the live keys. A million keys of 256
/// bytes take five passes of a quarter of a second, and the one before.
const PASS_BYTES: usize = 64 << 20;

/// Parts of the revisions whose records are measured separately: half a
/// megabyte of numbers. Tests make do with a few.
const PARTS: i64 = if cfg!(test) { 4 } else { 1 << 16 };

/// A compaction may drop the log under a running hash, which then starts
/// again. Compactions are minutes apart; this many in a row is a broken clock.
const MAX_ATTEMPTS: usize = 5;

pub(super) fn hash_kv(shared: &Arc<Shared>, revision: i64) -> Result<HashKv, ReadError> {
    hash_kv_within(shared, revision, PASS_BYTES)
}

pub(super) fn hash_kv_within(
    shared: &Arc<Shared>,
    revision: i64,
    pass_bytes: usize,
) -> Result<HashKv, ReadError> {
    for _ in 1..MAX_ATTEMPTS {
        match Hashing::start(shared, revision, pass_bytes)?.run() {
            // Not readable any more, or only not from that snapshot?
            Err(ReadError::Compacted) => {}
            result => return result,
        }
    }
    Hashing::start(shared, revision, pass_bytes)?.run()
}

/// A hash being computed, from a snapshot.
struct Hashing {
    shared: Arc<Shared>,
    snapshot: Snapshot,
    /// The snapshot's.
    revision: i64,
    compacted_revision: i64,
    hash_revision: i64,
    pass_bytes: usize,
}

impl Hashing {
    fn start(shared: &Arc<Shared>, revision: i64, pass_bytes: usize) -> Result<Hashing, ReadError> {
        let snapshot = shared.load().generation.snapshot();
        let stored_revision = match snapshot.get(Column::Current, keys::REVISION)? {
            Some(value) => record::current_row::parse_revision(&value)?,
            None => {
                return Err(StorageError::corrupt(
                    Column::Current,
                    keys::REVISION,
                    "the row is missing",
                )
                .into());
            }
        };
        let compacted_revision = match snapshot.get(Column::Meta, meta::COMPACT_SCHEDULED)? {
            Some(value) => meta::parse_revision(meta::COMPACT_SCHEDULED, &value)?,
            None => NEVER_COMPACTED,
        };
        if revision > 0 && revision < compacted_revision {
            return Err(ReadError::Compacted);
        }
        if revision > stored_revision {
            return Err(ReadError::FutureRevision);
        }
        Ok(Hashing {
            shared: Arc::clone(shared),
            snapshot,
            revision: stored_revision,
            compacted_revision,
            // A negative revision comes before every entry, as in etcd.
            hash_revision: if revision == 0 {
                stored_revision
            } else {
                revision
            },
            pass_bytes,
        })
    }

    fn run(&self) -> Result<HashKv, ReadError> {
        let mut hash = crc32c::crc32c(SEED);
        if self.hash_revision > 0 && self.compacted_revision > 0 {
            // MNT-21: with no key live, the exclusion of what later entries
            // replaced is skipped, and the keys live at the compaction count.
            let is_any_live = self.hash_live(self.hash_revision, &mut hash)?;
            if !is_any_live {
                self.hash_live(self.compacted_revision, &mut hash)?;
            }
        }
        if self.hash_revision > 0 {
            self.hash_log(&mut hash)?;
        }
        if self.shared.load().compacted_revision > self.compacted_revision {
            // The log may have been incomplete.
            return Err(ReadError::Compacted);
        }
        Ok(HashKv {
            hash,
            compact_revision: self.compacted_revision,
            hash_revision: self.hash_revision,
            revision: self.revision,
        })
    }

    /// Hashes the last put of each key live at `revision` if it is not after
    /// the compacted revision. False when no key is live there at all.
    fn hash_live(&self, revision: i64, hash: &mut u32) -> Result<bool, ReadError> {
        self.hash_stretch(revision, 1..self.compacted_revision + 1, hash)
    }

    /// As [`Hashing::hash_live`], of the puts at the main revisions `stretch`.
    fn hash_stretch(
        &self,
        revision: i64,
        stretch: Range<i64>,
        hash: &mut u32,
    ) -> Result<bool, ReadError> {
        let mut survey = Survey::new(stretch);
        let is_any_live = self.read_live(revision, |at, record| survey.add(at, record))?;
        for (stretch, bytes) in survey.stretches(self.pass_bytes) {
            let is_divisible = stretch.end - stretch.start > 1;
            if bytes > self.pass_bytes && is_divisible {
                self.hash_stretch(revision, stretch, hash)?;
                continue;
            }
            let mut pass = Pass::new(bytes);
            self.read_live(revision, |at, record| {
                if stretch.contains(&at.main) {
                    pass.add(at, record);
                }
            })?;
            pass.hash(hash);
        }
        Ok(is_any_live)
    }

    /// Visits the last put of each key live at `revision`, in key order. False
    /// when there is none.
    fn read_live(
        &self,
        revision: i64,
        mut visit: impl FnMut(Revision, &[u8]),
    ) -> Result<bool, ReadError> {
        let start = KeyRange::all().start;
        let mut is_any_live = false;
        if revision == self.revision {
            let bounds = Bounds::default().bulk();
            let mut rows = self.snapshot.rows(Column::Current, bounds);
            rows.seek(start);
            while let Some((key, value)) = rows.row()? {
                let (sub, record) = record::current_row::parse(key, value)?;
                visit(put_at(key, sub, record)?, record);
                is_any_live = true;
                rows.step();
            }
        } else {
            let range = KeyRange::all();
            // Reading everything, there is nothing to count.
            let counts = Counts::empty(self.revision);
            let mut source =
                HistorySource::new(&self.snapshot, &self.shared, revision, &range, &counts);
            source.seek(start, None)?;
            while let Some(row) = source.next()? {
                visit(put_at(row.key, row.sub, row.record)?, row.record);
                is_any_live = true;
            }
        }
        Ok(is_any_live)
    }

    /// Hashes the log after the compacted revision.
    fn hash_log(&self, hash: &mut u32) -> Result<(), ReadError> {
        let end = keys::log(self.hash_revision + 1, 0);
        let mut rows = self.snapshot.rows(Column::Log, Bounds::until(end).bulk());
        rows.seek(&keys::log(self.compacted_revision.max(0) + 1, 0));
        while let Some((key, value)) = rows.row()? {
            let at = Revision::from_log_key(key)?;
            let row = LogRow::parse(at, value)?;
            let record = if row.is_tombstone {
                // etcd stores a tombstone with its key alone.
                let fields = record::parse_in(Column::Log, key, row.record)?;
                &row.record[..fields.after_key]
            } else {
                row.record
            };
            append_entry(hash, at, row.is_tombstone, record);
            rows.step();
        }
        Ok(())
    }
}

/// Where a live key was last put.
fn put_at(key: &[u8], sub: u32, record: &[u8]) -> Result<Revision, StorageError> {
    let main = record::parse_in(Column::Current, key, record)?.mod_revision;
    Ok(Revision::new(main, sub))
}

/// How many bytes of records lie where in a stretch of main revisions.
struct Survey {
    stretch: Range<i64>,
    /// Revisions of a part, the last of which may have fewer.
    part_len: i64,
    part_bytes: Vec<usize>,
}

impl Survey {
    fn new(stretch: Range<i64>) -> Survey {
        let len = stretch.end - stretch.start;
        let part_len = (len + PARTS - 1) / PARTS;
        let parts = (len + part_len - 1) / part_len;
        Survey {
            stretch,
            part_len,
            part_bytes: vec![0; parts as usize],
        }
    }

    fn add(&mut self, at: Revision, record: &[u8]) {
        if self.stretch.contains(&at.main) {
            let part = (at.main - self.stretch.start) / self.part_len;
            self.part_bytes[part as usize] += Pass::bytes(record);
        }
    }

    /// Neighbouring stretches that hold at most `max_bytes`, each with its
    /// bytes; more only where a single part does. Those without any are left
    /// out.
    fn stretches(&self, max_bytes: usize) -> Vec<(Range<i64>, usize)> {
        let mut stretches: Vec<(Range<i64>, usize)> = Vec::new();
        let mut start = self.stretch.start;
        for &bytes in &self.part_bytes {
            let end = (start + self.part_len).min(self.stretch.end);
            match stretches.last_mut() {
                _ if bytes == 0 => {}
                Some((last, sum)) if *sum + bytes <= max_bytes => {
                    last.end = end;
                    *sum += bytes;
                }
                _ => stretches.push((start..end, bytes)),
            }
            start = end;
        }
        stretches
    }
}

/// The records of one pass.
struct Pass {
    bytes: Vec<u8>,
    /// Each with its start and end in `bytes`.
    records: Vec<(Revision, usize, usize)>,
}

impl Pass {
    /// What a record takes.
    fn bytes(record: &[u8]) -> usize {
        record.len() + size_of::<(Revision, usize, usize)>()
    }

    fn new(bytes: usize) -> Pass {
        Pass {
            bytes: Vec::with_capacity(bytes),
            records: Vec::new(),
        }
    }

    fn add(&mut self, at: Revision, record: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(record);
        self.records.push((at, start, self.bytes.len()));
    }

    fn hash(mut self, hash: &mut u32) {
        self.records.sort_unstable_by_key(|&(at, ..)| at);
        for &(at, start, end) in &self.records {
            append_entry(hash, at, false, &self.bytes[start..end]);
        }
    }
}

/// One entry as etcd's database has it: the revision as key, marked when it is
/// a tombstone, and the record.
fn append_entry(hash: &mut u32, at: Revision, is_tombstone: bool, record: &[u8]) {
    let mut key = [0; 18];
    key[..8].copy_from_slice(&at.main.to_be_bytes());
    key[8] = b'_';
    key[9..17].copy_from_slice(&i64::from(at.sub).to_be_bytes());
    key[17] = b't';
    let key_len = if is_tombstone { 18 } else { 17 };
    *hash = crc32c::crc32c_append(*hash, &key[..key_len]);
    *hash = crc32c::crc32c_append(*hash, record);
}

/// A hash over the keys and records of the present, with its revision.
pub(super) fn hash(shared: &Shared) -> Result<u32, StorageError> {
    let published = shared.load();
    let mut rows = published
        .generation
        .rows(Column::Current, Bounds::default().bulk());
    let mut hash = 0;
    rows.seek(keys::REVISION);
    while let Some((key, value)) = rows.row()? {
        hash = crc32c::crc32c_append(hash, key);
        hash = crc32c::crc32c_append(hash, value);
        rows.step();
    }
    Ok(hash)
}
