//! All revisions in order, each with its events: what the collector was sent.
//!
//! A timeline is taken only if it is possible at all: no revision is missing,
//! and each event follows from those before (create revision, version, previous
//! value). Since the collector is a watcher like others, the final state of the
//! members and every acknowledged write are compared with it.

use std::collections::BTreeMap;

use bytes::Bytes;
use stele::proto::client::mvccpb::event::EventType;
use stele::proto::client::mvccpb::{Event, KeyValue};

use crate::record::{Content, Watch};
use crate::support::operation::State;

/// A store begins at revision 1, so the first events are those of revision 2.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    revisions: Vec<Vec<Event>>,
}

impl Timeline {
    /// From the watches of the collector, which resumed one another.
    pub fn collect(watches: &[Watch]) -> Result<Timeline, String> {
        let mut revisions: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
        for watch in watches {
            // A stream may end within a revision; the next one repeats it.
            let mut sent: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
            for response in &watch.responses {
                match &response.content {
                    Content::Events { events, .. } => {
                        for event in events {
                            sent.entry(revision_of(event))
                                .or_default()
                                .push(event.clone());
                        }
                    }
                    Content::Compacted { compact_revision } => {
                        return Err(format!(
                            "the collector was told that {compact_revision} is compacted, \
                             it had asked for {}",
                            watch.start_revision
                        ));
                    }
                    _ => {}
                }
            }
            for (revision, events) in sent {
                match revisions.get(&revision) {
                    Some(known) if !is_same(known, &events) => {
                        return Err(format!(
                            "revision {revision} was sent as {known:?} and, by member {}, \
                             as {events:?}",
                            watch.member
                        ));
                    }
                    _ => drop(revisions.insert(revision, events)),
                }
            }
        }
        for (expected, revision) in (2..).zip(revisions.keys()) {
            if expected != *revision {
                return Err(format!("the collector was not sent revision {expected}"));
            }
        }
        Timeline::new(revisions.into_values().collect())
    }

    /// From the events of revision 2, 3 and so on.
    /// Previous values that are missing are filled in: whether they came is
    /// checked with the watches, of which the collector's are some.
    pub fn new(mut revisions: Vec<Vec<Event>>) -> Result<Timeline, String> {
        let mut state = State::new();
        for (revision, events) in (2..).zip(&mut revisions) {
            for event in events {
                replay(&mut state, revision, event)
                    .map_err(|reason| format!("revision {revision}: {reason} in {event:?}"))?;
            }
        }
        Ok(Timeline { revisions })
    }

    pub fn last(&self) -> i64 {
        1 + i64::try_from(self.revisions.len()).expect("few revisions")
    }

    /// Each revision with its events, in order.
    pub fn revisions(&self) -> impl Iterator<Item = (i64, &[Event])> {
        (2..).zip(self.revisions.iter().map(Vec::as_slice))
    }

    pub fn events(&self, revision: i64) -> &[Event] {
        let index = usize::try_from(revision - 2).ok();
        index
            .and_then(|index| self.revisions.get(index))
            .map_or(&[], Vec::as_slice)
    }

    /// All keys as they were at a revision.
    pub fn state_at(&self, revision: i64) -> State {
        let mut state = State::new();
        for (_, events) in self.revisions().take_while(|(at, _)| *at <= revision) {
            apply(&mut state, events);
        }
        state
    }
}

/// Carries checked events out.
pub fn apply(state: &mut State, events: &[Event]) {
    for event in events {
        let Some(kv) = &event.kv else { continue };
        if is_put(event) {
            state.insert(kv.key.clone(), kv.clone());
        } else {
            state.remove(&kv.key);
        }
    }
}

/// The same changes, whatever is known of the values before.
fn is_same(one: &[Event], other: &[Event]) -> bool {
    let change = |event: &Event| (event.r#type, event.kv.clone());
    one.iter().map(change).eq(other.iter().map(change))
}

pub fn is_put(event: &Event) -> bool {
    event.r#type == i32::from(EventType::Put)
}

pub fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

pub fn key_of(event: &Event) -> &Bytes {
    static NONE: Bytes = Bytes::new();
    event.kv.as_ref().map_or(&NONE, |kv| &kv.key)
}

/// Carries an event out after checking that it may follow.
fn replay(state: &mut State, revision: i64, event: &mut Event) -> Result<(), &'static str> {
    if event.prev_kv.is_none() {
        event.prev_kv = state.get(key_of(event)).cloned();
    }
    let kv = event.kv.as_ref().ok_or("no key")?;
    let previous = state.get(&kv.key);
    if event.prev_kv.as_ref() != previous {
        return Err("another previous value");
    }
    if kv.mod_revision != revision {
        return Err("another revision");
    }
    let expected = if is_put(event) {
        KeyValue {
            create_revision: previous.map_or(revision, |kv| kv.create_revision),
            version: previous.map_or(0, |kv| kv.version) + 1,
            ..kv.clone()
        }
    } else {
        if previous.is_none() {
            return Err("nothing to delete");
        }
        KeyValue {
            key: kv.key.clone(),
            mod_revision: revision,
            ..KeyValue::default()
        }
    };
    if *kv != expected {
        return Err("another creation or version");
    }
    apply(state, std::slice::from_ref(event));
    Ok(())
}
