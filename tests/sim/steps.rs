//! What a member does at each event, and what follows from it.
//!
//! Stands for the threads of a member, each step of which takes its time: the
//! drive loop, the log writer, the apply thread, the trimmer, the chore that
//! ends leases; and for the connections to its peers.

use raft::eraftpb::{Message, MessageType};
use rand::Rng as _;
use stele::machine::command::LeaseExpiry;
use stele::proto::etcdserverpb::LeaseRevokeRequest;

use super::Fault;
use super::clock::{MILLISECOND, SECOND};
use super::host::Pending;
use super::world::{Event, WAKING, World};

impl World {
    pub fn member_event(&mut self, at: usize, event: Event) {
        let number = at + 1;
        let host = &mut self.hosts[at];
        let Some(life) = &mut host.life else { return };
        match event {
            Event::Tick(..) => {
                life.stepped.tick();
                life.hub.catch_up(&mut life.sweep);
                let (tick, lives) = (host.tick, host.lives);
                self.plan(tick, Event::Tick(at, lives));
            }
            Event::Synced(..) => {
                if let Some((save, messages)) = life.writer.end() {
                    life.stepped.persisted(save, messages);
                }
                self.note(|| format!("member {number} has synced"));
            }
            Event::Apply(..) => {
                life.is_apply_planned = false;
                if life.writer.holds_apply() {
                    // A state has come since this was planned: the thread would
                    // wait for the log here.
                    return;
                }
                life.apply();
                let applied = life.stepped.machine().applied();
                self.mix(applied.0);
                self.note(|| format!("member {number} has applied up to {applied:?}"));
            }
            Event::Flushed(..) => {
                if let Some(applied) = life.flushing.take() {
                    life.engine.flush().unwrap();
                    life.stepped.flushed(applied);
                    self.note(|| format!("member {number} has flushed, trims up to {applied:?}"));
                }
            }
            Event::Leave(..) => self.leave(at),
            Event::Chore(..) => self.chore(at),
            Event::Unreachable(_, _, peer) => life.inbox.unreachable(peer),
            Event::SnapshotSent { peer, is_ok, .. } => {
                life.inbox.snapshot_sent(peer, is_ok);
                self.note(|| format!("the state of {number} has come to {peer}: {is_ok}"));
            }
            Event::Deliver(_, message) => self.deliver(at, *message),
            _ => unreachable!("not a member's"),
        }
    }

    /// A removed member stops.
    fn leave(&mut self, at: usize) {
        if self.is_needed(at) {
            let lives = self.hosts[at].lives;
            self.plan(200 * MILLISECOND, Event::Leave(at, lives));
            return;
        }
        self.note(|| format!("member {} leaves", at + 1));
        self.crash_host(at);
        self.hosts[at].is_gone = true;
    }

    /// Whether the last member of a group does not know yet that it is alone.
    ///
    /// Raft as it is here goes by the members as applied, so that one needs the
    /// vote of the removed one until it has heard of the removal; and what
    /// tells it may get lost, as with etcd. Whoever takes away one of two
    /// machines has to look first whether the other goes on.
    fn is_needed(&self, at: usize) -> bool {
        let Some(life) = &self.hosts[at].life else {
            return false;
        };
        let members = life.stepped.machine().published().members();
        let [last] = &members[..] else { return false };
        let other = &self.hosts[last.id as usize - 1];
        other.life.as_ref().is_none_or(|other| {
            let id = at as u64 + 1;
            !other.stepped.machine().published().is_removed(id)
        })
    }

    fn deliver(&mut self, at: usize, message: Message) {
        let from = message.from;
        let Some(life) = &self.hosts[at].life else {
            return;
        };
        let is_stranger = life.stepped.machine().published().is_removed(from);
        if is_stranger {
            self.lose(at, &message);
            // The transport says so to whoever was removed.
            let sender = &self.hosts[from as usize - 1];
            if let Some(life) = &sender.life
                && sender.paused_until <= self.now()
            {
                life.inbox.removed();
                self.settle(from as usize - 1);
            }
            return;
        }
        let kind = message.get_msg_type();
        if !matches!(
            kind,
            MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse
        ) {
            self.note(|| format!("{from} -> {}: {}", at + 1, show(&message)));
        }
        let life = self.hosts[at].life.as_ref().expect("looked at above");
        // A full inbox is a loss as any other.
        let _ = life.inbox.step(message);
        if kind == MessageType::MsgSnapshot {
            let is_ok = self.network.reaches(at as u64 + 1, from);
            self.report_snapshot(from, at, is_ok);
        }
    }

    /// A message has not come through.
    pub fn lose(&mut self, to: usize, message: &Message) {
        if message.get_msg_type() == MessageType::MsgSnapshot {
            self.report_snapshot(message.from, to, false);
        }
    }

    /// The sender of a state hears what became of it, sooner or later.
    fn report_snapshot(&mut self, from: u64, to: usize, is_ok: bool) {
        let host = from as usize - 1;
        let life = self.hosts[host].lives;
        let after = self.rng.random_range(MILLISECOND..200 * MILLISECOND);
        let event = Event::SnapshotSent {
            host,
            life,
            peer: to as u64 + 1,
            is_ok,
        };
        self.plan(after, event);
    }

    /// At once, or together with what comes in the next moments: the drive
    /// loop takes all that has come by the time it gets round to it. After a
    /// suspension that is much, and others run before the drive loop.
    pub fn settle_soon(&mut self, at: usize) {
        let is_waking = self.now() < self.hosts[at].paused_until + WAKING;
        if !is_waking && self.rng.random_ratio(2, 3) {
            return self.settle(at);
        }
        let lives = self.hosts[at].lives;
        let Some(life) = &mut self.hosts[at].life else {
            return;
        };
        if !life.is_drive_planned {
            life.is_drive_planned = true;
            let after = self.rng.random_range(10..4 * MILLISECOND);
            self.plan(after, Event::Drive(at, lives));
        }
    }

    /// Lets a member do all that follows from what has happened to it.
    pub fn settle(&mut self, at: usize) {
        loop {
            let Some(life) = &mut self.hosts[at].life else {
                return;
            };
            life.is_drive_planned = false;
            life.stepped.drive();
            if life.consensus.has_failed() {
                self.fail(format!("member {} has stopped by itself", at + 1));
                return;
            }
            let tasks = life.stepped.log_tasks();
            life.writer.add(tasks);
            self.write(at);
            self.send(at);
            self.plan_apply(at);
            self.poll(at);
            let Some(life) = &self.hosts[at].life else {
                return;
            };
            if !life.stepped.has_events() {
                break;
            }
        }
        let host = &mut self.hosts[at];
        let lives = host.lives;
        if let Some(life) = &mut host.life
            && life.stepped.is_removed()
            && !life.is_leaving
        {
            life.is_leaving = true;
            self.plan(SECOND, Event::Leave(at, lives));
        }
    }

    fn write(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        let lives = host.lives;
        let Some(life) = &mut host.life else { return };
        if !life.writer.begin() {
            return;
        }
        if self.around.fault == Some(Fault::AcknowledgeBeforeSync)
            && let Some((save, messages)) = life.writer.take_persisted()
        {
            life.stepped.persisted(save, messages);
        }
        let max = host.max_sync.max(200);
        let after = self.rng.random_range(100..=max);
        self.plan(after, Event::Synced(at, lives));
    }

    fn send(&mut self, at: usize) {
        let Some(life) = &self.hosts[at].life else {
            return;
        };
        for message in life.take_messages() {
            let (from, to) = (message.from, message.to);
            self.around.oracle.lock().counts.messages += 1;
            let is_snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            let Some(host) = self.hosts.iter().position(|host| host.id == to) else {
                continue;
            };
            match self.network.send(from, to, &mut self.rng) {
                Some(delay) if self.hosts[host].life.is_some() => {
                    let delay = if is_snapshot {
                        (delay * 20).min(SECOND)
                    } else {
                        delay
                    };
                    self.plan(delay, Event::Deliver(host, Box::new(message)));
                }
                _ => {
                    self.lose(host, &message);
                    if !is_snapshot && self.rng.random_ratio(1, 4) {
                        let life = self.hosts[at].lives;
                        self.plan(MILLISECOND, Event::Unreachable(at, life, to));
                    }
                }
            }
        }
    }

    fn plan_apply(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        let lives = host.lives;
        let max_apply = host.max_apply;
        let Some(life) = &mut host.life else { return };
        if life.stepped.has_apply_work() && !life.is_apply_planned && !life.writer.holds_apply() {
            life.is_apply_planned = true;
            let after = self.rng.random_range(10..=max_apply);
            self.plan(after, Event::Apply(at, lives));
        }
        let Some(life) = &mut self.hosts[at].life else {
            return;
        };
        if life.flushing.is_none()
            && let Some(applied) = life.stepped.flush_request()
        {
            life.flushing = Some(applied);
            let after = self.rng.random_range(MILLISECOND..60 * MILLISECOND);
            self.plan(after, Event::Flushed(at, lives));
        }
    }

    /// As `chores::expire_leases`.
    fn chore(&mut self, at: usize) {
        let now = self.now();
        let host = &mut self.hosts[at];
        let lives = host.lives;
        let Some(life) = &mut host.life else { return };
        if life.chores_until <= now {
            life.chores.clear();
        }
        let status = life.consensus.status();
        if !status.is_leader {
            life.lessor.follow();
        } else if life.chores.is_empty() {
            life.lessor.lead(status.term, self.around.clock.instant());
            let expired = life.lessor.expired(self.around.clock.instant(), 500);
            for id in expired {
                let consensus = life.consensus.clone();
                let fault = self.around.fault;
                let chore: Pending = Box::pin(async move {
                    if fault == Some(Fault::ExpireInAnyTerm) {
                        let _ = consensus.propose_first(LeaseRevokeRequest { id }).await;
                    } else {
                        let term = status.term;
                        let _ = consensus.propose_first(LeaseExpiry { id, term }).await;
                    }
                });
                life.chores.push(chore);
                life.chores_until = now + 7 * SECOND;
            }
        }
        self.plan(500 * MILLISECOND, Event::Chore(at, lives));
        self.poll(at);
    }
}

fn show(message: &Message) -> String {
    format!(
        "{:?} term {} index {} log term {} commit {} entries {}{}",
        message.get_msg_type(),
        message.term,
        message.index,
        message.log_term,
        message.commit,
        message.entries.len(),
        if message.reject { " rejected" } else { "" }
    )
}
