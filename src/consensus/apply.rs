//! Applies committed entries.
//!
//! Owns the machine. It takes everything committed so far, up to a few
//! megabytes of changes, and makes one write of it; then the changes go to
//! whoever follows them (watchers, lessor), then the replies to their waiters,
//! in this order: a client that has its answer finds the change everywhere
//! (invariants 1 and 2). Readers are answered here as well, once the index they
//! wait for is applied. Between batches the machine gets on with work that can
//! wait, a slice at a time. In which thread all this happens, and when, is
//! `apply_queue`'s business.
//!
//! The machine decides about changes of the members; the drive loop hears of
//! them after the commit. The removal of this member is the last thing it
//! applies: who reads elsewhere must not have to know what is answered here
//! after that.
//!
//! Failpoints: `apply_before_commit`, `apply_after_commit`, `before_reply`
//! (see [`super`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fail::fail_point;
use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::{ConfChange, Entry, EntryType, Snapshot};
use thiserror::Error;
use tokio::sync::oneshot;

use super::drive::Event;
use super::log::entry_bytes;
use super::peers::peers_of;
use super::queue::{Receiver, Sender, TrySendError};
use super::shared::Shared;
use super::snapshot::SnapshotInstaller;
use super::trim::Applied;
use super::{Outcome, ProposeError, Reader, Waiter, replica};
use crate::machine::command::{Body, Command};
use crate::machine::{Conf, Effects, Machine};
use crate::metrics;
use crate::storage::StorageError;

/// Changes that become one write of the store. Larger writes gain nothing and
/// make the first reply of the batch wait longer.
const MAX_STAGED_BYTES: usize = 4 << 20;

/// Bytes applied between two flushes of the store, if the entries are few: what
/// a restart after a crash has to apply again, at some 100 MB/s.
const BYTES_PER_FLUSH: usize = 32 << 20;

/// Under load, one slice of the machine's background work every so many
/// batches, so that a compaction ends even if the queue is never empty.
const BATCHES_PER_BACKGROUND_STEP: u32 = 4;

/// What raft has for the applier.
pub(super) type Work = replica::Batch<Waiter, Reader>;

/// What the drive loop has for it.
pub(super) struct Batch {
    pub(super) work: Work,
    /// Goes with a state in `work`.
    pub(super) install: Option<Install>,
}

/// What the applier and the log writer tell each other when a received state
/// takes the place of the old one.
pub(super) struct Install {
    /// The log says what is about to happen.
    pub(super) noted: Receiver<()>,
    /// The state is durable.
    pub(super) installed: Sender<()>,
}

/// This member cannot go on applying.
#[derive(Debug, Error)]
pub(super) enum ApplyFailure {
    #[error("storing applied changes: {0}")]
    Storage(#[from] StorageError),
    #[error("entry {index} of the log cannot be read: {source}")]
    Decode {
        index: u64,
        source: prost::DecodeError,
    },
    #[error("the change of the members in entry {index} of the log cannot be read: {source}")]
    DecodeConfChange {
        index: u64,
        source: protobuf::ProtobufError,
    },
    #[error("putting a received state in place: {0}")]
    Install(#[source] StorageError),
    #[error("a received state is of {found:?}, not of {expected:?}")]
    WrongState { found: Applied, expected: Applied },
}

pub(super) struct Applier {
    machine: Machine,
    on_effects: Box<dyn FnMut(&Effects) + Send>,
    drive: Sender<Event>,
    installer: Box<dyn SnapshotInstaller>,
    flusher: Sender<Applied>,
    shared: Arc<Shared>,
    /// Applying a command for longer is worth a warning.
    slow_apply: Duration,
    entries_per_flush: u64,
    /// Outcomes that wait for the commit.
    replies: Vec<(oneshot::Sender<Outcome>, Outcome)>,
    /// Readers, and the index each waits for.
    readers: Vec<(u64, Vec<Reader>)>,
    /// The last term that an entry has opened, and whether one did since the
    /// last commit.
    opened_term: u64,
    has_opened_term: bool,
    /// Changes of the members since the last commit, to be told to raft: the
    /// index of each and what it left.
    confs: Vec<(u64, Conf)>,
    is_removed: bool,
    entries_since_flush: u64,
    bytes_since_flush: usize,
    batches_since_step: u32,
    /// The machine may have background work.
    has_background_work: bool,
}

impl Applier {
    pub(super) fn new(
        machine: Machine,
        on_effects: Box<dyn FnMut(&Effects) + Send>,
        drive: Sender<Event>,
        installer: Box<dyn SnapshotInstaller>,
        flusher: Sender<Applied>,
        shared: Arc<Shared>,
        slow_apply: Duration,
        entries_per_flush: u64,
    ) -> Applier {
        Applier {
            machine,
            on_effects,
            drive,
            installer,
            flusher,
            shared,
            slow_apply,
            entries_per_flush,
            replies: Vec::new(),
            readers: Vec::new(),
            opened_term: 0,
            has_opened_term: false,
            confs: Vec::new(),
            is_removed: false,
            entries_since_flush: 0,
            bytes_since_flush: 0,
            batches_since_step: 0,
            // A compaction may have been interrupted by the last stop.
            has_background_work: true,
        }
    }

    /// The machine waits for a chance to go on with something.
    pub(super) fn has_background_work(&self) -> bool {
        self.has_background_work
    }

    pub(super) fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Nothing more may be applied here; whoever waits gets no answer.
    pub(super) fn fail(&mut self, failure: ApplyFailure) {
        self.shared.fail(failure);
        self.replies.clear();
        self.readers.clear();
    }

    /// Applies batches as one write: the first, and others while they are few
    /// enough.
    pub(super) fn apply_group(
        &mut self,
        batches: impl IntoIterator<Item = Batch>,
    ) -> Result<(), ApplyFailure> {
        let mut has_entries = false;
        for batch in batches {
            has_entries |= self.apply_batch(batch)?;
            if self.machine.staged_bytes() >= MAX_STAGED_BYTES {
                break;
            }
        }
        if !has_entries {
            self.answer_readers();
            return Ok(());
        }
        self.commit()?;
        self.batches_since_step += 1;
        if self.batches_since_step >= BATCHES_PER_BACKGROUND_STEP && self.has_background_work {
            self.work_in_background()?;
            self.batches_since_step = 0;
        }
        Ok(())
    }

    /// One slice of it.
    pub(super) fn work_in_background(&mut self) -> Result<(), ApplyFailure> {
        self.has_background_work = self.machine.background_step()?;
        Ok(())
    }

    /// Answers whether there is something to commit.
    fn apply_batch(&mut self, batch: Batch) -> Result<bool, ApplyFailure> {
        let Batch { work, install } = batch;
        let mut has_entries = !work.entries.is_empty();
        if let (Some(state), Some(install)) = (work.state, install) {
            has_entries = true;
            self.install(&state, &install)?;
        }
        for (entry, waiter) in work.entries {
            if self.is_removed {
                break;
            }
            self.entries_since_flush += 1;
            self.bytes_since_flush += entry_bytes(&entry);
            self.apply_entry(&entry, waiter)?;
            if self.machine.staged_bytes() >= MAX_STAGED_BYTES {
                self.commit()?;
            }
        }
        self.readers.extend(work.reads);
        Ok(has_entries)
    }

    /// Puts a received state in place. Who waited for an entry that is part of
    /// it does not learn its outcome.
    fn install(&mut self, state: &Snapshot, install: &Install) -> Result<(), ApplyFailure> {
        self.commit()?;
        // Gone when the log could not be written, which has been reported.
        if install.noted.recv().is_err() {
            return Ok(());
        }
        metrics::SERVER_SNAPSHOT_APPLY_IN_PROGRESS_TOTAL.set(1);
        let installed = self.installer.install(&mut self.machine, state);
        metrics::SERVER_SNAPSHOT_APPLY_IN_PROGRESS_TOTAL.set(0);
        installed.map_err(ApplyFailure::Install)?;
        let metadata = state.get_metadata();
        let expected = (metadata.index, metadata.term);
        let found = self.machine.applied();
        if found != expected {
            return Err(ApplyFailure::WrongState { found, expected });
        }
        tracing::info!(
            index = found.0,
            term = found.1,
            "took over the state of another member"
        );
        self.has_background_work = true;
        self.opened_term = self.opened_term.max(found.1);
        self.has_opened_term = true;
        self.tell_members();
        let _ = install.installed.send(());
        Ok(())
    }

    fn apply_entry(&mut self, entry: &Entry, waiter: Option<Waiter>) -> Result<(), ApplyFailure> {
        let index = entry.index;
        if entry.entry_type != EntryType::EntryNormal {
            return self.apply_conf_change(entry, waiter);
        }
        if entry.data.is_empty() {
            self.machine.skip(index, entry.term);
            self.opened_term = entry.term;
            self.has_opened_term = true;
            return Ok(());
        }
        self.apply_command(entry, entry.data.clone(), waiter)
    }

    /// The command in it says what to do, and whether it may be done. Raft
    /// gets the members that come out, whatever the change says itself.
    fn apply_conf_change(
        &mut self,
        entry: &Entry,
        waiter: Option<Waiter>,
    ) -> Result<(), ApplyFailure> {
        let index = entry.index;
        let change = ConfChange::parse_from_bytes(&entry.data)
            .map_err(|source| ApplyFailure::DecodeConfChange { index, source })?;
        self.apply_command(entry, change.context, waiter)?;
        let conf = self.machine.conf();
        let id = self.shared.member_id();
        self.is_removed = !conf.voters.contains(&id) && !conf.learners.contains(&id);
        self.confs.push((index, conf));
        Ok(())
    }

    fn apply_command(
        &mut self,
        entry: &Entry,
        data: Bytes,
        waiter: Option<Waiter>,
    ) -> Result<(), ApplyFailure> {
        let index = entry.index;
        let command =
            Command::decode(data).map_err(|source| ApplyFailure::Decode { index, source })?;
        let began = Instant::now();
        let outcome = self.machine.apply(index, entry.term, &command)?;
        let spent = began.elapsed();
        if spent > self.slow_apply {
            metrics::SERVER_SLOW_APPLY_TOTAL.inc();
            tracing::warn!(index, ?spent, "applying a command took long");
        }
        self.has_background_work |= matches!(command.body, Some(Body::Compaction(_)));
        if let Some(waiter) = waiter {
            let outcome = outcome.map_err(ProposeError::Rejected);
            self.replies.push((waiter.reply, outcome));
        }
        Ok(())
    }

    /// Makes what has been applied visible, then tells those who care.
    fn commit(&mut self) -> Result<(), ApplyFailure> {
        fail_point!("apply_before_commit", |_| std::process::abort());
        let began = Instant::now();
        let effects = self.machine.commit()?;
        metrics::DISK_BACKEND_COMMIT_DURATION_SECONDS.observe(began.elapsed().as_secs_f64());
        fail_point!("apply_after_commit", |_| std::process::abort());
        (self.on_effects)(&effects);
        let applied = self.machine.applied();
        if self.has_opened_term || !self.confs.is_empty() {
            // Before anybody can rely on this member not being alone.
            self.shared.set_conf(&self.machine.conf(), self.opened_term);
        }
        self.shared.set_applied_index(applied.0);
        if std::mem::take(&mut self.has_opened_term) {
            self.shared.term_opened(self.opened_term);
        }
        if effects.members_changed {
            self.tell_members();
        }
        for (index, conf) in self.confs.drain(..) {
            let _ = self.drive.send(Event::ConfApplied { index, conf });
        }
        fail_point!("before_reply", |_| std::process::abort());
        for (reply, outcome) in self.replies.drain(..) {
            // A waiter that has given up is gone.
            let _ = reply.send(outcome);
        }
        self.answer_readers();
        if self.is_removed {
            self.shared.set_removed();
        }
        self.flush_if_due(applied);
        Ok(())
    }

    /// Whoever waits for an index that is applied may go on.
    fn answer_readers(&mut self) {
        let applied = self.shared.applied_index();
        for (_, readers) in self.readers.extract_if(.., |(index, _)| *index <= applied) {
            for reader in readers {
                reader.answer();
            }
        }
    }

    /// Tells the transport where the others are.
    fn tell_members(&self) {
        let id = self.shared.member_id();
        let peers = peers_of(&self.machine.published(), id);
        let _ = self.drive.send(Event::Members(peers));
    }

    /// Asks for a flush now and then. While one runs the next has to wait:
    /// the counts go on, so it comes right after.
    fn flush_if_due(&mut self, applied: Applied) {
        let has_few_entries = self.entries_since_flush < self.entries_per_flush;
        if has_few_entries && self.bytes_since_flush < BYTES_PER_FLUSH {
            return;
        }
        match self.flusher.try_send(applied) {
            Ok(()) => {
                self.entries_since_flush = 0;
                self.bytes_since_flush = 0;
            }
            // Busy; or ended by a failure that has closed the latch.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }
}
