//! How long nobody can write when the leader of a cluster is killed: from
//! SIGKILL to the answer of the first put that succeeds, sent after it.
//!
//! A put that a member forwards to a leader that is gone is lost, and its
//! client hears of a time-out only seconds later. What is measured is the
//! cluster and not such a client's patience, so puts leave in short intervals,
//! to the members that are left in turns, and none waits for another. The one
//! that was killed is started again, and has caught up, before the next turn.

use std::time::{Duration, Instant};

use stele::proto::client::etcdserverpb::{MoveLeaderRequest, PutRequest, StatusRequest};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::measure::{Sample, latencies, record};
use crate::support::client::Clients;
use crate::support::process::Server;
use crate::target::Target;

/// Fine enough for elections, which take a second with the default time-outs.
const PUT_INTERVAL: Duration = Duration::from_millis(5);

/// Longer than any election takes.
const PATIENCE: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(10);

/// Between an election and the next kill.
const CALM: Duration = Duration::from_millis(500);

pub async fn run(target: &mut Target, kills: usize) -> Sample {
    let mut latencies = latencies();
    let mut seconds = 0.0;
    for _ in 0..kills {
        let leader = leader(target).await.1;
        let left = target.members().enumerate();
        let left = left.filter(|(number, _)| *number != leader);
        let left: Vec<Clients> = left.map(|(_, member)| Server::clients(member)).collect();
        for clients in &left {
            // Connected beforehand.
            put(clients.clone()).await.expect("a put while all is well");
        }
        let killed = Instant::now();
        target.member_mut(leader).kill();
        first_put(&left).await;
        let without_leader = killed.elapsed();
        record(&mut latencies, without_leader);
        seconds += without_leader.as_secs_f64();
        target.member_mut(leader).restart().await;
        target.settle().await;
        sleep(CALM).await;
    }
    let processes = target.processes();
    Sample {
        operations: latencies.len(),
        seconds,
        operations_per_s: latencies.len() as f64 / seconds,
        p50_us: latencies.value_at_quantile(0.5),
        p99_us: latencies.value_at_quantile(0.99),
        p999_us: latencies.value_at_quantile(0.999),
        max_us: latencies.max(),
        rss_bytes: processes.rss_bytes(),
        peak_rss_bytes: processes.peak_rss_bytes(),
        ..Sample::default()
    }
    .with(
        "median_ms",
        latencies.value_at_quantile(0.5) as f64 / 1000.0,
    )
    .with("worst_ms", latencies.max() as f64 / 1000.0)
}

/// Makes the first member of a cluster the leader: who asks the leader and who
/// does not must not be luck.
pub async fn lead_with_first(target: &Target) {
    let began = Instant::now();
    loop {
        let (ids, leader) = leader(target).await;
        if leader == 0 {
            return;
        }
        let leader = target.members().nth(leader).expect("one of the members");
        let transfer = MoveLeaderRequest { target_id: ids[0] };
        let moved = leader.clients().maintenance.move_leader(transfer).await;
        // A cluster that has just begun may not be able to yet.
        if let Err(status) = moved {
            assert!(began.elapsed() < PATIENCE, "move leader: {status:?}");
            sleep(PAUSE).await;
        }
    }
}

/// The members' IDs, and the number of the one that all take for the leader.
async fn leader(target: &Target) -> (Vec<u64>, usize) {
    let began = Instant::now();
    loop {
        let (mut ids, mut leaders) = (Vec::new(), Vec::new());
        for member in target.members() {
            let status = member.clients().maintenance.status(StatusRequest {}).await;
            let status = status.expect("a member that runs has a status");
            let status = status.into_inner();
            ids.push(status.header.map_or(0, |header| header.member_id));
            leaders.push(status.leader);
        }
        let is_agreed = leaders.iter().all(|leader| *leader == leaders[0]);
        let leader = ids.iter().position(|id| *id == leaders[0]);
        if let Some(leader) = leader.filter(|_| is_agreed) {
            return (ids, leader);
        }
        assert!(began.elapsed() < PATIENCE, "no leader is agreed on");
        sleep(PAUSE).await;
    }
}

/// Returns when a put has succeeded. Those still waiting are given up.
async fn first_put(left: &[Clients]) {
    let mut puts = JoinSet::new();
    let mut ticks = interval(PUT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let began = Instant::now();
    let mut turns = left.iter().cycle();
    loop {
        tokio::select! {
            Some(ended) = puts.join_next() => {
                let outcome: Result<(), tonic::Status> = ended.expect("a put does not panic");
                if outcome.is_ok() {
                    return;
                }
            }
            _ = ticks.tick() => {
                assert!(began.elapsed() < PATIENCE, "no put succeeds any more");
                let clients = turns.next().expect("somebody is left");
                puts.spawn(put(clients.clone()));
            }
        }
    }
}

async fn put(clients: Clients) -> Result<(), tonic::Status> {
    let mut kv = clients.kv;
    let request = PutRequest {
        key: "election".into(),
        value: "held".into(),
        ..PutRequest::default()
    };
    kv.put(request).await.map(|_| ())
}
