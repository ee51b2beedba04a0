//! The thread that brings watchers that are behind up to the present.
//!
//! It works in turns. A turn claims the queued watchers whose next revisions
//! lie near each other, reads history once for all of them (from the ring, or
//! from the store below it), collects each one's events, and queues them as
//! responses of whole revisions (WAT-25). At its end all of them stand at the
//! same revision, so groups merge on their way up: ten thousand watchers that
//! resume at different revisions after a restart cost a few reads of history,
//! not ten thousand.
//!
//! Turns alternate between the watchers that are nearly there and a sweep from
//! the oldest upwards, so that a watch from long ago does not delay one from a
//! moment ago, nor the other way round.
//!
//! A watcher joins under the hub's lock, when nothing published is missing.
//! Since a busy writer would move the goal during each turn, the last few
//! revisions are taken from the ring under that same lock.

use std::sync::Arc;

use bytes::Bytes;

use super::hub::{Shared, WATCHERS_PER_LOCK};
use super::outbox::End;
use super::ranges::Ranges;
use super::state::{Claim, State};
use super::watcher::{Body, Response};
use crate::metrics;
use crate::mvcc::{Event, ReadError, RevisionEvents};

/// Revisions and bytes read at a time, with no lock held.
const PAGE_REVISIONS: usize = 1000;
const PAGE_BYTES: usize = 1 << 20;

/// Revisions and bytes read in one turn, a few tens of milliseconds: how long
/// others may have to wait, and how much a turn keeps in memory.
const TURN_REVISIONS: i64 = 16_000;
const TURN_BYTES: usize = 16 << 20;

/// Watchers in one turn; more of them take another turn over the same history.
const TURN_WATCHERS: usize = 8192;

/// Revisions of one response, as in etcd, and its bytes: clients that keep
/// gRPC's usual limit of 4 MB on messages must be able to take it.
const RESPONSE_REVISIONS: usize = 1000;
const RESPONSE_BYTES: usize = 1 << 20;

/// Revisions and events that may be routed under the hub's lock, about 0.1 ms.
const JOIN_REVISIONS: i64 = 32;
const JOIN_EVENTS: usize = 512;

/// The body of the thread: turns until the hub is dropped.
pub(super) fn run(shared: &Shared) {
    let mut sweep = Sweep::default();
    while wait_for_work(shared) {
        sweep.turn(shared);
    }
}

/// Sleeps until a watcher is queued. False when the thread is to end.
fn wait_for_work(shared: &Shared) -> bool {
    let mut state = shared.state.lock();
    loop {
        if shared.is_stopping() {
            return false;
        }
        if state.has_queued() {
            return true;
        }
        shared.work.wait(&mut state);
    }
}

/// Chooses who is next.
#[derive(Default)]
pub struct Sweep {
    turns: u64,
    /// Where the sweep from the oldest upwards goes on.
    position: i64,
}

impl Sweep {
    /// One turn. False when nobody was queued.
    pub(super) fn turn(&mut self, shared: &Shared) -> bool {
        let Some(group) = self.claim(shared) else {
            return false;
        };
        group.read(shared);
        true
    }

    fn claim(&mut self, shared: &Shared) -> Option<Group> {
        self.turns += 1;
        let is_for_the_nearest = self.turns.is_multiple_of(2);
        let mut state = shared.state.lock();
        let wanted = if is_for_the_nearest {
            state.published - TURN_REVISIONS
        } else {
            self.position
        };
        let from = state.queued_from(wanted)?;
        if !is_for_the_nearest {
            self.position = from + 1;
        }
        let to = from.saturating_add(TURN_REVISIONS - 1);
        let mut group = Group::new(from);
        loop {
            let claims = state.claim(from, to, WATCHERS_PER_LOCK);
            drop(state);
            let is_last = claims.len() < WATCHERS_PER_LOCK;
            claims.into_iter().for_each(|claim| group.add(claim));
            if is_last || group.members.len() >= TURN_WATCHERS {
                return Some(group);
            }
            state = shared.state.lock();
        }
    }
}

/// The watchers of one turn.
struct Group {
    members: Vec<Member>,
    /// From key to positions in `members`.
    ranges: Ranges,
    /// Everything below this revision was read.
    reached: i64,
    /// Members that got an event of the revision at hand; kept to save an
    /// allocation for each revision.
    touched: Vec<u32>,
}

/// One watcher of a turn, and the response that is being collected for it.
struct Member {
    /// `next` is where the watcher stands with all that was queued for it.
    claim: Claim,
    events: Vec<Bytes>,
    bytes: usize,
    revisions: usize,
    /// The first and the last revision of `events`.
    first: i64,
    last: i64,
    /// The claim has not ended yet.
    is_active: bool,
}

/// Whether to go on reading.
enum Step {
    More { bytes: usize },
    End,
}

impl Group {
    fn new(from: i64) -> Group {
        Group {
            members: Vec::new(),
            ranges: Ranges::default(),
            reached: from,
            touched: Vec::new(),
        }
    }

    fn add(&mut self, claim: Claim) {
        let position = u32::try_from(self.members.len()).expect("a group is small");
        self.ranges.insert(&claim.range, position);
        self.members.push(Member {
            claim,
            events: Vec::new(),
            bytes: 0,
            revisions: 0,
            first: 0,
            last: 0,
            is_active: true,
        });
    }

    /// Reads for the group until the present or the limits of a turn, and lets
    /// go of all its watchers.
    fn read(mut self, shared: &Shared) {
        let stop_at = self.reached.saturating_add(TURN_REVISIONS);
        let mut budget = TURN_BYTES;
        loop {
            let compacted = shared.history.compacted_revision();
            if self.reached < compacted {
                self.drop_compacted(shared, compacted);
                break;
            }
            match self.read_page(shared, compacted) {
                Ok(Step::More { bytes }) => budget = budget.saturating_sub(bytes),
                // Compacted between the two calls: the next turn sees it.
                Ok(Step::End) | Err(ReadError::Compacted | ReadError::FutureRevision) => break,
                Err(ReadError::Storage(error)) => {
                    tracing::error!(%error, revision = self.reached, "failed to read history for watchers; their streams end");
                    self.end_streams(shared);
                    return;
                }
            }
            if budget == 0 || self.reached >= stop_at || shared.is_stopping() {
                break;
            }
        }
        self.settle(shared);
    }

    /// Reads one page and routes it. A watcher starting at the compacted
    /// revision itself still gets that one's events, but their previous values
    /// lie below it and count as gone (WAT-19, WAT-30).
    fn read_page(&mut self, shared: &Shared, compacted: i64) -> Result<Step, ReadError> {
        let before = self.reached;
        let mut bytes = 0;
        let (published, recent): (i64, Option<Vec<Arc<RevisionEvents>>>) = {
            let state = shared.state.lock();
            if self.reached > state.published {
                return Ok(Step::End);
            }
            let page = state.ring.page(self.reached, PAGE_REVISIONS);
            (state.published, page.map(|page| page.cloned().collect()))
        };
        if let Some(revisions) = recent {
            for revision in revisions {
                bytes += self.route_and_flush(shared, &revision, compacted);
                self.reached = revision.revision + 1;
            }
        } else {
            let page = shared
                .history
                .events(self.reached, PAGE_REVISIONS, PAGE_BYTES)?;
            // The store may be ahead of what is published. Progress is of what
            // is published, and must not come after events of a later revision.
            let known = page.revisions.iter();
            for revision in known.take_while(|revision| revision.revision <= published) {
                bytes += self.route_and_flush(shared, revision, compacted);
            }
            self.reached = page.next_revision.min(published + 1);
        }
        debug_assert!(self.reached > before, "a page that does not get ahead");
        Ok(if self.reached > before {
            Step::More { bytes }
        } else {
            Step::End
        })
    }

    /// Routes a revision and queues the responses that it has made large
    /// enough. Returns the revision's bytes.
    fn route_and_flush(
        &mut self,
        shared: &Shared,
        revision: &RevisionEvents,
        compacted: i64,
    ) -> usize {
        self.route(revision, compacted);
        let mut state = None;
        for position in &self.touched {
            let member = &mut self.members[*position as usize];
            if member.revisions >= RESPONSE_REVISIONS || member.bytes >= RESPONSE_BYTES {
                let state = state.get_or_insert_with(|| shared.state.lock());
                member.flush(state, shared.history.revision());
            }
        }
        revision
            .events
            .iter()
            .map(|event| event.encoded.len())
            .sum()
    }

    /// Adds the events of a revision to the responses of the members that want
    /// them, and leaves the positions of those in `touched`.
    fn route(&mut self, revision: &RevisionEvents, compacted: i64) {
        let has_prev = revision.revision > compacted;
        let Group {
            members,
            ranges,
            touched,
            ..
        } = self;
        touched.clear();
        for event in &revision.events {
            ranges.visit(&event.key, |position| {
                if members[position as usize].take(revision.revision, event, has_prev) {
                    touched.push(position);
                }
            });
        }
    }

    /// Cancels the watchers whose history is gone (WAT-34, WAT-35).
    fn drop_compacted(&mut self, shared: &Shared, compacted: i64) {
        let reached = self.reached;
        for members in self.members.chunks_mut(WATCHERS_PER_LOCK) {
            let mut state = shared.state.lock();
            for member in members {
                if member.claim.next.max(reached) >= compacted {
                    continue;
                }
                member.flush(&mut state, shared.history.revision());
                member.drop_compacted(&mut state, compacted, reached);
            }
        }
    }

    /// Queues what was collected and lets go of the watchers: they join, or
    /// wait for another turn.
    fn settle(&mut self, shared: &Shared) {
        for from in (0..self.members.len()).step_by(WATCHERS_PER_LOCK) {
            let mut state = shared.state.lock();
            self.take_the_last(shared, &state);
            let to = self.members.len().min(from + WATCHERS_PER_LOCK);
            for member in &mut self.members[from..to] {
                member.flush(&mut state, shared.history.revision());
                if member.is_active {
                    member.is_active = false;
                    state.settle(&member.claim, member.claim.next.max(self.reached));
                }
            }
        }
    }

    /// Routes what was published since, under the lock, if it is little.
    fn take_the_last(&mut self, shared: &Shared, state: &State) {
        if state.published - self.reached >= JOIN_REVISIONS {
            return;
        }
        let Some(page) = state.ring.page(self.reached, JOIN_REVISIONS as usize) else {
            return;
        };
        let revisions: Vec<_> = page.collect();
        if revisions
            .iter()
            .map(|revision| revision.events.len())
            .sum::<usize>()
            > JOIN_EVENTS
        {
            return;
        }
        let compacted = shared.history.compacted_revision();
        for revision in revisions {
            self.route(revision, compacted);
            self.reached = revision.revision + 1;
        }
    }

    /// What these watchers need cannot be read: their clients must come again.
    fn end_streams(&mut self, shared: &Shared) {
        let mut state = shared.state.lock();
        for member in &self.members {
            if let Some(watcher) = state.claimed(&member.claim) {
                let stream = watcher.stream;
                state.end_stream(stream, End::HistoryFailed);
            }
        }
    }
}

impl Member {
    /// Adds an event if the watcher wants it and has not got it yet.
    fn take(&mut self, revision: i64, event: &Event, has_prev: bool) -> bool {
        if !self.is_active || revision < self.claim.next || !self.claim.filters.lets_pass(event) {
            return false;
        }
        let encoded = if self.claim.prev_kv && has_prev {
            event.with_prev()
        } else {
            event.without_prev()
        };
        if self.events.is_empty() {
            self.first = revision;
        }
        if self.events.is_empty() || self.last != revision {
            self.revisions += 1;
            self.last = revision;
        }
        self.bytes += encoded.len();
        self.events.push(encoded);
        true
    }

    /// Queues the collected events as one response. If there is no room they
    /// are let go, and read again when there is.
    fn flush(&mut self, state: &mut State, current: i64) {
        if self.events.is_empty() {
            return;
        }
        let events = std::mem::take(&mut self.events);
        let count = events.len() as u64;
        self.bytes = 0;
        self.revisions = 0;
        let Some(watcher) = state.claimed(&self.claim) else {
            self.is_active = false;
            return;
        };
        let response = || Response {
            watch_id: watcher.id,
            revision: current,
            body: Body::Events {
                events,
                fragment: watcher.fragment,
            },
        };
        if watcher.outbox.offer_or_park(response) {
            watcher.has_had_events = true;
            self.claim.next = self.last + 1;
            metrics::DEBUGGING_MVCC_EVENTS_TOTAL.inc_by(count);
        } else {
            state.park(&self.claim, self.first);
            self.is_active = false;
        }
    }

    /// Tells the client that the history is gone, and forgets the watcher.
    fn drop_compacted(&mut self, state: &mut State, compact_revision: i64, reached: i64) {
        if !self.is_active {
            return;
        }
        self.is_active = false;
        let Some(watcher) = state.claimed(&self.claim) else {
            return;
        };
        let response = || Response {
            watch_id: watcher.id,
            revision: 0,
            body: Body::Compacted { compact_revision },
        };
        if watcher.outbox.offer_or_park(response) {
            state.drop_claimed(&self.claim);
        } else {
            state.park(&self.claim, self.claim.next.max(reached));
        }
    }
}
