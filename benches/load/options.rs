//! The command line of the benchmark.
//!
//! `cargo bench` passes `--bench` to every benchmark, which is accepted and
//! means nothing here.

use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::{Long, Short, ValueExt as _};

use crate::target::Kind;

pub const USAGE: &str = "\
usage: cargo bench --bench load -- [options]

  --quick            one short round with small data sets, under 5 minutes
  --scale            only what needs 10 million keys (etcd and stele)
  --cluster          three members of etcd beside three of stele; goes with --quick
  --only TEXT        scenarios whose name contains TEXT; may be repeated
  --target LIST      of limit,etcd,stele; all by default
  --seconds N        how long a round of a scenario is measured
  --rounds N         rounds of each scenario; the median is reported
  --out DIR          where load.json and load.svg are written
  --data DIR         where the servers keep their data: a disk, not memory
  --list             print the names of the scenarios
";

/// Which sizes and how much patience.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Full,
    Quick,
    Scale,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Full => "full",
            Mode::Quick => "quick",
            Mode::Scale => "scale",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Options {
    pub mode: Mode,
    /// Clusters instead of single servers.
    pub is_cluster: bool,
    /// Parts of names; a scenario is selected by any of them. Empty: all.
    pub only: Vec<String>,
    pub targets: Vec<Kind>,
    pub measured: Duration,
    pub rounds: usize,
    pub out: PathBuf,
    pub data: PathBuf,
    pub is_list: bool,
}

impl Options {
    pub fn selects(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part))
    }
}

/// Reads the arguments; `None` when help was asked for.
pub fn read(arguments: lexopt::Parser) -> Result<Option<Options>, lexopt::Error> {
    let mut arguments = arguments;
    let below_target = target_folder().join("bench");
    let mut mode = Mode::Full;
    let mut only = Vec::new();
    let mut targets = vec![Kind::Limit, Kind::Etcd, Kind::Stele];
    let mut seconds: Option<f64> = None;
    let mut rounds: Option<usize> = None;
    let mut is_cluster = false;
    let mut out: Option<PathBuf> = None;
    let mut data = below_target.join("data");
    let mut is_list = false;
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("quick") => mode = Mode::Quick,
            Long("scale") => mode = Mode::Scale,
            Long("cluster") => is_cluster = true,
            Long("only") => only.push(arguments.value()?.string()?),
            Long("target") => targets = arguments.value()?.parse_with(kinds)?,
            Long("seconds") => seconds = Some(arguments.value()?.parse()?),
            Long("rounds") => rounds = Some(arguments.value()?.parse()?),
            Long("out") => out = Some(arguments.value()?.into()),
            Long("data") => data = arguments.value()?.into(),
            Long("list") => is_list = true,
            Long("bench") => {}
            Short('h') | Long("help") => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    let (default_seconds, default_rounds) = match mode {
        Mode::Full | Mode::Scale => (3.0, 3),
        Mode::Quick => (1.0, 1),
    };
    let seconds = seconds.unwrap_or(default_seconds);
    let measured = Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|measured| !measured.is_zero())
        .ok_or("--seconds must be above 0")?;
    if is_cluster && mode == Mode::Scale {
        return Err("--cluster and --scale do not go together".into());
    }
    // A run of clusters does not replace what single servers came to.
    let out = out.unwrap_or_else(|| match is_cluster {
        true => below_target.join("cluster"),
        false => below_target,
    });
    Ok(Some(Options {
        mode,
        is_cluster,
        only,
        targets,
        measured,
        rounds: rounds.unwrap_or(default_rounds).max(1),
        out,
        data,
        is_list,
    }))
}

/// Always in the order in which they take turns.
fn kinds(list: &str) -> Result<Vec<Kind>, String> {
    let mut kinds = Vec::new();
    for name in list.split(',') {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        kinds.push(kind.ok_or_else(|| format!("{name} is none of limit, etcd, stele"))?);
    }
    kinds.sort();
    kinds.dedup();
    Ok(kinds)
}

/// Cargo's target folder: this binary lies in `<target>/release/deps`.
fn target_folder() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|path| path.ancestors().nth(3).map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from("target"))
}
