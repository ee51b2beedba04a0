//! raft's log lines, passed on to tracing.
//!
//! raft speaks slog. What it calls information is about single steps of its
//! protocol and goes out as debug; leader changes are logged by the drive loop
//! in words of ours.

use std::fmt::Write as _;

use slog::{Drain, KV, Key, Level, Logger, OwnedKVList, Record, o};

/// A logger for raft that ends in tracing.
pub(super) fn raft_logger() -> Logger {
    Logger::root(ToTracing, o!())
}

struct ToTracing;

impl Drain for ToTracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), slog::Never> {
        let mut text = record.msg().to_string();
        // Writing to a string cannot fail, and a log line may be incomplete.
        let _ = record.kv().serialize(record, &mut Appended(&mut text));
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "stele::raft", "{text}"),
            Level::Warning => tracing::warn!(target: "stele::raft", "{text}"),
            Level::Info | Level::Debug | Level::Trace => {
                tracing::debug!(target: "stele::raft", "{text}");
            }
        }
        Ok(())
    }
}

/// Appends ", key: value" for each pair.
struct Appended<'a>(&'a mut String);

impl slog::Serializer for Appended<'_> {
    fn emit_arguments(&mut self, key: Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, ", {key}: {value}").map_err(slog::Error::from)
    }
}
