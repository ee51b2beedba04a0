//! kill -9 under load: nothing acknowledged is lost, nothing is half there.
//!
//! A round: clients write, read and watch concurrently ([`load`]); at a random
//! moment the server is killed (or told to stop, or killed once more while it
//! starts); it starts again on the same directory, and what it shows is
//! compared with what the clients know ([`history`]). Then it is stopped in
//! order and started once more: HashKV must be the same. Further rounds on the
//! same directory follow. Half of the directories see compactions too, and in a
//! quarter most of what is written is large, so that the log is cut.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | STELE_CRASH_ROUNDS | rounds of killing | 50 |
//! | STELE_CRASH_FAILPOINT_ROUNDS | rounds for each failpoint | 2 |
//! | STELE_CRASH_SEED | to choose the same requests and moments again (the threads' order is not repeatable) | by the clock |
//! | STELE_CRASH_SUBJECT | `etcd`: run against real etcd, which tests the test | `stele` |

// `pub` marks what a file offers to the others; there is no public interface.
#![allow(unreachable_pub)]

mod history;
mod load;
#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;

use self::history::{History, by_revision};
use self::load::{Load, Log, Orders};
use self::support::client::Clients;
use self::support::process::{Program, Server, Settings};
use self::support::read_back;
use self::support::settings::{random, seed, setting};

/// After so many rounds a new directory is begun, so that a round's check
/// stays short and first starts are tested as well.
const ROUNDS_PER_DIRECTORY: u64 = 8;

/// How long the clients work before the server is stopped.
const LOAD_MS: std::ops::Range<u64> = 120..400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost() {
    let rounds = setting("STELE_CRASH_ROUNDS", 50);
    let mut trial = Trial::begin(subject());
    for round in 0..rounds {
        if round % ROUNDS_PER_DIRECTORY == 0 {
            trial.begin_directory().await;
        }
        let stop = trial.random_stop();
        trial.round(round, stop).await;
    }
    trial.end(rounds);
}

/// More often than this no start passes any of the points.
#[cfg(feature = "failpoints")]
const PASSES_OF_A_START: u32 = 20;

/// The server dies at named points between the log and the reply, and when its
/// disk fails: the last two points are in `raft-engine`, and make a write or a
/// sync of the log an error.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_between_log_and_reply() {
    const POINTS: [&str; 7] = [
        "raft_before_save",
        "raft_after_save",
        "apply_before_commit",
        "apply_after_commit",
        "before_reply",
        "log_file::write::err",
        "log_fd::sync::err",
    ];
    let rounds: u64 = setting("STELE_CRASH_FAILPOINT_ROUNDS", 2);
    let mut trial = Trial::begin(Program::Stele);
    let mut round = 0;
    for point in POINTS {
        trial.begin_directory().await;
        for _ in 0..rounds {
            let is_early = trial.random.random_bool(0.2);
            let passes = if is_early {
                0..5
            } else {
                PASSES_OF_A_START..200
            };
            let passes = trial.random.random_range(passes);
            trial.round(round, Stop::AtPoint { point, passes }).await;
            round += 1;
        }
    }
    trial.end(round);
}

fn subject() -> Program {
    match setting("STELE_CRASH_SUBJECT", "stele".to_owned()).as_str() {
        "stele" => Program::Stele,
        "etcd" => Program::Etcd,
        other => panic!("STELE_CRASH_SUBJECT={other} is neither stele nor etcd"),
    }
}

/// How a server ends.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Kill,
    /// Killed, and killed again so soon after the next start.
    KillTwice {
        start_ms: u64,
    },
    Terminate,
    /// By itself, at the named point after it was passed `passes` times.
    #[cfg_attr(not(feature = "failpoints"), allow(dead_code))]
    AtPoint {
        point: &'static str,
        passes: u32,
    },
}

/// One directory after another, each with its history.
struct Trial {
    program: Program,
    seed: u64,
    random: StdRng,
    server: Server,
    history: History,
    is_compacting: bool,
    is_heavy: bool,
    acknowledged: usize,
    slowest_start: Duration,
}

impl Trial {
    fn begin(program: Program) -> Trial {
        let seed = seed("STELE_CRASH_SEED");
        println!("STELE_CRASH_SEED={seed}");
        Trial {
            program,
            seed,
            random: random(seed),
            server: Server::create(Settings::new(program)),
            history: History::default(),
            is_compacting: false,
            is_heavy: false,
            acknowledged: 0,
            slowest_start: Duration::ZERO,
        }
    }

    async fn begin_directory(&mut self) {
        self.server = Server::start(Settings::new(self.program)).await;
        self.history = History::default();
        self.is_compacting = self.random.random_bool(0.5);
        self.is_heavy = self.random.random_bool(0.25);
    }

    fn random_stop(&mut self) -> Stop {
        match self.random.random_range(0..10) {
            0 => Stop::Terminate,
            1 | 2 => Stop::KillTwice {
                start_ms: self.random.random_range(0..80),
            },
            _ => Stop::Kill,
        }
    }

    async fn round(&mut self, round: u64, stop: Stop) {
        #[cfg(feature = "failpoints")]
        if let Stop::AtPoint { point, passes } = stop {
            self.arm(point, passes).await;
        }
        let log = if self.server.is_running() {
            let orders = Orders {
                seed: self.seed,
                round,
                is_heavy: self.is_heavy,
                compact_to: self.is_compacting.then(|| self.history.revision()),
            };
            let load = Load::start(&self.server, orders);
            self.stop(stop).await;
            load.finish().await
        } else {
            // The point lay in the start.
            Log::default()
        };
        self.acknowledged += log.acknowledged();
        self.server.settings_mut().environment.clear();
        self.restart().await;
        if let Err(reason) = self.check(&log).await {
            let directory = self.server.data_dir();
            panic!(
                "round {round} of STELE_CRASH_SEED={}, {stop:?}, {}: {reason}\n{}",
                self.seed,
                directory.display(),
                self.server.log_tail()
            );
        }
    }

    /// Starts the server again so that it ends by itself at a named point,
    /// which may lie in the start.
    #[cfg(feature = "failpoints")]
    async fn arm(&mut self, point: &str, passes: u32) {
        let points = format!("{point}={passes}*off->return");
        self.server.terminate().await;
        self.server.settings_mut().environment = vec![("FAILPOINTS".to_owned(), points)];
        self.server.spawn();
        if let Err(reason) = self.server.wait_until_ready().await {
            let log = self.server.log_tail();
            assert!(
                passes < PASSES_OF_A_START,
                "{point}, {passes} passes: {reason}\n{log}"
            );
            self.server.kill();
        }
    }

    async fn stop(&mut self, stop: Stop) {
        if let Stop::AtPoint { point, .. } = stop {
            return self.wait_for_point(point).await;
        }
        tokio::time::sleep(Duration::from_millis(self.random.random_range(LOAD_MS))).await;
        match stop {
            Stop::Terminate => {
                let status = self.server.terminate().await;
                // Real etcd ends by the signal unless it is process 1 (LIM-11).
                assert!(
                    status.success() || self.program == Program::Etcd,
                    "SIGTERM ends with {status}\n{}",
                    self.server.log_tail()
                );
            }
            Stop::KillTwice { start_ms } => {
                self.server.kill();
                self.server.spawn();
                tokio::time::sleep(Duration::from_millis(start_ms)).await;
                self.server.kill();
            }
            Stop::Kill | Stop::AtPoint { .. } => self.server.kill(),
        }
    }

    async fn wait_for_point(&mut self, point: &str) {
        let status = self.server.wait_for_exit().await;
        let log = || self.server.log_tail();
        assert!(status.is_some(), "the server outlives {point}\n{}", log());
    }

    async fn restart(&mut self) {
        let started = Instant::now();
        self.server.restart().await;
        self.slowest_start = self.slowest_start.max(started.elapsed());
    }

    /// Compares all that the server shows with what the clients know.
    async fn check(&mut self, log: &Log) -> Result<(), String> {
        let clients = self.server.clients();
        let verified = self.history.revision();
        let (revision, kvs) = read_back::everything(&clients, 0).await?;
        let events = read_back::events(&clients, verified, revision).await?;
        let revisions = by_revision(events, verified)?;
        self.history
            .advance(revisions, &log.operations, &log.observations)?;
        if self.history.revision() != revision {
            let last = self.history.revision();
            return Err(format!(
                "the store is at {revision}, its last event at {last}"
            ));
        }
        if !self.history.state().values().eq(&kvs) {
            return Err(format!(
                "the keys at revision {revision} do not follow from the events"
            ));
        }
        let leases = read_back::leases(&clients).await?;
        self.history.advance_leases(&leases, &log.operations)?;
        self.check_attached(&clients).await?;
        self.check_past(&clients, verified).await?;
        self.check_hash(clients).await
    }

    /// Some leases have exactly the keys that name them.
    async fn check_attached(&mut self, clients: &Clients) -> Result<(), String> {
        const SOME: usize = 5;
        let leases = self.history.leases().iter().copied();
        for lease in leases.choose_multiple(&mut self.random, SOME) {
            let attached = self.history.state().values().filter(|kv| kv.lease == lease);
            let expected: Vec<_> = attached.map(|kv| kv.key.clone()).collect();
            let shown = read_back::keys_of(clients, lease).await?;
            if shown != expected {
                return Err(format!(
                    "lease {lease} has {shown:?} instead of {expected:?}"
                ));
            }
        }
        Ok(())
    }

    /// The past is as it was: all events if none are compacted, and the keys
    /// at some older revisions.
    async fn check_past(&mut self, clients: &Clients, verified: i64) -> Result<(), String> {
        let revision = self.history.revision();
        // No compaction went beyond what had been verified before the round.
        let oldest = if self.is_compacting { verified } else { 1 };
        let events = read_back::events(clients, oldest, revision).await?;
        if by_revision(events, oldest)? != self.history.events_after(oldest) {
            return Err(format!("the events after revision {oldest} have changed"));
        }
        for _ in 0..3 {
            let past = self.random.random_range(oldest..=revision);
            let (_, kvs) = read_back::everything(clients, past).await?;
            if !self.history.state_at(past).values().eq(&kvs) {
                return Err(format!(
                    "the keys at revision {past} do not follow from the events"
                ));
            }
        }
        Ok(())
    }

    async fn check_hash(&mut self, clients: Clients) -> Result<(), String> {
        let before = read_back::hash(&clients).await?;
        drop(clients);
        self.server.terminate().await;
        self.restart().await;
        let after = read_back::hash(&self.server.clients()).await?;
        if before != after {
            return Err(format!(
                "HashKV was {before:?} before a restart and is {after:?} now"
            ));
        }
        Ok(())
    }

    fn end(&self, rounds: u64) {
        println!(
            "{rounds} rounds, {} acknowledged requests, slowest start {:?}",
            self.acknowledged, self.slowest_start
        );
        let acknowledged = u64::try_from(self.acknowledged).expect("a small number");
        assert!(acknowledged >= rounds, "the load did next to nothing");
    }
}
