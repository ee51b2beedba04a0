//! Runs suites: fresh servers, their data, and each scenario in rounds in
//! which the targets take turns, so that a machine that slows down does so for
//! all of them. Only one server is under load at a time.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::keys::KeySpace;
use crate::load;
use crate::measure::{Sample, Timing};
use crate::options::Options;
use crate::points::VALUE_BYTES;
use crate::scenarios::{Headline, Scenario, Step, Suite};
use crate::target::{Kind, Target};

/// Long enough for connections, caches and the allocator to settle.
const WARM_UP: Duration = Duration::from_millis(500);

/// What was measured of one scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub scenario: String,
    pub headline: Headline,
    pub clients: usize,
    pub measured: Vec<Measured>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub target: Kind,
    /// The round in the middle, by operations a second.
    pub median: Sample,
    pub rounds: Vec<Sample>,
}

impl Row {
    pub fn of(&self, kind: Kind) -> Option<&Sample> {
        let measured = self.measured.iter().find(|one| one.target == kind)?;
        Some(&measured.median)
    }
}

/// All that is selected of one suite.
pub async fn run(mut suite: Suite, options: &Options) -> Vec<Row> {
    suite.keep_selected(options);
    if suite.steps.is_empty() {
        return Vec::new();
    }
    eprintln!("{}:", suite.name);
    let mut targets = start(&suite, options).await;
    let mut rows = Vec::new();
    for step in &suite.steps {
        let row = match step {
            Step::Load {
                name,
                times,
                headline,
            } => load_all(name, *times, *headline, &mut targets).await,
            Step::Measure(scenario) => measure(scenario, &mut targets, options).await,
        };
        rows.push(row);
    }
    rows.retain(|row| options.selects(&row.scenario));
    rows
}

impl Suite {
    /// Drops scenarios that were not asked for, and loads that none needs.
    fn keep_selected(&mut self, options: &Options) {
        self.steps.retain(|step| match step {
            Step::Load { .. } => true,
            Step::Measure(_) => options.selects(step.name()),
        });
        while let Some(Step::Load { name, .. }) = self.steps.last() {
            if options.selects(name) {
                break;
            }
            self.steps.pop();
        }
    }

    fn has_limit(&self) -> bool {
        self.steps.iter().any(|step| match step {
            Step::Load { .. } => false,
            Step::Measure(scenario) => scenario.has_limit,
        })
    }
}

async fn start(suite: &Suite, options: &Options) -> Vec<Target> {
    let space = KeySpace::new(load::PREFIX, suite.keys);
    let mut targets = Vec::new();
    for &kind in &options.targets {
        if kind.stores() || suite.has_limit() {
            let space = space.clone();
            targets
                .push(Target::start(kind, suite.members, &options.data, space, VALUE_BYTES).await);
        }
    }
    targets
}

async fn load_all(name: &str, times: usize, headline: Headline, targets: &mut [Target]) -> Row {
    let mut measured = Vec::new();
    for target in targets.iter_mut().filter(|target| target.kind.stores()) {
        let sample = load::put_all(target, times).await;
        target.settle().await;
        measured.push(Measured {
            target: target.kind,
            median: sample.clone(),
            rounds: vec![sample],
        });
    }
    let row = Row {
        scenario: name.to_owned(),
        headline,
        clients: load::IN_FLIGHT,
        measured,
    };
    eprintln!("  {}", row.line());
    row
}

async fn measure(scenario: &Scenario, targets: &mut [Target], options: &Options) -> Row {
    let timing = Timing {
        warm_up: WARM_UP,
        measured: options.measured,
    };
    let rounds = if scenario.is_once { 1 } else { options.rounds };
    let began = Instant::now();
    let mut measured: Vec<Measured> = Vec::new();
    for _ in 0..rounds {
        for target in targets.iter_mut() {
            if !target.kind.stores() && !scenario.has_limit {
                continue;
            }
            let sample = scenario.run(target, timing).await;
            match measured.iter_mut().find(|one| one.target == target.kind) {
                Some(one) => one.rounds.push(sample),
                None => measured.push(Measured {
                    target: target.kind,
                    median: Sample::default(),
                    rounds: vec![sample],
                }),
            }
        }
    }
    for one in &mut measured {
        one.median = median(&one.rounds);
    }
    let row = Row {
        scenario: scenario.name.clone(),
        headline: scenario.headline,
        clients: scenario.clients,
        measured,
    };
    eprintln!("  {} ({:.0} s)", row.line(), began.elapsed().as_secs_f64());
    row
}

impl Row {
    /// Progress, for who watches the run.
    fn line(&self) -> String {
        let mut line = self.scenario.clone();
        for one in &self.measured {
            let rate = one.median.operations_per_s;
            line.push_str(&format!(", {} {rate:.0}/s", one.target.name()));
        }
        line
    }
}

fn median(rounds: &[Sample]) -> Sample {
    let mut sorted: Vec<&Sample> = rounds.iter().collect();
    sorted.sort_by(|a, b| a.operations_per_s.total_cmp(&b.operations_per_s));
    sorted[sorted.len() / 2].clone()
}
