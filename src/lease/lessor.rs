//! The local half of leases: when each of them ends.
//!
//! Owns the ends of all leases by this member's clock. Only the leader's count:
//! the others keep theirs for the day they lead. It promises that no lease is
//! reported expired before its granted TTL has passed since the grant, the last
//! renewal, the start of the process or the last change of leader (LEA-30).
//! It changes nothing that is replicated: an expired lease stays, neither
//! renewable nor shown, until its revocation has gone through the log and comes
//! back as [`Lessor::revoked`] (LEA-19).
//!
//! A new leader knows nothing of the last one's renewals and gives every lease
//! its full time again. For a lease of hours that is long, so the leader now
//! and then puts on record how much is left: a checkpoint (LEA-32). A lease
//! with a checkpoint that is renewed must have it cleared before the client is
//! told, or the next leader would give it too little; whoever renews sees to
//! that ([`Renewal::Renewed`]).
//!
//! Every call is O(log n) in the number of leases: they stand in one tree
//! ordered by when they next need attention, so that looking for the expired
//! ones never scans the others; long ones stand in a second tree, by their next
//! checkpoint. A million leases take about 100 MB.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::table::LeaseTime;
use crate::metrics;

/// LEA-31: at most so many leases may end within one second after a start or
/// a change of leader. Three quarters of the rate at which they are revoked,
/// so that the backlog shrinks while new leases run out beside it.
const ENDS_PER_SECOND: usize = 750;

/// An expired lease is reported again after this long if it has not been
/// revoked: its proposal may have been lost.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);

/// Time between two checkpoints of a lease; one that ends sooner gets none
/// (as etcd's).
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// What became of a keep-alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The time starts anew.
    Renewed {
        /// As granted.
        ttl_seconds: i64,
        /// A checkpoint is on record or on its way there. To be cleared, with
        /// a number drawn now, before the client is told.
        has_checkpoint: bool,
    },
    /// No such lease.
    NotFound,
    /// The time is up. Await [`Lessor::revocation`] before answering.
    Expired,
}

/// The time of a living lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remaining {
    /// Whole seconds left, rounded down (LEA-26).
    pub ttl_seconds: i64,
    /// As granted.
    pub granted_ttl_seconds: i64,
}

/// The clock of all leases. Shared by rpc, the apply thread and the chore
/// that proposes revocations; the lock inside is held for one tree operation.
#[derive(Debug)]
pub struct Lessor {
    election_timeout: Duration,
    state: Mutex<State>,
}

/// Invariant: `order` holds exactly `(wake, id)` of each lease.
#[derive(Debug, Default)]
struct State {
    leases: HashMap<i64, Lease>,
    order: BTreeSet<(Instant, i64)>,
    /// Keep-alives that wait until an expired lease is gone.
    waiting: HashMap<i64, Vec<oneshot::Sender<()>>>,
    /// Exactly `(checkpoint_at, id)` of each lease that has one.
    checkpoints: BTreeSet<(Instant, i64)>,
    /// The last term for which this member's clock was set to lead.
    term: u64,
    /// Number of the last checkpoint made here.
    sequence: u64,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    ttl_seconds: i64,
    end: Instant,
    /// The end, or when to report the lease as expired again.
    wake: Instant,
    checkpoint_at: Option<Instant>,
    /// As on record; 0: as long as granted.
    remaining_seconds: i64,
    /// Number of the checkpoint that may be on its way into the log, or 0.
    proposed: u64,
}

impl Lease {
    fn new(ttl_seconds: i64, remaining_seconds: i64, now: Instant) -> Lease {
        let mut lease = Lease {
            ttl_seconds,
            end: now,
            wake: now,
            checkpoint_at: None,
            remaining_seconds,
            proposed: 0,
        };
        lease.start(lease.start_seconds(), now);
        lease
    }

    /// What a leader that knows no better gives it.
    fn start_seconds(&self) -> i64 {
        match self.remaining_seconds {
            0 => self.ttl_seconds,
            remaining => remaining,
        }
    }

    fn start(&mut self, seconds: i64, now: Instant) {
        self.end = end_after(now, seconds);
        self.wake = self.end;
        self.plan_checkpoint(now);
    }

    fn plan_checkpoint(&mut self, now: Instant) {
        let next = now + CHECKPOINT_INTERVAL;
        self.checkpoint_at = Some(next).filter(|next| *next < self.end);
    }
}

/// How much is left of some leases, to be put on record.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Checkpoints {
    /// (lease, seconds left)
    pub remaining: Vec<(i64, i64)>,
    /// Rises from one to the next.
    pub sequence: u64,
}

impl Lessor {
    /// Starts the clock of `leases`.
    pub fn new(
        leases: impl IntoIterator<Item = LeaseTime>,
        election_timeout: Duration,
        now: Instant,
    ) -> Lessor {
        let lessor = Lessor {
            election_timeout,
            state: Mutex::new(State::default()),
        };
        lessor.reset(leases, now);
        lessor
    }

    /// Forgets all leases and starts the clock of these: the replicated ones
    /// were replaced by another member's. Keep-alives that wait are woken.
    pub fn reset(&self, leases: impl IntoIterator<Item = LeaseTime>, now: Instant) {
        let new = |lease: LeaseTime| Lease::new(lease.ttl_seconds, lease.remaining_seconds, now);
        let leases = leases.into_iter().map(|lease| (lease.id, new(lease)));
        let mut state = self.state.lock();
        state.leases = leases.collect();
        state.waiting.clear();
        state.spread();
    }

    /// LEA-3: shorter TTLs are raised to this one before a grant is proposed,
    /// so that a change of leader does not outlast a lease.
    pub fn min_ttl_seconds(&self) -> i64 {
        let seconds = (self.election_timeout * 3 / 2).as_secs_f64().ceil();
        (seconds as i64).max(1)
    }

    /// A lease was granted; its time starts now.
    pub fn granted(&self, id: i64, ttl_seconds: i64) {
        self.granted_at(id, ttl_seconds, Instant::now());
    }

    /// As [`Lessor::granted`], for who has a clock of its own.
    pub fn granted_at(&self, id: i64, ttl_seconds: i64, now: Instant) {
        let lease = Lease::new(ttl_seconds, 0, now);
        self.state.lock().set(id, lease);
        metrics::DEBUGGING_LEASE_GRANTED_TOTAL.inc();
        metrics::DEBUGGING_LEASE_TTL_TOTAL.observe(ttl_seconds as f64);
    }

    /// A lease is gone. Wakes the keep-alives that waited for it.
    pub fn revoked(&self, id: i64) {
        self.state.lock().remove(id);
        metrics::DEBUGGING_LEASE_REVOKED_TOTAL.inc();
    }

    /// A checkpoint is on record, made here or by another leader.
    pub fn checkpointed(&self, id: i64, remaining_seconds: i64, sequence: u64) {
        let mut state = self.state.lock();
        if let Some(lease) = state.leases.get_mut(&id) {
            lease.remaining_seconds = remaining_seconds;
            if lease.proposed <= sequence {
                lease.proposed = 0;
            }
        }
    }

    /// A keep-alive: starts the lease's time anew, unless it is up. Means
    /// something only while this member leads.
    pub fn renew(&self, id: i64) -> Renewal {
        self.renew_at(id, Instant::now())
    }

    /// As [`Lessor::renew`], for who has a clock of its own.
    pub fn renew_at(&self, id: i64, now: Instant) -> Renewal {
        let mut state = self.state.lock();
        let Some(&(mut lease)) = state.leases.get(&id) else {
            return Renewal::NotFound;
        };
        if lease.end <= now {
            return Renewal::Expired;
        }
        lease.start(lease.ttl_seconds, now);
        state.set(id, lease);
        metrics::DEBUGGING_LEASE_RENEWED_TOTAL.inc();
        Renewal::Renewed {
            ttl_seconds: lease.ttl_seconds,
            has_checkpoint: lease.remaining_seconds != 0 || lease.proposed != 0,
        }
    }

    /// Number of a checkpoint that clears those made before.
    pub fn next_sequence(&self) -> u64 {
        self.state.lock().next_sequence()
    }

    /// Up to `max` long leases whose last renewal or checkpoint is a while ago.
    pub fn due_checkpoints(&self, now: Instant, max: usize) -> Checkpoints {
        let mut state = self.state.lock();
        let due = state.checkpoints.iter().take_while(|(at, _)| *at <= now);
        let ids: Vec<i64> = due.take(max).map(|&(_, id)| id).collect();
        if ids.is_empty() {
            return Checkpoints::default();
        }
        let sequence = state.next_sequence();
        let mut remaining = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(&(mut lease)) = state.leases.get(&id) else {
                continue;
            };
            // Rounded up, so that nobody gets less than was promised.
            let seconds = lease.end.saturating_duration_since(now).as_secs() + 1;
            remaining.push((id, i64::try_from(seconds).unwrap_or(i64::MAX)));
            lease.proposed = sequence;
            lease.plan_checkpoint(now);
            state.set(id, lease);
        }
        Checkpoints {
            remaining,
            sequence,
        }
    }

    /// Returns once the expired lease is gone, or the leader has changed, when
    /// it may live again (LEA-19).
    pub async fn revocation(&self, id: i64) {
        let gone = {
            let mut state = self.state.lock();
            match state.leases.get(&id) {
                Some(lease) if lease.end <= Instant::now() => {}
                _ => return,
            }
            let (sender, gone) = oneshot::channel();
            let waiting = state.waiting.entry(id).or_default();
            waiting.retain(|sender| !sender.is_closed());
            waiting.push(sender);
            gone
        };
        // The sender is dropped, never used.
        let _ = gone.await;
    }

    /// The time of a lease; `None` when it is unknown or its time is up
    /// (LEA-25).
    pub fn remaining(&self, id: i64) -> Option<Remaining> {
        self.remaining_at(id, Instant::now())
    }

    /// As [`Lessor::remaining`], for who has a clock of its own.
    pub fn remaining_at(&self, id: i64, now: Instant) -> Option<Remaining> {
        let lease = *self.state.lock().leases.get(&id)?;
        if lease.end <= now {
            return None;
        }
        let left = lease.end - now;
        Some(Remaining {
            ttl_seconds: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            granted_ttl_seconds: lease.ttl_seconds,
        })
    }

    /// All leases, those that end soonest first (LEA-28).
    pub fn list(&self) -> Vec<i64> {
        let state = self.state.lock();
        state.order.iter().map(|&(_, id)| id).collect()
    }

    /// Up to `max` leases whose time is up, longest ago first. Each is
    /// reported once in [`RETRY_INTERVAL`] until it is revoked.
    pub fn expired(&self, now: Instant, max: usize) -> Vec<i64> {
        let mut state = self.state.lock();
        let due = state.order.iter().take_while(|(wake, _)| *wake <= now);
        let ids: Vec<i64> = due.take(max).map(|&(_, id)| id).collect();
        for &id in &ids {
            state.wake_at(id, now + RETRY_INTERVAL);
        }
        ids
    }

    /// This member leads in `term`. At the first call in a term: what the last
    /// leader knew of renewals is lost, so every lease gets its full time
    /// again, or what the last checkpoint left it, and as much more as the
    /// election may have taken (LEA-30).
    pub fn lead(&self, term: u64, now: Instant) {
        let mut state = self.state.lock();
        if term <= state.term {
            return;
        }
        state.term = term;
        let start = now + self.election_timeout;
        for lease in state.leases.values_mut() {
            lease.proposed = 0;
            lease.start(lease.start_seconds(), start);
        }
        state.waiting.clear();
        state.spread();
    }

    /// This member does not lead. Keep-alives that wait for a revocation wait
    /// no longer: another leader may have given the lease more time.
    pub fn follow(&self) {
        self.state.lock().waiting.clear();
    }
}

impl State {
    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn set(&mut self, id: i64, lease: Lease) {
        if let Some(old) = self.leases.insert(id, lease) {
            self.take_out(id, &old);
        }
        self.order.insert((lease.wake, id));
        if let Some(at) = lease.checkpoint_at {
            self.checkpoints.insert((at, id));
        }
    }

    fn remove(&mut self, id: i64) {
        if let Some(lease) = self.leases.remove(&id) {
            self.take_out(id, &lease);
        }
        self.waiting.remove(&id);
    }

    fn take_out(&mut self, id: i64, lease: &Lease) {
        self.order.remove(&(lease.wake, id));
        if let Some(at) = lease.checkpoint_at {
            self.checkpoints.remove(&(at, id));
        }
    }

    fn wake_at(&mut self, id: i64, wake: Instant) {
        if let Some(lease) = self.leases.get_mut(&id) {
            self.order.remove(&(lease.wake, id));
            lease.wake = wake;
            self.order.insert((wake, id));
        }
    }

    /// Puts off ends until no second holds more than [`ENDS_PER_SECOND`] of
    /// them, and orders all leases anew. No end moves forward.
    fn spread(&mut self) {
        let ends = self.leases.iter().map(|(&id, lease)| (lease.end, id));
        let mut ends: Vec<(Instant, i64)> = ends.collect();
        ends.sort_unstable();
        for i in ENDS_PER_SECOND..ends.len() {
            let earliest = ends[i - ENDS_PER_SECOND].0 + Duration::from_secs(1);
            ends[i].0 = ends[i].0.max(earliest);
        }
        for &(end, id) in &ends {
            let lease = self.leases.get_mut(&id).expect("the ids are the map's own");
            lease.end = end;
            lease.wake = end;
        }
        self.order = ends.into_iter().collect();
        let leases = self.leases.iter();
        let checkpoints = leases.filter_map(|(&id, lease)| Some((lease.checkpoint_at?, id)));
        self.checkpoints = checkpoints.collect();
    }
}

/// A TTL is at most 9e9 s, which every clock can add; a negative one, which
/// only a damaged table can hold, counts as over.
fn end_after(start: Instant, ttl_seconds: i64) -> Instant {
    start + Duration::from_secs(u64::try_from(ttl_seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn lessor(leases: impl IntoIterator<Item = (i64, i64)>, now: Instant) -> Lessor {
        let leases = leases.into_iter().map(|(id, ttl_seconds)| LeaseTime {
            id,
            ttl_seconds,
            remaining_seconds: 0,
        });
        Lessor::new(leases, ELECTION_TIMEOUT, now)
    }

    fn renewed(ttl_seconds: i64) -> Renewal {
        Renewal::Renewed {
            ttl_seconds,
            has_checkpoint: false,
        }
    }

    #[test]
    fn min_ttl_is_one_and_a_half_elections_in_whole_seconds() {
        let now = Instant::now();
        assert_eq!(lessor([], now).min_ttl_seconds(), 2);
        let quick = Lessor::new([], Duration::from_millis(100), now);
        assert_eq!(quick.min_ttl_seconds(), 1);
        let slow = Lessor::new([], Duration::from_secs(10), now);
        assert_eq!(slow.min_ttl_seconds(), 15);
    }

    #[test]
    fn a_lease_lives_from_renewal_to_renewal() {
        let start = Instant::now();
        let lessor = lessor([], start);
        lessor.granted_at(1, 10, start);
        let at = |s: f64| start + seconds(s);
        assert_eq!(
            lessor.remaining_at(1, at(0.001)),
            Some(Remaining {
                ttl_seconds: 9,
                granted_ttl_seconds: 10
            })
        );
        assert_eq!(lessor.renew_at(1, at(9.9)), renewed(10));
        assert!(lessor.expired(at(19.8), 10).is_empty());
        assert_eq!(lessor.renew_at(2, at(1.0)), Renewal::NotFound);
        assert_eq!(lessor.remaining_at(2, at(1.0)), None);
    }

    #[test]
    fn an_expired_lease_cannot_be_revived_and_is_reported_until_revoked() {
        let start = Instant::now();
        let lessor = lessor([(1, 10), (2, 11)], start);
        let at = |s: f64| start + seconds(s);
        assert_eq!(lessor.renew_at(1, at(10.0)), Renewal::Expired);
        assert_eq!(lessor.remaining_at(1, at(10.0)), None);
        assert_eq!(lessor.expired(at(11.5), 1), [1]);
        assert_eq!(lessor.expired(at(11.5), 10), [2]);
        assert!(lessor.expired(at(11.6), 10).is_empty(), "being revoked");
        assert_eq!(lessor.renew_at(1, at(12.0)), Renewal::Expired);
        assert_eq!(
            lessor.expired(at(14.5), 10),
            [1, 2],
            "the proposal was lost"
        );
        lessor.revoked(1);
        assert_eq!(lessor.renew_at(1, at(14.6)), Renewal::NotFound);
        assert_eq!(lessor.list(), [2]);
    }

    #[test]
    fn lists_the_soonest_end_first() {
        let start = Instant::now();
        let lessor = lessor([(1, 30), (2, 20), (3, 10)], start);
        assert_eq!(lessor.list(), [3, 2, 1]);
        assert_eq!(lessor.renew_at(3, start + seconds(9.0)), renewed(10));
        assert_eq!(lessor.renew_at(2, start + seconds(9.0)), renewed(20));
        assert_eq!(lessor.list(), [3, 2, 1]);
        assert_eq!(lessor.renew_at(3, start + seconds(18.0)), renewed(10));
        lessor.granted_at(4, 1, start);
        assert_eq!(lessor.list(), [4, 3, 2, 1]);
    }

    #[test]
    fn a_new_leader_gives_the_full_time_again() {
        let start = Instant::now();
        let lessor = lessor([(1, 10)], start);
        assert_eq!(lessor.expired(start + seconds(11.0), 1), [1]);
        lessor.lead(1, start + seconds(12.0));
        // Once a term.
        lessor.lead(1, start + seconds(12.4));
        let remaining = lessor.remaining_at(1, start + seconds(12.5)).unwrap();
        assert_eq!(remaining.ttl_seconds, 10);
        assert!(lessor.expired(start + seconds(22.9), 1).is_empty());
        assert_eq!(lessor.expired(start + seconds(23.0), 1), [1]);
    }

    #[test]
    fn a_reset_starts_the_clock_of_other_leases() {
        let start = Instant::now();
        let lessor = lessor([(1, 10), (2, 10)], start);
        let time = |id, ttl_seconds| LeaseTime {
            id,
            ttl_seconds,
            remaining_seconds: 0,
        };
        lessor.reset([time(2, 20), time(3, 30)], start + seconds(5.0));
        assert_eq!(lessor.list(), [2, 3]);
        assert_eq!(lessor.renew(1), Renewal::NotFound);
        assert!(lessor.expired(start + seconds(24.9), 9).is_empty());
        assert_eq!(lessor.expired(start + seconds(25.0), 9), [2]);
    }

    /// LEA-32, of a state that another member has sent.
    #[test]
    fn a_reset_goes_by_the_checkpoints_on_record() {
        let start = Instant::now();
        let lessor = lessor([(1, 3600)], start);
        let time = |id, remaining_seconds| LeaseTime {
            id,
            ttl_seconds: 3600,
            remaining_seconds,
        };
        lessor.reset([time(1, 900), time(2, 0)], start);
        let left = |id, at| lessor.remaining_at(id, at).map(|left| left.ttl_seconds);
        assert_eq!(left(1, start), Some(900));
        assert_eq!(left(2, start), Some(3600));
        // The next leader as well, and a renewal has to clear it.
        lessor.lead(2, start);
        assert_eq!(left(1, start + ELECTION_TIMEOUT), Some(900));
        let renewed = Renewal::Renewed {
            ttl_seconds: 3600,
            has_checkpoint: true,
        };
        assert_eq!(lessor.renew_at(1, start), renewed);
    }

    #[test]
    fn ends_are_spread_after_a_start() {
        let start = Instant::now();
        let total = 10_000;
        // Leases that end alone are not put off.
        let alone = [(-1, 5), (-2, 500)];
        let lessor = lessor((0..total).map(|id| (id, 60)).chain(alone), start);
        assert_eq!(lessor.expired(start + seconds(59.9), 10), [-1]);
        let mut reported = 0;
        for second in 0..=14 {
            let now = start + seconds(60.0 + f64::from(second));
            let expired = lessor.expired(now, usize::MAX);
            let fresh = expired.iter().filter(|&&id| id >= 0).count();
            assert!(fresh <= ENDS_PER_SECOND, "{fresh} in second {second}");
            expired.into_iter().for_each(|id| lessor.revoked(id));
            reported += fresh;
        }
        assert_eq!(reported, total as usize, "all within 10000/750 seconds");
        assert_eq!(lessor.list(), [-2]);
        assert!(lessor.expired(start + seconds(499.9), 1).is_empty());
    }

    #[test]
    fn a_million_leases_cost_a_tick_nothing() {
        let start = Instant::now();
        let total = 1_000_000;
        let lessor = lessor((0..total).map(|id| (id, 3600 + id % 3600)), start);
        let began = Instant::now();
        for tick in 0..10_000_u64 {
            let now = start + Duration::from_millis(tick * 100);
            assert!(lessor.expired(now, 500).is_empty());
            assert!(matches!(
                lessor.renew_at((tick % 1000) as i64, now),
                Renewal::Renewed { .. }
            ));
        }
        // A scan of a million for each of 10k ticks would take a minute.
        assert!(began.elapsed() < Duration::from_secs(5));
        assert_eq!(lessor.list().len(), total as usize);
    }

    #[tokio::test]
    async fn a_late_keep_alive_waits_for_the_revocation() {
        let past = Instant::now() - Duration::from_secs(20);
        let lessor = std::sync::Arc::new(lessor([(1, 10), (2, 100)], past));
        assert_eq!(lessor.renew(1), Renewal::Expired);
        // Neither a living lease nor an unknown one is waited for.
        lessor.revocation(2).await;
        lessor.revocation(3).await;
        let waiter = tokio::spawn({
            let lessor = lessor.clone();
            async move { lessor.revocation(1).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiter.is_finished());
        lessor.revoked(1);
        tokio::time::timeout(Duration::from_secs(5), waiter)
            .await
            .expect("woken by the revocation")
            .unwrap();
    }

    #[tokio::test]
    async fn a_late_keep_alive_does_not_wait_for_a_leader_that_is_gone() {
        let past = Instant::now() - Duration::from_secs(20);
        let lessor = std::sync::Arc::new(lessor([(1, 10)], past));
        let waiter = tokio::spawn({
            let lessor = lessor.clone();
            async move { lessor.revocation(1).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        lessor.follow();
        tokio::time::timeout(Duration::from_secs(5), waiter)
            .await
            .expect("woken by the loss of leadership")
            .unwrap();
    }

    /// LEA-32.
    #[test]
    fn long_leases_get_checkpoints_and_the_next_leader_goes_by_them() {
        let start = Instant::now();
        let first = lessor([(1, 3600), (2, 300), (3, 301)], start);
        let at = |s: f64| start + seconds(s);
        assert_eq!(first.due_checkpoints(at(299.0), 10), Checkpoints::default());
        let due = first.due_checkpoints(at(300.5), 10);
        assert_eq!(due.remaining, [(1, 3300), (3, 1)]);
        assert!(first.due_checkpoints(at(301.0), 10).remaining.is_empty());
        let next = first.due_checkpoints(at(601.0), 10);
        assert_eq!(next.remaining, [(1, 3000)]);
        assert!(next.sequence > due.sequence);

        let second = lessor([(1, 3600)], start);
        second.checkpointed(1, 3000, next.sequence);
        second.lead(2, at(700.0));
        let remaining = second.remaining_at(1, at(701.0)).unwrap();
        assert_eq!(
            (remaining.ttl_seconds, remaining.granted_ttl_seconds),
            (3000, 3600)
        );
    }

    #[test]
    fn a_renewal_says_whether_a_checkpoint_has_to_be_cleared() {
        let start = Instant::now();
        let lessor = lessor([(1, 3600)], start);
        let at = |s: f64| start + seconds(s);
        let has_checkpoint = |s: f64| match lessor.renew_at(1, at(s)) {
            Renewal::Renewed { has_checkpoint, .. } => has_checkpoint,
            other => panic!("{other:?}"),
        };
        assert!(!has_checkpoint(1.0));
        let due = lessor.due_checkpoints(at(302.0), 10);
        assert!(has_checkpoint(303.0), "it may be on its way");
        lessor.checkpointed(1, due.remaining[0].1, due.sequence);
        assert!(has_checkpoint(304.0), "it is on record");
        lessor.checkpointed(1, 0, lessor.next_sequence());
        assert!(!has_checkpoint(305.0));
        // Renewed in time, a lease needs no checkpoint.
        assert!(lessor.due_checkpoints(at(604.0), 10).remaining.is_empty());
    }
}
