//! The thread that drives raft.
//!
//! Owns the [`Replica`] and nothing that blocks: it feeds it with proposals,
//! messages of peers, ticks and acknowledgements, and hands what comes out of
//! it to the transport, the log writer and the apply thread. It touches the
//! disk only to read old entries for a member that lags behind, so heartbeats
//! do not wait for a sync. A member that is alone sends none: it syncs its log
//! right here, which spares two switches of thread a group, and applies a
//! command that came alone as well (see `apply_queue`).
//!
//! ```text
//!  proposals ──> drive ──(entries)──> log writer ──(persisted)──> drive
//!                  └──(committed entries, waiters)──> apply ──> replies
//! ```
//!
//! Everything queued at one moment becomes one `Ready`, and what is saved at one
//! moment one synced group. While a leader's group is being synced, commands
//! wait in [`Shared`] without waking anybody: they could only queue up at the
//! log writer, and each of them would cost a switch to this thread. Back
//! pressure: when the queue to the log writer or to apply is full, nothing is
//! taken out of raft; then proposals pile up, as many as the proposer's permits
//! allow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use raft::eraftpb::Message;

use super::apply::{Batch, Install, Work};
use super::apply_queue::ToApply;
use super::log::Log;
use super::log_writer::{Saver, Task};
use super::peers::{Peer, Received, Transport};
use super::queue::{Receiver, RecvTimeoutError, Sender, bounded};
use super::replica::{self, Output, Replica, Save, StoredLog};
use super::shared::Shared;
use super::{ProposeError, Reader, Waiter};
use crate::machine::Conf;
use crate::metrics;

/// Events taken in before raft is asked for what it has to say: as many as may
/// be in flight, in practice all that have come.
const EVENTS_PER_ROUND: usize = 8192;

/// How long to wait before looking again whether a full queue has room.
const FULL_QUEUE_RETRY: Duration = Duration::from_millis(1);

/// How long a stop waits for what is under way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Heartbeats come every tick; who was not heard for that many is out of reach.
const CONTACT_TICKS: u64 = 5;

/// Everything the drive loop reacts to, besides the clock.
pub(super) enum Event {
    /// Commands or readers wait in [`Shared`].
    Waiting,
    /// The save of this number, and all before it, are durable.
    Persisted {
        number: u64,
        messages: Vec<Message>,
    },
    /// The machine has decided about a change of the members.
    ConfApplied {
        index: u64,
        conf: Conf,
    },
    /// The other members, or where they are reached, have changed.
    Members(Vec<Peer>),
    /// The state up to this index is on disk: the log may be shortened.
    Trim {
        applied: u64,
        written: Sender<()>,
    },
    TransferLeadership(u64),
    /// A message of a peer.
    Received(Received),
    /// The last message to this peer was not sent.
    Unreachable(u64),
    /// A snapshot has reached a peer, or has failed.
    SnapshotSent {
        id: u64,
        ok: bool,
    },
    /// The others go on without this member.
    Removed,
    /// Finish what is under way and end.
    Stop,
}

/// A command on its way into the log.
pub(super) type Proposal = replica::Proposal<Waiter>;

/// The receiving end of the drive loop. A channel keeps what nobody will read;
/// dropping this one lets go of it, so that the waiters inside are woken.
pub(super) struct Inbox {
    pub(super) events: Receiver<Event>,
    pub(super) shared: Arc<Shared>,
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // Closed first: whoever sends now looks after sending, and sees it.
        self.shared.close_inbox();
        while self.events.try_recv().is_ok() {}
    }
}

/// What the drive loop is made of.
pub(super) struct Parts<L: StoredLog = Arc<Log>> {
    pub(super) replica: Replica<L, Waiter, Reader>,
    pub(super) inbox: Inbox,
    pub(super) log_writer: Sender<Task>,
    pub(super) apply: ToApply,
    pub(super) transport: Box<dyn Transport>,
    pub(super) shared: Arc<Shared>,
    pub(super) tick_interval: Duration,
    pub(super) election_timeout: Duration,
}

pub(super) struct Drive<L: StoredLog = Arc<Log>> {
    parts: Parts<L>,
    /// For while the member is alone. A simulation's log is somebody else's.
    saver: Option<Saver>,
    last_tick: Instant,
    next_tick: Instant,
    stop_deadline: Option<Instant>,
    /// While leadership is being handed over before the end.
    hand_over_deadline: Option<Instant>,
}

impl<L: StoredLog> Drive<L> {
    pub(super) fn new(parts: Parts<L>) -> Drive<L> {
        let now = Instant::now();
        Drive {
            last_tick: now,
            next_tick: now + parts.tick_interval,
            parts,
            saver: None,
            stop_deadline: None,
            hand_over_deadline: None,
        }
    }

    /// Has the log synced by this loop while the member is alone.
    pub(super) fn with_saver(self, saver: Saver) -> Drive<L> {
        Drive {
            saver: Some(saver),
            ..self
        }
    }

    /// Runs until it is stopped or another thread has failed.
    pub(super) fn run(mut self) {
        self.begin();
        while !self.parts.shared.has_failed() && !self.is_drained() {
            let has_room = self.carry_out();
            let has_more = self.take_waiting();
            let wait = match (has_more, has_room) {
                (true, _) => Duration::ZERO,
                (false, true) => self.next_tick.saturating_duration_since(Instant::now()),
                (false, false) => FULL_QUEUE_RETRY,
            };
            match self.parts.inbox.events.recv_timeout(wait) {
                Ok(event) => {
                    self.take_event(event);
                    for _ in 1..EVENTS_PER_ROUND {
                        let Ok(event) = self.parts.inbox.events.try_recv() else {
                            break;
                        };
                        self.take_event(event);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // Whoever could propose or stop is gone.
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.tick_if_due();
        }
    }

    /// Nobody else could win, so why wait for an election timeout.
    pub(super) fn begin(&mut self) {
        if let Err(error) = self.parts.replica.campaign_if_alone() {
            self.parts.shared.fail(format_args!("campaigning: {error}"));
        }
    }

    /// What a round without waiting does: everything that has come.
    pub(super) fn round(&mut self) {
        self.carry_out();
        while let Ok(event) = self.parts.inbox.events.try_recv() {
            self.take_event(event);
        }
        self.carry_out();
        if self.take_waiting() {
            self.carry_out();
        }
    }

    pub(super) fn has_events(&self) -> bool {
        !self.parts.inbox.events.is_empty()
    }

    fn take_event(&mut self, event: Event) {
        let replica = &mut self.parts.replica;
        match event {
            Event::Waiting => {
                self.take_waiting();
            }
            Event::Persisted { number, messages } => {
                self.persisted(number, messages);
                self.take_waiting();
            }
            Event::ConfApplied { index, conf } => replica.conf_applied(index, conf),
            Event::Members(peers) => self.parts.transport.set_peers(&peers),
            Event::Trim { applied, written } => self.trim(applied, written),
            Event::TransferLeadership(to) => {
                // Whoever asked looks for the outcome.
                replica.transfer_leadership(to);
            }
            Event::Received(received) => replica.step(received.take()),
            Event::Unreachable(id) => replica.unreachable(id),
            Event::SnapshotSent { id, ok } => replica.snapshot_sent(id, ok),
            Event::Removed => self.parts.shared.set_removed(),
            Event::Stop => self.begin_stop(),
        }
    }

    /// Takes in the readers that wait, and the commands unless a leader's log is
    /// busy with a sync: then these stay where they are, and become one group
    /// with those that come until it is done. Answers whether there were any.
    fn take_waiting(&mut self) -> bool {
        let Parts {
            replica, shared, ..
        } = &mut self.parts;
        let readers = shared.readers.take(false);
        let must_wait = replica.is_leader() && !replica.is_saved();
        let proposals = shared.proposals.take(must_wait);
        let has_any = !readers.is_empty() || !proposals.is_empty();
        replica.read(readers);
        for proposal in proposals {
            replica.propose(proposal);
        }
        has_any
    }

    /// Does what raft wants done, until it is silent or a queue is full;
    /// answers whether the queues have room.
    fn carry_out(&mut self) -> bool {
        loop {
            if self.parts.log_writer.is_full() || self.parts.apply.is_full() {
                return !self.parts.replica.has_output();
            }
            // Saves become durable in order: nothing may be left at the log writer.
            let replica = &self.parts.replica;
            let saves_here = replica.is_alone() && replica.is_saved();
            let Some(output) = self.parts.replica.take() else {
                return true;
            };
            self.carry_out_one(output, saves_here);
        }
    }

    fn carry_out_one(&mut self, output: Output<Waiter, Reader>, saves_here: bool) {
        let shared = &self.parts.shared;
        if let Some(role) = output.role {
            if role.leader != shared.status().leader {
                let leader = format_args!("{:x}", role.leader);
                tracing::info!(leader, term = role.term, role = ?role.role, "the leader has changed");
            }
            let is_leader = role.role == raft::StateRole::Leader;
            shared.set_role(role.leader, role.term, is_leader);
        }
        if !output.messages.is_empty() {
            self.parts.transport.send(output.messages);
        }
        if let Some(index) = output.committed {
            shared.set_committed_index(index);
        }
        for reader in output.failed_reads {
            metrics::SERVER_READ_INDEXES_FAILED_TOTAL.inc();
            reader.fail(ProposeError::LeaderChanged);
        }
        let state = output.save.as_ref().and_then(|save| save.state.as_ref());
        let install = state.map(|state| (state.index, state.term));
        let install = install.map(|state| self.install(state));
        match (output.save, self.saver.clone()) {
            (Some(save), Some(saver)) if saves_here => {
                // Applied meanwhile.
                self.hand_to_apply(output.apply, install);
                self.save(save, &saver);
            }
            (None, Some(_)) if saves_here => self.apply(output.apply),
            (save, _) => {
                if let Some(save) = save {
                    // The log writer ends only when it has failed, which the
                    // loop sees.
                    let _ = self.parts.log_writer.send(Task::Save(save));
                }
                self.hand_to_apply(output.apply, install);
            }
        }
    }

    /// What the log writer would do, and report.
    fn save(&mut self, mut save: Save, saver: &Saver) {
        // Commands that come meanwhile become the next group.
        self.parts.shared.proposals.take(true);
        let number = save.number;
        let messages = std::mem::take(&mut save.messages);
        match saver.save(save) {
            Ok(()) => self.persisted(number, messages),
            Err(error) => self.parts.shared.fail(error),
        }
    }

    fn persisted(&mut self, number: u64, messages: Vec<Message>) {
        if !messages.is_empty() {
            self.parts.transport.send(messages);
        }
        self.parts.replica.persisted(number);
    }

    /// Has the log note what will happen; it waits for the apply thread then.
    fn install(&self, state: (u64, u64)) -> Install {
        let (noted, is_noted) = bounded(1);
        let (installed, is_installed) = bounded(1);
        // See above; the apply thread sees the end of `noted` as well.
        let _ = self.parts.log_writer.send(Task::Install {
            state,
            noted,
            installed: is_installed,
        });
        Install {
            noted: is_noted,
            installed,
        }
    }

    /// Here, if it is a lone command and nothing else is to be done.
    fn apply(&self, work: Work) {
        let is_lone = matches!(&work.entries[..], [(_, Some(waiter))] if waiter.changes_data_only);
        let rest = match is_lone && self.parts.shared.proposals.is_empty() {
            true => self.parts.apply.apply_here(work),
            false => Err(work),
        };
        if let Err(work) = rest {
            self.hand_to_apply(work, None);
        }
    }

    fn hand_to_apply(&self, mut work: Work, install: Option<Install>) {
        if !work.reads.is_empty() {
            // What is applied already need not wake the apply thread.
            let applied = self.parts.shared.applied_index();
            for (_, readers) in work.reads.extract_if(.., |(index, _)| *index <= applied) {
                readers.into_iter().for_each(Reader::answer);
            }
        }
        if !work.is_empty() {
            self.parts.apply.send(Batch { work, install });
        }
    }

    fn trim(&mut self, applied: u64, written: Sender<()>) {
        if let Some(truncated) = self.parts.replica.trim(applied) {
            // Blocks at most for the sync that is running, once a flush.
            let _ = self
                .parts
                .log_writer
                .send(Task::Trim { truncated, written });
        }
    }

    fn tick_if_due(&mut self) {
        let now = Instant::now();
        if now < self.next_tick {
            return;
        }
        let tick_interval = self.parts.tick_interval;
        let is_late = now - self.last_tick > 2 * tick_interval;
        self.last_tick = now;
        // Ticks missed while the process was suspended are not made up for:
        // a burst of them would look like an election timeout.
        self.next_tick = now + tick_interval;
        self.tick(is_late);
    }

    pub(super) fn tick(&mut self, is_late: bool) {
        let Parts {
            replica, shared, ..
        } = &mut self.parts;
        if replica.tick(shared.applied_index()) {
            metrics::SERVER_SLOW_READ_INDEXES_TOTAL.inc();
        }
        let progress = replica.progress();
        if is_late && progress.len() > 1 {
            metrics::SERVER_HEARTBEAT_SEND_FAILURES_TOTAL.inc_by(progress.len() as u64 - 1);
            tracing::warn!("heartbeats leave late: the machine is overloaded");
        }
        if !replica.is_in_contact(CONTACT_TICKS) {
            shared.set_out_of_contact();
        }
        shared.set_progress(progress);
    }

    /// A leader hands over first, so that nobody has to find out that it is
    /// gone.
    fn begin_stop(&mut self) {
        let now = Instant::now();
        self.stop_deadline = Some(now + DRAIN_TIMEOUT);
        if self.parts.replica.hand_over() {
            self.hand_over_deadline = Some(now + self.parts.election_timeout);
        }
    }

    fn is_drained(&mut self) -> bool {
        let Some(deadline) = self.stop_deadline else {
            return false;
        };
        let now = Instant::now();
        let replica = &self.parts.replica;
        self.hand_over_deadline
            .take_if(|deadline| !replica.is_leader() || now >= *deadline);
        // Without a leader nothing comes to an end.
        let is_answered = !replica.has_waiters() || replica.role().leader == 0;
        let is_done = is_answered
            && replica.is_saved()
            && !replica.has_output()
            && self.hand_over_deadline.is_none();
        is_done || now >= deadline
    }
}
