//! Both ends against each other, without a network: over a pipe that can break,
//! stall and damage what it carries.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{Message, MessageType, SnapshotMetadata};
use tempfile::TempDir;

use super::super::drive::Event;
use super::super::peers::PeerInbox;
use super::super::queue::{self, Receiver};
use super::super::transport::{SnapshotOutbox, SnapshotReplies};
use super::super::{SnapshotInstaller, SnapshotSource};
use super::*;
use crate::machine::command::{MemberChange, MemberChangeKind};
use crate::machine::members::{Identity, Start};
use crate::machine::{Body, Command, Machine};
use crate::mvcc::{HashKv, Store};
use crate::proto::etcdserverpb::{LeaseGrantRequest, Member as MemberRow, PutRequest};
use crate::proto::peer::snapshot_part::Part;
use crate::storage::{DataDir, open_data_dir};

const SENDER: u64 = 1;
const RECEIVER: u64 = 2;

/// A member without its threads.
struct Member {
    id: u64,
    machine: Machine,
    store: Store,
    outgoing: Outgoing,
    incoming: Incoming,
    /// What came to its raft.
    events: Receiver<Event>,
    data_dir: DataDir,
    _root: TempDir,
}

impl Member {
    fn new(id: u64) -> Member {
        let root = tempfile::tempdir().unwrap();
        let data_dir = open_data_dir(root.path()).unwrap();
        let engine = Engine::open(&data_dir.state_dir(), &crate::storage::Settings::default());
        let engine = Arc::new(engine.unwrap());
        let row = |id| MemberRow {
            id,
            ..MemberRow::default()
        };
        let identity = Identity {
            cluster_id: 7,
            member_id: id,
        };
        let start = match id {
            SENDER => Start::NewCluster,
            _ => Start::Joining,
        };
        let rows = [row(SENDER), row(RECEIVER)];
        identity.bootstrap(&engine, &rows, start).unwrap();
        let (machine, store) = Machine::open(engine.clone()).unwrap();
        let (sender, events) = queue::bounded(16);
        let settings = Settings {
            outgoing_dir: data_dir.outgoing_dir(),
            incoming_dir: data_dir.incoming_dir(),
            member_id: id,
            bytes_per_second: u64::MAX,
        };
        let inbox = PeerInbox::new(sender);
        let (outgoing, incoming) = open(settings, engine, inbox, Handle::current()).unwrap();
        Member {
            id,
            machine,
            store,
            outgoing,
            incoming,
            events,
            data_dir,
            _root: root,
        }
    }

    fn apply(&mut self, body: Body) {
        let (index, _) = self.machine.applied();
        let command = Command {
            body: Some(body),
            ..Command::default()
        };
        let applied = self.machine.apply(index + 1, 2, &command);
        applied.unwrap().unwrap();
    }

    /// Puts some values that do not compress, and commits.
    fn fill(&mut self, values: usize, value_bytes: usize) {
        for _ in 0..values {
            let value: Vec<u8> = std::iter::repeat_with(rand::random)
                .take(value_bytes)
                .collect();
            let request = PutRequest {
                key: Bytes::from(rand::random::<u64>().to_be_bytes().to_vec()),
                value: value.into(),
                ..PutRequest::default()
            };
            self.apply(Body::Put(request));
            if self.machine.staged_bytes() > 1 << 20 {
                self.machine.commit().unwrap();
            }
        }
        self.machine.commit().unwrap();
    }

    fn hash(&self) -> HashKv {
        self.store.hash_kv(0).unwrap()
    }

    /// Asks as raft does, until there is a state to send.
    async fn offer(&self) -> Message {
        self.offer_to(RECEIVER).await
    }

    async fn offer_to(&self, to: u64) -> Message {
        for _ in 0..1000 {
            let offered = self.outgoing.offer(to, &SnapshotMetadata::default(), 0);
            if let Some(snapshot) = offered {
                let mut message = Message::default();
                message.set_msg_type(MessageType::MsgSnapshot);
                (message.from, message.to, message.term) = (self.id, to, 2);
                message.set_snapshot(snapshot);
                return message;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no state was offered");
    }

    /// Whether raft was told that the state has reached its receiver.
    async fn outcome(&self) -> bool {
        match self.event().await {
            Event::SnapshotSent { id: RECEIVER, ok } => ok,
            _ => panic!("another event"),
        }
    }

    /// The message of raft that came with a state.
    async fn message(&self) -> Message {
        match self.event().await {
            Event::Received(received) => received.take(),
            _ => panic!("another event"),
        }
    }

    async fn event(&self) -> Event {
        for _ in 0..6000 {
            if let Ok(event) = self.events.try_recv() {
                return event;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("nothing came");
    }

    fn entries_of(dir: &std::path::Path) -> usize {
        std::fs::read_dir(dir).map_or(0, Iterator::count)
    }
}

fn bytes_below(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.file_type().unwrap().is_dir() {
            true => bytes_below(&entry.path()),
            false => entry.metadata().unwrap().len(),
        })
        .sum()
}

type Damage = fn(&mut SnapshotPart);

/// What happens to the parts on their way.
#[derive(Default)]
struct Faults {
    /// The call breaks after so many chunks, this often.
    break_after: usize,
    breaks_left: AtomicUsize,
    /// Chunks before the one that is damaged, and how.
    damage: Option<(usize, Damage)>,
    calls: AtomicUsize,
    chunks: AtomicUsize,
    /// Of chunks that have left the sender.
    sent_bytes: AtomicU64,
}

struct Pipe {
    to: Incoming,
    faults: Arc<Faults>,
}

impl Calls for Pipe {
    fn snapshot(&self, _to: u64, mut parts: mpsc::Receiver<SnapshotPart>) -> Calling {
        let (to, faults) = (self.to.clone(), self.faults.clone());
        Box::pin(async move {
            faults.calls.fetch_add(1, Ordering::Relaxed);
            let (sender, receiver) = mpsc::channel(1);
            let replies = to.answer(SENDER, ReceiverStream::new(receiver));
            tokio::spawn(async move {
                let breaks = faults
                    .breaks_left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                        left.checked_sub(1)
                    })
                    .is_ok();
                let mut chunks = 0;
                while let Some(mut part) = parts.recv().await {
                    if let Some(Part::Chunk(chunk)) = &part.part {
                        let bytes = chunk.data.len() as u64;
                        faults.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
                        chunks += 1;
                        faults.chunks.fetch_add(1, Ordering::Relaxed);
                    }
                    if breaks && chunks > faults.break_after {
                        let _ = sender.send(Err(Status::unavailable("cut"))).await;
                        return;
                    }
                    if let Some((after, damage)) = faults.damage
                        && chunks == after + 1
                    {
                        damage(&mut part);
                    }
                    if sender.send(Ok(part)).await.is_err() {
                        return;
                    }
                }
            });
            Ok(replies as SnapshotReplies)
        })
    }
}

fn connect(sender: &Member, receiver: &Member, faults: Faults) -> Arc<Faults> {
    let faults = Arc::new(faults);
    sender.outgoing.call_by(Box::new(Pipe {
        to: receiver.incoming.clone(),
        faults: faults.clone(),
    }));
    faults
}

/// Raft would ignore it, ask again, and get the same again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_from_before_a_member_joined_is_not_for_it() {
    let mut sender = Member::new(SENDER);
    sender.fill(1, 10);
    let before = sender.offer().await;
    let member = MemberRow {
        id: 3,
        peer_ur_ls: vec!["http://three:2380".to_owned()],
        ..MemberRow::default()
    };
    sender.apply(Body::MemberChange(MemberChange {
        kind: MemberChangeKind::Add as i32,
        member: Some(member),
        max_learners: 1,
    }));
    sender.machine.commit().unwrap();
    let state = sender.offer_to(3).await;
    let metadata = state.get_snapshot().get_metadata();
    assert!(metadata.get_conf_state().voters.contains(&3));
    assert!(metadata.index > before.get_snapshot().get_metadata().index);
    // One that both can use is made once.
    assert_eq!(sender.offer().await.get_snapshot(), state.get_snapshot());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_gets_the_state_of_another() {
    let (mut sender, mut receiver) = (Member::new(SENDER), Member::new(RECEIVER));
    connect(&sender, &receiver, Faults::default());
    sender.fill(300, 1000);
    let grant = LeaseGrantRequest { id: 9, ttl: 600 };
    sender.apply(Body::LeaseGrant(grant));
    sender.machine.commit().unwrap();
    assert!(receiver.machine.conf().voters.is_empty());
    let message = sender.offer().await;
    let applied = sender.machine.applied();
    let metadata = message.get_snapshot().get_metadata().clone();
    assert_eq!((metadata.index, metadata.term), applied);
    assert_eq!(metadata.get_conf_state().voters, [SENDER, RECEIVER]);
    // Later changes are not part of it.
    let hash = sender.hash();
    sender.fill(10, 100);
    sender.outgoing.send(message);
    assert!(sender.outcome().await);
    let message = receiver.message().await;
    assert_eq!(message.get_snapshot().get_metadata(), &metadata);

    let installed = receiver
        .incoming
        .install(&mut receiver.machine, message.get_snapshot());
    installed.unwrap();
    assert_eq!(receiver.machine.applied(), applied);
    assert_eq!(receiver.hash(), hash);
    let effects = receiver.machine.commit().unwrap();
    let reloaded = effects.reloaded.expect("the state is another");
    assert_eq!(reloaded.revision, receiver.store.revision());
    assert_eq!(reloaded.leases.len(), 1);
    assert_eq!(receiver.machine.conf().voters, [SENDER, RECEIVER]);
    // It still knows who it is.
    let state_dir = receiver.data_dir.state_dir();
    assert_eq!(Member::entries_of(&receiver.data_dir.incoming_dir()), 0);
    let again = receiver
        .incoming
        .install(&mut receiver.machine, message.get_snapshot());
    assert!(again.is_err(), "it is used up");
    let Member {
        machine,
        store,
        outgoing,
        ..
    } = receiver;
    drop((machine, store, outgoing));
    let engine = Engine::open(&state_dir, &crate::storage::Settings::default()).unwrap();
    let identity = Identity::load(&engine).unwrap().unwrap();
    assert_eq!(identity.member_id, RECEIVER);
    let (machine, store) = Machine::open(Arc::new(engine)).unwrap();
    assert_eq!(machine.applied(), applied);
    assert_eq!(store.hash_kv(0).unwrap(), hash);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_transfer_goes_on_where_it_was() {
    let (mut sender, mut receiver) = (Member::new(SENDER), Member::new(RECEIVER));
    sender.fill(800, 10_000);
    let faults = Faults {
        break_after: 10,
        breaks_left: 2.into(),
        ..Faults::default()
    };
    let faults = connect(&sender, &receiver, faults);
    let message = sender.offer().await;
    let state_bytes = bytes_below(&sender.data_dir.outgoing_dir());
    sender.outgoing.send(message);
    assert!(sender.outcome().await);
    assert_eq!(faults.calls.load(Ordering::Relaxed), 3);
    // Nothing but what was lost with a call came twice.
    let sent_bytes = faults.sent_bytes.load(Ordering::Relaxed);
    let lost_bytes = sent_bytes - state_bytes;
    assert!(lost_bytes <= 2 * CHUNK_BYTES as u64, "{lost_bytes} bytes");
    let message = receiver.message().await;
    let installed = receiver
        .incoming
        .install(&mut receiver.machine, message.get_snapshot());
    installed.unwrap();
    assert_eq!(receiver.hash(), sender.hash());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_refused_and_nothing_stays() {
    fn chunk(part: &mut SnapshotPart) -> &mut crate::proto::peer::SnapshotChunk {
        match &mut part.part {
            Some(Part::Chunk(chunk)) => chunk,
            _ => panic!("not a chunk"),
        }
    }
    let damages: [Damage; 6] = [
        |part| {
            let chunk = chunk(part);
            let mut data = chunk.data.to_vec();
            data[7] ^= 1;
            chunk.data = data.into();
        },
        |part| chunk(part).crc32c ^= 1,
        |part| chunk(part).offset += 1,
        |part| chunk(part).file += 1,
        |part| {
            let chunk = chunk(part);
            chunk.data = Bytes::from(vec![0; CHUNK_BYTES + 1]);
            chunk.crc32c = crc32c::crc32c(&chunk.data);
        },
        |part| chunk(part).data = Bytes::new(),
    ];
    for damage in damages {
        let (mut sender, receiver) = (Member::new(SENDER), Member::new(RECEIVER));
        sender.fill(100, 10_000);
        let faults = Faults {
            damage: Some((2, damage)),
            ..Faults::default()
        };
        let faults = connect(&sender, &receiver, faults);
        let message = sender.offer().await;
        sender.outgoing.send(message);
        assert!(!sender.outcome().await);
        assert_eq!(faults.calls.load(Ordering::Relaxed), 1, "tried again");
        assert_eq!(Member::entries_of(&receiver.data_dir.incoming_dir()), 0);
        assert!(receiver.events.is_empty(), "raft knows nothing of it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_a_transfer() {
    let (mut sender, receiver) = (Member::new(SENDER), Member::new(RECEIVER));
    sender.fill(200, 10_000);
    connect(&sender, &receiver, Faults::default());
    receiver.incoming.fill_disk_after(1 << 20);
    let message = sender.offer().await;
    sender.outgoing.send(message);
    assert!(!sender.outcome().await);
    assert_eq!(Member::entries_of(&receiver.data_dir.incoming_dir()), 0);
    assert!(receiver.events.is_empty());
    // With room again the same state can be sent.
    receiver.incoming.fill_disk_after(u64::MAX);
    let message = sender.offer().await;
    sender.outgoing.send(message);
    assert!(sender.outcome().await);
    assert!(matches!(receiver.event().await, Event::Received(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_make_no_sense_are_refused() {
    let (mut sender, receiver) = (Member::new(SENDER), Member::new(RECEIVER));
    sender.fill(1, 10);
    let message = sender.offer().await;
    let good = crate::proto::peer::SnapshotHeader {
        transfer_id: Key::from_bytes(&message.get_snapshot().data)
            .unwrap()
            .number,
        message: Some(super::super::transport::wire::to_wire(message)),
        files: vec![crate::proto::peer::SnapshotFile {
            name: "CURRENT".to_owned(),
            bytes: 1,
        }],
    };
    type Spoil = fn(&mut crate::proto::peer::SnapshotHeader);
    let spoils: [Spoil; 9] = [
        |header| header.transfer_id += 1,
        |header| header.message = None,
        |header| header.message.as_mut().unwrap().msg_type = MessageType::MsgAppend as i32,
        |header| header.message.as_mut().unwrap().from = 3,
        |header| header.files.clear(),
        |header| header.files.push(header.files[0].clone()),
        |header| header.files[0].name = "../CURRENT".to_owned(),
        |header| header.files[0].name = String::new(),
        |header| {
            header.files[0].bytes = u64::MAX;
            header.files.push(crate::proto::peer::SnapshotFile {
                name: "LOCK".to_owned(),
                bytes: 1,
            });
        },
    ];
    for spoil in spoils {
        let mut header = good.clone();
        spoil(&mut header);
        let text = format!("{} files", header.files.len());
        let part = SnapshotPart {
            part: Some(Part::Header(header)),
        };
        let decoded = SnapshotPart::decode(part.encode_to_vec().as_slice()).unwrap();
        let parts = tokio_stream::iter([Ok(decoded)]);
        let mut replies = receiver.incoming.answer(SENDER, parts);
        let reply = tokio_stream::StreamExt::next(&mut replies).await.unwrap();
        let status = reply.expect_err(&text);
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
        assert_eq!(Member::entries_of(&receiver.data_dir.incoming_dir()), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_state_is_received_at_a_time() {
    let (mut sender, receiver) = (Member::new(SENDER), Member::new(RECEIVER));
    sender.fill(10, 10_000);
    let message = sender.offer().await;
    let header = |from: u64, term: u64, number: u64| {
        let mut message = message.clone();
        (message.from, message.term) = (from, term);
        message.mut_snapshot().data = Key { from, number }.to_bytes().into();
        SnapshotPart {
            part: Some(Part::Header(crate::proto::peer::SnapshotHeader {
                transfer_id: number,
                message: Some(super::super::transport::wire::to_wire(message)),
                files: vec![crate::proto::peer::SnapshotFile {
                    name: "CURRENT".to_owned(),
                    bytes: 10,
                }],
            })),
        }
    };
    let mut calls = Vec::new();
    let mut call = async |from: u64, term, number| {
        let (sender, parts) = mpsc::channel(4);
        sender.send(Ok(header(from, term, number))).await.unwrap();
        let mut replies = receiver.incoming.answer(from, ReceiverStream::new(parts));
        let reply = tokio_stream::StreamExt::next(&mut replies).await.unwrap();
        // It stays open.
        calls.push((sender, replies));
        reply.map(|_| ()).map_err(|status| status.code())
    };
    assert_eq!(call(SENDER, 2, 1).await, Ok(()));
    assert_eq!(call(SENDER, 2, 1).await, Ok(()), "the same one again");
    let busy = Err(tonic::Code::ResourceExhausted);
    assert_eq!(call(SENDER, 2, 2).await, busy);
    assert_eq!(call(3, 2, 1).await, busy);
    assert_eq!(call(3, 3, 1).await, Ok(()), "a later leader's");
    assert_eq!(call(SENDER, 2, 1).await, busy);
    assert_eq!(Member::entries_of(&receiver.data_dir.incoming_dir()), 1);
}

/// Some 100 MB, of which only a few are in memory at any time.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_state_takes_little_memory() {
    fn resident_bytes() -> u64 {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = status.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    }
    let (mut sender, receiver) = (Member::new(SENDER), Member::new(RECEIVER));
    sender.fill(1600, 64 << 10);
    let faults = connect(&sender, &receiver, Faults::default());
    let message = sender.offer().await;
    let before = resident_bytes();
    sender.outgoing.send(message);
    let (mut most, mut outcome) = (before, None);
    let mut most_on_the_way = 0;
    while outcome.is_none() {
        most = most.max(resident_bytes());
        let sent = faults.sent_bytes.load(Ordering::Relaxed);
        if let Some(stored) = receiver.incoming.bytes_stored() {
            most_on_the_way = most_on_the_way.max(sent.saturating_sub(stored));
        }
        outcome = match sender.events.try_recv() {
            Ok(Event::SnapshotSent { ok, .. }) => Some(ok),
            _ => None,
        };
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(outcome, Some(true));
    let sent = faults.sent_bytes.load(Ordering::Relaxed);
    assert!(sent > 100 << 20, "{sent}");
    // What the process takes depends on the tests beside this one.
    let grown = most.saturating_sub(before) >> 20;
    println!("sent {} MB, resident memory grew by {grown} MB", sent >> 20);
    let chunks = most_on_the_way / CHUNK_BYTES as u64;
    assert!(chunks <= 4, "{chunks} chunks on the way");
}
