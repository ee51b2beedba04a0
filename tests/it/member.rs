//! One member on a fresh directory, in one of three ways: a node inside this
//! process, a child process of our binary, a child process of etcd. All three
//! are told what to do by the same flags, since ours are etcd's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use stele::proto::client::etcdserverpb::RangeRequest;
use stele::proto::client::etcdserverpb::kv_client::KvClient;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::in_process::Node;
use crate::ports::free_port;

/// A start or stop that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub(crate) enum Program {
    InProcess,
    Child(PathBuf),
    Etcd(PathBuf),
}

enum Running {
    Stopped,
    Node(Node),
    Process(Child),
}

pub(crate) struct Member {
    program: Program,
    name: String,
    port: u16,
    peer_port: u16,
    running: Running,
    dir: TempDir,
}

impl Member {
    /// One that does not run yet, with a directory and ports of its own.
    pub(crate) fn create(program: &Program, name: &str) -> Result<Member, String> {
        Ok(Member {
            program: program.clone(),
            name: name.to_owned(),
            port: free_port(),
            peer_port: free_port(),
            running: Running::Stopped,
            dir: tempfile::tempdir().map_err(|error| error.to_string())?,
        })
    }

    /// Its part of `--initial-cluster`.
    pub(crate) fn introduction(&self) -> String {
        format!("{}=http://127.0.0.1:{}", self.name, self.peer_port)
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A connection of its own, which connects when it is first used.
    pub(crate) fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address()))
            .expect("a host and port make an address")
            // As small as HTTP/2 allows without asking for less, so that a
            // reader that stops reading is soon felt by the server.
            .initial_stream_window_size(65_535)
            .connect_lazy()
    }

    /// Warnings and errors our own server has logged as a process of its own.
    pub(crate) fn complaints(&self) -> Vec<String> {
        if !matches!(self.program, Program::Child(_)) {
            return Vec::new();
        }
        let log = self.log();
        let is_complaint = |line: &&str| {
            !line.starts_with('{')
                || line.contains("\"level\":\"warn\"")
                || line.contains("\"level\":\"error\"")
        };
        log.lines()
            .filter(is_complaint)
            .map(str::to_owned)
            .collect()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Starts on the directory as it is; `ready` waits until it serves.
    pub(crate) async fn run(&mut self, cluster: &str, flags: &[String]) -> Result<(), String> {
        let mut arguments = self.arguments(cluster);
        arguments.extend(flags.iter().cloned());
        self.running = match &self.program {
            Program::InProcess => Running::Node(Node::start(arguments).await?),
            Program::Child(binary) => Running::Process(spawn(binary, &arguments, self.dir.path())?),
            Program::Etcd(binary) => {
                // What etcd answers does not depend on syncing, and without it
                // a run takes a third of the time.
                arguments.push("--unsafe-no-fsync".to_owned());
                Running::Process(spawn(binary, &arguments, self.dir.path())?)
            }
        };
        Ok(())
    }

    fn arguments(&self, cluster: &str) -> Vec<String> {
        let client_url = format!("http://127.0.0.1:{}", self.port);
        let peer_url = format!("http://127.0.0.1:{}", self.peer_port);
        vec![
            // A slow machine is no reason for a warning here.
            "--warning-apply-duration=1h".to_owned(),
            format!("--name={}", self.name),
            format!("--data-dir={}", self.dir.path().join("data").display()),
            format!("--listen-client-urls={client_url}"),
            format!("--advertise-client-urls={client_url}"),
            format!("--listen-peer-urls={peer_url}"),
            format!("--initial-advertise-peer-urls={peer_url}"),
            format!("--initial-cluster={cluster}"),
        ]
    }

    pub(crate) async fn ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        let probe = RangeRequest {
            key: "probe".into(),
            count_only: true,
            ..RangeRequest::default()
        };
        loop {
            let answer = KvClient::new(self.channel()).range(probe.clone()).await;
            let exited = match &mut self.running {
                Running::Process(child) => child.try_wait().map_err(|error| error.to_string())?,
                _ => None,
            };
            let error = match answer {
                Ok(_) if exited.is_none() => return Ok(()),
                Ok(_) => "another server answers on its port".to_owned(),
                Err(error) => error.to_string(),
            };
            if exited.is_some() || Instant::now() > deadline {
                let log = self.log();
                let end: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(format!(
                    "not ready ({error}), exit {exited:?}, log ends (last first):\n{}",
                    end.join("\n")
                ));
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Tells a process to end: without warning, or as an init system would.
    pub(crate) fn signal(&mut self, kill: bool) -> Result<(), String> {
        let Running::Process(child) = &mut self.running else {
            return Ok(());
        };
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return Err(format!("the server has ended by itself: {status}"));
        }
        if kill {
            return child.kill().map_err(|error| error.to_string());
        }
        let sent = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status()
            .map_err(|error| error.to_string())?;
        if !sent.success() {
            return Err("kill -TERM failed".to_owned());
        }
        Ok(())
    }

    /// After `signal`: waits until the process has ended. A node inside this
    /// process is stopped in order.
    pub(crate) async fn stopped(&mut self) -> Result<(), String> {
        match std::mem::replace(&mut self.running, Running::Stopped) {
            Running::Stopped => Ok(()),
            Running::Node(node) => node.stop().await,
            Running::Process(child) => ended(child).await,
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Running::Process(child) = &mut self.running {
            // Nothing to be done about a failure here: the process is ours and
            // its directory is about to be removed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn spawn(binary: &Path, arguments: &[String], dir: &Path) -> Result<Child, String> {
    let log = || {
        let path = dir.join("log");
        File::options()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|error| error.to_string())
    };
    let mut command = Command::new(binary);
    // Variables named ETCD_ are settings; those of whoever runs the tests are not meant.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCD_") {
            command.env_remove(name);
        }
    }
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log()?)
        .stderr(log()?)
        .spawn()
        .map_err(|error| format!("{}: {error}", binary.display()))
}

async fn ended(mut child: Child) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    while child
        .try_wait()
        .map_err(|error| error.to_string())?
        .is_none()
    {
        if Instant::now() > deadline {
            return Err("the server does not end on SIGTERM".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
