//! One seed: two fresh servers, a stream of requests, every answer compared.
//!
//! Writes go to both servers at the same time and one after the other; reads
//! between two writes go together in one batch, which is what makes a million
//! requests affordable.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use stele::proto::client::etcdserverpb::PutRequest;
use tokio::time::sleep;
use tonic::Code;

use crate::call::{Caller, Failure};
use crate::compare::{Verdict, are_candidates, candidates, compare};
use crate::generate::{Generator, Step};
use crate::outcome::{Outcome, Reply};
use crate::report::Difference;
use crate::request::Request;
use crate::side::Side;
use crate::support::process::Program;
use crate::support::settings::random;
use crate::watches::Watches;

/// Reads in flight at a time.
const BATCH: usize = 32;

/// How many requests before a difference its report shows.
const HISTORY: usize = 40;

/// What etcd 3.7.3 logs as it ends when it reads a key that it has lost: one
/// that a transaction deletes (by a range to the end, past the check for
/// duplicates) and puts again, after a compaction to that very revision. Its
/// compaction keeps the deletion in place of the put.
const LOST_KEY_IN_ETCD: &str = "range failed to find revision pair";

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub requests: u64,
    pub subject: Program,
    /// Of how many members the subject is made.
    pub members: usize,
    /// Writes once to the subject alone, after so many requests, to see
    /// whether the tester notices.
    pub sabotage_after: Option<u64>,
}

/// What a seed has done, as a check that the stream is not trivial.
#[derive(Default)]
pub struct Tally {
    pub requests: u64,
    climate: String,
    revision: i64,
    watchers: u64,
    events: u64,
    restarts: u64,
    /// etcd has lost a key, and so ended, before the stream did.
    is_cut_short: bool,
    /// Per kind of request: how many, and how many succeeded.
    kinds: BTreeMap<&'static str, (u64, u64)>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests ({}) to revision {}, {} watchers, {} events, {} restarts;",
            self.requests, self.climate, self.revision, self.watchers, self.events, self.restarts
        )?;
        for (kind, (sent, succeeded)) in &self.kinds {
            write!(f, " {kind} {succeeded}/{sent}")?;
        }
        if self.is_cut_short {
            write!(f, "; cut short: etcd has ended with {LOST_KEY_IN_ETCD:?}")?;
        }
        Ok(())
    }
}

pub async fn run(plan: Plan) -> Result<Tally, Box<Difference>> {
    let (reference, subject) = tokio::join!(
        Side::start(Program::Etcd, 1),
        Side::start(plan.subject, plan.members)
    );
    let watches = Watches::open(&reference.watched(), &subject.watched());
    let mut run = Run {
        plan,
        reference,
        subject,
        generator: Generator::new(random(plan.seed)),
        watches,
        tally: Tally::default(),
        history: VecDeque::new(),
    };
    if let Err(difference) = run.all_steps().await {
        if !run.reference_has_lost_a_key().await {
            return Err(difference);
        }
        run.tally.is_cut_short = true;
    }
    run.tally.climate = run.generator.climate();
    run.tally.revision = run.generator.model().revision;
    run.tally.events = run.watches.events_compared;
    run.tally.watchers = run.watches.watchers_created;
    Ok(run.tally)
}

struct Run {
    plan: Plan,
    reference: Side,
    subject: Side,
    generator: Generator,
    watches: Watches,
    tally: Tally,
    history: VecDeque<(u64, Request, Outcome)>,
}

impl Run {
    async fn all_steps(&mut self) -> Result<(), Box<Difference>> {
        let mut reads = Vec::new();
        while self.tally.requests + (reads.len() as u64) < self.plan.requests {
            self.sabotage().await;
            match self.generator.next_step() {
                Step::Request(request) if request.is_read() => reads.push(request),
                step => {
                    self.read(&mut reads).await?;
                    self.step(step).await?;
                }
            }
            if reads.len() >= BATCH {
                self.read(&mut reads).await?;
            }
        }
        self.read(&mut reads).await?;
        self.step(Step::SyncWatches).await
    }

    async fn step(&mut self, step: Step) -> Result<(), Box<Difference>> {
        match step {
            Step::Request(request) => self.write(request).await,
            Step::Watch { stream, create } => {
                let (compacted, revision) = (
                    self.generator.model().compacted,
                    self.generator.model().revision,
                );
                self.subject.settle_watched().await;
                let result = self
                    .watches
                    .create(stream, create, compacted, revision)
                    .await;
                self.watched(result)
            }
            Step::CancelWatch {
                stream,
                choice,
                is_synced_before,
            } => {
                if is_synced_before {
                    self.sync_watches().await?;
                }
                self.subject.settle_watched().await;
                let result = self.watches.cancel(stream, choice, is_synced_before).await;
                self.watched(result)
            }
            Step::SyncWatches => self.sync_watches().await,
            Step::Restart { is_killed } => self.restart(is_killed).await,
        }
    }

    /// Sends one request to both sides and compares the outcomes.
    async fn write(&mut self, request: Request) -> Result<(), Box<Difference>> {
        self.subject.pass_turn();
        if request.is_keep_alive() {
            self.subject.settle().await;
        }
        let (reference, subject) =
            tokio::join!(self.reference.call(&request), self.subject.call(&request));
        self.judge(request, reference, subject).await
    }

    /// Sends all of `reads` to both sides at once and compares the outcomes.
    async fn read(&mut self, reads: &mut Vec<Request>) -> Result<(), Box<Difference>> {
        let start = |caller: &Caller, request: &Request| {
            let (caller, request) = (caller.clone(), request.clone());
            tokio::spawn(async move { Outcome::read(&request, caller.call(&request).await) })
        };
        if reads.is_empty() {
            return Ok(());
        }
        self.subject.pass_turn();
        self.subject.settle().await;
        let running: Vec<_> = reads
            .drain(..)
            .map(|request| {
                let reference = start(self.reference.caller(), &request);
                let subject = start(self.subject.caller(), &request);
                (request, reference, subject)
            })
            .collect();
        for (request, reference, subject) in running {
            let reference = reference.await.expect("a call does not panic");
            let subject = subject.await.expect("a call does not panic");
            self.judge(request, reference, subject).await?;
        }
        Ok(())
    }

    async fn judge(
        &mut self,
        request: Request,
        mut reference: Outcome,
        mut subject: Outcome,
    ) -> Result<(), Box<Difference>> {
        if self.tally.restarts > 0 || self.plan.members > 1 {
            forget_lease_order(&mut reference);
            forget_lease_order(&mut subject);
        }
        let is_same = !is_lost(&reference)
            && match compare(&request, &reference, &subject) {
                Verdict::Same => true,
                Verdict::Different => false,
                Verdict::CutThroughTies(range) => {
                    self.is_right_cut(range, &reference, &subject).await
                }
            };
        if !is_same {
            return Err(self.difference(request.summary(), reference, subject));
        }
        self.generator.observe(&request, &reference);
        self.tally.requests += 1;
        let (sent, succeeded) = self.tally.kinds.entry(request.kind()).or_default();
        *sent += 1;
        *succeeded += u64::from(reference.is_reply());
        self.history
            .push_back((self.tally.requests, request, reference));
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
        Ok(())
    }

    async fn is_right_cut(
        &self,
        range: stele::proto::client::etcdserverpb::RangeRequest,
        reference: &Outcome,
        subject: &Outcome,
    ) -> bool {
        let all = self
            .reference
            .call(&Request::Range(candidates(&range)))
            .await;
        match (all, reference, subject) {
            (
                Outcome::Reply(Reply::Range(all)),
                Outcome::Reply(Reply::Range(reference)),
                Outcome::Reply(Reply::Range(subject)),
            ) => are_candidates(&range, &all.kvs, &reference.kvs, &subject.kvs),
            _ => false,
        }
    }

    /// Compares all events so far, after a write that no watcher is younger
    /// than. Watchers that start a little in the future hold back progress, so
    /// the store is moved on to where they start.
    async fn sync_watches(&mut self) -> Result<(), Box<Difference>> {
        let furthest = self.watches.furthest_start();
        loop {
            let put = PutRequest {
                key: "sync".into(),
                ..PutRequest::default()
            };
            self.write(Request::Put(put)).await?;
            if self.generator.model().revision >= furthest {
                break;
            }
        }
        let revision = self.generator.model().revision;
        let result = self.watches.sync(revision).await;
        self.watched(result)
    }

    async fn restart(&mut self, is_killed: bool) -> Result<(), Box<Difference>> {
        self.sync_watches().await?;
        tokio::join!(
            self.reference.restart(is_killed),
            self.subject.restart(is_killed)
        );
        let (events, watchers) = (self.watches.events_compared, self.watches.watchers_created);
        self.watches = Watches::open(&self.reference.watched(), &self.subject.watched());
        self.watches.events_compared = events;
        self.watches.watchers_created = watchers;
        self.tally.restarts += 1;
        Ok(())
    }

    async fn reference_has_lost_a_key(&mut self) -> bool {
        // The connection ends before the log's last line is written.
        for _ in 0..20 {
            if self.reference.log().contains(LOST_KEY_IN_ETCD) {
                return true;
            }
            sleep(Duration::from_millis(50)).await;
        }
        false
    }

    fn watched(&mut self, result: Result<(), String>) -> Result<(), Box<Difference>> {
        result.map_err(|text| {
            let none = || Outcome::Broken("(see above)".to_owned());
            self.difference(format!("Watch: {text}"), none(), none())
        })
    }

    fn difference(
        &mut self,
        request: String,
        reference: Outcome,
        subject: Outcome,
    ) -> Box<Difference> {
        Box::new(Difference {
            seed: self.plan.seed,
            members: self.plan.members,
            step: self.tally.requests + 1,
            request,
            reference,
            subject,
            history: self.history.drain(..).collect(),
            logs: [self.reference.log(), self.subject.log()],
        })
    }

    async fn sabotage(&mut self) {
        if self
            .plan
            .sabotage_after
            .is_some_and(|after| self.tally.requests >= after)
        {
            self.plan.sabotage_after = None;
            let put = PutRequest {
                key: "a".into(),
                ..PutRequest::default()
            };
            self.subject.call(&Request::Put(put)).await;
        }
    }
}

/// Whether the server has gone away: no request of ours may get this answer.
fn is_lost(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Failure(Failure {
            code: Code::Unavailable,
            ..
        })
    )
}

/// After a restart all leases have their whole time again, and those of one
/// length come in any order (LEA-28, LEA-30). A follower knows no order at all.
fn forget_lease_order(outcome: &mut Outcome) {
    if let Outcome::Reply(Reply::LeaseLeases(reply)) = outcome {
        reply.leases.sort_by_key(|lease| lease.id);
    }
}
