//! What goes wrong on purpose, and when.
//!
//! Owns the choice of troubles, drawn from the run's seed. Everything ends
//! with the repair of the world; see `world::World::heal`.

use std::task::{Context, Poll, Waker};

use rand::Rng as _;
use rand::rngs::StdRng;
use stele::machine::command::{MemberChange, MemberChangeKind};
use stele::machine::members;
use stele::proto::etcdserverpb::Member;

use super::clock::{MILLISECOND, SECOND};
use super::host::{ELECTION_TIMEOUT, Pending};
use super::world::{Event, World, member};

#[derive(Debug, Clone)]
pub enum Trouble {
    /// Choose one, and when the next comes.
    Next,
    Crash(usize),
    Restart(usize),
    Unblock,
    Flap(u32, usize),
    CalmNetwork,
    FastDisk(usize),
}

/// What may go wrong in a run.
pub struct Troubles {
    /// Short: logs are cut often and members need whole states.
    pub entries_per_flush: u64,
    pub catch_up_entries: Option<u64>,
    /// One in so many events of a member crashes it; 0: none.
    crash_one_in: u32,
    has_conf_changes: bool,
    mean_gap: u64,
    /// Leaders are suspended for longer than leases last.
    pub has_pauses: bool,
    conf_change: Option<Pending>,
    conf_change_until: u64,
    members: u64,
}

impl Troubles {
    pub fn new(members: u64, rng: &mut StdRng) -> Troubles {
        let entries_per_flush = match rng.random_range(0..3) {
            0 => 12,
            1 => 40,
            _ => 400,
        };
        Troubles {
            entries_per_flush,
            catch_up_entries: [None, Some(5)][rng.random_range(0..2)],
            crash_one_in: [0, 3000, 1000][rng.random_range(0..3)],
            has_conf_changes: members == 1 || rng.random_ratio(1, 2),
            mean_gap: rng.random_range(300 * MILLISECOND..1500 * MILLISECOND),
            has_pauses: rng.random_ratio(1, 4),
            conf_change: None,
            conf_change_until: 0,
            members: members.max(3),
        }
    }

    pub fn crashes_now(&self, rng: &mut StdRng) -> bool {
        self.crash_one_in > 0 && rng.random_ratio(1, self.crash_one_in)
    }
}

impl World {
    pub fn trouble(&mut self, trouble: Trouble) {
        match trouble {
            // After the repair nothing is done any more but undone.
            Trouble::Next if self.is_healed() => {}
            Trouble::Next => {
                self.choose_trouble();
                let mean = self.troubles.mean_gap;
                let after = self.rng.random_range(mean / 10..2 * mean);
                self.plan(after, Event::Trouble(Trouble::Next));
            }
            Trouble::Crash(at) => {
                if !self.is_healed() {
                    self.crash_for_a_while(at);
                }
            }
            Trouble::Restart(at) => self.start_host(at),
            Trouble::Unblock => self.network.unblock(),
            Trouble::Flap(left, at) => {
                self.network.unblock();
                if left > 0 && !self.is_healed() {
                    if left % 2 == 1 {
                        self.cut_off(at, true);
                    }
                    let after = self.rng.random_range(20 * MILLISECOND..400 * MILLISECOND);
                    self.plan(after, Event::Trouble(Trouble::Flap(left - 1, at)));
                }
            }
            Trouble::CalmNetwork => self.network.heal(),
            Trouble::FastDisk(at) => {
                self.hosts[at].max_sync = 2 * MILLISECOND;
                self.hosts[at].max_apply = MILLISECOND;
            }
        }
    }

    fn crash_for_a_while(&mut self, at: usize) {
        self.crash_host(at);
        let after = self.rng.random_range(20 * MILLISECOND..3 * SECOND);
        self.plan(after, Event::Trouble(Trouble::Restart(at)));
    }

    /// The leader more often than others: there it hurts.
    fn victim(&mut self) -> usize {
        let leader = self.leader();
        match leader {
            Some(leader) if self.rng.random() => leader,
            _ => self.rng.random_range(0..self.hosts.len()),
        }
    }

    /// Who leads in the highest term.
    pub fn leader(&self) -> Option<usize> {
        let lives = self.hosts.iter().enumerate();
        let statuses = lives.filter_map(|(at, host)| {
            let status = host.life.as_ref()?.consensus.status();
            status.is_leader.then_some((status.term, at))
        });
        Some(statuses.max()?.1)
    }

    fn choose_trouble(&mut self) {
        self.poll_conf_change();
        if self.troubles.has_conf_changes && self.rng.random_ratio(1, 3) {
            return self.change_members();
        }
        let at = self.victim();
        if self.troubles.has_pauses && self.rng.random_ratio(1, 3) {
            let at = self.leader().unwrap_or(at);
            return self.pause(at, 2 * SECOND..6 * SECOND);
        }
        match self.rng.random_range(0..100) {
            0..18 => self.crash_for_a_while(at),
            18..22 => {
                self.note(|| "power fails everywhere".to_owned());
                for at in 0..self.hosts.len() {
                    self.crash_for_a_while(at);
                }
            }
            22..34 => self.pause(at, 200 * MILLISECOND..6 * SECOND),
            34..46 => {
                let is_symmetric = self.rng.random_ratio(2, 3);
                self.cut_off(at, is_symmetric);
                let after = self.rng.random_range(300 * MILLISECOND..4 * SECOND);
                self.plan(after, Event::Trouble(Trouble::Unblock));
            }
            46..54 => self.split(),
            54..60 => {
                let times = self.rng.random_range(3..12);
                self.trouble(Trouble::Flap(times, at));
            }
            60..70 => {
                self.network.lost_per_mille = self.rng.random_range(10..300);
                self.network.max_late = self.rng.random_range(10..1500) * MILLISECOND;
                self.network.max_delay = self.rng.random_range(1..60) * MILLISECOND;
                let after = self.rng.random_range(500 * MILLISECOND..4 * SECOND);
                self.plan(after, Event::Trouble(Trouble::CalmNetwork));
            }
            70..78 => {
                let election = ELECTION_TIMEOUT.as_micros() as u64;
                self.hosts[at].max_sync = self.rng.random_range(10 * MILLISECOND..3 * election);
                self.note(|| format!("the disk of member {} is slow", at + 1));
                let after = self.rng.random_range(500 * MILLISECOND..4 * SECOND);
                self.plan(after, Event::Trouble(Trouble::FastDisk(at)));
            }
            78..84 => {
                self.hosts[at].max_apply = self.rng.random_range(10..2000) * MILLISECOND;
                let after = self.rng.random_range(500 * MILLISECOND..4 * SECOND);
                self.plan(after, Event::Trouble(Trouble::FastDisk(at)));
            }
            84..90 => self.move_leadership(),
            _ => self.crash_for_a_while(at),
        }
    }

    fn pause(&mut self, at: usize, length: std::ops::Range<u64>) {
        self.note(|| format!("member {} is suspended", at + 1));
        self.hosts[at].paused_until = self.now() + self.rng.random_range(length);
    }

    fn cut_off(&mut self, at: usize, is_symmetric: bool) {
        let id = at as u64 + 1;
        let is_outward = self.rng.random();
        self.note(|| format!("member {id} is cut off, both ways: {is_symmetric}"));
        for other in 1..=self.hosts.len() as u64 {
            if is_symmetric || is_outward {
                self.network.block(id, other);
            }
            if is_symmetric || !is_outward {
                self.network.block(other, id);
            }
        }
    }

    fn split(&mut self) {
        let sides: Vec<bool> = self.hosts.iter().map(|_| self.rng.random()).collect();
        self.note(|| format!("the network is split: {sides:?}"));
        for (a, side) in sides.iter().enumerate() {
            for (b, other) in sides.iter().enumerate() {
                if side != other {
                    self.network.block(a as u64 + 1, b as u64 + 1);
                }
            }
        }
        let after = self.rng.random_range(300 * MILLISECOND..4 * SECOND);
        self.plan(after, Event::Trouble(Trouble::Unblock));
    }

    fn move_leadership(&mut self) {
        let to = self.rng.random_range(1..=self.hosts.len() as u64);
        let Some(at) = self.leader() else { return };
        let Some(life) = &self.hosts[at].life else {
            return;
        };
        let consensus = life.consensus.clone();
        let mut asking: Pending = Box::pin(async move {
            let _ = consensus.transfer_leadership(to).await;
        });
        self.note(|| format!("member {} is asked to let {to} lead", at + 1));
        let _ = asking
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        self.settle(at);
    }

    fn poll_conf_change(&mut self) {
        let now = self.now();
        if let Some(change) = &mut self.troubles.conf_change {
            let poll = change
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()));
            if poll == Poll::Ready(()) || self.troubles.conf_change_until < now {
                self.troubles.conf_change = None;
            }
        }
    }

    /// One change after the other, as an operator would.
    fn change_members(&mut self) {
        if self.troubles.conf_change.is_some() {
            return;
        }
        let Some(at) = self.leader() else { return };
        let Some(life) = &self.hosts[at].life else {
            return;
        };
        if self.hosts[at].paused_until > self.now() {
            return;
        }
        let members = life.stepped.machine().published().members();
        let voters: Vec<u64> = members
            .iter()
            .filter(|member| !member.is_learner)
            .map(|member| member.id)
            .collect();
        let learner = members.iter().find(|member| member.is_learner);
        let (kind, changed) = match learner {
            Some(learner) => {
                // The edge asks for this too.
                let progress = life.consensus.progress(learner.id);
                let committed = life.consensus.status().committed_index;
                let is_ready = progress.is_some_and(|progress| {
                    progress.is_recent_active && progress.matched * 10 >= committed * 9
                });
                if is_ready {
                    (MemberChangeKind::Promote, learner.id)
                } else {
                    return;
                }
            }
            None if voters.len() as u64 > self.troubles.members
                || voters.len() > 1 && self.rng.random_ratio(1, 4) =>
            {
                let which = self.rng.random_range(0..voters.len());
                (MemberChangeKind::Remove, voters[which])
            }
            None if self.hosts.len() >= 8 => return,
            None => (MemberChangeKind::AddLearner, self.hosts.len() as u64 + 1),
        };
        let consensus = life.consensus.clone();
        let mut change = MemberChange {
            member: Some(member(changed)),
            max_learners: 1,
            ..MemberChange::default()
        };
        change.set_kind(kind);
        self.note(|| format!("member {} is asked to {kind:?} {changed}", at + 1));
        let oracle = self.around.oracle.clone();
        let mut asking: Pending = Box::pin(async move {
            if consensus.change_membership(change).await.is_ok() {
                oracle.lock().counts.conf_changes += 1;
            }
        });
        let poll = asking
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        self.troubles.conf_change = poll.is_pending().then_some(asking);
        self.troubles.conf_change_until = self.now() + 5 * SECOND;
        if kind == MemberChangeKind::AddLearner {
            let mut known: Vec<Member> = members.to_vec();
            known.push(member(changed));
            self.add_host(changed, &known, members::Start::Joining);
        }
        self.settle(at);
    }
}
