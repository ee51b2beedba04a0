//! A member without threads, disk and clock, for simulations.
//!
//! The same replica, drive loop and applying code as in production, taken a
//! step at a time by whoever owns it; the network, the log's disk and the
//! clock are his. What the log writer and the trimmer do is left to him too:
//! they are little more than calls that block.

use raft::eraftpb::Message;

use super::apply_queue::ApplyLoop;
use super::drive::{Drive, Event};
use super::log_writer::Task;
use super::queue::{Receiver, Sender, bounded};
use super::replica::Save;
use super::{Assembled, Consensus, Events, Links, Run, Settings, Shared, StartError, assemble};
use crate::machine::{Effects, Machine};
use std::ops::Deref;
use std::sync::Arc;

pub use super::log::OpenedLog;

/// What a member is made of.
pub struct Start<L> {
    /// Without a directory.
    pub settings: Settings,
    pub machine: Machine,
    pub log: L,
    pub events: Events,
    pub links: Links,
    pub on_effects: Box<dyn FnMut(&Effects) + Send>,
    /// Another one for each run of each member, below 2^24.
    pub run: u64,
    /// Ticks without a leader after which this member stands for election,
    /// which raft would draw by lot.
    pub election_ticks: usize,
    /// A planted fault: a leader trusts its clock and asks nobody before a
    /// read.
    pub has_lease_reads: bool,
}

/// See the [module](self).
pub struct Stepped<L: OpenedLog> {
    drive: Drive<L>,
    apply_loop: ApplyLoop,
    drive_inbox: Sender<Event>,
    tasks: Receiver<Task>,
    flushes: Receiver<(u64, u64)>,
    shared: Arc<Shared>,
}

/// What is to be done to the log, in order.
pub enum LogTask {
    Save(Save),
    Install(Install),
    /// Cut off the entries up to this index, given with its term.
    Trim((u64, u64)),
}

/// A received state is to take the place of the log.
pub struct Install {
    /// Its index and term.
    pub state: (u64, u64),
    noted: Sender<()>,
    installed: Receiver<()>,
}

impl Install {
    /// The log says durably what is about to happen. Before that,
    /// [`Stepped::apply`] would wait for ever.
    pub fn noted(&self) {
        self.noted.send(()).expect("the member is there");
    }

    /// Whether the state is in place.
    pub fn is_installed(&self) -> bool {
        self.installed.try_recv().is_ok()
    }
}

impl<L: OpenedLog> Stepped<L> {
    /// Opens the member, as [`super::start`] does.
    pub fn start(start: Start<L>) -> Result<(Consensus, Stepped<L>), StartError> {
        let Start { settings, run, .. } = start;
        let mut config = settings.raft_config(start.machine.applied().0);
        config.min_election_tick = start.election_ticks;
        config.max_election_tick = start.election_ticks + 1;
        if start.has_lease_reads {
            config.read_only_option = raft::ReadOnlyOption::LeaseBased;
        }
        let run = Run {
            number: run,
            first_id: (settings.member_id & 0xffff) << 48 | run << 24,
        };
        let Assembled {
            consensus,
            mut drive,
            apply_loop,
            drive_inbox,
            tasks,
            flushes,
            shared,
        } = assemble(
            &settings,
            config,
            run,
            start.machine,
            start.log,
            start.events,
            start.links,
            start.on_effects,
        )?;
        drive.begin();
        let stepped = Stepped {
            drive,
            apply_loop,
            drive_inbox,
            tasks,
            flushes,
            shared,
        };
        Ok((consensus, stepped))
    }

    /// A round of the drive loop: takes what has come, hands on what follows.
    pub fn drive(&mut self) {
        self.drive.round();
    }

    /// Whether something waits for [`Stepped::drive`].
    pub fn has_events(&self) -> bool {
        self.drive.has_events()
    }

    pub fn tick(&mut self) {
        self.drive.tick(false);
    }

    /// What the drive loop has for the log since the last call.
    pub fn log_tasks(&self) -> Vec<LogTask> {
        let tasks = self.tasks.try_iter().map(|task| match task {
            Task::Save(save) => LogTask::Save(save),
            Task::Install {
                state,
                noted,
                installed,
            } => LogTask::Install(Install {
                state,
                noted,
                installed,
            }),
            // Only the trimmer waits for it, and here is none.
            Task::Trim { truncated, .. } => LogTask::Trim(truncated),
        });
        tasks.collect()
    }

    /// The save of this number, and all before it, are durable.
    pub fn persisted(&self, number: u64, messages: Vec<Message>) {
        self.send(Event::Persisted { number, messages });
    }

    pub fn has_apply_work(&self) -> bool {
        self.apply_loop.has_work()
    }

    /// Applies what is queued.
    pub fn apply(&mut self) {
        self.apply_loop.step();
    }

    /// What was applied when a flush of the state was asked for.
    pub fn flush_request(&self) -> Option<(u64, u64)> {
        self.flushes.try_recv().ok()
    }

    /// The flush is done.
    pub fn flushed(&self, applied: (u64, u64)) {
        let (written, _) = bounded(1);
        self.send(Event::Trim {
            applied: applied.0,
            written,
        });
    }

    /// Let go of it before the next step.
    pub fn machine(&self) -> impl Deref<Target = Machine> + '_ {
        self.apply_loop.machine()
    }

    /// This member is no longer one of the group.
    pub fn is_removed(&self) -> bool {
        self.shared.is_removed()
    }

    fn send(&self, event: Event) {
        let sent = self.drive_inbox.try_send(event);
        assert!(sent.is_ok(), "the inbox holds whatever can be under way");
    }
}
