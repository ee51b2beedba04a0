//! The thread that makes the log durable.
//!
//! Owns all writes to the raft log but the trimming of old files. It takes
//! everything that is queued, writes it as one append with one sync (group
//! commit), and reports it persisted; what arrives meanwhile is the next
//! group. It keeps the order of the queue and never reports a part of a group.
//! The drive loop of a member that is alone has no use for a second thread and
//! saves with its own [`Saver`].
//!
//! Failpoints: `raft_before_save`, `raft_after_save` (see [`super`]).

use std::sync::Arc;

use fail::fail_point;
use raft::eraftpb::Message;

use super::drive::Event;
use super::log::{Append, Log, LogError};
use super::queue::{Receiver, Sender};
use super::replica::Save;
use super::shared::Shared;

/// Work queued by the drive loop.
pub(super) enum Task {
    Save(Save),
    /// A received state takes the place of everything before.
    Install {
        /// Its index and term.
        state: (u64, u64),
        /// Told when the apply thread may begin.
        noted: Sender<()>,
        /// Answered when the state is durable.
        installed: Receiver<()>,
    },
    /// Cut off the entries up to an index; given with its term.
    Trim {
        truncated: (u64, u64),
        written: Sender<()>,
    },
}

pub(super) struct LogWriter {
    pub(super) saver: Saver,
    pub(super) owner: u64,
    pub(super) tasks: Receiver<Task>,
    pub(super) drive: Sender<Event>,
    pub(super) shared: Arc<Shared>,
}

/// Writes to the log and syncs it, in the thread of the caller.
#[derive(Clone)]
pub(super) struct Saver {
    pub(super) log: Arc<Log>,
    pub(super) unsafe_no_fsync: bool,
}

/// What will be written together, and who is told then.
#[derive(Default)]
struct Group {
    append: Append,
    must_sync: bool,
    persisted: Option<u64>,
    messages: Vec<Message>,
    trimmed: Vec<Sender<()>>,
}

impl LogWriter {
    /// Runs until the drive loop ends or a write fails.
    pub(super) fn run(self) {
        while let Ok(first) = self.tasks.recv() {
            let tasks = std::iter::once(first).chain(self.tasks.try_iter());
            match self.write_all(tasks) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    self.shared.fail(error);
                    return;
                }
            }
        }
    }

    /// The queue is bounded, and so is the group: it is not filled again
    /// while this is being written. Answers false when there is no point in
    /// going on.
    fn write_all(&self, tasks: impl Iterator<Item = Task>) -> Result<bool, LogError> {
        let mut group = Group::default();
        for task in tasks {
            match task {
                Task::Save(save) => group.add(save)?,
                Task::Install {
                    state,
                    noted,
                    installed,
                } => {
                    group.append.set_installing(state)?;
                    group.must_sync = true;
                    self.write(std::mem::take(&mut group))?;
                    let _ = noted.send(());
                    if installed.recv().is_err() {
                        // The apply thread has failed or is gone: the log
                        // stays as the note says, for the next start.
                        return Ok(false);
                    }
                    let hard_state = self.saver.log.hard_state()?;
                    group.append.restart_after(state, self.owner, hard_state)?;
                    group.must_sync = true;
                }
                Task::Trim { truncated, written } => {
                    group.append.truncate(truncated, self.owner)?;
                    group.trimmed.push(written);
                }
            }
        }
        self.write(group)?;
        Ok(true)
    }

    fn write(&self, group: Group) -> Result<(), LogError> {
        self.saver.write(group.append, group.must_sync)?;
        // Whoever is gone no longer needs to know.
        for written in group.trimmed {
            let _ = written.send(());
        }
        if let Some(number) = group.persisted {
            let messages = group.messages;
            let _ = self.drive.send(Event::Persisted { number, messages });
        }
        Ok(())
    }
}

impl Saver {
    /// Makes one save durable.
    pub(super) fn save(&self, save: Save) -> Result<(), LogError> {
        let mut group = Group::default();
        group.add(save)?;
        self.write(group.append, group.must_sync)
    }

    fn write(&self, append: Append, must_sync: bool) -> Result<(), LogError> {
        fail_point!("raft_before_save", |_| std::process::abort());
        if !append.is_empty() {
            self.log.write(append, must_sync && !self.unsafe_no_fsync)?;
        }
        fail_point!("raft_after_save", |_| std::process::abort());
        Ok(())
    }
}

impl Group {
    fn add(&mut self, mut save: Save) -> Result<(), LogError> {
        self.append.add_entries(&save.entries)?;
        if let Some(hard_state) = &save.hard_state {
            self.append.set_hard_state(hard_state)?;
        }
        self.must_sync |= !save.entries.is_empty() || save.hard_state.is_some();
        self.persisted = Some(save.number);
        self.messages.append(&mut save.messages);
        Ok(())
    }
}
