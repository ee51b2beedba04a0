//! One cluster from its start to its checks: load and watchers run, faults
//! follow one another, then everything is compared with everything.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use stele::proto::client::etcdserverpb::HashKvRequest;
use stele::proto::client::mvccpb::Event;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::check::timeline::Timeline;
use crate::check::watches::Allowances;
use crate::check::{leases, linear, watches};
use crate::cluster::{Cluster, Layout, PATIENCE};
use crate::fault::{self, Fault};
use crate::load::{Load, Orders, Shared};
use crate::record::{Clock, Operation, Outcome, Request, Watch};
use crate::support::process::Program;
use crate::support::read_back;
use crate::support::settings::random;
use crate::watcher::{Surroundings, Watcher};

/// What a trial is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    pub layout: Layout,
    pub orders: Orders,
    /// Beside the collector.
    pub watchers: usize,
    /// How often each watcher asks for progress.
    pub progress_requests: Duration,
    /// For how long a lease that has ended may be renewed.
    pub lease_tolerance: Duration,
}

/// The longest time without any write being served after the leader was lost.
#[derive(Clone, Copy, Debug)]
pub struct Recovery {
    pub fault: Fault,
    pub election_timeouts: f64,
}

pub struct Trial {
    pub cluster: Cluster,
    pub random: StdRng,
    pub clock: Clock,
    plan: Plan,
    load: Load,
    surroundings: Surroundings,
    watchers: JoinSet<(usize, Vec<Watch>)>,
    last: watch::Sender<Option<i64>>,
    /// From the loss of a leader until everything was repaired.
    losses: Vec<(Fault, RangeInclusive<Duration>)>,
}

impl Trial {
    pub async fn start(plan: Plan) -> Trial {
        let cluster = Cluster::start(plan.layout.clone()).await;
        let urls: Arc<[String]> = cluster
            .present()
            .into_iter()
            .map(|number| cluster.url(number))
            .collect();
        let clock = Clock::start();
        let last = watch::Sender::new(None);
        let surroundings = Surroundings {
            urls: urls.clone(),
            clock,
            collected: Arc::new(AtomicI64::new(1)),
            last: last.subscribe(),
        };
        let mut random = random(plan.orders.seed);
        let mut watchers = JoinSet::new();
        let mut seed = || crate::support::settings::random(random.random());
        let collector = Watcher::collector(surroundings.clone(), seed());
        watchers.spawn(async move { (0, collector.run().await) });
        for number in 1..=plan.watchers {
            let watcher =
                Watcher::drawn(number, surroundings.clone(), plan.progress_requests, seed());
            watchers.spawn(async move { (number, watcher.run().await) });
        }
        let shared = Shared {
            urls,
            clock,
            collected: surroundings.collected.clone(),
            is_over: Arc::new(AtomicBool::new(false)),
        };
        Trial {
            cluster,
            clock,
            load: Load::start(shared, plan.orders),
            surroundings,
            watchers,
            last,
            losses: Vec::new(),
            random,
            plan,
        }
    }

    /// Lets the clients work undisturbed for a while, then does `fault`.
    pub async fn suffer(&mut self, fault: Fault) {
        let pause = Duration::from_millis(self.random.random_range(300..1_000));
        tokio::time::sleep(pause).await;
        let victim = fault::victim(fault, &self.cluster, &mut self.random).await;
        println!("  {fault:?} of member {victim}");
        let begun = self.clock.now();
        fault::inject(fault, victim, &mut self.cluster, &mut self.random).await;
        if fault.is_loss_of_leader() {
            self.losses.push((fault, begun..=self.clock.now()));
        }
    }

    /// One more watcher, which stays with a member and begins with a revision
    /// that is so far away.
    pub fn watch_ahead(&mut self, member: usize, ahead: i64) {
        let number = self.watchers.len();
        let seed = random(self.random.random());
        let requests = self.plan.progress_requests;
        let mut watcher = Watcher::drawn(number, self.surroundings.clone(), requests, seed);
        let newest = self.surroundings.collected.load(Ordering::Relaxed);
        (watcher.home, watcher.next) = (Some(member), newest + ahead);
        self.watchers
            .spawn(async move { (number, watcher.run().await) });
    }

    /// Ends the load, lets the watchers catch up, and checks everything.
    pub async fn finish(self) -> Vec<Recovery> {
        let seed = self.plan.orders.seed;
        match self.end().await {
            Ok(recoveries) => recoveries,
            Err(reason) => panic!("STELE_ROBUSTNESS_SEED={seed}: {reason}"),
        }
    }

    /// The same; what is wrong comes back.
    pub async fn end(self) -> Result<Vec<Recovery>, String> {
        let Trial {
            mut cluster,
            plan,
            load,
            watchers,
            last,
            losses,
            ..
        } = self;
        let operations = load.finish().await;
        cluster.assert_running();
        let checked = check(&cluster, &plan, &operations, watchers, &last).await;
        let summary =
            checked.map_err(|reason| format!("{reason}\n{plan:?}\n{}", cluster.logs()))?;
        println!("  {summary}");
        let timeout = cluster.election_timeout().as_secs_f64();
        let recovery = |(fault, time)| Recovery {
            fault,
            election_timeouts: longest_gap(&operations, time).as_secs_f64() / timeout,
        };
        Ok(losses.into_iter().map(recovery).collect())
    }
}

/// The longest part of a time in which no write was answered.
fn longest_gap(operations: &[Operation], time: RangeInclusive<Duration>) -> Duration {
    let mut served: Vec<Duration> = operations
        .iter()
        .filter(|operation| matches!(operation.outcome, Outcome::Wrote { .. }))
        .map(|operation| operation.returned)
        .filter(|returned| time.contains(returned))
        .chain([*time.start(), *time.end()])
        .collect();
    served.sort_unstable();
    let gaps = served.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max().unwrap_or_default()
}

async fn check(
    cluster: &Cluster,
    plan: &Plan,
    operations: &[Operation],
    watchers: JoinSet<(usize, Vec<Watch>)>,
    last: &watch::Sender<Option<i64>>,
) -> Result<String, String> {
    let present = cluster.present();
    let (revision, kvs) = read_back::everything(&cluster.clients(present[0]), 0).await?;
    last.send_replace(Some(revision));
    let watches = gather(watchers).await?;
    let (collected, _): (Vec<_>, Vec<_>) = watches
        .iter()
        .cloned()
        .partition(|watch| watch.watcher == 0);
    let timeline = Timeline::collect(&collected)?;
    if !timeline.state_at(revision).values().eq(&kvs) {
        return Err(format!(
            "the keys at the last revision, {revision}, do not follow from the history"
        ));
    }
    let compacted = highest_compaction(operations);
    for number in &present {
        agree(cluster, *number, &timeline, revision, compacted)
            .await
            .map_err(|reason| format!("member {number}: {reason}"))?;
    }
    compare_members(cluster, &present, revision).await?;
    let sightings = watches::sightings(&watches);
    let found = linear::check(&timeline, operations, &sightings)?;
    let leases = leases::check(operations, &found, &sightings, plan.lease_tolerance)?;
    let allowances = Allowances {
        compacted,
        bare_responses: match plan.layout.program {
            Program::Etcd => 3,
            Program::Stele | Program::Itself => 0,
        },
    };
    let compared = watches::check(&timeline, &watches, allowances)?;
    let unknown = operations
        .iter()
        .filter(|operation| matches!(operation.outcome, Outcome::Unknown(_)));
    Ok(format!(
        "{} requests ({} of unknown outcome, {} of these have happened), {} revisions, \
         {leases} leases, {compared:?}",
        operations.len(),
        unknown.count(),
        found.settled,
        timeline.last()
    ))
}

/// The highest revision that a compaction was asked for.
fn highest_compaction(operations: &[Operation]) -> i64 {
    let revisions = operations
        .iter()
        .filter_map(|operation| match operation.request {
            Request::Compact { revision } => Some(revision),
            _ => None,
        });
    revisions.max().unwrap_or(0)
}

/// What all watchers got, once each has got everything.
async fn gather(mut watchers: JoinSet<(usize, Vec<Watch>)>) -> Result<Vec<Watch>, String> {
    let mut all = Vec::new();
    let mut done = BTreeSet::new();
    let count = watchers.len();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Ok(Some(result)) = tokio::time::timeout_at(deadline, watchers.join_next()).await {
        let (number, watches) = result.expect("a watcher does not panic");
        done.insert(number);
        all.extend(watches);
    }
    let missing: Vec<usize> = (0..count).filter(|number| !done.contains(number)).collect();
    if missing.is_empty() {
        Ok(all)
    } else {
        Err(format!(
            "the watchers {missing:?} are never told everything up to the last revision"
        ))
    }
}

/// A member's own view of the present and of the history it still has.
async fn agree(
    cluster: &Cluster,
    number: usize,
    timeline: &Timeline,
    revision: i64,
    compacted: i64,
) -> Result<(), String> {
    let clients = cluster.clients(number);
    let (_, kvs) = read_back::everything(&clients, revision).await?;
    if !timeline.state_at(revision).values().eq(&kvs) {
        return Err(format!("other keys at revision {revision}"));
    }
    let after = compacted.max(1);
    let events = read_back::events(&clients, after, revision).await?;
    let expected = timeline
        .revisions()
        .filter(|(at, _)| (after + 1..=revision).contains(at))
        .flat_map(|(_, events)| events);
    // The last response may go beyond what was asked for.
    let shown = events
        .iter()
        .filter(|event| crate::check::timeline::revision_of(event) <= revision);
    // Previous values are compared with the watches.
    let change = |event: &Event| (event.r#type, event.kv.clone());
    if !shown.map(change).eq(expected.map(change)) {
        return Err(format!("another history after revision {after}"));
    }
    Ok(())
}

/// The same hash, once the same is compacted, and the same members.
async fn compare_members(
    cluster: &Cluster,
    present: &[usize],
    revision: i64,
) -> Result<(), String> {
    let started = Instant::now();
    loop {
        let mut hashes = Vec::new();
        for number in present {
            let request = HashKvRequest { revision };
            let mut clients = cluster.clients(*number);
            let reply = clients.maintenance.hash_kv(request).await;
            let reply = reply.map_err(|status| format!("hash: {status:?}"))?;
            let reply = reply.into_inner();
            hashes.push((reply.compact_revision, reply.hash_revision, reply.hash));
        }
        let compacted: BTreeSet<i64> = hashes.iter().map(|(compacted, ..)| *compacted).collect();
        if compacted.len() == 1 {
            if hashes.iter().any(|hash| *hash != hashes[0]) {
                return Err(format!(
                    "different (compact revision, revision, HashKV): {hashes:?}"
                ));
            }
            break;
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("compaction never ends: {hashes:?}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut lists = Vec::new();
    for number in present {
        lists.push(cluster.list(*number).await);
    }
    if lists.iter().any(|list| *list != lists[0]) || lists[0].len() != present.len() {
        return Err(format!("different member lists: {lists:?}"));
    }
    Ok(())
}
