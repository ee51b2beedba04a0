//! Where values come from: the command line, variables, or one file.
//!
//! The rules are etcd's, which are Go's: one dash or two; a boolean takes its
//! value only after `=`; the first word that is no flag ends the flags, and is
//! an error. A variable fills a flag that was not given, but the same option
//! in both places stops the start, since nobody could say which is meant. With
//! a file, flags and variables are parsed but not used.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value as Json;

use super::ConfigError;
use super::flags::{self, FLAGS, Fate, Flag, VARIABLE_PREFIX};
use super::value::Value;
use crate::http::Url;

/// The options that were given, each with its value.
#[derive(Debug, Default)]
pub(super) struct Values {
    given: HashMap<&'static str, Value>,
    is_from_file: bool,
}

impl Values {
    /// Reads a command line without the name of the program. The last of
    /// several values of a flag counts.
    pub(super) fn from_args(args: impl IntoIterator<Item = String>) -> Result<Values, ConfigError> {
        let mut values = Values::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let body = match arg.strip_prefix('-') {
                None | Some("") => return Err(ConfigError::Leftover(arg)),
                Some(body) => body.strip_prefix('-').unwrap_or(body),
            };
            if body.is_empty() {
                // Two dashes end the flags; whatever follows is left over.
                return args
                    .next()
                    .map_or(Ok(values), |arg| Err(ConfigError::Leftover(arg)));
            }
            if body.starts_with(['-', '=']) {
                return Err(ConfigError::BadSyntax(arg));
            }
            let (name, value) = match body.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (body, None),
            };
            let name = if name == "h" { "help" } else { name };
            let flag =
                flags::find(name).ok_or_else(|| ConfigError::UnknownFlag(name.to_owned()))?;
            let text = match value {
                Some(text) => text,
                None if flag.kind.is_switch() => "true".to_owned(),
                None => args.next().ok_or(ConfigError::NoArgument(flag.name))?,
            };
            let value = flag
                .kind
                .parse(&text)
                .map_err(|reason| ConfigError::BadArgument {
                    flag: flag.name,
                    text,
                    reason,
                })?;
            values.given.insert(flag.name, value);
        }
        Ok(values)
    }

    /// Fills what was not given from variables. Variables that name no flag
    /// are left, with a notice, since images set such (`ETCD_VER`).
    pub(super) fn add_variables(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
        notices: &mut Vec<String>,
    ) -> Result<(), ConfigError> {
        let mut from_variables = HashMap::new();
        for (name, text) in variables {
            if !name.starts_with(VARIABLE_PREFIX) {
                continue;
            }
            let is_asked = |flag: &&Flag| !matches!(flag.name, "version" | "help");
            let flag = FLAGS
                .iter()
                .filter(is_asked)
                .find(|flag| flag.variable() == name);
            let Some(flag) = flag else {
                notices.push(format!("unrecognized environment variable {name}"));
                continue;
            };
            if self.given.contains_key(flag.name) {
                return Err(ConfigError::ShadowedVariable {
                    name,
                    flag: flag.name,
                });
            }
            if text.is_empty() {
                continue;
            }
            let value = flag
                .kind
                .parse(&text)
                .map_err(|reason| ConfigError::BadVariable { name, text, reason })?;
            from_variables.insert(flag.name, value);
        }
        self.given.extend(from_variables);
        Ok(())
    }

    /// Reads a file in YAML, or JSON, which is YAML. Keys that name no option
    /// are ignored.
    pub(super) fn from_file(path: &Path) -> Result<Values, ConfigError> {
        let error = |reason: String| ConfigError::BadFile {
            path: path.to_owned(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|e| error(e.to_string()))?;
        let root: Json = serde_norway::from_str(&text).map_err(|e| error(e.to_string()))?;
        if !matches!(root, Json::Object(_) | Json::Null) {
            return Err(error("must be a mapping of options".to_owned()));
        }
        let mut values = Values {
            given: HashMap::new(),
            is_from_file: true,
        };
        for flag in FLAGS.iter().filter(|flag| !flag.file_key.is_empty()) {
            let found = flag
                .file_key
                .split('/')
                .try_fold(&root, |json, key| json.get(key));
            let Some(json) = found else { continue };
            let value = flag
                .kind
                .read_from_file(json)
                .map_err(|reason| error(format!("{}: {reason}", flag.file_key)))?;
            values.given.extend(value.map(|value| (flag.name, value)));
        }
        Ok(values)
    }

    /// Moves values under older names to the newer ones, if those were not
    /// given themselves, and takes the feature gates among them out.
    pub(super) fn take_old_names(&mut self, notices: &mut Vec<String>) -> Vec<(String, bool)> {
        let mut gates = Vec::new();
        for flag in FLAGS {
            let new = match flag.fate {
                Fate::RenamedTo(new) => format!("--{new}"),
                Fate::Gate(gate) => format!("--feature-gates={gate}"),
                _ => continue,
            };
            let Some(value) = self.given.remove(flag.name) else {
                continue;
            };
            notices.push(format!("--{} is deprecated, use {new}", flag.name));
            match (flag.fate, value) {
                (Fate::Gate(gate), Value::Bool(is_on)) => gates.push((gate.to_owned(), is_on)),
                (Fate::RenamedTo(new), value) => {
                    self.given.entry(new).or_insert(value);
                }
                (fate, value) => unreachable!("{fate:?} has a {value:?}"),
            }
        }
        gates
    }

    /// How many options were given.
    pub(super) fn len(&self) -> usize {
        self.given.len()
    }

    pub(super) fn is_from_file(&self) -> bool {
        self.is_from_file
    }

    pub(super) fn is_given(&self, name: &str) -> bool {
        debug_assert!(flags::find(name).is_some(), "no flag {name}");
        self.given.contains_key(name)
    }

    /// Whether the option was given a value that is not its default. Manifests
    /// spell out defaults; those need no warning.
    pub(super) fn is_moved(&self, flag: &Flag) -> bool {
        self.given
            .get(flag.name)
            .is_some_and(|value| flag.kind.parse(flag.default).as_ref() != Ok(value))
    }

    /// The value of an option: as given, or its default.
    fn value(&self, name: &str) -> Value {
        self.given.get(name).cloned().unwrap_or_else(|| {
            let flag = flags::find(name).unwrap_or_else(|| panic!("no flag {name}"));
            flag.kind.parse(flag.default).expect("defaults are valid")
        })
    }

    pub(super) fn text(&self, name: &str) -> String {
        match self.value(name) {
            Value::Text(text) => text,
            other => panic!("--{name} is no text but {other:?}"),
        }
    }

    pub(super) fn is_on(&self, name: &str) -> bool {
        match self.value(name) {
            Value::Bool(is_on) => is_on,
            other => panic!("--{name} is no boolean but {other:?}"),
        }
    }

    pub(super) fn uint(&self, name: &str) -> u64 {
        match self.value(name) {
            Value::Uint(number) => number,
            other => panic!("--{name} is no unsigned integer but {other:?}"),
        }
    }

    pub(super) fn int(&self, name: &str) -> i64 {
        match self.value(name) {
            Value::Int(number) => number,
            other => panic!("--{name} is no integer but {other:?}"),
        }
    }

    pub(super) fn duration(&self, name: &str) -> Duration {
        match self.value(name) {
            Value::Duration(duration) => duration,
            other => panic!("--{name} is no duration but {other:?}"),
        }
    }

    pub(super) fn urls(&self, name: &str) -> Vec<Url> {
        match self.value(name) {
            Value::Urls(urls) => urls,
            other => panic!("--{name} is no list of URLs but {other:?}"),
        }
    }

    pub(super) fn list(&self, name: &str) -> Vec<String> {
        match self.value(name) {
            Value::List(items) => items,
            other => panic!("--{name} is no list but {other:?}"),
        }
    }
}
