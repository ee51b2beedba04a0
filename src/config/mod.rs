//! Options, from their raw texts to one validated [`Config`].
//!
//! `flags` is the table of all options, `source` collects their values
//! from the command line, the environment or a file, `value` reads single
//! values, and this file checks them against each other and gives each part
//! of the node its own small settings. Nobody below the node sees a `Config`.
//!
//! Two promises: an option is never dropped in silence (it works, or it is
//! named in [`Config::notices`], or the start is refused), and nothing here
//! touches the disk except to read the configuration file.
//!
//! One deliberate difference from etcd: the default data directory ends in
//! `.stele`, so that a directory of etcd is never opened by accident.

mod features;
mod flags;
mod help;
mod ids;
mod initial;
mod source;
mod tls;
mod value;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::http::{Access, Url, listener};
use crate::logging;
pub use features::{Feature, Stage};
use flags::{FLAGS, Fate};
pub use help::{help, usage};
pub use initial::{Bootstrap, Initial, Joining, Known, Start};
use source::Values;
pub use tls::{PeerTls, SelfMades};

/// Requests above this size are legal but unwise (etcd's limit for a remark).
const REMARKABLE_REQUEST_BYTES: u64 = 10 << 20;

/// An election time-out beyond this is taken for a mistake.
const MAX_ELECTION_TIMEOUT_MS: u64 = 50_000;

/// The quota when none is given (MNT-12).
const DEFAULT_QUOTA_BYTES: u64 = 2 << 30;

/// The interval of progress notifications when none is given, and the
/// shortest one.
const DEFAULT_PROGRESS_INTERVAL: Duration = Duration::from_secs(10 * 60);
const MIN_PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// The validated options of one server.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub name: String,
    pub data_dir: PathBuf,
    /// Where the log is, if not in the data directory.
    pub wal_dir: Option<PathBuf>,
    pub initial: Initial,
    pub listen: Listen,
    /// What clients are told to dial.
    pub advertise_client_urls: Vec<Url>,
    /// Settings of connections to all listeners.
    pub connections: listener::Settings,
    /// TLS of all `https` and `unixs` listeners. There if there is one.
    pub tls: Option<crate::http::tls::Settings>,
    /// TLS between members.
    pub peer_tls: PeerTls,
    /// Those of the certificates above that are to be made if they are missing.
    pub self_made: SelfMades,
    /// Where connections to other members come from; none: the system chooses.
    pub peer_local_address: Option<IpAddr>,
    /// Who may use the plain HTTP paths.
    pub access: Access,
    /// Whether `/v3/` is to be served.
    pub has_gateway: bool,
    pub heartbeat: Duration,
    pub election_timeout: Duration,
    pub cluster: Cluster,
    /// Whether the log goes unsynced. Acknowledged writes may then be lost.
    pub unsafe_no_fsync: bool,
    pub max_request_bytes: usize,
    pub max_txn_ops: usize,
    /// Size of the store above which writes are refused; none: no limit.
    pub quota_bytes: Option<u64>,
    /// Memory for blocks of the store that are read.
    pub cache_bytes: usize,
    pub auto_compaction: Option<AutoCompaction>,
    pub watch_progress_interval: Duration,
    /// Applying a command for longer than this is logged.
    pub slow_apply: Duration,
    /// Whether histograms of gRPC calls are measured.
    pub has_extensive_metrics: bool,
    pub features: Vec<Feature>,
    pub log: logging::Settings,
    /// What the operator should know about the options given; to be logged as
    /// warnings once logging is set up.
    pub notices: Vec<String>,
}

/// Where to accept connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// gRPC, and plain HTTP unless `client_http` has listeners of its own.
    pub client: Vec<Url>,
    pub client_http: Vec<Url>,
    /// Metrics and probes only.
    pub metrics: Vec<Url>,
    /// Other members.
    pub peer: Vec<Url>,
    pub sockets: listener::SocketOptions,
}

/// How this member behaves among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    /// Whether the first election after a start comes early.
    pub advances_first_election: bool,
    /// Whether a member asks the others before it stands for election.
    pub has_pre_vote: bool,
    /// Whether changes of membership that would lose the quorum are refused.
    pub checks_reconfiguration: bool,
    /// Most members at a time that only learn.
    pub max_learners: u32,
    /// Entries applied between two shortenings of the log.
    pub snapshot_entries: u64,
    /// Entries kept for slow followers when the log is shortened.
    pub catch_up_entries: u64,
    /// Whether the data are compared with the other members' before clients
    /// are served.
    pub checks_corruption_first: bool,
    /// How often they are compared; none: never.
    pub corruption_check_interval: Option<Duration>,
    /// Whether the leader puts remaining times of long leases on record.
    pub has_lease_checkpoints: bool,
    /// Makes this member, with its data, a cluster of its own.
    pub is_forced_new: bool,
}

/// When history is dropped without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoCompaction {
    /// History older than this.
    Periodic(Duration),
    /// Revisions further back than this.
    Revision(i64),
}

/// What a command line asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    Serve(Box<Config>),
    Help,
    Version,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    #[error("unknown flag: --{0}")]
    UnknownFlag(String),
    #[error("not a flag: {0}")]
    BadSyntax(String),
    #[error("flag needs a value: --{0}")]
    NoArgument(&'static str),
    #[error("invalid value {text:?} for flag --{flag}: {reason}")]
    BadArgument {
        flag: &'static str,
        text: String,
        reason: String,
    },
    #[error("{0:?} is not a valid flag")]
    Leftover(String),
    #[error("invalid value {text:?} for environment variable {name}: {reason}")]
    BadVariable {
        name: String,
        text: String,
        reason: String,
    },
    #[error(
        "environment variable {name} conflicts with flag --{flag}; unset the one or leave out the other"
    )]
    ShadowedVariable { name: String, flag: &'static str },
    #[error("configuration file {}: {reason}", path.display())]
    BadFile { path: PathBuf, reason: String },
    #[error("{0}")]
    Invalid(String),
}

impl ConfigError {
    /// Whether the command line itself could not be read. The process then
    /// shows its usage and exits with 2; any other error is logged, and the
    /// exit code is 1.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            ConfigError::UnknownFlag(_)
                | ConfigError::BadSyntax(_)
                | ConfigError::NoArgument(_)
                | ConfigError::BadArgument { .. }
        )
    }
}

fn invalid<T>(text: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid(text.into()))
}

/// Reads the options of a process: its arguments without the program's name,
/// and its environment.
pub fn read(
    args: impl IntoIterator<Item = String>,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<Request, ConfigError> {
    let mut values = Values::from_args(args)?;
    if values.is_on("help") {
        return Ok(Request::Help);
    }
    if values.is_on("version") {
        return Ok(Request::Version);
    }
    let variables: Vec<(String, String)> = variables.into_iter().collect();
    let mut notices = Vec::new();
    match config_file(&values, &variables) {
        Some(path) => {
            let is_ignored = |(name, _): &(String, String)| {
                name.starts_with(flags::VARIABLE_PREFIX) && name != CONFIG_FILE_VARIABLE
            };
            if values.len() > usize::from(values.is_given("config-file"))
                || variables.iter().any(is_ignored)
            {
                notices.push(format!(
                    "options come from {} alone; other flags and environment variables are ignored",
                    path.display()
                ));
            }
            values = Values::from_file(&path)?;
        }
        None => values.add_variables(variables, &mut notices)?,
    }
    Config::check(values, notices).map(|config| Request::Serve(Box::new(config)))
}

const CONFIG_FILE_VARIABLE: &str = "ETCD_CONFIG_FILE";

/// The configuration file; a flag comes before the variable.
fn config_file(values: &Values, variables: &[(String, String)]) -> Option<PathBuf> {
    let given = Some(values.text("config-file")).filter(|path| !path.is_empty());
    let variable = || {
        let (_, path) = variables
            .iter()
            .find(|(name, _)| name == CONFIG_FILE_VARIABLE)?;
        Some(path.clone()).filter(|path| !path.is_empty())
    };
    given.or_else(variable).map(PathBuf::from)
}

impl Config {
    fn check(mut values: Values, mut notices: Vec<String>) -> Result<Config, ConfigError> {
        let old_gates = values.take_old_names(&mut notices);
        note_fates(&values, &mut notices)?;
        let values = &values;

        let listen = listen(values)?;
        let name = values.text("name");
        let data_dir = path(values, "data-dir").unwrap_or_else(|| format!("{name}.stele").into());
        let self_made = tls::self_made(values, &listen, &data_dir, &mut notices)?;
        let tls = tls::settings(values, &listen, &self_made, &mut notices)?;
        let peer_tls = tls::peer_settings(values, &listen, &self_made, &mut notices)?;
        let (heartbeat, election_timeout) = raft_times(values)?;
        let features = feature_gates(values, old_gates, &mut notices)?;
        if values.duration("compact-hash-check-time").is_zero() {
            return invalid("--compact-hash-check-time must be above 0");
        }
        one_of(values, "logger", &["zap"])?;

        let initial = Initial::from_values(values)?;
        Ok(Config {
            data_dir,
            wal_dir: path(values, "wal-dir"),
            peer_local_address: initial::local_address(&features, &initial, &mut notices),
            initial,
            advertise_client_urls: advertise_client_urls(values)?,
            connections: connections(values),
            tls,
            peer_tls,
            self_made,
            access: Access {
                origins: origins(values)?,
                hosts: values.list("host-whitelist"),
            },
            has_gateway: values.is_on("enable-grpc-gateway"),
            heartbeat,
            election_timeout,
            unsafe_no_fsync: values.is_on("unsafe-no-fsync"),
            max_request_bytes: max_request_bytes(values, &mut notices)?,
            max_txn_ops: size(values, "max-txn-ops")?,
            quota_bytes: match values.int("quota-backend-bytes") {
                0 => Some(DEFAULT_QUOTA_BYTES),
                bytes => u64::try_from(bytes).ok(),
            },
            cache_bytes: size(values, "stele-cache-bytes")?,
            auto_compaction: auto_compaction(values)?,
            watch_progress_interval: watch_progress_interval(values, &mut notices),
            slow_apply: values.duration("warning-apply-duration"),
            has_extensive_metrics: one_of(values, "metrics", &["basic", "extensive"])?
                == "extensive",
            cluster: cluster(values, &features)?,
            features,
            log: log(values)?,
            listen,
            name,
            notices,
        })
    }
}

/// Refuses the options that must not be passed over, and writes the lines
/// about those that have no effect.
fn note_fates(values: &Values, notices: &mut Vec<String>) -> Result<(), ConfigError> {
    if let Some((flag, why)) = FLAGS.iter().find_map(|flag| match flag.fate {
        Fate::Refused(why) if values.is_moved(flag) => Some((flag, why)),
        _ => None,
    }) {
        return invalid(format!("--{}: {why}", flag.name));
    }
    let named = |fate: Fate| {
        let has_fate = FLAGS.iter().filter(|flag| flag.fate == fate);
        let given = has_fate.filter(|flag| match fate {
            Fate::Dropped => values.is_given(flag.name),
            _ => values.is_moved(flag),
        });
        given
            .map(|flag| format!("--{}", flag.name))
            .collect::<Vec<String>>()
            .join(", ")
    };
    let parts = [
        (Fate::Later, "not built yet"),
        (Fate::Tuning, "about parts of etcd that are not here"),
        (Fate::Dropped, "long without meaning"),
    ];
    let parts = parts.map(|(fate, what)| (named(fate), what));
    let parts = parts.iter().filter(|(names, _)| !names.is_empty());
    let parts: Vec<String> = parts
        .map(|(names, what)| format!("{what}: {names}"))
        .collect();
    if !parts.is_empty() {
        notices.push(format!(
            "flags accepted without effect: {}",
            parts.join("; ")
        ));
    }
    Ok(())
}

/// A text that must be one of `choices`.
fn one_of(
    values: &Values,
    name: &str,
    choices: &'static [&'static str],
) -> Result<&'static str, ConfigError> {
    let text = values.text(name);
    match choices.iter().find(|choice| **choice == text) {
        Some(choice) => Ok(choice),
        None => invalid(format!(
            "--{name} is {text:?}, must be one of: {}",
            choices.join(", ")
        )),
    }
}

/// A path; none if empty.
fn path(values: &Values, name: &str) -> Option<PathBuf> {
    Some(values.text(name))
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// A number that counts something in memory.
fn size(values: &Values, name: &str) -> Result<usize, ConfigError> {
    match usize::try_from(values.uint(name)) {
        Ok(size) => Ok(size),
        Err(_) => invalid(format!("--{name} is larger than this machine can address")),
    }
}

fn listen(values: &Values) -> Result<Listen, ConfigError> {
    let urls = |name: &str| {
        let urls = values.urls(name);
        match urls.iter().find_map(|url| url.check_bindable().err()) {
            Some(error) => invalid(format!("--{name}: {error}")),
            None => Ok(urls),
        }
    };
    let listen = Listen {
        client: urls("listen-client-urls")?,
        client_http: urls("listen-client-http-urls")?,
        metrics: urls("listen-metrics-urls")?,
        peer: urls("listen-peer-urls")?,
        sockets: listener::SocketOptions {
            reuses_port: values.is_on("socket-reuse-port"),
        },
    };
    if listen.client.is_empty() {
        return invalid("--listen-client-urls must name a URL");
    }
    if listen.peer.is_empty() {
        return invalid("--listen-peer-urls must name a URL");
    }
    Ok(listen)
}

fn advertise_client_urls(values: &Values) -> Result<Vec<Url>, ConfigError> {
    // A file may leave it out; that is how etcd reads files.
    if values.is_given("listen-client-urls")
        && !values.is_given("advertise-client-urls")
        && !values.is_from_file()
    {
        return invalid("--listen-client-urls is given, so --advertise-client-urls must be too");
    }
    advertised(values, "advertise-client-urls")
}

fn advertised(values: &Values, name: &str) -> Result<Vec<Url>, ConfigError> {
    let urls = values.urls(name);
    if urls.is_empty() {
        return invalid(format!("--{name} must name a URL"));
    }
    match urls.iter().find_map(|url| url.check_advertisable().err()) {
        Some(error) => invalid(format!("--{name}: {error}")),
        None => Ok(urls),
    }
}

fn connections(values: &Values) -> listener::Settings {
    let ping_interval = values.duration("grpc-keepalive-interval");
    listener::Settings {
        max_concurrent_streams: u32::try_from(values.uint("max-concurrent-streams"))
            .expect("the flag has 32 bits"),
        ping_interval: Some(ping_interval).filter(|interval| !interval.is_zero()),
        ping_timeout: values.duration("grpc-keepalive-timeout"),
        min_ping_interval: values.duration("grpc-keepalive-min-time"),
    }
}

fn raft_times(values: &Values) -> Result<(Duration, Duration), ConfigError> {
    let heartbeat = values.uint("heartbeat-interval");
    let election = values.uint("election-timeout");
    if heartbeat == 0 {
        return invalid("--heartbeat-interval must be above 0");
    }
    if heartbeat.saturating_mul(5) > election {
        return invalid(format!(
            "--election-timeout ({election} ms) must be at least five times --heartbeat-interval ({heartbeat} ms)"
        ));
    }
    if election > MAX_ELECTION_TIMEOUT_MS {
        return invalid(format!(
            "--election-timeout ({election} ms) must be at most {MAX_ELECTION_TIMEOUT_MS} ms"
        ));
    }
    Ok((
        Duration::from_millis(heartbeat),
        Duration::from_millis(election),
    ))
}

fn cluster(values: &Values, features: &[Feature]) -> Result<Cluster, ConfigError> {
    let is_on = |name: &str| features.iter().any(|each| each.name == name && each.is_on);
    let interval = values.duration("corrupt-check-time");
    let Ok(max_learners) = u32::try_from(values.int("max-learners")) else {
        return invalid("--max-learners must not be below 0");
    };
    Ok(Cluster {
        advances_first_election: values.is_on("initial-election-tick-advance"),
        has_pre_vote: values.is_on("pre-vote"),
        checks_reconfiguration: values.is_on("strict-reconfig-check"),
        max_learners,
        snapshot_entries: values.uint("snapshot-count"),
        catch_up_entries: values.uint("snapshot-catchup-entries"),
        checks_corruption_first: is_on("InitialCorruptCheck"),
        corruption_check_interval: Some(interval).filter(|interval| !interval.is_zero()),
        has_lease_checkpoints: is_on("LeaseCheckpoint"),
        is_forced_new: values.is_on("force-new-cluster"),
    })
}

fn max_request_bytes(values: &Values, notices: &mut Vec<String>) -> Result<usize, ConfigError> {
    let bytes = values.uint("max-request-bytes");
    if bytes > REMARKABLE_REQUEST_BYTES {
        notices.push(format!(
            "--max-request-bytes is {bytes}; requests above {REMARKABLE_REQUEST_BYTES} bytes make other requests wait"
        ));
    }
    size(values, "max-request-bytes")
}

fn watch_progress_interval(values: &Values, notices: &mut Vec<String>) -> Duration {
    let interval = values.duration("watch-progress-notify-interval");
    if interval.is_zero() {
        return DEFAULT_PROGRESS_INTERVAL;
    }
    if interval < MIN_PROGRESS_INTERVAL {
        notices.push(format!(
            "--watch-progress-notify-interval is raised from {interval:?} to {MIN_PROGRESS_INTERVAL:?}"
        ));
    }
    interval.max(MIN_PROGRESS_INTERVAL)
}

/// A bare number counts hours or revisions, by the mode.
fn auto_compaction(values: &Values) -> Result<Option<AutoCompaction>, ConfigError> {
    let mode = one_of(values, "auto-compaction-mode", &["periodic", "revision"])?;
    let text = values.text("auto-compaction-retention");
    let bad = |reason: String| {
        ConfigError::Invalid(format!(
            "--auto-compaction-retention in mode {mode}: {reason}"
        ))
    };
    let number = text.parse::<u32>().ok();
    match (mode, number) {
        (_, Some(0)) => Ok(None),
        ("revision", Some(count)) => Ok(Some(AutoCompaction::Revision(count.into()))),
        ("revision", None) => match text.parse::<i64>() {
            Ok(count) if count > 0 => Ok(Some(AutoCompaction::Revision(count))),
            _ => Err(bad(format!("{text:?} is not a number of revisions"))),
        },
        (_, Some(hours)) => {
            let period = Duration::from_secs(u64::from(hours) * 3600);
            Ok(Some(AutoCompaction::Periodic(period)))
        }
        (_, None) => {
            let period = value::parse_duration(&text).map_err(bad)?;
            Ok(Some(AutoCompaction::Periodic(period)).filter(|_| !period.is_zero()))
        }
    }
}

fn feature_gates(
    values: &Values,
    mut switches: Vec<(String, bool)>,
    notices: &mut Vec<String>,
) -> Result<Vec<Feature>, ConfigError> {
    let bad = |reason: String| ConfigError::Invalid(format!("--feature-gates: {reason}"));
    switches.extend(features::parse(&values.text("feature-gates")).map_err(bad)?);
    let features = features::resolve(&switches).map_err(bad)?;
    let moved = features::moved(&features);
    if !moved.is_empty() {
        notices.push(format!(
            "feature gates accepted without effect: {}",
            moved.join(", ")
        ));
    }
    Ok(features)
}

/// Origins are URLs without a path, or the star.
fn origins(values: &Values) -> Result<Vec<String>, ConfigError> {
    let origins = values.list("cors");
    for origin in &origins {
        let has_scheme = origin.starts_with("http://") || origin.starts_with("https://");
        if origin != "*" && !has_scheme {
            return invalid(format!("--cors: {origin:?} is neither a URL nor *"));
        }
    }
    Ok(origins)
}

fn log(values: &Values) -> Result<logging::Settings, ConfigError> {
    let level = one_of(
        values,
        "log-level",
        &["debug", "info", "warn", "error", "panic", "fatal"],
    )?;
    let outputs = values.list("log-outputs");
    Ok(logging::Settings {
        level: match level {
            "debug" => logging::Level::Debug,
            "info" => logging::Level::Info,
            "warn" => logging::Level::Warn,
            // There is no level above errors here; what is fatal is an error.
            _ => logging::Level::Error,
        },
        format: match one_of(values, "log-format", &["json", "console"])? {
            "console" => logging::Format::Console,
            _ => logging::Format::Json,
        },
        outputs: if outputs.is_empty() {
            vec![logging::Output::Stderr]
        } else {
            outputs
                .iter()
                .map(|output| logging::Output::from_name(output))
                .collect()
        },
    })
}

#[cfg(test)]
mod tests;
