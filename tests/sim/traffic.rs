//! Requests and answers: what clients and watches do, and when.

use std::task::{Context, Poll, Waker};

use rand::Rng as _;

use super::clients::{Answer, Edge, InFlight, Op};
use super::clock::{MILLISECOND, SECOND};
use super::world::{Event, TROUBLED, World};

/// After that long an operation counts as unanswered.
const PATIENCE: u64 = 4 * SECOND;

impl World {
    /// Sees whether somebody who waits at a member can go on.
    pub fn poll(&mut self, at: usize) {
        let mut context = Context::from_waker(Waker::noop());
        let lives = self.hosts[at].lives;
        let Some(life) = &mut self.hosts[at].life else {
            return;
        };
        life.chores
            .retain_mut(|chore| chore.as_mut().poll(&mut context).is_pending());
        if self.rng.random_ratio(1, 4) {
            life.hub.catch_up(&mut life.sweep);
        }
        for watch in self.watches.iter_mut().filter(|watch| watch.host == at) {
            watch.receive(&mut self.around.oracle.lock());
        }
        for number in 0..self.clients.len() {
            let client = &mut self.clients[number];
            let Some(asked) = &mut client.in_flight else {
                continue;
            };
            if asked.host != at {
                continue;
            }
            let Poll::Ready(answer) = asked.asking.as_mut().poll(&mut context) else {
                continue;
            };
            debug_assert_eq!(asked.life, lives);
            self.finish(number, answer);
        }
    }

    fn finish(&mut self, number: usize, answer: Answer) {
        let Some(asked) = self.clients[number].in_flight.take() else {
            return;
        };
        let text = self.is_traced().then(|| answer.show());
        if self.is_healed() && matches!(answer, Answer::Done(..)) {
            self.ending.answered.insert(number);
            let after = (self.around.clock.now() - TROUBLED) / MILLISECOND;
            self.around.oracle.lock().counts.slowest_recovery = after;
        }
        {
            let mut oracle = self.around.oracle.lock();
            if let (
                Op::Get {
                    is_serializable: true,
                    revision: 0,
                    ..
                },
                Answer::Read(shown, _),
            ) = (&asked.op, &answer)
                && let Some(life) = &mut self.hosts[asked.host].life
            {
                if *shown < life.last_read {
                    oracle.fail(format!(
                        "a member went back from {} to {shown}",
                        life.last_read
                    ));
                }
                life.last_read = *shown;
            }
            self.clients[number].check(&asked, answer, &mut oracle);
        }
        if let Some(text) = text {
            self.note(|| format!("client {}: {:?} -> {text}", number + 1, asked.op));
        }
        let pause = self.rng.random_range(MILLISECOND..120 * MILLISECOND);
        self.plan(pause, Event::Client(number));
    }

    pub fn client(&mut self, number: usize) {
        if self.clients[number].in_flight.is_some() {
            return;
        }
        let mut at = self.clients[number].host;
        if self.is_healed() {
            let Some(op) = self.last_op(number) else {
                return;
            };
            if !self.ask(number, at, op) {
                self.plan(100 * MILLISECOND, Event::Client(number));
            }
            return;
        }
        if self.hosts[at].life.is_none() || self.rng.random_ratio(1, 20) {
            at = self.rng.random_range(0..self.hosts.len());
            self.clients[number].host = at;
        }
        let op = {
            let oracle = self.around.oracle.lock();
            self.clients[number].next_op(&mut self.rng, &oracle, self.traffic)
        };
        if !self.ask(number, at, op) {
            self.plan(100 * MILLISECOND, Event::Client(number));
        }
    }

    /// Begins an operation; answers false if there is nobody to ask.
    pub fn ask(&mut self, number: usize, at: usize, op: Op) -> bool {
        let now = self.now();
        let Some(life) = &self.hosts[at].life else {
            return false;
        };
        // A renewal goes on to the leader, if that can be reached.
        let status = life.consensus.status();
        let mut host = at;
        if matches!(op, Op::Renew { .. }) && !status.is_leader {
            let leader = self.hosts.iter().position(|host| host.id == status.leader);
            let Some(leader) = leader else { return false };
            let is_reached = self.network.reaches(at as u64 + 1, status.leader)
                && self.network.reaches(status.leader, at as u64 + 1);
            if !is_reached {
                return false;
            }
            host = leader;
        }
        let Some(life) = &self.hosts[host].life else {
            return false;
        };
        let edge = Edge {
            consensus: life.consensus.clone(),
            store: life.store.clone(),
            leader: Some((life.consensus.clone(), life.lessor.clone())),
            clock: self.around.clock.clone(),
            fault: self.around.fault,
        };
        let life = self.hosts[host].lives;
        let floor = {
            let mut oracle = self.around.oracle.lock();
            match &op {
                Op::Revoke { id } => {
                    oracle.leases.entry(*id).or_default().is_revoking = true;
                }
                Op::Compact { revision } => oracle.compacted = oracle.compacted.max(*revision),
                _ => {}
            }
            oracle.shown
        };
        self.note(|| format!("client {} asks member {}: {op:?}", number + 1, host + 1));
        let client = &mut self.clients[number];
        client.count += 1;
        let count = client.count;
        client.in_flight = Some(InFlight {
            asking: op.ask(edge),
            op,
            number: count,
            host,
            life,
            began: now,
            floor,
        });
        self.plan(PATIENCE, Event::GiveUp(number, count));
        if self.hosts[host].paused_until > now {
            self.put_off(host, Event::Drive(host, life));
        } else {
            self.poll(host);
            self.settle_soon(host);
        }
        true
    }

    pub fn give_up(&mut self, number: usize, asked: u64) {
        let is_same = |in_flight: &InFlight| in_flight.number == asked;
        if self.clients[number].in_flight.as_ref().is_some_and(is_same) {
            if !self.is_healed() {
                self.clients[number].host = self.rng.random_range(0..self.hosts.len());
            }
            self.finish(number, Answer::Unknown);
        } else if self.clients[number].in_flight.is_none() {
            // A crash has taken the operation and nobody has gone on.
            self.plan(MILLISECOND, Event::Client(number));
        }
    }

    pub fn watch(&mut self, number: usize) {
        let mut at = self.watches[number].host;
        let is_open = self.watches[number].is_open(self.hosts[at].lives);
        if !is_open || self.rng.random_ratio(1, 40) {
            at = self.rng.random_range(0..self.hosts.len());
            if let Some(life) = &self.hosts[at].life {
                self.watches[number].open(at, self.hosts[at].lives, &life.hub);
                let next = self.watches[number].next;
                self.note(|| format!("watch {number} goes on from {next} on member {}", at + 1));
            }
        } else if let Some(life) = &self.hosts[at].life {
            let mut oracle = self.around.oracle.lock();
            self.watches[number].ask_progress(&life.store, self.around.fault, &mut oracle);
        }
        let after = self.rng.random_range(20 * MILLISECOND..300 * MILLISECOND);
        self.plan(after, Event::Watch(number));
    }
}
