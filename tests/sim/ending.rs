//! After the repair: every member serves again, and all have the same.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::clients::{Client, Op};
use super::clock::SECOND;
use super::host::Life;
use super::world::{Event, World};

/// The last writes, one through each member.
#[derive(Default)]
pub struct Ending {
    /// The first of the clients that make them.
    pub first_client: usize,
    pub answered: BTreeSet<usize>,
}

impl World {
    pub fn begin_ending(&mut self) {
        self.ending.first_client = self.clients.len();
        for at in 0..self.hosts.len() {
            let number = self.clients.len();
            self.clients.push(Client::new(number as u64 + 1, at));
            self.plan(SECOND, Event::Client(number));
        }
    }

    /// What a client does after the repair; nothing, if it has been answered.
    pub fn last_op(&self, number: usize) -> Option<Op> {
        let is_due = number >= self.ending.first_client && !self.ending.answered.contains(&number);
        is_due.then(|| Op::Put {
            key: Bytes::from_static(b"end"),
            value: Bytes::from(format!("end-{number}-{}", self.now())),
            lease: 0,
        })
    }

    /// Everything that must hold at the end.
    pub fn check_ending(&mut self) {
        self.catch_up_watches();
        if let Err(problem) = self.compare_members() {
            self.fail(problem);
        }
    }

    /// One that has come to its member a moment ago is no violation.
    fn catch_up_watches(&mut self) {
        for life in self.hosts.iter_mut().filter_map(|host| host.life.as_mut()) {
            while life.hub.catch_up(&mut life.sweep) {}
        }
        for watch in &mut self.watches {
            watch.receive(&mut self.around.oracle.lock());
        }
    }

    fn compare_members(&self) -> Result<(), String> {
        let lives = self.hosts.iter().filter_map(|host| host.life.as_ref());
        let first = lives.max_by_key(|life| life.stepped.machine().applied());
        let first = first.ok_or("nobody is left")?;
        let members = first.stepped.machine().published().members();
        let expected = State::of(first)?;
        let last = self.around.oracle.lock().last_revision();
        if expected.revision != last {
            let revision = expected.revision;
            return Err(format!(
                "at the end {last} is known, but the furthest is at {revision}"
            ));
        }
        for member in members.iter() {
            let at = member.id as usize - 1;
            let Some(life) = &self.hosts[at].life else {
                return Err(format!("member {} does not run at the end", member.id));
            };
            if !self
                .ending
                .answered
                .contains(&(self.ending.first_client + at))
            {
                let status = life.consensus.status();
                return Err(format!(
                    "member {} has not served again: {status:?}",
                    member.id
                ));
            }
            let state = State::of(life)?;
            if state != expected {
                return Err(format!(
                    "member {} ends with {state:?}, not {expected:?}",
                    member.id
                ));
            }
        }
        for watch in &self.watches {
            let is_member = members
                .iter()
                .any(|member| member.id == watch.host as u64 + 1);
            if is_member && watch.next != last + 1 {
                return Err(format!(
                    "a watch has come to {}, not {last}",
                    watch.next - 1
                ));
            }
        }
        Ok(())
    }
}

/// What must be the same on all members.
#[derive(Debug, PartialEq, Eq)]
struct State {
    applied: (u64, u64),
    revision: i64,
    hash: u32,
    compacted: i64,
    leases: Vec<i64>,
    members: Vec<(u64, bool)>,
}

impl State {
    fn of(life: &Life) -> Result<State, String> {
        let machine = life.stepped.machine();
        let hash = life.store.hash_kv(0);
        let hash = hash.map_err(|error| format!("HashKV fails: {error}"))?;
        let mut leases: Vec<i64> = machine.leases().map(|lease| lease.id).collect();
        leases.sort_unstable();
        let members = machine.published().members();
        let members = members.iter().map(|member| (member.id, member.is_learner));
        Ok(State {
            applied: machine.applied(),
            revision: hash.revision,
            hash: hash.hash,
            compacted: hash.compact_revision,
            leases,
            members: members.collect(),
        })
    }
}
