//! Faults planted in watches: each breaks one of the nine rules, by whose name
//! it is found.

use bytes::Bytes;

use super::planted::{all, assert_found, events_of, response, sent, timeline, watch};
use super::watches::{self, Allowances};
use crate::record::{Content, Response, Spec, Watch};

fn check(watch: Watch) -> Result<(), String> {
    watches::check(&timeline(), &[watch], Allowances::default()).map(drop)
}

fn after_compaction(compacted: i64) -> Allowances {
    Allowances {
        compacted,
        ..Allowances::default()
    }
}

/// A right watch of everything with something changed.
fn changed(change: impl FnOnce(&mut Vec<Response>)) -> Result<(), String> {
    let mut watch = watch(0, all());
    change(&mut watch.responses);
    check(watch)
}

#[test]
fn right_watches_are_accepted() {
    for start in [0, 1, 2, 5] {
        assert_eq!(check(watch(start, all())), Ok(()));
    }
    // Fragments.
    let mut parts = watch(0, all());
    parts.spec.is_fragmented = true;
    let second = events_of(&mut parts.responses[2]).pop().unwrap();
    if let Content::Events { is_partial, .. } = &mut parts.responses[2].content {
        *is_partial = true;
    }
    parts.responses.insert(3, response(3, sent(&[second])));
    assert_eq!(check(parts), Ok(()));
}

#[test]
fn filter() {
    let other_key = watch(
        0,
        Spec {
            key: "a".into(),
            end: Bytes::new(),
            ..all()
        },
    );
    assert_found(check(other_key), "filter");
    for spec in [
        Spec {
            is_without_puts: true,
            ..all()
        },
        Spec {
            is_without_deletes: true,
            ..all()
        },
    ] {
        assert_found(check(watch(0, spec)), "filter");
    }
    let mut early = watch(5, all());
    early
        .responses
        .insert(1, response(4, sent(timeline().events(4))));
    assert_found(check(early), "filter");
    let mut early = watch(5, all());
    early.responses.insert(1, response(3, Content::Progress));
    assert_found(check(early), "filter");
}

#[test]
fn ordered() {
    let swapped = changed(|responses| responses.swap(2, 3));
    assert_found(swapped, "reliable");
    let back = changed(|responses| responses.push(response(7, Content::Progress)));
    assert_found(back, "ordered");
    let ahead_of_header = changed(|responses| responses[3].revision = 3);
    assert_found(ahead_of_header, "ordered");
}

#[test]
fn unique() {
    let twice = changed(|responses| responses.insert(4, responses[3].clone()));
    assert_found(twice, "unique");
    let later = changed(|responses| responses.insert(7, responses[3].clone()));
    assert_found(later, "unique");
}

#[test]
fn atomic() {
    let split = changed(|responses| {
        let second = events_of(&mut responses[2]).pop().unwrap();
        responses.insert(3, response(3, sent(&[second])));
    });
    assert_found(split, "atomic");
    let mut parts = watch(0, all());
    if let Content::Events { is_partial, .. } = &mut parts.responses[2].content {
        *is_partial = true;
    }
    assert_found(check(parts.clone()), "atomic");
    parts.spec.is_fragmented = true;
    parts.responses.insert(3, response(3, Content::Progress));
    assert_found(check(parts), "atomic");
}

#[test]
fn reliable() {
    let missing = changed(|responses| drop(responses.remove(3)));
    assert_found(missing, "reliable");
    let missing_in_revision = changed(|responses| drop(events_of(&mut responses[2]).pop()));
    assert_found(missing_in_revision, "atomic");
    let needless = |compact_revision, compacted| {
        let mut watch = watch(5, all());
        watch.responses.truncate(2);
        let content = Content::Compacted { compact_revision };
        watch.responses.push(response(0, content));
        watches::check(&timeline(), &[watch], after_compaction(compacted)).map(drop)
    };
    assert_eq!(needless(7, 7), Ok(()));
    assert_found(needless(6, 7), "reliable");
    assert_found(needless(7, 6), "reliable");
}

#[test]
fn resumable() {
    let mut late = watch(4, all());
    late.responses.remove(1);
    assert_found(check(late), "resumable");
}

#[test]
fn bookmarkable() {
    let ahead = changed(|responses| responses.insert(3, response(4, Content::Progress)));
    assert_found(ahead, "bookmarkable");
    // The events of the same revision must be there as well.
    let ahead = changed(|responses| responses.insert(4, response(5, Content::Progress)));
    assert_found(ahead, "bookmarkable");
}

#[test]
fn previous_values() {
    let lacking = changed(|responses| events_of(&mut responses[3])[0].prev_kv = None);
    assert_found(lacking, "prev_kv");
    let older = changed(|responses| {
        let previous = events_of(&mut responses[2])[0].prev_kv.clone();
        events_of(&mut responses[3])[0].prev_kv = previous;
    });
    assert_found(older, "prev_kv");
    let unasked = Spec {
        has_previous: false,
        ..all()
    };
    assert_found(check(watch(0, unasked)), "prev_kv");
    let mut compacted = watch(0, all());
    events_of(&mut compacted.responses[3])[0].prev_kv = None;
    let checked = watches::check(&timeline(), &[compacted.clone()], after_compaction(4));
    assert!(checked.is_ok());
    // The third response with events.
    for (bare_responses, is_right) in [(2, false), (3, true)] {
        let allowances = Allowances {
            bare_responses,
            ..Allowances::default()
        };
        let checked = watches::check(&timeline(), &[compacted.clone()], allowances);
        assert_eq!(checked.is_ok(), is_right);
    }
}

#[test]
fn is_create() {
    let version = changed(|responses| {
        let kv = events_of(&mut responses[3])[0].kv.as_mut().unwrap();
        (kv.version, kv.create_revision) = (1, 4);
    });
    assert_found(version, "is-create");
    let invented = changed(|responses| {
        let kv = events_of(&mut responses[3])[0].kv.as_mut().unwrap();
        kv.key = "other".into();
    });
    assert_found(invented, "is-create");
}
