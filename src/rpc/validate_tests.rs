//! Tests of [`super`]: shapes that pass and shapes that are refused.

use super::*;
use crate::proto::etcdserverpb::Compare;

const MAX_OPS: usize = 128;

fn op(op: Op) -> RequestOp {
    RequestOp { request: Some(op) }
}

fn put_op(key: &'static str) -> RequestOp {
    op(Op::RequestPut(PutRequest {
        key: key.into(),
        ..PutRequest::default()
    }))
}

fn delete_op(key: &'static str, range_end: &'static str) -> RequestOp {
    op(Op::RequestDeleteRange(DeleteRangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        ..DeleteRangeRequest::default()
    }))
}

fn range_op(key: &'static str) -> RequestOp {
    op(Op::RequestRange(RangeRequest {
        key: key.into(),
        ..RangeRequest::default()
    }))
}

fn txn_op(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
    op(Op::RequestTxn(TxnRequest {
        compare: Vec::new(),
        success,
        failure,
    }))
}

fn compares(keys: impl IntoIterator<Item = &'static str>) -> Vec<Compare> {
    let compare = |key: &'static str| Compare {
        key: key.into(),
        ..Compare::default()
    };
    keys.into_iter().map(compare).collect()
}

fn check(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> Result<(), Refusal> {
    let request = TxnRequest {
        compare: Vec::new(),
        success,
        failure,
    };
    txn(&request, MAX_OPS)
}

fn ranges(count: usize) -> Vec<RequestOp> {
    vec![range_op("k"); count]
}

/// VEC-18, both as a success and as a failure branch.
#[test]
fn duplicate_keys() {
    let put = || put_op("abc");
    let del = || delete_op("a", "b");
    let cases = [
        ("put, put", vec![put(), put()], false),
        ("put, del abc", vec![put(), delete_op("abc", "")], false),
        ("put, del", vec![put(), del()], false),
        (
            "put, nested(del)",
            vec![put(), txn_op(vec![del()], vec![])],
            false,
        ),
        (
            "del, nested(put)",
            vec![del(), txn_op(vec![put()], vec![])],
            false,
        ),
        (
            "nested(put|put), nested(put|put)",
            vec![
                txn_op(vec![put()], vec![put()]),
                txn_op(vec![put()], vec![put()]),
            ],
            false,
        ),
        (
            "del [abb,abc), nested(put|put)",
            vec![delete_op("abb", "abc"), txn_op(vec![put()], vec![put()])],
            true,
        ),
        (
            "nested(del), nested(del|del)",
            vec![
                txn_op(vec![del()], vec![]),
                txn_op(vec![del()], vec![del()]),
            ],
            true,
        ),
        (
            "del abc, del, del abc, del",
            vec![delete_op("abc", ""), del(), delete_op("abc", ""), del()],
            true,
        ),
        (
            "put, del [abb,abc)",
            vec![put(), delete_op("abb", "abc")],
            true,
        ),
    ];
    for (name, ops, is_fine) in cases {
        let expected = if is_fine {
            Ok(())
        } else {
            Err(status::DUPLICATE_KEY)
        };
        assert_eq!(check(ops.clone(), vec![]), expected, "success: {name}");
        assert_eq!(check(vec![], ops), expected, "failure: {name}");
    }
}

/// TXN-23: what only looks like a duplicate, and what etcd does not see.
#[test]
fn duplicates_between_siblings() {
    let put = || put_op("abc");
    let del = || delete_op("a", "b");
    let nested_put_then_nested_delete =
        vec![txn_op(vec![put()], vec![]), txn_op(vec![del()], vec![])];
    assert_eq!(check(nested_put_then_nested_delete, vec![]), Ok(()));
    let nested_delete_then_nested_put =
        vec![txn_op(vec![del()], vec![]), txn_op(vec![], vec![put()])];
    assert_eq!(
        check(nested_delete_then_nested_put, vec![]),
        Err(status::DUPLICATE_KEY)
    );
    let put_or_delete = vec![txn_op(vec![put()], vec![del()])];
    assert_eq!(check(put_or_delete, vec![]), Ok(()));
    assert_eq!(check(vec![put()], vec![put()]), Ok(()));
    let deep = vec![
        put(),
        txn_op(vec![txn_op(vec![], vec![delete_op("abc", "")])], vec![]),
    ];
    assert_eq!(check(deep, vec![]), Err(status::DUPLICATE_KEY));
}

/// TXN-24.
#[test]
fn an_open_delete_never_counts() {
    assert_eq!(
        check(vec![put_op("abc"), delete_op("a", "\0")], vec![]),
        Ok(())
    );
    assert_eq!(
        check(vec![put_op("abc"), delete_op("\0", "\0")], vec![]),
        Ok(())
    );
    assert_eq!(
        check(vec![put_op("\0"), delete_op("\0", "")], vec![]),
        Err(status::DUPLICATE_KEY)
    );
}

#[test]
fn ranges_of_deletes_join() {
    let deletes = || {
        vec![
            delete_op("m", "p"),
            delete_op("a", "c"),
            delete_op("b", "n"),
            delete_op("x", ""),
            delete_op("z", "y"),
        ]
    };
    for (key, is_deleted) in [
        ("a", true),
        ("c", true),
        ("o", true),
        ("p", false),
        ("w", false),
        ("x", true),
        ("x\0", false),
        ("y", false),
        ("z", false),
        ("A", false),
    ] {
        let mut ops = deletes();
        ops.push(put_op(key));
        assert_eq!(check(ops, vec![]).is_err(), is_deleted, "{key:?}");
        // The same with the deletes in a nested transaction.
        let ops = vec![txn_op(deletes(), vec![]), put_op(key)];
        assert_eq!(check(ops, vec![]).is_err(), is_deleted, "nested, {key:?}");
    }
}

/// The union of ranges against its definition, on all small cases.
#[test]
fn unions_hold_what_their_parts_hold() {
    let keys = ["a", "b", "b\0", "c", "d"].map(Bytes::from);
    let ends = ["", "a", "b", "b\0", "c", "d", "\0"].map(Bytes::from);
    let parts: Vec<_> = keys
        .iter()
        .flat_map(|key| ends.iter().map(move |end| (key, end)))
        .collect();
    for first in &parts {
        for second in &parts {
            for third in &parts {
                let all = [first, second, third];
                let mut union = Ranges::default();
                for (key, end) in all {
                    union.insert_request(key, end);
                }
                for probe in &keys {
                    let expected = all.iter().any(|(key, end)| {
                        (end.is_empty() && probe == *key) || (probe >= key && probe < *end)
                    });
                    assert_eq!(union.contains(probe), expected, "{all:?}, {probe:?}");
                    let probes = BTreeSet::from([probe.as_ref()]);
                    assert_eq!(union.contain_any(&probes), expected);
                }
            }
        }
    }
}

/// TXN-20, TXN-21.
#[test]
fn the_budget_of_operations() {
    let too_many = Err(status::TOO_MANY_OPS);
    let full = TxnRequest {
        compare: compares(["k"; MAX_OPS]),
        success: ranges(MAX_OPS),
        failure: ranges(MAX_OPS),
    };
    assert_eq!(txn(&full, MAX_OPS), Ok(()));
    assert_eq!(check(ranges(MAX_OPS + 1), vec![]), too_many);
    assert_eq!(check(vec![], ranges(MAX_OPS + 1)), too_many);
    let compared = TxnRequest {
        compare: compares(["k"; MAX_OPS + 1]),
        ..TxnRequest::default()
    };
    assert_eq!(txn(&compared, MAX_OPS), too_many);

    let with_nested = |outer: usize, nested: usize| {
        let mut ops = ranges(outer - 2);
        ops.push(txn_op(ranges(nested), vec![]));
        ops.push(txn_op(vec![], ranges(nested)));
        check(ops, vec![])
    };
    assert_eq!(with_nested(100, 28), Ok(()));
    assert_eq!(with_nested(100, 29), too_many);
}

/// TXN-28 as far as the log can hold it.
#[test]
fn nesting_ends_before_the_decoder_gives_up() {
    let nested = |depth: usize| {
        let mut ops = vec![put_op("k")];
        for _ in 1..depth {
            ops = vec![txn_op(ops, vec![])];
        }
        ops
    };
    assert_eq!(check(nested(MAX_TXN_DEPTH), vec![]), Ok(()));
    assert_eq!(
        check(nested(MAX_TXN_DEPTH + 1), vec![]),
        Err(status::TOO_MANY_OPS)
    );

    use crate::machine::{Body, Command};
    use prost::Message as _;
    let command = Command {
        header: None,
        body: Some(Body::Txn(TxnRequest {
            success: nested(MAX_TXN_DEPTH),
            ..TxnRequest::default()
        })),
    };
    let entry = command.encode_to_vec();
    assert_eq!(Command::decode(entry.as_slice()), Ok(command));
}

/// TXN-7, TXN-25, TXN-26, TXN-27.
#[test]
fn operations_are_checked_at_every_depth() {
    let put_without_key = || put_op("");
    let empty = || RequestOp { request: None };
    for (bad, refusal) in [
        (put_without_key(), status::EMPTY_KEY),
        (delete_op("", ""), status::EMPTY_KEY),
        (range_op(""), status::EMPTY_KEY),
        (empty(), status::KEY_NOT_FOUND),
        (
            op(Op::RequestRange(RangeRequest {
                key: "k".into(),
                sort_target: 9,
                ..RangeRequest::default()
            })),
            status::INVALID_SORT_OPTION,
        ),
    ] {
        assert_eq!(check(vec![bad.clone()], vec![]), Err(refusal));
        assert_eq!(check(vec![], vec![bad.clone()]), Err(refusal));
        let nested = txn_op(vec![txn_op(vec![], vec![bad])], vec![]);
        assert_eq!(check(vec![], vec![nested]), Err(refusal));
    }

    // Compares come before operations, operations before duplicates.
    let request = TxnRequest {
        compare: compares(["k", ""]),
        success: vec![empty()],
        failure: vec![],
    };
    assert_eq!(txn(&request, MAX_OPS), Err(status::EMPTY_KEY));
    let twice_and_empty = vec![put_op("k"), put_op("k"), empty()];
    assert_eq!(check(twice_and_empty, vec![]), Err(status::KEY_NOT_FOUND));
}

/// PUT-1, PUT-2.
#[test]
fn puts() {
    let request = PutRequest {
        key: "k".into(),
        ..PutRequest::default()
    };
    assert_eq!(put(&request), Ok(()));
    assert_eq!(put(&PutRequest::default()), Err(status::EMPTY_KEY));
    let both = PutRequest {
        value: "v".into(),
        ignore_value: true,
        lease: 1,
        ignore_lease: true,
        ..request.clone()
    };
    assert_eq!(put(&both), Err(status::VALUE_PROVIDED));
    let lease = PutRequest {
        lease: -1,
        ignore_lease: true,
        ..request
    };
    assert_eq!(put(&lease), Err(status::LEASE_PROVIDED));
}

/// RNG-1, RNG-13.
#[test]
fn ranges_name_known_orders() {
    let with = |sort_order, sort_target| {
        range(&RangeRequest {
            key: "k".into(),
            sort_order,
            sort_target,
            ..RangeRequest::default()
        })
    };
    assert_eq!(with(2, 4), Ok(()));
    for (order, target) in [(3, 0), (-1, 0), (0, 5), (0, -1), (i32::MAX, i32::MIN)] {
        assert_eq!(with(order, target), Err(status::INVALID_SORT_OPTION));
    }
    assert_eq!(range(&RangeRequest::default()), Err(status::EMPTY_KEY));
}

/// RST-3, RST-4.
#[test]
fn streams_neither_sort_nor_filter() {
    let base = || RangeRequest {
        key: "k".into(),
        ..RangeRequest::default()
    };
    let sorted = |sort_order, sort_target| RangeRequest {
        sort_order,
        sort_target,
        ..base()
    };
    assert_eq!(range_stream(&sorted(0, 0)), Ok(()));
    assert_eq!(range_stream(&sorted(0, 3)), Ok(()));
    assert_eq!(range_stream(&sorted(1, 0)), Ok(()));
    assert_eq!(range_stream(&sorted(1, 1)), Err(status::STREAM_SORT));
    assert_eq!(range_stream(&sorted(2, 0)), Err(status::STREAM_SORT));
    let filtered = RangeRequest {
        max_create_revision: 1,
        ..base()
    };
    assert_eq!(range_stream(&filtered), Err(status::STREAM_FILTERS));
}
