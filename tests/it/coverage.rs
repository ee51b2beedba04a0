//! Every statement of `tests/data/statements.txt` is named in a script, or has
//! a reason here why no script can show it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::run;

const NEEDS_AUTH: &str = "needs auth, which comes with a later version";
const NEEDS_CLUSTER: &str =
    "needs members that come and go: the tests of consensus, of rpc and tests/robustness";
const CONCURRENCY: &str = "needs concurrent calls: the differential and crash tests";
const CLIENTS: &str = "says what clients do, not servers: tests/clients";
const CONNECTION: &str = "concerns connections, not calls: the tests of the listener";

/// Statements without script, and why.
const EXEMPT: [(&str, &str); 38] = [
    ("GEN-9", NEEDS_AUTH),
    ("GEN-11a", NEEDS_CLUSTER),
    ("GEN-12", NEEDS_CLUSTER),
    ("GEN-13", NEEDS_CLUSTER),
    ("GEN-14", CONCURRENCY),
    ("GEN-17", CONCURRENCY),
    ("GEN-22", "over before a script's first command"),
    (
        "GEN-23",
        "no request to a single member ends in an error without a mapping",
    ),
    ("GEN-26", NEEDS_AUTH),
    ("RNG-27", "cannot be seen from outside"),
    ("RST-4", "a fault of etcd's that is not copied"),
    ("CMP-10", CONCURRENCY),
    ("CMP-11", "happens every five minutes; tested in chores"),
    ("CMP-13", "the size of files is each storage's own"),
    ("WAT-11", NEEDS_AUTH),
    ("WAT-13", NEEDS_CLUSTER),
    ("WAT-17", CONNECTION),
    ("WAT-36", "a fault of etcd's that is not copied"),
    ("WAT-42", "a fault of etcd's that is not copied"),
    ("WAT-43", CLIENTS),
    ("WAT-47", "speed is no promise"),
    ("WAT-49", NEEDS_CLUSTER),
    ("WAT-51", CLIENTS),
    ("WAT-52", CLIENTS),
    ("LEA-7", NEEDS_AUTH),
    (
        "LEA-19",
        "lasts for less than a second, not to be met from outside",
    ),
    ("LEA-22", NEEDS_CLUSTER),
    ("LEA-23", NEEDS_CLUSTER),
    ("LEA-24", CLIENTS),
    ("LEA-24a", NEEDS_CLUSTER),
    ("LEA-27", NEEDS_CLUSTER),
    ("LEA-29", "the JSON gateway comes with a later version"),
    (
        "LEA-31",
        "needs thousands of leases and minutes; tested in lease",
    ),
    ("LEA-32", "takes five minutes; tested in lease and chores"),
    ("LEA-33", NEEDS_CLUSTER),
    ("LEA-34", NEEDS_AUTH),
    ("VEC-10", "the lock service comes with a later version"),
    ("VEC-12", "needs ports 23800; tested where IDs are made"),
];

/// Further ones, without a line each.
const EXEMPT_GROUPS: [(&[&str], &str); 2] = [
    (
        &[
            "LIM-6", "LIM-7", "LIM-8", "LIM-9", "LIM-10", "LIM-11", "LIM-12",
        ],
        CONNECTION,
    ),
    (&["VEC-13"], NEEDS_AUTH),
];

pub(crate) fn check() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/statements.txt");
    let list = std::fs::read_to_string(path).expect("the list of statements is there");
    let statements: BTreeSet<&str> = list.lines().filter(|line| !line.starts_with('#')).collect();

    let mut named = BTreeSet::new();
    for script in run::all_scripts() {
        let text = std::fs::read_to_string(&script).expect("the script was listed");
        let comments = text.lines().filter_map(|line| line.strip_prefix('#'));
        named.extend(comments.flat_map(ids).map(str::to_owned));
    }
    let mut exempt: BTreeMap<&str, &str> = EXEMPT.into_iter().collect();
    for (ids, reason) in EXEMPT_GROUPS {
        exempt.extend(ids.iter().map(|id| (*id, reason)));
    }

    let missing: Vec<_> = statements
        .iter()
        .filter(|id| !named.contains(**id) && !exempt.contains_key(**id))
        .collect();
    let needless: Vec<_> = exempt
        .keys()
        .filter(|id| named.contains(**id) || !statements.contains(**id))
        .collect();
    assert!(missing.is_empty(), "no script names {missing:?}");
    assert!(
        needless.is_empty(),
        "exempt, but a script names it or it does not exist: {needless:?}"
    );
}

fn ids(comment: &str) -> impl Iterator<Item = &str> {
    let words = comment.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.filter(|word| {
        word.len() > 4
            && word.as_bytes()[3] == b'-'
            && word[..3].bytes().all(|b| b.is_ascii_uppercase())
    })
}
