//! Readers beside a writer: every answer must be of one revision.

use super::{Fixture, bytes};
use crate::mvcc::{ReadError, Reads, Store};
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::mvccpb::KeyValue;
use crate::storage::{Engine, Settings};
use bytes::Bytes;
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The writer keeps an invariant that depends on the revision alone: there are
/// [`keys_at`] keys, all of the value [`value_at`], and `even` exists at even
/// revisions only.
const RING: i64 = 40;

fn keys_at(revision: i64) -> i64 {
    RING - revision % 7
}

fn value_at(revision: i64) -> Bytes {
    bytes(&format!("value of {revision}"))
}

fn write_revision(fixture: &mut Fixture, revision: i64) {
    let mut staged = fixture.writer.begin();
    staged.delete_range(b"key/", b"key0").unwrap();
    for n in 0..keys_at(revision) {
        staged
            .put(bytes(&format!("key/{n:03}")), value_at(revision), 0)
            .unwrap();
    }
    if revision % 2 == 0 {
        staged.put(bytes("even"), value_at(revision), 0).unwrap();
    } else {
        staged.delete_range(b"even", b"").unwrap();
    }
    assert_eq!(staged.revision(), revision);
    staged.finish();
}

fn ring() -> RangeRequest {
    RangeRequest {
        key: bytes("key/"),
        range_end: bytes("key0"),
        ..RangeRequest::default()
    }
}

/// Checks one answer about the ring as of `revision`.
fn check_ring(result: &crate::mvcc::RangeResult, limit: usize, revision: i64) {
    assert_eq!(result.count, keys_at(revision), "count at {revision}");
    assert_eq!(result.kvs.len(), limit.min(result.count as usize));
    for kv in &result.kvs {
        let kv = KeyValue::decode(kv.clone()).unwrap();
        assert_eq!(kv.value, value_at(revision));
    }
}

fn read_once(store: &Store, round: i64) {
    let request = match round % 3 {
        0 => ring(),
        1 => RangeRequest { limit: 3, ..ring() },
        _ => RangeRequest {
            count_only: true,
            ..ring()
        },
    };
    let limit = [usize::MAX, 3, 0][(round % 3) as usize];
    let now = store.range(&request).unwrap();
    check_ring(&now, limit, now.revision);

    let even = store
        .range(&RangeRequest {
            key: bytes("even"),
            ..RangeRequest::default()
        })
        .unwrap();
    assert_eq!(
        even.count,
        i64::from(even.revision % 2 == 0),
        "even at {}",
        even.revision
    );

    let past = RangeRequest {
        revision: (now.revision - round % 12).max(2),
        ..request
    };
    match store.range(&past) {
        Ok(result) => check_ring(&result, limit, past.revision),
        Err(error) => assert_eq!(error, ReadError::Compacted),
    }

    let view = store.view().unwrap();
    for limit in [usize::MAX, 2] {
        let request = RangeRequest {
            limit: limit as i64,
            ..ring()
        };
        check_ring(&view.range(&request).unwrap(), limit, view.revision());
    }

    match store.events(now.revision - 2, 2, usize::MAX) {
        Ok(page) => assert!(
            page.revisions
                .iter()
                .map(|events| events.revision)
                .is_sorted()
        ),
        Err(error) => assert_eq!(error, ReadError::Compacted),
    }
    if round % 20 == 0 {
        let hash = store.hash_kv(0).unwrap();
        assert_eq!(hash.hash_revision, hash.revision);
    }
}

/// Reads whole revisions again and again, none older than the one before.
fn read_until(store: &Store, is_done: &AtomicBool) {
    let (mut round, mut last) = (0, 0);
    while !is_done.load(Ordering::Relaxed) {
        read_once(store, round);
        let revision = store.revision();
        assert!(revision >= last, "the revision never goes back");
        (last, round) = (revision, round + 1);
    }
    assert!(round > 0);
}

#[test]
fn readers_see_whole_revisions_while_a_writer_writes_and_compacts() {
    let mut fixture = Fixture::new();
    write_revision(&mut fixture, 2);
    fixture.commit();
    let is_done = AtomicBool::new(false);
    let deadline = Instant::now() + Duration::from_secs(3);
    thread::scope(|scope| {
        for _ in 0..3 {
            let (store, is_done) = (fixture.store.clone(), &is_done);
            scope.spawn(move || read_until(&store, is_done));
        }
        let mut revision = 2;
        while Instant::now() < deadline {
            for _ in 0..1 + revision % 4 {
                revision += 1;
                write_revision(&mut fixture, revision);
            }
            fixture.commit();
            if revision % 5 == 0 && revision > 8 {
                fixture.compact(revision - 8);
            }
            if revision % 11 == 0 {
                fixture.engine.flush().unwrap();
            }
        }
        is_done.store(true, Ordering::Relaxed);
    });
    let revision = fixture.store.revision();
    assert_eq!(
        fixture.store.keys_total(),
        keys_at(revision) + i64::from(revision % 2 == 0)
    );
}

/// A store whose state is replaced by another's again and again, each time some
/// revisions ahead, and which goes on from there.
#[test]
fn readers_see_one_state_or_the_other_while_one_is_installed() {
    let mut source = Fixture::new();
    write_revision(&mut source, 2);
    source.commit();
    let root = super::temp_dir();
    let engine = Engine::open(&root.path().join("state"), &Settings::default()).unwrap();
    let engine = Arc::new(engine);
    let (store, writer) = Store::open(engine.clone()).unwrap();
    let mut target = Fixture {
        engine,
        store,
        writer,
        dir: root,
    };
    write_revision(&mut target, 2);
    target.commit();
    // Held over all of it: one state, whatever takes its place.
    let view = target.store.view().unwrap();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            let (store, is_done) = (target.store.clone(), &is_done);
            scope.spawn(move || read_until(&store, is_done));
        }
        let mut revision = 2;
        for round in 0..8 {
            for _ in 0..17 {
                revision += 1;
                write_revision(&mut source, revision);
                source.commit();
            }
            if round % 3 == 1 {
                // All that the other one has of its log is gone here, or a part.
                source.compact(revision - 5 * round);
            }
            let incoming = target.dir.path().join("incoming");
            source.engine.checkpoint(&incoming).unwrap();
            target.engine.install(&incoming).unwrap();
            target.writer.reload().unwrap();
            assert_eq!(target.writer.applied(), source.writer.applied());
            for _ in 0..5 {
                revision += 1;
                for each in [&mut source, &mut target] {
                    write_revision(each, revision);
                    each.commit();
                }
            }
            let hash = |fixture: &Fixture| fixture.store.hash_kv(0).unwrap();
            assert_eq!(hash(&target), hash(&source));
            assert_eq!(
                target.store.compacted_revision(),
                source.store.compacted_revision()
            );
            assert_eq!(target.store.keys_total(), source.store.keys_total());
        }
        is_done.store(true, Ordering::Relaxed);
    });
    check_ring(&view.range(&ring()).unwrap(), usize::MAX, 2);
    assert_eq!(view.revision(), 2);
    drop(view);
    let Fixture {
        engine,
        store,
        writer,
        dir,
    } = target;
    drop((engine, store, writer));
    let engine = Engine::open(&dir.path().join("state"), &Settings::default()).unwrap();
    let (store, _writer) = Store::open(Arc::new(engine)).unwrap();
    assert_eq!(store.hash_kv(0).unwrap(), source.store.hash_kv(0).unwrap());
}
