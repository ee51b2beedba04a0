//! What a script talks to: a server that is alone, or one member of a cluster
//! of three, which leads or follows. The cluster is there to be indistinguishable:
//! whatever a script asks of a member is answered as by a server that is alone.
//!
//! In a cluster the script talks to the first member throughout. Who leads is
//! decided by the cluster's first election, so leadership is moved if it came
//! out otherwise, at the start and after each restart.

use std::time::{Duration, Instant};

use stele::proto::client::etcdserverpb::maintenance_client::MaintenanceClient;
use stele::proto::client::etcdserverpb::{HashKvRequest, MoveLeaderRequest, StatusRequest};
use tonic::Status;
use tonic::transport::Channel;

use crate::member::{Member, Program};
use crate::show::Cluster;

/// What takes longer to settle in a cluster has failed.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// Enough for a majority without the member that a script talks to.
const CLUSTER_SIZE: usize = 3;

/// What the server of a script is to its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Alone,
    Leader,
    Follower,
}

#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub(crate) program: Program,
    pub(crate) role: Role,
}

pub(crate) struct Server {
    role: Role,
    flags: Vec<String>,
    /// The first is the one that scripts talk to.
    members: Vec<Member>,
    /// Of a cluster: the members' IDs, and the number of the leader.
    ids: Vec<u64>,
    leader: usize,
}

impl Server {
    pub(crate) async fn start(kind: &Kind, flags: Vec<String>) -> Result<Server, String> {
        let names: &[&str] = match kind.role {
            Role::Alone => &["default"],
            _ => &["default", "second", "third"][..CLUSTER_SIZE],
        };
        let mut tries = 0;
        loop {
            let members = names.iter().map(|name| Member::create(&kind.program, name));
            let mut server = Server {
                role: kind.role,
                flags: flags.clone(),
                members: members.collect::<Result<_, _>>()?,
                ids: Vec::new(),
                leader: 0,
            };
            tries += 1;
            match server.run().await {
                Ok(()) => return Ok(server),
                // Somebody else was quicker, see free_port.
                Err(error)
                    if tries < 3 && error.to_lowercase().contains("address already in use") => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Stops and starts again on the same directories, all members at a time.
    /// `kill` ends processes without warning; a node inside this process is
    /// always stopped in order.
    pub(crate) async fn restart(&mut self, kill: bool) -> Result<(), String> {
        self.stop(kill).await?;
        self.run().await
    }

    pub(crate) async fn stop(&mut self, kill: bool) -> Result<(), String> {
        for member in &mut self.members {
            member.signal(kill)?;
        }
        for member in &mut self.members {
            member.stopped().await?;
        }
        Ok(())
    }

    pub(crate) fn address(&self) -> String {
        self.members[0].address()
    }

    /// A connection of its own, which connects when it is first used.
    pub(crate) fn channel(&self) -> Channel {
        self.members[0].channel()
    }

    /// Warnings and errors our own servers have logged as processes of their
    /// own, without those that every start and stop of a cluster brings.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let mut complaints: Vec<_> = self.members.iter().flat_map(Member::complaints).collect();
        if self.role != Role::Alone {
            // Members warn of each other while not all of them run and when the
            // machine is busy; what a server that is alone must not warn of is
            // seen there.
            complaints.retain(|line| !line.contains("\"level\":\"warn\""));
        }
        complaints
    }

    async fn run(&mut self) -> Result<(), String> {
        let introductions: Vec<String> = self.members.iter().map(Member::introduction).collect();
        let cluster = introductions.join(",");
        for member in &mut self.members {
            member.run(&cluster, &self.flags).await?;
        }
        for member in &mut self.members {
            member.ready().await?;
        }
        if self.role != Role::Alone {
            self.take_role().await?;
        }
        Ok(())
    }

    /// What answers tell of the cluster; nothing of a server that is alone.
    pub(crate) fn cluster(&self) -> Option<Cluster> {
        Some(Cluster {
            leader: *self.ids.get(self.leader)?,
            others: self.ids[1..].iter().copied().collect(),
        })
    }

    /// Whether the same member leads as after the start, in the eyes of all.
    /// An election that nobody asked for is not the script's fault.
    pub(crate) async fn has_kept_role(&self) -> bool {
        self.role == Role::Alone
            || matches!(self.ask().await, Ok((_, Some(leader))) if leader == self.leader)
    }

    /// Makes the first member what it shall be.
    async fn take_role(&mut self) -> Result<(), String> {
        let started = Instant::now();
        let mut last = String::new();
        while started.elapsed() < PATIENCE {
            let outcome = match self.ask().await {
                Ok((ids, Some(leader))) if (leader == 0) == (self.role == Role::Leader) => {
                    (self.ids, self.leader) = (ids, leader);
                    return Ok(());
                }
                Ok((ids, Some(leader))) => {
                    let target = ids[usize::from(self.role == Role::Follower)];
                    self.move_leader(leader, target).await
                }
                Ok((_, None)) => Ok(()),
                Err(status) => Err(status),
            };
            if let Err(status) = outcome {
                last = status.to_string();
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(format!(
            "the first member does not become a {:?}: {last}",
            self.role
        ))
    }

    /// The members' IDs, and the number of the one that all take for the leader.
    async fn ask(&self) -> Result<(Vec<u64>, Option<usize>), Status> {
        let (mut ids, mut leaders) = (Vec::new(), Vec::new());
        for member in &self.members {
            let mut client = MaintenanceClient::new(member.channel());
            let status = client.status(StatusRequest {}).await?.into_inner();
            ids.push(status.header.map_or(0, |header| header.member_id));
            leaders.push(status.leader);
        }
        let is_unanimous = leaders.iter().all(|leader| *leader == leaders[0]);
        let leader = ids.iter().position(|id| *id == leaders[0]);
        Ok((ids, leader.filter(|_| is_unanimous)))
    }

    async fn move_leader(&self, from: usize, target_id: u64) -> Result<(), Status> {
        let mut client = MaintenanceClient::new(self.members[from].channel());
        client.move_leader(MoveLeaderRequest { target_id }).await?;
        Ok(())
    }

    /// Waits until all members of a cluster hold the same data; says how they
    /// differ if they never do.
    pub(crate) async fn members_agree(&self) -> Result<(), String> {
        if self.role == Role::Alone {
            return Ok(());
        }
        let started = Instant::now();
        loop {
            let mut hashes = Vec::new();
            for member in &self.members {
                let mut client = MaintenanceClient::new(member.channel());
                let answer = client.hash_kv(HashKvRequest { revision: 0 }).await;
                let answer = answer
                    .map_err(|status| format!("hashkv: {status}"))?
                    .into_inner();
                hashes.push((answer.hash_revision, answer.compact_revision, answer.hash));
            }
            if hashes.iter().all(|hash| *hash == hashes[0]) {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(format!(
                    "the members differ (revision, compacted, hash): {hashes:?}"
                ));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
