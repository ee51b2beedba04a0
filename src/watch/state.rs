//! Everything the hub knows, as it stands under the hub's lock.
//!
//! # A watcher's life
//!
//! ```text
//!            start after the published revision
//!  create ----------------------------------------> Synced <-------------+
//!     |                                               | queue full       | caught up
//!     | start in the past                             v                  |
//!     +-----------------> Queued --> Reading       Parked                |
//!                           ^          |  ^ |        | room in the queue |
//!                           |          |  | +--------|-------------------+
//!                           +----------+  +--------->+
//!                          page delivered   queue full
//! ```
//!
//! # Invariants
//!
//! - A watcher that is synced has been queued every event it wants up to the
//!   published revision. Progress may say so, and goes through the same queue.
//! - A watcher that is behind has been queued every event it wants below its
//!   `next`, and none from `next` on.
//! - `next` of a behind watcher is at most the published revision. (`Reading`
//!   ones may be overtaken meanwhile; they are settled against the revision
//!   published then.)
//! - The queue of a stream is only appended to under the hub's lock: hence
//!   nothing follows the response that cancels a watcher, and nothing comes
//!   before the one that creates it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::sync::Arc;

use bytes::Bytes;

use super::hub::Settings;
use super::outbox::{End, Outbox};
use super::ranges::{Ranges, WatchRange};
use super::ring::Ring;
use super::watcher::{
    Body, CreateError, CreateRequest, Filters, NO_WATCHER, Phase, Response, Watcher,
};
use crate::metrics;
use crate::mvcc::RevisionEvents;

pub(super) struct State {
    /// The last revision that was handed to the synced watchers.
    pub(super) published: i64,
    pub(super) ring: Ring,
    /// Every watcher, synced or behind, by slot.
    ranges: Ranges,
    watchers: Vec<Option<Watcher>>,
    free: Vec<u32>,
    streams: HashMap<u64, Stream>,
    /// The queued watchers by their next revision.
    queued: BTreeSet<(i64, u32)>,
    next_stream: u64,
    next_serial: u64,
    /// Why no stream may be opened any more.
    end: Option<End>,
    /// Kept to save an allocation for each revision.
    matches: Vec<(u32, u32)>,
}

/// One stream's watchers.
struct Stream {
    outbox: Arc<Outbox>,
    /// The number that is tried next when the client leaves the choice to us.
    next_id: i64,
    slots: BTreeMap<i64, u32>,
    /// Those that asked for progress without asking each time.
    notified: BTreeMap<i64, u32>,
    parked: BTreeSet<u32>,
    behind: usize,
    /// Those that progress says nothing to yet, by the revision they wait for.
    future: BTreeSet<(i64, u32)>,
}

/// A watcher that was handed to the catch-up thread: what it needs to know to
/// read for it without the lock.
pub(super) struct Claim {
    slot: u32,
    serial: u64,
    pub(super) next: i64,
    pub(super) range: WatchRange,
    pub(super) filters: Filters,
    pub(super) prev_kv: bool,
}

impl State {
    pub(super) fn new(published: i64, settings: &Settings) -> State {
        State {
            published,
            ring: Ring::new(settings.ring_revisions, settings.ring_bytes),
            ranges: Ranges::default(),
            watchers: Vec::new(),
            free: Vec::new(),
            streams: HashMap::new(),
            queued: BTreeSet::new(),
            next_stream: 0,
            next_serial: 0,
            end: None,
            matches: Vec::new(),
        }
    }

    // Streams

    pub(super) fn open_stream(&mut self, outbox: Arc<Outbox>) -> u64 {
        let number = self.next_stream;
        self.next_stream += 1;
        if let Some(end) = self.end {
            outbox.end(end);
            return number;
        }
        let stream = Stream {
            outbox,
            next_id: 0,
            slots: BTreeMap::new(),
            notified: BTreeMap::new(),
            parked: BTreeSet::new(),
            behind: 0,
            future: BTreeSet::new(),
        };
        self.streams.insert(number, stream);
        metrics::DEBUGGING_MVCC_WATCH_STREAM_TOTAL.inc();
        number
    }

    /// Removes up to `max_watchers` of a stream's watchers and, when none is
    /// left, the stream. Returns whether there is more to remove.
    pub(super) fn close_stream(&mut self, number: u64, max_watchers: usize) -> bool {
        let Some(stream) = self.streams.get(&number) else {
            return false;
        };
        let slots: Vec<u32> = stream.slots.values().copied().take(max_watchers).collect();
        for slot in slots {
            self.remove(slot);
        }
        let is_empty = self
            .streams
            .get(&number)
            .is_none_or(|stream| stream.slots.is_empty());
        if is_empty && self.streams.remove(&number).is_some() {
            metrics::DEBUGGING_MVCC_WATCH_STREAM_TOTAL.dec();
        }
        !is_empty
    }

    /// Ends one stream with a reason. Its watchers go when its receiver does.
    pub(super) fn end_stream(&self, number: u64, end: End) {
        if let Some(stream) = self.streams.get(&number) {
            stream.outbox.end(end);
        }
    }

    /// Ends all streams, now and from now on.
    pub(super) fn end_all(&mut self, end: End) {
        self.end.get_or_insert(end);
        for stream in self.streams.values() {
            stream.outbox.end(end);
        }
    }

    // Requests

    /// Creates a watcher and queues the answer. `current` is the store's
    /// revision, read under the lock: "from now on" means after it, and the
    /// created response says so (WAT-7). It may be ahead of the published
    /// revision; what is published up to it then passes the watcher by.
    pub(super) fn create(&mut self, number: u64, request: CreateRequest, current: i64) {
        let Some(stream) = self.streams.get(&number) else {
            return;
        };
        let outbox = Arc::clone(&stream.outbox);
        let (watch_id, body) = match self.register(number, request, current) {
            Ok(watch_id) => (watch_id, Body::Created),
            Err(error) => (NO_WATCHER, Body::Refused(error)),
        };
        outbox.push_control(Response {
            watch_id,
            revision: current,
            body,
        });
    }

    fn register(
        &mut self,
        number: u64,
        request: CreateRequest,
        current: i64,
    ) -> Result<i64, CreateError> {
        if request.start_revision < 0 {
            return Err(CreateError::NegativeStart);
        }
        let range = WatchRange::new(request.key, request.range_end)?;
        let stream = self
            .streams
            .get_mut(&number)
            .expect("the caller has looked it up");
        let id = stream.choose_id(request.watch_id)?;

        let (next, progress_from) = match request.start_revision {
            0 => (current + 1, current),
            start => (start, start),
        };
        let is_synced = next > self.published;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.watchers.push(None);
            u32::try_from(self.watchers.len() - 1).expect("memory ends before 2^32 watchers")
        });
        self.ranges.insert(&range, slot);
        stream.slots.insert(id, slot);
        if request.progress_notify {
            stream.notified.insert(id, slot);
        }
        if progress_from > self.published {
            stream.future.insert((progress_from, slot));
        }
        metrics::DEBUGGING_MVCC_WATCHER_TOTAL.inc();
        if !is_synced {
            stream.behind += 1;
            metrics::DEBUGGING_MVCC_SLOW_WATCHER_TOTAL.inc();
            self.queued.insert((next, slot));
        }
        self.watchers[slot as usize] = Some(Watcher {
            serial: self.next_serial,
            id,
            stream: number,
            outbox: Arc::clone(&stream.outbox),
            range,
            filters: request.filters,
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            has_had_events: false,
            progress_from,
            next,
            phase: if is_synced {
                Phase::Synced
            } else {
                Phase::Queued
            },
        });
        self.next_serial += 1;
        Ok(id)
    }

    /// Cancels a watcher and queues the answer; none for an unknown id (WAT-15).
    pub(super) fn cancel(&mut self, number: u64, id: i64, current: i64) {
        let Some(stream) = self.streams.get(&number) else {
            return;
        };
        let Some(&slot) = stream.slots.get(&id) else {
            return;
        };
        let outbox = Arc::clone(&stream.outbox);
        self.remove(slot);
        outbox.push_control(Response {
            watch_id: id,
            revision: current,
            body: Body::Canceled,
        });
    }

    /// Answers a request for progress of the whole stream, or drops it
    /// (WAT-39 to WAT-41).
    pub(super) fn progress(&mut self, number: u64) {
        let published = self.published;
        let Some(stream) = self.streams.get_mut(&number) else {
            return;
        };
        while stream
            .future
            .first()
            .is_some_and(|(from, _)| *from <= published)
        {
            stream.future.pop_first();
        }
        if stream.slots.is_empty() || stream.behind > 0 || !stream.future.is_empty() {
            return;
        }
        stream.outbox.offer(Response {
            watch_id: NO_WATCHER,
            revision: published,
            body: Body::Progress,
        });
    }

    /// Reports progress to the watchers that want it regularly and have had no
    /// events since the last time, `max_watchers` of them from id `from` on.
    /// Returns the id to go on with (WAT-37).
    pub(super) fn tick(&mut self, number: u64, from: i64, max_watchers: usize) -> Option<i64> {
        let stream = self.streams.get(&number)?;
        let mut rest = stream.notified.range(from..);
        for (id, slot) in rest.by_ref().take(max_watchers) {
            let watcher = self.watchers[*slot as usize]
                .as_mut()
                .expect("a stream's slots are taken");
            let is_due = !mem::take(&mut watcher.has_had_events)
                && watcher.phase == Phase::Synced
                && watcher.progress_from <= self.published;
            if is_due {
                stream.outbox.offer(Response {
                    watch_id: *id,
                    revision: self.published,
                    body: Body::Progress,
                });
            }
        }
        rest.next().map(|(id, _)| *id)
    }

    /// Takes a watcher out of everything.
    fn remove(&mut self, slot: u32) {
        let Some(watcher) = self.watchers[slot as usize].take() else {
            return;
        };
        self.free.push(slot);
        self.ranges.remove(&watcher.range, slot);
        metrics::DEBUGGING_MVCC_WATCHER_TOTAL.dec();
        if watcher.phase != Phase::Synced {
            metrics::DEBUGGING_MVCC_SLOW_WATCHER_TOTAL.dec();
        }
        if watcher.phase == Phase::Queued {
            self.queued.remove(&(watcher.next, slot));
        }
        let Some(stream) = self.streams.get_mut(&watcher.stream) else {
            return;
        };
        stream.slots.remove(&watcher.id);
        stream.notified.remove(&watcher.id);
        stream.future.remove(&(watcher.progress_from, slot));
        stream.parked.remove(&slot);
        if watcher.phase != Phase::Synced {
            stream.behind -= 1;
        }
    }

    // Fan-out

    /// Hands one revision to the synced watchers that want it. Costs nothing
    /// for the others.
    pub(super) fn publish(&mut self, revision: &RevisionEvents) {
        if revision.revision > self.published + 1 {
            self.skip_to(revision.revision);
        }
        debug_assert_eq!(revision.revision, self.published + 1, "published twice");
        self.published = revision.revision;
        self.ring.push(revision);
        if self.ranges.is_empty() {
            return;
        }
        let mut matches = mem::take(&mut self.matches);
        for (event, index) in revision.events.iter().zip(0..) {
            self.ranges
                .visit(&event.key, |slot| matches.push((slot, index)));
        }
        if revision.events.len() > 1 {
            matches.sort_unstable();
        }
        let mut handed = 0;
        for of_one in matches.chunk_by(|one, other| one.0 == other.0) {
            handed += self.deliver(of_one[0].0, revision, of_one);
        }
        if handed > 0 {
            metrics::DEBUGGING_MVCC_EVENTS_TOTAL.inc_by(handed as u64);
        }
        matches.clear();
        // One huge revision must not keep its memory for ever.
        matches.shrink_to(64 << 10);
        self.matches = matches;
    }

    /// Hands the matched events of one revision to a watcher, in one response.
    /// Returns how many.
    fn deliver(&mut self, slot: u32, revision: &RevisionEvents, matches: &[(u32, u32)]) -> usize {
        let watcher = self.watchers[slot as usize]
            .as_mut()
            .expect("indexed slots are taken");
        if watcher.phase != Phase::Synced || revision.revision < watcher.next {
            return 0;
        }
        let events: Vec<Bytes> = matches
            .iter()
            .filter_map(|(_, index)| watcher.select(&revision.events[*index as usize]))
            .collect();
        if events.is_empty() {
            return 0;
        }
        let count = events.len();
        let response = || Response {
            watch_id: watcher.id,
            revision: revision.revision,
            body: Body::Events {
                events,
                fragment: watcher.fragment,
            },
        };
        if watcher.outbox.offer_or_park(response) {
            watcher.has_had_events = true;
            return count;
        }
        watcher.next = revision.revision;
        watcher.phase = Phase::Parked;
        metrics::DEBUGGING_MVCC_SLOW_WATCHER_TOTAL.inc();
        let stream = self
            .streams
            .get_mut(&watcher.stream)
            .expect("a watcher's stream is open");
        stream.behind += 1;
        stream.parked.insert(slot);
        0
    }

    /// The store was replaced by one that ends at `revision`.
    pub(super) fn replaced(&mut self, revision: i64) {
        if revision > self.published {
            self.skip_to(revision + 1);
        }
    }

    /// Revisions before `revision` were not handed over one by one (the store
    /// was replaced by a snapshot): whoever is owed one of them is now behind.
    fn skip_to(&mut self, revision: i64) {
        for (entry, slot) in self.watchers.iter_mut().zip(0..) {
            let Some(watcher) = entry else { continue };
            let next = watcher.next.max(self.published + 1);
            if watcher.phase == Phase::Synced && next < revision {
                watcher.next = next;
                watcher.phase = Phase::Queued;
                self.queued.insert((next, slot));
                metrics::DEBUGGING_MVCC_SLOW_WATCHER_TOTAL.inc();
                if let Some(stream) = self.streams.get_mut(&watcher.stream) {
                    stream.behind += 1;
                }
            }
        }
        self.published = revision - 1;
        // It no longer ends with the published revision.
        self.ring.clear();
    }

    // Catching up

    pub(super) fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    /// The lowest next revision of a queued watcher, at or above `from` if any
    /// is, else of all.
    pub(super) fn queued_from(&self, from: i64) -> Option<i64> {
        let above = self.queued.range((from, 0)..).next();
        above.or_else(|| self.queued.first()).map(|(next, _)| *next)
    }

    /// Claims up to `max_watchers` queued watchers whose next revision is from
    /// `from` to `to`, ascending.
    pub(super) fn claim(&mut self, from: i64, to: i64, max_watchers: usize) -> Vec<Claim> {
        let entries: Vec<(i64, u32)> = self
            .queued
            .range((from, 0)..=(to, u32::MAX))
            .copied()
            .take(max_watchers)
            .collect();
        let claim = |(next, slot): (i64, u32)| {
            self.queued.remove(&(next, slot));
            let watcher = self.watchers[slot as usize]
                .as_mut()
                .expect("queued slots are taken");
            watcher.phase = Phase::Reading;
            Claim {
                slot,
                serial: watcher.serial,
                next,
                range: watcher.range.clone(),
                filters: watcher.filters,
                prev_kv: watcher.prev_kv,
            }
        };
        entries.into_iter().map(claim).collect()
    }

    /// The watcher of a claim, unless it was cancelled meanwhile.
    pub(super) fn claimed(&mut self, claim: &Claim) -> Option<&mut Watcher> {
        let watcher = self.watchers[claim.slot as usize].as_mut()?;
        (watcher.serial == claim.serial).then_some(watcher)
    }

    /// Ends a claim because the queue is full: the watcher waits for room,
    /// having been queued everything below `next`.
    pub(super) fn park(&mut self, claim: &Claim, next: i64) {
        let Some(watcher) = self.claimed(claim) else {
            return;
        };
        debug_assert_eq!(watcher.phase, Phase::Reading);
        watcher.next = next;
        watcher.phase = Phase::Parked;
        let number = watcher.stream;
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.parked.insert(claim.slot);
        }
    }

    /// Ends a claim: the watcher has been queued everything below `next`, so it
    /// is synced if the published revision lies below that.
    pub(super) fn settle(&mut self, claim: &Claim, next: i64) {
        let published = self.published;
        let Some(watcher) = self.claimed(claim) else {
            return;
        };
        debug_assert_eq!(watcher.phase, Phase::Reading);
        watcher.next = next;
        if next <= published {
            watcher.phase = Phase::Queued;
            self.queued.insert((next, claim.slot));
            return;
        }
        watcher.phase = Phase::Synced;
        let number = watcher.stream;
        metrics::DEBUGGING_MVCC_SLOW_WATCHER_TOTAL.dec();
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.behind -= 1;
        }
    }

    /// Ends a claim for good: the watcher's history is gone. The number is free
    /// again at once, where etcd waits for the client's cancel (WAT-36).
    pub(super) fn drop_claimed(&mut self, claim: &Claim) {
        if self.claimed(claim).is_some() {
            self.remove(claim.slot);
        }
    }

    /// There is room again in a stream's queue. Returns whether that makes
    /// work for the catch-up thread.
    pub(super) fn unpark(&mut self, number: u64) -> bool {
        let Some(stream) = self.streams.get_mut(&number) else {
            return false;
        };
        let parked = mem::take(&mut stream.parked);
        for slot in &parked {
            let watcher = self.watchers[*slot as usize]
                .as_mut()
                .expect("parked slots are taken");
            watcher.phase = Phase::Queued;
            self.queued.insert((watcher.next, *slot));
        }
        !parked.is_empty()
    }

    /// Watchers, watchers that are behind, streams: for tests.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let watchers = || self.watchers.iter().flatten();
        let behind = watchers()
            .filter(|watcher| watcher.phase != Phase::Synced)
            .count();
        (watchers().count(), behind, self.streams.len())
    }
}

impl Stream {
    /// The id for a new watcher (WAT-3, WAT-4). Fails before anything is used up.
    fn choose_id(&mut self, wanted: i64) -> Result<i64, CreateError> {
        if wanted != 0 {
            let is_free = !self.slots.contains_key(&wanted);
            return is_free.then_some(wanted).ok_or(CreateError::DuplicateId);
        }
        while self.slots.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        Ok(id)
    }
}
