//! Compacts by itself, by distance or by age.
//!
//! Owns the two schedules of `--auto-compaction-mode` and promises to compact
//! no revision that the setting says to keep. The schedules are plain values
//! fed with revisions and instants; only [`run`] knows the clock. A member that
//! does not lead samples revisions but proposes nothing (CMP-12), so that one
//! cluster compacts once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::consensus::{Consensus, ProposeError};
use crate::machine::CommandError;
use crate::mvcc::Store;
use crate::proto::etcdserverpb::CompactionRequest;

/// CMP-11: how often the distance is looked at.
const REVISION_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// CMP-12: a long period is compacted every hour all the same.
const MAX_PERIODIC_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// CMP-12: samples taken within one compaction interval.
const SAMPLES_PER_INTERVAL: u32 = 10;

/// What to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything.
    Off,
    /// This many revisions (CMP-11).
    Revision(i64),
    /// The revisions of this much time (CMP-12).
    Periodic(Duration),
}

/// Runs until consensus stops; returns at once when there is nothing to do.
pub async fn run(consensus: Consensus, store: Store, mode: Mode) {
    let mut schedule: Box<dyn Schedule> = match mode {
        Mode::Revision(keep) if keep > 0 => Box::new(ByRevision::new(keep)),
        Mode::Periodic(period) if !period.is_zero() => {
            Box::new(ByAge::new(period, store.revision(), Instant::now()))
        }
        Mode::Off | Mode::Revision(_) | Mode::Periodic(_) => return,
    };
    loop {
        tokio::select! {
            () = tokio::time::sleep(schedule.interval()) => {}
            () = consensus.stopped() => return,
        }
        let is_leader = consensus.status().is_leader;
        let due = schedule.sample(store.revision(), is_leader, Instant::now());
        let Some(revision) = due else { continue };
        let request = CompactionRequest {
            revision,
            physical: false,
        };
        match consensus.propose(request).await {
            Ok(_) => {
                tracing::info!(revision, "compacted automatically");
                schedule.compacted(revision, Instant::now());
            }
            // Somebody was faster, which is as good.
            Err(ProposeError::Rejected(CommandError::Compacted)) => {
                schedule.compacted(revision, Instant::now());
            }
            Err(ProposeError::Stopped) => return,
            Err(error) => {
                tracing::warn!(revision, %error, "automatic compaction failed, will retry");
            }
        }
    }
}

/// When to compact, and to which revision.
trait Schedule: Send {
    /// The time between two samples.
    fn interval(&self) -> Duration;
    /// Takes the store's revision as of `now`; answers the revision to compact
    /// to, if that is due.
    fn sample(&mut self, revision: i64, is_leader: bool, now: Instant) -> Option<i64>;
    /// The compaction that was due is done.
    fn compacted(&mut self, revision: i64, now: Instant);
}

/// Keeps a number of revisions.
#[derive(Debug)]
struct ByRevision {
    keep: i64,
    last_compacted: i64,
}

impl ByRevision {
    fn new(keep: i64) -> ByRevision {
        ByRevision {
            keep,
            last_compacted: 0,
        }
    }
}

impl Schedule for ByRevision {
    fn interval(&self) -> Duration {
        REVISION_INTERVAL
    }

    fn sample(&mut self, revision: i64, is_leader: bool, _now: Instant) -> Option<i64> {
        let target = revision.saturating_sub(self.keep);
        let is_due = is_leader && target > 0 && target != self.last_compacted;
        is_due.then_some(target)
    }

    fn compacted(&mut self, revision: i64, _now: Instant) {
        self.last_compacted = revision;
    }
}

/// Keeps the revisions of a period: remembers what the revision was at each
/// sample, and compacts to the oldest one once that is a period old.
#[derive(Debug)]
struct ByAge {
    period: Duration,
    /// The last samples, oldest first; they span the period.
    samples: VecDeque<i64>,
    /// The period until the first compaction, the interval from then on.
    wait: Duration,
    last_success: Instant,
    last_compacted: i64,
}

impl ByAge {
    fn new(period: Duration, revision: i64, now: Instant) -> ByAge {
        ByAge {
            period,
            samples: VecDeque::from([revision]),
            wait: period,
            last_success: now,
            last_compacted: 0,
        }
    }

    /// The time between two compactions.
    fn compact_interval(&self) -> Duration {
        self.period.min(MAX_PERIODIC_INTERVAL)
    }

    /// How many samples span the period, both ends included. At most some
    /// thousands for a period of a month.
    fn max_samples(&self) -> usize {
        let spans = self.period.as_nanos() / self.interval().as_nanos().max(1);
        usize::try_from(spans).map_or(usize::MAX, |spans| spans + 1)
    }
}

impl Schedule for ByAge {
    fn interval(&self) -> Duration {
        self.compact_interval() / SAMPLES_PER_INTERVAL
    }

    fn sample(&mut self, revision: i64, is_leader: bool, now: Instant) -> Option<i64> {
        let oldest = *self.samples.front().expect("never empty");
        let is_old_enough = now.saturating_duration_since(self.last_success) >= self.wait;
        // The look comes before the new sample pushes the oldest one out, so
        // what is kept is the period and one interval (as in etcd's
        // v3compactor/periodic.go); only the first time it is just the period.
        self.samples.push_back(revision);
        if self.samples.len() > self.max_samples() {
            self.samples.pop_front();
        }
        if !is_leader || !is_old_enough || oldest == self.last_compacted {
            return None;
        }
        self.wait = self.compact_interval();
        Some(oldest)
    }

    fn compacted(&mut self, revision: i64, now: Instant) {
        self.last_compacted = revision;
        self.last_success = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Drives a schedule for `total`, the revision being `revision(elapsed)`;
    /// answers when it compacted, in minutes, and to what.
    fn drive(
        schedule: &mut dyn Schedule,
        start: Instant,
        total: Duration,
        is_leader: impl Fn(Duration) -> bool,
        revision: impl Fn(Duration) -> i64,
    ) -> Vec<(u64, i64)> {
        let mut compactions = Vec::new();
        let mut elapsed = Duration::ZERO;
        loop {
            elapsed += schedule.interval();
            if elapsed > total {
                return compactions;
            }
            let now = start + elapsed;
            if let Some(to) = schedule.sample(revision(elapsed), is_leader(elapsed), now) {
                schedule.compacted(to, now);
                compactions.push((elapsed.as_secs() / 60, to));
            }
        }
    }

    /// One revision a minute.
    fn by_minute(elapsed: Duration) -> i64 {
        (elapsed.as_secs() / 60) as i64 + 1
    }

    #[test]
    fn by_revision_keeps_a_distance() {
        let mut schedule = ByRevision::new(10);
        let compactions = drive(
            &mut schedule,
            Instant::now(),
            MINUTE * 20,
            |_| true,
            by_minute,
        );
        assert_eq!(compactions, [(10, 1), (15, 6), (20, 11)]);
    }

    #[test]
    fn by_revision_does_not_repeat_itself() {
        let mut schedule = ByRevision::new(10);
        let compactions = drive(
            &mut schedule,
            Instant::now(),
            MINUTE * 60,
            |_| true,
            |_| 100,
        );
        assert_eq!(compactions, [(5, 90)]);
    }

    #[test]
    fn a_short_period_is_compacted_once_a_period() {
        let start = Instant::now();
        let mut schedule = ByAge::new(MINUTE * 10, 1, start);
        assert_eq!(schedule.interval(), MINUTE);
        let compactions = drive(&mut schedule, start, MINUTE * 40, |_| true, by_minute);
        // To what the revision was ten minutes before, then eleven.
        assert_eq!(compactions, [(10, 1), (20, 10), (30, 20), (40, 30)]);
    }

    #[test]
    fn a_long_period_waits_for_itself_and_then_goes_by_the_hour() {
        let start = Instant::now();
        let mut schedule = ByAge::new(MINUTE * 60 * 5, 1, start);
        assert_eq!(schedule.interval(), MINUTE * 6);
        let hours = MINUTE * 60 * 8;
        let compactions = drive(&mut schedule, start, hours, |_| true, by_minute);
        let expected = [(300, 1), (360, 55), (420, 115), (480, 175)];
        assert_eq!(compactions, expected);
    }

    #[test]
    fn an_idle_store_is_not_compacted_again() {
        let start = Instant::now();
        let mut schedule = ByAge::new(MINUTE * 10, 7, start);
        let compactions = drive(&mut schedule, start, MINUTE * 60, |_| true, |_| 7);
        assert_eq!(compactions, [(10, 7)]);
    }

    #[test]
    fn only_the_leader_compacts_and_its_samples_are_complete() {
        let start = Instant::now();
        let mut schedule = ByAge::new(MINUTE * 10, 1, start);
        let leads_from = MINUTE * 25;
        let compactions = drive(
            &mut schedule,
            start,
            MINUTE * 40,
            |elapsed| elapsed >= leads_from,
            by_minute,
        );
        assert_eq!(compactions, [(25, 15), (35, 25)]);
    }
}
