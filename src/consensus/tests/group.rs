//! Groups of several members in one process, over a network of memory: each
//! has its own machine, store, log and threads. What was acknowledged is
//! everywhere, what is read is never old, whoever leads, falls out or joins.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex as Lock;
use prost::Message as _;
use raft::eraftpb::{Message, MessageType, Snapshot, SnapshotMetadata};
use tempfile::TempDir;

use super::*;
use crate::machine::command::{MemberChange, MemberChangeKind};
use crate::storage::StorageError;

const ELECTION_TIMEOUT: Duration = Duration::from_millis(500);

/// A whole state on its way to a member.
struct State {
    root: TempDir,
    metadata: SnapshotMetadata,
}

impl State {
    fn of(engine: &Engine) -> State {
        let root = TempDir::new().unwrap();
        let dir = root.path().join("state");
        engine.checkpoint(&dir).unwrap();
        let description = crate::machine::describe(engine, &dir).unwrap();
        let mut metadata = SnapshotMetadata::default();
        (metadata.index, metadata.term) = description.applied;
        metadata.mut_conf_state().voters = description.conf.voters;
        metadata.mut_conf_state().learners = description.conf.learners;
        State { root, metadata }
    }
}

/// Takes messages from everybody to everybody.
#[derive(Default)]
struct Network {
    ports: Lock<HashMap<u64, Port>>,
    /// Nothing gets from the first to the second.
    cut: Lock<HashSet<(u64, u64)>>,
    states: Lock<HashMap<u64, State>>,
    last_state: AtomicU64,
    installed_states: AtomicUsize,
}

struct Port {
    inbox: PeerInbox,
    engine: Arc<Engine>,
}

impl Network {
    fn cut_off(&self, id: u64) {
        let mut cut = self.cut.lock();
        for other in 1..10 {
            cut.extend([(id, other), (other, id)]);
        }
    }

    fn heal(&self) {
        self.cut.lock().clear();
    }

    fn deliver(self: &Arc<Self>, message: Message) {
        if self.cut.lock().contains(&(message.from, message.to)) {
            return;
        }
        if message.get_msg_type() == MessageType::MsgSnapshot {
            let network = self.clone();
            std::thread::spawn(move || network.deliver_state(message));
            return;
        }
        let inbox = {
            let ports = self.ports.lock();
            ports.get(&message.to).map(|port| port.inbox.clone())
        };
        if let Some(inbox) = inbox {
            let _ = inbox.step(message);
        }
    }

    /// As a transfer does: the state first, then the message that speaks of it.
    fn deliver_state(&self, mut message: Message) {
        let (from, to) = (message.from, message.to);
        let (sender, receiver) = {
            let ports = self.ports.lock();
            let port = |id| ports.get(&id).map(|port: &Port| port.inbox.clone());
            let Some(sender) = ports.get(&from) else {
                return;
            };
            ((sender.inbox.clone(), sender.engine.clone()), port(to))
        };
        let state = State::of(&sender.1);
        let metadata = state.metadata.clone();
        let id = self.last_state.fetch_add(1, Ordering::Relaxed) + 1;
        let snapshot = message.mut_snapshot();
        snapshot.set_metadata(metadata);
        snapshot.data = Bytes::copy_from_slice(&id.to_be_bytes());
        self.states.lock().insert(id, state);
        let is_cut = self.cut.lock().contains(&(from, to));
        let ok = !is_cut && receiver.is_some_and(|receiver| receiver.step(message).is_ok());
        sender.0.snapshot_sent(to, ok);
    }
}

struct Link {
    network: Arc<Network>,
}

impl Transport for Link {
    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            self.network.deliver(message);
        }
    }

    fn set_peers(&mut self, _peers: &[Peer]) {}
}

struct Source;

impl SnapshotSource for Source {
    fn offer(&self, _to: u64, current: &SnapshotMetadata, _: u64) -> Option<Snapshot> {
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(current.clone());
        Some(snapshot)
    }
}

struct Installer {
    network: Arc<Network>,
}

impl SnapshotInstaller for Installer {
    fn install(&mut self, machine: &mut Machine, snapshot: &Snapshot) -> Result<(), StorageError> {
        let id = u64::from_be_bytes(snapshot.data.as_ref().try_into().unwrap());
        let state = self.network.states.lock().remove(&id).unwrap();
        let metadata = snapshot.get_metadata();
        let dir = state.root.path().join("state");
        machine.install(&dir, (metadata.index, metadata.term))?;
        self.network
            .installed_states
            .fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

struct Node {
    consensus: Consensus,
    threads: Threads,
    store: Arc<Lock<Store>>,
}

impl Node {
    /// What stands under a key, after all that was acknowledged before.
    async fn read(&self, key: &str) -> Result<Option<String>, ProposeError> {
        self.consensus.read_barrier().await?;
        Ok(self.peek(key))
    }

    fn peek(&self, key: &str) -> Option<String> {
        let request = RangeRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            ..RangeRequest::default()
        };
        let response = self.store.lock().range(&request).unwrap();
        let kv = response.kvs.first()?;
        let value = crate::proto::mvccpb::KeyValue::decode(kv.as_ref())
            .unwrap()
            .value;
        Some(String::from_utf8(value.to_vec()).unwrap())
    }

    fn handle(&self) -> Handle {
        Handle {
            consensus: self.consensus.clone(),
            store: self.store.clone(),
        }
    }
}

/// A node as its clients have it.
#[derive(Clone)]
struct Handle {
    consensus: Consensus,
    store: Arc<Lock<Store>>,
}

struct Cluster {
    network: Arc<Network>,
    dirs: BTreeMap<u64, TempDir>,
    nodes: BTreeMap<u64, Node>,
    /// The handles of the nodes that run, for clients.
    handles: Arc<Lock<BTreeMap<u64, Handle>>>,
}

impl Cluster {
    fn new(size: u64) -> Cluster {
        let mut cluster = Cluster {
            network: Arc::default(),
            dirs: BTreeMap::new(),
            nodes: BTreeMap::new(),
            handles: Arc::default(),
        };
        let ids: Vec<u64> = (1..=size).collect();
        for id in 1..=size {
            let mut members = ids.clone();
            members.rotate_left(id as usize - 1);
            cluster.prepare(id, &members, Start::NewCluster);
        }
        for id in 1..=size {
            cluster.start(id);
        }
        cluster
    }

    fn prepare(&mut self, id: u64, members: &[u64], start: Start) {
        let dir = tempfile::tempdir().unwrap();
        let engine = open_engine(dir.path());
        let identity = Identity {
            cluster_id: 7,
            member_id: id,
        };
        let mut members: Vec<_> = members.iter().map(|id| member_of(*id)).collect();
        members.sort_by_key(|member| member.id);
        identity.bootstrap(&engine, &members, start).unwrap();
        self.dirs.insert(id, dir);
    }

    fn start(&mut self, id: u64) {
        let dir = self.dirs[&id].path();
        let engine = open_engine(dir);
        let (machine, store) = Machine::open(engine.clone()).unwrap();
        let store = Arc::new(Lock::new(store));
        let (inbox, events) = inbox();
        let port = Port {
            inbox,
            engine: engine.clone(),
        };
        self.network.ports.lock().insert(id, port);
        let links = Links {
            transport: Box::new(Link {
                network: self.network.clone(),
            }),
            source: Box::new(Source),
            installer: Box::new(Installer {
                network: self.network.clone(),
            }),
        };
        let settings = Settings {
            member_id: id,
            heartbeat: Duration::from_millis(50),
            election_timeout: ELECTION_TIMEOUT,
            ..settings(dir)
        };
        let on_effects = Box::new(|_: &Effects| {});
        let started = start(settings, machine, engine, events, links, on_effects);
        let (consensus, threads) = started.unwrap();
        let node = Node {
            consensus,
            threads,
            store,
        };
        self.handles.lock().insert(id, node.handle());
        self.nodes.insert(id, node);
    }

    async fn stop(&mut self, id: u64) {
        let node = self.nodes.remove(&id).unwrap();
        self.handles.lock().remove(&id);
        let stopped = tokio::task::spawn_blocking(move || node.threads.stop());
        stopped.await.unwrap();
        self.network.ports.lock().remove(&id);
    }

    /// As kill -9 leaves it. Nobody hears of the end.
    async fn crash(&mut self, id: u64) {
        self.network.cut_off(id);
        // What had arrived is applied; store and log are copied one after the
        // other.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let crashed = tempfile::tempdir().unwrap();
        copy_dir(self.dirs[&id].path(), crashed.path());
        self.stop(id).await;
        self.dirs.insert(id, crashed);
        self.network.heal();
    }

    async fn stop_all(mut self) {
        // All at once, so that nobody waits for the others.
        let nodes = std::mem::take(&mut self.nodes);
        let mut stops = JoinSet::new();
        for node in nodes.into_values() {
            stops.spawn_blocking(move || {
                assert!(!node.consensus.has_failed());
                node.threads.stop();
            });
        }
        stops.join_all().await;
    }

    /// Waits until one of the nodes leads that all (but `except`) follow.
    async fn leader(&self, except: &[u64]) -> u64 {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let nodes = self.nodes.iter().filter(|(id, _)| !except.contains(id));
            let leaders: HashSet<u64> = nodes
                .map(|(_, node)| node.consensus.status().leader)
                .collect();
            let leader = leaders.iter().next().copied().unwrap_or(0);
            if leaders.len() == 1 && leader != 0 && !except.contains(&leader) {
                return leader;
            }
            assert!(Instant::now() < deadline, "no leader: {leaders:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn put(&self, id: u64, key: &str, value: &str) {
        let put = put(key, value.to_owned());
        self.nodes[&id].consensus.propose(put).await.unwrap();
    }

    async fn expect(&self, id: u64, key: &str, value: &str) {
        let read = self.nodes[&id].read(key).await.unwrap();
        assert_eq!(read.as_deref(), Some(value), "at member {id}");
    }

    async fn change(&self, at: u64, kind: MemberChangeKind, id: u64) {
        let change = MemberChange {
            kind: kind.into(),
            member: Some(member_of(id)),
            max_learners: 1,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let outcome = self.nodes[&at]
                .consensus
                .change_membership(change.clone())
                .await;
            match outcome {
                Ok(_) => return,
                // Lost on its way; but it may have been carried out.
                Err(ProposeError::Rejected(
                    CommandError::MemberExists | CommandError::MemberNotFound,
                )) => return,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    }
}

fn open_engine(dir: &Path) -> Arc<Engine> {
    let settings = crate::storage::Settings::default();
    Arc::new(Engine::open(&dir.join("state"), &settings).unwrap())
}

/// Clients that write one key after the other through any member, and others
/// that look through any member for the last one that had been acknowledged
/// when they began.
struct Load {
    is_over: Arc<AtomicBool>,
    acknowledged: Arc<Lock<Vec<u64>>>,
    reads: Arc<AtomicUsize>,
    clients: JoinSet<()>,
}

impl Load {
    fn on(cluster: &Cluster) -> Load {
        let mut load = Load {
            is_over: Arc::default(),
            acknowledged: Arc::default(),
            reads: Arc::default(),
            clients: JoinSet::new(),
        };
        let handles = cluster.handles.clone();
        let (is_over, acknowledged) = (load.is_over.clone(), load.acknowledged.clone());
        load.clients.spawn(async move {
            let mut number = 0;
            while !is_over.load(Ordering::Relaxed) {
                number += 1;
                let handle = any(&handles);
                let write = handle.consensus.propose(put(key_of(number), "v"));
                // An error leaves it open whether it was written.
                if let Ok(Ok(_)) = tokio::time::timeout(ELECTION_TIMEOUT, write).await {
                    acknowledged.lock().push(number);
                } else {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        for _ in 0..4 {
            let handles = cluster.handles.clone();
            let (is_over, acknowledged) = (load.is_over.clone(), load.acknowledged.clone());
            let reads = load.reads.clone();
            load.clients.spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    let handle = any(&handles);
                    let before = acknowledged.lock().last().copied();
                    let barrier = handle.consensus.read_barrier();
                    if let Ok(Ok(())) = tokio::time::timeout(ELECTION_TIMEOUT, barrier).await {
                        assert!(
                            before.is_none_or(|number| has_number(&handle, number)),
                            "{before:?} was acknowledged, and is not read"
                        );
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
        }
        load
    }

    /// Waits until so many more writes have been acknowledged.
    async fn progress(&self, writes: usize) {
        let target = self.acknowledged.lock().len() + writes;
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.acknowledged.lock().len() < target {
            assert!(Instant::now() < deadline, "no progress");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Answers all that was acknowledged.
    async fn stop(self) -> Vec<u64> {
        self.is_over.store(true, Ordering::Relaxed);
        self.clients.join_all().await;
        assert!(self.reads.load(Ordering::Relaxed) > 50, "hardly any reads");
        self.acknowledged.lock().clone()
    }
}

fn key_of(number: u64) -> String {
    format!("number/{number:08}")
}

fn any(handles: &Lock<BTreeMap<u64, Handle>>) -> Handle {
    let handles = handles.lock();
    let nth = rand::random_range(0..handles.len());
    handles.values().nth(nth).unwrap().clone()
}

fn has_number(handle: &Handle, number: u64) -> bool {
    let request = RangeRequest {
        key: key_of(number).into(),
        count_only: true,
        ..RangeRequest::default()
    };
    handle.store.lock().range(&request).unwrap().count == 1
}

impl Cluster {
    /// All members that run have everything that was acknowledged.
    async fn check(&self, acknowledged: &[u64]) {
        for (id, node) in &self.nodes {
            node.consensus.read_barrier().await.unwrap();
            let handle = node.handle();
            let mut numbers = acknowledged.iter();
            let lost = numbers.find(|number| !has_number(&handle, **number));
            assert_eq!(lost, None, "lost at member {id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn any_member_takes_writes_and_reads() {
    for size in [3, 5] {
        let cluster = Cluster::new(size);
        cluster.leader(&[]).await;
        for id in 1..=size {
            cluster.put(id, "k", &format!("from {id}")).await;
            for reader in 1..=size {
                cluster.expect(reader, "k", &format!("from {id}")).await;
            }
        }
        let statuses: Vec<Status> = cluster
            .nodes
            .values()
            .map(|n| n.consensus.status())
            .collect();
        assert_eq!(statuses.iter().filter(|status| status.is_leader).count(), 1);
        cluster.stop_all().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_writes_at_all_members_are_applied_alike() {
    let cluster = Cluster::new(3);
    cluster.leader(&[]).await;
    let mut clients = JoinSet::new();
    for (id, node) in &cluster.nodes {
        let (consensus, prefix) = (node.consensus.clone(), format!("{id}/"));
        clients.spawn(async move { put_many(&consensus, &prefix, 500, 50).await });
    }
    clients.join_all().await;
    for node in cluster.nodes.values() {
        node.consensus.read_barrier().await.unwrap();
        assert_eq!(node.store.lock().revision(), 1501);
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn reads_are_never_old_while_leadership_moves() {
    let cluster = Cluster::new(3);
    let mut leader = cluster.leader(&[]).await;
    let load = Load::on(&cluster);
    for _ in 0..8 {
        load.progress(5).await;
        let to = leader % 3 + 1;
        match cluster.nodes[&leader]
            .consensus
            .transfer_leadership(to)
            .await
        {
            Ok(()) | Err(ProposeError::NotLeader | ProposeError::LeaderTransferTimeout) => {}
            Err(error) => panic!("{error}"),
        }
        leader = cluster.leader(&[]).await;
    }
    for _ in 0..4 {
        load.progress(5).await;
        cluster.network.cut_off(leader);
        let next = cluster.leader(&[leader]).await;
        load.progress(2).await;
        cluster.network.heal();
        leader = next;
    }
    let acknowledged = load.stop().await;
    cluster.check(&acknowledged).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_minority_answers_nothing_and_catches_up() {
    let cluster = Cluster::new(3);
    let old = cluster.leader(&[]).await;
    cluster.put(old, "k", "before").await;
    cluster.network.cut_off(old);
    let barrier = cluster.nodes[&old].consensus.read_barrier();
    let barrier = tokio::time::timeout(4 * ELECTION_TIMEOUT, barrier).await;
    assert!(!matches!(barrier, Ok(Ok(()))), "a leader without followers");
    let new = cluster.leader(&[old]).await;
    cluster.put(new, "k", "after").await;
    assert_eq!(cluster.nodes[&old].peek("k").as_deref(), Some("before"));
    cluster.network.heal();
    cluster.leader(&[]).await;
    cluster.expect(old, "k", "after").await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_a_majority_requests_time_out_and_say_why() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader(&[]).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    cluster.stop(others[0]).await;
    cluster.stop(others[1]).await;
    let last = cluster.nodes.keys().copied().next().unwrap();
    let consensus = &cluster.nodes[&last].consensus;
    let began = Instant::now();
    let outcome = consensus.propose(put("k", "v")).await.unwrap_err();
    assert!(
        matches!(
            outcome,
            ProposeError::Timeout | ProposeError::TimeoutConnectionLost
        ),
        "{outcome}"
    );
    let timeout = Duration::from_secs(5) + 2 * ELECTION_TIMEOUT;
    assert!(began.elapsed() >= timeout, "GEN-13");
    assert_eq!(consensus.status().leader, 0);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_acknowledged_survives_crashes() {
    let mut cluster = Cluster::new(3);
    cluster.leader(&[]).await;
    let load = Load::on(&cluster);
    for _ in 0..3 {
        load.progress(20).await;
        let leader = cluster.leader(&[]).await;
        cluster.crash(leader).await;
        load.progress(5).await;
        cluster.start(leader);
    }
    let acknowledged = load.stop().await;
    cluster.leader(&[]).await;
    cluster.check(&acknowledged).await;
    // And all at once.
    for id in 1..=3 {
        cluster.crash(id).await;
    }
    for id in 1..=3 {
        cluster.start(id);
    }
    cluster.leader(&[]).await;
    cluster.check(&acknowledged).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_member_grows_to_three_and_shrinks_to_another() {
    let mut cluster = Cluster::new(1);
    cluster.leader(&[]).await;
    cluster.put(1, "k", "v").await;
    let load = Load::on(&cluster);
    load.progress(20).await;
    for id in [2, 3] {
        // The new member must be there soon: with two voters, both decide.
        let known: Vec<u64> = (1..=id).collect();
        cluster.prepare(id, &known, Start::Joining);
        cluster.start(id);
        cluster.change(1, MemberChangeKind::Add, id).await;
        load.progress(20).await;
        cluster.expect(id, "k", "v").await;
        assert!(!cluster.nodes[&id].consensus.status().is_learner);
    }
    assert!(cluster.network.installed_states.load(Ordering::Relaxed) >= 2);

    // The leader goes first, whoever it is now.
    let leader = cluster.leader(&[]).await;
    cluster
        .change(leader, MemberChangeKind::Remove, leader)
        .await;
    let removed = cluster.nodes[&leader].consensus.removed();
    let removed = tokio::time::timeout(Duration::from_secs(10), removed);
    removed.await.expect("knows that it is removed");
    let refused = cluster.nodes[&leader].consensus.read_barrier().await;
    assert_eq!(refused, Err(ProposeError::Stopped));
    cluster.stop(leader).await;
    load.progress(20).await;

    let last = cluster.leader(&[]).await;
    let other = *cluster.nodes.keys().find(|id| **id != last).unwrap();
    cluster.change(last, MemberChangeKind::Remove, other).await;
    cluster.stop(other).await;
    load.progress(20).await;
    let acknowledged = load.stop().await;
    cluster.expect(last, "k", "v").await;
    cluster.check(&acknowledged).await;

    // It starts again as what it is: alone.
    cluster.crash(last).await;
    cluster.start(last);
    cluster.expect(last, "k", "v").await;
    assert_eq!(cluster.leader(&[]).await, last);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_learner_follows_and_is_promoted() {
    let mut cluster = Cluster::new(1);
    let first = cluster.leader(&[]).await;
    cluster.put(1, "k", "v").await;
    cluster.change(1, MemberChangeKind::AddLearner, 2).await;
    // One voter goes on alone, but its reads no longer skip the question.
    cluster.put(1, "k", "w").await;
    cluster.expect(1, "k", "w").await;
    cluster.prepare(2, &[1, 2], Start::Joining);
    cluster.start(2);
    cluster.expect(2, "k", "w").await;
    let status = cluster.nodes[&2].consensus.status();
    assert!(status.is_learner && status.leader == first, "{status:?}");
    // Shown with the next tick.
    let deadline = Instant::now() + Duration::from_secs(20);
    let consensus = &cluster.nodes[&1].consensus;
    while !consensus
        .progress(2)
        .is_some_and(|progress| progress.matched > 2 && progress.is_recent_active)
    {
        assert!(Instant::now() < deadline, "{:?}", consensus.progress(2));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(cluster.nodes[&2].consensus.progress(1), None);
    let refused = cluster.nodes[&1].consensus.change_membership(MemberChange {
        kind: MemberChangeKind::AddLearner.into(),
        member: Some(member_of(3)),
        max_learners: 1,
    });
    assert_eq!(
        refused.await,
        Err(ProposeError::Rejected(CommandError::TooManyLearners))
    );
    cluster.change(1, MemberChangeKind::Promote, 2).await;
    cluster.put(2, "k", "x").await;
    cluster.expect(1, "k", "x").await;
    cluster.expect(2, "k", "x").await;
    assert!(!cluster.nodes[&2].consensus.status().is_learner);
    cluster.nodes[&1]
        .consensus
        .transfer_leadership(2)
        .await
        .unwrap();
    assert_eq!(cluster.leader(&[]).await, 2);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leadership_moves_when_asked_and_when_the_leader_stops() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader(&[]).await;
    let to = leader % 3 + 1;
    let other = to % 3 + 1;
    let refused = cluster.nodes[&to]
        .consensus
        .transfer_leadership(other)
        .await;
    assert_eq!(refused, Err(ProposeError::NotLeader));
    let consensus = &cluster.nodes[&leader].consensus;
    consensus.transfer_leadership(leader).await.unwrap();
    consensus.transfer_leadership(to).await.unwrap();
    assert_eq!(cluster.leader(&[]).await, to);

    let term = cluster.nodes[&to].consensus.status().term;
    let began = Instant::now();
    cluster.stop(to).await;
    let next = cluster.leader(&[]).await;
    cluster.put(next, "k", "v").await;
    // Nobody had to wait for an election timeout to find out.
    assert_eq!(cluster.nodes[&next].consensus.status().term, term + 1);
    assert!(began.elapsed() < Duration::from_secs(5));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_far_behind_gets_the_state() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader(&[]).await;
    let slow = leader % 3 + 1;
    cluster.put(leader, "k", "v").await;
    cluster.network.cut_off(slow);
    // Until the log is more than the leader keeps for those who lag behind. It
    // keeps all of it as long as the member may just be late.
    let value = "v".repeat(1 << 20);
    let deadline = Instant::now() + Duration::from_secs(60);
    let log = cluster.nodes[&leader].threads.log.clone();
    while log.recover().unwrap().truncated.0 < 16 {
        assert!(Instant::now() < deadline, "never trimmed");
        for i in 0..10 {
            cluster.put(leader, &format!("big/{i}"), &value).await;
        }
    }
    drop(log);
    let before = cluster.network.installed_states.load(Ordering::Relaxed);
    cluster.network.heal();
    while cluster.network.installed_states.load(Ordering::Relaxed) == before {
        assert!(
            Instant::now() < deadline + Duration::from_secs(20),
            "no state"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster.expect(slow, "k", "v").await;
    cluster.expect(slow, "big/3", &value).await;
    // It goes on from there, also after a crash.
    cluster.put(slow, "k", "w").await;
    cluster.crash(slow).await;
    cluster.start(slow);
    cluster.expect(slow, "k", "w").await;
    cluster.stop_all().await;
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_whose_disk_stalls_does_not_stop_the_others() {
    let _only_one = FAILPOINTS.lock().await;
    let cluster = Cluster::new(3);
    let leader = cluster.leader(&[]).await;
    let writer = cluster.nodes[&leader].threads.log_writer.as_ref().unwrap();
    let writer = writer.thread().id();
    let is_stalled = Arc::new(AtomicBool::new(true));
    let stalled = is_stalled.clone();
    let stalls = move || {
        while std::thread::current().id() == writer && stalled.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    fail::cfg_callback("raft_before_save", stalls).unwrap();
    let other = leader % 3 + 1;
    let stuck = cluster.nodes[&leader].consensus.clone();
    tokio::spawn(async move { stuck.propose(put("stuck", "v")).await });
    let next = cluster.leader(&[leader]).await;
    cluster.put(other, "k", "v").await;
    cluster.expect(next, "k", "v").await;
    is_stalled.store(false, Ordering::Relaxed);
    fail::remove("raft_before_save");
    cluster.expect(leader, "k", "v").await;
    cluster.stop_all().await;
}
