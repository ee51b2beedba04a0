//! The load benchmark: three servers side by side under the same load.
//!
//! ```text
//! load generator ──┬── limit   this binary as a tonic server that stores nothing
//! (this process)   ├── etcd    the real one: STELE_REFERENCE_ETCD or the search path
//!                  └── stele
//! ```
//!
//! Each is a child process, so that its CPU time, memory and disk writes are
//! its own; with `--cluster` etcd and stele are three each, whose sums count. [`scenarios`] is the list of what is measured; [`rounds`] takes the
//! servers through it in turns; [`report`] prints. What counts are the ratios:
//! absolute numbers are those of one machine on one day.
//!
//! An answer that is not the expected one ends the run. The load generator
//! shares the machine with the servers, and is as cheap as it can be made
//! ([`wire`], [`keys`]).

// `pub` marks what a file offers to the others; there is no public interface.
#![allow(unreachable_pub)]

mod catch_up;
mod compaction;
mod elections;
mod fairness;
mod keys;
mod leases;
mod limit;
mod lists;
mod load;
mod measure;
mod options;
mod points;
mod report;
mod restarts;
mod rounds;
mod scenarios;
mod sizes;
#[path = "../../tests/support/mod.rs"]
mod support;
mod target;
mod usage;
mod watches;
mod wire;

use std::process::ExitCode;

use options::Options;
use rounds::Row;
use target::Kind;
use tokio::signal::unix::{SignalKind, signal};

/// As in stele: the limit must not lose by its allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == limit::ARGUMENT) {
        return limit::serve();
    }
    match options::read(lexopt::Parser::from_env()) {
        Ok(Some(options)) => measure(&options),
        Ok(None) => {
            print!("{}", options::USAGE);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}\n\n{}", options::USAGE);
            ExitCode::from(2)
        }
    }
}

fn measure(options: &Options) -> ExitCode {
    if options.is_list {
        list(options);
        return ExitCode::SUCCESS;
    }
    if options.targets.contains(&Kind::Etcd) && report::etcd_version().is_none() {
        eprintln!(
            "cannot run etcd: name it in STELE_REFERENCE_ETCD (`make reference` builds it), \
             or leave it out with --target limit,stele"
        );
        return ExitCode::FAILURE;
    }
    if let Err(error) = std::fs::create_dir_all(&options.data) {
        eprintln!("cannot create {}: {error}", options.data.display());
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("the runtime starts");
    // A run that is stopped takes its servers and their data along.
    let rows = runtime.block_on(async {
        tokio::select! {
            rows = run_all(options) => Some(rows),
            () = stop_signal() => None,
        }
    });
    let Some(rows) = rows else {
        eprintln!("stopped by a signal");
        return ExitCode::FAILURE;
    };
    match report::write(&rows, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write to {}: {error}", options.out.display());
            ExitCode::FAILURE
        }
    }
}

async fn run_all(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    for suite in scenarios::suites(options) {
        rows.extend(rounds::run(suite, options).await);
    }
    rows
}

async fn stop_signal() {
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be listened for");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

fn list(options: &Options) {
    for suite in scenarios::suites(options) {
        for step in suite.steps {
            if options.selects(step.name()) {
                println!("{}", step.name());
            }
        }
    }
}
