//! Linearizability of all requests, exactly and in one pass.
//!
//! In general that is a search over orders (what porcupine and the crates like
//! it do, at exponential cost). Here no search is needed, because etcd says
//! where each request stands: a write at the revision it made, anything else
//! at the revision in its header. So there is one candidate order, and it is
//! right if and only if
//!
//! 1. each revision is exactly what one request did to the state before, a
//!    request that was acknowledged with that revision or one whose outcome is
//!    unknown, and no request did two;
//! 2. each read shows the state of the revision it names;
//! 3. no request that began after a revision had been seen stands before it, a
//!    write not even at it; and no revision was seen before its request began.
//!
//! Serializable reads may be late, so only 2 and the second half of 3 bind
//! them; but what one has shown counts as seen, as do events of watches.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use stele::proto::client::mvccpb::{Event, KeyValue};

use super::timeline::{Timeline, apply};
use crate::record::{Operation, Outcome, Read, Request};
use crate::support::operation::{Change, Intent, State};

/// A moment at which somebody had seen a revision.
pub type Sighting = (Duration, i64);

/// Which request made a revision.
#[derive(Clone, Copy, Debug)]
pub enum Cause<'a> {
    Request(&'a Operation),
    /// Nobody: this lease has ended by itself.
    Expiry(i64),
}

/// What was found out on the way.
#[derive(Debug, Default)]
pub struct Found<'a> {
    pub causes: BTreeMap<i64, Cause<'a>>,
    /// How many requests with an unknown outcome have happened.
    pub settled: usize,
}

pub fn check<'a>(
    timeline: &Timeline,
    operations: &'a [Operation],
    sightings: &[Sighting],
) -> Result<Found<'a>, String> {
    let mut claims = Claims::gather(operations)?;
    let mut views = views(operations);
    let mut found = Found::default();
    let mut state = State::new();
    let seen = Seen::gather(operations, sightings);
    check_views(&mut views, 1, &state)?;
    for (revision, events) in timeline.revisions() {
        let first = seen.first(revision);
        let cause = claims.cause(&state, revision, events, first)?;
        if let Cause::Request(operation) = cause {
            if first.is_some_and(|first| first < operation.invoked) {
                return Err(format!(
                    "revision {revision} was seen at {first:?}, before its request: {operation:?}"
                ));
            }
            found.settled += usize::from(matches!(operation.outcome, Outcome::Unknown(_)));
        }
        found.causes.insert(revision, cause);
        apply(&mut state, events);
        check_views(&mut views, revision, &state)?;
    }
    if let Some((revision, operation)) = claims.acknowledged.first_key_value() {
        return Err(format!(
            "an acknowledged write is lost: {operation:?} made revision {revision}, \
             the history ends at {}",
            timeline.last()
        ));
    }
    if let Some((revision, reads)) = views.first_key_value() {
        return Err(format!(
            "a read shows revision {revision}, the history ends at {}: {:?}",
            timeline.last(),
            reads[0]
        ));
    }
    seen.check_order(operations, &found)?;
    Ok(found)
}

/// Requests that are waiting for the revision they have made.
struct Claims<'a> {
    acknowledged: BTreeMap<i64, &'a Operation>,
    /// Of unknown outcome, by a value they put.
    puts: HashMap<Bytes, &'a Operation>,
    /// Of unknown outcome, the oldest first, by the key.
    deletes: HashMap<Bytes, VecDeque<&'a Operation>>,
    /// Revokes by their lease, those of unknown outcome too.
    revokes: HashMap<i64, Vec<&'a Operation>>,
}

impl<'a> Claims<'a> {
    fn gather(operations: &'a [Operation]) -> Result<Claims<'a>, String> {
        let mut claims = Claims {
            acknowledged: BTreeMap::new(),
            puts: HashMap::new(),
            deletes: HashMap::new(),
            revokes: HashMap::new(),
        };
        for operation in operations {
            let Request::Write(intent) = &operation.request else {
                continue;
            };
            match (&operation.outcome, intent) {
                (Outcome::Wrote { .. } | Outcome::Unknown(_), Intent::Revoke { lease }) => {
                    claims.revokes.entry(*lease).or_default().push(operation);
                }
                (Outcome::Wrote { revision }, _) => {
                    if let Some(other) = claims.acknowledged.insert(*revision, operation) {
                        return Err(format!(
                            "revision {revision} for both {other:?} and {operation:?}"
                        ));
                    }
                }
                (Outcome::Unknown(_), _) => claims.wait(operation, intent),
                _ => {}
            }
        }
        for waiting in claims.deletes.values_mut() {
            waiting
                .make_contiguous()
                .sort_by_key(|operation| operation.invoked);
        }
        Ok(claims)
    }

    fn wait(&mut self, operation: &'a Operation, intent: &Intent) {
        match intent {
            Intent::Write(changes) => {
                let value = changes.iter().find_map(|change| match change {
                    Change::Put { value, .. } => Some(value),
                    Change::Delete { .. } => None,
                });
                match (value, changes.first()) {
                    (Some(value), _) => drop(self.puts.insert(value.clone(), operation)),
                    (None, Some(Change::Delete { key, .. })) => self
                        .deletes
                        .entry(key.clone())
                        .or_default()
                        .push_back(operation),
                    _ => {}
                }
            }
            Intent::Increment { value, .. } => drop(self.puts.insert(value.clone(), operation)),
            Intent::Grant { .. } | Intent::Revoke { .. } => {}
        }
    }

    /// Finds the request that has made these events of the state before.
    /// `seen`: when somebody saw them.
    fn cause(
        &mut self,
        state: &State,
        revision: i64,
        events: &[Event],
        seen: Option<Duration>,
    ) -> Result<Cause<'a>, String> {
        let does = |intent: &Intent| does(intent, state, revision, events);
        if let Some(operation) = self.acknowledged.remove(&revision) {
            return match &operation.request {
                Request::Write(intent) if does(intent) => Ok(Cause::Request(operation)),
                _ => Err(format!(
                    "revision {revision} was acknowledged for {operation:?}, but is {events:?}"
                )),
            };
        }
        if let Some(lease) = lease_that_ended(state, events) {
            if does(&Intent::Revoke { lease }) {
                return Ok(self.end(lease, revision, seen));
            }
            return Err(format!(
                "revision {revision} is only a part of the end of lease {lease}: {events:?}"
            ));
        }
        let value = events.iter().find_map(|event| {
            let kv = event.kv.as_ref()?;
            (!kv.value.is_empty()).then_some(&kv.value)
        });
        let waiting = match value {
            Some(value) => self.puts.remove(value),
            None => self
                .deletes
                .get_mut(super::timeline::key_of(&events[0]))
                .and_then(VecDeque::pop_front),
        };
        match waiting {
            Some(operation) => match &operation.request {
                Request::Write(intent) if does(intent) => Ok(Cause::Request(operation)),
                _ => Err(format!(
                    "revision {revision} is only a part of {operation:?}, \
                     or happened although its condition did not hold: {events:?}"
                )),
            },
            None => Err(format!(
                "revision {revision} is no request whose outcome is open, \
                 or one that has happened already: {events:?}"
            )),
        }
    }

    /// Who ended a lease: a revoke that was told so, one that was told nothing
    /// and came in time, or the server since the lease's time was up.
    fn end(&self, lease: i64, at: i64, seen: Option<Duration>) -> Cause<'a> {
        let requests = self.revokes.get(&lease).map_or(&[][..], Vec::as_slice);
        let told = requests.iter().find(
            |request| matches!(request.outcome, Outcome::Wrote { revision } if revision == at),
        );
        let is_in_time = |request: &Operation| seen.is_none_or(|seen| request.invoked <= seen);
        let open = requests
            .iter()
            .filter(|request| matches!(request.outcome, Outcome::Unknown(_)))
            .find(|request| is_in_time(request));
        match told.or(open) {
            Some(operation) => Cause::Request(operation),
            None => Cause::Expiry(lease),
        }
    }
}

fn does(intent: &Intent, state: &State, revision: i64, events: &[Event]) -> bool {
    intent.apply(&mut state.clone(), revision) == events
}

/// The lease to which all deleted keys were attached, if nothing else happened.
fn lease_that_ended(state: &State, events: &[Event]) -> Option<i64> {
    let lease_of = |event: &Event| {
        let key = super::timeline::key_of(event);
        let is_delete = !super::timeline::is_put(event);
        state.get(key).filter(|_| is_delete).map(|kv| kv.lease)
    };
    let first = lease_of(events.first()?)?;
    let is_same = |event: &Event| lease_of(event) == Some(first);
    (first != 0 && events.iter().all(is_same)).then_some(first)
}

type Views<'a> = BTreeMap<i64, Vec<&'a Operation>>;

/// What was shown, by the revision of the state that it must fit.
fn views(operations: &[Operation]) -> Views<'_> {
    let mut views = Views::new();
    for operation in operations {
        let at = match (&operation.request, &operation.outcome) {
            (Request::Read(read), Outcome::Shown { .. }) if read.revision > 0 => read.revision,
            (_, Outcome::Shown { revision, .. } | Outcome::Unchanged { revision })
            | (Request::Write(Intent::Revoke { .. }), Outcome::Wrote { revision }) => *revision,
            _ => continue,
        };
        views.entry(at).or_default().push(operation);
    }
    views
}

fn check_views(views: &mut Views<'_>, revision: i64, state: &State) -> Result<(), String> {
    for operation in views.remove(&revision).unwrap_or_default() {
        if !is_shown(operation, state) {
            return Err(format!(
                "at revision {revision} there was something else than shown: {operation:?}"
            ));
        }
    }
    Ok(())
}

/// Whether the answer fits the state it names.
fn is_shown(operation: &Operation, state: &State) -> bool {
    let is_same = |kvs: &[KeyValue], read: &Read| {
        let expected = state.values().filter(|kv| read.contains(&kv.key));
        kvs.iter().eq(expected)
    };
    match (&operation.request, &operation.outcome) {
        (Request::Read(read), Outcome::Shown { kvs, .. }) => is_same(kvs, read),
        (Request::Write(Intent::Increment { key, seen, .. }), Outcome::Shown { kvs, .. }) => {
            let current = state.get(key);
            current.map_or(0, |kv| kv.mod_revision) != *seen && kvs.iter().eq(current)
        }
        (Request::Write(Intent::Revoke { lease }), _) => {
            state.values().all(|kv| kv.lease != *lease)
        }
        (Request::Write(intent), Outcome::Unchanged { .. }) => {
            intent.apply(&mut state.clone(), 0).is_empty()
        }
        _ => false,
    }
}

/// When which revision had been seen by somebody.
struct Seen {
    /// The highest revision seen up to each moment, ascending in both.
    highest: Vec<Sighting>,
}

impl Seen {
    fn gather(operations: &[Operation], sightings: &[Sighting]) -> Seen {
        let mut all = sightings.to_vec();
        for operation in operations {
            let revision = match operation.outcome {
                Outcome::Wrote { revision }
                | Outcome::Unchanged { revision }
                | Outcome::Shown { revision, .. } => revision,
                _ => continue,
            };
            all.push((operation.returned, revision));
        }
        all.sort_unstable();
        let mut highest: Vec<Sighting> = Vec::new();
        for (time, revision) in all {
            if highest.last().is_none_or(|(_, known)| revision > *known) {
                highest.push((time, revision));
            }
        }
        Seen { highest }
    }

    /// The highest revision that somebody had seen before that moment.
    fn before(&self, time: Duration) -> i64 {
        let count = self.highest.partition_point(|(seen, _)| *seen < time);
        count.checked_sub(1).map_or(0, |last| self.highest[last].1)
    }

    /// When that revision or a later one was seen first.
    fn first(&self, revision: i64) -> Option<Duration> {
        let index = self.highest.partition_point(|(_, seen)| *seen < revision);
        self.highest.get(index).map(|(time, _)| *time)
    }

    /// The first half of the third rule.
    fn check_order(&self, operations: &[Operation], found: &Found<'_>) -> Result<(), String> {
        for operation in operations {
            let seen = self.before(operation.invoked);
            let is_late = match (&operation.request, &operation.outcome) {
                // Bound to nothing but its revision.
                (Request::Read(read), _) if read.is_serializable => false,
                (_, Outcome::Shown { revision, .. } | Outcome::Unchanged { revision }) => {
                    *revision < seen
                }
                (_, Outcome::Wrote { revision }) => {
                    let is_its_own = match found.causes.get(revision) {
                        Some(Cause::Request(cause)) => std::ptr::eq(*cause, operation),
                        _ => false,
                    };
                    *revision < seen || (is_its_own && *revision == seen)
                }
                _ => false,
            };
            if is_late {
                return Err(format!(
                    "revision {seen} had been seen before this began: {operation:?}"
                ));
            }
        }
        Ok(())
    }
}

/// When a revision was seen first, for other checks.
pub fn first_seen(
    operations: &[Operation],
    sightings: &[Sighting],
) -> impl Fn(i64) -> Option<Duration> {
    let seen = Seen::gather(operations, sightings);
    move |revision| seen.first(revision)
}
