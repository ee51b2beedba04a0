//! One of the two servers that are compared: a single process, or a cluster of
//! several that has to answer as if it were one.
//!
//! A cluster is asked at each of its members in turn, so that writes arrive at
//! the leader and at followers, and are read where they were not written.
//! Revisions must come out the same all the same, and they do wherever etcd
//! promises it: a write is answered when its own member has applied it, and a
//! linearizable read sees what was written anywhere. What a member answers from
//! its own state alone (serializable reads, hashes, the list of leases, the
//! start of a watch, the header of a keep-alive) may lag behind what was written
//! through another, as in etcd; before those the member is made to catch up, by one linearizable read.

use stele::proto::client::etcdserverpb::RangeRequest;

use crate::call::Caller;
use crate::outcome::Outcome;
use crate::request::Request;
use crate::support::client::Clients;
use crate::support::process::{Program, Server, Settings};

pub struct Side {
    members: Vec<Server>,
    callers: Vec<Caller>,
    turn: usize,
}

impl Side {
    pub async fn start(program: Program, size: usize) -> Side {
        // What is compared here is answers; crashes have their own test.
        let settings = Settings::new(program)
            .argument("--unsafe-no-fsync")
            .log_level("error");
        let members = if size == 1 {
            vec![Server::start(settings).await]
        } else {
            Server::start_cluster(&settings, size).await
        };
        let mut side = Side {
            members,
            callers: Vec::new(),
            turn: 0,
        };
        side.connect();
        side
    }

    fn connect(&mut self) {
        let channels = self.members.iter().map(Server::channel);
        self.callers = channels.map(Caller::new).collect();
    }

    /// To the member whose turn it is.
    pub async fn call(&self, request: &Request) -> Outcome {
        Outcome::read(request, self.caller().call(request).await)
    }

    pub fn caller(&self) -> &Caller {
        &self.callers[self.turn]
    }

    /// For streams, which stay with one member. After [`Side::settle_watched`]
    /// it knows all that was written.
    pub fn watched(&self) -> Clients {
        self.members[0].clients()
    }

    /// The next requests go to the next member.
    pub fn pass_turn(&mut self) {
        self.turn = (self.turn + 1) % self.members.len();
    }

    /// Waits until the member whose turn it is has applied everything.
    pub async fn settle(&self) {
        self.catch_up(self.turn).await;
    }

    pub async fn settle_watched(&self) {
        self.catch_up(0).await;
    }

    async fn catch_up(&self, member: usize) {
        if self.members.len() > 1 {
            let read = RangeRequest {
                key: "settle".into(),
                ..RangeRequest::default()
            };
            let answer = self.callers[member].call(&Request::Range(read)).await;
            let failure = answer.failure;
            assert!(failure.is_none(), "member {member}: {failure:?}");
        }
    }

    /// A kill ends all members at a time; otherwise a cluster keeps serving
    /// while one after the other is stopped in order and started again.
    pub async fn restart(&mut self, is_killed: bool) {
        if is_killed {
            self.members.iter_mut().for_each(Server::kill);
            self.members.iter_mut().for_each(Server::spawn);
            for member in &mut self.members {
                ready(member).await;
            }
        } else {
            for member in &mut self.members {
                member.terminate().await;
                member.restart().await;
            }
        }
        self.connect();
    }

    /// What each member printed, and whether it runs.
    pub fn log(&mut self) -> String {
        let logs = self.members.iter_mut().map(|member| {
            let state = if member.is_running() {
                "runs"
            } else {
                "has ended"
            };
            format!("{:?} {state}\n{}", member.program(), member.log_tail())
        });
        logs.collect::<Vec<_>>().join("\n")
    }
}

async fn ready(member: &mut Server) {
    if let Err(reason) = member.wait_until_ready().await {
        panic!("a member does not start: {reason}\n{}", member.log_tail());
    }
}
