//! What only the machine decides: headers inside transactions, the path of
//! nested ones, refused commands that leave no trace, alarms, leases, and that
//! all of it is there after reopening. Behaviour as clients see it is tested
//! by tests/scripts.

use std::sync::Arc;

use bytes::Bytes;

use super::command::{
    LeaseCheckpoint, LeaseCheckpoints, LeaseExpiry, MemberChange, MemberChangeKind, Publish,
};
use super::members::Identity;
use super::*;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::request_op::Request as Op;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{
    AlarmRequest, AlarmType, Compare, DeleteRangeRequest, Member, PutRequest, RangeRequest,
    RequestOp, TxnRequest,
};
use crate::storage::Settings;

struct Fixture {
    dir: tempfile::TempDir,
    engine: Arc<Engine>,
    machine: Machine,
    store: mvcc::Store,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture::open(tempfile::tempdir().unwrap())
    }

    fn open(dir: tempfile::TempDir) -> Fixture {
        let engine = Engine::open(dir.path(), &Settings::default()).unwrap();
        let engine = Arc::new(engine);
        let (machine, store) = Machine::open(engine.clone()).unwrap();
        Fixture {
            dir,
            engine,
            machine,
            store,
        }
    }

    /// Flushes first: there is no raft log here to replay from.
    fn reopen(self) -> Fixture {
        self.engine.flush().unwrap();
        let Fixture {
            dir,
            engine,
            machine,
            store,
        } = self;
        // RocksDB's lock on the directory goes with the last of them.
        drop((machine, store, engine));
        Fixture::open(dir)
    }

    fn stage<R: Request>(&mut self, request: R) -> Result<R::Reply, CommandError> {
        let command = Command {
            header: None,
            body: Some(request.into()),
        };
        let (index, _) = self.machine.applied();
        let reply = self.machine.apply(index + 1, 1, &command).unwrap()?;
        Ok(R::unwrap_reply(reply).unwrap())
    }

    fn run<R: Request>(&mut self, request: R) -> Result<R::Reply, CommandError> {
        let reply = self.stage(request);
        self.machine.commit().unwrap();
        reply
    }

    fn count(&self, key: &'static str) -> i64 {
        self.store.range(&get(key)).unwrap().count
    }
}

fn put(key: &'static str, value: &'static str) -> PutRequest {
    PutRequest {
        key: Bytes::from_static(key.as_bytes()),
        value: Bytes::from_static(value.as_bytes()),
        ..PutRequest::default()
    }
}

fn get(key: &'static str) -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(key.as_bytes()),
        ..RangeRequest::default()
    }
}

fn delete(key: &'static str) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: Bytes::from_static(key.as_bytes()),
        ..DeleteRangeRequest::default()
    }
}

fn txn(ops: Vec<Op>) -> TxnRequest {
    TxnRequest {
        success: ops
            .into_iter()
            .map(|op| RequestOp { request: Some(op) })
            .collect(),
        ..TxnRequest::default()
    }
}

fn absent(key: &'static str) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Version as i32,
        key: Bytes::from_static(key.as_bytes()),
        target_union: Some(TargetUnion::Version(0)),
        ..Compare::default()
    }
}

fn revision_of(response: &Response) -> i64 {
    let header = match response {
        Response::ResponseRange(range) => &range.header,
        Response::ResponsePut(put) => &put.header,
        Response::ResponseDeleteRange(range) => &range.header,
        Response::ResponseTxn(txn) => &txn.header,
    };
    header.as_ref().unwrap().revision
}

/// VEC-4.
#[test]
fn nested_headers_carry_the_new_revision_from_the_first_change_on() {
    let mut fixture = Fixture::new();
    fixture.run(put("seed", "")).unwrap();
    let mut range = get("a");
    range.range_end = Bytes::from_static(b"z");
    let response = fixture
        .run(txn(vec![
            Op::RequestRange(range),
            Op::RequestDeleteRange(delete("q")),
            Op::RequestPut(put("c", "1")),
            Op::RequestDeleteRange(delete("q2")),
        ]))
        .unwrap();
    let revisions: Vec<i64> = response
        .responses
        .iter()
        .map(|op| revision_of(op.response.as_ref().unwrap()))
        .collect();
    assert_eq!(revisions, [2, 2, 3, 3]);
    assert_eq!(response.header.unwrap().revision, 3);
}

/// VEC-5.
#[test]
fn nested_compares_see_the_state_before_the_transaction() {
    let mut fixture = Fixture::new();
    let nested = TxnRequest {
        compare: vec![absent("n")],
        success: txn(vec![Op::RequestPut(put("m1", ""))]).success,
        failure: txn(vec![Op::RequestPut(put("m2", ""))]).success,
    };
    let response = fixture
        .run(txn(vec![
            Op::RequestPut(put("n", "")),
            Op::RequestTxn(nested),
        ]))
        .unwrap();
    let Some(Response::ResponseTxn(nested)) = &response.responses[1].response else {
        panic!("{response:?}");
    };
    assert!(nested.succeeded);
    assert_eq!(nested.header, Some(ResponseHeader::default()));
    assert_eq!((fixture.count("m1"), fixture.count("m2")), (1, 0));
    assert_eq!(fixture.store.revision(), 2);
}

/// etcd 3.5 crashes on this request.
#[test]
fn a_kept_value_deleted_earlier_in_the_transaction_refuses_it_whole() {
    let mut fixture = Fixture::new();
    fixture.run(put("k", "v")).unwrap();
    let keep = PutRequest {
        ignore_value: true,
        ..put("k", "")
    };
    let request = txn(vec![
        Op::RequestPut(put("other", "")),
        Op::RequestDeleteRange(delete("k")),
        Op::RequestTxn(txn(vec![Op::RequestPut(keep)])),
    ]);
    assert_eq!(fixture.run(request), Err(CommandError::KeyNotFound));
    assert_eq!((fixture.count("k"), fixture.count("other")), (1, 0));
    assert_eq!(fixture.store.revision(), 2);
    fixture.run(put("k", "w")).unwrap();
    assert_eq!(fixture.store.revision(), 3);
}

#[test]
fn commands_of_one_batch_see_each_other() {
    let mut fixture = Fixture::new();
    fixture.stage(put("a", "1")).unwrap();
    let response = fixture.stage(delete("a")).unwrap();
    assert_eq!(response.deleted, 1);
    let create = TxnRequest {
        compare: vec![absent("a")],
        ..txn(vec![Op::RequestPut(put("a", "2"))])
    };
    assert!(fixture.stage(create).unwrap().succeeded);
    let at_old_revision = RangeRequest {
        revision: 2,
        ..get("a")
    };
    let response = fixture
        .stage(txn(vec![
            Op::RequestPut(put("b", "")),
            Op::RequestRange(at_old_revision),
        ]))
        .unwrap();
    let Some(Response::ResponseRange(range)) = &response.responses[1].response else {
        panic!("{response:?}");
    };
    assert_eq!(range.count, 1);
    let effects = fixture.machine.commit().unwrap();
    let revisions: Vec<i64> = effects.events.iter().map(|each| each.revision).collect();
    assert_eq!(revisions, [2, 3, 4, 5]);
    assert_eq!(effects.revision, 5);
}

#[test]
fn revoking_a_lease_deletes_its_keys_in_one_revision() {
    let mut fixture = Fixture::new();
    let grant = |id| LeaseGrantRequest { id, ttl: 60 };
    fixture.run(grant(7)).unwrap();
    assert_eq!(fixture.run(grant(7)), Err(CommandError::LeaseExists));
    assert_eq!(
        fixture.run(LeaseGrantRequest {
            id: 8,
            ttl: 9_000_000_001
        }),
        Err(CommandError::LeaseTtlTooLarge)
    );
    for key in ["x", "w", "stays"] {
        fixture
            .run(PutRequest {
                lease: 7,
                ..put(key, "")
            })
            .unwrap();
    }
    fixture.run(put("stays", "without lease")).unwrap();
    let unknown = PutRequest {
        lease: 9,
        ..put("y", "")
    };
    assert_eq!(fixture.run(unknown), Err(CommandError::LeaseNotFound));
    let mut fixture = fixture.reopen();
    let response = fixture.stage(LeaseRevokeRequest { id: 7 }).unwrap();
    assert_eq!(response.header.unwrap().revision, 6);
    let effects = fixture.machine.commit().unwrap();
    assert_eq!(effects.leases, [LeaseChange::Revoked { id: 7 }]);
    let keys: Vec<_> = effects.events[0]
        .events
        .iter()
        .map(|event| event.key.clone())
        .collect();
    assert_eq!(keys, ["w", "x"]);
    assert_eq!(
        fixture.run(LeaseRevokeRequest { id: 7 }),
        Err(CommandError::LeaseNotFound)
    );
}

#[test]
fn alarms_refuse_what_they_forbid_and_stay() {
    let mut fixture = Fixture::new();
    fixture.run(put("a", "")).unwrap();
    let alarm = |action: AlarmAction, alarm: AlarmType| AlarmRequest {
        action: action as i32,
        member_id: 5,
        alarm: alarm as i32,
    };
    fixture
        .run(alarm(AlarmAction::Activate, AlarmType::Nospace))
        .unwrap();
    let mut fixture = fixture.reopen();
    assert_eq!(fixture.machine.published().alarms().len(), 1);
    assert_eq!(fixture.run(put("b", "")), Err(CommandError::NoSpace));
    assert_eq!(fixture.run(delete("a")).unwrap().deleted, 1);
    fixture
        .run(alarm(AlarmAction::Activate, AlarmType::Corrupt))
        .unwrap();
    assert_eq!(fixture.run(delete("a")), Err(CommandError::Corrupt));
    let all = fixture
        .run(alarm(AlarmAction::Get, AlarmType::None))
        .unwrap();
    assert_eq!(all.alarms.len(), 2);
    for kind in [AlarmType::Corrupt, AlarmType::Nospace] {
        let gone = fixture.run(alarm(AlarmAction::Deactivate, kind)).unwrap();
        assert_eq!(gone.alarms.len(), 1);
    }
    fixture.run(put("b", "")).unwrap();
}

fn member(id: u64, url: &str) -> Member {
    Member {
        id,
        peer_ur_ls: vec![url.to_owned()],
        ..Member::default()
    }
}

fn change(kind: MemberChangeKind, member: Member) -> MemberChange {
    MemberChange {
        kind: kind as i32,
        member: Some(member),
        max_learners: 1,
    }
}

fn ids(members: &[Member]) -> Vec<u64> {
    members.iter().map(|member| member.id).collect()
}

/// A new cluster of these members.
fn cluster(members: &[Member]) -> Fixture {
    let fixture = Fixture::new();
    let identity = Identity {
        cluster_id: 100,
        member_id: 1,
    };
    let start = members::Start::NewCluster;
    identity.bootstrap(&fixture.engine, members, start).unwrap();
    fixture.reopen()
}

#[test]
fn a_new_clusters_first_state_is_applied() {
    let mut fixture = cluster(&[member(1, "http://a:1"), member(2, "http://b:1")]);
    assert_eq!(fixture.machine.applied(), members::FIRST_APPLIED);
    let conf = Conf {
        voters: vec![1, 2],
        learners: Vec::new(),
    };
    assert_eq!(fixture.machine.conf(), conf);
    // Names and client URLs are the member's own to tell, nothing else is.
    let published = Member {
        name: "one".to_owned(),
        client_ur_ls: vec!["http://a:2".to_owned()],
        is_learner: true,
        ..member(1, "http://elsewhere:1")
    };
    let publish = |member| Publish {
        member: Some(member),
    };
    fixture.run(publish(published)).unwrap();
    fixture.run(publish(member(9, "http://c:1"))).unwrap();
    let members = fixture.machine.published().members();
    assert_eq!(ids(&members), [1, 2]);
    assert_eq!(members[0].name, "one");
    assert_eq!(members[0].peer_ur_ls, ["http://a:1"]);
    assert_eq!(fixture.machine.conf(), conf);
}

#[test]
fn who_joins_takes_part_in_nothing_before_it_has_the_state() {
    let fixture = Fixture::new();
    let identity = Identity {
        cluster_id: 100,
        member_id: 2,
    };
    let members = [member(1, "http://a:1"), member(2, "http://b:1")];
    let start = members::Start::Joining;
    identity
        .bootstrap(&fixture.engine, &members, start)
        .unwrap();
    let fixture = fixture.reopen();
    assert_eq!(fixture.machine.applied(), (0, 0));
    assert_eq!(fixture.machine.conf(), Conf::default());
    assert_eq!(ids(&fixture.machine.published().members()), [1, 2]);
}

/// CLU-6, CLU-8, CLU-9, CLU-10.
#[test]
fn members_change_as_far_as_they_may() {
    use MemberChangeKind::{Add, AddLearner, Promote, Remove, Update};
    let mut fixture = cluster(&[member(1, "http://a:1")]);
    let refused = [
        (Add, member(1, "http://b:1"), CommandError::MemberExists),
        (Add, member(2, "http://a:1"), CommandError::PeerUrlExists),
        (Promote, member(2, ""), CommandError::MemberNotFound),
        (Promote, member(1, ""), CommandError::MemberNotLearner),
        (Remove, member(2, ""), CommandError::MemberNotFound),
        (Remove, member(1, ""), CommandError::LastVoter),
        (
            Update,
            member(2, "http://b:1"),
            CommandError::MemberNotFound,
        ),
    ];
    for (kind, member, error) in refused {
        let outcome = fixture.run(change(kind, member.clone()));
        assert_eq!(outcome, Err(error), "{kind:?} {member:?}");
    }
    let members = fixture
        .run(change(AddLearner, member(2, "http://b:1")))
        .unwrap();
    assert!(members[1].is_learner);
    assert_eq!(fixture.machine.conf().learners, [2]);
    assert_eq!(
        fixture.run(change(AddLearner, member(3, "http://c:1"))),
        Err(CommandError::TooManyLearners)
    );
    assert_eq!(
        fixture.run(change(Update, member(2, "http://a:1"))),
        Err(CommandError::PeerUrlExists)
    );
    fixture
        .run(change(Update, member(2, "http://d:1")))
        .unwrap();
    fixture.run(change(Promote, member(2, ""))).unwrap();
    let mut fixture = fixture.reopen();
    assert_eq!(fixture.machine.conf().voters, [1, 2]);
    let members = fixture.machine.published().members();
    assert_eq!(members[1].peer_ur_ls, ["http://d:1"]);

    assert_eq!(
        ids(&fixture.run(change(Remove, member(1, ""))).unwrap()),
        [2]
    );
    let mut fixture = fixture.reopen();
    // It never comes back.
    for kind in [Add, AddLearner, Promote, Remove, Update] {
        let outcome = fixture.run(change(kind, member(1, "http://e:1")));
        assert_eq!(outcome, Err(CommandError::MemberNotFound), "{kind:?}");
    }
    assert!(fixture.machine.published().is_removed(1));
    assert!(!fixture.machine.published().is_removed(2));
}

#[test]
fn a_forced_cluster_is_this_member_alone_whatever_the_log_holds() {
    let mut fixture = cluster(&[member(1, "http://a:1"), member(2, "http://b:1")]);
    fixture.run(put("kept", "")).unwrap();
    fixture.machine.force_alone(1, 5).unwrap();
    let mut fixture = fixture.reopen();
    assert_eq!(fixture.machine.conf().voters, [1]);
    assert_eq!(fixture.count("kept"), 1);
    // Left in the log by the cluster that was.
    let add = |term| {
        let add = change(MemberChangeKind::Add, member(3, "http://c:1"));
        let command = Command {
            header: None,
            body: Some(add.into()),
        };
        (term, command)
    };
    let (term, command) = add(5);
    let (index, _) = fixture.machine.applied();
    let outcome = fixture.machine.apply(index + 1, term, &command).unwrap();
    assert_eq!(outcome, Err(CommandError::LeaderChanged));
    let (term, command) = add(6);
    fixture
        .machine
        .apply(index + 2, term, &command)
        .unwrap()
        .unwrap();
    assert_eq!(fixture.machine.conf().voters, [1, 3]);
}

/// etcd issue 15247: the leader of another term has given the lease more time.
#[test]
fn only_the_terms_own_leader_ends_a_lease() {
    let mut fixture = Fixture::new();
    fixture.run(LeaseGrantRequest { id: 7, ttl: 600 }).unwrap();
    let checkpoints = |term, sequence, remaining_seconds| LeaseCheckpoints {
        checkpoints: vec![LeaseCheckpoint {
            id: 7,
            remaining_seconds,
        }],
        term,
        sequence,
    };
    let remaining = |fixture: &Fixture| fixture.machine.leases().next().unwrap().remaining_seconds;
    // The fixture applies in term 1.
    for term in [0, 2] {
        let outcome = fixture.run(LeaseExpiry { id: 7, term });
        assert_eq!(outcome, Err(CommandError::LeaderChanged));
        let outcome = fixture.run(checkpoints(term, 1, 300));
        assert_eq!(outcome, Err(CommandError::LeaderChanged));
    }
    assert_eq!(remaining(&fixture), 0);
    fixture.run(checkpoints(1, 2, 300)).unwrap();
    let mut fixture = fixture.reopen();
    assert_eq!(remaining(&fixture), 300);
    fixture.stage(LeaseExpiry { id: 7, term: 1 }).unwrap();
    let effects = fixture.machine.commit().unwrap();
    assert_eq!(effects.leases, [LeaseChange::Revoked { id: 7 }]);
}

/// etcd 3.7.3 loses the key here and ends when it is read next: its compaction
/// keeps the deletion and drops the put that follows it in the same revision.
/// (Deletes to the end of the key space pass its check for duplicates.)
#[test]
fn a_key_deleted_and_put_in_the_revision_compacted_to_stays() {
    let mut fixture = Fixture::new();
    fixture.run(put("k", "old")).unwrap();
    let to_the_end = DeleteRangeRequest {
        range_end: Bytes::from_static(&[0]),
        ..delete("k")
    };
    let replace = txn(vec![
        Op::RequestDeleteRange(to_the_end),
        Op::RequestPut(put("k", "new")),
    ]);
    let revision = fixture.run(replace).unwrap().header.unwrap().revision;
    fixture.run(put("other", "")).unwrap();
    let compaction = CompactionRequest {
        revision,
        physical: true,
    };
    fixture.run(compaction).unwrap();
    while fixture.machine.background_step().unwrap() {}
    let fixture = fixture.reopen();
    let at_compacted = RangeRequest {
        revision,
        ..get("k")
    };
    for request in [get("k"), at_compacted] {
        let found = fixture.store.range(&request).unwrap();
        assert_eq!((found.count, found.kvs.len()), (1, 1));
    }
}
