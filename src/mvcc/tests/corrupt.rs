//! Rows that cannot have been written by us are named, not believed.

use super::{Fixture, bytes};
use crate::mvcc::{ReadError, Store};
use crate::proto::etcdserverpb::RangeRequest;
use crate::storage::{Batch, Column, StorageError, keys};
use std::sync::Arc;

/// The column, the row and a part of the complaint.
fn assert_corrupt<T: std::fmt::Debug>(result: Result<T, ReadError>, column: &str, key: &str) {
    match result {
        Err(ReadError::Storage(StorageError::Corrupt {
            column: found,
            key: at,
            ..
        })) => {
            assert_eq!((found, at.as_str()), (column, key));
        }
        other => panic!("{other:?} is not about a corrupt row"),
    }
}

fn overwrite(fixture: &Fixture, column: Column, key: &[u8], value: &[u8]) {
    let mut batch = Batch::new();
    batch.put(column, key, value);
    fixture.engine.write(batch).unwrap();
}

fn list() -> RangeRequest {
    RangeRequest {
        key: bytes("a"),
        range_end: bytes("\0"),
        ..RangeRequest::default()
    }
}

#[test]
fn a_current_row_of_another_key() {
    let mut fixture = Fixture::new();
    fixture.put("a", "1");
    let row = fixture.engine.get(Column::Current, b"a").unwrap().unwrap();
    overwrite(&fixture, Column::Current, b"b", &row);
    assert_corrupt(fixture.store.range(&list()), "current", "\"b\"");
    let get = RangeRequest {
        key: bytes("b"),
        ..RangeRequest::default()
    };
    assert_corrupt(fixture.store.range(&get), "current", "\"b\"");
}

#[test]
fn a_cut_or_missing_log_row() {
    let mut fixture = Fixture::new();
    fixture.put("a", "1");
    fixture.put("a", "2");
    let key = keys::log(3, 0);
    let name = format!("\"{}\"", key.escape_ascii());
    let row = fixture.engine.get(Column::Log, &key).unwrap().unwrap();
    let at_2 = RangeRequest {
        revision: 2,
        ..list()
    };
    overwrite(&fixture, Column::Log, &key, &row[..row.len() - 1]);
    assert_corrupt(fixture.store.range(&at_2), "log", &name);
    assert_corrupt(fixture.store.events(3, 10, 1000), "log", &name);
    let mut batch = Batch::new();
    batch.delete(Column::Log, &key);
    fixture.engine.write(batch).unwrap();
    assert_corrupt(fixture.store.range(&at_2), "log", &name);
    assert_corrupt(fixture.store.events(2, 10, 1000), "log", &name);
    assert!(
        fixture.store.range(&list()).is_ok(),
        "the present does not need it"
    );
}

#[test]
fn a_store_without_its_revision() {
    let mut fixture = Fixture::new();
    fixture.put("a", "1");
    let mut batch = Batch::new();
    batch.delete(Column::Current, keys::REVISION);
    fixture.engine.write(batch).unwrap();
    assert_corrupt(fixture.store.range(&list()), "current", "\"\"");
    let opened = Store::open(Arc::clone(&fixture.engine)).map(|_| ());
    assert!(matches!(opened, Err(StorageError::Corrupt { .. })));
}
