//! The hub against a scripted history: single behaviours here, random
//! schedules beside, and the hub over a real store.

mod schedules;
mod store;

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;

use super::catch_up::Sweep;
use super::*;
use crate::mvcc::{Event, EventKind, EventsPage, ReadError, RevisionEvents};

// A scripted history

/// The first revision with events.
const FIRST: i64 = 2;

#[derive(Default)]
struct Script {
    /// Revision `FIRST + index`. Nothing is removed by a compaction, so that
    /// responses can be checked against it.
    log: Vec<RevisionEvents>,
    compacted: i64,
    published: i64,
    /// Done when history is read next: what happens in the middle of a turn.
    interrupt: Option<Box<dyn FnOnce() + Send>>,
}

#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Script>>);

impl Scripted {
    fn new() -> Scripted {
        let scripted = Scripted::default();
        scripted.0.lock().compacted = -1;
        scripted.0.lock().published = FIRST - 1;
        scripted
    }

    /// Commits a revision with these events, without publishing it.
    fn commit(&self, changes: &[(&str, EventKind)]) -> i64 {
        let mut script = self.0.lock();
        let revision = FIRST + script.log.len() as i64;
        let events = changes
            .iter()
            .enumerate()
            .map(|(sub, (key, kind))| {
                let plain = format!("{revision}/{sub}/{key}/{kind:?}");
                Event {
                    key: Bytes::copy_from_slice(key.as_bytes()),
                    kind: *kind,
                    without_prev_len: plain.len(),
                    encoded: (plain + "+prev").into(),
                }
            })
            .collect();
        script.log.push(RevisionEvents { revision, events });
        revision
    }

    fn unpublished(&self) -> Vec<RevisionEvents> {
        let mut script = self.0.lock();
        let from = (script.published + 1 - FIRST) as usize;
        let revisions: Vec<_> = script.log[from..].to_vec();
        script.published = FIRST - 1 + script.log.len() as i64;
        revisions
    }

    fn publish(&self, hub: &Hub) {
        hub.publish(&self.unpublished());
    }

    /// One put of `key`, published.
    fn put(&self, hub: &Hub, key: &str) -> i64 {
        let revision = self.commit(&[(key, EventKind::Put)]);
        self.publish(hub);
        revision
    }

    fn compact(&self, revision: i64) {
        self.0.lock().compacted = revision;
    }
}

impl History for Scripted {
    fn revision(&self) -> i64 {
        FIRST - 1 + self.0.lock().log.len() as i64
    }

    fn compacted_revision(&self) -> i64 {
        self.0.lock().compacted
    }

    fn events(
        &self,
        from: i64,
        max_revisions: usize,
        max_bytes: usize,
    ) -> Result<EventsPage, ReadError> {
        let interrupt = self.0.lock().interrupt.take();
        if let Some(interrupt) = interrupt {
            interrupt();
        }
        let store_revision = self.revision();
        let script = self.0.lock();
        if from < script.compacted {
            return Err(ReadError::Compacted);
        }
        let mut bytes = 0;
        let mut revisions = Vec::new();
        let skipped = usize::try_from(from - FIRST).unwrap_or(0);
        for revision in script.log.iter().skip(skipped).take(max_revisions) {
            bytes += revision
                .events
                .iter()
                .map(|event| event.encoded.len())
                .sum::<usize>();
            revisions.push(revision.clone());
            if bytes >= max_bytes {
                break;
            }
        }
        let next_revision = revisions
            .last()
            .map_or(store_revision, |last| last.revision)
            + 1;
        Ok(EventsPage {
            revisions,
            next_revision,
            store_revision,
        })
    }
}

/// A queue and a ring so small that watchers fall behind all the time.
fn tiny() -> Settings {
    Settings {
        queue_responses: 4,
        queue_bytes: 1 << 10,
        ring_revisions: 6,
        ring_bytes: 1 << 20,
    }
}

fn hub(script: &Scripted, settings: Settings) -> Arc<Hub> {
    Arc::new(Hub::without_thread(script.clone(), settings))
}

fn catch_up(hub: &Hub) {
    let mut sweep = Sweep::default();
    while sweep.turn(hub.shared()) {}
}

fn next(responses: &mut Responses) -> Option<Response> {
    match responses.poll_recv(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(response) => Some(response.expect("the stream goes on")),
        Poll::Pending => None,
    }
}

fn all(responses: &mut Responses) -> Vec<Response> {
    std::iter::from_fn(|| next(responses)).collect()
}

fn watch(key: &str, start_revision: i64) -> CreateRequest {
    CreateRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        start_revision,
        ..CreateRequest::default()
    }
}

fn watch_all(start_revision: i64) -> CreateRequest {
    CreateRequest {
        range_end: Bytes::from_static(b"\0"),
        ..watch("", start_revision)
    }
}

fn text(events: &[Bytes]) -> Vec<String> {
    events
        .iter()
        .map(|event| String::from_utf8(event.to_vec()).unwrap())
        .collect()
}

/// A response in few words.
fn brief(response: &Response) -> String {
    let Response {
        watch_id,
        revision,
        body,
    } = response;
    match body {
        Body::Events { events, .. } => {
            format!("{watch_id} events @{revision}: {}", text(events).join(" "))
        }
        Body::Refused(error) => format!("{watch_id} refused @{revision}: {error}"),
        Body::Compacted { compact_revision } => {
            format!("{watch_id} compacted @{revision}: {compact_revision}")
        }
        body => format!("{watch_id} {body:?} @{revision}"),
    }
}

#[track_caller]
fn expect(responses: &mut Responses, expected: &[&str]) {
    let got: Vec<String> = all(responses).iter().map(brief).collect();
    assert_eq!(got, expected);
}

// Single behaviours

/// VEC-7, WAT-10.
#[test]
fn ids_are_chosen_and_refused_as_in_etcd() {
    let script = Scripted::new();
    let hub = hub(&script, Settings::default());
    let (handle, mut responses) = hub.open_stream();
    for watch_id in [5, 5, 0, 0, 1, 2, 0, -7] {
        handle.create(CreateRequest {
            watch_id,
            ..watch("a", 0)
        });
    }
    let ids: Vec<i64> = all(&mut responses)
        .iter()
        .map(|response| response.watch_id)
        .collect();
    assert_eq!(ids, [5, -1, 0, 1, -1, 2, 3, -7]);

    handle.create(watch("a", -1));
    handle.create(CreateRequest {
        range_end: Bytes::from_static(b"a"),
        ..watch("b", 0)
    });
    handle.create(watch("a", 0));
    handle.cancel(5);
    handle.cancel(5);
    handle.create(CreateRequest {
        watch_id: 5,
        ..watch("a", 0)
    });
    expect(
        &mut responses,
        &[
            "-1 refused @1: etcdserver: mvcc: required revision has been compacted",
            "-1 refused @1: mvcc: watcher range is empty",
            "4 Created @1",
            "5 Canceled @1",
            "5 Created @1",
        ],
    );
}

/// WAT-7: what is committed but not yet published belongs before the watch.
#[test]
fn from_now_on_begins_after_the_header_of_the_created_response() {
    let script = Scripted::new();
    let hub = hub(&script, Settings::default());
    let (handle, mut responses) = hub.open_stream();
    script.commit(&[("a", EventKind::Put)]);
    handle.create(watch("a", 0));
    handle.progress();
    script.publish(&hub);
    handle.progress();
    script.put(&hub, "a");
    script.put(&hub, "b");
    handle.progress();
    expect(
        &mut responses,
        &[
            "0 Created @2",
            "-1 Progress @2",
            "0 events @3: 3/0/a/Put",
            "-1 Progress @4",
        ],
    );
}

#[test]
fn revisions_arrive_whole_filtered_and_with_what_was_asked_for() {
    let script = Scripted::new();
    let hub = hub(&script, Settings::default());
    let (handle, mut responses) = hub.open_stream();
    handle.create(CreateRequest {
        prev_kv: true,
        ..watch("a", 0)
    });
    handle.create(CreateRequest {
        filters: Filters {
            no_put: true,
            no_delete: false,
        },
        ..watch_all(0)
    });
    handle.create(CreateRequest {
        range_end: Bytes::from_static(b"c"),
        ..watch("b", 0)
    });
    script.commit(&[
        ("a", EventKind::Put),
        ("b", EventKind::Delete),
        ("bb", EventKind::Put),
    ]);
    script.commit(&[("c", EventKind::Put)]);
    script.publish(&hub);
    expect(
        &mut responses,
        &[
            "0 Created @1",
            "1 Created @1",
            "2 Created @1",
            "0 events @2: 2/0/a/Put+prev",
            "1 events @2: 2/1/b/Delete",
            "2 events @2: 2/1/b/Delete 2/2/bb/Put",
        ],
    );
}

/// WAT-25, VEC-6, and the end of the past: the compacted revision (WAT-30,
/// WAT-34), whose previous values are gone (WAT-19).
#[test]
fn the_past_comes_first_and_ends_at_the_compacted_revision() {
    let script = Scripted::new();
    let hub = hub(&script, tiny());
    for key in ["a", "b", "a", "a", "b", "a", "b", "b", "a"] {
        script.put(&hub, key);
    }
    script.compact(7);
    let (handle, mut responses) = hub.open_stream();
    handle.create(CreateRequest {
        prev_kv: true,
        ..watch("a", 7)
    });
    handle.create(watch("a", 6));
    handle.create(watch("a", 10));
    handle.progress();
    script.put(&hub, "b");
    catch_up(&hub);
    handle.progress();
    expect(
        &mut responses,
        &[
            "0 Created @10",
            "1 Created @10",
            "2 Created @10",
            "1 compacted @0: 7",
            "0 events @11: 7/0/a/Put 10/0/a/Put+prev",
            "2 events @11: 10/0/a/Put",
            "-1 Progress @11",
        ],
    );
    handle.cancel(1);
    expect(&mut responses, &[]);
}

/// WAT-8, WAT-39: nothing before the start, and no progress before it either.
#[test]
fn a_start_in_the_future_waits() {
    let script = Scripted::new();
    let hub = hub(&script, Settings::default());
    let (handle, mut responses) = hub.open_stream();
    handle.create(CreateRequest {
        progress_notify: true,
        ..watch("a", 4)
    });
    handle.create(CreateRequest {
        progress_notify: true,
        ..watch("b", 0)
    });
    script.put(&hub, "a");
    script.put(&hub, "a");
    handle.progress();
    handle.tick();
    script.put(&hub, "a");
    handle.tick();
    handle.progress();
    handle.tick();
    expect(
        &mut responses,
        &[
            "0 Created @1",
            "1 Created @1",
            "1 Progress @3",
            "0 events @4: 4/0/a/Put",
            // The other one has had events since the last tick (WAT-37).
            "1 Progress @4",
            "-1 Progress @4",
            "0 Progress @4",
            "1 Progress @4",
        ],
    );
}

#[test]
fn a_stream_without_watchers_has_no_progress() {
    let script = Scripted::new();
    let hub = hub(&script, Settings::default());
    let (handle, mut responses) = hub.open_stream();
    handle.progress();
    handle.create(watch("a", 0));
    handle.cancel(0);
    handle.progress();
    handle.tick();
    expect(&mut responses, &["0 Created @1", "0 Canceled @1"]);
}

/// WAT-41, WAT-45: no progress while a watcher is behind, none lost after.
#[test]
fn a_full_queue_makes_its_watchers_behind_and_no_others() {
    let script = Scripted::new();
    let hub = hub(&script, tiny());
    let (slow, mut slow_responses) = hub.open_stream();
    let (fast, mut fast_responses) = hub.open_stream();
    slow.create(watch("a", 0));
    fast.create(watch("a", 0));
    for revision in FIRST..FIRST + 50 {
        script.put(&hub, "a");
        catch_up(&hub);
        let last = all(&mut fast_responses).pop().unwrap();
        assert_eq!(
            brief(&last),
            format!("0 events @{revision}: {revision}/0/a/Put")
        );
    }
    assert_eq!(hub.shared().state.lock().counts(), (2, 1, 2));
    slow.progress();
    let mut seen = Vec::new();
    loop {
        let responses = all(&mut slow_responses);
        if responses.is_empty() {
            break;
        }
        for response in responses {
            assert!(!matches!(response.body, Body::Progress));
            if let Body::Events { events, .. } = response.body {
                seen.extend(text(&events));
            }
        }
        catch_up(&hub);
    }
    let expected: Vec<_> = (FIRST..FIRST + 50)
        .map(|main| format!("{main}/0/a/Put"))
        .collect();
    assert_eq!(seen, expected);
    assert_eq!(hub.shared().state.lock().counts(), (2, 0, 2));
    slow.progress();
    expect(&mut slow_responses, &["-1 Progress @51"]);
}

/// WAT-35: what a stuck watcher misses is not passed over in silence.
#[test]
fn a_stuck_watcher_learns_that_its_history_is_gone() {
    let script = Scripted::new();
    let hub = hub(&script, tiny());
    let (handle, mut responses) = hub.open_stream();
    handle.create(watch("a", 0));
    for _ in 0..20 {
        script.put(&hub, "a");
    }
    script.compact(21);
    catch_up(&hub);
    let mut got = all(&mut responses);
    catch_up(&hub);
    got.extend(all(&mut responses));
    let got: Vec<String> = got.iter().map(brief).collect();
    assert_eq!(got.first().map(String::as_str), Some("0 Created @1"));
    assert_eq!(got.last().map(String::as_str), Some("0 compacted @0: 21"));
    assert_eq!(hub.shared().state.lock().counts(), (0, 0, 1));
}

#[test]
fn long_histories_come_in_responses_of_a_thousand_revisions() {
    let script = Scripted::new();
    let hub = hub(&script, tiny());
    for _ in 0..2500 {
        script.commit(&[("a", EventKind::Put), ("b", EventKind::Put)]);
        script.put(&hub, "c");
    }
    let big = Settings {
        queue_responses: 100,
        queue_bytes: 1 << 30,
        ..tiny()
    };
    let hub = Arc::new(Hub::without_thread(script.clone(), big));
    let (handle, mut responses) = hub.open_stream();
    handle.create(CreateRequest {
        range_end: Bytes::from_static(b"c"),
        ..watch("a", 1)
    });
    catch_up(&hub);
    let sizes: Vec<usize> = all(&mut responses)
        .iter()
        .map(Response::event_count)
        .collect();
    assert_eq!(sizes, [0, 2000, 2000, 1000]);
}

/// WAT-44c.
#[test]
fn closing_a_stream_leaves_nothing_behind() {
    let script = Scripted::new();
    let hub = hub(&script, tiny());
    for _ in 0..30 {
        script.put(&hub, "k1");
    }
    let mut streams: Vec<_> = (0..4).map(|_| hub.open_stream()).collect();
    for (handle, _) in &streams {
        for number in 0..1000 {
            handle.create(watch(
                &format!("k{number}"),
                if number % 3 == 0 { 2 } else { 0 },
            ));
            handle.create(watch_all(3));
        }
    }
    catch_up(&hub);
    script.put(&hub, "k1");
    assert_eq!(hub.shared().state.lock().counts().0, 8000);
    streams.truncate(1);
    assert_eq!(hub.shared().state.lock().counts().0, 2000);
    let (handle, _) = &streams[0];
    (0..2000).for_each(|id| handle.cancel(id));
    assert_eq!(hub.shared().state.lock().counts(), (0, 0, 1));
    streams.clear();
    assert_eq!(hub.shared().state.lock().counts(), (0, 0, 0));
    script.put(&hub, "k1");
    catch_up(&hub);
}

#[test]
fn requests_wait_while_their_answers_are_not_read() {
    let script = Scripted::new();
    let hub = hub(&script, Settings::default());
    let (handle, mut responses) = hub.open_stream();
    let mut context = Context::from_waker(Waker::noop());
    let mut created = 0;
    while handle.poll_room(&mut context).is_ready() {
        handle.create(watch("a", 0));
        created += 1;
        assert!(created < 10_000);
    }
    assert!(next(&mut responses).is_some());
    assert!(handle.poll_room(&mut context).is_ready());
}

#[test]
fn a_closed_hub_ends_all_streams() {
    let script = Scripted::new();
    let hub = Hub::new(script, Settings::default());
    let (handle, mut responses) = hub.open_stream();
    handle.create(watch("a", 0));
    hub.close();
    let (_later, mut later_responses) = hub.open_stream();
    for responses in [&mut responses, &mut later_responses] {
        let end = responses.poll_recv(&mut Context::from_waker(Waker::noop()));
        assert_eq!(end, Poll::Ready(Err(End::Stopped)));
    }
    drop(hub);
    handle.create(watch("a", 0));
    handle.progress();
}

/// A write is in the store before the hub hears of it: a watcher that reads
/// the store in between is not shown more than the progress that it may get.
#[test]
fn what_is_not_published_yet_is_not_read_from_the_store() {
    let script = Scripted::new();
    for _ in 0..2 {
        script.commit(&[("a", EventKind::Put)]);
    }
    let hub = hub(&script, Settings::default());
    script.unpublished();
    script.commit(&[("a", EventKind::Put)]);
    let (handle, mut responses) = hub.open_stream();
    handle.create(watch("a", 2));
    catch_up(&hub);
    handle.progress();
    script.publish(&hub);
    handle.progress();
    expect(
        &mut responses,
        &[
            "0 Created @4",
            "0 events @4: 2/0/a/Put 3/0/a/Put",
            "-1 Progress @3",
            "0 events @4: 4/0/a/Put",
            "-1 Progress @4",
        ],
    );
}

/// The store was replaced by a later one: what was missed is read from it, and
/// progress waits for that (WAT-49).
#[test]
fn watchers_outlive_a_replaced_store() {
    let script = Scripted::new();
    let hub = hub(&script, Settings::default());
    let (handle, mut responses) = hub.open_stream();
    script.put(&hub, "a");
    handle.create(watch("a", 0));
    handle.create(watch("a", 9));
    handle.create(watch("b", 2));
    catch_up(&hub);
    for _ in 0..4 {
        script.commit(&[("a", EventKind::Put)]);
    }
    script.unpublished();
    // The store shows the new state, the hub does not know yet.
    handle.create(watch("a", 0));
    hub.replaced(script.revision());
    handle.progress();
    catch_up(&hub);
    handle.progress();
    hub.replaced(script.revision());
    script.put(&hub, "a");
    script.put(&hub, "a");
    script.put(&hub, "a");
    expect(
        &mut responses,
        &[
            "0 Created @2",
            "1 Created @2",
            "2 Created @2",
            "3 Created @6",
            "0 events @6: 3/0/a/Put 4/0/a/Put 5/0/a/Put 6/0/a/Put",
            "0 events @7: 7/0/a/Put",
            "3 events @7: 7/0/a/Put",
            "0 events @8: 8/0/a/Put",
            "3 events @8: 8/0/a/Put",
            "0 events @9: 9/0/a/Put",
            "1 events @9: 9/0/a/Put",
            "3 events @9: 9/0/a/Put",
        ],
    );
}

/// What the new store has compacted cannot be made up for.
#[test]
fn a_replaced_store_may_have_compacted_what_is_owed() {
    let script = Scripted::new();
    let hub = hub(&script, Settings::default());
    let (handle, mut responses) = hub.open_stream();
    handle.create(watch("a", 0));
    handle.create(watch("a", 6));
    for _ in 0..5 {
        script.commit(&[("a", EventKind::Put)]);
    }
    script.unpublished();
    script.compact(4);
    hub.replaced(script.revision());
    catch_up(&hub);
    expect(
        &mut responses,
        &[
            "0 Created @1",
            "1 Created @1",
            "0 compacted @0: 4",
            "1 events @6: 6/0/a/Put",
        ],
    );
}

/// A gap in what is published (a snapshot replaced the store) is read from
/// the store (WAT-49).
#[test]
fn a_gap_in_what_is_published_is_caught_up() {
    let script = Scripted::new();
    let hub = hub(&script, Settings::default());
    let (handle, mut responses) = hub.open_stream();
    handle.create(watch("a", 0));
    handle.create(watch("a", 9));
    for _ in 0..5 {
        script.commit(&[("a", EventKind::Put)]);
    }
    script.unpublished();
    script.put(&hub, "a");
    handle.progress();
    catch_up(&hub);
    expect(
        &mut responses,
        &[
            "0 Created @1",
            "1 Created @1",
            "0 events @7: 2/0/a/Put 3/0/a/Put 4/0/a/Put 5/0/a/Put 6/0/a/Put 7/0/a/Put",
        ],
    );
}
