//! Runs all scripts against one kind of server, several at a time, and reports
//! what differs from the recorded output.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::alone;
use crate::member::Program;
use crate::script::{Line, Mistake, Script};
use crate::server::{Kind, Server};
use crate::session::Session;

/// No command takes as long, nor does stopping a server. A command may be a loop
/// of thousands of calls, each of which three members write down, on a machine
/// that runs a dozen servers at the same time.
const PATIENCE: Duration = Duration::from_secs(240);

/// How many servers run at a time; starting one is mostly waiting.
const SERVERS_AT_A_TIME: usize = 4;

/// Scripts are chosen by `STELE_SCRIPTS`, a pattern over `area/name` in which
/// `*` stands for anything; all of them without it.
pub(crate) fn chosen_scripts() -> Vec<PathBuf> {
    let pattern = std::env::var("STELE_SCRIPTS").unwrap_or_else(|_| "*".to_owned());
    let mut scripts: Vec<PathBuf> = all_scripts();
    scripts.retain(|path| matches(&pattern, &name(path)));
    assert!(!scripts.is_empty(), "no script is called {pattern}");
    scripts
}

pub(crate) fn all_scripts() -> Vec<PathBuf> {
    let mut scripts: Vec<PathBuf> = files(&root()).iter().flat_map(|area| files(area)).collect();
    scripts.sort();
    scripts
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts")
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries
        .map(|entry| entry.expect("the entry was listed").path())
        .collect()
}

fn name(path: &Path) -> String {
    let relative = path.strip_prefix(root()).expect("scripts lie in the root");
    relative.display().to_string()
}

fn matches(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(rest) = name.strip_prefix(before) else {
        return false;
    };
    (0..=rest.len()).any(|at| rest.is_char_boundary(at) && matches(after, &rest[at..]))
}

/// Runs the chosen scripts; panics with a report if any failed. `record`
/// writes what the server answered into the scripts instead.
pub(crate) fn run_all(kind: &Kind, record: bool) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let failures = runtime.block_on(async {
        let turns = Arc::new(Semaphore::new(SERVERS_AT_A_TIME));
        let mut running = JoinSet::new();
        for path in chosen_scripts() {
            if alone::is_exempt(&name(&path), kind) {
                continue;
            }
            let (turns, kind) = (turns.clone(), kind.clone());
            running.spawn(async move {
                let _turn = turns
                    .acquire_owned()
                    .await
                    .expect("the semaphore is never closed");
                let mut outcome = run_file(&kind, &path, record).await;
                // A machine that stands still for a second may cost the leader
                // its office, which is not what any script is about.
                for _ in 0..2 {
                    if matches!(&outcome, Err(Failure::RoleLost(_))) {
                        outcome = run_file(&kind, &path, record).await;
                    }
                }
                println!(
                    "{} {}",
                    if outcome.is_ok() { "ok    " } else { "FAILED" },
                    name(&path)
                );
                outcome.map_err(|failure| format!("{}\n{}", name(&path), failure.report()))
            });
        }
        let mut failures: Vec<String> = running
            .join_all()
            .await
            .into_iter()
            .filter_map(Result::err)
            .collect();
        failures.sort();
        failures
    });
    assert!(
        failures.is_empty(),
        "{} scripts failed:\n\n{}",
        failures.len(),
        failures.join("\n")
    );
}

enum Failure {
    /// The answers are not those expected; or something else is wrong.
    Wrong(String),
    /// The same, and another member leads than at the start.
    RoleLost(String),
}

impl Failure {
    fn report(self) -> String {
        match self {
            Failure::Wrong(report) => report,
            Failure::RoleLost(report) => format!("the leader has changed\n{report}"),
        }
    }
}

impl From<String> for Failure {
    fn from(report: String) -> Failure {
        Failure::Wrong(report)
    }
}

async fn run_file(kind: &Kind, path: &Path, record: bool) -> Result<(), Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let script = Script::parse(&text);
    if script.crashes_etcd() && matches!(kind.program, Program::Etcd(_)) {
        return Ok(());
    }
    let server = Server::start(kind, script.server_flags()).await?;
    let mut session = Session::new(server);
    let (mut outputs, mut report) = (Vec::new(), String::new());
    for block in script.blocks() {
        let output = run_block(&mut session, &block.commands).await;
        let output = output.map_err(|mistake| format!("{report}line {}: {mistake}", block.line))?;
        if !record && block.expected.as_ref() != Some(&output) {
            let expected = block.expected.clone().unwrap_or_default();
            writeln!(
                report,
                "line {}:\n{}",
                block.line,
                difference(&block.commands, &expected, &output)
            )
            .expect("a String takes any text");
        }
        outputs.push(output);
    }
    let has_kept_role = session.has_kept_role().await;
    if report.is_empty() {
        report.extend(session.members_agree().await.err());
    }
    let stopped = timeout(PATIENCE, session.stop()).await;
    let complaints = stopped
        .unwrap_or_else(|_| Err("the server does not stop".to_owned()))
        .map_err(|error| format!("{report}{error}"))?;
    let announced = script.expected_logs();
    for complaint in complaints {
        if !announced.iter().any(|text| complaint.contains(text)) {
            writeln!(report, "logged: {complaint}").expect("a String takes any text");
        }
    }
    if record {
        let recorded = script.recorded(&outputs);
        if recorded != text {
            std::fs::write(path, recorded).map_err(|error| error.to_string())?;
        }
    }
    match report.is_empty() {
        true => Ok(()),
        false if has_kept_role => Err(Failure::Wrong(report)),
        false => Err(Failure::RoleLost(report)),
    }
}

async fn run_block(session: &mut Session, commands: &[String]) -> Result<Vec<String>, Mistake> {
    let mut output = Vec::new();
    for line in Line::tree(commands)? {
        let printed = match timeout(PATIENCE, session.run(&line)).await {
            Ok(printed) => printed,
            Err(_) => Err(Mistake::new("hangs")),
        };
        output
            .extend(printed.map_err(|mistake| Mistake::new(format!("{}: {mistake}", line.text)))?);
    }
    Ok(output)
}

/// The commands, and below them what was expected and came: lines in common
/// plain, lines missing with `-`, lines too many with `+`.
fn difference(commands: &[String], expected: &[String], actual: &[String]) -> String {
    let mut text: String = commands
        .iter()
        .map(|line| format!("    > {line}\n"))
        .collect();
    // Longest common subsequence, from the ends; outputs are short.
    let mut common = vec![vec![0_usize; actual.len() + 1]; expected.len() + 1];
    for e in (0..expected.len()).rev() {
        for a in (0..actual.len()).rev() {
            common[e][a] = if expected[e] == actual[a] {
                common[e + 1][a + 1] + 1
            } else {
                common[e + 1][a].max(common[e][a + 1])
            };
        }
    }
    let (mut e, mut a) = (0, 0);
    while e < expected.len() || a < actual.len() {
        let (sign, line) = if e < expected.len() && a < actual.len() && expected[e] == actual[a] {
            (e, a) = (e + 1, a + 1);
            (' ', &actual[a - 1])
        } else if a == actual.len() || (e < expected.len() && common[e + 1][a] >= common[e][a + 1])
        {
            e += 1;
            ('-', &expected[e - 1])
        } else {
            a += 1;
            ('+', &actual[a - 1])
        };
        writeln!(text, "    {sign} {line}").expect("a String takes any text");
    }
    text
}
