//! A server as a child process: `stele` or the reference, real etcd.
//!
//! Both get the same flags, so a test can run against either. A [`Server`]
//! owns its data directory and its ports for its whole life; it can be stopped
//! in every way that matters ([`Server::terminate`], [`Server::kill`]) and
//! started again on the same directory and ports. Dropping it kills the child.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use stele::proto::client::etcdserverpb::RangeRequest;
use tempfile::TempDir;
use tonic::transport::Channel;

use super::client::{Clients, channel};
use super::ports::free_port;
use super::settings::setting;

/// How long a start or an orderly stop may take before the test gives up,
/// unless it says otherwise. Far beyond what either needs, for machines that
/// are busy with something else.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much of a child's output a failure message shows.
const LOG_TAIL_BYTES: u64 = 4_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Stele,
    Etcd,
    /// The running binary once more, if it can be told to serve.
    Itself,
}

impl Program {
    /// Where the program lies: stele as Cargo built it for this test unless
    /// `STELE_BINARY` names another build; etcd from `STELE_REFERENCE_ETCD`,
    /// else from the search path.
    pub fn path(self) -> PathBuf {
        let (variable, default) = match self {
            Program::Stele => ("STELE_BINARY", env!("CARGO_BIN_EXE_stele")),
            Program::Etcd => ("STELE_REFERENCE_ETCD", "etcd"),
            Program::Itself => {
                return std::env::current_exe().expect("a running binary has a path");
            }
        };
        std::env::var_os(variable).map_or_else(|| PathBuf::from(default), PathBuf::from)
    }
}

/// What to start. The environment is added to the test's own, without any
/// `ETCD_` variable that happens to be set there.
#[derive(Clone, Debug)]
pub struct Settings {
    pub program: Program,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    log_level: &'static str,
    /// Without it the server is the only member of a cluster of its own.
    pub membership: Option<Membership>,
    /// Where the member's own directory is made; none: where the system keeps
    /// temporary files, which may be in memory.
    parent: Option<PathBuf>,
    patience: Duration,
}

/// Which cluster a member is started in, as etcd's `--initial-...` flags say it.
#[derive(Clone, Debug)]
pub struct Membership {
    pub name: String,
    /// Where the other members find this one; something else than where it
    /// listens when a proxy stands between.
    pub advertised_peer_url: String,
    pub initial_cluster: String,
    pub is_new_cluster: bool,
}

impl Settings {
    /// `STELE_CACHE_BYTES` makes our server get by with so little memory: then
    /// what else stays in write buffers, caches and rings comes from the disk.
    pub fn new(program: Program) -> Settings {
        let cache_bytes: String = setting("STELE_CACHE_BYTES", String::new());
        let has_little = program == Program::Stele && !cache_bytes.is_empty();
        let arguments = has_little.then(|| format!("--stele-cache-bytes={cache_bytes}"));
        Settings {
            program,
            arguments: arguments.into_iter().collect(),
            environment: Vec::new(),
            log_level: "warn",
            membership: None,
            parent: None,
            patience: PATIENCE,
        }
    }

    /// For data sets with which a start takes long.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Settings {
        self.patience = patience;
        self
    }

    #[must_use]
    pub fn below(mut self, parent: &Path) -> Settings {
        self.parent = Some(parent.to_owned());
        self
    }

    #[must_use]
    pub fn argument(mut self, argument: &str) -> Settings {
        self.arguments.push(argument.to_owned());
        self
    }

    #[must_use]
    pub fn log_level(mut self, level: &'static str) -> Settings {
        self.log_level = level;
        self
    }

    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Settings {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// One member on a temporary directory. The child runs unless it was stopped.
pub struct Server {
    settings: Settings,
    root: TempDir,
    client_port: u16,
    peer_port: u16,
    child: Option<Child>,
}

impl Server {
    /// Starts a member on an empty directory and waits until it serves.
    pub async fn start(settings: Settings) -> Server {
        const ATTEMPTS: usize = 5;
        for attempt in 1.. {
            let mut server = Server::create(settings.clone());
            server.spawn();
            match server.wait_until_ready().await {
                Ok(()) => return server,
                Err(reason) => {
                    let log = server.log_tail();
                    let is_collision = log.contains("address already in use")
                        || log.contains("Address already in use");
                    assert!(
                        is_collision && attempt < ATTEMPTS,
                        "{:?} did not start: {reason}\n{log}",
                        server.settings.program
                    );
                }
            }
        }
        unreachable!("the loop ends by returning or failing")
    }

    /// Starts the first members of a cluster and waits until each serves.
    pub async fn start_cluster(settings: &Settings, size: usize) -> Vec<Server> {
        let create = |_| Server::create(settings.clone());
        let mut members: Vec<Server> = (0..size).map(create).collect();
        let introductions: Vec<String> = members
            .iter()
            .enumerate()
            .map(|(number, member)| format!("member{number}={}", member.peer_url()))
            .collect();
        for (number, member) in members.iter_mut().enumerate() {
            member.settings.membership = Some(Membership {
                name: format!("member{number}"),
                advertised_peer_url: member.peer_url(),
                initial_cluster: introductions.join(","),
                is_new_cluster: true,
            });
            member.spawn();
        }
        for member in &mut members {
            if let Err(reason) = member.wait_until_ready().await {
                panic!("a member does not start: {reason}\n{}", member.log_tail());
            }
        }
        members
    }

    /// A member that is not running yet, on an empty directory.
    pub fn create(settings: Settings) -> Server {
        let mut builder = tempfile::Builder::new();
        builder.prefix("stele-test-");
        let root = match &settings.parent {
            Some(parent) => builder.tempdir_in(parent),
            None => builder.tempdir(),
        };
        let root = root.expect("a temporary directory can be made");
        Server {
            settings,
            root,
            client_port: free_port(),
            peer_port: free_port(),
            child: None,
        }
    }

    /// Starts the child on the directory as it is and returns at once.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the child runs already");
        let log = self.open_log().expect("the log file can be opened");
        let mut command = Command::new(self.settings.program.path());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCD_") {
                command.env_remove(name);
            }
        }
        let child = command
            .args(self.arguments())
            .args(&self.settings.arguments)
            .envs(
                self.settings
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle can be copied"))
            .stderr(log)
            .spawn();
        let program = self.settings.program.path();
        self.child =
            Some(child.unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display())));
    }

    fn arguments(&self) -> Vec<String> {
        let membership = self
            .settings
            .membership
            .clone()
            .unwrap_or_else(|| Membership {
                name: "test".to_owned(),
                advertised_peer_url: self.peer_url(),
                initial_cluster: format!("test={}", self.peer_url()),
                is_new_cluster: true,
            });
        let state = if membership.is_new_cluster {
            "new"
        } else {
            "existing"
        };
        vec![
            format!("--name={}", membership.name),
            format!("--data-dir={}", self.data_dir().display()),
            format!("--listen-client-urls={}", self.url()),
            format!("--advertise-client-urls={}", self.url()),
            format!("--listen-peer-urls={}", self.peer_url()),
            format!(
                "--initial-advertise-peer-urls={}",
                membership.advertised_peer_url
            ),
            format!("--initial-cluster={}", membership.initial_cluster),
            format!("--initial-cluster-state={state}"),
            format!("--log-level={}", self.settings.log_level),
        ]
    }

    /// Waits until a linearizable read is answered; fails with the reason when
    /// the child has exited, or when that takes too long.
    pub async fn wait_until_ready(&mut self) -> Result<(), String> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.exit_status() {
                self.child = None;
                return Err(format!("it exited with {status}"));
            }
            // A new connection each time: one that was refused backs off.
            let mut kv = Clients::new(self.channel()).kv;
            let probe = RangeRequest {
                key: "ready".into(),
                ..RangeRequest::default()
            };
            let answer = tokio::time::timeout(self.settings.patience, kv.range(probe)).await;
            match answer {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(status)) if started.elapsed() > self.settings.patience => {
                    return Err(format!("it does not serve: {status}"));
                }
                Err(_) => return Err("it accepts a request and never answers".to_owned()),
                Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// Starts the child again on the same directory and ports and waits until
    /// it serves.
    pub async fn restart(&mut self) {
        self.spawn();
        if let Err(reason) = self.wait_until_ready().await {
            panic!(
                "{:?} did not come back: {reason}\n{}",
                self.settings.program,
                self.log_tail()
            );
        }
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error here means that it is gone already.
            let _ = child.kill();
            child.wait().expect("a child of ours can be waited for");
        }
    }

    /// SIGTERM; returns how the process ended.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait_for_exit().await.unwrap_or_else(|| {
            panic!(
                "{:?} ignores SIGTERM\n{}",
                self.settings.program,
                self.log_tail()
            )
        })
    }

    /// SIGSTOP: the process keeps its connections and does nothing.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// SIGCONT: it goes on as if no time had passed.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let child = self.child.as_ref().expect("the child runs");
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -{name} {}", child.id())])
            .status()
            .expect("a shell can be started");
        assert!(sent.success(), "SIG{name} could not be sent");
    }

    /// Removes all data of a child that does not run.
    pub fn wipe(&mut self) -> io::Result<()> {
        assert!(self.child.is_none(), "the child runs");
        std::fs::remove_dir_all(self.data_dir())
    }

    /// Waits until the child has ended by itself; `None` when it does not.
    pub async fn wait_for_exit(&mut self) -> Option<ExitStatus> {
        let started = Instant::now();
        while started.elapsed() < self.settings.patience {
            if let Some(status) = self.exit_status() {
                self.child = None;
                return Some(status);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        None
    }

    /// The status of a child that has ended by itself; `None` while it runs.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        child.try_wait().expect("a child of ours can be waited for")
    }

    pub fn is_running(&mut self) -> bool {
        self.child.is_some() && self.exit_status().is_none()
    }

    /// Other flags or variables for the next start.
    pub fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    pub fn program(&self) -> Program {
        self.settings.program
    }

    pub fn process_id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    pub fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer_port)
    }

    pub fn channel(&self) -> Channel {
        channel(&self.url())
    }

    pub fn clients(&self) -> Clients {
        Clients::new(self.channel())
    }

    pub fn data_dir(&self) -> PathBuf {
        self.root.path().join("data")
    }

    pub fn log_path(&self) -> PathBuf {
        self.root.path().join("log")
    }

    /// The end of what the child has printed so far, over all its starts.
    pub fn log_tail(&self) -> String {
        tail(&self.log_path()).unwrap_or_else(|error| format!("(no log: {error})"))
    }

    fn open_log(&self) -> io::Result<File> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
