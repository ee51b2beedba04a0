//! Fixed cases; the ids are those of behaviour.md.

use super::{Fixture, bytes};
use crate::mvcc::{CompactError, Event, EventKind, HashKv, ReadError, Reads};
use crate::proto::client::mvccpb;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::mvccpb::KeyValue;
use bytes::Bytes;
use prost::Message;

fn all() -> RangeRequest {
    RangeRequest {
        key: bytes("\0"),
        range_end: bytes("\0"),
        ..RangeRequest::default()
    }
}

fn sorted(target: SortTarget, order: SortOrder, limit: i64) -> RangeRequest {
    RangeRequest {
        sort_target: target.into(),
        sort_order: order.into(),
        limit,
        ..all()
    }
}

fn decode(kv: &Bytes) -> KeyValue {
    KeyValue::decode(kv.clone()).unwrap()
}

/// Keys, `more` and count of an answer.
fn answer(fixture: &Fixture, request: &RangeRequest) -> (String, bool, i64) {
    let result = fixture.store.range(request).unwrap();
    let keys: Vec<_> = result
        .kvs
        .iter()
        .map(|kv| String::from_utf8(decode(kv).key.to_vec()).unwrap())
        .collect();
    (keys.join(" "), result.more, result.count)
}

fn with_keys(pairs: &[(&str, &str)]) -> Fixture {
    let mut fixture = Fixture::new();
    for (key, value) in pairs {
        fixture.put(key, value);
    }
    fixture
}

#[test]
fn vec_1_hash_kv_is_byte_equal_to_etcd() {
    let mut fixture = Fixture::new();
    let check = |fixture: &Fixture, revision: i64, hash: u32, compact_revision: i64| {
        let got = fixture.store.hash_kv(0).unwrap();
        assert_eq!(
            got,
            HashKv {
                hash,
                compact_revision,
                hash_revision: revision,
                revision
            }
        );
    };
    check(&fixture, 1, 1084519789, -1);
    fixture.put("foo", "bar");
    check(&fixture, 2, 3305255506, -1);
    fixture.put("foo", "baz");
    check(&fixture, 3, 2020292994, -1);
    fixture.delete("foo", "");
    check(&fixture, 4, 3153096970, -1);
    let mut staged = fixture.writer.begin();
    staged.put(bytes("a"), bytes("1"), 0).unwrap();
    staged.put(bytes("b"), bytes("2"), 0).unwrap();
    staged.finish();
    fixture.commit();
    check(&fixture, 5, 2130390800, -1);
    assert_eq!(fixture.store.hash_kv(3).unwrap().hash, 2020292994);
    fixture.compact(3);
    check(&fixture, 5, 2463866337, 3);
    fixture.put("a", "x");
    fixture.compact(5);
    check(&fixture, 6, 2856198227, 5);
    assert_eq!(fixture.store.hash_kv(4), Err(ReadError::Compacted));
    assert_eq!(fixture.store.hash_kv(7), Err(ReadError::FutureRevision));
}

#[test]
fn vec_2_and_3_sorts_limits_and_filters() {
    let fixture = with_keys(&[
        ("x", ""),
        ("y", ""),
        ("a", "3"),
        ("b", "1"),
        ("c", "2"),
        ("d", "1"),
    ]);
    let mut fixture = fixture;
    fixture.delete("x", "z");
    let by_value = |order, limit| sorted(SortTarget::Value, order, limit);
    assert_eq!(
        answer(&fixture, &by_value(SortOrder::None, 2)),
        ("b c".into(), true, 4)
    );
    assert_eq!(
        answer(&fixture, &by_value(SortOrder::Ascend, 2)),
        ("b d".into(), true, 4)
    );
    assert_eq!(
        answer(&fixture, &by_value(SortOrder::Descend, 3)),
        ("a c b".into(), true, 4)
    );
    let filtered = RangeRequest {
        min_mod_revision: 6,
        limit: 1,
        ..all()
    };
    assert_eq!(answer(&fixture, &filtered), ("c".into(), true, 4));
    let counted = RangeRequest {
        count_only: true,
        ..filtered
    };
    assert_eq!(answer(&fixture, &counted), (String::new(), false, 4));
    // RNG-24: on a single key too.
    let single = RangeRequest {
        key: bytes("a"),
        min_mod_revision: 6,
        ..RangeRequest::default()
    };
    assert_eq!(answer(&fixture, &single), (String::new(), false, 1));
}

#[test]
fn vec_15_sort_targets() {
    let fixture = with_keys(&[("b", ""), ("a", ""), ("c", ""), ("d", ""), ("c", "")]);
    let check = |target, order, limit, keys: &str| {
        let more = keys.split(' ').count() < 4;
        assert_eq!(
            answer(&fixture, &sorted(target, order, limit)),
            (keys.into(), more, 4)
        );
    };
    check(SortTarget::Key, SortOrder::Ascend, 1, "a");
    check(SortTarget::Key, SortOrder::Descend, 1, "d");
    check(SortTarget::Create, SortOrder::Ascend, 1, "b");
    check(SortTarget::Mod, SortOrder::Descend, 1, "c");
    check(SortTarget::Create, SortOrder::None, 10, "b a c d");
    check(SortTarget::Version, SortOrder::Descend, 0, "c a b d");
}

#[test]
fn vec_16_create_revision_bounds() {
    let fixture = with_keys(&[
        ("rev2", ""),
        ("rev3", ""),
        ("rev2", ""),
        ("rev2", ""),
        ("rev6", ""),
        ("rev3", ""),
    ]);
    let bounded = |min, max| RangeRequest {
        min_create_revision: min,
        max_create_revision: max,
        ..all()
    };
    assert_eq!(
        answer(&fixture, &bounded(3, 0)),
        ("rev3 rev6".into(), false, 3)
    );
    assert_eq!(
        answer(&fixture, &bounded(0, 3)),
        ("rev2 rev3".into(), false, 3)
    );
    assert_eq!(answer(&fixture, &bounded(3, 5)), ("rev3".into(), false, 3));
}

#[test]
fn keys_only_leaves_the_lease_out_except_when_sorted_by_value() {
    let mut fixture = Fixture::new();
    let mut staged = fixture.writer.begin();
    staged.put(bytes("a"), bytes("2"), 77).unwrap();
    staged.put(bytes("b"), bytes("1"), 78).unwrap();
    staged.finish();
    fixture.commit();
    let keys_only = |request: RangeRequest| {
        let result = fixture
            .store
            .range(&RangeRequest {
                keys_only: true,
                ..request
            })
            .unwrap();
        result
            .kvs
            .iter()
            .map(decode)
            .map(|kv| (kv.key, kv.value, kv.lease, kv.version))
            .collect::<Vec<_>>()
    };
    let empty = Bytes::new();
    assert_eq!(
        keys_only(all()),
        [
            (bytes("a"), empty.clone(), 0, 1),
            (bytes("b"), empty.clone(), 0, 1)
        ]
    );
    let by_value = keys_only(sorted(SortTarget::Value, SortOrder::Ascend, 0));
    assert_eq!(
        by_value,
        [
            (bytes("b"), empty.clone(), 78, 1),
            (bytes("a"), empty, 77, 1)
        ]
    );
}

/// VEC-6, and the prev_kv rules of WAT-19 at a compacted revision.
#[test]
fn events_carry_the_pair_before_their_revision() {
    let mut fixture = Fixture::new();
    for value in ["1", "2", "3"] {
        fixture.put("a", value);
    }
    fixture.put("b", "");
    fixture.delete("a", "");
    fixture.put("a", "4");
    let prevs = |fixture: &Fixture, from| {
        let page = fixture.store.events(from, 100, 1 << 20).unwrap();
        assert_eq!((page.next_revision, page.store_revision), (8, 7));
        let prev = |event: &Event| {
            let event = mvccpb::Event::decode(event.with_prev()).unwrap();
            (
                event.kv.unwrap().mod_revision,
                event.prev_kv.map(|prev| prev.mod_revision),
            )
        };
        page.revisions
            .iter()
            .flat_map(|revision| revision.events.iter().map(prev))
            .collect::<Vec<_>>()
    };
    let since_3 = [
        (3, Some(2)),
        (4, Some(3)),
        (5, None),
        (6, Some(4)),
        (7, None),
    ];
    assert_eq!(prevs(&fixture, 1), [&[(2, None)], &since_3[..]].concat());
    assert_eq!(prevs(&fixture, 3), since_3);
    fixture.compact(6);
    assert_eq!(prevs(&fixture, 6), [(6, None), (7, None)]);
    assert_eq!(fixture.store.events(5, 1, 1), Err(ReadError::Compacted));
    let beyond = fixture.store.events(9, 1, 1).unwrap();
    assert_eq!((beyond.revisions.len(), beyond.next_revision), (0, 9));
}

#[test]
fn a_key_changed_twice_in_one_command_has_two_events() {
    let mut fixture = with_keys(&[("k", "old")]);
    let mut staged = fixture.writer.begin();
    staged.put(bytes("k"), bytes("new"), 0).unwrap();
    assert_eq!(staged.delete_range(b"k", b"").unwrap().len(), 1);
    staged.put(bytes("k"), bytes("newer"), 0).unwrap();
    staged.finish();
    fixture.commit();
    let page = fixture.store.events(3, 1, 1).unwrap();
    let events: Vec<_> = page.revisions[0]
        .events
        .iter()
        .map(|event| {
            let prev = mvccpb::Event::decode(event.with_prev()).unwrap().prev_kv;
            (
                event.kind,
                prev.map(|prev| String::from_utf8(prev.value.to_vec()).unwrap()),
            )
        })
        .collect();
    let old = Some("old".to_owned());
    assert_eq!(
        events,
        [
            (EventKind::Put, old.clone()),
            (EventKind::Delete, old),
            (EventKind::Put, None)
        ]
    );
    let at_2 = RangeRequest {
        revision: 2,
        ..all()
    };
    assert_eq!(
        &decode(&fixture.store.range(&at_2).unwrap().kvs[0]).value[..],
        b"old"
    );
}

#[test]
fn cmp_1_and_2_which_compactions_are_refused() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.store.compacted_revision(), -1);
    fixture.compact(0);
    assert_eq!(fixture.writer.compact(0), Err(CompactError::Compacted));
    fixture.compact(1);
    assert_eq!(fixture.writer.compact(2), Err(CompactError::FutureRevision));
    assert_eq!(fixture.store.compacted_revision(), 1);
    assert_eq!(fixture.store.compaction_finished_revision(), 1);
}

/// VEC-11.
#[test]
fn reads_at_the_compacted_revision_stay_possible() {
    let mut fixture = with_keys(&[("a", "1"); 6]);
    fixture.delete("a", "");
    fixture.put("c", "");
    fixture.compact(8);
    let at = |revision| RangeRequest {
        key: bytes("a"),
        revision,
        ..RangeRequest::default()
    };
    assert_eq!(answer(&fixture, &at(8)), (String::new(), false, 0));
    assert_eq!(fixture.store.range(&at(7)), Err(ReadError::Compacted));
    assert_eq!(fixture.writer.compact(8), Err(CompactError::Compacted));
    let page = fixture.store.events(8, 1, 1).unwrap();
    assert_eq!(page.revisions[0].events[0].kind, EventKind::Delete);
}

#[test]
fn compaction_clears_the_marks_of_deleted_keys_and_the_log() {
    use crate::storage::Column;
    let mut fixture = Fixture::new();
    for n in 0..20 {
        fixture.put(&format!("k{n:02}"), "v");
    }
    fixture.delete("k", "l");
    fixture.put("k05", "again");
    let rows = |fixture: &Fixture, column| fixture.engine.scan_prefix(column, b"").unwrap().len();
    assert_eq!(rows(&fixture, Column::Deleted), 2 * 19);
    fixture.compact(22);
    assert_eq!(rows(&fixture, Column::Deleted), 0);
    fixture.engine.compact_all();
    assert_eq!(rows(&fixture, Column::Log), 20 + 1);
    assert_eq!(fixture.store.compaction_finished_revision(), 22);
    let fixture = fixture.reopen();
    assert_eq!(fixture.store.compaction_finished_revision(), 22);
    assert_eq!(fixture.store.compacted_revision(), 22);
}

#[test]
fn rev_7_the_revision_survives_when_nothing_is_left() {
    let mut fixture = with_keys(&[("a", "")]);
    fixture.delete("a", "");
    fixture.compact(3);
    let mut fixture = fixture.reopen();
    assert_eq!(fixture.store.revision(), 3);
    fixture.put("a", "");
    let kv = decode(&fixture.store.range(&all()).unwrap().kvs[0]);
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (4, 4, 1));
}

#[test]
fn a_hundred_thousand_keys_are_deleted_in_one_revision() {
    const KEYS: usize = 100_000;
    let mut fixture = Fixture::new();
    let mut staged = fixture.writer.begin();
    for n in 0..KEYS {
        staged
            .put(format!("key/{n:06}").into(), bytes("value"), 0)
            .unwrap();
    }
    staged.finish();
    fixture.commit();
    assert_eq!(fixture.store.keys_total() as usize, KEYS);
    let half = RangeRequest {
        limit: 1,
        range_end: bytes("key/050000"),
        ..all()
    };
    assert_eq!(
        answer(&fixture, &half),
        ("key/000000".into(), true, KEYS as i64 / 2)
    );
    let mut staged = fixture.writer.begin();
    assert_eq!(staged.delete_range(b"key/", b"key0").unwrap().len(), KEYS);
    assert_eq!(staged.revision(), 3);
    staged.finish();
    fixture.commit();
    assert_eq!(fixture.store.keys_total(), 0);
    let before = RangeRequest {
        revision: 2,
        limit: 1,
        ..all()
    };
    assert_eq!(
        answer(&fixture, &before),
        ("key/000000".into(), true, KEYS as i64)
    );
    let page = fixture.store.events(3, 1, 1).unwrap();
    assert_eq!(page.revisions[0].events.len(), KEYS);
}

/// What is known of one past revision helps with the next page and with other
/// revisions, whichever keys come and go meanwhile.
#[test]
fn pages_of_past_revisions_count_what_was_left_then() {
    const KEYS: i64 = 60;
    let mut fixture = Fixture::new();
    for n in 0..KEYS {
        fixture.put(&format!("k{n:02}"), "v");
    }
    let all_put = 1 + KEYS;
    for round in 0..KEYS / 2 {
        fixture.delete(&format!("k{:02}", 2 * round), "");
        fixture.put(&format!("k{:02}+", 2 * round), "v");
        let page = |first: i64, revision| RangeRequest {
            key: bytes(&format!("k{first:02}")),
            range_end: bytes("l"),
            limit: 5,
            revision,
            ..RangeRequest::default()
        };
        let count = |first, revision| fixture.store.range(&page(first, revision)).unwrap().count;
        for first in (0..KEYS).step_by(7) {
            let since = all_put + 2 * (round / 2);
            assert_eq!(count(first, all_put), KEYS - first, "{round}");
            assert_eq!(count(first, since), KEYS - first, "{round}");
            let is_short_of_one = first <= 2 * (round / 2);
            assert_eq!(
                count(first, since + 1),
                KEYS - first - i64::from(is_short_of_one),
                "{round}"
            );
            let early = all_put - round;
            assert_eq!(
                count(first, early),
                (KEYS - first - round).max(0),
                "{round}"
            );
        }
    }
}

#[test]
fn meta_rows_commit_with_the_changes() {
    use crate::storage::Column;
    let mut fixture = Fixture::new();
    fixture.writer.put_meta(b"lease/1", b"60");
    assert!(!fixture.writer.is_clean());
    assert_eq!(fixture.engine.get(Column::Meta, b"lease/1").unwrap(), None);
    fixture.writer.commit(7, 2).unwrap();
    assert_eq!(
        fixture
            .engine
            .get(Column::Meta, b"lease/1")
            .unwrap()
            .unwrap(),
        b"60"
    );
    fixture.writer.put_meta(b"lease/1", b"30");
    fixture.writer.delete_meta(b"lease/1");
    fixture.writer.commit(8, 2).unwrap();
    assert_eq!(fixture.engine.get(Column::Meta, b"lease/1").unwrap(), None);
    assert_eq!(fixture.reopen().writer.applied(), (8, 2));
}
