//! The same random requests to real etcd and to stele: every answer equal.
//!
//! A seed determines the whole stream of requests ([`generate`]); both servers
//! start empty, and each response, code and text is compared ([`compare`]),
//! watch events at sync points ([`watches`]). Runs only when real etcd is
//! asked for, by `make compat`.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | STELE_COMPAT | run at all | unset: not |
//! | STELE_REFERENCE_ETCD | the etcd to compare with | `etcd` of the search path |
//! | STELE_DIFF_REQUESTS | requests altogether | 20,000 |
//! | STELE_DIFF_SEEDS | over how many seeds | 5 |
//! | STELE_DIFF_SEED | replay this one seed (with the same number of requests a seed) | |
//! | STELE_DIFF_FIRST | the first of the seeds | by the clock |
//! | STELE_DIFF_JOBS | seeds at a time | 2 |
//! | STELE_DIFF_MEMBERS | of how many members the subject is a cluster; real etcd is always alone | 1 |
//! | STELE_DIFF_SUBJECT | `etcd`: compare etcd with itself, which tests the tester | `stele` |

// `pub` marks what a file offers to the others; there is no public interface.
#![allow(unreachable_pub)]

mod call;
mod compare;
mod generate;
mod outcome;
mod report;
mod request;
mod run;
mod side;
#[path = "../support/mod.rs"]
mod support;
mod watches;

use std::time::Instant;

use self::run::{Plan, run};
use self::support::process::Program;
use self::support::settings::{is_set, seed, setting};
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_requests_get_the_same_answers() {
    if !is_set("STELE_COMPAT") {
        eprintln!("skipped: STELE_COMPAT is not set (run `make compat`)");
        return;
    }
    let seeds: u64 = setting("STELE_DIFF_SEEDS", 5);
    let requests = setting("STELE_DIFF_REQUESTS", 20_000_u64).div_ceil(seeds);
    let chosen = if is_set("STELE_DIFF_SEED") {
        vec![setting("STELE_DIFF_SEED", 0)]
    } else {
        let first = seed("STELE_DIFF_FIRST");
        (first..first + seeds).collect()
    };
    let subject = match setting("STELE_DIFF_SUBJECT", "stele".to_owned()).as_str() {
        "etcd" => Program::Etcd,
        "stele" => Program::Stele,
        other => panic!("STELE_DIFF_SUBJECT={other} is neither stele nor etcd"),
    };
    let members = setting("STELE_DIFF_MEMBERS", 1);
    let plan = |seed| Plan {
        seed,
        requests,
        subject,
        members,
        sabotage_after: None,
    };
    let failed = run_all(chosen.into_iter().map(plan).collect()).await;
    assert!(
        failed.is_empty(),
        "differences in the seeds {failed:?}, see above"
    );
}

/// Runs some plans at a time and prints what became of each.
async fn run_all(mut plans: Vec<Plan>) -> Vec<u64> {
    let jobs: usize = setting("STELE_DIFF_JOBS", 2);
    let started = Instant::now();
    plans.reverse();
    let (mut failed, mut total) = (Vec::new(), 0);
    let mut running = JoinSet::new();
    loop {
        while running.len() < jobs
            && let Some(plan) = plans.pop()
        {
            println!("seed {}: {} requests", plan.seed, plan.requests);
            running.spawn(async move { (plan.seed, run(plan).await) });
        }
        let Some(result) = running.join_next().await else {
            break;
        };
        match result.expect("a run does not panic") {
            (seed, Ok(tally)) => {
                total += tally.requests;
                println!("seed {seed}: no difference in {tally}");
            }
            (seed, Err(difference)) => {
                println!("{difference}");
                failed.push(seed);
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{total} requests in {seconds:.1} s, {} seeds differ",
        failed.len()
    );
    failed
}

/// The tester itself: a write that only one of two etcds gets is noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planted_difference_is_found() {
    if !is_set("STELE_COMPAT") {
        eprintln!("skipped: STELE_COMPAT is not set (run `make compat`)");
        return;
    }
    let plan = Plan {
        seed: 1,
        requests: 400,
        subject: Program::Etcd,
        members: 1,
        sabotage_after: Some(200),
    };
    let difference = run(plan).await.err().expect("the planted write is noticed");
    assert!(difference.step > 200, "{difference}");
}
