//! The checks themselves: a small trial without fault passes, and each fault
//! that is planted in it is found, by the check that is there for it.

use std::time::Duration;

use bytes::Bytes;
use stele::proto::client::mvccpb::{Event, KeyValue};

use super::leases;
use super::linear::{self, Sighting};
use super::timeline::Timeline;
use crate::record::{Content, Operation, Outcome, Read, Request, Response, Spec, Watch};
use crate::support::operation::{Change, Intent, State};
use crate::support::read_back::EVERYTHING;

fn at(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn put(key: &'static str, value: &'static str, lease: i64) -> Change {
    Change::Put {
        key: key.into(),
        value: value.into(),
        lease,
    }
}

fn delete(key: &'static str) -> Change {
    Change::Delete {
        key: key.into(),
        end: Bytes::new(),
    }
}

/// The writes of the trial; revision 2, 3 and so on, each at its revision times
/// 100 ms and answered 50 ms later.
fn intents() -> Vec<Intent> {
    let write = |changes: &[Change]| Intent::Write(changes.to_vec());
    vec![
        write(&[put("a", "1", 0)]),
        write(&[put("a", "2", 0), put("b", "2", 0)]),
        Intent::Increment {
            key: "a".into(),
            seen: 3,
            value: "3".into(),
        },
        write(&[delete("a")]),
        write(&[put("a", "4", 0)]),
        write(&[put("c", "5", 7)]),
        Intent::Revoke { lease: 7 },
    ]
}

fn events() -> Vec<Vec<Event>> {
    let mut state = State::new();
    (2..)
        .zip(intents())
        .map(|(revision, intent)| intent.apply(&mut state, revision))
        .collect()
}

pub fn timeline() -> Timeline {
    Timeline::new(events()).unwrap()
}

fn operation(request: Request, invoked: u64, returned: u64, outcome: Outcome) -> Operation {
    Operation {
        client: 0,
        member: 0,
        request,
        invoked: at(invoked),
        returned: at(returned),
        outcome,
    }
}

fn writes() -> Vec<Operation> {
    (2..)
        .zip(intents())
        .map(|(revision, intent)| {
            let invoked = u64::try_from(revision).unwrap() * 100;
            let outcome = Outcome::Wrote { revision };
            operation(Request::Write(intent), invoked, invoked + 50, outcome)
        })
        .collect()
}

fn unknown() -> Outcome {
    Outcome::Unknown("lost".to_owned())
}

/// A linearizable or serializable read of everything, 10 ms after the write of
/// `when` was answered, that shows `revision`.
fn read(when: u64, revision: i64, is_serializable: bool) -> Operation {
    let read = Read {
        key: EVERYTHING,
        end: EVERYTHING,
        revision: 0,
        is_serializable,
    };
    let kvs: Vec<KeyValue> = timeline().state_at(revision).into_values().collect();
    let outcome = Outcome::Shown { revision, kvs };
    operation(
        Request::Read(read),
        when * 100 + 60,
        when * 100 + 70,
        outcome,
    )
}

fn linear(operations: &[Operation]) -> Result<(), String> {
    linear::check(&timeline(), operations, &[]).map(drop)
}

#[track_caller]
pub fn assert_found(result: Result<(), String>, words: &str) {
    let reason = result.expect_err("the planted fault is not found");
    assert!(reason.contains(words), "found for another reason: {reason}");
}

#[test]
fn a_right_history_is_accepted() {
    let mut operations = writes();
    operations.extend((2..9).map(|when| read(when, i64::try_from(when).unwrap(), false)));
    // Late, and allowed to be.
    operations.push(read(6, 3, true));
    assert_eq!(linear(&operations), Ok(()));
}

#[test]
fn requests_of_unknown_outcome_may_have_happened_or_not() {
    let mut operations = writes();
    for operation in &mut operations {
        operation.outcome = unknown();
    }
    let lost = Request::Write(Intent::Write(vec![put("d", "never", 0)]));
    operations.push(operation(lost, 100, 200, unknown()));
    let found = linear::check(&timeline(), &operations, &[]);
    assert_eq!(found.map(|found| found.settled), Ok(7));
}

#[test]
fn a_lost_write_is_found() {
    let mut operations = writes();
    let request = Request::Write(Intent::Write(vec![put("d", "6", 0)]));
    operations.push(operation(request, 900, 950, Outcome::Wrote { revision: 9 }));
    assert_found(linear(&operations), "lost");
    // In the middle it shows as a revision that belongs to another.
    let mut operations = writes();
    operations[1].request = Request::Write(Intent::Write(vec![put("d", "6", 0)]));
    assert_found(linear(&operations), "was acknowledged for");
}

#[test]
fn a_write_that_was_refused_or_never_asked_for_is_found() {
    let mut operations = writes();
    operations[0].outcome = Outcome::Refused("no".to_owned());
    assert_found(linear(&operations), "no request");
    let mut operations = writes();
    operations.remove(3);
    assert_found(linear(&operations), "no request");
}

#[test]
fn a_request_that_happened_twice_is_found() {
    let mut twice = events();
    let mut state = timeline().state_at(8);
    twice.push(intents()[0].apply(&mut state, 9));
    let timeline = Timeline::new(twice).unwrap();
    let mut operations = writes();
    operations[0].outcome = unknown();
    assert_found(
        linear::check(&timeline, &operations, &[]).map(drop),
        "happened already",
    );
}

#[test]
fn half_a_transaction_is_found() {
    let mut half = events();
    half[1].pop();
    let timeline = Timeline::new(half).unwrap();
    for outcome in [Outcome::Wrote { revision: 3 }, unknown()] {
        let mut operations = writes();
        operations[1].outcome = outcome;
        assert!(linear::check(&timeline, &operations, &[]).is_err());
    }
}

#[test]
fn a_swap_whose_condition_did_not_hold_is_found() {
    let mut operations = writes();
    operations[2].request = Request::Write(Intent::Increment {
        key: "a".into(),
        seen: 2,
        value: "3".into(),
    });
    assert_found(linear(&operations), "was acknowledged for");
    operations[2].outcome = unknown();
    assert_found(linear(&operations), "condition did not hold");
}

#[test]
fn a_stale_read_is_found() {
    let mut operations = writes();
    operations.push(read(6, 5, false));
    assert_found(linear(&operations), "had been seen before");
    // What a watch or a serializable read has shown is seen too.
    let mut operations = writes();
    operations[4].outcome = unknown();
    operations.push(read(6, 5, false));
    assert_eq!(linear(&operations), Ok(()));
    let sightings: [Sighting; 1] = [(at(655), 6)];
    assert_found(
        linear::check(&timeline(), &operations, &sightings).map(drop),
        "had been seen before",
    );
    operations.push(Operation {
        invoked: at(651),
        returned: at(655),
        ..read(6, 6, true)
    });
    assert_found(linear(&operations), "had been seen before");
}

#[test]
fn a_read_of_what_was_not_there_is_found() {
    let mut operations = writes();
    let mut wrong = read(5, 5, false);
    wrong.outcome = Outcome::Shown {
        revision: 5,
        kvs: timeline().state_at(4).into_values().collect(),
    };
    operations.push(wrong);
    assert_found(linear(&operations), "something else than shown");
    let mut operations = writes();
    operations.push(read(8, 8, false));
    if let Outcome::Shown { revision, .. } = &mut operations[7].outcome {
        *revision = 9;
    }
    assert_found(linear(&operations), "the history ends");
}

#[test]
fn a_write_below_what_was_seen_or_seen_before_it_began_is_found() {
    let mut operations = writes();
    operations[2].invoked = at(555);
    operations[2].returned = at(560);
    assert_found(linear(&operations), "before its request");
    let sightings: [Sighting; 1] = [(at(410), 5)];
    let mut operations = writes();
    operations[3].invoked = at(405);
    operations[2].invoked = at(415);
    assert_found(
        linear::check(&timeline(), &operations, &sightings).map(drop),
        "before its request",
    );
}

#[test]
fn a_delete_of_what_was_there_is_no_deletion_of_nothing() {
    let mut operations = writes();
    let request = Request::Write(Intent::Write(vec![delete("b")]));
    let outcome = Outcome::Unchanged { revision: 6 };
    operations.push(operation(request, 660, 670, outcome));
    assert_found(linear(&operations), "something else than shown");
}

#[test]
fn a_timeline_with_a_gap_or_a_wrong_event_is_refused() {
    let mut lacking = watch(0, Spec { ..all() });
    lacking.responses.remove(3);
    assert!(
        Timeline::collect(&[lacking])
            .unwrap_err()
            .contains("was not sent revision")
    );
    let mut bare = watch(0, all());
    events_of(&mut bare.responses[3])[0].prev_kv = None;
    assert!(Timeline::collect(&[bare]).is_ok());
    let mut wrong = events();
    wrong[2][0].prev_kv.as_mut().unwrap().version = 7;
    assert!(Timeline::new(wrong).is_err());
    let mut wrong = events();
    wrong[2][0].kv.as_mut().unwrap().version = 1;
    assert!(Timeline::new(wrong).is_err());
}

// Leases.

fn with_leases(more: Vec<Operation>, tolerance: Duration) -> Result<(), String> {
    let grant = Request::Write(Intent::Grant { lease: 7 });
    let granted = Outcome::Lives { ttl_seconds: 3 };
    let mut operations = writes();
    operations.push(operation(grant, 650, 660, granted));
    operations.extend(more);
    let timeline = timeline();
    let found = linear::check(&timeline, &operations, &[])?;
    leases::check(&operations, &found, &[], tolerance).map(drop)
}

fn keep_alive(invoked: u64, ttl_seconds: i64) -> Operation {
    let request = Request::KeepAlive { lease: 7 };
    operation(
        request,
        invoked,
        invoked + 10,
        Outcome::Lives { ttl_seconds },
    )
}

#[test]
fn a_renewal_of_a_revoked_lease_is_found() {
    let check = |invoked, tolerance| with_leases(vec![keep_alive(invoked, 3)], at(tolerance));
    assert_eq!(check(700, 0), Ok(()));
    assert_eq!(check(845, 0), Ok(()));
    assert_found(check(860, 0), "then came");
    assert_eq!(check(860, 50), Ok(()));
    assert_found(check(960, 50), "then came");
}

#[test]
fn a_lease_that_ends_too_early_is_found() {
    let check = |seen: u64| {
        let grant = Request::Write(Intent::Grant { lease: 7 });
        let mut operations = writes();
        // Nobody has revoked it; revision 8 is its end.
        operations.pop();
        let granted = Outcome::Lives { ttl_seconds: 3 };
        operations.push(operation(grant, 650, 660, granted));
        operations.push(keep_alive(800, 3));
        let sightings: [Sighting; 1] = [(at(seen), 8)];
        let timeline = timeline();
        let found = linear::check(&timeline, &operations, &sightings)?;
        leases::check(&operations, &found, &sightings, Duration::ZERO).map(drop)
    };
    assert_eq!(check(3_900), Ok(()));
    assert_found(check(3_700), "should live until");
}

#[test]
fn a_revoke_that_came_too_late_has_ended_no_lease() {
    let mut operations = writes();
    operations[6].invoked = at(4_000);
    operations[6].outcome = unknown();
    let sightings: [Sighting; 1] = [(at(3_900), 8)];
    let found = linear::check(&timeline(), &operations, &sightings).unwrap();
    assert!(matches!(found.causes[&8], linear::Cause::Expiry(7)));
}

#[test]
fn a_lease_that_is_missed_and_comes_back_is_found() {
    assert_found(
        with_leases(vec![keep_alive(700, 0), keep_alive(720, 3)], Duration::ZERO),
        "then came",
    );
}

// Right watches, for the tests of the timeline and of watches.

pub fn all() -> Spec {
    Spec {
        key: EVERYTHING,
        end: EVERYTHING,
        has_previous: true,
        is_without_puts: false,
        is_without_deletes: false,
        is_fragmented: false,
        is_notified: true,
    }
}

pub fn response(revision: i64, content: Content) -> Response {
    Response {
        received: at(u64::try_from(revision).unwrap() * 100 + 40),
        revision,
        content,
    }
}

pub fn sent(events: &[Event]) -> Content {
    Content::Events {
        events: events.to_vec(),
        is_partial: false,
    }
}

/// A right watch: a response a revision, then progress.
pub fn watch(start_revision: i64, spec: Spec) -> Watch {
    let mut responses = vec![response(1, Content::Created)];
    for (revision, events) in timeline().revisions() {
        if revision >= start_revision {
            responses.push(response(revision, sent(events)));
        }
    }
    responses.push(response(8, Content::Progress));
    Watch {
        watcher: 0,
        member: 0,
        spec,
        start_revision,
        responses,
    }
}

pub fn events_of(response: &mut Response) -> &mut Vec<Event> {
    match &mut response.content {
        Content::Events { events, .. } => events,
        other => panic!("no events: {other:?}"),
    }
}
