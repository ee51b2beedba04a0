//! The three servers, each a child process of its own with the same flags, or
//! several of them as the members of a cluster.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use stele::proto::etcdserverpb::RangeRequest;

use crate::elections;
use crate::keys::KeySpace;
use crate::support::process::{Program, Server, Settings};
use crate::usage::Processes;
use crate::wire::Wire;

/// Large enough for ten million keys with some history; the default of 2 GiB
/// is a matter of policy, not of speed.
const QUOTA: &str = "--quota-backend-bytes=17179869184";

/// etcd reads its whole file when it starts.
const PATIENCE: Duration = Duration::from_secs(600);

/// In the order in which they take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A tonic server that stores nothing: what the transport alone costs.
    Limit,
    Etcd,
    Stele,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Limit, Kind::Etcd, Kind::Stele];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Limit => "limit",
            Kind::Etcd => "etcd",
            Kind::Stele => "stele",
        }
    }

    /// Whether it answers with what was put there.
    pub fn stores(self) -> bool {
        self != Kind::Limit
    }
}

/// A server with a data set, as the scenarios of one suite find it.
pub struct Target {
    pub kind: Kind,
    pub server: Server,
    /// The other members of its cluster.
    pub others: Vec<Server>,
    pub keys: KeySpace,
    pub value_bytes: usize,
    /// The revision of the last transaction of [`crate::load`].
    pub loaded_revision: i64,
    /// Leases granted to be kept alive.
    pub leases: Vec<i64>,
}

impl Target {
    /// Starts so many members on empty directories below `data`.
    pub async fn start(
        kind: Kind,
        members: usize,
        data: &Path,
        keys: KeySpace,
        value_bytes: usize,
    ) -> Target {
        let program = match kind {
            Kind::Limit => Program::Itself,
            Kind::Etcd => Program::Etcd,
            Kind::Stele => Program::Stele,
        };
        let mut settings = Settings::new(program)
            .below(data)
            .patience(PATIENCE)
            .argument(QUOTA);
        if kind == Kind::Limit {
            settings = settings
                .argument(crate::limit::ARGUMENT)
                .argument(&format!("{}{}", crate::limit::KEYS, keys.len()))
                .argument(&format!("{}{value_bytes}", crate::limit::VALUE_BYTES));
        }
        let (server, others) = if members == 1 {
            (Server::start(settings).await, Vec::new())
        } else {
            let mut all = Server::start_cluster(&settings, members).await;
            (all.remove(0), all)
        };
        let target = Target {
            kind,
            server,
            others,
            keys,
            value_bytes,
            loaded_revision: 0,
            leases: Vec::new(),
        };
        if members > 1 {
            elections::lead_with_first(&target).await;
        }
        target
    }

    /// Those of all members.
    pub fn processes(&self) -> Processes {
        let ids = self.members().map(Server::process_id);
        Processes::new(ids.map(|id| id.expect("the server runs")))
    }

    pub fn members(&self) -> impl Iterator<Item = &Server> {
        std::iter::once(&self.server).chain(&self.others)
    }

    pub fn member_mut(&mut self, number: usize) -> &mut Server {
        match number.checked_sub(1) {
            None => &mut self.server,
            Some(other) => &mut self.others[other],
        }
    }

    /// Waits until every member has applied what was written.
    pub async fn settle(&self) {
        for member in self.members() {
            let read = RangeRequest {
                key: self.keys.key(0),
                ..RangeRequest::default()
            };
            Wire::new(member.channel()).range(read).await;
        }
    }

    /// One client after another, spread over [`connections`], and these over
    /// the members, the leader first.
    pub fn wires(&self, clients: usize) -> Vec<Wire> {
        let members: Vec<&Server> = self.members().collect();
        let shared: Vec<Wire> = (0..connections(clients))
            .map(|number| Wire::new(members[number % members.len()].channel()))
            .collect();
        shared.iter().cycle().take(clients).cloned().collect()
    }

    /// A connection of one's own, to the first member.
    pub fn wire(&self) -> Wire {
        Wire::new(self.server.channel())
    }
}

/// How many connections so many clients share: one has its own, 64 share 8,
/// 1,000 share 32.
pub fn connections(clients: usize) -> usize {
    match clients {
        0..=8 => clients,
        9..=512 => 8,
        _ => 32,
    }
}

impl Drop for Target {
    /// A run that fails shows what the server had to say.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for member in self.members() {
                eprintln!("{}'s log ends:\n{}", self.kind.name(), member.log_tail());
            }
        }
    }
}
