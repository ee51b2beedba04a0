//! The scripts of `tests/scripts`, run in four places: against a node inside
//! this process, against a child process of the built binary, against a member
//! of a cluster of three such processes, and against real etcd that is alone.
//! The expected output in a script is only ever recorded from the last.
//!
//! - `STELE_SCRIPTS=watch/*` runs some of them;
//! - `STELE_COMPAT=1` also runs real etcd (`STELE_REFERENCE_ETCD` or `etcd` in
//!   the path), which is how the recorded output is kept honest, and the leader
//!   of our cluster besides a follower;
//! - `STELE_COMPAT_CLUSTER=1` runs a leader and a follower of a real cluster of
//!   etcd, which is how the list of scripts for a single server is kept honest;
//! - `STELE_RECORD=1` with `STELE_COMPAT=1` writes etcd's answers into the scripts.
//!
//! `script.rs` describes the file format, `session.rs`, `requests.rs` and
//! `streams.rs` the commands, `show.rs` what is printed.

mod alone;
mod coverage;
mod gather;
mod in_process;
mod member;
#[path = "../support/ports.rs"]
#[allow(unreachable_pub, reason = "other test binaries share the file")]
mod ports;
mod requests;
mod run;
mod script;
mod server;
mod session;
mod show;
mod streams;
mod words;

use std::path::PathBuf;

use member::Program;
use server::{Kind, Role};

#[test]
fn scripts_in_process() {
    run_all(Program::InProcess, Role::Alone);
}

#[test]
fn scripts_against_a_child_process() {
    run_all(child(), Role::Alone);
}

#[test]
fn scripts_against_a_follower() {
    run_all(child(), Role::Follower);
}

#[test]
fn scripts_against_a_leader() {
    if is_set("STELE_COMPAT") {
        run_all(child(), Role::Leader);
    }
}

#[test]
fn scripts_against_etcd() {
    if is_set("STELE_COMPAT") {
        let kind = Kind {
            program: reference(),
            role: Role::Alone,
        };
        run::run_all(&kind, is_set("STELE_RECORD"));
    }
}

#[test]
fn scripts_against_a_cluster_of_etcd() {
    if is_set("STELE_COMPAT_CLUSTER") {
        run_all(reference(), Role::Leader);
        run_all(reference(), Role::Follower);
    }
}

#[test]
fn every_statement_has_a_script_or_a_reason() {
    coverage::check();
}

fn run_all(program: Program, role: Role) {
    run::run_all(&Kind { program, role }, false);
}

fn child() -> Program {
    Program::Child(PathBuf::from(env!("CARGO_BIN_EXE_stele")))
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

fn reference() -> Program {
    let binary = std::env::var_os("STELE_REFERENCE_ETCD")
        .map_or_else(|| PathBuf::from("etcd"), PathBuf::from);
    let version = std::process::Command::new(&binary)
        .arg("--version")
        .output();
    let version =
        version.unwrap_or_else(|error| panic!("{}, the reference: {error}", binary.display()));
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    assert!(
        version.contains("etcd Version: 3.7."),
        "the reference must be etcd 3.7, this is: {version}"
    );
    Program::Etcd(binary)
}
