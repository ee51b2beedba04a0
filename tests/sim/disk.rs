//! The disk under a raft log, simulated.
//!
//! Owns what is durable, what is written and what is only queued. A write is a
//! group of operations, there whole or not at all (raft-engine checks each one
//! by a checksum); a crash keeps the durable ones and, of those after it, as
//! many of the first as chance has it: the others are lost or torn.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use raft::eraftpb::{Entry, HardState, Message};
use rand::Rng as _;
use rand::rngs::StdRng;
use stele::consensus::LogError;
use stele::consensus::replica::{Recovered, StoredLog};
use stele::consensus::stepped::{Install, LogTask, OpenedLog};

/// A log on a disk that outlives its member's process. Cheap to clone.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    durable: LogState,
    /// As the process sees it: `durable` and the groups after it.
    written: LogState,
    unsynced: VecDeque<Vec<Op>>,
}

#[derive(Default, Clone)]
struct LogState {
    owner: Option<u64>,
    hard_state: HardState,
    truncated: (u64, u64),
    installing: Option<(u64, u64)>,
    /// Contiguous; begins after `truncated`.
    entries: VecDeque<Entry>,
}

#[derive(Clone)]
enum Op {
    Bootstrap(Recovered, u64),
    Append(Vec<Entry>),
    HardState(HardState),
    Truncate((u64, u64)),
    Installing((u64, u64)),
    RestartAfter((u64, u64)),
}

impl LogState {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Bootstrap(start, owner) => {
                self.owner = Some(*owner);
                self.hard_state = start.hard_state.clone();
                self.truncated = start.truncated;
            }
            Op::Append(entries) => self.append(entries),
            Op::HardState(hard_state) => self.hard_state = hard_state.clone(),
            Op::Truncate(truncated) => {
                if truncated.0 > self.truncated.0 {
                    self.truncated = *truncated;
                    self.entries.retain(|entry| entry.index > truncated.0);
                }
            }
            Op::Installing(state) => self.installing = Some(*state),
            Op::RestartAfter(state) => {
                if self.hard_state.term < state.1 {
                    (self.hard_state.term, self.hard_state.vote) = (state.1, 0);
                }
                self.hard_state.commit = state.0;
                self.entries.clear();
                self.truncated = *state;
                self.installing = None;
            }
        }
    }

    fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index > self.truncated.0 && first.index <= self.last_index() + 1,
            "entry {} written to a log of {:?} to {}",
            first.index,
            self.truncated,
            self.last_index()
        );
        self.entries
            .truncate((first.index - self.truncated.0 - 1) as usize);
        self.entries.extend(entries.iter().cloned());
    }

    fn last_index(&self) -> u64 {
        self.truncated.0 + self.entries.len() as u64
    }

    fn entry(&self, index: u64) -> Option<&Entry> {
        let offset = index.checked_sub(self.truncated.0 + 1)?;
        self.entries.get(offset as usize)
    }
}

impl Disk {
    fn write(&self, group: Vec<Op>) {
        let mut contents = self.0.lock();
        for op in &group {
            contents.written.apply(op);
        }
        contents.unsynced.push_back(group);
    }

    fn sync(&self) {
        let mut contents = self.0.lock();
        while let Some(group) = contents.unsynced.pop_front() {
            for op in &group {
                contents.durable.apply(op);
            }
        }
    }

    fn write_synced(&self, op: Op) {
        self.write(vec![op]);
        self.sync();
    }

    /// The process is gone; answers how many writes are lost with it.
    pub fn crash(&self, rng: &mut StdRng) -> usize {
        let mut contents = self.0.lock();
        let kept = rng.random_range(0..=contents.unsynced.len());
        for _ in 0..kept {
            let group = contents.unsynced.pop_front().expect("counted");
            for op in &group {
                contents.durable.apply(op);
            }
        }
        let lost = contents.unsynced.len();
        contents.unsynced.clear();
        contents.written = contents.durable.clone();
        lost
    }
}

impl StoredLog for Disk {
    fn entries(
        &self,
        low: u64,
        high: u64,
        max_bytes: Option<usize>,
    ) -> Result<Vec<Entry>, raft::Error> {
        let contents = self.0.lock();
        let log = &contents.written;
        if low <= log.truncated.0 {
            return Err(raft::StorageError::Compacted.into());
        }
        let mut bytes = 0;
        let mut entries = Vec::new();
        for index in low..high {
            let Some(entry) = log.entry(index) else {
                return Err(raft::StorageError::Unavailable.into());
            };
            bytes += protobuf::Message::compute_size(entry) as usize;
            if !entries.is_empty() && max_bytes.is_some_and(|max| bytes > max) {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64, raft::Error> {
        let contents = self.0.lock();
        let entry = contents.written.entry(index);
        let entry = entry.ok_or(raft::StorageError::Unavailable)?;
        Ok(entry.term)
    }
}

impl OpenedLog for Disk {
    fn owner(&self) -> Result<Option<u64>, LogError> {
        Ok(self.0.lock().written.owner)
    }

    fn bootstrap(&self, start: &Recovered, owner: u64) -> Result<(), LogError> {
        self.write_synced(Op::Bootstrap(start.clone(), owner));
        Ok(())
    }

    fn recover(&self) -> Result<Recovered, LogError> {
        let contents = self.0.lock();
        let log = &contents.written;
        Ok(Recovered {
            hard_state: log.hard_state.clone(),
            truncated: log.truncated,
            last_index: log.last_index(),
        })
    }

    fn installing(&self) -> Result<Option<(u64, u64)>, LogError> {
        Ok(self.0.lock().written.installing)
    }

    fn restart_after(&self, state: (u64, u64), _owner: u64) -> Result<(), LogError> {
        self.write_synced(Op::RestartAfter(state));
        Ok(())
    }
}

/// What the log writer's thread does: everything queued is one write with one
/// sync, and what comes meanwhile is the next.
pub struct Writer {
    disk: Disk,
    tasks: VecDeque<LogTask>,
    /// Told when the running sync is done.
    syncing: Option<Group>,
    installing: Option<Install>,
}

#[derive(Default)]
struct Group {
    persisted: Option<(u64, Vec<Message>)>,
    install: Option<Install>,
}

impl Writer {
    pub fn new(disk: Disk) -> Writer {
        Writer {
            disk,
            tasks: VecDeque::new(),
            syncing: None,
            installing: None,
        }
    }

    pub fn add(&mut self, tasks: Vec<LogTask>) {
        self.tasks.extend(tasks);
    }

    /// Whether a received state waits for the log before it may be applied.
    pub fn holds_apply(&self) -> bool {
        let is_install = |task: &LogTask| matches!(task, LogTask::Install(_));
        self.tasks.iter().any(is_install)
            || matches!(&self.syncing, Some(group) if group.install.is_some())
    }

    /// Begins the next write if the disk is free and there is something;
    /// answers whether a sync is now under way that was not before.
    pub fn begin(&mut self) -> bool {
        if self.syncing.is_some() {
            return false;
        }
        let mut ops = Vec::new();
        let mut must_sync = false;
        if let Some(install) = &self.installing {
            if !install.is_installed() {
                return false;
            }
            ops.push(Op::RestartAfter(install.state));
            must_sync = true;
            self.installing = None;
        }
        let mut group = Group::default();
        while let Some(task) = self.tasks.pop_front() {
            match task {
                LogTask::Save(save) => {
                    let messages = save.messages;
                    must_sync |= !save.entries.is_empty() || save.hard_state.is_some();
                    ops.push(Op::Append(save.entries));
                    ops.extend(save.hard_state.map(Op::HardState));
                    let persisted = group.persisted.take();
                    let mut all = persisted.map_or_else(Vec::new, |(_, messages)| messages);
                    all.extend(messages);
                    group.persisted = Some((save.number, all));
                }
                LogTask::Trim(truncated) => ops.push(Op::Truncate(truncated)),
                LogTask::Install(install) => {
                    ops.push(Op::Installing(install.state));
                    must_sync = true;
                    group.install = Some(install);
                    break;
                }
            }
        }
        if ops.is_empty() {
            return false;
        }
        self.disk.write(ops);
        if must_sync || group.persisted.is_some() {
            self.syncing = Some(group);
            return true;
        }
        false
    }

    /// What is told too early when the planted fault is on: see
    /// [`super::Fault::AcknowledgeBeforeSync`].
    pub fn take_persisted(&mut self) -> Option<(u64, Vec<Message>)> {
        self.syncing.as_mut()?.persisted.take()
    }

    /// The running sync is done; answers the last save that is now durable and
    /// the messages that waited for it.
    pub fn end(&mut self) -> Option<(u64, Vec<Message>)> {
        let group = self.syncing.take()?;
        self.disk.sync();
        if let Some(install) = group.install {
            install.noted();
            self.installing = Some(install);
        }
        group.persisted
    }
}
