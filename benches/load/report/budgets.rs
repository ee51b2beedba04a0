//! What the project set out to reach, beside what was measured: each line
//! holds or misses. A line whose scenario was not part of the run is left out.
//!
//! Aims are ratios to a server beside it in the same run where they can be;
//! absolute ones are for two cores that client and server share.

use serde::Serialize;

use crate::measure::Sample;
use crate::rounds::Row;
use crate::target::Kind;

use super::table::{bytes, time};

#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub work: &'static str,
    pub aim: &'static str,
    pub measured: String,
    pub holds: bool,
}

struct Budget {
    work: &'static str,
    scenario: &'static str,
    aim: &'static str,
    judge: Judge,
}

enum Judge {
    /// At least so much of another target's operations a second.
    RateOf(Kind, f64),
    /// At most so much of another target's p99.
    P99Of(Kind, f64),
    /// At most so many microseconds.
    Cpu(f64),
    Median(f64),
    /// At most so many bytes at the peak.
    Memory(f64),
    /// CPU at most so much of another scenario's.
    CpuOfScenario(&'static str, f64),
    /// p99 at most so much of another scenario's.
    P99OfScenario(&'static str, f64),
}

#[rustfmt::skip]
const BUDGETS: &[Budget] = &[
    Budget { work: "put 256 B, durable, 64 clients", scenario: "put-256B/64", aim: "0.8 of the limit", judge: Judge::RateOf(Kind::Limit, 0.8) },
    Budget { work: "put 256 B, CPU", scenario: "put-256B/64", aim: "at most 30 us", judge: Judge::Cpu(30.0) },
    Budget { work: "linearizable get, 64 clients", scenario: "get/64", aim: "0.9 of the limit", judge: Judge::RateOf(Kind::Limit, 0.9) },
    Budget { work: "get, then compare-and-put", scenario: "get-then-txn/64", aim: "2.5 x etcd", judge: Judge::RateOf(Kind::Etcd, 2.5) },
    Budget { work: "list 500 of 10k keys, CPU", scenario: "list-500-of-10k/8", aim: "at most 200 us", judge: Judge::Cpu(200.0) },
    Budget { work: "list 500 of 1M keys, CPU", scenario: "list-500-of-1M/8", aim: "as of 10k (1.5 x)", judge: Judge::CpuOfScenario("list-500-of-10k/8", 1.5) },
    Budget { work: "count of 1M keys, CPU", scenario: "count-1M/1", aim: "at most 100 us", judge: Judge::Cpu(100.0) },
    Budget { work: "watch fan-out to 100, CPU", scenario: "watch-fan-out-100", aim: "at most 2 us an event", judge: Judge::Cpu(2.0) },
    Budget { work: "watch fan-out to 100, p99", scenario: "watch-fan-out-100", aim: "half of etcd's", judge: Judge::P99Of(Kind::Etcd, 0.5) },
    Budget { work: "put of one client, p50", scenario: "put-256B/1", aim: "at most 500 us", judge: Judge::Median(500.0) },
    Budget { work: "memory after loading 1M keys", scenario: "load-1M", aim: "at most 300 MB", judge: Judge::Memory(300e6) },
    Budget { work: "memory after loading 10M keys", scenario: "load-10M", aim: "at most 300 MB", judge: Judge::Memory(300e6) },
    Budget { work: "restart, 1M keys", scenario: "restart-clean-1M", aim: "at most 0.3 s", judge: Judge::Median(300e3) },
    Budget { work: "restart after kill -9, 1M keys", scenario: "restart-killed-1M", aim: "at most 1 s", judge: Judge::Median(1e6) },
    Budget { work: "restart, 10M keys", scenario: "restart-clean-10M", aim: "at most 0.3 s", judge: Judge::Median(300e3) },
    Budget { work: "restart after kill -9, 10M keys", scenario: "restart-killed-10M", aim: "at most 1 s", judge: Judge::Median(1e6) },
    Budget { work: "puts while compacting 1M versions, p99", scenario: "put-256B-while-compacting-1M/8", aim: "1.5 x that before", judge: Judge::P99OfScenario("put-256B-before-compaction/8", 1.5) },
    Budget { work: "get beside lists of 1M keys, p99", scenario: "get-beside-lists-of-1M/1", aim: "not above etcd's", judge: Judge::P99Of(Kind::Etcd, 1.0) },
    Budget { work: "get beside 1,000 writers, p99", scenario: "get-beside-1000-writers/1", aim: "not above etcd's", judge: Judge::P99Of(Kind::Etcd, 1.0) },
];

/// A verdict on every budget that this run has the numbers for.
pub fn verdicts(rows: &[Row]) -> Vec<Verdict> {
    let stele = |scenario: &str| {
        let row = rows.iter().find(|row| row.scenario == scenario)?;
        Some((row, row.of(Kind::Stele)?))
    };
    let verdict = |budget: &Budget| {
        let (row, sample) = stele(budget.scenario)?;
        let (measured, holds) = match budget.judge {
            Judge::RateOf(other, at_least) => {
                let share = sample.operations_per_s / row.of(other)?.operations_per_s;
                (format!("{share:.2}"), share >= at_least)
            }
            Judge::P99Of(other, at_most) => share_of_p99(sample, row.of(other)?, at_most),
            Judge::P99OfScenario(other, at_most) => share_of_p99(sample, stele(other)?.1, at_most),
            Judge::CpuOfScenario(other, at_most) => {
                let share = sample.cpu_us_per_operation / stele(other)?.1.cpu_us_per_operation;
                (format!("{share:.2}"), share <= at_most)
            }
            Judge::Cpu(at_most) => {
                let cpu_us = sample.cpu_us_per_operation;
                (time(cpu_us), cpu_us <= at_most)
            }
            Judge::Median(at_most) => {
                let median_us = sample.p50_us as f64;
                (time(median_us), median_us <= at_most)
            }
            Judge::Memory(at_most) => {
                let peak_bytes = sample.peak_rss_bytes as f64;
                (bytes(peak_bytes), peak_bytes <= at_most)
            }
        };
        Some(Verdict {
            work: budget.work,
            aim: budget.aim,
            measured,
            holds,
        })
    };
    BUDGETS.iter().filter_map(verdict).collect()
}

fn share_of_p99(sample: &Sample, other: &Sample, at_most: f64) -> (String, bool) {
    let share = sample.p99_us as f64 / other.p99_us as f64;
    (format!("{share:.2}"), share <= at_most)
}

pub fn text(verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    for verdict in verdicts {
        let Verdict {
            work,
            aim,
            measured,
            holds,
        } = verdict;
        let word = if *holds { "holds" } else { "misses" };
        text.push_str(&format!("{work:<40} {aim:<22} {measured:>9}  {word}\n"));
    }
    text
}
