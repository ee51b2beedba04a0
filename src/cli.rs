//! The command line: what to do, the process around it, and the exit code.
//!
//! Serving is the default, `stele serve` says it in words. Options are read by
//! [`crate::config`]; this file sets up what belongs to the process rather
//! than to a member (logging, descriptors, the runtime, signals, systemd),
//! runs a [`Node`], and maps how it ends to an exit code: 0 after a signal, 1
//! after an error, 2 if the command line could not be read.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use crate::config::{self, Config, ConfigError, Request};
use crate::node::{Ending, Node, SERVER_VERSION};
use crate::{logging, metrics};

/// How long the runtime waits for threads that are still busy after the node
/// has stopped. What must be durable is by then.
const RUNTIME_LIMIT: Duration = Duration::from_secs(1);

/// How long systemd waits for this member's cluster. A unit must not be taken
/// for failed because the other members are not there yet (as etcd).
const READY_LIMIT: Duration = Duration::from_secs(5);

/// The whole process, from its arguments to its exit code.
pub fn run() -> ExitCode {
    let request = arguments().and_then(|args| config::read(args, variables()));
    match request {
        Ok(Request::Serve(config)) => serve(*config),
        Ok(Request::Help) => print(&config::help()),
        Ok(Request::Version) => print(&version_text()),
        Err(error) if error.is_usage() => {
            eprintln!("{error}\n{}", config::usage());
            ExitCode::from(2)
        }
        Err(error) => {
            // How to log was among the options, so this is logged by default.
            if logging::init(&logging::Settings::default()).is_err() {
                eprintln!("{error}");
            }
            error!(%error, "cannot start");
            ExitCode::FAILURE
        }
    }
}

/// The arguments after the program's name and the word `serve`.
fn arguments() -> Result<Vec<String>, ConfigError> {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "serve") {
        args.remove(0);
    }
    let text = |arg: OsString| {
        arg.into_string()
            .map_err(|arg| ConfigError::BadSyntax(arg.to_string_lossy().into_owned()))
    };
    args.into_iter().map(text).collect()
}

/// The environment. Variables that are no text cannot be ours.
fn variables() -> Vec<(String, String)> {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// Prints to stdout. A reader that has gone away (`stele --help | head`) is no
/// failure.
fn print(text: &str) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// Four lines under the names that scripts look for in etcd's.
fn version_text() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!(
        "etcd Version: {SERVER_VERSION}\n\
         Git SHA: {}\n\
         Go Version: none (stele {}, written in Rust)\n\
         Go OS/Arch: {}/{arch}\n",
        option_env!("STELE_GIT_SHA").unwrap_or("unknown"),
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
    )
}

fn serve(config: Config) -> ExitCode {
    if let Err(error) = logging::init(&config.log) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    info!(
        version = env!("CARGO_PKG_VERSION"),
        etcd_version = SERVER_VERSION,
        name = config.name,
        data_dir = %config.data_dir.display(),
        "starting stele"
    );
    for notice in &config.notices {
        warn!("{notice}");
    }
    raise_descriptor_limit();
    measure_options(&config);

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("stele-rpc")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run_node(config));
    runtime.shutdown_timeout(RUNTIME_LIMIT);
    code
}

/// Connections and table files each take a descriptor, and the usual soft
/// limit of 1024 is for programs that use `select`.
fn raise_descriptor_limit() {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => metrics::OS_FD_LIMIT.set(i64::try_from(limit).unwrap_or(i64::MAX)),
        Err(error) => warn!(%error, "cannot raise the limit on file descriptors"),
    }
}

/// Options that show in metrics, or decide what is measured.
fn measure_options(config: &Config) {
    metrics::set_extensive(config.has_extensive_metrics);
    // etcd shows no limit as the largest number.
    let quota = config
        .quota_bytes
        .and_then(|bytes| i64::try_from(bytes).ok());
    metrics::SERVER_QUOTA_BACKEND_BYTES.set(quota.unwrap_or(i64::MAX));
    for feature in &config.features {
        let labels = [feature.name, feature.stage.name()];
        metrics::SERVER_FEATURE_ENABLED
            .with_label_values(&labels)
            .set(feature.is_on.into());
    }
}

/// Runs a node until a signal or until it fails.
async fn run_node(config: Config) -> ExitCode {
    // Signals are ours from before the start, so that none is missed.
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            error!(%error, "cannot listen for signals");
            return ExitCode::FAILURE;
        }
    };
    let opened = tokio::select! {
        opened = Node::open(config) => opened,
        signal = signals.next() => {
            info!(signal, "stopped while starting");
            return ExitCode::SUCCESS;
        }
    };
    let node = match opened {
        Ok(node) => node,
        Err(error) => {
            error!(%error, "cannot start");
            return ExitCode::FAILURE;
        }
    };
    let serving = async {
        match tokio::time::timeout(READY_LIMIT, node.ready()).await {
            Ok(Ok(())) => notify_ready(),
            // It stops, which is seen elsewhere.
            Ok(Err(_)) => {}
            Err(_) => {
                warn!("clients are not served yet, since the cluster is not ready");
                notify_ready();
            }
        }
        std::future::pending::<()>().await;
    };
    let has_failed = tokio::select! {
        signal = signals.next() => {
            info!(signal, "stopping");
            false
        }
        ending = node.wait() => match ending {
            Ending::Failed => {
                error!("stopping, since this member cannot go on");
                true
            }
            Ending::Removed => {
                error!("this member has been removed from its cluster for good; its data directory must be deleted");
                false
            }
        },
        () = serving => false,
    };
    notify_stopping();
    let mut stopping = std::pin::pin!(node.stop());
    loop {
        tokio::select! {
            () = &mut stopping => break info!("stopped"),
            // Supervisors and people send several. How long a stop may take is
            // bounded, and whoever cannot wait has SIGKILL.
            signal = signals.next() => info!(signal, "stopping already"),
        }
    }
    if has_failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// The signals that ask a process to stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// The two that are for programs to define. They would end the process,
    /// which in Go they do not.
    _ignored: [Signal; 2],
}

impl Signals {
    fn listen() -> std::io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            _ignored: [
                signal(SignalKind::user_defined1())?,
                signal(SignalKind::user_defined2())?,
            ],
        })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "interrupt",
            _ = self.terminate.recv() => "terminate",
        }
    }
}

/// Tells systemd that clients are served, for units of `Type=notify` (LIM-12).
/// Without systemd it does nothing.
fn notify_ready() {
    notify(sd_notify::NotifyState::Ready);
}

fn notify_stopping() {
    notify(sd_notify::NotifyState::Stopping);
}

fn notify(state: sd_notify::NotifyState<'_>) {
    // An empty variable is how some supervisors say that there is none.
    let has_socket = std::env::var_os("NOTIFY_SOCKET").is_some_and(|path| !path.is_empty());
    if has_socket && let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "cannot reach systemd");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_has_the_four_lines_of_etcd() {
        let text = version_text();
        let names: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split(": ").next())
            .collect();
        assert_eq!(
            names,
            ["etcd Version", "Git SHA", "Go Version", "Go OS/Arch"]
        );
        assert!(text.starts_with("etcd Version: 3.7.3\n"));
    }
}
