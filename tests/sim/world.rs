//! One run: the members, the network and the clients, event after event.
//!
//! Owns the order of everything, drawn from one seed: when a message arrives,
//! when a sync ends, when a member applies. The members' own code runs between
//! two events, never in parallel. What goes wrong on purpose is `troubles`'.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use raft::eraftpb::Message;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use stele::machine::members;
use stele::proto::etcdserverpb::Member;

use super::Fault;
use super::clients::{Answer, Client, Traffic};
use super::clock::{Clock, MILLISECOND, SECOND};
use super::ending::Ending;
use super::host::{Host, Surroundings};
use super::network::Network;
use super::oracle::{Counts, Oracle};
use super::settings::setting;
use super::troubles::{Trouble, Troubles};
use super::watches::Watch;

/// Steps of the trace that a failure shows, if no other number is set.
const SHOWN_STEPS: u64 = 150;

/// How long it takes after a suspension until all threads run again.
pub const WAKING: u64 = 3 * MILLISECOND;

/// How long troubles last.
pub const TROUBLED: u64 = 14 * SECOND;

/// After that everything must work again, for each member and client.
const RECOVERY: u64 = 12 * SECOND;

pub enum Event {
    /// `(host, life)` in these.
    Tick(usize, u64),
    Synced(usize, u64),
    Apply(usize, u64),
    Drive(usize, u64),
    /// Stop, some time after having been removed: as with etcd, so that the
    /// others hear of what this member had committed last.
    Leave(usize, u64),
    Flushed(usize, u64),
    Chore(usize, u64),
    SnapshotSent {
        host: usize,
        life: u64,
        peer: u64,
        is_ok: bool,
    },
    Unreachable(usize, u64, u64),
    Deliver(usize, Box<Message>),
    Client(usize),
    GiveUp(usize, u64),
    Watch(usize),
    Trouble(Trouble),
    Heal,
}

pub struct World {
    pub around: Surroundings,
    pub rng: StdRng,
    pub hosts: Vec<Host>,
    pub network: Network,
    pub clients: Vec<Client>,
    pub watches: Vec<Watch>,
    pub troubles: Troubles,
    pub root: PathBuf,
    pub ending: Ending,
    events: BTreeMap<(u64, u64), Event>,
    event_count: u64,
    trace: Option<VecDeque<String>>,
    shown_steps: usize,
    /// Over everything that happened, to compare two runs.
    digest: u64,
    is_healed: bool,
    pub traffic: Traffic,
    // Before everything else is dropped the directory must not go.
    _dir: tempfile::TempDir,
}

pub struct Outcome {
    pub violation: Option<String>,
    pub trace: Vec<String>,
    pub digest: u64,
    pub counts: Counts,
}

/// Runs a seed to its end.
pub fn run(seed: u64, fault: Option<Fault>, is_traced: bool) -> Outcome {
    let mut world = World::new(seed, fault, is_traced);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run())) {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        world.fail(format!("panic: {}", text.unwrap_or("of no text")));
    }
    let oracle = world.around.oracle.lock();
    Outcome {
        violation: oracle.violation.clone(),
        trace: world.trace.iter().flatten().cloned().collect(),
        digest: world.digest,
        counts: oracle.counts,
    }
}

impl World {
    fn new(seed: u64, fault: Option<Fault>, is_traced: bool) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let shm = std::path::Path::new("/dev/shm");
        let parent = if shm.is_dir() {
            shm.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        let dir = tempfile::Builder::new()
            .prefix("stele-sim-")
            .tempdir_in(parent)
            .unwrap();
        let root = dir.path().to_path_buf();
        let transfers = root.join("transfers");
        std::fs::create_dir(&transfers).unwrap();
        let around = Surroundings {
            clock: Clock::new(),
            oracle: Arc::new(Mutex::new(Oracle::default())),
            transfers,
            transfer_count: Arc::default(),
            fault,
        };
        let count = [1, 3, 3, 3, 3, 3, 5, 5][rng.random_range(0..8)];
        let mut traffic = Traffic {
            has_compactions: rng.random(),
            has_many_leases: rng.random(),
            has_shared_leases: fault == Some(Fault::RenewUnconfirmed),
        };
        let mut troubles = Troubles::new(count, &mut rng);
        if matches!(
            fault,
            Some(Fault::ExpireInAnyTerm | Fault::RenewUnconfirmed)
        ) {
            // Where such a fault is likely to show: a leader of the past that
            // wakes up after others have renewed.
            traffic.has_many_leases = true;
            troubles.has_pauses = true;
        }
        let mut world = World {
            around,
            hosts: Vec::new(),
            network: Network::new(),
            clients: Vec::new(),
            watches: Vec::new(),
            troubles,
            root,
            ending: Ending::default(),
            events: BTreeMap::new(),
            event_count: 0,
            trace: is_traced.then(VecDeque::new),
            shown_steps: setting("STELE_SIM_STEPS").unwrap_or(SHOWN_STEPS) as usize,
            digest: 0,
            is_healed: false,
            traffic,
            rng,
            _dir: dir,
        };
        let members: Vec<Member> = (1..=count).map(member).collect();
        for id in 1..=count {
            world.add_host(id, &members, members::Start::NewCluster);
        }
        let host_count = world.hosts.len();
        for client in 0..4 {
            let host = world.rng.random_range(0..host_count);
            world.clients.push(Client::new(client + 1, host));
            world.plan(SECOND, Event::Client(client as usize));
        }
        for watch in 0..2 {
            let host = world.rng.random_range(0..host_count);
            world.watches.push(Watch::new(host, watch == 0));
            world.plan(SECOND, Event::Watch(watch));
        }
        world.plan(2 * SECOND, Event::Trouble(Trouble::Next));
        world.plan(TROUBLED, Event::Heal);
        world
    }

    /// A new member; it may know more than itself.
    pub fn add_host(&mut self, id: u64, members: &[Member], start: members::Start) {
        let mut host = Host::new(id, &self.root);
        host.tick = self.rng.random_range(93..=107) * MILLISECOND;
        // Different ones, or two would disturb each other for ever.
        host.election_ticks = 10 + (self.rng.random_range(0..3) * 3 + id as usize) % 9;
        host.entries_per_flush = self.troubles.entries_per_flush;
        host.catch_up_entries = self.troubles.catch_up_entries;
        host.bootstrap(members, start);
        self.hosts.push(host);
        self.start_host(self.hosts.len() - 1);
    }

    pub fn start_host(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        if host.life.is_some() || host.is_gone {
            return;
        }
        host.start(&self.around);
        let (life, tick) = (host.lives, host.tick);
        self.note(|| format!("member {} starts", at + 1));
        let first = self.rng.random_range(0..tick);
        self.plan(first, Event::Tick(at, life));
        self.plan(500 * MILLISECOND, Event::Chore(at, life));
        self.settle(at);
    }

    pub fn crash_host(&mut self, at: usize) {
        if self.hosts[at].life.is_none() {
            return;
        }
        for client in &mut self.clients {
            let asked = client.in_flight.take_if(|asked| asked.host == at);
            if let Some(asked) = asked {
                let mut oracle = self.around.oracle.lock();
                client.check(&asked, Answer::Unknown, &mut oracle);
            }
        }
        for watch in self.watches.iter_mut().filter(|watch| watch.host == at) {
            watch.close();
        }
        let lost = self.hosts[at].crash(&mut self.rng);
        self.around.oracle.lock().counts.crashes += 1;
        self.note(|| format!("member {} crashes, {lost} writes are lost", at + 1));
    }

    pub fn now(&self) -> u64 {
        self.around.clock.now()
    }

    /// In `after` microseconds.
    pub fn plan(&mut self, after: u64, event: Event) {
        self.event_count += 1;
        let at = self.now() + after;
        self.events.insert((at, self.event_count), event);
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        let Some(trace) = &mut self.trace else { return };
        if trace.len() == self.shown_steps {
            trace.pop_front();
        }
        let now = self.around.clock.now();
        trace.push_back(format!("{:>9.4} {}", now as f64 / 1e6, text()));
    }

    pub fn fail(&self, what: String) {
        self.around.oracle.lock().fail(what);
    }

    fn has_failed(&self) -> bool {
        self.around.oracle.lock().violation.is_some()
    }

    pub fn mix(&mut self, number: u64) {
        self.digest = (self.digest.rotate_left(5) ^ number).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn run(&mut self) {
        while let Some(((at, number), event)) = self.events.pop_first() {
            if self.has_failed() {
                return;
            }
            if self.is_healed && at > TROUBLED + RECOVERY {
                break;
            }
            self.around.clock.set(at);
            self.mix(at);
            self.mix(number);
            self.handle(event);
        }
        if !self.has_failed() {
            self.check_ending();
        }
    }

    fn handle(&mut self, event: Event) {
        let (host, life) = match &event {
            Event::Tick(host, life)
            | Event::Synced(host, life)
            | Event::Apply(host, life)
            | Event::Drive(host, life)
            | Event::Leave(host, life)
            | Event::Flushed(host, life)
            | Event::Chore(host, life)
            | Event::Unreachable(host, life, _)
            | Event::SnapshotSent { host, life, .. } => (*host, Some(*life)),
            Event::Deliver(host, _) => (*host, None),
            Event::Client(client) => return self.client(*client),
            Event::GiveUp(client, number) => return self.give_up(*client, *number),
            Event::Watch(watch) => return self.watch(*watch),
            Event::Trouble(trouble) => {
                let trouble = trouble.clone();
                return self.trouble(trouble);
            }
            Event::Heal => return self.heal(),
        };
        let member = &self.hosts[host];
        if member.life.is_none() || life.is_some_and(|life| life != member.lives) {
            if let Event::Deliver(_, message) = event {
                self.lose(host, &message);
            }
            return;
        }
        if member.paused_until > self.now() {
            return self.put_off(host, event);
        }
        if self.troubles.crashes_now(&mut self.rng) && !self.is_healed {
            if let Event::Deliver(_, message) = &event {
                self.lose(host, message);
            }
            return self.trouble(Trouble::Crash(host));
        }
        if matches!(event, Event::Drive(..)) {
            return self.settle(host);
        }
        self.member_event(host, event);
        self.settle_soon(host);
    }

    /// Until the member is resumed. Then its threads and connections all wake
    /// up at once, in no particular order.
    pub fn put_off(&mut self, host: usize, event: Event) {
        let after = self.hosts[host].paused_until - self.now();
        let is_first = matches!(event, Event::Chore(..) | Event::Drive(..)) && self.rng.random();
        let late = if is_first {
            0
        } else {
            self.rng.random_range(0..WAKING)
        };
        self.plan(after + late, event);
    }

    /// Everything is repaired; the members must find together again.
    fn heal(&mut self) {
        self.note(|| "all is repaired".to_owned());
        self.is_healed = true;
        self.network.heal();
        for at in 0..self.hosts.len() {
            let host = &mut self.hosts[at];
            host.paused_until = 0;
            host.max_sync = 2 * MILLISECOND;
            host.max_apply = MILLISECOND;
            self.start_host(at);
        }
        self.begin_ending();
    }

    pub fn is_traced(&self) -> bool {
        self.trace.is_some()
    }

    pub fn is_healed(&self) -> bool {
        self.is_healed
    }
}

pub fn member(id: u64) -> Member {
    Member {
        id,
        peer_ur_ls: vec![format!("http://member-{id}:2380")],
        ..Member::default()
    }
}
