//! The process: its allocator, its failpoints, and [`stele::cli`] for the rest.

use std::process::ExitCode;

/// One allocator for Rust and RocksDB alike: RocksDB's own allocations are
/// most of the process, and two allocators would each keep what they free.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // Reads FAILPOINTS, for the tests that stop a process at a named point.
    // Dropping it disarms them, so it lives as long as the process.
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();

    stele::cli::run()
}
