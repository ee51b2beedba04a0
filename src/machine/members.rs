//! The members of the cluster: who they are, where their peers reach them,
//! who votes, and what each has made known of itself.
//!
//! Ids and peer URLs are settled at bootstrap or by a membership change; name
//! and client URLs a member publishes each time it starts (CLU-14). The table
//! is also the configuration of the consensus group ([`Machine::conf`]), and a
//! change is decided here, entry by entry, before consensus carries it out: so
//! the two cannot differ after a crash.
//!
//! A removed id never comes back. Whoever returned under it would be taken for
//! the member whose votes and entries have been counted out.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;

use super::command::{MemberChange, MemberChangeKind as Kind, MemberChangeReply, Publish};
use super::{CommandError, Machine};
use crate::mvcc::Writer;
use crate::proto::etcdserverpb::Member;
use crate::storage::{Batch, Column, Engine, Generation, StorageError};

/// Rows of `Meta`: this prefix and the member id (big-endian) -> `Member`.
const PREFIX: &[u8] = b"member/";

/// Rows of `Meta`: this prefix and the id (big-endian) of a removed member.
const REMOVED_PREFIX: &[u8] = b"removed/";

/// Row of `Meta`: the term (big-endian) up to which changes of membership are
/// void, see [`Machine::force_alone`].
const FORCED: &[u8] = b"forced";

/// Row of `Meta`: cluster id and member id, both big-endian.
const IDENTITY: &[u8] = b"identity";

/// Who this member is. Settled at bootstrap; options given later do not
/// change it (CLU-14, CLU-15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: u64,
    pub member_id: u64,
}

/// Who takes part in decisions; ids in ascending order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conf {
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
}

/// What an empty directory begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With all members of a new cluster. That counts as applied up to index
    /// 1 of term 1, the same on each of them, so that the log need not hold
    /// it, and whoever joins later is sent the state.
    NewCluster,
    /// With what is to be known to be reached by the members of a cluster that
    /// exists; they send the rest.
    Joining,
}

/// Index and term of a new cluster's first state.
pub const FIRST_APPLIED: (u64, u64) = (1, 1);

impl Identity {
    /// The identity stored in `engine`; none before the bootstrap.
    pub fn load(engine: &Engine) -> Result<Option<Identity>, StorageError> {
        let Some(row) = engine.get(Column::Meta, IDENTITY)? else {
            return Ok(None);
        };
        match Identity::decode(&row) {
            Some(identity) => Ok(Some(identity)),
            None => Err(StorageError::corrupt(
                Column::Meta,
                IDENTITY,
                "not 16 bytes",
            )),
        }
    }

    /// Makes this identity durable in an empty `engine`, together with the
    /// members of its cluster.
    pub fn bootstrap(
        self,
        engine: &Engine,
        members: &[Member],
        start: Start,
    ) -> Result<(), StorageError> {
        let mut batch = Batch::new();
        self.put(&mut batch);
        for member in members {
            batch.put(Column::Meta, &row_key(member.id), &member.encode_to_vec());
        }
        if start == Start::NewCluster {
            let (index, term) = FIRST_APPLIED;
            crate::mvcc::put_applied(&mut batch, index, term);
        }
        engine.write(batch)?;
        engine.flush()
    }

    pub(super) fn put(self, batch: &mut Batch) {
        batch.put(Column::Meta, IDENTITY, &self.encode());
    }

    fn encode(self) -> Vec<u8> {
        [self.cluster_id.to_be_bytes(), self.member_id.to_be_bytes()].concat()
    }

    fn decode(row: &[u8]) -> Option<Identity> {
        let (cluster_id, member_id) = row.split_at_checked(8)?;
        Some(Identity {
            cluster_id: u64::from_be_bytes(cluster_id.try_into().ok()?),
            member_id: u64::from_be_bytes(member_id.try_into().ok()?),
        })
    }
}

/// Invariant: no id is both a member's and a removed one's.
pub(super) struct Members {
    by_id: BTreeMap<u64, Member>,
    removed: BTreeSet<u64>,
    forced_term: u64,
}

impl Members {
    pub(super) fn open(state: &Generation) -> Result<Members, StorageError> {
        let mut by_id = BTreeMap::new();
        for (key, value) in state.scan_prefix(Column::Meta, PREFIX)? {
            let member = Member::decode(value.as_slice())
                .map_err(|error| StorageError::corrupt(Column::Meta, &key, error.to_string()))?;
            by_id.insert(member.id, member);
        }
        let mut removed = BTreeSet::new();
        for (key, _) in state.scan_prefix(Column::Meta, REMOVED_PREFIX)? {
            let id = key.strip_prefix(REMOVED_PREFIX).unwrap_or_default();
            let Ok(id) = <[u8; 8]>::try_from(id) else {
                return Err(StorageError::corrupt(Column::Meta, &key, "not a member id"));
            };
            removed.insert(u64::from_be_bytes(id));
        }
        let forced_term = match state.get(Column::Meta, FORCED)? {
            None => 0,
            Some(term) => match <[u8; 8]>::try_from(term.as_slice()) {
                Ok(term) => u64::from_be_bytes(term),
                Err(_) => return Err(StorageError::corrupt(Column::Meta, FORCED, "not a term")),
            },
        };
        Ok(Members {
            by_id,
            removed,
            forced_term,
        })
    }

    pub(super) fn list(&self) -> Vec<Member> {
        self.by_id.values().cloned().collect()
    }

    pub(super) fn has(&self, id: u64) -> bool {
        self.by_id.contains_key(&id)
    }

    pub(super) fn removed(&self) -> Vec<u64> {
        self.removed.iter().copied().collect()
    }

    pub(super) fn conf(&self) -> Conf {
        let (learners, voters): (Vec<&Member>, Vec<&Member>) =
            self.by_id.values().partition(|member| member.is_learner);
        let ids = |members: Vec<&Member>| members.iter().map(|member| member.id).collect();
        Conf {
            voters: ids(voters),
            learners: ids(learners),
        }
    }

    /// Whether the change may be made, in etcd's order of checks
    /// (`membership/cluster.go`).
    fn check(&self, change: &MemberChange, member: &Member) -> Result<(), CommandError> {
        let known = self.by_id.get(&member.id);
        if self.removed.contains(&member.id) {
            return Err(CommandError::MemberNotFound);
        }
        match change.kind() {
            Kind::Add | Kind::AddLearner => {
                if known.is_some() {
                    return Err(CommandError::MemberExists);
                }
                self.check_urls(member)?;
                let learners = self.by_id.values().filter(|each| each.is_learner).count();
                if change.kind() == Kind::AddLearner && learners >= change.max_learners as usize {
                    return Err(CommandError::TooManyLearners);
                }
                Ok(())
            }
            Kind::Promote => match known {
                None => Err(CommandError::MemberNotFound),
                Some(known) if !known.is_learner => Err(CommandError::MemberNotLearner),
                Some(_) => Ok(()),
            },
            Kind::Remove => match known {
                None => Err(CommandError::MemberNotFound),
                Some(_) if self.conf().voters == [member.id] => Err(CommandError::LastVoter),
                Some(_) => Ok(()),
            },
            Kind::Update if known.is_none() => Err(CommandError::MemberNotFound),
            Kind::Update => self.check_urls(member),
        }
    }

    /// No other member may have one of these URLs.
    fn check_urls(&self, member: &Member) -> Result<(), CommandError> {
        let mut others = self.by_id.values().filter(|other| other.id != member.id);
        let is_used = others.any(|other| {
            let mut urls = other.peer_ur_ls.iter();
            urls.any(|url| member.peer_ur_ls.contains(url))
        });
        if is_used {
            return Err(CommandError::PeerUrlExists);
        }
        Ok(())
    }

    fn put(&mut self, writer: &mut Writer, member: Member) {
        writer.put_meta(&row_key(member.id), &member.encode_to_vec());
        self.by_id.insert(member.id, member);
    }

    fn remove(&mut self, writer: &mut Writer, id: u64) {
        self.by_id.remove(&id);
        self.removed.insert(id);
        writer.delete_meta(&row_key(id));
        writer.put_meta(&removed_key(id), b"");
    }
}

impl Machine {
    /// Takes over name and client URLs; what else the member says of itself is
    /// not its own to decide. A member that is not there (any more) publishes
    /// nothing.
    pub(super) fn publish(&mut self, request: &Publish) {
        let Some(published) = &request.member else {
            return;
        };
        let Some(known) = self.members.by_id.get(&published.id) else {
            return;
        };
        let member = Member {
            name: published.name.clone(),
            client_ur_ls: published.client_ur_ls.clone(),
            ..known.clone()
        };
        self.members.put(&mut self.writer, member);
        self.show_members();
    }

    /// Answers all members after the change.
    pub(super) fn change_members(
        &mut self,
        term: u64,
        change: &MemberChange,
    ) -> Result<MemberChangeReply, CommandError> {
        if term <= self.members.forced_term {
            return Err(CommandError::LeaderChanged);
        }
        let member = change.member.clone().unwrap_or_default();
        self.members.check(change, &member)?;
        let known = self.members.by_id.get(&member.id).cloned();
        let changed = match change.kind() {
            Kind::Remove => {
                self.members.remove(&mut self.writer, member.id);
                None
            }
            Kind::Add => Some(Member {
                is_learner: false,
                ..member
            }),
            Kind::AddLearner => Some(Member {
                is_learner: true,
                ..member
            }),
            Kind::Promote => known.map(|known| Member {
                is_learner: false,
                ..known
            }),
            Kind::Update => known.map(|known| Member {
                peer_ur_ls: member.peer_ur_ls,
                ..known
            }),
        };
        if let Some(member) = changed {
            self.members.put(&mut self.writer, member);
        }
        self.show_members();
        Ok(self.members.list())
    }

    /// Makes this member, with all its data, the only one of its cluster:
    /// disaster recovery, when the majority is lost for good. Ids stay. Changes
    /// of membership that are still in the log, which ends in `last_term`, are
    /// void from now on: they would let in again who is gone.
    pub fn force_alone(&mut self, member_id: u64, last_term: u64) -> Result<(), StorageError> {
        let others: Vec<u64> = self.members.by_id.keys().copied().collect();
        for id in others.into_iter().filter(|id| *id != member_id) {
            self.members.remove(&mut self.writer, id);
        }
        let known = self.members.by_id.get(&member_id).cloned();
        let member = Member {
            id: member_id,
            is_learner: false,
            ..known.unwrap_or_default()
        };
        self.members.put(&mut self.writer, member);
        self.members.removed.remove(&member_id);
        self.writer.delete_meta(&removed_key(member_id));
        self.members.forced_term = last_term;
        self.writer.put_meta(FORCED, &last_term.to_be_bytes());
        self.show_members();
        self.commit_staged()
    }

    pub(super) fn publish_members(&self) {
        let removed = self.members.removed();
        self.published.set_members(self.members.list(), removed);
    }

    fn show_members(&mut self) {
        self.publish_members();
        self.effects.members_changed = true;
    }
}

fn row_key(id: u64) -> Vec<u8> {
    [PREFIX, &id.to_be_bytes()[..]].concat()
}

fn removed_key(id: u64) -> Vec<u8> {
    [REMOVED_PREFIX, &id.to_be_bytes()[..]].concat()
}
