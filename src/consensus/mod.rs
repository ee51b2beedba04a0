//! Orders commands, makes them durable, applies them.
//!
//! Owns raft, the raft log and the threads around the machine; nobody else
//! knows which raft it is. It promises, for each command, one place in the
//! order, a reply only after the change is durable and applied, and no further
//! write after a failed one. What a command means is the machine's business;
//! who hears of its effects is wired in `node`.
//!
//! | thread | file | does |
//! |---|---|---|
//! | `stele-drive` | `drive` | raft and its clock; of a member that is alone also the log |
//! | `stele-log` | `log_writer` | one synced append for all that is queued |
//! | `stele-apply` | `apply_queue`, `apply` | the machine; one write for all that is committed |
//! | `stele-trim` | `trim` | flushes the store, then shortens the log |
//!
//! What a member does with what happens to it is decided in `replica`, which
//! has neither threads nor clock; `drive` is the loop around it. `peers` and
//! `snapshot` say what the network has to offer.
//!
//! A single server is a group of one voter, so there is no other write path
//! than this one. On start it wins the election at once, and its first entry
//! commits all that the log holds: then the entries that the store has not
//! seen are applied again. Who belongs to the group is part of the machine's
//! state, as of what is applied; a member whose state names nobody joins one,
//! and waits for the others to send theirs.
//!
//! Failpoints (feature `failpoints`): at each of them, `return` aborts the
//! process as a crash would, `panic` makes the thread fail, `sleep` and
//! `pause` hold it.

mod apply;
mod apply_queue;
mod drive;
mod log;
mod log_writer;
mod peers;
mod permits;
mod proposer;
mod queue;
mod raft_logger;
mod recovery;
#[doc(hidden)]
pub mod replica;
mod shared;
mod snapshot;
#[doc(hidden)]
pub mod stepped;
#[cfg(test)]
mod tests;
pub mod transfer;
pub mod transport;
mod trim;
mod waiting;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::machine::{CommandError, Conf, Effects, Machine, Reply};
use crate::storage::{Engine, StorageError};
use apply::Applier;
use apply_queue::{ApplyLoop, apply_queue};
use drive::{Drive, Event, Inbox, Parts};
use log::{Append, Log, OpenedLog};
use log_writer::{LogWriter, Saver, Task};
use queue::{Receiver, Sender, bounded};
use recovery::recover;
use replica::{Replica, StoredLog, Waits};
use shared::Shared;
use trim::{Applied, Trimmer};

pub use log::LogError;
use peers::peers_of;
pub use peers::{Full, NoPeers, Peer, PeerInbox, Transport};
pub use proposer::Consensus;
pub use shared::{Progress, Status};
pub use snapshot::{NoSnapshots, SnapshotInstaller, SnapshotSource};
pub use transport::{
    PeerCalls, PeerLink, PeerTransport, Peers, SnapshotOutbox, SnapshotReceiver, SnapshotReplies,
    members_of,
};

/// Readies waiting for the log writer; each is at least one client's command,
/// and the whole queue becomes one write.
const LOG_QUEUE: usize = 256;

/// Committed entries that one `Ready` brings, in bytes: what a restart reads
/// from the log at a time.
const COMMITTED_BYTES_PER_READY: u64 = 4 << 20;

/// Entries for a follower in one message, and messages under way to it: as
/// etcd's.
const MAX_MESSAGE_BYTES: u64 = 1 << 20;
const MAX_INFLIGHT_MESSAGES: usize = 512;

/// After that long without an answer the leader is asked again for its commit
/// index (GEN-12).
const READ_RETRY: Duration = Duration::from_millis(500);

/// What a start needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Created if it is missing.
    pub raft_dir: PathBuf,
    /// Never 0.
    pub member_id: u64,
    /// One tick of raft's clock.
    pub heartbeat: Duration,
    /// At least two heartbeats.
    pub election_timeout: Duration,
    /// LIM-1: limit of an encoded command.
    pub max_request_bytes: usize,
    /// Applying one command for longer is logged.
    pub slow_apply: Duration,
    /// Acknowledge before it is durable: for tests of others' software.
    pub unsafe_no_fsync: bool,
    /// Ask the others before standing for election.
    pub pre_vote: bool,
    /// The first election after a start need not wait a whole timeout.
    pub initial_election_tick_advance: bool,
    /// Make this member the only one of its group, with what it has.
    pub is_forced_new: bool,
    /// Entries applied between two flushes of the store, after which the log
    /// is shortened. Much data makes it earlier.
    pub entries_per_flush: u64,
    /// Applied entries that stay in the log for members that lag behind; none:
    /// those since the flush before the last.
    pub catch_up_entries: Option<u64>,
}

/// Entries applied between two flushes of the store unless told otherwise: what
/// a restart after a crash has to apply again, at some 10 us each.
pub const ENTRIES_PER_FLUSH: u64 = 32_768;

/// What consensus needs of the network.
pub struct Links {
    pub transport: Box<dyn Transport>,
    pub source: Box<dyn SnapshotSource>,
    pub installer: Box<dyn SnapshotInstaller>,
}

impl Links {
    /// For a member that is alone and stays so.
    pub fn none() -> Links {
        Links {
            transport: Box::new(NoPeers),
            source: Box::new(NoSnapshots),
            installer: Box::new(NoSnapshots),
        }
    }
}

/// The receiving end of a [`PeerInbox`], for [`start`].
pub struct Events {
    sender: Sender<Event>,
    receiver: Receiver<Event>,
}

/// Where messages of peers will come in.
pub fn inbox() -> (PeerInbox, Events) {
    let (sender, receiver) = bounded(proposer::INBOX_CAPACITY);
    let inbox = PeerInbox::new(sender.clone());
    (inbox, Events { sender, receiver })
}

impl Settings {
    /// GEN-12: how long a request may take: 5 s and two elections.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election_timeout
    }

    fn tick(&self) -> Duration {
        self.heartbeat.max(Duration::from_millis(1))
    }

    fn raft_config(&self, applied_index: u64) -> raft::Config {
        let heartbeat = self.tick();
        let ticks = self.election_timeout.as_millis() / heartbeat.as_millis();
        raft::Config {
            id: self.member_id,
            election_tick: usize::try_from(ticks).unwrap_or(usize::MAX).max(2),
            heartbeat_tick: 1,
            applied: applied_index,
            max_size_per_msg: MAX_MESSAGE_BYTES,
            max_inflight_msgs: MAX_INFLIGHT_MESSAGES,
            check_quorum: true,
            pre_vote: self.pre_vote,
            max_committed_size_per_ready: COMMITTED_BYTES_PER_READY,
            ..raft::Config::default()
        }
    }
}

/// Why consensus could not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("starting raft: {0}")]
    Raft(#[from] raft::Error),
    #[error("starting a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// Log and store are not of the same member, or one was exchanged.
    #[error(
        "the raft log holds entries {first} to {last}, but the store has applied up to {applied}: \
         they do not belong together"
    )]
    LogMismatch { first: u64, last: u64, applied: u64 },
    #[error("entry {index} of the raft log is not the one the store has applied last")]
    OtherHistory { index: u64 },
    #[error("the raft log belongs to member {owner:x}, not to {member_id:x}")]
    ForeignLog { owner: u64, member_id: u64 },
}

/// Why a proposal has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ProposeError {
    /// Applied, and refused by the machine: nothing has changed.
    #[error(transparent)]
    Rejected(CommandError),
    #[error("request is too large")]
    TooLarge,
    #[error("too many requests")]
    TooManyRequests,
    #[error("no leader")]
    NoLeader,
    #[error("leader changed")]
    LeaderChanged,
    #[error("request timed out")]
    Timeout,
    /// The leader was lost while the request waited.
    #[error("request timed out, possibly due to previous leader failure")]
    TimeoutLeaderFailed,
    /// The leader, or a majority, was out of reach while the request waited.
    #[error("request timed out, possibly due to connection lost")]
    TimeoutConnectionLost,
    #[error("request timed out, leader transfer took too long")]
    LeaderTransferTimeout,
    /// Only the leader can do this.
    #[error("not leader")]
    NotLeader,
    #[error("server stopped")]
    Stopped,
}

/// How a proposal ends.
type Outcome = Result<Reply, ProposeError>;

/// Who waits for a proposal, and the room it takes until it is answered.
struct Waiter {
    reply: oneshot::Sender<Outcome>,
    /// Of the command: see [`changes_data_only`](crate::machine::command::Command::changes_data_only).
    changes_data_only: bool,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Waits for Waiter {
    fn is_gone(&self) -> bool {
        self.reply.is_closed()
    }
}

/// Who waits until a read sees all that was acknowledged before it.
#[derive(Debug)]
struct Reader(oneshot::Sender<Result<(), ProposeError>>);

impl Reader {
    // Whoever has given up is gone.
    fn answer(self) {
        let _ = self.0.send(Ok(()));
    }

    fn fail(self, error: ProposeError) {
        let _ = self.0.send(Err(error));
    }
}

impl Waits for Reader {
    fn is_gone(&self) -> bool {
        self.0.is_closed()
    }
}

/// The threads behind [`Consensus`]. Dropping it stops them.
pub struct Threads {
    drive_inbox: Sender<Event>,
    drive: Option<Thread<()>>,
    apply: Option<Thread<Applied>>,
    trim: Option<Thread<()>>,
    log_writer: Option<Thread<()>>,
    engine: Arc<Engine>,
    log: Arc<Log>,
    member_id: u64,
    shared: Arc<Shared>,
}

/// Its result is `None` when the thread has panicked.
type Thread<T> = JoinHandle<Option<T>>;

/// Opens the log and starts the threads; a member that is alone leads at once.
/// Returns before the entries of the last run are applied again; proposals and
/// read barriers wait for that.
///
/// `on_effects` is called after each commit and before the replies, by the
/// thread that has applied; it must not block.
pub fn start(
    settings: Settings,
    machine: Machine,
    engine: Arc<Engine>,
    events: Events,
    links: Links,
    on_effects: Box<dyn FnMut(&Effects) + Send>,
) -> Result<(Consensus, Threads), StartError> {
    let member_id = settings.member_id;
    let log = Arc::new(Log::open(&settings.raft_dir)?);
    let run = Run {
        number: rand::random(),
        first_id: proposer::first_id(),
    };
    let config = settings.raft_config(machine.applied().0);
    let Assembled {
        consensus,
        drive,
        apply_loop,
        drive_inbox,
        tasks,
        flushes,
        shared,
    } = assemble(
        &settings,
        config,
        run,
        machine,
        log.clone(),
        events,
        links,
        on_effects,
    )?;
    let trimmer = Trimmer {
        engine: engine.clone(),
        log: log.clone(),
        requests: flushes,
        drive: drive_inbox.clone(),
        shared: shared.clone(),
    };
    let saver = Saver {
        log: log.clone(),
        unsafe_no_fsync: settings.unsafe_no_fsync,
    };
    let drive = drive.with_saver(saver.clone());
    let log_writer = LogWriter {
        saver,
        owner: member_id,
        tasks,
        drive: drive_inbox.clone(),
        shared: shared.clone(),
    };
    let mut threads = Threads {
        drive_inbox,
        drive: None,
        apply: None,
        trim: None,
        log_writer: None,
        engine,
        log,
        member_id,
        shared: shared.clone(),
    };
    // A thread that cannot start drops its end of the queues, so that the
    // ones before it end when `threads` is dropped.
    threads.apply = Some(spawn("stele-apply", &shared, || apply_loop.run())?);
    threads.trim = Some(spawn("stele-trim", &shared, || trimmer.run())?);
    threads.log_writer = Some(spawn("stele-log", &shared, || log_writer.run())?);
    threads.drive = Some(spawn("stele-drive", &shared, || drive.run())?);
    Ok((consensus, threads))
}

/// What must not be the same in two runs of a member.
struct Run {
    number: u64,
    /// Of its proposals.
    first_id: u64,
}

/// The parts that the threads run, and the queues between them.
struct Assembled<L: StoredLog> {
    consensus: Consensus,
    drive: Drive<L>,
    apply_loop: ApplyLoop,
    drive_inbox: Sender<Event>,
    tasks: Receiver<Task>,
    flushes: Receiver<Applied>,
    shared: Arc<Shared>,
}

/// Brings log and state together and wires the parts; nothing runs yet.
fn assemble<L: OpenedLog>(
    settings: &Settings,
    config: raft::Config,
    run: Run,
    mut machine: Machine,
    log: L,
    events: Events,
    links: Links,
    on_effects: Box<dyn FnMut(&Effects) + Send>,
) -> Result<Assembled<L>, StartError> {
    let member_id = settings.member_id;
    let applied = machine.applied();
    let recovered = recover(&log, member_id, applied)?;
    if settings.is_forced_new && applied.0 > 0 {
        machine.force_alone(member_id, recovered.hard_state.term)?;
        tracing::warn!("this member is now a cluster of its own");
    }
    let mut conf = machine.conf();
    if conf.voters.is_empty() && recovered.last_index > 0 {
        // A single member of the first version: its first entries are not in
        // the state yet. Who joins has no entries before it has a state.
        conf.voters.push(member_id);
    }
    let term = recovered.hard_state.term;
    let shared = Arc::new(Shared::new(member_id, term, applied.0, &conf));
    if is_removed(&conf, member_id) {
        shared.set_removed();
    }
    let replica = Replica::new(replica::Start {
        config,
        log,
        recovered,
        conf,
        source: links.source,
        logger: raft_logger::raft_logger(),
        run: run.number,
        read_retry_ticks: (READ_RETRY.as_millis() / settings.tick().as_millis()) as u64,
        advance_election: settings.initial_election_tick_advance,
        catch_up_entries: settings.catch_up_entries,
    })?;

    let Events {
        sender: drive_inbox,
        receiver: events,
    } = events;
    let (log_tasks, tasks) = bounded(LOG_QUEUE);
    let (flusher, flushes) = bounded(1);
    let mut transport = links.transport;
    transport.set_peers(&peers_of(&machine.published(), member_id));
    let applier = Applier::new(
        machine,
        on_effects,
        drive_inbox.clone(),
        links.installer,
        flusher,
        shared.clone(),
        settings.slow_apply,
        settings.entries_per_flush,
    );
    let (to_apply, apply_loop) = apply_queue(applier);
    let inbox = Inbox {
        events,
        shared: shared.clone(),
    };
    let drive = Drive::new(Parts {
        replica,
        inbox,
        log_writer: log_tasks,
        apply: to_apply,
        transport,
        shared: shared.clone(),
        tick_interval: settings.tick(),
        election_timeout: settings.election_timeout,
    });
    let consensus = Consensus::new(settings, run.first_id, drive_inbox.clone(), shared.clone());
    Ok(Assembled {
        consensus,
        drive,
        apply_loop,
        drive_inbox,
        tasks,
        flushes,
        shared,
    })
}

/// Whether the group goes on without this member. One that joins knows nobody.
fn is_removed(conf: &Conf, member_id: u64) -> bool {
    !conf.voters.is_empty()
        && !conf.voters.contains(&member_id)
        && !conf.learners.contains(&member_id)
}

/// Starts a thread whose panic closes the latch as an error would.
fn spawn<T: Send + 'static>(
    name: &'static str,
    shared: &Arc<Shared>,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<Thread<T>> {
    let shared = shared.clone();
    let guarded = move || match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => Some(result),
        Err(panic) => {
            let text = log::panic_text(&*panic);
            shared.fail(format_args!("thread {name} has panicked: {text}"));
            None
        }
    };
    std::thread::Builder::new().name(name.into()).spawn(guarded)
}

impl Threads {
    /// Refuses new proposals, finishes those under way, brings the store up to
    /// date on disk and ends the threads. Blocks for as long as that takes.
    pub fn stop(self) {
        drop(self);
    }

    fn join_all(&mut self) {
        self.shared.begin_stop();
        // Fails when the drive loop has ended by itself.
        let _ = self.drive_inbox.send(Event::Stop);
        // Each thread ends when the one before it is gone.
        join(self.drive.take());
        let applied = join(self.apply.take());
        join(self.trim.take());
        join(self.log_writer.take());
        if let Some(applied) = applied
            && !self.shared.has_failed()
            && let Err(failure) = self.flush(applied)
        {
            // The log still has everything: the next start applies it again.
            tracing::warn!(%failure, "the store was not flushed at the end");
        }
    }

    /// Leaves nothing for the next start to apply again.
    fn flush(&self, applied: Applied) -> Result<(), Box<dyn std::error::Error>> {
        self.engine.flush()?;
        if !self.shared.is_alone() {
            // The others may need the last entries of this member's log.
            return Ok(());
        }
        let mut append = Append::default();
        append.truncate(applied, self.member_id)?;
        self.log.write(append, false)?;
        Ok(self.log.purge()?)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.join_all();
    }
}

fn join<T>(thread: Option<Thread<T>>) -> Option<T> {
    // Panics are caught inside, so joining succeeds.
    thread?.join().ok().flatten()
}
