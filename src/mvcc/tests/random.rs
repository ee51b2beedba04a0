//! Random histories, compared with the model in everything that can be read.

use super::Fixture;
use super::model::Model;
use crate::mvcc::hash::hash_kv_within;
use crate::mvcc::{CompactError, EventKind, HashKv, ReadError, Reads, RevisionEvents, View};
use crate::proto::client::mvccpb::Event;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::mvccpb::KeyValue;
use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

#[derive(Clone, Debug)]
enum Step {
    /// Several changes of one command, which may be given up in the end, and a
    /// read inside it.
    Command {
        changes: Vec<Change>,
        is_given_up: bool,
        read: RangeRequest,
    },
    Commit,
    /// Compacts at a share of the way from the compacted to the current
    /// revision; does so many steps of the removal.
    Compact {
        share: f64,
        steps: usize,
    },
    RemoveMore {
        rows: usize,
    },
    Flush,
    Reopen,
    /// Goes on from what a kill at this moment would leave on disk.
    Crash,
    PinView,
}

#[derive(Clone, Debug)]
enum Change {
    Put {
        key: Bytes,
        value: Bytes,
        lease: i64,
    },
    Delete {
        key: Bytes,
        range_end: Bytes,
    },
}

/// Keys that share prefixes and hold the smallest and largest bytes; few
/// enough that they meet.
fn any_key() -> impl Strategy<Value = Bytes> {
    let byte = prop::sample::select(vec![0u8, 1, b'a', b'b', 0xff]);
    let any = prop::collection::vec(byte, 1..4).prop_map(Bytes::from);
    // One is met often, also several times in one command.
    prop_oneof![1 => Just(Bytes::from_static(b"a")), 4 => any]
}

fn any_range_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        3 => Just(Bytes::new()),
        2 => Just(Bytes::from_static(b"\0")),
        4 => any_key(),
    ]
}

fn any_change() -> impl Strategy<Value = Change> {
    let value = prop::collection::vec(b'x'..b'z', 0..20).prop_map(Bytes::from);
    prop_oneof![
        5 => (any_key(), value, 0..3i64).prop_map(|(key, value, lease)| Change::Put { key, value, lease }),
        1 => (any_key(), Just(Bytes::new())).prop_map(|(key, range_end)| Change::Delete { key, range_end }),
        1 => (any_key(), any_key()).prop_map(|(key, range_end)| Change::Delete { key, range_end }),
    ]
}

/// Revisions stay small, so small numbers hit.
fn any_request() -> impl Strategy<Value = RangeRequest> {
    let bound = || prop_oneof![4 => Just(0i64), 1 => 1..40i64];
    (
        (any_key(), any_range_end(), 0..8i64, -1..45i64),
        (0..3i32, 0..5i32, any::<bool>(), prop::bool::weighted(0.1)),
        (bound(), bound(), bound(), bound()),
    )
        .prop_map(
            |(
                (key, range_end, limit, revision),
                (order, target, keys_only, count_only),
                bounds,
            )| {
                RangeRequest {
                    key,
                    range_end,
                    limit,
                    revision,
                    sort_order: order,
                    sort_target: target,
                    serializable: false,
                    keys_only,
                    count_only,
                    min_mod_revision: bounds.0,
                    max_mod_revision: bounds.1,
                    min_create_revision: bounds.2,
                    max_create_revision: bounds.3,
                }
            },
        )
}

fn any_step() -> impl Strategy<Value = Step> {
    let command = (
        prop::collection::vec(any_change(), 0..6),
        prop::bool::weighted(0.15),
        any_request(),
    )
        .prop_map(|(changes, is_given_up, read)| Step::Command {
            changes,
            is_given_up,
            read,
        });
    prop_oneof![
        20 => command,
        8 => Just(Step::Commit),
        2 => (0.0..1.2, 0..4usize).prop_map(|(share, steps)| Step::Compact { share, steps }),
        2 => (1..5usize).prop_map(|rows| Step::RemoveMore { rows }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
        1 => Just(Step::PinView),
    ]
}

/// The store and the model side by side.
struct Pair {
    fixture: Option<Fixture>,
    model: Model,
    /// The model as of the last commit: what readers see.
    committed: Model,
    /// The same for every commit, by applied index.
    commits: BTreeMap<u64, Model>,
    views: Vec<(View, Model)>,
}

impl Pair {
    fn new() -> Pair {
        let model = Model::new();
        Pair {
            fixture: Some(Fixture::new()),
            committed: model.clone(),
            commits: BTreeMap::from([(0, model.clone())]),
            model,
            views: Vec::new(),
        }
    }

    fn fixture(&mut self) -> &mut Fixture {
        self.fixture.as_mut().expect("open")
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Command {
                changes,
                is_given_up,
                read,
            } => self.command(changes, *is_given_up, read),
            Step::Commit => self.commit(),
            Step::Compact { share, steps } => self.compact(*share, *steps),
            Step::RemoveMore { rows } => {
                self.fixture().writer.compaction_step(*rows).unwrap();
            }
            Step::Flush => self.fixture().engine.flush().unwrap(),
            Step::Reopen => {
                self.commit();
                self.check_views();
                let fixture = self.fixture.take().expect("open").reopen();
                self.fixture = Some(fixture);
            }
            Step::Crash => self.crash(),
            Step::PinView => {
                let view = self.fixture().store.view().unwrap();
                self.views.push((view, self.committed.clone()));
            }
        }
    }

    fn command(&mut self, changes: &[Change], is_given_up: bool, read: &RangeRequest) {
        let mut model = self.model.clone();
        let main = model.revision + 1;
        let committed = self.committed.clone();
        let writer = &mut self.fixture.as_mut().expect("open").writer;
        let is_clean = writer.is_clean();
        let staged_bytes = writer.staged_bytes();
        let mut staged = writer.begin();
        let mut count = 0;
        for change in changes {
            match change {
                Change::Put { key, value, lease } => {
                    let expected = model.get(key, main).cloned();
                    let previous = staged.put(key.clone(), value.clone(), *lease).unwrap();
                    assert_eq!(previous.map(|kv| KeyValue::decode(kv).unwrap()), expected);
                    model.put(main, key, value, *lease);
                    assert_eq!(staged.get(key).unwrap().as_ref(), model.get(key, main));
                    count += 1;
                }
                Change::Delete { key, range_end } => {
                    let expected = model.delete_range(main, key, range_end);
                    let previous = staged.delete_range(key, range_end).unwrap();
                    let previous: Vec<_> = previous
                        .into_iter()
                        .map(|kv| KeyValue::decode(kv).unwrap())
                        .collect();
                    assert_eq!(previous, expected);
                    count += expected.len();
                }
            }
            // The present as the command sees it.
            let shown = if count > 0 { main } else { main - 1 };
            assert_eq!(staged.revision(), shown);
            let read = RangeRequest {
                revision: 0,
                ..read.clone()
            };
            assert_eq!(staged.range(&read), model.range(&read, shown), "{read:?}");
            check_scan(&staged, &model, &read, main);
        }
        // The past, which none of its changes reach.
        if is_clean && read.revision > 0 {
            let expected = committed.range(read, committed.revision);
            let got = staged.range(read).map(|got| {
                assert_eq!(got.revision, staged.revision());
                crate::mvcc::RangeResult {
                    revision: committed.revision,
                    ..got
                }
            });
            assert_eq!(got, expected);
        }
        if is_given_up {
            drop(staged);
            assert_eq!(writer.staged_bytes(), staged_bytes);
            assert_eq!(writer.is_clean(), is_clean);
        } else {
            assert_eq!(staged.has_changed(), count > 0);
            staged.finish();
            if count > 0 {
                model.revision = main;
                self.model = model;
            }
        }
        assert_eq!(writer.revision(), self.model.revision);
    }

    fn commit(&mut self) {
        let writer = &mut self.fixture.as_mut().expect("open").writer;
        let (index, _) = writer.applied();
        let events = writer.commit(index + 1, 3).unwrap();
        assert!(writer.is_clean() && writer.staged_bytes() == 0);
        assert_eq!(writer.applied(), (index + 1, 3));
        check_events(&events, &self.model, self.committed.revision + 1);
        self.committed = self.model.clone();
        self.commits.insert(index + 1, self.model.clone());
    }

    /// What is left is the state of some commit since the last flush, in all
    /// columns alike.
    fn crash(&mut self) {
        self.check_views();
        let fixture = self.fixture.take().expect("open").crash();
        let (index, _) = fixture.writer.applied();
        self.model = self.commits[&index].clone();
        self.committed = self.model.clone();
        self.fixture = Some(fixture);
    }

    fn compact(&mut self, share: f64, steps: usize) {
        self.commit();
        let (compacted, revision) = (self.model.compacted_revision, self.model.revision);
        let target = compacted + ((revision - compacted) as f64 * share) as i64;
        let result = self.fixture().writer.compact(target);
        if target > revision {
            assert_eq!(result, Err(CompactError::FutureRevision));
        } else if target <= compacted {
            assert_eq!(result, Err(CompactError::Compacted));
        } else {
            result.unwrap();
            self.model.compacted_revision = target;
            self.commit();
            for _ in 0..steps {
                self.fixture().writer.compaction_step(2).unwrap();
            }
        }
    }

    /// Everything readers can ask.
    fn check(&mut self, requests: &[RangeRequest]) {
        self.commit();
        self.check_views();
        let model = self.model.clone();
        let store = self.fixture().store.clone();
        assert_eq!(store.revision(), model.revision);
        assert_eq!(store.compacted_revision(), model.compacted_revision);
        assert_eq!(
            store.keys_total() as usize,
            model.live(b"\0", b"\0", model.revision).len()
        );
        for revision in -1..=model.revision + 1 {
            let everything = RangeRequest {
                key: Bytes::from_static(b"\0"),
                range_end: Bytes::from_static(b"\0"),
                revision,
                ..RangeRequest::default()
            };
            assert_eq!(
                store.range(&everything),
                model.range(&everything, model.revision)
            );
            let limited = RangeRequest {
                limit: 2,
                ..everything
            };
            assert_eq!(
                store.range(&limited),
                model.range(&limited, model.revision),
                "at {revision}"
            );
        }
        let view = store.view().unwrap();
        for request in requests {
            let expected = model.range(request, model.revision);
            assert_eq!(store.range(request), expected, "{request:?}");
            assert_eq!(view.range(request), expected, "{request:?}");
            check_scan(&view, &model, request, model.revision);
        }
        self.check_log(&model);
        self.check_hash(&model);
    }

    fn check_log(&mut self, model: &Model) {
        let store = &self.fixture().store;
        for from in model.compacted_revision..=model.revision + 1 {
            for (max_revisions, max_bytes) in [(1, usize::MAX), (3, 100), (usize::MAX, usize::MAX)]
            {
                let mut revisions = Vec::new();
                let mut next = from;
                while next <= model.revision {
                    let page = store.events(next, max_revisions, max_bytes).unwrap();
                    assert_eq!(page.store_revision, model.revision);
                    assert!(page.revisions.len() <= max_revisions);
                    assert!(page.next_revision > next || page.next_revision > model.revision);
                    next = page.next_revision;
                    revisions.extend(page.revisions);
                }
                check_events(&revisions, model, from);
            }
        }
        let refused = store
            .events(model.compacted_revision - 1, 10, 1000)
            .unwrap_err();
        assert_eq!(refused, ReadError::Compacted);
    }

    fn check_hash(&mut self, model: &Model) {
        let shared = self.fixture().store.shared();
        for revision in 1..=model.revision + 1 {
            let expected = if revision > model.revision {
                Err(ReadError::FutureRevision)
            } else if revision < model.compacted_revision {
                Err(ReadError::Compacted)
            } else {
                Ok(HashKv {
                    hash: model.hash_kv(revision),
                    compact_revision: model.compacted_revision,
                    hash_revision: revision,
                    revision: model.revision,
                })
            };
            for pass_bytes in [60, usize::MAX] {
                assert_eq!(hash_kv_within(shared, revision, pass_bytes), expected);
            }
        }
    }

    /// Views show what was there when they were made.
    fn check_views(&mut self) {
        let compacted = self.committed.compacted_revision;
        for (view, model) in self.views.drain(..) {
            for revision in 0..=model.revision {
                let request = RangeRequest {
                    key: Bytes::from_static(b"\0"),
                    range_end: Bytes::from_static(b"\0"),
                    limit: 3,
                    revision,
                    ..RangeRequest::default()
                };
                let expected = model.range(&request, model.revision);
                match view.range(&request) {
                    // The log it needs has been dropped since.
                    Err(ReadError::Compacted) if revision > 0 => assert!(revision < compacted),
                    got => assert_eq!(got, expected),
                }
            }
        }
    }
}

fn check_scan(reads: &impl Reads, model: &Model, request: &RangeRequest, revision: i64) {
    let expected = model.live(&request.key, &request.range_end, revision);
    let mut visited = Vec::new();
    let stop_after = request.limit as usize + 1;
    let mut visit = |kv: &KeyValue| {
        visited.push(kv.clone());
        if visited.len() == stop_after {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    reads
        .scan(&request.key, &request.range_end, &mut visit)
        .unwrap();
    assert_eq!(visited, expected[..expected.len().min(stop_after)]);
}

fn check_events(revisions: &[RevisionEvents], model: &Model, from: i64) {
    let expected = model.events(from);
    assert!(
        revisions
            .iter()
            .map(|events| events.revision)
            .eq(expected.keys().copied())
    );
    for (got, expected) in revisions.iter().zip(expected.values()) {
        assert_eq!(got.events.len(), expected.len());
        for (got, (kind, event)) in got.events.iter().zip(expected) {
            assert_eq!(got.kind, *kind);
            let kv = event.kv.as_ref().expect("every event has one");
            assert_eq!(got.key, kv.key);
            assert_eq!(&Event::decode(got.with_prev()).unwrap(), event);
            let without_prev = Event {
                prev_kv: None,
                ..event.clone()
            };
            assert_eq!(Event::decode(got.without_prev()).unwrap(), without_prev);
            assert_eq!(*kind == EventKind::Delete, kv.version == 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_read_agrees_with_the_model(
        steps in prop::collection::vec(any_step(), 1..60),
        requests in prop::collection::vec(any_request(), 40),
    ) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.step(step);
        }
        pair.check(&requests);
        // And once more when everything is removed and reopened.
        while pair.fixture().writer.compaction_step(3).unwrap() {}
        pair.step(&Step::Flush);
        pair.step(&Step::Reopen);
        pair.check(&requests);
    }
}
