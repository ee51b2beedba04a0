//! All that is known to be in the store, and whether what a server shows after
//! a crash follows from it.
//!
//! [`History::advance`] takes the events of the revisions since the last check
//! and demands that each revision is exactly one request: the acknowledged one
//! that was told this revision, or one in doubt that no other revision has used
//! up. So nothing acknowledged is lost, nothing unacknowledged is half there,
//! and nothing is there that nobody asked for. What readers saw meanwhile must
//! fit too: a read shows only what will survive.

use std::collections::{BTreeMap, BTreeSet};

use stele::proto::client::mvccpb::{Event, KeyValue};

use crate::support::operation::{Answer, Intent, Operation, State};

/// What a reader has seen during the load.
#[derive(Clone, Debug)]
pub enum Observation {
    /// All keys, as of a revision.
    Everything { revision: i64, kvs: Vec<KeyValue> },
    /// Events of a watcher of everything, without previous values.
    Events(Vec<Event>),
}

/// Revision by revision from the beginning. A new store is at revision 1.
#[derive(Clone, Default)]
pub struct History {
    state: State,
    /// The events of revision 2, 3 and so on.
    revisions: Vec<Vec<Event>>,
    leases: BTreeSet<i64>,
}

impl History {
    pub fn revision(&self) -> i64 {
        1 + i64::try_from(self.revisions.len()).expect("few revisions")
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn leases(&self) -> &BTreeSet<i64> {
        &self.leases
    }

    /// The events after `revision`.
    pub fn events_after(&self, revision: i64) -> &[Vec<Event>] {
        let skipped = usize::try_from(revision - 1).expect("revisions begin with 1");
        &self.revisions[skipped.min(self.revisions.len())..]
    }

    /// The state as it was at `revision`.
    pub fn state_at(&self, revision: i64) -> State {
        let mut state = State::new();
        let count = usize::try_from(revision - 1).expect("revisions begin with 1");
        for event in self.revisions[..count].iter().flatten() {
            replay(&mut state, event);
        }
        state
    }

    /// Adds the revisions that the store has made since, given as the events
    /// it shows, and `operations`, all that was asked for since.
    pub fn advance(
        &mut self,
        shown: Vec<Vec<Event>>,
        operations: &[Operation],
        observations: &[Observation],
    ) -> Result<(), String> {
        let verified = self.revision();
        let mut acknowledged = BTreeMap::new();
        let mut in_doubt = Vec::new();
        for operation in operations {
            match operation.answer {
                Answer::Revision(revision) => {
                    if let Some(other) = acknowledged.insert(revision, &operation.intent) {
                        let intent = &operation.intent;
                        return Err(format!("revision {revision} for {other:?} and {intent:?}"));
                    }
                }
                Answer::InDoubt => in_doubt.push(&operation.intent),
                Answer::NoRevision => {}
            }
        }
        let snapshots = snapshots(observations, verified)?;
        self.compare_snapshots(&snapshots)?;
        for events in shown {
            let revision = self.revision() + 1;
            match acknowledged.remove(&revision) {
                Some(intent) => {
                    let expected = intent.apply(&mut self.state, revision);
                    if expected != events {
                        return Err(format!(
                            "revision {revision} was acknowledged for {intent:?}\
                             \n  expected {expected:?}\n  shown    {events:?}"
                        ));
                    }
                }
                None => self.settle(&mut in_doubt, revision, &events)?,
            }
            self.revisions.push(events);
            self.compare_snapshots(&snapshots)?;
        }
        if let Some((revision, intent)) = acknowledged.first_key_value() {
            let (lost, last) = (acknowledged.len(), self.revision());
            return Err(format!(
                "{lost} acknowledged writes are lost: the store ends at revision {last}, \
                 the first lost one is {revision}, {intent:?}"
            ));
        }
        self.compare_observed(observations)
    }

    /// Finds the request in doubt that has made these events.
    fn settle(
        &mut self,
        in_doubt: &mut Vec<&Intent>,
        revision: i64,
        events: &[Event],
    ) -> Result<(), String> {
        for index in 0..in_doubt.len() {
            let mut state = self.state.clone();
            if in_doubt[index].apply(&mut state, revision) == events {
                in_doubt.swap_remove(index);
                self.state = state;
                return Ok(());
            }
        }
        Err(format!(
            "revision {revision} is no request that was sent, or only a part of one: {events:?}\
             \n  in doubt: {in_doubt:?}"
        ))
    }

    fn compare_snapshots(&self, snapshots: &BTreeMap<i64, Vec<&[KeyValue]>>) -> Result<(), String> {
        let revision = self.revision();
        for kvs in snapshots.get(&revision).into_iter().flatten() {
            if !self.state.values().eq(kvs.iter()) {
                return Err(format!(
                    "a read at revision {revision} showed something else"
                ));
            }
        }
        Ok(())
    }

    /// Whatever a reader saw must still be there.
    fn compare_observed(&self, observations: &[Observation]) -> Result<(), String> {
        let last = self.revision();
        for observation in observations {
            match observation {
                Observation::Everything { revision, .. } if *revision > last => {
                    return Err(format!(
                        "a read showed revision {revision}; {last} is the last"
                    ));
                }
                Observation::Everything { .. } => {}
                Observation::Events(events) => self.compare_watched(events)?,
            }
        }
        Ok(())
    }

    fn compare_watched(&self, events: &[Event]) -> Result<(), String> {
        let Some(first) = events.first() else {
            return Ok(());
        };
        let first = revision_of(first);
        let mut known = self.events_after(first - 1).iter().flatten();
        for event in events {
            let expected = known.next().map(without_previous);
            if expected.as_ref() != Some(event) {
                return Err(format!(
                    "a watcher saw {event:?}, the store has {expected:?}"
                ));
            }
        }
        Ok(())
    }

    /// Takes over which leases there are, after checking it against what was
    /// asked for.
    pub fn advance_leases(
        &mut self,
        shown: &BTreeSet<i64>,
        operations: &[Operation],
    ) -> Result<(), String> {
        let mut certain = self.leases.clone();
        let mut open = BTreeSet::new();
        for operation in operations {
            match (&operation.intent, operation.answer) {
                (Intent::Grant { lease } | Intent::Revoke { lease }, Answer::InDoubt) => {
                    open.insert(*lease);
                }
                (Intent::Grant { lease }, _) => {
                    certain.insert(*lease);
                }
                (Intent::Revoke { lease }, _) => {
                    certain.remove(lease);
                }
                _ => {}
            }
        }
        if let Some(lease) = certain
            .symmetric_difference(shown)
            .find(|id| !open.contains(id))
        {
            let is_shown = shown.contains(lease);
            return Err(format!(
                "lease {lease}: there is {is_shown}, should be {}",
                !is_shown
            ));
        }
        self.leases.clone_from(shown);
        Ok(())
    }
}

fn snapshots(
    observations: &[Observation],
    verified: i64,
) -> Result<BTreeMap<i64, Vec<&[KeyValue]>>, String> {
    let mut snapshots = BTreeMap::<_, Vec<_>>::new();
    for observation in observations {
        if let Observation::Everything { revision, kvs } = observation {
            if *revision < verified {
                return Err(format!(
                    "a read showed revision {revision} after {verified}"
                ));
            }
            snapshots.entry(*revision).or_default().push(kvs.as_slice());
        }
    }
    Ok(snapshots)
}

fn replay(state: &mut State, event: &Event) {
    let kv = event
        .kv
        .clone()
        .expect("checked when the event was taken in");
    if event.r#type == 0 {
        state.insert(kv.key.clone(), kv);
    } else {
        state.remove(&kv.key);
    }
}

fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

fn without_previous(event: &Event) -> Event {
    Event {
        prev_kv: None,
        ..event.clone()
    }
}

/// Splits events into revisions, which must follow `verified` without a gap.
pub fn by_revision(events: Vec<Event>, verified: i64) -> Result<Vec<Vec<Event>>, String> {
    let mut revisions: Vec<Vec<Event>> = Vec::new();
    let mut last = verified;
    for event in events {
        let revision = revision_of(&event);
        if revision == last + 1 {
            revisions.push(Vec::new());
            last = revision;
        }
        match revisions.last_mut() {
            Some(events) if revision == last => events.push(event),
            _ => return Err(format!("revision {revision} follows {last}")),
        }
    }
    Ok(revisions)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::support::operation::Change;

    fn put(key: &'static str, value: &'static str) -> Change {
        Change::Put {
            key: key.into(),
            value: value.into(),
            lease: 0,
        }
    }

    fn write(changes: &[Change]) -> Intent {
        Intent::Write(changes.to_vec())
    }

    fn acknowledged(intent: Intent, revision: i64) -> Operation {
        Operation {
            intent,
            answer: Answer::Revision(revision),
        }
    }

    fn in_doubt(intent: Intent) -> Operation {
        Operation {
            intent,
            answer: Answer::InDoubt,
        }
    }

    /// What a right server shows after these requests.
    fn shown(intents: &[Intent]) -> Vec<Vec<Event>> {
        let mut state = State::new();
        (2..)
            .zip(intents)
            .map(|(revision, intent)| intent.apply(&mut state, revision))
            .collect()
    }

    fn two_puts() -> Intent {
        write(&[put("a", "1"), put("b", "1")])
    }

    #[test]
    fn what_was_acknowledged_is_accepted_with_or_without_what_was_not() {
        let first = write(&[put("a", "0")]);
        let operations = [acknowledged(first.clone(), 2), in_doubt(two_puts())];
        for intents in [vec![first.clone()], vec![first, two_puts()]] {
            let mut history = History::default();
            assert_eq!(history.advance(shown(&intents), &operations, &[]), Ok(()));
            let last = history.revision();
            assert_eq!(last, 1 + i64::try_from(intents.len()).unwrap());
            assert_eq!(&history.state_at(last), history.state());
        }
    }

    #[test]
    fn a_lost_write_is_found() {
        let first = write(&[put("a", "0")]);
        let operations = [acknowledged(first.clone(), 2), acknowledged(two_puts(), 3)];
        let result = History::default().advance(shown(&[first]), &operations, &[]);
        assert!(result.unwrap_err().contains("lost"));
    }

    #[test]
    fn half_a_txn_is_found() {
        let mut half = shown(&[two_puts()]);
        half[0].pop();
        for operation in [acknowledged(two_puts(), 2), in_doubt(two_puts())] {
            assert!(
                History::default()
                    .advance(half.clone(), &[operation], &[])
                    .is_err()
            );
        }
    }

    #[test]
    fn a_request_that_took_place_twice_is_found() {
        let intents = [two_puts(), two_puts()];
        let result = History::default().advance(shown(&intents), &[in_doubt(two_puts())], &[]);
        assert!(result.unwrap_err().contains("no request"));
    }

    #[test]
    fn an_increment_from_what_is_not_there_is_found() {
        let increment = |seen| {
            let (key, value) = (Bytes::from("n"), Bytes::from("2"));
            Intent::Increment { key, seen, value }
        };
        let first = write(&[put("n", "1")]);
        let events = shown(&[first.clone(), increment(2)]);
        let check = |seen| {
            let operations = [
                acknowledged(first.clone(), 2),
                acknowledged(increment(seen), 3),
            ];
            History::default().advance(events.clone(), &operations, &[])
        };
        assert_eq!(check(2), Ok(()));
        assert!(check(1).is_err());
    }

    #[test]
    fn a_read_of_what_did_not_survive_is_found() {
        let events = shown(&[two_puts()]);
        let check = |observation| {
            History::default().advance(events.clone(), &[in_doubt(two_puts())], &[observation])
        };
        let kvs: Vec<KeyValue> = events[0]
            .iter()
            .filter_map(|event| event.kv.clone())
            .collect();
        let everything = |revision, kvs: &[KeyValue]| Observation::Everything {
            revision,
            kvs: kvs.to_vec(),
        };
        assert_eq!(check(everything(2, &kvs)), Ok(()));
        assert_eq!(check(everything(1, &[])), Ok(()));
        assert!(check(everything(2, &kvs[..1])).is_err());
        assert!(check(everything(3, &kvs)).is_err());

        let watched: Vec<Event> = events[0].iter().map(without_previous).collect();
        assert_eq!(check(Observation::Events(watched.clone())), Ok(()));
        let mut more = watched.clone();
        more.push(watched[0].clone());
        assert!(check(Observation::Events(more)).is_err());
        assert!(check(Observation::Events(watched[1..].to_vec())).is_err());
    }

    #[test]
    fn a_gap_between_revisions_is_found() {
        let events: Vec<Event> = shown(&[two_puts(), write(&[put("c", "1")])]).concat();
        assert_eq!(
            by_revision(events.clone(), 1).map(|revisions| revisions.len()),
            Ok(2)
        );
        assert!(by_revision(events[2..].to_vec(), 1).is_err());
        assert!(by_revision(events.clone(), 0).is_err());
        assert!(by_revision([&events[2..], &events[..2]].concat(), 2).is_err());
    }

    #[test]
    fn lost_and_returned_leases_are_found() {
        let grant = |lease, answer| Operation {
            intent: Intent::Grant { lease },
            answer,
        };
        let revoke = |lease, answer| Operation {
            intent: Intent::Revoke { lease },
            answer,
        };
        let operations = [
            grant(1, Answer::NoRevision),
            grant(2, Answer::InDoubt),
            grant(3, Answer::NoRevision),
            revoke(3, Answer::Revision(2)),
        ];
        let check = |shown: &[i64]| {
            let shown = shown.iter().copied().collect();
            History::default().advance_leases(&shown, &operations)
        };
        assert_eq!(check(&[1]), Ok(()));
        assert_eq!(check(&[1, 2]), Ok(()));
        assert!(check(&[2]).is_err());
        assert!(check(&[1, 3]).is_err());
    }
}
