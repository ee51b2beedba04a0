//! Replicas without threads, disk or clock: each test decides which message
//! arrives and which save is durable when.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use raft::StorageError;
use raft::eraftpb::{MessageType, Snapshot};

use super::*;
use crate::consensus::NoSnapshots;

/// Somebody who never gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name(u64);

impl Waits for Name {
    fn is_gone(&self) -> bool {
        false
    }
}

/// The entries that are durable.
#[derive(Clone, Default)]
struct MemoryLog(Rc<RefCell<Vec<Entry>>>);

impl StoredLog for MemoryLog {
    fn entries(
        &self,
        low: u64,
        high: u64,
        _max_bytes: Option<usize>,
    ) -> Result<Vec<Entry>, raft::Error> {
        let entries = self.0.borrow();
        let wanted = entries
            .iter()
            .filter(|e| (low..high).contains(&e.index))
            .cloned();
        Ok(wanted.collect())
    }

    fn term(&self, index: u64) -> Result<u64, raft::Error> {
        let entries = self.0.borrow();
        let found = entries.iter().find(|entry| entry.index == index);
        found
            .map(|entry| entry.term)
            .ok_or_else(|| StorageError::Unavailable.into())
    }
}

struct Member {
    replica: Replica<MemoryLog, Name, Name>,
    log: MemoryLog,
    conf: Conf,
    applied: u64,
    /// Commands applied, and who of this member waited for them.
    commands: Vec<(Bytes, Option<Name>)>,
    reads: Vec<(u64, Name)>,
    failed_reads: Vec<Name>,
    saves: VecDeque<Save>,
    /// Saves become durable at once.
    is_disk_fast: bool,
    /// The machine answers a change of the members at once, and agrees.
    is_conf_decided: bool,
    undecided: VecDeque<(u64, ConfChange)>,
}

/// Members and the messages between them.
struct Group {
    members: Vec<Member>,
    messages: VecDeque<Message>,
    /// Nothing arrives at these.
    cut: Vec<u64>,
}

const ELECTION_TICKS: usize = 10;

fn conf(voters: &[u64], learners: &[u64]) -> Conf {
    Conf {
        voters: voters.to_vec(),
        learners: learners.to_vec(),
    }
}

fn member(id: u64, conf: &Conf) -> Member {
    let log = MemoryLog::default();
    let mut recovered = Recovered::default();
    if !conf.voters.is_empty() {
        (recovered.truncated, recovered.last_index) = ((1, 1), 1);
        (recovered.hard_state.term, recovered.hard_state.commit) = (1, 1);
    }
    let config = raft::Config {
        id,
        election_tick: ELECTION_TICKS,
        heartbeat_tick: 1,
        applied: recovered.last_index,
        check_quorum: true,
        pre_vote: true,
        max_inflight_msgs: 16,
        ..raft::Config::default()
    };
    let applied = recovered.last_index;
    let replica = Replica::new(Start {
        config,
        log: log.clone(),
        recovered,
        conf: conf.clone(),
        source: Box::new(NoSnapshots),
        logger: crate::consensus::raft_logger::raft_logger(),
        run: 100 + id,
        read_retry_ticks: 5,
        advance_election: false,
        catch_up_entries: None,
    });
    Member {
        replica: replica.unwrap(),
        log,
        conf: conf.clone(),
        applied,
        commands: Vec::new(),
        reads: Vec::new(),
        failed_reads: Vec::new(),
        saves: VecDeque::new(),
        is_disk_fast: true,
        is_conf_decided: true,
        undecided: VecDeque::new(),
    }
}

impl Member {
    fn propose(&mut self, id: u64, text: &'static str) {
        self.replica.propose(Proposal {
            id,
            payload: Payload::Command(Bytes::from_static(text.as_bytes())),
            waiter: Name(id),
        });
    }

    fn propose_conf(&mut self, id: u64, kind: ConfChangeType, member_id: u64) {
        self.replica.propose(Proposal {
            id,
            payload: Payload::ConfChange {
                kind,
                member_id,
                command: Bytes::new(),
            },
            waiter: Name(id),
        });
    }

    /// Carries out what the replica wants; answers what it sends.
    fn carry_out(&mut self) -> Vec<Message> {
        let mut sent = Vec::new();
        while let Some(output) = self.replica.take() {
            sent.extend(output.messages);
            self.failed_reads.extend(output.failed_reads);
            self.saves.extend(output.save);
            if let Some(state) = output.apply.state {
                let metadata = state.get_metadata();
                self.applied = metadata.index;
                self.conf = conf(
                    &metadata.get_conf_state().voters,
                    &metadata.get_conf_state().learners,
                );
            }
            for (entry, waiter) in output.apply.entries {
                assert_eq!(entry.index, self.applied + 1);
                self.applied = entry.index;
                if is_conf_change(&entry) {
                    let change = ConfChange::parse_from_bytes(&entry.data).unwrap();
                    self.undecided.push_back((entry.index, change));
                    self.commands.push((Bytes::from_static(b"change"), waiter));
                } else if !entry.data.is_empty() {
                    self.commands.push((entry.data, waiter));
                }
            }
            for (index, readers) in output.apply.reads {
                self.reads
                    .extend(readers.iter().map(|reader| (index, *reader)));
            }
            while self.is_conf_decided && !self.undecided.is_empty() {
                self.decide(true);
            }
            if self.is_disk_fast {
                sent.extend(self.sync());
            }
        }
        sent
    }

    /// The machine decides about the next change of the members.
    fn decide(&mut self, agrees: bool) {
        let (index, change) = self.undecided.pop_front().unwrap();
        let id = change.node_id;
        if agrees {
            self.conf.voters.retain(|voter| *voter != id);
            self.conf.learners.retain(|learner| *learner != id);
            match change.get_change_type() {
                ConfChangeType::AddNode => self.conf.voters.push(id),
                ConfChangeType::AddLearnerNode => self.conf.learners.push(id),
                ConfChangeType::RemoveNode => {}
            }
            self.conf.voters.sort_unstable();
        }
        self.replica.conf_applied(index, self.conf.clone());
    }

    /// All saves become durable; answers the messages that waited for that.
    fn sync(&mut self) -> Vec<Message> {
        let mut sent = Vec::new();
        while let Some(mut save) = self.saves.pop_front() {
            let mut log = self.log.0.borrow_mut();
            if save.state.is_some() {
                log.clear();
            }
            if let Some(first) = save.entries.first() {
                log.retain(|entry| entry.index < first.index);
            }
            log.append(&mut save.entries);
            drop(log);
            sent.append(&mut save.messages);
            self.replica.persisted(save.number);
        }
        sent
    }

    fn voters(&self) -> Vec<u64> {
        let conf = self.replica.node.raft.prs().conf();
        let mut voters = conf.to_conf_state().voters;
        voters.sort_unstable();
        voters
    }

    fn texts(&self) -> Vec<&str> {
        let texts = self.commands.iter();
        texts
            .map(|(text, _)| std::str::from_utf8(text).unwrap())
            .collect()
    }

    fn answered(&self) -> Vec<u64> {
        let waiters = self.commands.iter().filter_map(|(_, waiter)| *waiter);
        waiters.map(|name| name.0).collect()
    }
}

impl Group {
    fn new(voters: u64) -> Group {
        let ids: Vec<u64> = (1..=voters).collect();
        let all = conf(&ids, &[]);
        Group {
            members: ids.iter().map(|id| member(*id, &all)).collect(),
            messages: VecDeque::new(),
            cut: Vec::new(),
        }
    }

    /// A group that the first member leads, in term 2.
    fn led(voters: u64) -> Group {
        let mut group = Group::new(voters);
        group.elect(1);
        group
    }

    fn at(&mut self, id: u64) -> &mut Member {
        &mut self.members[id as usize - 1]
    }

    /// Nobody has heard of a leader for an election timeout.
    fn forget_leader(&mut self) {
        for member in &mut self.members {
            if !member.replica.is_leader() {
                member.replica.node.raft.election_elapsed = ELECTION_TICKS;
            }
        }
    }

    fn elect(&mut self, id: u64) {
        self.forget_leader();
        for _ in 0..=2 * ELECTION_TICKS {
            if self.at(id).replica.is_leader() {
                return;
            }
            self.tick(id);
        }
        panic!("{id} was not elected");
    }

    fn tick(&mut self, id: u64) {
        let member = self.at(id);
        member.replica.tick(member.applied);
        self.settle();
    }

    fn collect(&mut self) {
        for member in &mut self.members {
            self.messages.extend(member.carry_out());
        }
    }

    /// Lets everybody do everything until nothing is left to do.
    fn settle(&mut self) {
        self.collect();
        while let Some(message) = self.messages.pop_front() {
            let (from, to) = (message.from, message.to);
            let is_cut = self.cut.contains(&from) || self.cut.contains(&to);
            if !is_cut && to as usize <= self.members.len() {
                self.at(to).replica.step(message);
            }
            self.collect();
        }
    }
}

#[test]
fn a_command_is_answered_where_it_was_proposed() {
    let mut group = Group::led(3);
    group.at(3).propose(7, "from a follower");
    group.at(1).propose(8, "from the leader");
    group.settle();
    for id in 1..=3 {
        let mut texts = group.at(id).texts();
        texts.sort_unstable();
        assert_eq!(texts, ["from a follower", "from the leader"]);
    }
    assert_eq!(group.at(1).answered(), [8]);
    assert_eq!(group.at(2).answered(), [0; 0]);
    assert_eq!(group.at(3).answered(), [7]);
}

#[test]
fn a_command_waits_for_a_leader() {
    let mut group = Group::new(3);
    group.at(2).propose(7, "early");
    group.settle();
    group.elect(1);
    assert_eq!(group.at(2).answered(), [7]);
}

#[test]
fn nothing_is_applied_before_it_is_durable_here() {
    let mut group = Group::led(3);
    group.at(2).is_disk_fast = false;
    group.at(1).propose(7, "x");
    group.settle();
    assert_eq!(group.at(1).texts(), ["x"]);
    assert_eq!(group.at(2).texts(), [""; 0]);
    let sent = group.at(2).sync();
    group.messages.extend(sent);
    group.settle();
    group.tick(1);
    assert_eq!(group.at(2).texts(), ["x"]);
}

#[test]
fn readers_share_a_round_and_see_what_was_committed() {
    let mut group = Group::led(3);
    group.at(1).propose(7, "x");
    group.settle();
    let committed = group.at(1).applied;
    group.at(3).replica.read(vec![Name(1), Name(2)]);
    group.settle();
    group.at(1).replica.read(vec![Name(3)]);
    group.settle();
    assert_eq!(
        group.at(3).reads,
        [(committed, Name(1)), (committed, Name(2))]
    );
    assert_eq!(group.at(1).reads, [(committed, Name(3))]);
}

#[test]
fn a_leader_cut_off_answers_no_reader() {
    let mut group = Group::led(3);
    group.cut = vec![1];
    group.at(1).replica.read(vec![Name(1)]);
    for _ in 0..ELECTION_TICKS / 2 {
        group.tick(1);
    }
    group.elect(2);
    group.at(2).propose(7, "newer");
    group.settle();
    assert_eq!(group.at(2).answered(), [7]);
    assert_eq!(group.at(1).reads, []);
    group.cut.clear();
    group.tick(2);
    assert_eq!(group.at(1).failed_reads, [Name(1)]);
    assert_eq!(group.at(1).reads, []);
}

#[test]
fn a_read_waits_for_the_term_to_begin_and_no_longer() {
    let mut group = Group::led(3);
    // The second leader is elected, but its first entry does not arrive.
    group.cut = vec![1];
    group.forget_leader();
    while !group.at(2).replica.is_leader() {
        let applied = group.at(2).applied;
        group.at(2).replica.tick(applied);
        group.collect();
        while let Some(message) = group.messages.pop_front() {
            let is_append = message.get_msg_type() == MessageType::MsgAppend;
            if message.to != 1 && message.from != 1 && !is_append {
                group.at(message.to).replica.step(message);
            }
            group.collect();
        }
    }
    assert!(group.at(2).replica.is_leader());
    group.at(2).replica.read(vec![Name(1)]);
    group.collect();
    let mut context = Message::default();
    context.set_msg_type(MessageType::MsgReadIndex);
    (context.from, context.to) = (3, 2);
    let entry = Entry {
        data: Bytes::from_static(b"a reader of member 3"),
        ..Entry::default()
    };
    context.set_entries(vec![entry].into());
    group.at(2).replica.step(context);
    group.settle();
    assert_eq!(group.at(2).reads, []);
    // A heartbeat brings the entry's second chance; from then on no tick is
    // needed: the answers come as soon as the term has begun.
    group.tick(2);
    let opened = group.at(2).applied;
    assert_eq!(group.at(2).reads, [(opened, Name(1))]);
    assert!(group.at(2).replica.held.is_empty());
}

#[test]
fn a_retry_has_a_context_of_its_own() {
    let mut group = Group::led(3);
    group.at(3).replica.read(vec![Name(1)]);
    let mut contexts = Vec::new();
    for _ in 0..22 {
        for message in group.at(3).carry_out() {
            if message.get_msg_type() == MessageType::MsgReadIndex {
                contexts.push(message.entries[0].data.clone());
            }
        }
        // The leader is heard, so nobody stands for election.
        let mut heartbeat = Message::default();
        heartbeat.set_msg_type(MessageType::MsgHeartbeat);
        (heartbeat.from, heartbeat.to, heartbeat.term) = (1, 3, 2);
        group.at(3).replica.step(heartbeat);
        let applied = group.at(3).applied;
        group.at(3).replica.tick(applied);
    }
    assert!(contexts.len() >= 4, "{contexts:?}");
    let count = contexts.len();
    contexts.sort_unstable();
    contexts.dedup();
    assert_eq!(contexts.len(), count, "one was used twice");
    // The answer to any of them will do.
    let mut answer = Message::default();
    answer.set_msg_type(MessageType::MsgReadIndexResp);
    (answer.from, answer.to, answer.term, answer.index) = (1, 3, 2, 2);
    let entry = Entry {
        data: contexts[0].clone(),
        ..Entry::default()
    };
    answer.set_entries(vec![entry].into());
    group.at(3).replica.step(answer);
    group.at(3).carry_out();
    assert_eq!(group.at(3).reads, [(2, Name(1))]);
}

#[test]
fn a_change_of_the_members_waits_for_the_machine_and_the_disk() {
    let mut group = Group::led(1);
    group.at(1).is_conf_decided = false;
    group.at(1).is_disk_fast = false;
    group.at(1).propose_conf(7, ConfChangeType::AddNode, 2);
    group.collect();
    // The entry is durable; now it is committed, which is not.
    group.at(1).sync();
    group.collect();
    assert_eq!(group.at(1).undecided.len(), 1);
    assert_eq!(group.at(1).voters(), [1]);
    group.at(1).decide(true);
    assert_eq!(group.at(1).voters(), [1], "a restart would not know of it");
    let index = group.at(1).applied;
    let saved = group.at(1).saves.back().unwrap();
    assert!(saved.hard_state.as_ref().unwrap().commit >= index);
    group.at(1).sync();
    assert_eq!(group.at(1).voters(), [1, 2]);
}

#[test]
fn a_change_of_the_members_that_nobody_can_read_is_dropped() {
    let mut group = Group::led(3);
    let mut change = ConfChange {
        node_id: 3,
        context: Bytes::from_static(b"no command"),
        ..ConfChange::default()
    };
    change.set_change_type(ConfChangeType::RemoveNode);
    let unknown = change.write_to_bytes().unwrap();
    let unreadable = [
        (EntryType::EntryConfChange, b"no change".to_vec()),
        (EntryType::EntryConfChange, unknown),
        (EntryType::EntryConfChangeV2, Vec::new()),
    ];
    let before = group.at(1).applied;
    for (kind, data) in unreadable {
        let mut entry = Entry {
            data: data.into(),
            ..Entry::default()
        };
        entry.set_entry_type(kind);
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        (message.from, message.to) = (2, 1);
        message.set_entries(vec![entry].into());
        group.at(1).replica.step(message);
        group.settle();
    }
    assert_eq!(group.at(1).applied, before);
    group.at(2).propose_conf(9, ConfChangeType::RemoveNode, 3);
    group.settle();
    assert_eq!(group.at(1).voters(), [1, 2], "a readable one goes on");
}

#[test]
fn a_refused_change_of_the_members_leaves_room_for_the_next() {
    let mut group = Group::led(3);
    for id in 1..=3 {
        group.at(id).is_conf_decided = false;
    }
    group.at(1).propose_conf(7, ConfChangeType::AddNode, 4);
    // Both are in time to be refused by raft, and one is another member's.
    group.at(1).propose_conf(8, ConfChangeType::RemoveNode, 3);
    group
        .at(2)
        .propose_conf(9, ConfChangeType::AddLearnerNode, 5);
    group.settle();
    for agrees in [false, true, true] {
        assert_eq!(group.at(1).undecided.len(), 1, "one at a time");
        for id in 1..=3 {
            if !group.at(id).undecided.is_empty() {
                group.at(id).decide(agrees);
            }
        }
        group.settle();
        group.tick(1);
    }
    assert_eq!(group.at(1).voters(), [1, 2]);
    let conf = group.at(1).replica.node.raft.prs().conf().to_conf_state();
    assert_eq!((conf.voters.len(), conf.learners), (2, vec![5]));
    assert_eq!(group.at(1).answered(), [7, 8]);
}

#[test]
fn a_leader_that_is_removed_hands_over() {
    let mut group = Group::led(3);
    group.at(1).propose_conf(7, ConfChangeType::RemoveNode, 1);
    group.settle();
    assert!(!group.at(1).replica.is_leader());
    assert!(group.at(2).replica.is_leader() || group.at(3).replica.is_leader());
    assert_eq!(group.at(2).voters(), [2, 3]);
    assert_eq!(group.at(1).answered(), [7]);
}

/// It stops after that, and nobody else could vote.
#[test]
fn the_leader_of_two_that_is_removed_leaves_the_other_able_to_lead() {
    let mut group = Group::led(2);
    group.at(1).is_conf_decided = false;
    group.at(1).propose_conf(7, ConfChangeType::RemoveNode, 1);
    group.collect();
    while group.at(1).undecided.is_empty() {
        let message = group.messages.pop_front().unwrap();
        group.at(message.to).replica.step(message);
        group.collect();
    }
    // What tells of the commitment is lost, up to the end.
    group.messages.clear();
    let index = group.at(1).applied;
    group.at(1).decide(true);
    let last = group.at(1).carry_out();
    let kinds: Vec<MessageType> = last.iter().map(Message::get_msg_type).collect();
    assert_eq!(kinds, [MessageType::MsgAppend, MessageType::MsgTimeoutNow]);
    assert_eq!(last[0].commit, index);
    // Both arrive at the same time.
    group.cut = vec![1];
    for message in last {
        group.at(2).replica.step(message);
    }
    group.settle();
    assert_eq!(group.at(2).voters(), [2]);
    assert!(group.at(2).replica.is_leader());
    group.at(2).propose(8, "alone");
    group.settle();
    assert_eq!(group.at(2).answered(), [8]);
}

#[test]
fn a_candidate_that_is_not_elected_tries_again_soon() {
    let mut group = Group::led(3);
    group.cut = vec![1];
    // Member 3 has just heard the leader, and answers nobody who asks.
    let is_candidate = |group: &mut Group| group.at(2).replica.role().role != StateRole::Follower;
    let mut waited = 0;
    while !is_candidate(&mut group) {
        group.tick(2);
        waited += 1;
        assert!(waited <= 2 * ELECTION_TICKS);
    }
    assert!(!group.at(2).replica.is_leader());
    group.at(3).replica.node.raft.election_elapsed = ELECTION_TICKS;
    // The second of three voters.
    for _ in 0..ELECTION_TICKS * 6 / 10 {
        assert!(!group.at(2).replica.is_leader(), "it does not hurry more");
        group.tick(2);
    }
    assert!(group.at(2).replica.is_leader());
}

#[test]
fn what_comes_during_a_hand_over_is_not_lost() {
    let mut group = Group::led(3);
    group.cut = vec![2];
    assert!(group.at(1).replica.transfer_leadership(2));
    group.at(1).propose(7, "here");
    group.at(3).propose(8, "there");
    group.settle();
    assert_eq!(group.at(1).texts(), [""; 0]);
    // Nobody takes it: after an election timeout all goes on.
    for _ in 0..=ELECTION_TICKS {
        group.tick(1);
    }
    let mut texts = group.at(1).texts();
    texts.sort_unstable();
    assert_eq!(texts, ["here", "there"]);
}

#[test]
fn a_leader_whose_disk_stands_still_hands_over() {
    let mut group = Group::led(3);
    group.at(1).is_disk_fast = false;
    group.at(1).propose(7, "x");
    group.settle();
    for _ in 0..ELECTION_TICKS {
        group.tick(1);
    }
    assert!(!group.at(1).replica.is_leader());
    assert!(group.at(2).replica.is_leader() || group.at(3).replica.is_leader());
}

#[test]
fn a_leader_whose_disk_stands_still_steps_down_alone() {
    let mut group = Group::led(3);
    group.at(1).is_disk_fast = false;
    group.at(1).propose(7, "x");
    group.settle();
    // The others answer, but take nothing over.
    for _ in 0..3 * ELECTION_TICKS {
        let applied = group.at(1).applied;
        group.at(1).replica.tick(applied);
        for message in group.at(1).carry_out() {
            if message.get_msg_type() == MessageType::MsgTimeoutNow {
                continue;
            }
            group.messages.push_back(message);
        }
        group.settle();
    }
    assert!(!group.at(1).replica.is_leader());
}

#[test]
fn an_old_rejection_does_not_set_a_follower_back() {
    let mut group = Group::led(3);
    for id in 10..20 {
        group.at(1).propose(id, "x");
        group.settle();
    }
    let before = group.at(1).replica.node.raft.prs().get(2).unwrap().clone();
    assert_eq!(before.matched, group.at(1).applied);
    // Back to probing, as after a message that could not be sent.
    group.at(1).replica.unreachable(2);
    let mut rejection = Message::default();
    rejection.set_msg_type(MessageType::MsgAppendResponse);
    (rejection.from, rejection.to, rejection.term) = (2, 1, 2);
    rejection.reject = true;
    (rejection.index, rejection.reject_hint) = (before.matched, 1);
    rejection.log_term = 1;
    group.at(1).replica.step(rejection);
    let after = group.at(1).replica.node.raft.prs().get(2).unwrap();
    assert!(after.next_idx > after.matched, "{after:?}");
}

#[test]
fn a_joining_member_stays_quiet_and_takes_over_a_state() {
    let mut joining = member(4, &Conf::default());
    for _ in 0..5 * ELECTION_TICKS {
        joining.replica.tick(0);
        assert!(joining.carry_out().is_empty(), "it has nobody to ask");
    }
    let mut state = Message::default();
    state.set_msg_type(MessageType::MsgSnapshot);
    (state.from, state.to, state.term) = (1, 4, 6);
    let mut snapshot = Snapshot::default();
    snapshot.mut_metadata().index = 50;
    snapshot.mut_metadata().term = 5;
    let members = conf_state(&conf(&[1, 2, 3], &[4]));
    snapshot.mut_metadata().set_conf_state(members);
    state.set_snapshot(snapshot);
    joining.is_disk_fast = false;
    joining.replica.step(state);
    assert!(
        joining.carry_out().is_empty(),
        "nothing before it is in place"
    );
    assert_eq!(joining.applied, 50);
    assert!(joining.replica.is_installing());
    // Meanwhile the clock and the leader go on.
    for _ in 0..3 * ELECTION_TICKS {
        joining.replica.tick(50);
    }
    assert!(joining.replica.take().is_none());
    let sent = joining.sync();
    assert!(!joining.replica.is_installing());
    let answer = sent
        .iter()
        .find(|message| message.get_msg_type() == MessageType::MsgAppendResponse);
    assert_eq!(answer.unwrap().index, 50);
    assert_eq!(joining.replica.node.raft.raft_log.applied, 50);
    assert_eq!(joining.voters(), [1, 2, 3]);

    let mut append = Message::default();
    append.set_msg_type(MessageType::MsgAppend);
    (append.from, append.to, append.term) = (1, 4, 6);
    (append.index, append.log_term, append.commit) = (50, 5, 51);
    let mut entry = Entry::default();
    (entry.index, entry.term) = (51, 6);
    entry.data = Bytes::from_static(b"next");
    append.set_entries(vec![entry].into());
    joining.is_disk_fast = true;
    joining.replica.step(append);
    joining.carry_out();
    assert_eq!(joining.texts(), ["next"]);
}

#[test]
fn what_was_applied_before_a_received_state_does_not_set_it_back() {
    let mut group = Group::led(2);
    for id in 1..=3 {
        group.at(1).propose(id, "old");
        group.settle();
    }
    let follower = group.at(2);
    let before = follower.applied;
    assert!(before > follower.replica.node.raft.raft_log.applied);
    let mut state = Message::default();
    state.set_msg_type(MessageType::MsgSnapshot);
    (state.from, state.to, state.term) = (1, 2, 2);
    let mut snapshot = Snapshot::default();
    (snapshot.mut_metadata().index, snapshot.mut_metadata().term) = (50, 2);
    let members = conf_state(&conf(&[1, 2], &[]));
    snapshot.mut_metadata().set_conf_state(members);
    state.set_snapshot(snapshot);
    follower.is_disk_fast = false;
    follower.replica.step(state);
    follower.carry_out();
    assert!(follower.replica.is_installing());
    follower.replica.tick(before);
    follower.sync();
    assert_eq!(follower.replica.node.raft.raft_log.applied, 50);

    // An election at once looks at what follows the state, not at what was cut.
    let mut now = Message::default();
    now.set_msg_type(MessageType::MsgTimeoutNow);
    (now.from, now.to, now.term) = (1, 2, 2);
    follower.is_disk_fast = true;
    follower.replica.step(now);
    follower.carry_out();
    assert_eq!(follower.replica.node.raft.term, 3);
}

#[test]
fn the_last_voter_left_does_not_win_before_its_log_is_durable() {
    let mut group = Group::led(2);
    group.at(2).is_disk_fast = false;
    group.at(1).propose_conf(7, ConfChangeType::RemoveNode, 1);
    // Two voters: the second one has to write first.
    for _ in 0..3 {
        group.settle();
        let sent = group.at(2).sync();
        group.messages.extend(sent);
    }
    group.settle();
    group.at(2).propose(8, "x");
    for _ in 0..5 * ELECTION_TICKS {
        group.tick(2);
        let sent = group.at(2).sync();
        group.messages.extend(sent);
    }
    group.settle();
    assert_eq!(group.at(2).voters(), [2]);
    assert!(group.at(2).replica.is_leader());
    let sent = group.at(2).sync();
    group.messages.extend(sent);
    group.settle();
    assert_eq!(group.at(2).answered(), [8]);
}

/// Else it could lead the same term again after a crash, with other entries.
#[test]
fn a_sole_voter_tells_its_learner_nothing_before_its_vote_is_durable() {
    let all = conf(&[1], &[2]);
    let mut group = Group {
        members: vec![member(1, &all), member(2, &all)],
        messages: VecDeque::new(),
        cut: Vec::new(),
    };
    group.at(1).is_disk_fast = false;
    group.at(1).replica.campaign_if_alone().unwrap();
    group.at(1).propose(7, "x");
    assert_eq!(group.at(1).carry_out(), []);
    assert!(group.at(1).replica.is_leader());
    for _ in 0..3 {
        let sent = group.at(1).sync();
        assert!(!sent.is_empty() || group.at(2).texts() == ["x"]);
        group.messages.extend(sent);
        group.settle();
    }
    assert_eq!(group.at(1).answered(), [7]);
    assert_eq!(group.at(2).texts(), ["x"]);
    group.at(1).propose(8, "y");
    let sent = group.at(1).carry_out();
    assert!(
        !sent.is_empty(),
        "entries need not wait for the leader's disk"
    );
}

#[test]
fn as_many_entries_stay_as_were_asked_for() {
    let mut group = Group::led(2);
    group.at(1).replica.catch_up_entries = Some(5);
    for id in 10..30 {
        group.at(1).propose(id, "x");
        group.settle();
    }
    group.tick(1);
    let applied = group.at(1).applied;
    let truncated = group.at(1).replica.trim(applied);
    assert_eq!(truncated, Some((applied - 5, 2)));
    assert_eq!(group.at(1).replica.trim(applied), None);
}

#[test]
fn the_log_is_kept_for_those_who_still_need_it() {
    let mut group = Group::led(3);
    for id in 10..30 {
        group.at(1).propose(id, "x");
        group.settle();
    }
    let first = group.at(1).applied;
    assert_eq!(group.at(1).replica.trim(first), None, "one stretch is kept");
    group.cut = vec![3];
    for id in 30..50 {
        group.at(1).propose(id, "y");
        group.settle();
    }
    let second = group.at(1).applied;
    assert_eq!(group.at(1).replica.trim(second), Some((first, 2)));
    for id in 50..60 {
        group.at(1).propose(id, "z");
        group.settle();
    }
    // Member 3 was heard lately and needs the entries from `first` on.
    let third = group.at(1).applied;
    assert_eq!(group.at(1).replica.trim(third), None);
    group.cut.clear();
    for _ in 0..4 {
        group.tick(1);
    }
    assert_eq!(group.at(3).applied, third);
    let (index, _) = group.at(1).replica.trim(third).unwrap();
    assert_eq!(index, third);
}
