//! Rules of the project that no compiler and no lint checks, as data and one
//! test each: who may import whom, which folder may know which crate, what the
//! deterministic folders may not touch, how long a file may be, how it opens,
//! and which names are no names.
//!
//! The tables here are the ones ARCHITECTURE.md explains. `source.rs` reads
//! the files and takes comments, strings and unit tests out of them.

mod source;

use std::fmt::Write as _;

use source::{Source, read_all_sources, read_sources};

/// Who may import whom inside the crate, beside itself. A path stands for
/// itself and all below it, so `lease::table` does not let in `lease::lessor`.
const IMPORTS: &[(&str, &[&str])] = &[
    // What everybody may use knows nobody.
    ("error", &[]),
    ("metrics", &[]),
    ("proto", &[]),
    // The bottom: bytes in, bytes out. Not even the messages (see NO_PROTO).
    ("storage", &[]),
    ("mvcc", &["storage"]),
    ("lease", &["storage"]),
    ("machine", &["lease::table", "mvcc", "storage"]),
    ("watch", &["mvcc"]),
    // Peers are dialed as `http` dials: the transport holds the connections.
    ("consensus", &["http", "machine", "storage"]),
    (
        "chores",
        &[
            "consensus",
            "lease::Lessor",
            "machine::CommandError",
            "machine::Published",
            "machine::command",
            "mvcc",
        ],
    ),
    // The edges. Storage is here for its sizes, `Defragment` and its error.
    (
        "rpc",
        &[
            "consensus",
            "lease::Lessor",
            "lease::lessor",
            "lease::table",
            "machine::CommandError",
            "machine::Published",
            "machine::command",
            "machine::txn",
            "mvcc",
            "storage",
            "watch",
        ],
    ),
    ("http", &[]),
    ("logging", &[]),
    // The top, from the composition root outwards. Options become the settings
    // of the parts that have many.
    ("config", &["http", "logging"]),
    (
        "node",
        &[
            "chores",
            "config",
            "consensus",
            "http",
            "lease",
            "machine",
            "mvcc",
            "rpc",
            "storage",
            "watch",
        ],
    ),
    ("cli", &["config", "logging", "node"]),
    ("main", &["cli"]),
];

/// What every module but those in [`NO_PROTO`] may import.
const FOR_ALL: &[&str] = &["error", "metrics", "proto"];

/// Modules that may not import the generated messages.
const NO_PROTO: &[&str] = &["storage", "config", "logging", "cli", "main"];

/// A crate and the files that may name it (a path stands for all below it).
const CRATES: &[(&str, &[&str])] = &[
    ("rocksdb", &["storage"]),
    ("raft", &["consensus"]),
    ("raft_engine", &["consensus"]),
    ("protobuf", &["consensus"]),
    (
        "tonic",
        &[
            "rpc",
            "proto.rs",
            "proto/codec.rs",
            "http/listener.rs",
            "consensus/transport",
            "consensus/transfer",
        ],
    ),
    ("tonic_reflection", &["rpc"]),
    ("axum", &["http"]),
    ("hyper", &["http"]),
    ("hyper_util", &["http"]),
    ("rustls", &["http"]),
    ("tokio_rustls", &["http"]),
    ("webpki", &["http"]),
    ("x509_cert", &["http"]),
    ("rcgen", &["http"]),
    ("dns_lookup", &["http"]),
    ("clap", &["cli.rs", "config"]),
];

/// Files whose results must depend on nothing but their input: the same
/// entries give the same state on every member.
const DETERMINISTIC: &[&str] = &["machine", "mvcc", "lease/table.rs"];

/// What those may not touch, and what to do instead.
const NONDETERMINISM: &[(&str, &str)] = &[
    (
        "Instant",
        "a clock: let the caller decide by time and propose a command",
    ),
    (
        "SystemTime",
        "a clock: let the caller decide by time and propose a command",
    ),
    (
        "rand",
        "randomness: draw the number before proposing and put it into the command",
    ),
    ("RandomState", "an order that differs from run to run"),
    ("tokio", "the runtime: return values, let consensus drive"),
    (
        "thread",
        "a thread of one's own: offer a step that consensus calls",
    ),
    ("env", "the environment: take it as settings"),
];

/// Words that say nothing in a name, in any place of it.
const NO_NAMES: &[&str] = &[
    "Manager", "Handler", "Helper", "Impl", "Utils", "Util", "Common", "Misc",
];

/// And in the name of a module.
const NO_MODULES: &[&str] = &[
    "utils", "util", "common", "helpers", "helper", "misc", "manager", "types",
];

/// A file longer than this, unit tests not counted, is asked to split where
/// the interface is small.
const MAX_LINES: usize = 600;

/// A benchmark's file is shorter: it is read to see what a number means.
const MAX_LINES_OF_BENCHES: usize = 400;

/// Files that are longer for a reason, each with the reason.
const LONGER: &[(&str, &str)] = &[];

/// `main` is a page.
const MAX_LINES_OF_MAIN: usize = 60;

#[test]
fn modules_import_only_what_the_table_allows() {
    let mut wrong = Findings::default();
    for source in read_sources() {
        let module = source.module();
        let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == module) else {
            if module != "lib" {
                wrong.add(
                    &source,
                    1,
                    format_args!("the module {module} is not in the import table"),
                );
            }
            continue;
        };
        let for_all = FOR_ALL
            .iter()
            .filter(|name| **name != "proto" || !NO_PROTO.contains(&module));
        let allowed: Vec<&str> = allowed
            .iter()
            .chain(for_all)
            .copied()
            .chain([module])
            .collect();
        for import in source.crate_paths() {
            if !allowed
                .iter()
                .any(|path| is_at_or_below(&import.path, path))
            {
                wrong.add(
                    &source,
                    import.line,
                    format_args!("{module} may not import {}", import.path),
                );
            }
        }
    }
    wrong.assert_none();
}

/// An entry nobody uses is a door left open.
#[test]
fn the_import_table_allows_nothing_unused() {
    let sources = read_sources();
    let mut unused = Vec::new();
    for (module, allowed) in IMPORTS {
        for path in *allowed {
            let is_used = sources
                .iter()
                .filter(|source| source.module() == *module)
                .flat_map(Source::crate_paths)
                .any(|import| is_at_or_below(&import.path, path));
            if !is_used {
                unused.push(format!("{module} -> {path}"));
            }
        }
    }
    assert!(
        unused.is_empty(),
        "allowed in IMPORTS but not used: {unused:#?}"
    );
}

/// Dependencies point one way: the table has no cycle.
#[test]
fn the_import_table_has_no_cycle() {
    // Every module must come after all it imports in some order; take away
    // whoever imports only modules taken before, until nothing is left.
    let mut left: Vec<&(&str, &[&str])> = IMPORTS.iter().collect();
    while !left.is_empty() {
        let names: Vec<&str> = left.iter().map(|(name, _)| *name).collect();
        let before = left.len();
        left.retain(|(_, allowed)| {
            allowed
                .iter()
                .any(|path| names.contains(&first_segment(path)))
        });
        assert!(left.len() < before, "a cycle among {names:?}");
    }
}

#[test]
fn crates_stay_in_their_folders() {
    let mut wrong = Findings::default();
    for source in read_sources() {
        for (name, places) in CRATES {
            if places.iter().any(|place| source.is_in(place)) {
                continue;
            }
            for line in source.lines_naming_crate(name) {
                wrong.add(
                    &source,
                    line,
                    format_args!("the crate {name} is known only to {places:?}"),
                );
            }
        }
    }
    wrong.assert_none();
}

#[test]
fn the_state_machine_sees_no_clock_and_no_chance() {
    let mut wrong = Findings::default();
    for source in read_sources() {
        if !DETERMINISTIC.iter().any(|place| source.is_in(place)) {
            continue;
        }
        for (word, instead) in NONDETERMINISM {
            for line in source.lines_with_path_segment(word) {
                wrong.add(&source, line, format_args!("{word} is {instead}"));
            }
        }
    }
    wrong.assert_none();
}

#[test]
fn files_open_with_a_paragraph_and_end_in_time() {
    let mut wrong = Findings::default();
    for source in read_all_sources() {
        if !source.text.starts_with("//! ") {
            wrong.add(
                &source,
                1,
                format_args!("a file opens with what it owns, promises and leaves to others (//!)"),
            );
        }
        let lines = source.lines_without_tests();
        let limit = match source.root {
            "benches" => MAX_LINES_OF_BENCHES,
            _ => MAX_LINES,
        };
        let is_listed = LONGER.iter().any(|(path, _)| source.path == *path);
        if lines > limit && !is_listed {
            wrong.add(
                &source,
                lines,
                format_args!("{lines} lines: split where the interface is small"),
            );
        }
        if lines <= limit && is_listed {
            wrong.add(
                &source,
                lines,
                format_args!("no longer a long file: take it off LONGER"),
            );
        }
        if source.path == "main.rs" && lines > MAX_LINES_OF_MAIN {
            wrong.add(&source, lines, format_args!("main is a page"));
        }
    }
    wrong.assert_none();
}

#[test]
fn nothing_is_left_undone() {
    let mut wrong = Findings::default();
    for source in read_all_sources() {
        for (line, text) in source.code_lines() {
            for unfinished in ["todo!(", "unimplemented!("] {
                if text.contains(unfinished) {
                    wrong.add(&source, line, format_args!("{unfinished}) is left"));
                }
            }
        }
        for (index, text) in source.text.lines().enumerate() {
            for mark in ["TODO", "FIXME", "XXX", "HACK"] {
                if source::has_word(text, mark) {
                    wrong.add(
                        &source,
                        index + 1,
                        format_args!("{mark} is left: do it, or write down why not"),
                    );
                }
            }
        }
    }
    wrong.assert_none();
}

#[test]
fn names_are_nouns_of_the_field() {
    let mut wrong = Findings::default();
    for source in read_all_sources() {
        for (line, name) in source.declared_names() {
            for word in NO_NAMES {
                if source::has_camel_word(name, word) {
                    wrong.add(&source, line, format_args!("{name}: {word} says nothing"));
                }
            }
        }
        for segment in source.path.trim_end_matches(".rs").split('/') {
            if NO_MODULES.contains(&segment) {
                wrong.add(
                    &source,
                    1,
                    format_args!("{segment} is no name for a module"),
                );
            }
        }
    }
    wrong.assert_none();
}

/// `path` is `allowed` or lies below it.
fn is_at_or_below(path: &str, allowed: &str) -> bool {
    path.strip_prefix(allowed)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn first_segment(path: &str) -> &str {
    path.split("::").next().unwrap_or(path)
}

/// All that is wrong, so that one run shows it all.
#[derive(Default)]
struct Findings {
    text: String,
}

impl Findings {
    fn add(&mut self, source: &Source, line: usize, what: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{}/{}:{line}: {what}", source.root, source.path)
            .expect("writing to a String does not fail");
    }

    #[track_caller]
    fn assert_none(&self) {
        assert!(self.text.is_empty(), "\n{}", self.text);
    }
}
