//! The raft log on disk, and raft's view of it.
//!
//! Owns the raft-engine instance and what stands in it: entries, the hard
//! state, whose log it is, and where it was cut off. [`Log`] is shared by the
//! threads that write, trim and read it. Who the members are is not here but in
//! the machine's state, as of what is applied.
//!
//! | key | value |
//! |---|---|
//! | `hard-state` | raft's `HardState`: term, vote, commit index |
//! | `conf-state` | a `ConfState` with one voter: the member whose log it is |
//! | `truncated` | `SnapshotMetadata`: index and term of the last entry cut off |
//! | `installing` | `SnapshotMetadata`: of a received state that may be in place already, though the log does not begin after it yet |
//!
//! The first three are written again with every cut, so that no old file is
//! kept alive for their sake. A commit index is worth a write of its own only
//! when it covers a change of the members; otherwise it goes with the next
//! entries, and after a crash it is found out again.
//!
//! A received state takes the place of the old one in three steps, each
//! durable before the next: the note `installing`, the state, a log that is
//! empty and begins after it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState, SnapshotMetadata};
use raft_engine::{Command, LogBatch, MessageExt, ReadableSize, RecoveryMode};
use thiserror::Error;

use super::replica::{Recovered, StoredLog};
use crate::metrics;

/// raft-engine holds many groups; we are one.
const GROUP: u64 = 1;

const HARD_STATE: &[u8] = b"hard-state";
const OWNER: &[u8] = b"conf-state";
const TRUNCATED: &[u8] = b"truncated";
const INSTALLING: &[u8] = b"installing";

/// Size of one file. A change of file costs three syncs, a bigger file a
/// longer wait until its space comes back.
const FILE_BYTES: u64 = 32 << 20;

/// Files beyond this are given back once nothing in them is needed. Together
/// with up to three files kept for reuse, a quiet log takes some 160 MB.
const PURGE_THRESHOLD_BYTES: u64 = 2 * FILE_BYTES;

/// A read or write of the log failed. After a failed write or sync nobody
/// knows what is on disk: the member must stop (invariant 8).
#[derive(Debug, Error)]
pub enum LogError {
    #[error("the path of the raft log is not valid UTF-8: {0}")]
    Path(PathBuf),
    #[error("opening the raft log: {0}")]
    Open(#[source] raft_engine::Error),
    #[error("reading the raft log: {0}")]
    Read(#[source] raft_engine::Error),
    #[error("writing the raft log: {0}")]
    Write(#[source] raft_engine::Error),
    /// raft-engine panics when a sync fails.
    #[error("syncing the raft log: {0}")]
    Sync(String),
    /// Whoever got that error has reported it.
    #[error("an earlier write of the raft log has failed")]
    FailedBefore,
}

/// Tells raft-engine how to read an entry's index.
struct EntryExt;

impl MessageExt for EntryExt {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// A log as a start finds it. Besides the real one there may be a simulated.
pub trait OpenedLog: StoredLog {
    /// The member whose log this is; `None` when the log is new.
    fn owner(&self) -> Result<Option<u64>, LogError>;

    /// Writes what raft starts from in a new log, and syncs it.
    fn bootstrap(&self, start: &Recovered, owner: u64) -> Result<(), LogError>;

    /// Reads what a restart needs.
    fn recover(&self) -> Result<Recovered, LogError>;

    /// Index and term of the received state that was being put in place when
    /// the last run ended.
    fn installing(&self) -> Result<Option<(u64, u64)>, LogError>;

    /// Makes the log empty, beginning after a state of that index and term
    /// which is in place, and syncs it. Term and vote stay what they were.
    fn restart_after(&self, state: (u64, u64), owner: u64) -> Result<(), LogError>;
}

/// The log on disk. Calls block; only the log writer syncs, or the drive loop
/// in its place.
pub(super) struct Log {
    engine: Arc<raft_engine::Engine>,
    has_failed: AtomicBool,
}

/// What to write together.
#[derive(Default)]
pub(super) struct Append {
    batch: LogBatch,
}

impl Log {
    /// Opens the log in `dir`, which is created if it is missing. A torn
    /// write at the very end is cut off; it cannot have been acknowledged.
    pub(super) fn open(dir: &Path) -> Result<Log, LogError> {
        let path = dir.to_str().ok_or_else(|| LogError::Path(dir.into()))?;
        let config = raft_engine::Config {
            dir: path.to_owned(),
            recovery_mode: RecoveryMode::TolerateTailCorruption,
            recovery_threads: 2,
            // Compressing costs the writer more time than it saves in bytes.
            batch_compression_threshold: ReadableSize(0),
            target_file_size: ReadableSize(FILE_BYTES),
            purge_threshold: ReadableSize(PURGE_THRESHOLD_BYTES),
            enable_log_recycle: true,
            ..raft_engine::Config::default()
        };
        let engine = raft_engine::Engine::open(config).map_err(LogError::Open)?;
        Ok(Log {
            engine: Arc::new(engine),
            has_failed: AtomicBool::new(false),
        })
    }

    /// What stands there now.
    pub(super) fn hard_state(&self) -> Result<HardState, LogError> {
        Ok(self.message(HARD_STATE)?.unwrap_or_default())
    }

    fn message<M: protobuf::Message>(&self, key: &[u8]) -> Result<Option<M>, LogError> {
        self.engine.get_message(GROUP, key).map_err(LogError::Read)
    }

    /// Writes everything in `append`; when `sync` is set it is durable on
    /// return.
    pub(super) fn write(&self, mut append: Append, sync: bool) -> Result<(), LogError> {
        raft_engine::take_perf_context();
        let bytes = self.guarded(|engine| engine.write(&mut append.batch, sync))?;
        let spent = raft_engine::get_perf_context();
        metrics::DISK_WAL_WRITE_BYTES_TOTAL.add(bytes as i64);
        metrics::DISK_WAL_WRITE_DURATION_SECONDS.observe(spent.log_write_duration.as_secs_f64());
        if sync {
            metrics::DISK_WAL_FSYNC_DURATION_SECONDS.observe(spent.log_sync_duration.as_secs_f64());
        }
        Ok(())
    }

    /// Gives back files that hold nothing needed any more. May write, so not
    /// from a thread that others wait for.
    pub(super) fn purge(&self) -> Result<(), LogError> {
        self.guarded(raft_engine::Engine::purge_expired_files)
            .map(drop)
    }

    /// Runs something that writes. After a failure nothing is written any more,
    /// by whichever thread, and the instance is left as it is until the process
    /// ends: closing it would sync again, and that one must not succeed by luck.
    fn guarded<T>(
        &self,
        write: impl FnOnce(&raft_engine::Engine) -> raft_engine::Result<T>,
    ) -> Result<T, LogError> {
        if self.has_failed.load(Ordering::Acquire) {
            return Err(LogError::FailedBefore);
        }
        let written = match catch_unwind(AssertUnwindSafe(|| write(&self.engine))) {
            Ok(written) => written.map_err(LogError::Write),
            Err(panic) => Err(LogError::Sync(panic_text(&*panic))),
        };
        if written.is_err() {
            self.has_failed.store(true, Ordering::Release);
            std::mem::forget(self.engine.clone());
        }
        written
    }
}

impl StoredLog for Arc<Log> {
    fn entries(
        &self,
        low: u64,
        high: u64,
        max_bytes: Option<usize>,
    ) -> Result<Vec<Entry>, raft::Error> {
        let mut entries = Vec::new();
        self.engine
            .fetch_entries_to::<EntryExt>(GROUP, low, high, max_bytes, &mut entries)
            .map_err(storage_error)?;
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64, raft::Error> {
        let entry = self.engine.get_entry::<EntryExt>(GROUP, index);
        match entry.map_err(storage_error)? {
            Some(entry) => Ok(entry.term),
            None => Err(raft::StorageError::Unavailable.into()),
        }
    }
}

impl OpenedLog for Arc<Log> {
    fn owner(&self) -> Result<Option<u64>, LogError> {
        let owner: Option<ConfState> = self.message(OWNER)?;
        Ok(owner.and_then(|owner| owner.voters.first().copied()))
    }

    fn bootstrap(&self, start: &Recovered, owner: u64) -> Result<(), LogError> {
        let mut append = Append::default();
        append.set_hard_state(&start.hard_state)?;
        append.truncate(start.truncated, owner)?;
        self.write(append, true)
    }

    fn recover(&self) -> Result<Recovered, LogError> {
        let truncated: SnapshotMetadata = self.message(TRUNCATED)?.unwrap_or_default();
        let last_index = self.engine.last_index(GROUP);
        Ok(Recovered {
            hard_state: self.message(HARD_STATE)?.unwrap_or_default(),
            last_index: last_index.unwrap_or(truncated.index),
            truncated: (truncated.index, truncated.term),
        })
    }

    fn installing(&self) -> Result<Option<(u64, u64)>, LogError> {
        let state: Option<SnapshotMetadata> = self.message(INSTALLING)?;
        Ok(state.map(|state| (state.index, state.term)))
    }

    fn restart_after(&self, state: (u64, u64), owner: u64) -> Result<(), LogError> {
        let mut append = Append::default();
        append.restart_after(state, owner, self.hard_state()?)?;
        self.write(append, true)
    }
}

impl Append {
    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Adds entries; those from the first one's index on are replaced.
    pub(super) fn add_entries(&mut self, entries: &[Entry]) -> Result<(), LogError> {
        self.batch
            .add_entries::<EntryExt>(GROUP, entries)
            .map_err(LogError::Write)
    }

    pub(super) fn set_hard_state(&mut self, hard_state: &HardState) -> Result<(), LogError> {
        self.put(HARD_STATE, hard_state)
    }

    /// Cuts off the entries up to `truncated`, given as index and term.
    pub(super) fn truncate(&mut self, truncated: (u64, u64), owner: u64) -> Result<(), LogError> {
        let index = truncated.0 + 1;
        self.batch.add_command(GROUP, Command::Compact { index });
        self.put(TRUNCATED, &metadata(truncated))?;
        let owner = ConfState {
            voters: vec![owner],
            ..ConfState::default()
        };
        self.put(OWNER, &owner)
    }

    /// Notes that a received state is about to take the place of the old one.
    pub(super) fn set_installing(&mut self, state: (u64, u64)) -> Result<(), LogError> {
        self.put(INSTALLING, &metadata(state))
    }

    /// Removes everything; the log begins after `state`. `hard_state` is what
    /// stood there: its term and vote stay.
    pub(super) fn restart_after(
        &mut self,
        state: (u64, u64),
        owner: u64,
        mut hard_state: HardState,
    ) -> Result<(), LogError> {
        if hard_state.term < state.1 {
            (hard_state.term, hard_state.vote) = (state.1, 0);
        }
        hard_state.commit = state.0;
        self.batch.add_command(GROUP, Command::Clean);
        self.set_hard_state(&hard_state)?;
        self.truncate(state, owner)
    }

    fn put(&mut self, key: &[u8], message: &impl protobuf::Message) -> Result<(), LogError> {
        self.batch
            .put_message(GROUP, key.to_vec(), message)
            .map_err(LogError::Write)
    }
}

fn metadata((index, term): (u64, u64)) -> SnapshotMetadata {
    SnapshotMetadata {
        index,
        term,
        ..SnapshotMetadata::default()
    }
}

/// The text of a panic; for reporting what another crate gave up over.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("panicked").to_owned()
}

fn storage_error(error: raft_engine::Error) -> raft::Error {
    match error {
        raft_engine::Error::EntryCompacted => raft::StorageError::Compacted.into(),
        raft_engine::Error::EntryNotFound => raft::StorageError::Unavailable.into(),
        error => raft::Error::Store(raft::StorageError::Other(error.into())),
    }
}

/// Bytes an entry takes in the log, near enough for pacing.
pub(super) fn entry_bytes(entry: &Entry) -> usize {
    entry.compute_size() as usize
}

#[cfg(test)]
mod tests {
    use raft::{GetEntriesContext, Storage as _};
    use tempfile::TempDir;

    use super::*;
    use crate::consensus::NoSnapshots;
    use crate::consensus::replica::LogView;

    const OWNER: u64 = 1;

    fn entry(index: u64, term: u64) -> Entry {
        let mut entry = Entry::default();
        (entry.index, entry.term) = (index, term);
        entry.data = format!("data of {index} in {term}").into_bytes().into();
        entry
    }

    fn entries(range: std::ops::Range<u64>, term: u64) -> Vec<Entry> {
        range.map(|index| entry(index, term)).collect()
    }

    fn start() -> Recovered {
        let mut start = Recovered::default();
        start.hard_state.term = 1;
        start
    }

    fn open(dir: &TempDir) -> Arc<Log> {
        Arc::new(Log::open(dir.path()).unwrap())
    }

    /// A new log, in a directory that goes with the first of the two.
    fn begun() -> (TempDir, Arc<Log>) {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir);
        log.bootstrap(&start(), OWNER).unwrap();
        (dir, log)
    }

    fn view_of(log: &Arc<Log>) -> LogView<Arc<Log>> {
        let recovered = log.recover().unwrap();
        LogView::new(
            log.clone(),
            recovered,
            Default::default(),
            Box::new(NoSnapshots),
        )
    }

    fn write(log: &Log, entries: &[Entry]) {
        let mut append = Append::default();
        append.add_entries(entries).unwrap();
        log.write(append, true).unwrap();
    }

    fn truncate(log: &Log, truncated: (u64, u64)) {
        let mut append = Append::default();
        append.truncate(truncated, OWNER).unwrap();
        log.write(append, false).unwrap();
    }

    fn read(
        view: &LogView<Arc<Log>>,
        low: u64,
        high: u64,
        max: Option<u64>,
    ) -> raft::Result<Vec<Entry>> {
        view.entries(low, high, max, GetEntriesContext::empty(false))
    }

    #[test]
    fn nothing_is_written_after_a_failure() {
        let (_dir, log) = begun();
        write(&log, &entries(1..3, 2));
        let failed = log.guarded::<()>(|_| panic!("injected"));
        assert!(matches!(failed, Err(LogError::Sync(text)) if text == "injected"));
        let mut append = Append::default();
        append.add_entries(&entries(3..4, 2)).unwrap();
        let refused = log.write(append, true);
        assert!(matches!(refused, Err(LogError::FailedBefore)));
        assert!(matches!(log.purge(), Err(LogError::FailedBefore)));
        assert_eq!(log.recover().unwrap().last_index, 2);
    }

    #[test]
    fn reopens_with_everything_synced() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir);
        assert_eq!(log.owner().unwrap(), None);
        log.bootstrap(&start(), OWNER).unwrap();
        assert_eq!(log.recover().unwrap(), start());
        assert_eq!(log.owner().unwrap(), Some(OWNER));
        write(&log, &entries(1..11, 2));
        let mut hard_state = HardState::default();
        (hard_state.term, hard_state.vote, hard_state.commit) = (2, 1, 9);
        let mut append = Append::default();
        append.set_hard_state(&hard_state).unwrap();
        append.add_entries(&entries(11..21, 2)).unwrap();
        log.write(append, true).unwrap();
        drop(log);

        let log = open(&dir);
        let recovered = log.recover().unwrap();
        assert_eq!(recovered.hard_state, hard_state);
        assert_eq!(recovered.last_index, 20);
        let view = view_of(&log);
        assert_eq!(read(&view, 1, 21, None).unwrap(), entries(1..21, 2));
        assert_eq!(view.term(20).unwrap(), 2);
        assert_eq!(view.first_index().unwrap(), 1);
    }

    #[test]
    fn a_new_term_replaces_the_tail() {
        let (dir, log) = begun();
        write(&log, &entries(1..11, 2));
        let mut view = view_of(&log);
        view.append(&entries(6..9, 3));
        assert_eq!(view.last_index().unwrap(), 8);
        let mut expected = entries(1..6, 2);
        expected.extend(entries(6..9, 3));
        assert_eq!(read(&view, 1, 9, None).unwrap(), expected);
        write(&log, &entries(6..9, 3));
        view.forget_to(8);
        assert_eq!(view.recent_len(), 1, "the last entry stays in memory");
        assert_eq!(read(&view, 1, 9, None).unwrap(), expected);
        drop((view, log));

        let log = open(&dir);
        assert_eq!(log.recover().unwrap().last_index, 8);
    }

    #[test]
    fn entries_are_limited_but_never_none() {
        let (_dir, log) = begun();
        write(&log, &entries(1..6, 2));
        let mut view = view_of(&log);
        view.append(&entries(6..11, 2));
        let one = entry_bytes(&entry(1, 2)) as u64;
        for low in 1..11 {
            for max in [0, 1, one, one * 3, one * 100] {
                let got = read(&view, low, 11, Some(max)).unwrap();
                assert!(!got.is_empty());
                assert_eq!(got, entries(low..low + got.len() as u64, 2));
                let bytes: usize = got.iter().map(entry_bytes).sum();
                assert!(got.len() == 1 || bytes as u64 <= max + one, "{low} {max}");
            }
        }
    }

    #[test]
    fn cutting_off_survives_a_restart_and_gives_space_back() {
        let (dir, log) = begun();
        let mut view = view_of(&log);
        let bulk = vec![7_u8; 1 << 20];
        // Some 250 MB through a log that is cut off every 25 MB.
        for round in 0..10 {
            for i in 0..25 {
                let mut entry = entry(1 + round * 25 + i, 2);
                entry.data = bulk.clone().into();
                view.append(std::slice::from_ref(&entry));
                write(&log, std::slice::from_ref(&entry));
            }
            let last = (round + 1) * 25;
            view.forget_to(last);
            view.truncate((last - 1, 2));
            truncate(&log, (last - 1, 2));
            log.purge().unwrap();
        }
        assert_eq!(view.first_index().unwrap(), 250);
        assert_eq!(view.term(249).unwrap(), 2);
        assert!(read(&view, 249, 251, None).is_err());
        assert!(view.term(248).is_err());
        let files = std::fs::read_dir(dir.path()).unwrap();
        let bytes: u64 = files.map(|f| f.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes <= 6 * FILE_BYTES, "{bytes} bytes left");
        drop((view, log));

        let log = open(&dir);
        let recovered = log.recover().unwrap();
        assert_eq!(recovered.truncated, (249, 2));
        assert_eq!(recovered.last_index, 250);
        assert_eq!(log.owner().unwrap(), Some(OWNER));

        // Cut off to the very end: the log is empty, but knows where it is.
        truncate(&log, (250, 2));
        drop(log);
        let log = open(&dir);
        let recovered = log.recover().unwrap();
        assert_eq!((recovered.truncated, recovered.last_index), ((250, 2), 250));
        let mut view = view_of(&log);
        assert_eq!(view.term(250).unwrap(), 2);
        view.append(&entries(251..253, 3));
        write(&log, &entries(251..253, 3));
        view.forget_to(252);
        assert_eq!(read(&view, 251, 253, None).unwrap(), entries(251..253, 3));
    }

    #[test]
    fn a_received_state_empties_the_log_and_keeps_the_vote() {
        let (dir, log) = begun();
        write(&log, &entries(1..31, 2));
        let mut hard_state = HardState::default();
        (hard_state.term, hard_state.vote, hard_state.commit) = (9, 3, 12);
        let mut append = Append::default();
        append.set_hard_state(&hard_state).unwrap();
        append.set_installing((20, 5)).unwrap();
        log.write(append, true).unwrap();
        drop(log);

        let log = open(&dir);
        assert_eq!(log.installing().unwrap(), Some((20, 5)));
        // Shorter than the log was, with a gap after it, and again.
        for (state, next) in [((20, 5), 21..26), ((1000, 8), 1001..1004)] {
            log.restart_after(state, OWNER).unwrap();
            assert_eq!(log.recover().unwrap().last_index, state.0);
            write(&log, &entries(next.clone(), 9));
        }
        drop(log);

        let log = open(&dir);
        assert_eq!(log.installing().unwrap(), None);
        assert_eq!(log.owner().unwrap(), Some(OWNER));
        let recovered = log.recover().unwrap();
        hard_state.commit = 1000;
        assert_eq!(recovered.hard_state, hard_state);
        assert_eq!(
            (recovered.truncated, recovered.last_index),
            ((1000, 8), 1003)
        );
        let view = view_of(&log);
        assert_eq!(
            read(&view, 1001, 1004, None).unwrap(),
            entries(1001..1004, 9)
        );
        assert!(view.term(20).is_err());
    }
}
