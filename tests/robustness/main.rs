//! Clusters of real processes under faults: linearizable, and watches whole.
//!
//! A *trial* starts a cluster with etcd's own flags, a proxy before each peer
//! port ([`proxy`]), clients ([`load`]) and watchers ([`watcher`]) on all
//! members; faults follow one another ([`fault`]); then every answer and every
//! event is compared with one order of all revisions ([`check`]).
//! [`scenarios`] are etcd's known faults, by their issue numbers.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | STELE_ROBUSTNESS | run at all; `short`: less than a minute, without the scenarios, changes of membership and jumps of clocks | unset: only the tests of the checks |
//! | STELE_ROBUSTNESS_ROUNDS | faults drawn at random | 8, short: 5 |
//! | STELE_ROBUSTNESS_SEED | to draw the same again (the processes' timing is not repeatable) | by the clock |
//! | STELE_ROBUSTNESS_FAULT | draw only this one, by its name in [`fault::Fault`] | all |
//! | STELE_ROBUSTNESS_LOSSES | how often the leader is killed, paused and cut off in turn, with 64 clients and an election timeout of a second unless the last rows say otherwise | 0 |
//! | STELE_ROBUSTNESS_SUBJECT | `etcd`: run against real etcd (`STELE_REFERENCE_ETCD`), which tests the test | `stele` |
//! | STELE_ROBUSTNESS_MEMBERS | members of a cluster | 3 |
//! | STELE_ROBUSTNESS_CLIENTS | clients at a time | 8 |
//! | STELE_ROBUSTNESS_PAUSE_MS | a client's mean pause between two requests | 15 |
//! | STELE_ROBUSTNESS_ELECTION_MS | the election timeout; a heartbeat is a tenth | 500 |
//!
//! Nothing is asserted about time. For how long no write was served after the
//! leader was lost is printed, in election timeouts.

// `pub` marks what a file offers to the others; there is no public interface.
#![allow(unreachable_pub)]

mod check;
mod clock;
mod cluster;
mod fault;
mod load;
mod proxy;
mod record;
mod request;
mod scenarios;
#[path = "../support/mod.rs"]
mod support;
mod trial;
mod watcher;

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;
use rand::seq::IndexedRandom;
use tokio::sync::{Mutex, MutexGuard};

use self::cluster::Layout;
use self::fault::Fault;
use self::load::Orders;
use self::support::process::Program;
use self::support::settings::{is_set, random, seed, setting};
use self::trial::{Plan, Recovery, Trial};

/// After so many faults a new cluster is begun, so that a check stays short
/// and a failure says which few faults came before.
const ROUNDS_PER_CLUSTER: u64 = 8;

/// Trials share two cores: one at a time.
static TURN: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults() {
    let Some(_turn) = begin().await else {
        return;
    };
    let rounds: u64 = setting("STELE_ROBUSTNESS_ROUNDS", if is_short() { 5 } else { 8 });
    let first = seed("STELE_ROBUSTNESS_SEED");
    let mut recoveries = Vec::new();
    for trial in 0..rounds.div_ceil(ROUNDS_PER_CLUSTER) {
        let seed = first + trial;
        let rounds = ROUNDS_PER_CLUSTER.min(rounds - trial * ROUNDS_PER_CLUSTER);
        println!("STELE_ROBUSTNESS_SEED={seed} STELE_ROBUSTNESS_ROUNDS={rounds}");
        recoveries.extend(draw(seed, rounds).await);
    }
    print_recoveries(&recoveries);
}

/// What is promised of a cluster that loses its leader again and again: nothing
/// acknowledged is lost, no read is stale. How long it takes is printed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losses_of_the_leader() {
    const KINDS: [Fault; 4] = [
        Fault::KillLeader,
        Fault::PauseLeader,
        Fault::LoseLeader,
        Fault::CutLeader,
    ];
    let losses: usize = setting("STELE_ROBUSTNESS_LOSSES", 0);
    if losses == 0 {
        eprintln!("skipped: STELE_ROBUSTNESS_LOSSES is not set");
        return;
    }
    let Some(_turn) = begin().await else {
        return;
    };
    let seeds = seed("STELE_ROBUSTNESS_SEED")..;
    let kinds: Vec<Fault> = KINDS.into_iter().cycle().take(losses).collect();
    let mut recoveries = Vec::new();
    for (seed, faults) in seeds.zip(kinds.chunks(ROUNDS_PER_CLUSTER as usize)) {
        println!(
            "STELE_ROBUSTNESS_SEED={seed} STELE_ROBUSTNESS_LOSSES={}",
            faults.len()
        );
        let mut plan = plan(seed);
        let election_ms = setting("STELE_ROBUSTNESS_ELECTION_MS", 1_000);
        plan.layout.election_ms = election_ms;
        plan.layout.heartbeat_ms = election_ms / 10;
        plan.lease_tolerance = Duration::from_millis(2 * election_ms);
        plan.orders.clients = setting("STELE_ROBUSTNESS_CLIENTS", 64);
        plan.orders.pause = Duration::from_millis(setting("STELE_ROBUSTNESS_PAUSE_MS", 100));
        let mut trial = Trial::start(plan).await;
        for fault in faults {
            trial.suffer(*fault).await;
        }
        recoveries.extend(trial.finish().await);
        print_recoveries(&recoveries);
    }
}

/// The whole trial itself: reads without a round of ReadIndex are found out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_reads_are_found() {
    let Some(_turn) = begin_scenario().await else {
        return;
    };
    let mut plan = plan(seed("STELE_ROBUSTNESS_SEED"));
    if plan.layout.members < 3 {
        eprintln!("skipped: nobody is left behind in so small a cluster");
        return;
    }
    plan.orders.reads = 0.6;
    plan.orders.is_sabotaged = true;
    let mut trial = Trial::start(plan).await;
    trial.suffer(Fault::LoseFollower).await;
    let reason = trial.end().await.expect_err("no stale read is found");
    assert!(reason.contains("had been seen before"), "{reason}");
}

/// Whether the run is to take less than a minute.
fn is_short() -> bool {
    setting("STELE_ROBUSTNESS", String::new()) == "short"
}

/// Waits for its turn, if processes are to be started at all.
async fn begin() -> Option<MutexGuard<'static, ()>> {
    if !is_set("STELE_ROBUSTNESS") {
        eprintln!("skipped: STELE_ROBUSTNESS is not set (run `make robustness`)");
        return None;
    }
    Some(TURN.lock().await)
}

/// The same for what a short run leaves out.
async fn begin_scenario() -> Option<MutexGuard<'static, ()>> {
    if is_short() {
        eprintln!("skipped: STELE_ROBUSTNESS=short is without scenarios");
        return None;
    }
    begin().await
}

/// A trial whose plan and faults follow from its seed.
async fn draw(seed: u64, rounds: u64) -> Vec<Recovery> {
    let mut random = random(seed);
    let mut plan = plan(seed);
    plan.layout.snapshot = random.random_bool(0.5).then_some((50, 10));
    plan.orders.compacts = random.random_bool(0.5);
    if random.random_bool(0.3) {
        // So much that history does not fit into one response: fragments.
        plan.orders.value_bytes = 3_000;
        plan.layout
            .arguments
            .push("--max-request-bytes=20000".to_owned());
    }
    let is_short = is_short();
    let chosen: String = setting("STELE_ROBUSTNESS_FAULT", String::new());
    let mut faults = Fault::possible(plan.layout.program, plan.layout.members);
    faults.retain(|fault| chosen.is_empty() || format!("{fault:?}") == chosen);
    faults.retain(|fault| !is_short || !fault.is_slow());
    plan.layout.has_clocks = faults.contains(&Fault::JumpClock);
    let mut trial = Trial::start(plan).await;
    for _ in 0..rounds {
        let fault = faults.choose(&mut random);
        let fault = *fault.unwrap_or_else(|| panic!("STELE_ROBUSTNESS_FAULT={chosen} is unknown"));
        trial.suffer(fault).await;
    }
    trial.finish().await
}

/// What every trial begins with.
fn plan(seed: u64) -> Plan {
    let election_ms = setting("STELE_ROBUSTNESS_ELECTION_MS", 500);
    Plan {
        layout: Layout {
            program: subject(),
            members: setting("STELE_ROBUSTNESS_MEMBERS", 3),
            heartbeat_ms: election_ms / 10,
            election_ms,
            arguments: Vec::new(),
            snapshot: None,
            has_clocks: false,
        },
        orders: Orders {
            seed,
            clients: setting("STELE_ROBUSTNESS_CLIENTS", 8),
            pause: Duration::from_millis(setting("STELE_ROBUSTNESS_PAUSE_MS", 15)),
            reads: 0.3,
            leases: 0.25,
            compacts: false,
            value_bytes: 100,
            is_sabotaged: false,
        },
        watchers: 12,
        progress_requests: Duration::from_millis(150),
        lease_tolerance: Duration::from_millis(2 * election_ms),
    }
}

fn subject() -> Program {
    match setting("STELE_ROBUSTNESS_SUBJECT", "stele".to_owned()).as_str() {
        "stele" => Program::Stele,
        "etcd" => Program::Etcd,
        other => panic!("STELE_ROBUSTNESS_SUBJECT={other} is neither stele nor etcd"),
    }
}

fn print_recoveries(recoveries: &[Recovery]) {
    let mut times: BTreeMap<Fault, Vec<f64>> = BTreeMap::new();
    for recovery in recoveries {
        times
            .entry(recovery.fault)
            .or_default()
            .push(recovery.election_timeouts);
    }
    println!("no writes after the loss of the leader, in election timeouts:");
    let all = times.values().flatten().copied().collect();
    for (fault, times) in times {
        print_times(&format!("{fault:?}"), times);
    }
    print_times("all", all);
}

fn print_times(what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    if let Some(worst) = times.last() {
        let median = times[times.len() / 2];
        println!(
            "  {what}: median {median:.2}, worst {worst:.2} of {}",
            times.len()
        );
    }
}
