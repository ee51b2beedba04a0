//! Everything that was measured, each round of it, and on what.

use std::fs;
use std::process::Command;
use std::time::SystemTime;

use serde::Serialize;

use super::budgets::Verdict;
use crate::options::Options;
use crate::rounds::Row;
use crate::support::process::Program;

#[derive(Serialize)]
struct Report<'a> {
    mode: &'static str,
    is_cluster: bool,
    measured_seconds: f64,
    rounds: usize,
    machine: Machine,
    budgets: &'a [Verdict],
    rows: &'a [Row],
}

#[derive(Serialize)]
pub(super) struct Machine {
    cores: usize,
    processor: String,
    memory_bytes: u64,
    kernel: String,
    etcd: String,
    stele: &'static str,
    /// Seconds since 1970.
    unix_time: u64,
}

pub(super) fn text(
    rows: &[Row],
    budgets: &[Verdict],
    machine: Machine,
    options: &Options,
) -> String {
    let report = Report {
        mode: options.mode.name(),
        is_cluster: options.is_cluster,
        measured_seconds: options.measured.as_secs_f64(),
        rounds: options.rounds,
        machine,
        budgets,
        rows,
    };
    serde_json::to_string_pretty(&report).expect("numbers and names are JSON")
}

impl Machine {
    pub(super) fn this() -> Machine {
        Machine {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: line_of("/proc/cpuinfo", "model name"),
            memory_bytes: line_of("/proc/meminfo", "MemTotal")
                .split(' ')
                .next()
                .and_then(|kb| kb.parse::<u64>().ok())
                .unwrap_or_default()
                * 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map(|text| text.trim().to_owned())
                .unwrap_or_default(),
            etcd: etcd_version().unwrap_or_default(),
            stele: env!("CARGO_PKG_VERSION"),
            unix_time: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        }
    }
    /// One line under a drawing.
    pub(super) fn caption(&self) -> String {
        let gib = self.memory_bytes >> 30;
        format!(
            "{} cores shared with the load, {gib} GiB, {}; etcd {}",
            self.cores, self.processor, self.etcd
        )
    }
}

/// What follows the colon in the first line that begins so.
fn line_of(path: &str, label: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(label));
    line.and_then(|line| line.split_once(':'))
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default()
}

/// The version etcd prints for itself; none when it cannot be started.
pub fn etcd_version() -> Option<String> {
    let output = Command::new(Program::Etcd.path())
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.lines().next()?.strip_prefix("etcd Version: ")?;
    Some(version.to_owned())
}
