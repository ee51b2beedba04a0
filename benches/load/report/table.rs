//! The table: a line for each scenario and target, and beside stele's what it
//! is to the others.

use std::fmt::Write as _;

use crate::measure::Sample;
use crate::rounds::Row;
use crate::target::Kind;

const HEAD: [&str; 14] = [
    "scenario",
    "target",
    "op/s",
    "p50",
    "p99",
    "p99.9",
    "CPU/op",
    "peak RSS",
    "written/op",
    "of limit",
    "of etcd",
    "p99",
    "CPU",
    "also",
];

pub fn text(rows: &[Row]) -> String {
    let mut lines = vec![HEAD.map(str::to_owned)];
    for row in rows {
        for (place, one) in row.measured.iter().enumerate() {
            let name = if place == 0 {
                row.scenario.as_str()
            } else {
                ""
            };
            lines.push(line(name, row, one.target, &one.median));
        }
    }
    align(&lines)
}

fn line(name: &str, row: &Row, kind: Kind, sample: &Sample) -> [String; HEAD.len()] {
    // Ratios stand beside stele: what it does for each operation of another.
    let beside = |other, of: fn(&Sample) -> f64| match row.of(other) {
        Some(other) if kind == Kind::Stele && of(other) > 0.0 => ratio(of(sample) / of(other)),
        _ => String::new(),
    };
    let rate: fn(&Sample) -> f64 = |sample| sample.operations_per_s;
    let p99: fn(&Sample) -> f64 = |sample| sample.p99_us as f64;
    let cpu: fn(&Sample) -> f64 = |sample| sample.cpu_us_per_operation;
    [
        name.to_owned(),
        kind.name().to_owned(),
        number(sample.operations_per_s),
        time(sample.p50_us as f64),
        time(sample.p99_us as f64),
        time(sample.p999_us as f64),
        time(sample.cpu_us_per_operation),
        bytes(sample.peak_rss_bytes as f64),
        bytes(sample.write_bytes_per_operation),
        beside(Kind::Limit, rate),
        beside(Kind::Etcd, rate),
        beside(Kind::Etcd, p99),
        beside(Kind::Etcd, cpu),
        extra(sample),
    ]
}

/// The numbers that only this scenario has, each with its name.
fn extra(sample: &Sample) -> String {
    let named = |(name, value): (&&str, &f64)| format!("{name} {}", number(*value));
    let named: Vec<String> = sample.extra.iter().map(named).collect();
    named.join(", ")
}

/// Columns as wide as their widest cell; words to the left, numbers to the
/// right.
fn align(lines: &[[String; HEAD.len()]]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (column, cell) in line.iter().enumerate() {
            let width = width(column).unwrap_or_default();
            if column < 2 || column == HEAD.len() - 1 {
                write!(row, "{cell:<width$}  ").expect("writing to a String does not fail");
            } else {
                write!(row, "{cell:>width$}  ").expect("writing to a String does not fail");
            }
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}

pub(super) fn time(us: f64) -> String {
    match us {
        us if us < 10.0 => format!("{us:.1} us"),
        us if us < 1e3 => format!("{us:.0} us"),
        us if us < 1e5 => format!("{:.1} ms", us / 1e3),
        us if us < 1e6 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

pub(super) fn bytes(value: f64) -> String {
    match value {
        value if value >= 1e9 => format!("{:.2} GB", value / 1e9),
        value if value >= 1e6 => format!("{:.0} MB", value / 1e6),
        value if value >= 1e4 => format!("{:.0} kB", value / 1e3),
        value => format!("{value:.0} B"),
    }
}

pub(super) fn ratio(value: f64) -> String {
    match value {
        value if value >= 10.0 => format!("{value:.0}x"),
        value if value >= 0.1 => format!("{value:.2}x"),
        value => format!("{value:.4}x"),
    }
}
