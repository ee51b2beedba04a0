//! A difference, for the person who has to find its cause.

use std::fmt::{self, Debug};

use crate::outcome::Outcome;
use crate::request::{Request, shorten};

/// Lines of each answer that are shown around the first difference.
const SHOWN_LINES: usize = 40;
const SHOWN_LINE_BYTES: usize = 300;

pub struct Difference {
    pub seed: u64,
    pub members: usize,
    /// The number of the request, from 1.
    pub step: u64,
    pub request: String,
    pub reference: Outcome,
    pub subject: Outcome,
    pub history: Vec<(u64, Request, Outcome)>,
    pub logs: [String; 2],
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "--- seed {} step {}: recent history",
            self.seed, self.step
        )?;
        for (step, request, outcome) in &self.history {
            writeln!(f, "{step}: {}", request.summary())?;
            writeln!(f, "    -> {}", brief(outcome))?;
        }
        let [reference_log, subject_log] = &self.logs;
        writeln!(
            f,
            "--- reference: {reference_log}\n--- subject: {subject_log}"
        )?;
        writeln!(f, "--- seed {} step {}: a difference", self.seed, self.step)?;
        writeln!(f, "{}", self.request)?;
        write_difference(f, &self.reference, &self.subject)?;
        writeln!(
            f,
            "--- again with: STELE_DIFF_SEED={} STELE_DIFF_MEMBERS={} make compat",
            self.seed, self.members
        )
    }
}

/// The parts of two answers that are not equal, line by line.
fn write_difference(
    f: &mut fmt::Formatter<'_>,
    reference: &dyn Debug,
    subject: &dyn Debug,
) -> fmt::Result {
    let (reference, subject) = (format!("{reference:#?}"), format!("{subject:#?}"));
    let left: Vec<&str> = reference.lines().collect();
    let right: Vec<&str> = subject.lines().collect();
    let before = left
        .iter()
        .zip(&right)
        .take_while(|(left, right)| left == right)
        .count();
    let behind = left[before..]
        .iter()
        .rev()
        .zip(right[before..].iter().rev())
        .take_while(|(left, right)| left == right)
        .count();
    // Enough lines before to see which field of which key it is.
    let context = before.saturating_sub(12);
    for line in &left[context..before] {
        writeln!(f, "           {line}")?;
    }
    for (name, lines) in [("reference", &left), ("subject  ", &right)] {
        let differing = &lines[before..lines.len() - behind];
        for line in differing.iter().take(SHOWN_LINES) {
            let mut line = (*line).to_owned();
            shorten(&mut line, SHOWN_LINE_BYTES);
            writeln!(f, "{name}  {line}")?;
        }
        if differing.len() > SHOWN_LINES {
            writeln!(
                f,
                "{name}  ... {} more lines",
                differing.len() - SHOWN_LINES
            )?;
        }
    }
    Ok(())
}

fn brief(outcome: &Outcome) -> String {
    let mut text = match outcome {
        Outcome::Failure(failure) => format!("{:?}: {}", failure.code, failure.text),
        Outcome::Reply(reply) => format!("{reply:?}"),
        Outcome::Broken(reason) => format!("broken: {reason}"),
    };
    shorten(&mut text, SHOWN_LINE_BYTES);
    text
}
