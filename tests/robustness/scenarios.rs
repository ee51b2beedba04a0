//! etcd's known faults, by issue number: what each was, and what shows it.
//!
//! All are driven from outside, so most depend on chance: a run that passes
//! says little, many runs say more. Not covered, since it needs the inside:
//!
//! - raft issue 397, the cause behind 20418: a leader confuses answers to two
//!   rounds of ReadIndex with the same context. It takes messages that are
//!   delivered twice or late by their kind; bytes of a TCP stream are not.
//! - the exact moment of 13766 (data without the index it belongs to) and of
//!   17780 (rows removed, the end of the compaction not recorded): here members
//!   are killed around it, a failpoint would hit it.

use std::time::{Duration, Instant};

use rand::Rng;
use stele::proto::client::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, PutRequest,
};
use stele::proto::client::mvccpb::event::EventType;

use crate::check::timeline::revision_of;
use crate::cluster::{Cluster, PATIENCE};
use crate::fault::Fault;
use crate::load::TTL_SECONDS;
use crate::proxy::Mode;
use crate::support::client::Clients;
use crate::support::process::Program;
use crate::support::read_back;
use crate::support::settings::{random, seed};
use crate::trial::{Plan, Trial};
use crate::{begin_scenario, plan};

/// Snapshots after so many entries, and entries that stay: a member that was
/// away for a moment gets a snapshot.
const TINY_SNAPSHOTS: Option<(u64, u64)> = Some((10, 5));

/// Runs a plan with these faults and checks it.
async fn run(plan: Plan, faults: &[Fault]) {
    let mut trial = Trial::start(plan).await;
    for fault in faults {
        trial.suffer(*fault).await;
    }
    trial.finish().await;
}

fn drawn_plan(name: &str) -> Plan {
    let seed = seed("STELE_ROBUSTNESS_SEED");
    println!("{name}: STELE_ROBUSTNESS_SEED={seed}");
    plan(seed)
}

/// Under load, the index of the last applied entry reached the disk before the
/// entry's data; after a crash the entry was skipped, and that member's
/// revisions and keys differed from the others' ever after. Shown by members
/// that disagree at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issue_13766_members_agree_after_crashes_under_load() {
    let Some(_turn) = begin_scenario().await else {
        return;
    };
    let mut plan = drawn_plan("13766");
    plan.orders.pause = Duration::from_millis(4);
    plan.orders.reads = 0.1;
    run(plan, &[Fault::KillAll; 4]).await;
}

/// A cluster of one answered before its log was synced, so that a crash lost
/// what it had acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issue_14370_a_single_member_keeps_what_it_acknowledged() {
    let Some(_turn) = begin_scenario().await else {
        return;
    };
    let mut plan = drawn_plan("14370");
    plan.layout.members = 1;
    plan.orders.pause = Duration::from_millis(4);
    run(plan, &[Fault::KillAll; 6]).await;
}

/// Progress that a client asks for was read past the events still queued for
/// it, so it named a revision whose events came later. Shown by many requests
/// for progress while events flow and watchers fall behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issue_15220_progress_is_never_ahead_of_events() {
    let Some(_turn) = begin_scenario().await else {
        return;
    };
    let mut plan = drawn_plan("15220");
    plan.watchers = 18;
    plan.progress_requests = Duration::from_millis(7);
    plan.orders.reads = 0.0;
    run(plan, &[Fault::PauseFollower, Fault::Delay]).await;
}

/// A member that came back behind the others got a snapshot, and its watchers
/// were sent once more what they had been sent before. Shown by watchers that
/// stay with a member which is cut off for longer than its log reaches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issue_15271_watches_do_not_travel_back_in_time() {
    let Some(_turn) = begin_scenario().await else {
        return;
    };
    let mut plan = drawn_plan("15271");
    plan.layout.snapshot = TINY_SNAPSHOTS;
    let faults = [
        Fault::LoseFollower,
        Fault::CutFollower,
        Fault::DeafFollower,
        Fault::LoseLeader,
    ];
    run(plan, &faults).await;
}

/// A cache of read transactions was used by a member that had just saved a
/// snapshot or had just joined, and events were sent twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issue_17247_no_event_comes_twice_around_snapshots() {
    let Some(_turn) = begin_scenario().await else {
        return;
    };
    let mut plan = drawn_plan("17247");
    plan.layout.snapshot = TINY_SNAPSHOTS;
    let faults = [
        Fault::KillFollower,
        Fault::ReplaceFollower,
        Fault::KillLeader,
    ];
    run(plan, &faults).await;
}

/// A compaction to the revision of a deletion removed that deletion, although
/// a watch may begin there; it got everything but the deletion (18089), or
/// missed it when it began while the compaction ran (19179).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issue_18089_a_deletion_at_the_compacted_revision_is_watched() {
    let Some(_turn) = begin_scenario().await else {
        return;
    };
    let plan = drawn_plan("18089");
    let mut cluster = Cluster::start(plan.layout).await;
    for round in 0..4 {
        let clients = cluster.clients(round % cluster.present().len());
        let deleted = put_and_delete(&clients, round).await;
        put(&clients, "after").await;
        compact(&clients, deleted).await.expect("it is compacted");
        if round % 2 == 1 {
            for number in cluster.present() {
                cluster.kill(number);
                cluster.spawn(number);
            }
        }
        for number in cluster.present() {
            cluster.wait_until_ready(number).await;
            let events = read_back::events(&cluster.clients(number), deleted - 1, deleted + 1)
                .await
                .expect("the compacted revision can be watched");
            let revisions: Vec<i64> = events.iter().map(revision_of).collect();
            assert_eq!(revisions, [deleted, deleted + 1], "at member {number}");
            assert_eq!(events[0].r#type(), EventType::Delete, "at member {number}");
        }
    }
}

/// A crash in a compaction whose newest revision was a deletion: the deletion
/// was gone and the store began again below it, so that revisions were used a
/// second time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issue_17780_the_revision_never_falls() {
    let Some(_turn) = begin_scenario().await else {
        return;
    };
    let plan = drawn_plan("17780");
    let mut random = random(plan.orders.seed);
    let mut cluster = Cluster::start(plan.layout).await;
    for round in 0..8 {
        let clients = cluster.clients(round % cluster.present().len());
        let deleted = put_and_delete(&clients, round).await;
        let compaction = compact(&clients, deleted);
        let moment = Duration::from_millis(random.random_range(0..20));
        // The answer does not matter: it is killed before, meanwhile or after.
        drop(tokio::time::timeout(moment, compaction).await);
        for number in cluster.present() {
            cluster.kill(number);
        }
        for number in cluster.present() {
            cluster.spawn(number);
        }
        for number in cluster.present() {
            cluster.wait_until_ready(number).await;
            let (revision, _) = read_back::everything(&cluster.clients(number), 0)
                .await
                .expect("it serves");
            assert_eq!(revision, deleted, "at member {number}");
        }
    }
}

/// A watch from a revision yet to come was served by a member that was behind:
/// when it got a snapshot, or when progress was asked for, the watch was told
/// of revisions below the first it had asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issue_20221_a_watch_of_the_future_gets_nothing_of_the_past() {
    let Some(_turn) = begin_scenario().await else {
        return;
    };
    let mut plan = drawn_plan("20221");
    plan.layout.snapshot = TINY_SNAPSHOTS;
    let mut trial = Trial::start(plan).await;
    for _ in 0..3 {
        let leader = trial.cluster.leader().await;
        let behind = (leader + 1) % trial.cluster.present().len();
        trial.cluster.set_links(behind, Mode::Hold, Mode::Hold);
        for _ in 0..3 {
            let ahead = trial.random.random_range(20..300);
            trial.watch_ahead(behind, ahead);
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        trial.cluster.heal_links();
        trial.cluster.wait_until_ready(behind).await;
    }
    trial.finish().await;
}

/// A member tried a ReadIndex round again with the context of the first try;
/// after a pause, a late answer to the old round passed for one to the new, and
/// a linearizable read showed the past.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issue_20418_pauses_make_no_read_stale() {
    let Some(_turn) = begin_scenario().await else {
        return;
    };
    let mut plan = drawn_plan("20418");
    plan.orders.reads = 0.7;
    let faults = [
        Fault::PauseLeader,
        Fault::PauseFollower,
        Fault::Delay,
        Fault::PauseLeader,
        Fault::Flap,
        Fault::PauseLeader,
    ];
    run(plan, &faults).await;
}

/// A read index that was taken before a change of leader was answered after
/// it, so that a read showed what the old leader had known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issue_21375_no_read_is_stale_after_a_change_of_leader() {
    let Some(_turn) = begin_scenario().await else {
        return;
    };
    let mut plan = drawn_plan("21375");
    plan.orders.reads = 0.7;
    let faults = [
        Fault::MoveLeader,
        Fault::MoveLeader,
        Fault::LoseLeader,
        Fault::MoveLeader,
        Fault::KillLeader,
        Fault::TerminateLeader,
    ];
    run(plan, &faults).await;
}

/// A leader that stood still for longer than leases last took itself for the
/// leader when it went on, and revoked leases that clients had renewed at the
/// new leader meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issue_15247_an_old_leader_ends_no_lease() {
    let Some(_turn) = begin_scenario().await else {
        return;
    };
    let mut plan = drawn_plan("15247");
    plan.orders.leases = 0.6;
    let mut trial = Trial::start(plan).await;
    let longer = Duration::from_secs(2 + u64::try_from(TTL_SECONDS).expect("positive"));
    let leader = trial.cluster.leader().await;
    trial.cluster.pause(leader);
    tokio::time::sleep(longer).await;
    trial.cluster.resume(leader);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let leader = trial.cluster.leader().await;
    trial.cluster.set_links(leader, Mode::Hold, Mode::Hold);
    tokio::time::sleep(longer).await;
    trial.cluster.heal_links();
    trial.cluster.wait_until_ready(leader).await;
    trial.finish().await;
}

/// A renewal that had found its lease waited, and succeeded after the lease
/// had been revoked. Shown by renewals right after revokes, at any member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issue_20615_nobody_renews_a_revoked_lease() {
    let Some(_turn) = begin_scenario().await else {
        return;
    };
    let mut plan = drawn_plan("20615");
    plan.orders.reads = 0.0;
    plan.orders.leases = 0.95;
    plan.orders.pause = Duration::from_millis(5);
    plan.lease_tolerance = Duration::ZERO;
    if plan.layout.program == Program::Etcd {
        // It allows this for speed, unless it is told not to.
        let gate = "--feature-gates=FastLeaseKeepAlive=false".to_owned();
        plan.layout.arguments.push(gate);
    }
    let faults = [Fault::MoveLeader, Fault::KillLeader, Fault::MoveLeader];
    run(plan, &faults).await;
}

/// A member whose data are not those of the others, although its log fits: it
/// once was the same member of another cluster of the same name. It is named by
/// an alarm, and does not start if it is to compare first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_other_data_is_found_out() {
    let Some(_turn) = begin_scenario().await else {
        return;
    };
    let mut plan = drawn_plan("other data");
    if plan.layout.members < 3 {
        eprintln!("skipped: there is no majority to compare with");
        return;
    }
    let check = "--corrupt-check-time=1s".to_owned();
    plan.layout.arguments.push(check);
    let mut cluster = Cluster::start(plan.layout).await;
    let odd = 0;
    let saved = cluster.data_dir(odd).with_extension("saved");
    // The first history is the shorter one: its member only has to catch up.
    for puts in [5, 50] {
        // Raft would find out a log of other terms.
        while cluster.term(odd).await != Some(2) {
            cluster.begin_anew().await;
        }
        let clients = cluster.clients(cluster.leader().await);
        for number in 0..puts {
            put(&clients, &format!("{puts}/{number}")).await;
        }
        cluster.kill(odd);
        if puts == 5 {
            std::fs::rename(cluster.data_dir(odd), &saved).expect("it does not run");
            std::fs::create_dir(cluster.data_dir(odd)).expect("it was there before");
            cluster.begin_anew().await;
        }
    }
    for number in cluster.running() {
        cluster.kill(number);
    }
    std::fs::remove_dir_all(cluster.data_dir(odd)).expect("it does not run");
    std::fs::rename(&saved, cluster.data_dir(odd)).expect("it does not run");
    cluster.spawn_all().await;
    let leader = cluster.leader().await;
    let odd_id = cluster.id_of(odd, &cluster.list(leader).await);
    let started = Instant::now();
    let alarmed = loop {
        let request = AlarmRequest::default();
        let reply = cluster.clients(leader).maintenance.alarm(request).await;
        if let Some(alarm) = reply.ok().and_then(|reply| reply.into_inner().alarms.pop()) {
            break alarm;
        }
        assert!(started.elapsed() < PATIENCE, "no alarm\n{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(alarmed.alarm(), AlarmType::Corrupt);
    assert_eq!(Some(alarmed.member_id), odd_id);
    cluster.kill(odd);
    cluster.add_argument(odd, "--feature-gates=InitialCorruptCheck=true");
    cluster.spawn(odd);
    let status = cluster.wait_for_exit(odd).await;
    assert!(status.is_some_and(|status| !status.success()), "{status:?}");
}

async fn put(clients: &Clients, key: &str) -> i64 {
    let request = PutRequest {
        key: key.to_owned().into(),
        value: "value".into(),
        ..PutRequest::default()
    };
    let reply = clients.kv.clone().put(request).await.expect("it serves");
    reply
        .into_inner()
        .header
        .map_or(0, |header| header.revision)
}

/// Some keys, and the deletion of one of them; returns its revision.
async fn put_and_delete(clients: &Clients, round: usize) -> i64 {
    const KEYS: usize = 20;
    for number in 0..KEYS {
        put(clients, &format!("{round}/{number}")).await;
    }
    let request = DeleteRangeRequest {
        key: format!("{round}/0").into(),
        ..DeleteRangeRequest::default()
    };
    let reply = clients.kv.clone().delete_range(request).await;
    let header = reply.expect("it serves").into_inner().header;
    header.map_or(0, |header| header.revision)
}

async fn compact(clients: &Clients, revision: i64) -> Result<(), tonic::Status> {
    let request = CompactionRequest {
        revision,
        physical: true,
    };
    clients.kv.clone().compact(request).await.map(drop)
}
