//! Tests of the engine against a real RocksDB.

use super::{Batch, Bounds, Column, Engine, Settings, StorageError, keys};
use std::path::Path;
use tempfile::TempDir;

fn open(dir: &TempDir) -> Engine {
    Engine::open(dir.path(), &Settings::default()).unwrap()
}

fn put(engine: &Engine, column: Column, key: &[u8], value: &[u8]) {
    let mut batch = Batch::new();
    batch.put(column, key, value);
    engine.write(batch).unwrap();
}

#[test]
fn a_batch_is_applied_in_order_over_all_columns() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir);
    let mut batch = Batch::new();
    assert!(batch.is_empty());
    batch.put(Column::Log, b"a", b"1");
    batch.put_parts(Column::Current, b"a", &[b"x", b"", b"yz"]);
    batch.put(Column::Current, b"b", b"gone");
    batch.delete(Column::Current, b"b");
    batch.put(Column::Meta, b"m1", b"");
    batch.put(Column::Meta, b"m2", b"");
    batch.put(Column::Meta, b"n", b"");
    batch.delete_range(Column::Meta, b"m1", b"m2");
    batch.delete_range(Column::Meta, b"z", b"a");
    assert_eq!(batch.byte_size(), 21);
    engine.write(batch).unwrap();
    assert_eq!(engine.get(Column::Log, b"a").unwrap().unwrap(), b"1");
    assert_eq!(engine.get(Column::Current, b"a").unwrap().unwrap(), b"xyz");
    assert_eq!(engine.get(Column::Current, b"b").unwrap(), None);
    let rows = engine.scan_prefix(Column::Meta, b"").unwrap();
    assert_eq!(rows, [(b"m2".to_vec(), vec![]), (b"n".to_vec(), vec![])]);
    assert_eq!(engine.scan_prefix(Column::Meta, b"m").unwrap().len(), 1);
}

#[test]
fn a_kill_takes_what_was_not_flushed_from_all_columns() {
    let (dir, left) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engine = open(&dir);
    for column in Column::ALL {
        put(&engine, column, b"before", b"");
    }
    engine.flush().unwrap();
    for column in Column::ALL {
        put(&engine, column, b"after", b"");
    }
    engine.copy_files(left.path()).unwrap();
    let survivor = open(&left);
    for column in Column::ALL {
        let rows = survivor.scan_prefix(column, b"").unwrap();
        assert_eq!(rows, [(b"before".to_vec(), vec![])]);
    }
}

#[test]
fn a_checkpoint_holds_everything_written() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir);
    put(&engine, Column::Current, b"key", b"value");
    let copy = dir.path().join("copy");
    engine.checkpoint(&copy).unwrap();
    put(&engine, Column::Current, b"key", b"later");
    let copy = Engine::open(&copy, &Settings::default()).unwrap();
    assert_eq!(
        copy.get(Column::Current, b"key").unwrap().unwrap(),
        b"value"
    );
}

/// A copy of everything below a folder, as a crash would leave it. RocksDB
/// removes files in the background that it no longer needs; a copy in which
/// that happened is of no one moment.
fn copy_tree(from: &Path, to: &Path) {
    while let Err(error) = try_copy_tree(from, to) {
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
        std::fs::remove_dir_all(to).unwrap();
    }
}

fn try_copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            try_copy_tree(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// An engine with one row in each column, and a checkpoint of another beside it.
fn with_incoming(root: &Path) -> Engine {
    let other = tempfile::tempdir().unwrap();
    let other = open(&other);
    let engine = Engine::open(&root.join("state"), &Settings::default()).unwrap();
    for column in Column::ALL {
        put(&other, column, b"key", b"new");
        put(&engine, column, b"key", b"old");
        put(&engine, column, b"gone", b"old");
    }
    engine.flush().unwrap();
    std::fs::create_dir(root.join("incoming")).unwrap();
    other.checkpoint(&root.join("incoming/1")).unwrap();
    engine
}

fn is_new(engine: &Engine) -> bool {
    let values = Column::ALL.map(|column| engine.get(column, b"key").unwrap().unwrap());
    let is_new = values[0] == b"new";
    for (column, value) in Column::ALL.into_iter().zip(values) {
        assert_eq!(value == b"new", is_new, "a mixture");
        let is_gone = engine.get(column, b"gone").unwrap().is_none();
        assert_eq!(is_gone, is_new, "a mixture");
    }
    is_new
}

fn state_dirs(root: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(root).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name != "incoming").collect();
    names.sort();
    names
}

#[test]
fn an_installed_state_takes_the_place_of_the_old_one() {
    let root = tempfile::tempdir().unwrap();
    let engine = with_incoming(root.path());
    let before = engine.generation();
    let snapshot = before.snapshot();
    let mut rows = before.rows(Column::Log, Bounds::default());
    rows.seek(b"");
    engine.install(&root.path().join("incoming/1")).unwrap();
    assert!(is_new(&engine));
    // Who had begun goes on with what there was.
    assert_eq!(rows.row().unwrap().unwrap(), (&b"gone"[..], &b"old"[..]));
    rows.step();
    assert_eq!(rows.row().unwrap().unwrap(), (&b"key"[..], &b"old"[..]));
    let old = snapshot.get(Column::Meta, b"key").unwrap().unwrap();
    assert_eq!(&*old, b"old");
    assert!(root.path().join("state").exists(), "it is still read");

    put(&engine, Column::Current, b"later", b"");
    engine.flush().unwrap();
    drop((rows, old));
    drop((snapshot, before));
    // The last reader has gone, and so do the files.
    for _ in 0..1000 {
        if !root.path().join("state").exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(state_dirs(root.path()), ["state-2", "state.current"]);
    drop(engine);
    let engine = Engine::open(&root.path().join("state"), &Settings::default()).unwrap();
    assert!(is_new(&engine));
    assert!(engine.get(Column::Current, b"later").unwrap().is_some());
    // And again.
    let other = tempfile::tempdir().unwrap();
    let other = open(&other);
    put(&other, Column::Log, b"third", b"");
    other.checkpoint(&root.path().join("incoming/2")).unwrap();
    engine.install(&root.path().join("incoming/2")).unwrap();
    assert!(engine.get(Column::Log, b"third").unwrap().is_some());
    assert!(root.path().join("state-3").exists());
}

#[test]
fn a_crash_at_any_step_of_an_install_leaves_one_of_the_two_states() {
    let root = tempfile::tempdir().unwrap();
    let (state, copies) = (root.path().join("live"), root.path().join("copies"));
    let engine = with_incoming(&state);
    let mut steps = 0;
    let mut crash = |expected_new: bool| {
        steps += 1;
        let copy = copies.join(steps.to_string());
        copy_tree(&state, &copy);
        let engine = Engine::open(&copy.join("state"), &Settings::default()).unwrap();
        assert_eq!(is_new(&engine), expected_new, "step {steps}");
        let expected: &[&str] = match expected_new {
            true => &["state-2", "state.current"],
            false => &["state"],
        };
        assert_eq!(state_dirs(&copy), expected, "step {steps}");
        // And it can be used.
        put(&engine, Column::Current, b"later", b"");
        engine.flush().unwrap();
    };
    crash(false);
    let next = engine.open_next(&state.join("incoming/1")).unwrap();
    crash(false);
    let mut own = Batch::new();
    own.put(Column::Meta, b"identity", b"mine");
    engine.write_next(&next, own).unwrap();
    crash(false);
    // The marker is written aside before it counts.
    std::fs::write(state.join("state.current.new"), "state-2\n").unwrap();
    let copy = copies.join("aside");
    copy_tree(&state, &copy);
    let reopened = Engine::open(&copy.join("state"), &Settings::default()).unwrap();
    assert!(!is_new(&reopened));
    engine.switch(next).unwrap();
    crash(true);
    put(&engine, Column::Current, b"later", b"");
    engine.flush().unwrap();
    crash(true);
    assert_eq!(
        engine.get(Column::Meta, b"identity").unwrap().unwrap(),
        b"mine"
    );
}

#[test]
fn what_is_no_state_is_not_installed() {
    let root = tempfile::tempdir().unwrap();
    let engine = with_incoming(root.path());
    let dir = root.path().join("incoming/1");
    std::fs::write(dir.join("CURRENT"), "MANIFEST-nonsense\n").unwrap();
    engine.install(&dir).unwrap_err();
    assert!(!is_new(&engine));
    engine
        .install(&root.path().join("incoming/missing"))
        .unwrap_err();
    // Nothing has happened to the old one.
    put(&engine, Column::Current, b"later", b"");
    engine.flush().unwrap();
    drop(engine);
    let engine = Engine::open(&root.path().join("state"), &Settings::default()).unwrap();
    assert!(!is_new(&engine));
    assert_eq!(state_dirs(root.path()), ["state"]);
}

#[test]
fn a_snapshot_outlives_changes_and_its_makers_handle() {
    let dir = tempfile::tempdir().unwrap();
    let engine = std::sync::Arc::new(open(&dir));
    put(&engine, Column::Current, b"key", b"old");
    let snapshot = engine.generation().snapshot();
    put(&engine, Column::Current, b"key", b"new");
    engine.compact_all();
    drop(engine);
    assert_eq!(
        &*snapshot.get(Column::Current, b"key").unwrap().unwrap(),
        b"old"
    );
}

const MIB: u64 = 1 << 20;

/// A quota as small as etcd's own tests use must not be taken up by nothing.
#[test]
fn sizes_follow_what_is_written_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir);
    assert_eq!(engine.total_bytes(), 0);
    let value = incompressible(1 << 20);
    for n in 0..8u8 {
        put(&engine, Column::Log, &keys::log(i64::from(n), 0), &value);
        assert!(
            engine.total_bytes() >= (u64::from(n) + 1) * MIB,
            "known at once"
        );
    }
    engine.flush().unwrap();
    let total_bytes = engine.total_bytes();
    assert!((8 * MIB..9 * MIB).contains(&total_bytes), "{total_bytes}");
    assert!(engine.live_bytes() <= engine.total_bytes());
    engine.compact_all();

    // The last row of the only file stays, and so does the file.
    let generation = engine.generation();
    generation.drop_files_after_flush(Column::Log, &keys::log(0, 0), &keys::log(6, u32::MAX));
    engine.flush().unwrap();
    assert!(engine.total_bytes() >= 8 * MIB, "a file was torn");
    engine.compact_all();
    let total_bytes = engine.total_bytes();
    assert!((MIB..2 * MIB).contains(&total_bytes), "{total_bytes}");
    assert!(engine.get(Column::Log, &keys::log(7, 0)).unwrap().is_some());

    generation.drop_files_after_flush(Column::Log, &keys::log(0, 0), &keys::log(7, u32::MAX));
    assert!(engine.total_bytes() >= MIB, "not before a flush");
    engine.flush().unwrap();
    assert!(
        engine.total_bytes() < MIB,
        "{} bytes are left",
        engine.total_bytes()
    );
}

fn incompressible(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Large values lie in files of their own, which defragmenting must reach.
#[test]
fn overwritten_large_values_are_counted_and_their_space_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir);
    let value = incompressible(1 << 20);
    for round in 0..3u8 {
        for key in 0..8u8 {
            let value = [&[round], &*value].concat();
            put(&engine, Column::Current, &[key], &value);
        }
        engine.flush().unwrap();
    }
    let total_bytes = engine.total_bytes();
    assert!((24 * MIB..25 * MIB).contains(&total_bytes), "{total_bytes}");
    engine.compact_all();
    let (total_bytes, live_bytes) = (engine.total_bytes(), engine.live_bytes());
    assert!((8 * MIB..9 * MIB).contains(&total_bytes), "{total_bytes}");
    assert!((8 * MIB..9 * MIB).contains(&live_bytes), "{live_bytes}");
    let read = engine.get(Column::Current, &[7]).unwrap().unwrap();
    assert!(read[0] == 2 && read[1..] == value);
}

#[test]
fn after_a_failed_write_none_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir);
    put(&engine, Column::Current, b"key", b"value");
    // Without its directory the engine cannot create the next file.
    std::fs::remove_dir_all(dir.path()).unwrap();
    let failure = engine.flush().unwrap_err();
    let mut batch = Batch::new();
    batch.put(Column::Current, b"key", b"lost");
    assert_eq!(engine.write(batch), Err(failure.clone()));
    assert_eq!(engine.flush(), Err(failure));
    assert!(
        engine.get(Column::Current, b"key").unwrap().is_some(),
        "reads go on"
    );
}

#[test]
fn errors_name_the_row() {
    let error = StorageError::corrupt(Column::Log, b"\x00k", "broken");
    assert_eq!(
        error.to_string(),
        r#"corrupt row in column log, key "\x00k": broken"#
    );
}
