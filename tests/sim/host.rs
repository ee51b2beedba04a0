//! A member: its machine that outlives crashes, and the process on it.
//!
//! Owns the real parts (replica, drive loop, applying, machine, RocksDB,
//! lessor, hub) and the simulated disk below the log. It decides nothing about
//! time: the world says when a step is made.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use raft::eraftpb::{Message, Snapshot, SnapshotMetadata};
use stele::consensus::replica::conf_state;
use stele::consensus::stepped::{Start, Stepped};
use stele::consensus::{
    self, Consensus, Links, Peer, PeerInbox, Settings, SnapshotInstaller, SnapshotSource, Transport,
};
use stele::lease::Lessor;
use stele::machine::members::{self, Identity};
use stele::machine::{Conf, Effects, LeaseChange, Machine};
use stele::mvcc::Store;
use stele::proto::etcdserverpb::Member;
use stele::storage::{self, Engine, StorageError};
use stele::watch::{self, Hub, Sweep};

use super::Fault;
use super::clock::{Clock, MILLISECOND};
use super::disk::{Disk, Writer};
use super::oracle::Oracle;

pub const HEARTBEAT: Duration = Duration::from_millis(100);
pub const ELECTION_TIMEOUT: Duration = Duration::from_millis(1000);

/// A machine in the cluster.
pub struct Host {
    pub id: u64,
    dir: PathBuf,
    disk: Disk,
    pub life: Option<Life>,
    /// Raised with each start and each crash: what was planned for another
    /// life is void.
    pub lives: u64,
    /// Between two ticks of its clock.
    pub tick: u64,
    /// Suspended until then.
    pub paused_until: u64,
    /// A sync takes up to so long.
    pub max_sync: u64,
    pub max_apply: u64,
    pub entries_per_flush: u64,
    pub catch_up_entries: Option<u64>,
    pub election_ticks: usize,
    /// Removed from the cluster, or never heard of by it: stays off.
    pub is_gone: bool,
    /// As the bootstrap has left it, for the first start.
    fresh: Option<Engine>,
}

pub type Pending = Pin<Box<dyn Future<Output = ()>>>;

/// A running process.
pub struct Life {
    pub stepped: Stepped<Disk>,
    pub consensus: Consensus,
    pub inbox: PeerInbox,
    pub engine: Arc<Engine>,
    pub store: Store,
    pub lessor: Arc<Lessor>,
    pub hub: Arc<Hub>,
    pub sweep: Sweep,
    pub writer: Writer,
    outgoing: Arc<Mutex<Vec<Message>>>,
    summary: Arc<Mutex<Summary>>,
    pub is_apply_planned: bool,
    pub is_drive_planned: bool,
    pub is_leaving: bool,
    pub flushing: Option<(u64, u64)>,
    /// Revocations that the chore waits for, and until when.
    pub chores: Vec<Pending>,
    pub chores_until: u64,
    /// The last revision that a serializable read has shown.
    pub last_read: i64,
}

/// What a checkpoint made now would hold.
#[derive(Default)]
struct Summary {
    applied: (u64, u64),
    conf: Conf,
}

/// What all members share.
#[derive(Clone)]
pub struct Surroundings {
    pub clock: Clock,
    pub oracle: Arc<Mutex<Oracle>>,
    /// Where states on their way lie.
    pub transfers: PathBuf,
    pub transfer_count: Arc<Mutex<u64>>,
    pub fault: Option<Fault>,
}

impl Host {
    pub fn new(id: u64, root: &Path) -> Host {
        Host {
            id,
            dir: root.join(format!("{id}")),
            disk: Disk::default(),
            life: None,
            lives: 0,
            tick: HEARTBEAT.as_micros() as u64,
            paused_until: 0,
            max_sync: 2 * MILLISECOND,
            max_apply: MILLISECOND,
            entries_per_flush: 100,
            catch_up_entries: None,
            election_ticks: 10,
            is_gone: false,
            fresh: None,
        }
    }

    pub fn bootstrap(&mut self, members: &[Member], start: members::Start) {
        std::fs::create_dir_all(&self.dir).unwrap();
        let identity = Identity {
            cluster_id: 1,
            member_id: self.id,
        };
        let engine = self.open_engine();
        identity.bootstrap(&engine, members, start).unwrap();
        self.fresh = Some(engine);
    }

    fn open_engine(&self) -> Engine {
        // More than a run writes: a full write buffer would be flushed by
        // RocksDB's own thread, and a crash would find it done or not.
        let settings = storage::Settings {
            block_cache_bytes: 128 << 20,
            memtable_bytes: 64 << 20,
            background_jobs: 1,
            is_stepped: true,
        };
        Engine::open(&self.dir.join("state"), &settings).unwrap()
    }

    pub fn start(&mut self, around: &Surroundings) {
        assert!(self.life.is_none());
        self.lives += 1;
        let engine = self.fresh.take().unwrap_or_else(|| self.open_engine());
        let engine = Arc::new(engine);
        let (machine, store) = Machine::open(engine.clone()).unwrap();
        let now = around.clock.instant();
        let lessor = Arc::new(Lessor::new(machine.leases(), ELECTION_TIMEOUT, now));
        let hub = Arc::new(Hub::stepped(store.clone(), watch::Settings::default()));
        let summary = Arc::new(Mutex::new(Summary {
            applied: machine.applied(),
            conf: machine.conf(),
        }));
        let outgoing = Arc::new(Mutex::new(Vec::new()));
        let links = Links {
            transport: Box::new(Outgoing(outgoing.clone())),
            source: Box::new(Source {
                engine: engine.clone(),
                summary: summary.clone(),
                around: around.clone(),
            }),
            installer: Box::new(Installer(around.transfers.clone())),
        };
        let settings = Settings {
            raft_dir: PathBuf::new(),
            member_id: self.id,
            heartbeat: HEARTBEAT,
            election_timeout: ELECTION_TIMEOUT,
            max_request_bytes: 1 << 20,
            slow_apply: Duration::from_secs(60),
            unsafe_no_fsync: false,
            pre_vote: true,
            initial_election_tick_advance: true,
            is_forced_new: false,
            entries_per_flush: self.entries_per_flush,
            catch_up_entries: self.catch_up_entries,
        };
        let (inbox, events) = consensus::inbox();
        let start = Start {
            settings,
            machine,
            log: self.disk.clone(),
            events,
            links,
            on_effects: spread_effects(self.id, &lessor, &hub, around),
            run: self.lives,
            election_ticks: self.election_ticks,
            has_lease_reads: around.fault == Some(Fault::LeaseReads),
        };
        let (consensus, stepped) = Stepped::start(start)
            .unwrap_or_else(|error| panic!("member {} does not start: {error}", self.id));
        self.life = Some(Life {
            stepped,
            consensus,
            inbox,
            engine,
            store,
            lessor,
            hub,
            sweep: Sweep::default(),
            writer: Writer::new(self.disk.clone()),
            outgoing,
            summary,
            is_apply_planned: false,
            is_drive_planned: false,
            is_leaving: false,
            flushing: None,
            chores: Vec::new(),
            chores_until: 0,
            last_read: 0,
        });
    }

    /// The process is gone, with what it had not synced; answers how many
    /// writes of the log that were.
    pub fn crash(&mut self, rng: &mut rand::rngs::StdRng) -> usize {
        self.life = None;
        self.lives += 1;
        self.paused_until = 0;
        self.disk.crash(rng)
    }
}

impl Life {
    /// What the member wants sent.
    pub fn take_messages(&self) -> Vec<Message> {
        std::mem::take(&mut *self.outgoing.lock())
    }

    /// One step of the apply thread.
    pub fn apply(&mut self) {
        self.stepped.apply();
        let machine = self.stepped.machine();
        let mut summary = self.summary.lock();
        summary.applied = machine.applied();
        if summary.conf != machine.conf() {
            summary.conf = machine.conf();
        }
    }
}

/// As `node` wires it.
fn spread_effects(
    id: u64,
    lessor: &Arc<Lessor>,
    hub: &Arc<Hub>,
    around: &Surroundings,
) -> Box<dyn FnMut(&Effects) + Send> {
    let (lessor, hub) = (lessor.clone(), hub.clone());
    let (clock, oracle) = (around.clock.clone(), around.oracle.clone());
    Box::new(move |effects| {
        oracle.lock().committed(id, clock.now(), effects);
        if let Some(reloaded) = &effects.reloaded {
            lessor.reset(reloaded.leases.iter().copied(), clock.instant());
            hub.replaced(reloaded.revision);
        }
        for change in &effects.leases {
            match *change {
                LeaseChange::Granted { id, ttl_seconds } => {
                    lessor.granted_at(id, ttl_seconds, clock.instant());
                }
                LeaseChange::Revoked { id } => lessor.revoked(id),
                LeaseChange::Checkpointed {
                    id,
                    remaining_seconds,
                    sequence,
                } => lessor.checkpointed(id, remaining_seconds, sequence),
            }
        }
        if !effects.events.is_empty() {
            hub.publish(&effects.events);
        }
    })
}

struct Outgoing(Arc<Mutex<Vec<Message>>>);

impl Transport for Outgoing {
    fn send(&mut self, messages: Vec<Message>) {
        self.0.lock().extend(messages);
    }

    fn set_peers(&mut self, _peers: &[Peer]) {}
}

/// Makes a checkpoint of the state for each snapshot that raft asks for. The
/// message carries its number.
struct Source {
    engine: Arc<Engine>,
    summary: Arc<Mutex<Summary>>,
    around: Surroundings,
}

impl SnapshotSource for Source {
    fn offer(&self, _to: u64, current: &SnapshotMetadata, truncated: u64) -> Option<Snapshot> {
        let summary = self.summary.lock();
        let mut count = self.around.transfer_count.lock();
        *count += 1;
        let dir = self.around.transfers.join(count.to_string());
        self.engine.checkpoint(&dir).unwrap();
        assert!(summary.applied.0 >= current.index.max(truncated));
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = summary.applied;
        metadata.set_conf_state(conf_state(&summary.conf));
        snapshot.data = count.to_string().into_bytes().into();
        Some(snapshot)
    }
}

/// Puts such a checkpoint in place.
struct Installer(PathBuf);

impl SnapshotInstaller for Installer {
    fn install(&mut self, machine: &mut Machine, snapshot: &Snapshot) -> Result<(), StorageError> {
        let number = String::from_utf8(snapshot.data.to_vec()).unwrap();
        let metadata = snapshot.get_metadata();
        machine.install(&self.0.join(number), (metadata.index, metadata.term))
    }
}
