//! What every thread of consensus and every caller may read.
//!
//! Owns the numbers behind [`Status`], the latch that a failure closes, the
//! signal that this member has caught up and the one that it was removed, and
//! the commands and readers on their way to the drive loop. The numbers are
//! written by the drive and apply threads and read by everybody without locks.
//! Who reads may see those of two moments side by side; none ever goes down.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::Reader;
use super::drive::Proposal;
use super::proposer::{MAX_PROPOSALS, MAX_READERS};
use super::waiting::Waiting;
use crate::machine::Conf;
use crate::metrics;

/// What this member knows of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// The leader's member id, 0 while none is known.
    pub leader: u64,
    pub term: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub is_leader: bool,
    /// This member gets all entries and has no vote.
    pub is_learner: bool,
}

/// What the leader knows of another member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The log of that member is the leader's up to this index.
    pub matched: u64,
    /// It has answered within the last election timeout.
    pub is_recent_active: bool,
}

/// Whether proposals are taken. Moves downwards only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Running,
    /// Asked to stop: what is queued is finished.
    Stopping,
    /// A write, a sync or an apply has failed (invariant 8).
    Failed,
}

pub(super) struct Shared {
    member_id: u64,
    leader: AtomicU64,
    term: AtomicU64,
    committed_index: AtomicU64,
    applied_index: AtomicU64,
    is_learner: AtomicBool,
    is_alone: AtomicBool,
    /// The term this member leads, 0 while it does not. Written by the drive
    /// thread, before it sends anything that another leader could build on.
    leading_term: AtomicU64,
    /// Rises twice with each change of leader, term and leading term.
    role_version: AtomicU64,
    /// See [`Shared::may_read_alone`]. Written by the apply thread.
    alone_term: AtomicU64,
    /// How far each member is, as the leader knows.
    progress: ArcSwap<Vec<(u64, Progress)>>,
    /// Milliseconds since `began`: when the present leader was elected, and
    /// when it, or a majority, was last out of reach; 0: never.
    began: Instant,
    leader_since_millis: AtomicU64,
    out_of_contact_millis: AtomicU64,
    /// What the drive loop has not taken yet.
    pub(super) proposals: Waiting<Proposal>,
    pub(super) readers: Waiting<Reader>,
    leader_signal: watch::Sender<u64>,
    removed: watch::Sender<bool>,
    phase: watch::Sender<Phase>,
    /// `phase` is past running; for callers that ask with every request.
    is_stopped: AtomicBool,
    /// An entry of a leader's own term has been applied here: all that was
    /// acknowledged before this process started is visible.
    catching_up: watch::Sender<bool>,
    has_caught_up: AtomicBool,
    /// The drive loop has ended and takes no events.
    is_inbox_closed: AtomicBool,
}

impl Shared {
    /// A member that is not alone has nothing to catch up with before it may
    /// speak: whoever leads says what is committed.
    pub(super) fn new(member_id: u64, term: u64, applied_index: u64, conf: &Conf) -> Shared {
        let is_alone = is_alone(conf, member_id);
        let shared = Shared {
            member_id,
            leader: AtomicU64::new(0),
            term: AtomicU64::new(term),
            committed_index: AtomicU64::new(applied_index),
            applied_index: AtomicU64::new(applied_index),
            is_learner: AtomicBool::new(false),
            is_alone: AtomicBool::new(is_alone),
            leading_term: AtomicU64::new(0),
            role_version: AtomicU64::new(0),
            alone_term: AtomicU64::new(0),
            progress: ArcSwap::default(),
            began: Instant::now(),
            leader_since_millis: AtomicU64::new(0),
            out_of_contact_millis: AtomicU64::new(0),
            proposals: Waiting::new(MAX_PROPOSALS),
            readers: Waiting::new(MAX_READERS),
            leader_signal: watch::Sender::new(0),
            removed: watch::Sender::new(false),
            phase: watch::Sender::new(Phase::Running),
            is_stopped: AtomicBool::new(false),
            catching_up: watch::Sender::new(is_alone),
            has_caught_up: AtomicBool::new(!is_alone),
            is_inbox_closed: AtomicBool::new(false),
        };
        shared.set_learner(conf);
        shared
    }

    pub(super) fn member_id(&self) -> u64 {
        self.member_id
    }

    pub(super) fn status(&self) -> Status {
        let (leader, term, is_leader) = self.role();
        // Applied before committed, so that the one never passes the other.
        let applied_index = self.applied_index.load(Ordering::Acquire);
        Status {
            leader,
            term,
            committed_index: self.committed_index.load(Ordering::Acquire),
            applied_index,
            is_leader,
            is_learner: self.is_learner.load(Ordering::Acquire),
        }
    }

    pub(super) fn applied_index(&self) -> u64 {
        self.applied_index.load(Ordering::Acquire)
    }

    /// LIM-7: entries committed and not applied yet.
    pub(super) fn apply_backlog(&self) -> u64 {
        let applied = self.applied_index();
        let committed = self.committed_index.load(Ordering::Acquire);
        committed.saturating_sub(applied)
    }

    /// Before anything is sent that was said in this role: another member may
    /// lead on the strength of it.
    pub(super) fn set_role(&self, leader: u64, term: u64, is_leader: bool) {
        let leading_term = if is_leader { term } else { 0 };
        // Odd while the three change; there is one writer.
        self.role_version.fetch_add(1, Ordering::SeqCst);
        self.leading_term.store(leading_term, Ordering::SeqCst);
        self.term.store(term, Ordering::SeqCst);
        let previous = self.leader.swap(leader, Ordering::SeqCst);
        self.role_version.fetch_add(1, Ordering::SeqCst);
        metrics::SERVER_HAS_LEADER.set(i64::from(leader != 0));
        metrics::SERVER_IS_LEADER.set(i64::from(is_leader));
        if leader != previous {
            if leader != 0 {
                metrics::SERVER_LEADER_CHANGES_SEEN_TOTAL.inc();
                self.leader_since_millis
                    .store(self.millis(Instant::now()), Ordering::Release);
            }
            self.leader_signal.send_replace(leader);
        }
    }

    /// Leader, term and whether this member leads, as of one moment.
    fn role(&self) -> (u64, u64, bool) {
        loop {
            let version = self.role_version.load(Ordering::SeqCst);
            let leader = self.leader.load(Ordering::SeqCst);
            let term = self.term.load(Ordering::SeqCst);
            let leading_term = self.leading_term.load(Ordering::SeqCst);
            if version.is_multiple_of(2) && version == self.role_version.load(Ordering::SeqCst) {
                return (leader, term, leading_term != 0);
            }
            std::hint::spin_loop();
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.began).as_millis() as u64 + 1
    }

    pub(super) fn set_out_of_contact(&self) {
        let now = self.millis(Instant::now());
        self.out_of_contact_millis.store(now, Ordering::Release);
    }

    /// Whether the present leader has been there since `start`, or was elected
    /// at most `before` after it: as etcd's `parseProposeCtxErr`.
    pub(super) fn lost_leader_since(&self, start: Instant, before_millis: u64) -> bool {
        let elected = self.leader_since_millis.load(Ordering::Acquire);
        let start = self.millis(start);
        start < elected && start + before_millis > elected
    }

    /// Whether the leader, or a majority, was out of reach after `start`,
    /// though a leader is known.
    pub(super) fn lost_contact_since(&self, start: Instant) -> bool {
        let has_leader = self.leader.load(Ordering::Acquire) != 0;
        let lost = self.out_of_contact_millis.load(Ordering::Acquire);
        has_leader && lost >= self.millis(start)
    }

    pub(super) fn set_progress(&self, progress: Vec<(u64, Progress)>) {
        if !progress.is_empty() || !self.progress.load().is_empty() {
            self.progress.store(progress.into());
        }
    }

    pub(super) fn progress(&self, member_id: u64) -> Option<Progress> {
        let all = self.progress.load();
        let found = all.iter().find(|(id, _)| *id == member_id);
        found.map(|(_, progress)| *progress)
    }

    /// Whether all that was acknowledged so far, by anyone, is applied here:
    /// no other member exists, and this one leads and has applied what it
    /// found in its log.
    ///
    /// `alone_term` is a term that this member has opened by an entry it has
    /// applied, set while the machine knows no other member and cleared before
    /// raft hears of one. If it leads that same term, looked at afterwards, it
    /// led it in between too, so at the first look nobody else could have
    /// committed anything, or answered for it.
    pub(super) fn may_read_alone(&self) -> bool {
        let term = self.alone_term.load(Ordering::SeqCst);
        term != 0 && term == self.leading_term.load(Ordering::SeqCst)
    }

    /// Called by the apply thread after each commit that changed one of them,
    /// before raft and the waiters hear of it.
    pub(super) fn set_conf(&self, conf: &Conf, opened_term: u64) {
        let is_alone = is_alone(conf, self.member_id);
        let alone_term = if is_alone { opened_term } else { 0 };
        self.alone_term.store(alone_term, Ordering::SeqCst);
        self.is_alone.store(is_alone, Ordering::Release);
        self.set_learner(conf);
    }

    /// Whether the machine knows no other member.
    pub(super) fn is_alone(&self) -> bool {
        self.is_alone.load(Ordering::Acquire)
    }

    fn set_learner(&self, conf: &Conf) {
        let is_learner = conf.learners.contains(&self.member_id);
        self.is_learner.store(is_learner, Ordering::Release);
        metrics::SERVER_IS_LEARNER.set(i64::from(is_learner));
    }

    /// Resolves when `leader` leads, as far as known here. It may never.
    pub(super) async fn leads(&self, leader: u64) {
        let mut receiver = self.leader_signal.subscribe();
        // The sender lives as long as `self`.
        let _ = receiver.wait_for(|current| *current == leader).await;
    }

    pub(super) fn set_removed(&self) {
        if !self.removed.send_replace(true) {
            tracing::warn!("this member has been removed from the cluster");
        }
    }

    pub(super) fn is_removed(&self) -> bool {
        *self.removed.borrow()
    }

    pub(super) async fn removed(&self) {
        let mut receiver = self.removed.subscribe();
        // The sender lives as long as `self`.
        let _ = receiver.wait_for(|is_removed| *is_removed).await;
    }

    pub(super) fn set_committed_index(&self, index: u64) {
        self.committed_index.store(index, Ordering::Release);
        metrics::SERVER_PROPOSALS_COMMITTED_TOTAL.set(index as i64);
    }

    pub(super) fn set_applied_index(&self, index: u64) {
        self.applied_index.store(index, Ordering::Release);
        metrics::SERVER_PROPOSALS_APPLIED_TOTAL.set(index as i64);
    }

    /// An entry that opens `term` has been applied.
    pub(super) fn term_opened(&self, term: u64) {
        if !self.is_caught_up() && term >= self.term.load(Ordering::Acquire) {
            self.has_caught_up.store(true, Ordering::Release);
            self.catching_up.send_replace(false);
        }
    }

    pub(super) fn is_caught_up(&self) -> bool {
        self.has_caught_up.load(Ordering::Acquire)
    }

    /// Resolves when this member has caught up. It may never: bound the wait.
    pub(super) async fn caught_up(&self) {
        if self.is_caught_up() {
            return;
        }
        let mut receiver = self.catching_up.subscribe();
        // The sender lives as long as `self`.
        let _ = receiver.wait_for(|catching_up| !catching_up).await;
    }

    /// Stops for good. Logs the failure: nobody else will.
    pub(super) fn fail(&self, failure: impl std::fmt::Display) {
        if self.enter(Phase::Failed) {
            tracing::error!(%failure, "no more writes are accepted, this member must stop");
        }
    }

    pub(super) fn begin_stop(&self) {
        self.enter(Phase::Stopping);
    }

    /// Whether the phase has changed.
    fn enter(&self, phase: Phase) -> bool {
        self.is_stopped.store(true, Ordering::Release);
        self.phase.send_if_modified(|current| {
            let is_later = *current < phase;
            *current = phase.max(*current);
            is_later
        })
    }

    /// Whether new proposals are to be refused.
    pub(super) fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Acquire)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.is_stopped() && *self.phase.borrow() == Phase::Failed
    }

    /// What waits for the drive loop is dropped, and no more is taken.
    pub(super) fn close_inbox(&self) {
        self.is_inbox_closed.store(true, Ordering::SeqCst);
        self.proposals.close();
        self.readers.close();
    }

    /// Asked after sending: an event sent before this says no is either taken
    /// or dropped.
    pub(super) fn is_inbox_closed(&self) -> bool {
        self.is_inbox_closed.load(Ordering::SeqCst)
    }

    pub(super) async fn failed(&self) {
        self.reached(Phase::Failed).await;
    }

    pub(super) async fn stopped(&self) {
        self.reached(Phase::Stopping).await;
    }

    async fn reached(&self, phase: Phase) {
        let mut receiver = self.phase.subscribe();
        // The sender lives as long as `self`.
        let _ = receiver.wait_for(|current| *current >= phase).await;
    }
}

fn is_alone(conf: &Conf, member_id: u64) -> bool {
    conf.voters == [member_id] && conf.learners.is_empty()
}
