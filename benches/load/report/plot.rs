//! The drawing: for each scenario how many times etcd's rate stele has, and
//! how many times less CPU it uses for an operation, on a logarithmic axis.
//! The line at 1 is etcd; to the right of it is better.

use svg::Document;
use svg::node::element::{Circle, Group, Line, Rectangle, Text, Title};

use crate::rounds::Row;
use crate::scenarios::Headline;
use crate::target::Kind;

const WIDTH: f64 = 960.0;
/// Where names end and the axis begins.
const LEFT: f64 = 300.0;
/// Room for the number after the longest bar.
const RIGHT: f64 = 70.0;
const TOP: f64 = 92.0;
const ROW: f64 = 22.0;
const BAR: f64 = 12.0;
const BOTTOM: f64 = 34.0;

/// Colours that stand on white and on GitHub's dark page, and differ for eyes
/// that cannot tell red from green.
const BETTER: &str = "#2f7ed8";
const WORSE: &str = "#d9822b";
const CPU: &str = "#1a1a1a";
const GRID: &str = "#d0d4da";
const INK: &str = "#24292f";
const FAINT: &str = "#6b737d";

/// One line of the drawing.
struct Bar {
    name: String,
    /// stele's rate in etcd's. Where less is better, etcd's in stele's.
    ratio: f64,
    /// etcd's CPU for an operation in stele's; none where either is too small
    /// to be seen.
    cpu: Option<f64>,
}

/// `None` when no scenario has both etcd and stele.
pub fn drawing(rows: &[Row], caption: &str) -> Option<String> {
    let bars: Vec<Bar> = rows.iter().filter_map(bar).collect();
    if bars.is_empty() {
        return None;
    }
    let axis = Axis::of(&bars);
    let height = TOP + ROW * bars.len() as f64 + BOTTOM;
    let mut document = Document::new()
        .set("viewBox", (0.0, 0.0, WIDTH, height))
        .set("width", WIDTH)
        .set("height", height)
        .set(
            "font-family",
            "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif",
        )
        .set("font-size", 12)
        .add(Title::new("stele beside etcd"))
        .add(
            Rectangle::new()
                .set("width", WIDTH)
                .set("height", height)
                .set("fill", "#ffffff"),
        );
    document = document
        .add(
            label(16.0, 26.0, "stele beside etcd", INK)
                .set("font-size", 17)
                .set("font-weight", 600),
        )
        .add(label(16.0, 46.0, caption, FAINT))
        .add(legend());
    document = document.add(grid(&axis, height - BOTTOM));
    for (place, bar) in bars.iter().enumerate() {
        document = document.add(draw(bar, &axis, TOP + ROW * place as f64));
    }
    Some(document.to_string())
}

fn bar(row: &Row) -> Option<Bar> {
    let (etcd, stele) = (row.of(Kind::Etcd)?, row.of(Kind::Stele)?);
    let cpu = etcd.cpu_us_per_operation / stele.cpu_us_per_operation;
    let (ratio, what) = match row.headline {
        Headline::None => return None,
        Headline::Rate => (stele.operations_per_s / etcd.operations_per_s, ""),
        Headline::P99 => (etcd.p99_us as f64 / stele.p99_us as f64, "p99 of "),
        Headline::Memory => (
            etcd.peak_rss_bytes as f64 / stele.peak_rss_bytes as f64,
            "memory, ",
        ),
    };
    // Elsewhere the CPU time is that of what goes on beside it, too.
    let has_cpu = row.headline == Headline::Rate && cpu.is_finite() && cpu > 0.0;
    Some(Bar {
        name: format!("{what}{}", row.scenario),
        ratio,
        cpu: has_cpu.then_some(cpu),
    })
}

/// From a ratio to a place, by logarithms.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// Holds all ratios with a little room on either side, and says 0.5 and 2
    /// at least.
    fn of(bars: &[Bar]) -> Axis {
        let ratios = bars.iter().flat_map(|bar| [Some(bar.ratio), bar.cpu]);
        let (mut low, mut high) = (0.5f64, 2f64);
        for ratio in ratios.flatten() {
            low = low.min(ratio);
            high = high.max(ratio);
        }
        Axis {
            low: low / 1.15,
            high: high * 1.15,
        }
    }

    fn x(&self, ratio: f64) -> f64 {
        let share = (ratio / self.low).ln() / (self.high / self.low).ln();
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    /// 1, 2 and 5 of each power of ten, as far as they lie on it.
    fn marks(&self) -> Vec<f64> {
        let (first, last) = (self.low.log10().floor(), self.high.log10().ceil());
        let powers = first as i32..=last as i32;
        let marks = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(power)));
        marks
            .filter(|mark| (self.low..=self.high).contains(mark))
            .collect()
    }
}

fn grid(axis: &Axis, bottom: f64) -> Group {
    let mut group = Group::new();
    for mark in axis.marks() {
        let is_etcd = mark == 1.0;
        let (colour, width) = if is_etcd { (INK, 1.5) } else { (GRID, 1.0) };
        let name = match mark {
            _ if is_etcd => "etcd".to_owned(),
            mark if mark < 1.0 => format!("{mark:.1}x"),
            mark => format!("{mark:.0}x"),
        };
        let x = axis.x(mark);
        group = group
            .add(
                Line::new()
                    .set("x1", x)
                    .set("x2", x)
                    .set("y1", TOP - 6.0)
                    .set("y2", bottom)
                    .set("stroke", colour)
                    .set("stroke-width", width),
            )
            .add(label(x, bottom + 18.0, &name, FAINT).set("text-anchor", "middle"));
    }
    group
}

fn draw(bar: &Bar, axis: &Axis, y: f64) -> Group {
    let middle = y + ROW / 2.0;
    let (one, end) = (axis.x(1.0), axis.x(bar.ratio));
    let colour = if bar.ratio >= 1.0 { BETTER } else { WORSE };
    let cpu = bar.cpu.map(|cpu| axis.x(cpu));
    let after = one.max(end).max(cpu.unwrap_or(end)) + 9.0;
    let mut group = Group::new()
        .add(label(LEFT - 10.0, middle + 4.0, &bar.name, INK).set("text-anchor", "end"))
        .add(
            Rectangle::new()
                .set("x", one.min(end))
                .set("y", middle - BAR / 2.0)
                .set("width", (end - one).abs().max(1.0))
                .set("height", BAR)
                .set("fill", colour),
        )
        .add(label(
            after,
            middle + 4.0,
            &super::table::ratio(bar.ratio),
            INK,
        ));
    if let Some(cpu) = cpu {
        group = group.add(dot(cpu, middle));
    }
    group
}

fn dot(x: f64, y: f64) -> Circle {
    Circle::new()
        .set("cx", x)
        .set("cy", y)
        .set("r", 4)
        .set("fill", "#ffffff")
        .set("stroke", CPU)
        .set("stroke-width", 1.8)
}

fn legend() -> Group {
    let y = 68.0;
    let square = |x, colour| {
        Rectangle::new()
            .set("x", x)
            .set("y", y - 9.0)
            .set("width", 12)
            .set("height", 10)
            .set("fill", colour)
    };
    Group::new()
        .add(square(16.0, BETTER))
        .add(square(30.0, WORSE))
        .add(label(
            48.0,
            y,
            "operations a second (p99, memory: how many times less)",
            INK,
        ))
        .add(dot(440.0, y - 4.0))
        .add(label(452.0, y, "operations from the same CPU time", INK))
}

fn label(x: f64, y: f64, text: &str, colour: &str) -> Text {
    Text::new(text).set("x", x).set("y", y).set("fill", colour)
}
