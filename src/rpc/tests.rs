//! Services of members in situations that a single server never is in: only
//! learning, without a leader, about to grow. Called in process, with
//! everything around the calls; the other members are never there.

mod raw;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::{Code, Request, Response, Status};

use super::status::Refusal;
use super::*;
use crate::consensus::{self, Links, NoSnapshots, PeerTransport, transport};
use crate::machine::members::{Identity, Start};
use crate::machine::{LeaseChange, Machine};
use crate::proto::client::etcdserverpb::cluster_client::ClusterClient;
use crate::proto::client::etcdserverpb::kv_client::KvClient;
use crate::proto::client::etcdserverpb::lease_client::LeaseClient;
use crate::proto::client::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::proto::client::etcdserverpb::watch_client::WatchClient;
use crate::proto::client::etcdserverpb::{
    AlarmRequest, CompactionRequest, DefragmentRequest, DeleteRangeRequest, HashKvRequest,
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, MemberAddRequest, MemberListRequest, MemberPromoteRequest,
    MemberRemoveRequest, MemberUpdateRequest, MoveLeaderRequest, PutRequest, RangeRequest,
    StatusRequest, TxnRequest, WatchRequest,
};
use crate::proto::etcdserverpb::Member;
use crate::storage;

/// Short, so that a test of waiting for a leader takes seconds.
const ELECTION_TIMEOUT: Duration = Duration::from_millis(100);

struct Fixture {
    services: Services,
    consensus: Consensus,
    lessor: Arc<Lessor>,
    published: Arc<Published>,
    shutdown: CancellationToken,
    _threads: consensus::Threads,
    _dir: tempfile::TempDir,
}

fn member(id: u64, is_learner: bool) -> Member {
    Member {
        id,
        name: format!("m{id}"),
        // Nobody listens there.
        peer_ur_ls: vec![format!("http://127.0.0.1:{id}")],
        is_learner,
        ..Member::default()
    }
}

impl Fixture {
    /// Member 1 of a cluster of these.
    fn new(members: &[Member]) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(&dir.path().join("state"), &storage::Settings::default());
        let engine = Arc::new(engine.unwrap());
        let identity = Identity {
            cluster_id: 100,
            member_id: 1,
        };
        identity
            .bootstrap(&engine, members, Start::NewCluster)
            .unwrap();
        let (machine, store) = Machine::open(engine.clone()).unwrap();
        let published = machine.published();
        let lessor = Arc::new(Lessor::new([], ELECTION_TIMEOUT, Instant::now()));
        let (inbox, events) = consensus::inbox();
        let transport = transport::Settings {
            cluster_id: 100,
            member_id: 1,
            peer_urls: vec!["http://127.0.0.1:1".to_owned()],
            election_timeout: ELECTION_TIMEOUT,
            tls: None,
            local_address: None,
        };
        let transport = PeerTransport::new(transport, inbox, None);
        let peers = transport.peers();
        let settings = consensus::Settings {
            raft_dir: dir.path().join("raft"),
            member_id: 1,
            heartbeat: ELECTION_TIMEOUT / 10,
            election_timeout: ELECTION_TIMEOUT,
            max_request_bytes: 1 << 20,
            slow_apply: Duration::from_secs(1),
            unsafe_no_fsync: true,
            pre_vote: true,
            initial_election_tick_advance: true,
            is_forced_new: false,
            entries_per_flush: consensus::ENTRIES_PER_FLUSH,
            catch_up_entries: None,
        };
        let links = Links {
            transport: Box::new(transport),
            source: Box::new(NoSnapshots),
            installer: Box::new(NoSnapshots),
        };
        let follower = lessor.clone();
        let on_effects = Box::new(move |effects: &crate::machine::Effects| {
            for change in &effects.leases {
                match *change {
                    LeaseChange::Granted { id, ttl_seconds } => follower.granted(id, ttl_seconds),
                    LeaseChange::Revoked { id } => follower.revoked(id),
                    LeaseChange::Checkpointed {
                        id,
                        remaining_seconds,
                        sequence,
                    } => follower.checkpointed(id, remaining_seconds, sequence),
                }
            }
        });
        let (consensus, threads) =
            consensus::start(settings, machine, engine.clone(), events, links, on_effects).unwrap();
        let shutdown = CancellationToken::new();
        let (services, _) = services(Handles {
            consensus: consensus.clone(),
            store: store.clone(),
            hub: Hub::new(store, crate::watch::Settings::default()),
            lessor: lessor.clone(),
            engine,
            published: published.clone(),
            peers,
            cluster_id: 100,
            member_id: 1,
            settings: Settings {
                max_request_bytes: 1 << 20,
                max_txn_ops: 128,
                quota_bytes: None,
                election_timeout: ELECTION_TIMEOUT,
                progress_notify_interval: Duration::from_secs(600),
                checks_reconfiguration: true,
                max_learners: 1,
            },
            shutdown: shutdown.clone(),
        });
        Fixture {
            services,
            consensus,
            lessor,
            published,
            shutdown,
            _threads: threads,
            _dir: dir,
        }
    }

    fn kv(&self) -> KvClient<Services> {
        KvClient::new(self.services.clone())
    }

    fn lease(&self) -> LeaseClient<Services> {
        LeaseClient::new(self.services.clone())
    }

    fn cluster(&self) -> ClusterClient<Services> {
        ClusterClient::new(self.services.clone())
    }

    fn maintenance(&self) -> MaintenanceClient<Services> {
        MaintenanceClient::new(self.services.clone())
    }

    /// The answer to one keep-alive.
    async fn keep_alive(&self, id: i64) -> Result<i64, Status> {
        let requests = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
        let answers = self.lease().lease_keep_alive(requests).await?;
        let answer = answers.into_inner().message().await?;
        Ok(answer.expect("one answer").ttl)
    }

    async fn grant(&self, id: i64, ttl: i64) {
        let request = LeaseGrantRequest { id, ttl };
        self.lease().lease_grant(request).await.unwrap();
    }
}

fn serializable() -> RangeRequest {
    RangeRequest {
        key: b"a".to_vec().into(),
        serializable: true,
        ..RangeRequest::default()
    }
}

fn put() -> PutRequest {
    PutRequest {
        key: b"a".to_vec().into(),
        ..PutRequest::default()
    }
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(outcome: Result<Response<T>, Status>, refusal: Refusal) {
    let status = outcome.expect_err("refused");
    assert_eq!(
        (status.code(), status.message()),
        (refusal.code, refusal.text)
    );
}

/// CLU-11.
#[tokio::test(flavor = "multi_thread")]
async fn a_learner_answers_only_what_needs_no_vote() {
    let fixture = Fixture::new(&[member(1, true), member(2, false)]);
    fixture.kv().range(serializable()).await.unwrap();
    let status = fixture.maintenance().status(StatusRequest {}).await;
    let status = status.unwrap().into_inner();
    assert!(status.is_learner);
    assert_eq!(status.errors, ["etcdserver: no leader"]);

    let no = status::NOT_SUPPORTED_FOR_LEARNER;
    let mut kv = fixture.kv();
    let linearizable = RangeRequest {
        serializable: false,
        ..serializable()
    };
    assert_refused(kv.range(linearizable).await, no);
    assert_refused(kv.range_stream(serializable()).await, no);
    assert_refused(kv.put(put()).await, no);
    assert_refused(kv.delete_range(DeleteRangeRequest::default()).await, no);
    assert_refused(kv.txn(TxnRequest::default()).await, no);
    assert_refused(kv.compact(CompactionRequest::default()).await, no);
    let mut lease = fixture.lease();
    assert_refused(lease.lease_grant(LeaseGrantRequest::default()).await, no);
    assert_refused(lease.lease_revoke(LeaseRevokeRequest::default()).await, no);
    assert_refused(lease.lease_leases(LeaseLeasesRequest {}).await, no);
    let time = LeaseTimeToLiveRequest::default();
    assert_refused(lease.lease_time_to_live(time).await, no);
    let nothing = tokio_stream::empty::<LeaseKeepAliveRequest>();
    assert_refused(lease.lease_keep_alive(nothing).await, no);
    let mut cluster = fixture.cluster();
    let list = MemberListRequest::default();
    assert_refused(cluster.member_list(list).await, no);
    assert_refused(
        cluster.member_promote(MemberPromoteRequest { id: 1 }).await,
        no,
    );
    let mut maintenance = fixture.maintenance();
    assert_refused(maintenance.alarm(AlarmRequest::default()).await, no);
    assert_refused(maintenance.hash_kv(HashKvRequest::default()).await, no);
    assert_refused(maintenance.defragment(DefragmentRequest {}).await, no);
    let target = MoveLeaderRequest { target_id: 2 };
    assert_refused(maintenance.move_leader(target).await, no);
    let mut watch = WatchClient::new(fixture.services.clone());
    let nothing = tokio_stream::empty::<WatchRequest>();
    assert_refused(watch.watch(nothing).await, no);
}

/// GEN-11, GEN-18, GEN-19, MNT-2.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_leader_calls_that_need_one_fail_at_once_if_they_say_so() {
    let fixture = Fixture::new(&[member(1, false), member(2, false)]);
    fixture.kv().range(serializable()).await.unwrap();
    let mut demanding = Request::new(serializable());
    let yes = "true".parse().unwrap();
    demanding.metadata_mut().insert("hasleader", yes);
    assert_refused(fixture.kv().range(demanding).await, status::NO_LEADER);

    let mut watch = WatchClient::new(fixture.services.clone());
    let mut demanding = Request::new(tokio_stream::pending());
    let yes = "true".parse().unwrap();
    demanding.metadata_mut().insert("hasleader", yes);
    assert_refused(watch.watch(demanding).await, status::NO_LEADER);
    watch.watch(tokio_stream::pending()).await.unwrap();

    let target = MoveLeaderRequest { target_id: 2 };
    let moved = fixture.maintenance().move_leader(target).await;
    assert_refused(moved, status::NOT_LEADER);
    let unlinearized = MemberListRequest {
        linearizable: false,
    };
    let members = fixture.cluster().member_list(unlinearized).await.unwrap();
    assert_eq!(members.into_inner().members.len(), 2);
}

/// LEA-23.
#[tokio::test(flavor = "multi_thread")]
async fn a_keep_alive_waits_for_a_leader_and_then_ends_the_stream() {
    let fixture = Fixture::new(&[member(1, false), member(2, false)]);
    let began = Instant::now();
    let status = fixture.keep_alive(7).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, status::NO_LEADER.text)
    );
    assert!(began.elapsed() >= Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_clears_the_checkpoint_before_it_is_answered() {
    let fixture = Fixture::new(&[member(1, false)]);
    fixture.grant(7, 3600).await;
    assert_eq!(fixture.keep_alive(7).await.unwrap(), 3600);
    assert_eq!(fixture.keep_alive(8).await.unwrap(), 0);

    let later = Instant::now() + Duration::from_secs(400);
    let due = fixture.lessor.due_checkpoints(later, 10);
    assert_eq!(due.remaining.len(), 1);
    let (id, remaining_seconds) = due.remaining[0];
    let checkpoint = |sequence| crate::machine::command::LeaseCheckpoints {
        checkpoints: vec![crate::machine::command::LeaseCheckpoint {
            id,
            remaining_seconds,
        }],
        term: fixture.consensus.status().term,
        sequence,
    };
    fixture
        .consensus
        .propose(checkpoint(due.sequence))
        .await
        .unwrap();
    let has_checkpoint = || {
        matches!(
            fixture.lessor.renew(7),
            crate::lease::lessor::Renewal::Renewed {
                has_checkpoint: true,
                ..
            }
        )
    };
    assert!(has_checkpoint());
    assert_eq!(fixture.keep_alive(7).await.unwrap(), 3600);
    assert!(!has_checkpoint());
    // What was measured before the renewal comes too late.
    fixture
        .consensus
        .propose(checkpoint(due.sequence))
        .await
        .unwrap();
    assert!(!has_checkpoint());
}

/// Expired by the leader's clock, but not revoked: LEA-19.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_keep_alive_is_answered_when_the_lease_is_gone() {
    let fixture = Fixture::new(&[member(1, false)]);
    fixture.grant(7, 1).await;
    // Not later: the first look as leader starts the lease's time anew.
    let now = Instant::now();
    fixture.lessor.lead(fixture.consensus.status().term, now);
    tokio::time::sleep(Duration::from_millis(1300)).await;
    let keep_alive = fixture.keep_alive(7);
    let term = fixture.consensus.status().term;
    let revoke = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let stale = crate::machine::command::LeaseExpiry {
            id: 7,
            term: term - 1,
        };
        // Of a leader that was: void.
        assert!(fixture.consensus.propose(stale).await.is_err());
        let expiry = crate::machine::command::LeaseExpiry { id: 7, term };
        fixture.consensus.propose(expiry).await.unwrap();
    };
    let (ttl, ()) = tokio::join!(keep_alive, revoke);
    assert_eq!(ttl.unwrap(), 0);
}

/// CLU-6 to CLU-10, MNT-27.
#[tokio::test(flavor = "multi_thread")]
async fn a_single_member_grows_only_as_far_as_is_safe() {
    let fixture = Fixture::new(&[member(1, false)]);
    let mut cluster = fixture.cluster();
    let add = |url: &str, is_learner| MemberAddRequest {
        peer_ur_ls: vec![url.to_owned()],
        is_learner,
    };
    for bad in ["", "nonsense", "http://a", "http://a:1/path"] {
        let outcome = cluster.member_add(add(bad, false)).await;
        assert_refused(outcome, status::MEMBER_BAD_URLS);
    }
    let outcome = cluster.member_add(add("http://127.0.0.1:1", true)).await;
    assert_refused(outcome, status::PEER_URL_EXISTS);
    let added = cluster.member_add(add("http://127.0.0.1:2", true)).await;
    let added = added.unwrap().into_inner();
    let learner = added.member.unwrap();
    assert!(learner.is_learner && learner.name.is_empty());
    assert_eq!(added.members.len(), 2);
    assert!(added.members.contains(&learner));
    let outcome = cluster.member_add(add("http://127.0.0.1:3", true)).await;
    assert_refused(outcome, status::TOO_MANY_LEARNERS);

    let promote = |id| MemberPromoteRequest { id };
    assert_refused(
        cluster.member_promote(promote(99)).await,
        status::MEMBER_NOT_FOUND,
    );
    assert_refused(
        cluster.member_promote(promote(1)).await,
        status::MEMBER_NOT_LEARNER,
    );
    let outcome = cluster.member_promote(promote(learner.id)).await;
    assert_refused(outcome, status::LEARNER_NOT_READY);

    let mut maintenance = fixture.maintenance();
    for target_id in [learner.id, 99] {
        let outcome = maintenance
            .move_leader(MoveLeaderRequest { target_id })
            .await;
        assert_refused(outcome, status::BAD_LEADER_TRANSFEREE);
    }
    let itself = MoveLeaderRequest { target_id: 1 };
    maintenance.move_leader(itself).await.unwrap();

    let update = |id, url: &str| MemberUpdateRequest {
        id,
        peer_ur_ls: vec![url.to_owned()],
    };
    let outcome = cluster
        .member_update(update(99, "http://127.0.0.1:4"))
        .await;
    assert_refused(outcome, status::MEMBER_NOT_FOUND);
    let outcome = cluster
        .member_update(update(learner.id, "http://127.0.0.1:1"))
        .await;
    assert_refused(outcome, status::PEER_URL_EXISTS);
    let updated = cluster
        .member_update(update(learner.id, "http://127.0.0.1:4"))
        .await;
    let members = updated.unwrap().into_inner().members;
    assert!(
        members
            .iter()
            .any(|each| each.peer_ur_ls == ["http://127.0.0.1:4"])
    );

    let remove = |id| MemberRemoveRequest { id };
    assert_refused(
        cluster.member_remove(remove(99)).await,
        status::MEMBER_NOT_FOUND,
    );
    let outcome = cluster.member_remove(remove(1)).await;
    assert_refused(outcome, status::MEMBER_NOT_ENOUGH_STARTED);
    cluster.member_remove(remove(learner.id)).await.unwrap();
    let outcome = cluster.member_remove(remove(learner.id)).await;
    assert_refused(outcome, status::MEMBER_NOT_FOUND);
    assert!(fixture.published.is_removed(learner.id));
    // The second voter is let in, and then nobody else before it has started.
    cluster
        .member_add(add("http://127.0.0.1:5", false))
        .await
        .unwrap();
    let outcome = cluster.member_add(add("http://127.0.0.1:6", false)).await;
    assert_refused(outcome, status::MEMBER_NOT_ENOUGH_STARTED);
}
