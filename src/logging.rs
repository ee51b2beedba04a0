//! Log lines in etcd's shape, so that whatever reads the logs of etcd reads
//! these: one JSON object a line with `level`, `ts`, `caller` and `msg` first,
//! or the same separated by tabs (`--log-format=console`).
//!
//! Logging is by `tracing` everywhere; this file decides what is let through,
//! how it looks and where it goes. Lines are written by the thread that logs,
//! each in one write, so a line is out before the process can die of what it
//! reports. Rotation of files comes later.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

use parking_lot::Mutex;
use serde_json::{Map, Value};
use thiserror::Error;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What to log, how and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub level: Level,
    pub format: Format,
    pub outputs: Vec<Output>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            level: Level::Info,
            format: Format::Json,
            outputs: vec![Output::Stderr],
        }
    }
}

/// The lowest level that is let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    Console,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Stdout,
    Stderr,
    /// Appended to; made if missing.
    File(PathBuf),
}

impl Output {
    /// An entry of `--log-outputs`. The journal takes what a service writes to
    /// stderr, so that is where lines for it go.
    pub fn from_name(name: &str) -> Output {
        match name {
            "stdout" => Output::Stdout,
            "default" | "stderr" | "systemd/journal" => Output::Stderr,
            path => Output::File(path.into()),
        }
    }
}

#[derive(Debug, Error)]
#[error("cannot open log file {}: {source}", path.display())]
pub struct OpenLogError {
    path: PathBuf,
    source: io::Error,
}

/// From now on, the process logs by `settings`. Also logs panics, with their
/// place. Only the first call counts: tests start several servers.
pub fn init(settings: &Settings) -> Result<(), OpenLogError> {
    let lines = Lines {
        format: settings.format,
        sinks: open(&settings.outputs)?,
    };
    let is_first = tracing_subscriber::registry()
        .with(targets(settings.level))
        .with(lines)
        .try_init()
        .is_ok();
    if is_first {
        let default_hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            tracing::error!(panic = %panic, "a thread panicked");
            default_hook(panic);
        }));
    }
    Ok(())
}

/// Our own lines from `level` up; of the libraries only what is wrong, since
/// at debug they would bury ours.
fn targets(level: Level) -> Targets {
    let (ours, theirs) = match level {
        Level::Debug => (LevelFilter::DEBUG, LevelFilter::WARN),
        Level::Info => (LevelFilter::INFO, LevelFilter::WARN),
        Level::Warn => (LevelFilter::WARN, LevelFilter::WARN),
        Level::Error => (LevelFilter::ERROR, LevelFilter::ERROR),
    };
    Targets::new()
        .with_default(theirs)
        // Its log files are preallocated, so every start finds unwritten room
        // behind the last entry and warns of a broken tail.
        .with_target("raft_engine", LevelFilter::ERROR)
        .with_target("stele", ours)
}

fn open(outputs: &[Output]) -> Result<Vec<Sink>, OpenLogError> {
    let mut sinks = Vec::with_capacity(outputs.len());
    for output in outputs {
        let sink = match output {
            Output::Stdout => Sink::Stdout,
            Output::Stderr => Sink::Stderr,
            Output::File(path) => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                let file = file.map_err(|source| OpenLogError {
                    path: path.clone(),
                    source,
                })?;
                Sink::File(Mutex::new(file))
            }
        };
        sinks.push(sink);
    }
    Ok(sinks)
}

enum Sink {
    Stdout,
    Stderr,
    File(Mutex<File>),
}

impl Sink {
    /// Nobody can be told of a log that does not take a line, so errors end
    /// here.
    fn write(&self, line: &[u8]) {
        let _ = match self {
            Sink::Stdout => io::stdout().lock().write_all(line),
            Sink::Stderr => io::stderr().lock().write_all(line),
            Sink::File(file) => file.lock().write_all(line),
        };
    }
}

/// Makes a line of each event and writes it to all sinks. Spans are not shown.
struct Lines {
    format: Format,
    sinks: Vec<Sink>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = match self.format {
            Format::Json => json_line(event),
            Format::Console => console_line(event),
        };
        line.push('\n');
        for sink in &self.sinks {
            sink.write(line.as_bytes());
        }
    }
}

/// `{"level":...,"ts":...,"caller":...,"msg":...,` and the fields in the order
/// in which they were given `}`.
fn json_line(event: &Event<'_>) -> String {
    let fields = Fields::of(event);
    let mut line = format!(
        r#"{{"level":"{}","ts":"{}","caller":{},"msg":{}"#,
        level_name(event),
        timestamp(),
        Value::from(caller(event)),
        Value::from(fields.message),
    );
    for (name, value) in fields.others {
        line += &format!(",{}:{value}", Value::from(name));
    }
    line.push('}');
    line
}

/// The same, separated by tabs; the fields as one JSON object at the end.
fn console_line(event: &Event<'_>) -> String {
    let fields = Fields::of(event);
    let level = level_name(event);
    let mut line = format!(
        "{}\t{level}\t{}\t{}",
        timestamp(),
        caller(event),
        fields.message
    );
    if !fields.others.is_empty() {
        let others: Map<String, Value> = fields
            .others
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        line += &format!("\t{}", Value::Object(others));
    }
    line
}

fn level_name(event: &Event<'_>) -> &'static str {
    match *event.metadata().level() {
        tracing::Level::ERROR => "error",
        tracing::Level::WARN => "warn",
        tracing::Level::INFO => "info",
        _ => "debug",
    }
}

/// UTC, to the microsecond: `2026-07-29T10:00:00.123456Z`.
fn timestamp() -> String {
    let mut text = String::with_capacity(27);
    // Writing to a String cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

/// Folder, file and line, without what all places share.
fn caller(event: &Event<'_>) -> String {
    let metadata = event.metadata();
    match (metadata.file(), metadata.line()) {
        (Some(file), Some(line)) => {
            let file = file.rsplit_once("src/").map_or(file, |(_, file)| file);
            format!("{file}:{line}")
        }
        _ => metadata.target().to_owned(),
    }
}

/// The fields of an event as JSON values.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    fn of(event: &Event<'_>) -> Fields {
        let mut fields = Fields::default();
        event.record(&mut fields);
        fields
    }

    fn add(&mut self, field: &Field, value: Value) {
        // What the `log` bridge adds about itself is no field of the event.
        if field.name().starts_with("log.") {
            return;
        }
        self.others.push((field.name(), value));
    }

    fn add_text(&mut self, field: &Field, text: String) {
        if field.name() == "message" {
            self.message = text;
        } else {
            self.add(field, Value::from(text));
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add_text(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add_text(field, value.to_owned());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Value::from(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Value::from(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line that `log` writes to a file in `format`.
    fn line(format: Format, log: impl FnOnce()) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let sinks = open(&[Output::File(path.clone())]).unwrap();
        let subscriber = tracing_subscriber::registry()
            .with(targets(Level::Info))
            .with(Lines { format, sinks });
        tracing::subscriber::with_default(subscriber, log);
        std::fs::read_to_string(path).unwrap()
    }

    fn is_timestamp(text: &str) -> bool {
        let shape = "0000-00-00T00:00:00.000000Z";
        text.len() == shape.len()
            && text.bytes().zip(shape.bytes()).all(|(byte, shape)| {
                if shape == b'0' {
                    byte.is_ascii_digit()
                } else {
                    byte == shape
                }
            })
    }

    #[test]
    fn json_lines_have_the_shape_of_etcd() {
        let line = line(Format::Json, || {
            tracing::warn!(
                member_id = "8e9e",
                took_ms = 5_u64,
                ok = true,
                "slow \"apply\""
            );
        });
        let rest = line.strip_prefix(r#"{"level":"warn","ts":""#).unwrap();
        let (timestamp, rest) = rest.split_once(r#"","caller":"logging.rs:"#).unwrap();
        assert!(is_timestamp(timestamp), "{timestamp}");
        let (_, rest) = rest.split_once(r#"","msg":"#).unwrap();
        let expected = r#""slow \"apply\"","member_id":"8e9e","took_ms":5,"ok":true}"#;
        assert_eq!(rest, format!("{expected}\n"));
    }

    #[test]
    fn console_lines_are_separated_by_tabs() {
        let line = line(Format::Console, || {
            tracing::info!(revision = 7, "compacted");
        });
        let cells: Vec<&str> = line.trim_end().split('\t').collect();
        assert!(is_timestamp(cells[0]), "{line}");
        assert_eq!(cells[1], "info");
        assert!(cells[2].starts_with("logging.rs:"), "{line}");
        assert_eq!(cells[3..], ["compacted", r#"{"revision":7}"#]);
    }

    #[test]
    fn lower_levels_and_chatty_libraries_are_left_out() {
        assert_eq!(line(Format::Json, || tracing::debug!("detail")), "");
        assert_eq!(
            line(Format::Json, || tracing::info!(target: "h2", "frame")),
            ""
        );
    }

    #[test]
    fn outputs_have_names() {
        assert_eq!(Output::from_name("stdout"), Output::Stdout);
        for name in ["default", "stderr", "systemd/journal"] {
            assert_eq!(Output::from_name(name), Output::Stderr);
        }
        assert_eq!(
            Output::from_name("/var/log/x"),
            Output::File("/var/log/x".into())
        );
    }
}
