//! HashKV beside etcd: histories replayed, and the hashes etcd gave for them.

use super::{Fixture, bytes};
use crate::mvcc::Staged;

const RECORDED: &str = include_str!("hash_kv.txt");

#[test]
fn hashes_are_those_that_etcd_gave() {
    let mut fixture = Fixture::new();
    let mut hashes = 0;
    for (number, line) in (1..).zip(RECORDED.lines()) {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "#" => {}
            "new" => fixture = Fixture::new(),
            "txn" => {
                let mut staged = fixture.writer.begin();
                rest.split(" ; ")
                    .for_each(|change| apply(&mut staged, change));
                staged.finish();
                fixture.commit();
            }
            "compact" => fixture.compact(rest.parse().unwrap()),
            "hash" => {
                let (revision, expected) = rest.split_once(" = ").unwrap();
                let got = fixture.store.hash_kv(revision.parse().unwrap()).unwrap();
                assert_eq!(
                    got.hash,
                    expected.parse::<u32>().unwrap(),
                    "line {number}: {line}"
                );
                hashes += 1;
            }
            _ => panic!("line {number}: {line}"),
        }
    }
    assert!(hashes > 20, "the recording has {hashes} hashes");
}

fn apply(staged: &mut Staged<'_>, change: &str) {
    let words: Vec<_> = change
        .split(' ')
        .map(|word| word.trim_matches('"'))
        .collect();
    match words[..] {
        ["put", key, value] => {
            staged.put(bytes(key), bytes(value), 0).unwrap();
        }
        ["del", key, "-"] => {
            staged.delete_range(key.as_bytes(), b"").unwrap();
        }
        ["del", key, end] => {
            staged.delete_range(key.as_bytes(), end.as_bytes()).unwrap();
        }
        _ => panic!("{change}"),
    }
}
