//! Members as child processes, with a proxy before each peer port.
//!
//! A member is named by its number, from 0; number, ports and proxy stay the
//! same over restarts and replacements, so that clients need no news. Whoever
//! breaks something here (kills, pauses, removes) says so through this file,
//! which keeps in mind what is in which state. Dropping it kills all children.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use stele::proto::client::etcdserverpb::{
    LeaseGrantRequest, LeaseTimeToLiveRequest, Member as Listed, MemberAddRequest,
    MemberListRequest, MemberRemoveRequest, StatusRequest, StatusResponse,
};

use crate::clock::WallClock;
use crate::proxy::{Mode, Network, Proxy};
use crate::support::client::Clients;
use crate::support::ports::free_port;
use crate::support::process::{Membership, Program, Server, Settings};

/// How long anything may take that must happen in the end.
pub const PATIENCE: Duration = Duration::from_secs(90);

const PAUSE: Duration = Duration::from_millis(20);

/// How long a member may take to answer for itself before it is passed over.
const ANSWER: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct Layout {
    pub program: Program,
    pub members: usize,
    pub heartbeat_ms: u64,
    pub election_ms: u64,
    pub arguments: Vec<String>,
    /// Entries between two snapshots, and entries that stay for slow members.
    pub snapshot: Option<(u64, u64)>,
    /// Members have wall clocks of their own, which can be set.
    pub has_clocks: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Paused,
    /// In the cluster, without a process.
    Down,
    /// Neither in the cluster nor running.
    Out,
}

struct Member {
    server: Server,
    proxy: Proxy,
    state: State,
    clock: Option<WallClock>,
}

pub struct Cluster {
    layout: Layout,
    network: Network,
    members: Vec<Member>,
}

impl Cluster {
    /// Starts all members on empty directories and waits until each serves.
    pub async fn start(layout: Layout) -> Cluster {
        let network = Network::new();
        let mut members = Vec::new();
        for number in 0..layout.members {
            let server = Server::create(settings(&layout));
            let target = server.peer_url().replace("http://", "");
            let target: SocketAddr = target.parse().expect("an address of our own making");
            let proxy = Proxy::start(&network, number, free_port(), target)
                .await
                .expect("a port that was free a moment ago");
            let clock = layout.has_clocks.then(|| {
                WallClock::create(server.log_path()).expect("a file beside the data can be made")
            });
            members.push(Member {
                server,
                proxy,
                state: State::Down,
                clock,
            });
        }
        let mut cluster = Cluster {
            layout,
            network,
            members,
        };
        for number in cluster.all() {
            cluster.introduce(number, true);
            cluster.set_environment(number, &[]);
            cluster.spawn(number);
        }
        for number in cluster.all() {
            cluster.wait_until_ready(number).await;
        }
        cluster
    }

    fn all(&self) -> Vec<usize> {
        (0..self.members.len()).collect()
    }

    /// The numbers of those that are in the cluster.
    pub fn present(&self) -> Vec<usize> {
        self.numbers(|state| state != State::Out)
    }

    /// The numbers of those that are in the cluster and can answer.
    pub fn running(&self) -> Vec<usize> {
        self.numbers(|state| state == State::Running)
    }

    fn numbers(&self, wanted: impl Fn(State) -> bool) -> Vec<usize> {
        let is_wanted = |number: &usize| wanted(self.members[*number].state);
        self.all().into_iter().filter(is_wanted).collect()
    }

    pub fn url(&self, number: usize) -> String {
        self.members[number].server.url()
    }

    pub fn clients(&self, number: usize) -> Clients {
        self.members[number].server.clients()
    }

    /// What the member is told of its cluster at its first start.
    fn introduce(&mut self, number: usize, is_new_cluster: bool) {
        let name = |number: usize| format!("member{number}");
        let initial_cluster: Vec<String> = self
            .present()
            .into_iter()
            .map(|number| format!("{}={}", name(number), self.members[number].proxy.url()))
            .collect();
        let member = &mut self.members[number];
        member.server.settings_mut().membership = Some(Membership {
            name: name(number),
            advertised_peer_url: member.proxy.url(),
            initial_cluster: initial_cluster.join(","),
            is_new_cluster,
        });
    }

    /// Starts the process and returns at once.
    pub fn spawn(&mut self, number: usize) {
        let member = &mut self.members[number];
        member.server.spawn();
        self.network.set_process(number, member.server.process_id());
        member.state = State::Running;
    }

    pub async fn wait_until_ready(&mut self, number: usize) {
        if let Err(reason) = self.members[number].server.wait_until_ready().await {
            panic!("member {number} does not start: {reason}\n{}", self.logs());
        }
    }

    pub async fn restart(&mut self, number: usize) {
        self.spawn(number);
        self.wait_until_ready(number).await;
    }

    /// Kills all and starts them again with nothing.
    pub async fn begin_anew(&mut self) {
        for number in self.present() {
            self.kill(number);
            let server = &mut self.members[number].server;
            server.wipe().expect("the data can be removed");
        }
        self.spawn_all().await;
    }

    /// Starts all and waits until each serves.
    pub async fn spawn_all(&mut self) {
        for number in self.present() {
            self.spawn(number);
        }
        for number in self.present() {
            self.wait_until_ready(number).await;
        }
    }

    /// Where a member has its data.
    pub fn data_dir(&self, number: usize) -> PathBuf {
        self.members[number].server.data_dir()
    }

    pub async fn term(&self, number: usize) -> Option<u64> {
        Some(self.status(number).await?.raft_term)
    }

    /// Other flags for the next start of a member.
    pub fn add_argument(&mut self, number: usize, argument: &str) {
        let settings = self.members[number].server.settings_mut();
        settings.arguments.push(argument.to_owned());
    }

    /// Waits until a member ends by itself; `None`: it does not.
    pub async fn wait_for_exit(&mut self, number: usize) -> Option<ExitStatus> {
        let status = self.members[number].server.wait_for_exit().await?;
        self.members[number].state = State::Down;
        self.network.set_process(number, None);
        Some(status)
    }

    pub fn kill(&mut self, number: usize) {
        let member = &mut self.members[number];
        member.server.kill();
        member.state = State::Down;
        self.network.set_process(number, None);
    }

    pub async fn terminate(&mut self, number: usize) {
        self.members[number].server.terminate().await;
        self.members[number].state = State::Down;
        self.network.set_process(number, None);
    }

    pub fn pause(&mut self, number: usize) {
        self.members[number].server.pause();
        self.members[number].state = State::Paused;
    }

    pub fn resume(&mut self, number: usize) {
        self.members[number].server.resume();
        self.members[number].state = State::Running;
    }

    /// Between one member and all others, in one direction or both.
    pub fn set_links(&self, number: usize, outgoing: Mode, incoming: Mode) {
        for other in self.all() {
            if other != number {
                self.network.set(number, other, outgoing);
                self.network.set(other, number, incoming);
            }
        }
    }

    pub fn set_link(&self, from: usize, to: usize, mode: Mode) {
        self.network.set(from, to, mode);
    }

    pub fn heal_links(&self) {
        self.network.heal();
    }

    /// Other variables for the next start of a member.
    pub fn set_environment(&mut self, number: usize, variables: &[(&str, &str)]) {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let member = &mut self.members[number];
        let clock = member.clock.iter().flat_map(WallClock::environment);
        member.server.settings_mut().environment =
            variables.iter().map(owned).chain(clock).collect();
    }

    /// Sets a member's wall clock to so many seconds ahead of the machine's.
    pub fn set_clock(&self, number: usize, seconds: i64) {
        self.clock(number)
            .set(seconds)
            .expect("the file beside the data can be written");
    }

    /// The same, and waits until the member has seen it.
    pub async fn jump_clock(&self, number: usize, seconds: i64) {
        const TOLERANCE_SECONDS: u64 = 5;
        let clock = self.clock(number);
        let place = clock.log_end().expect("there is a log");
        self.set_clock(number, seconds);
        let started = Instant::now();
        loop {
            let seen = clock.is_seen(place, seconds, TOLERANCE_SECONDS);
            if seen.expect("the log can be read") {
                return;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "member {number} does not see its clock {seconds} s ahead\n{}",
                self.logs()
            );
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn clock(&self, number: usize) -> &WallClock {
        let clock = self.members[number].clock.as_ref();
        clock.expect("the layout has clocks")
    }

    /// Grants a lease through a member and waits until it is gone: not before
    /// its time, and in the end.
    pub async fn outlive_lease(&self, number: usize) {
        let started = Instant::now();
        let (granted, lease) = loop {
            let granted = Instant::now();
            let request = LeaseGrantRequest { ttl: 1, id: 0 };
            match self.clients(number).lease.lease_grant(request).await {
                Ok(reply) => break (granted, reply.into_inner()),
                Err(status) => self.wait_a_moment(started, "lease grant", &status).await,
            }
        };
        let seconds = u64::try_from(lease.ttl).expect("a lease has positive seconds");
        let started = Instant::now();
        loop {
            let request = LeaseTimeToLiveRequest {
                id: lease.id,
                keys: false,
            };
            let mut clients = self.clients(number);
            match clients.lease.lease_time_to_live(request).await {
                Ok(reply) if reply.get_ref().ttl == -1 => break,
                Ok(_) => tokio::time::sleep(PAUSE).await,
                Err(status) => self.wait_a_moment(started, "time to live", &status).await,
            }
            assert!(
                started.elapsed() < PATIENCE,
                "a lease of {seconds} s never ends\n{}",
                self.logs()
            );
        }
        assert!(
            granted.elapsed() >= Duration::from_secs(seconds),
            "a lease of {seconds} s is gone after {:?}\n{}",
            granted.elapsed(),
            self.logs()
        );
    }

    /// Fails the test when a process has ended that nobody has stopped.
    pub fn assert_running(&mut self) {
        for number in self.running() {
            let status = self.members[number].server.exit_status();
            assert!(
                status.is_none(),
                "member {number} ended by itself: {status:?}\n{}",
                self.logs()
            );
        }
    }

    async fn status(&self, number: usize) -> Option<StatusResponse> {
        let mut clients = self.clients(number);
        let answer = clients.maintenance.status(StatusRequest {});
        let answer = tokio::time::timeout(ANSWER, answer).await;
        Some(answer.ok()?.ok()?.into_inner())
    }

    /// The member that a majority takes for the leader, itself included.
    pub async fn leader(&self) -> usize {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            let mut statuses = Vec::new();
            for number in self.running() {
                statuses.extend(self.status(number).await.map(|status| (number, status)));
            }
            let newest = statuses.iter().map(|(_, status)| status.raft_term).max();
            let leads = |status: &StatusResponse| {
                let id = status.header.as_ref().map(|header| header.member_id);
                id == Some(status.leader) && Some(status.raft_term) == newest
            };
            if let Some((number, status)) = statuses.iter().find(|(_, status)| leads(status)) {
                let leader = status.leader;
                let followers = statuses
                    .iter()
                    .filter(|(_, status)| status.leader == leader);
                if followers.count() > self.present().len() / 2 {
                    return *number;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        panic!("there is no leader\n{}", self.logs());
    }

    /// Some member that runs and is not `number`.
    fn other_than(&self, number: usize) -> usize {
        let other = self.running().into_iter().find(|other| *other != number);
        other.expect("somebody else is there")
    }

    /// The member list as one member knows it for certain.
    pub async fn list(&self, number: usize) -> Vec<Listed> {
        let started = Instant::now();
        loop {
            let request = MemberListRequest { linearizable: true };
            match self.clients(number).cluster.member_list(request).await {
                Ok(reply) => return reply.into_inner().members,
                Err(status) => self.wait_a_moment(started, "member list", &status).await,
            }
        }
    }

    fn is_listed_as(&self, number: usize, listed: &Listed) -> bool {
        listed
            .peer_ur_ls
            .contains(&self.members[number].proxy.url())
    }

    /// The id of a member in a member list.
    pub fn id_of(&self, number: usize, list: &[Listed]) -> Option<u64> {
        list.iter()
            .find(|listed| self.is_listed_as(number, listed))
            .map(|listed| listed.id)
    }

    /// Removes a member, stops it and wipes its data.
    pub async fn remove(&mut self, number: usize) {
        let started = Instant::now();
        loop {
            let other = self.other_than(number);
            let listed = self.list(other).await;
            let Some(id) = self.id_of(number, &listed) else {
                break;
            };
            let request = MemberRemoveRequest { id };
            match self.clients(other).cluster.member_remove(request).await {
                Ok(_) => break,
                Err(status) => self.wait_a_moment(started, "member remove", &status).await,
            }
        }
        // It may end by itself or not, as it has heard of it or not.
        self.kill(number);
        let member = &mut self.members[number];
        member.server.wipe().expect("the data can be removed");
        member.state = State::Out;
    }

    /// Adds a member that is out, starts it with nothing, and waits until it serves.
    pub async fn add(&mut self, number: usize) {
        let started = Instant::now();
        loop {
            let other = self.other_than(number);
            let listed = self.list(other).await;
            if self.id_of(number, &listed).is_some() {
                break;
            }
            let request = MemberAddRequest {
                peer_ur_ls: vec![self.members[number].proxy.url()],
                is_learner: false,
            };
            match self.clients(other).cluster.member_add(request).await {
                Ok(_) => break,
                Err(status) => self.wait_a_moment(started, "member add", &status).await,
            }
        }
        self.members[number].state = State::Down;
        self.introduce(number, false);
        self.restart(number).await;
    }

    /// Before an attempt is made again that may fail while the cluster recovers.
    async fn wait_a_moment(&self, started: Instant, what: &str, status: &tonic::Status) {
        assert!(
            started.elapsed() < PATIENCE,
            "{what} fails: {status:?}\n{}",
            self.logs()
        );
        tokio::time::sleep(PAUSE).await;
    }

    pub fn election_timeout(&self) -> Duration {
        Duration::from_millis(self.layout.election_ms)
    }

    /// The ends of all members' logs.
    pub fn logs(&self) -> String {
        let log = |number: usize| {
            let log = self.members[number].server.log_tail();
            format!("--- member {number}\n{log}\n")
        };
        self.all().into_iter().map(log).collect()
    }
}

fn settings(layout: &Layout) -> Settings {
    let mut settings = Settings::new(layout.program)
        .argument(&format!("--heartbeat-interval={}", layout.heartbeat_ms))
        .argument(&format!("--election-timeout={}", layout.election_ms))
        .argument("--watch-progress-notify-interval=200ms");
    for argument in &layout.arguments {
        settings = settings.argument(argument);
    }
    if let Some((count, kept)) = layout.snapshot {
        settings = settings
            .argument(&format!("--snapshot-count={count}"))
            .argument(&format!("--snapshot-catchup-entries={kept}"));
    }
    settings
}
