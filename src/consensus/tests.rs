//! The whole of consensus with a real machine, store and log: what is
//! acknowledged is there after a stop and after a crash, the log stays short,
//! limits hold, and a failure lets nothing more through.

mod group;

use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::*;
use crate::machine::LeaseChange;
use crate::machine::members::{Identity, Start};
use crate::mvcc::Store;
use crate::proto::command::Publish;
use crate::proto::etcdserverpb::request_op::Request as Op;
use crate::proto::etcdserverpb::{
    CompactionRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest,
};

const MEMBER: u64 = 0x8e9e_05c5_2164_694d;

/// Failpoints are the process's: one test at a time sets them.
#[cfg(feature = "failpoints")]
static FAILPOINTS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

struct Member {
    consensus: Consensus,
    threads: Threads,
    store: Store,
    effects: Arc<Mutex<Vec<Seen>>>,
}

/// What one commit has told its followers.
struct Seen {
    thread: String,
    revision: i64,
    events: usize,
    leases: Vec<LeaseChange>,
}

fn settings(dir: &Path) -> Settings {
    Settings {
        raft_dir: dir.join("raft"),
        member_id: MEMBER,
        heartbeat: Duration::from_millis(100),
        election_timeout: Duration::from_secs(1),
        max_request_bytes: 1_572_864,
        slow_apply: Duration::from_secs(1),
        unsafe_no_fsync: false,
        pre_vote: true,
        initial_election_tick_advance: true,
        is_forced_new: false,
        entries_per_flush: ENTRIES_PER_FLUSH,
        catch_up_entries: None,
    }
}

/// Makes an empty state one of a new cluster of these members; the first is
/// this one.
fn bootstrap(engine: &Engine, members: &[u64]) {
    if Identity::load(engine).unwrap().is_some() {
        return;
    }
    let identity = Identity {
        cluster_id: 7,
        member_id: members[0],
    };
    let mut members: Vec<_> = members.iter().map(|id| member_of(*id)).collect();
    members.sort_by_key(|member| member.id);
    identity
        .bootstrap(engine, &members, Start::NewCluster)
        .unwrap();
}

fn member_of(id: u64) -> crate::proto::etcdserverpb::Member {
    crate::proto::etcdserverpb::Member {
        id,
        peer_ur_ls: vec![format!("http://member{id}:2380")],
        ..Default::default()
    }
}

fn try_open(settings: Settings) -> Result<Member, StartError> {
    let dir = settings.raft_dir.parent().unwrap().join("state");
    let engine = Engine::open(&dir, &crate::storage::Settings::default()).unwrap();
    let engine = Arc::new(engine);
    bootstrap(&engine, &[settings.member_id]);
    let (machine, store) = Machine::open(engine.clone()).unwrap();
    let effects = Arc::new(Mutex::new(Vec::new()));
    let seen = effects.clone();
    let on_effects = move |effects: &Effects| {
        seen.lock().unwrap().push(Seen {
            thread: std::thread::current().name().unwrap().to_owned(),
            revision: effects.revision,
            events: effects.events.len(),
            leases: effects.leases.clone(),
        });
    };
    let (consensus, threads) = start(
        settings,
        machine,
        engine,
        inbox().1,
        Links::none(),
        Box::new(on_effects),
    )?;
    Ok(Member {
        consensus,
        threads,
        store,
        effects,
    })
}

fn open(dir: &Path) -> Member {
    try_open(settings(dir)).unwrap()
}

impl Member {
    async fn stop(self) {
        tokio::task::spawn_blocking(move || self.threads.stop())
            .await
            .unwrap();
    }

    fn events_seen(&self) -> usize {
        let effects = self.effects.lock().unwrap();
        effects.iter().map(|seen| seen.events).sum()
    }

    fn count(&self, prefix: &str) -> i64 {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().unwrap() += 1;
        let request = RangeRequest {
            key: Bytes::copy_from_slice(prefix.as_bytes()),
            range_end: end.into(),
            count_only: true,
            ..RangeRequest::default()
        };
        self.store.range(&request).unwrap().count
    }
}

fn put(key: impl Into<String>, value: impl Into<Bytes>) -> PutRequest {
    PutRequest {
        key: key.into().into(),
        value: value.into(),
        ..PutRequest::default()
    }
}

async fn put_many(consensus: &Consensus, prefix: &str, count: usize, concurrency: usize) {
    let mut clients = JoinSet::new();
    for client in 0..concurrency {
        let (consensus, prefix) = (consensus.clone(), prefix.to_owned());
        clients.spawn(async move {
            for i in (client..count).step_by(concurrency) {
                let request = put(format!("{prefix}{i:06}"), format!("value {i}"));
                consensus.propose(request).await.unwrap();
            }
        });
    }
    clients.join_all().await;
}

/// As a crash leaves it: what has been synced or written, not what a stop
/// would still flush.
fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_member_leads_in_term_two() {
    let dir = tempfile::tempdir().unwrap();
    let member = open(dir.path());
    member.consensus.read_barrier().await.unwrap();
    let status = member.consensus.status();
    assert_eq!((status.leader, status.term), (MEMBER, 2));
    assert!(status.is_leader);
    assert_eq!(
        status.applied_index, 2,
        "the first state, and the first entry"
    );
    member.stop().await;

    let member = open(dir.path());
    member.consensus.read_barrier().await.unwrap();
    assert_eq!(member.consensus.status().term, 3);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_puts_are_all_there_after_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let member = open(dir.path());
    put_many(&member.consensus, "k/", 1000, 1000).await;
    assert_eq!(member.count("k/"), 1000);
    assert_eq!(member.store.revision(), 1001);
    assert_eq!(
        member.events_seen(),
        1000,
        "watchers are told once of each revision"
    );
    let applied = member.consensus.status().applied_index;
    member.stop().await;

    let member = open(dir.path());
    member.consensus.read_barrier().await.unwrap();
    assert_eq!(member.count("k/"), 1000);
    assert_eq!(member.store.revision(), 1001);
    assert_eq!(member.consensus.status().applied_index, applied + 1);
    assert_eq!(
        member.events_seen(),
        0,
        "nothing is applied again after a stop"
    );
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_puts_are_all_there_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let member = open(dir.path());
    put_many(&member.consensus, "k/", 1000, 64).await;
    let crashed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), crashed.path());
    member.stop().await;

    let member = open(crashed.path());
    // A barrier must not be passed before the log has been applied again.
    member.consensus.read_barrier().await.unwrap();
    assert_eq!(member.count("k/"), 1000);
    assert_eq!(member.store.revision(), 1001);
    let reply = member.consensus.propose(put("k/more", "v")).await.unwrap();
    assert_eq!(reply.header.unwrap().revision, 1002);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_trimmed_and_a_crash_replays_little() {
    let dir = tempfile::tempdir().unwrap();
    let member = open(dir.path());
    // Twice the bytes between two flushes.
    let value = Bytes::from(vec![b'v'; 1 << 20]);
    for i in 0..72 {
        let request = put(format!("big/{i:03}"), value.clone());
        member.consensus.propose(request).await.unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    let log = member.threads.log.clone();
    while log.recover().unwrap().truncated.0 < 32 {
        assert!(Instant::now() < deadline, "never trimmed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(log);
    let crashed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), crashed.path());
    member.stop().await;

    let member = open(crashed.path());
    member.consensus.read_barrier().await.unwrap();
    assert_eq!(member.count("big/"), 72);
    let replayed = member.events_seen();
    assert!(replayed < 72, "{replayed} applied again");
    member.stop().await;
}

/// RocksDB flushes a memtable over which reads step for long with the next
/// write; here none comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_in_writing_is_used_to_flush() {
    let dir = tempfile::tempdir().unwrap();
    let member = open(dir.path());
    let tables = || {
        let files = std::fs::read_dir(dir.path().join("state")).unwrap();
        let paths = files.map(|file| file.unwrap().path());
        paths
            .filter(|path| path.extension().is_some_and(|end| end == "sst"))
            .count()
    };
    let tables_before = tables();
    let value = Bytes::from(vec![b'v'; 600 << 10]);
    for key in ["k/1", "k/2", "k/1", "k/2"] {
        let request = put(key, value.clone());
        member.consensus.propose(request).await.unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while tables() <= tables_before {
        assert!(Instant::now() < deadline, "never flushed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_are_typed_and_refusals_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let member = open(dir.path());
    let consensus = &member.consensus;
    let grant = LeaseGrantRequest { ttl: 60, id: 7 };
    assert_eq!(consensus.propose(grant).await.unwrap().ttl, 60);
    assert_eq!(
        consensus.propose(grant).await.unwrap_err(),
        ProposeError::Rejected(CommandError::LeaseExists)
    );
    let mut with_lease = put("k", "v");
    with_lease.lease = 8;
    assert_eq!(
        consensus.propose(with_lease).await.unwrap_err(),
        ProposeError::Rejected(CommandError::LeaseNotFound)
    );
    let compaction = CompactionRequest {
        revision: 99,
        physical: false,
    };
    assert_eq!(
        consensus.propose(compaction).await.unwrap_err(),
        ProposeError::Rejected(CommandError::FutureRevision)
    );
    let revoke = LeaseRevokeRequest { id: 7 };
    consensus.propose_first(revoke).await.unwrap();
    consensus.propose(Publish::default()).await.unwrap();
    assert_eq!(member.store.revision(), 1);
    let changes: Vec<LeaseChange> = {
        let effects = member.effects.lock().unwrap();
        effects
            .iter()
            .flat_map(|seen| seen.leases.clone())
            .collect()
    };
    let granted = LeaseChange::Granted {
        id: 7,
        ttl_seconds: 60,
    };
    assert_eq!(changes, [granted, LeaseChange::Revoked { id: 7 }]);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_lone_clients_data_is_applied_by_the_drive_loop() {
    let dir = tempfile::tempdir().unwrap();
    let member = open(dir.path());
    let consensus = &member.consensus;
    // The first entry leaves work in the background.
    put_many(consensus, "first/", 10, 1).await;
    let from = member.effects.lock().unwrap().len();
    put_many(consensus, "k/", 10, 1).await;
    consensus.propose(Publish::default()).await.unwrap();
    let compaction = CompactionRequest {
        revision: 5,
        physical: false,
    };
    consensus.propose(compaction).await.unwrap();
    let threads: Vec<String> = {
        let effects = member.effects.lock().unwrap();
        let seen = effects[from..].iter();
        seen.map(|seen| seen.thread.clone()).collect()
    };
    let mut expected = vec!["stele-drive"; 10];
    expected.extend(["stele-apply"; 2]);
    assert_eq!(threads, expected);

    // Together they keep the order.
    put_many(consensus, "many/", 500, 2).await;
    let revisions: Vec<i64> = {
        let effects = member.effects.lock().unwrap();
        effects.iter().map(|seen| seen.revision).collect()
    };
    assert!(revisions.is_sorted());
    assert_eq!(revisions.last(), Some(&member.store.revision()));
    assert_eq!(member.count("many/"), 500);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_is_on_the_encoded_command() {
    let dir = tempfile::tempdir().unwrap();
    let member = open(dir.path());
    let max = 1_572_864;
    // LIM-1: some dozens of bytes are the envelope's.
    let fits = put("abc", vec![0; max - 64]);
    member.consensus.propose(fits).await.unwrap();
    let too_large = put("abc", vec![0; max]);
    assert_eq!(
        member.consensus.propose(too_large).await.unwrap_err(),
        ProposeError::TooLarge
    );
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_depth_of_a_transaction_gets_into_the_log_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let member = open(dir.path());
    let mut txn = TxnRequest::default();
    let mut refused = 0;
    for _ in 0..100 {
        txn = TxnRequest {
            success: vec![RequestOp {
                request: Some(Op::RequestTxn(txn)),
            }],
            ..TxnRequest::default()
        };
        match member.consensus.propose(txn.clone()).await {
            Ok(_) => assert_eq!(refused, 0),
            Err(error) => {
                assert_eq!(error, ProposeError::TooLarge);
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && refused < 100, "{refused}");
    assert!(!member.consensus.has_failed());
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_stop_nothing_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let member = open(dir.path());
    let consensus = member.consensus.clone();
    consensus.propose(put("k", "v")).await.unwrap();
    member.stop().await;
    let late = consensus.propose(put("k", "v")).await;
    assert_eq!(late.unwrap_err(), ProposeError::Stopped);
    consensus.stopped().await;
    assert!(!consensus.has_failed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_what_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let member = open(dir.path());
    member.consensus.read_barrier().await.unwrap();
    let mut proposals = JoinSet::new();
    for i in 0..500 {
        let consensus = member.consensus.clone();
        proposals.spawn(async move { consensus.propose(put(format!("k/{i}"), "v")).await });
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    member.stop().await;
    let mut acknowledged = 0;
    while let Some(outcome) = proposals.join_next().await {
        match outcome.unwrap() {
            Ok(_) => acknowledged += 1,
            Err(error) => assert_eq!(error, ProposeError::Stopped),
        }
    }
    let member = open(dir.path());
    member.consensus.read_barrier().await.unwrap();
    assert!(member.count("k/") >= acknowledged);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_or_missing_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let member = open(dir.path());
    put_many(&member.consensus, "k/", 10, 1).await;
    member.stop().await;

    let mut other = settings(dir.path());
    other.member_id = 5;
    let error = try_open(other).err().expect("another member's log");
    assert!(matches!(error, StartError::ForeignLog { .. }), "{error}");

    std::fs::remove_dir_all(dir.path().join("raft")).unwrap();
    let error = try_open(settings(dir.path())).err().expect("no log");
    assert!(matches!(error, StartError::LogMismatch { .. }), "{error}");
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_lets_nothing_more_through() {
    let _only_one = FAILPOINTS.lock().await;
    for point in ["raft_before_save", "raft_after_save", "apply_before_commit"] {
        let dir = tempfile::tempdir().unwrap();
        let member = open(dir.path());
        let consensus = member.consensus.clone();
        consensus.propose(put("k/before", "v")).await.unwrap();
        // Failpoints are the process's; the other tests' threads pass.
        // A member that is alone syncs its log on the drive thread.
        let drive = member.threads.drive.as_ref().unwrap().thread().id();
        let apply = member.threads.apply.as_ref().unwrap().thread().id();
        let fails = move || {
            let current = std::thread::current().id();
            assert!(current != drive && current != apply, "injected");
        };
        fail::cfg_callback(point, fails).unwrap();
        let outcome = consensus.propose(put("k/at", "v")).await;
        fail::remove(point);
        assert_eq!(outcome.unwrap_err(), ProposeError::Stopped, "{point}");
        consensus.failed().await;
        assert!(consensus.has_failed());
        let later = consensus.propose(put("k/after", "v")).await;
        assert_eq!(later.unwrap_err(), ProposeError::Stopped, "{point}");
        member.stop().await;

        let member = open(dir.path());
        member.consensus.read_barrier().await.unwrap();
        // What was not acknowledged may be there or not; the rest is certain.
        let found = member.count("k/");
        assert!(found == 1 || found == 2, "{point}: {found}");
        member.stop().await;
    }
}
