//! The replicated state machine: entry in, reply and changes out.
//!
//! Owns the one match over all commands and the state they change: the key
//! space ([`mvcc::Writer`]), the lease table, alarms and members. It is
//! deterministic: no clock, no randomness, no knowledge of which member runs
//! it; everything of that kind is decided before a command is proposed.
//!
//! Commands are applied one by one and staged; [`Machine::commit`] turns all
//! that is staged, together with the applied index, into one atomic write
//! (invariant 2 of ARCHITECTURE.md). Two kinds of failure are kept apart:
//! a [`CommandError`] is a reply, a [`StorageError`] means that this member
//! must stop.

mod alarms;
pub mod command;
mod install;
mod kv;
pub mod members;
mod published;
pub mod txn;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use command::{Body, Command, CommandError, Reply, Request};
use command::{LeaseCheckpoints, LeaseExpiry};
pub use install::{Description, describe};
pub use members::Conf;
pub use published::Published;

use crate::lease::table::{Checkpoint, LeaseTime, MetaRows, Table as LeaseTable};
use crate::mvcc::{self, Reads as _, RevisionEvents};
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, ResponseHeader,
};
use crate::storage::{Engine, StorageError};
use alarms::Alarms;
use members::Members;

/// What [`Machine::commit`] made visible, in order.
#[derive(Debug, Default)]
pub struct Effects {
    /// Key changes, one element a revision, for watchers.
    pub events: Vec<RevisionEvents>,
    /// Leases granted and revoked, for the lessor.
    pub leases: Vec<LeaseChange>,
    /// The members, or something about one of them.
    pub members_changed: bool,
    /// The state was replaced by another member's, before all the changes that
    /// are told here.
    pub reloaded: Option<Reloaded>,
    /// The store's revision after these changes.
    pub revision: i64,
}

/// What is to be known of a state that came as a whole. Its keys are in the
/// store, its members in [`Published`].
#[derive(Debug, Clone)]
pub struct Reloaded {
    /// Where it ends.
    pub revision: i64,
    /// All leases, in no order.
    pub leases: Vec<LeaseTime>,
}

/// A change of the set of leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseChange {
    Granted {
        id: i64,
        ttl_seconds: i64,
    },
    Revoked {
        id: i64,
    },
    /// How long the lease still lasted; 0: as long as granted.
    Checkpointed {
        id: i64,
        remaining_seconds: i64,
        sequence: u64,
    },
}

/// How applying one command ended without a reply.
#[derive(Debug)]
enum ApplyError {
    Rejected(CommandError),
    Fatal(StorageError),
}

impl From<CommandError> for ApplyError {
    fn from(error: CommandError) -> Self {
        ApplyError::Rejected(error)
    }
}

impl From<StorageError> for ApplyError {
    fn from(error: StorageError) -> Self {
        ApplyError::Fatal(error)
    }
}

/// The lease table writes its rows into the batch of the command.
impl MetaRows for mvcc::Writer {
    fn put_meta(&mut self, key: &[u8], value: &[u8]) {
        mvcc::Writer::put_meta(self, key, value);
    }

    fn delete_meta(&mut self, key: &[u8]) {
        mvcc::Writer::delete_meta(self, key);
    }
}

/// Headers of replies carry the revision only.
fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision,
        ..ResponseHeader::default()
    })
}

/// The state machine. Owned by the apply thread.
pub struct Machine {
    engine: Arc<Engine>,
    writer: mvcc::Writer,
    leases: LeaseTable,
    alarms: Alarms,
    members: Members,
    published: Arc<Published>,
    /// Effects of commits since the last [`Machine::commit`] returned.
    effects: Effects,
    /// Index and term of the last entry applied, committed or staged.
    applied: (u64, u64),
}

impl Machine {
    /// Opens the state in `engine`, empty or as the last commit left it.
    pub fn open(engine: Arc<Engine>) -> Result<(Machine, mvcc::Store), StorageError> {
        let (store, writer) = mvcc::Store::open(engine.clone())?;
        let alarms = Alarms::open(&engine)?;
        let members = Members::open(&engine.generation())?;
        let published = Arc::new(Published::new(
            alarms.list(),
            members.list(),
            members.removed(),
        ));
        let applied = writer.applied();
        let machine = Machine {
            leases: LeaseTable::open(&engine)?,
            engine,
            writer,
            alarms,
            members,
            published,
            effects: Effects::default(),
            applied,
        };
        Ok((machine, store))
    }

    /// Index and term of the last entry applied.
    pub fn applied(&self) -> (u64, u64) {
        self.applied
    }

    /// Alarms and members, readable from any thread.
    pub fn published(&self) -> Arc<Published> {
        self.published.clone()
    }

    /// The leases as of now, in no order.
    pub fn leases(&self) -> impl Iterator<Item = LeaseTime> + '_ {
        self.leases.leases()
    }

    /// Who votes and who only follows, as of the entries applied so far, staged
    /// ones included. Of a member that joins, and has applied nothing yet, this
    /// is empty: it takes part in no decision before it has the others' state.
    pub fn conf(&self) -> Conf {
        if self.applied.0 == 0 {
            return Conf::default();
        }
        self.members.conf()
    }

    /// Bytes waiting for [`Machine::commit`].
    pub fn staged_bytes(&self) -> usize {
        self.writer.staged_bytes()
    }

    /// Counts an entry that carries no command (a new leader's first entry).
    pub fn skip(&mut self, index: u64, term: u64) {
        self.advance(index, term);
    }

    /// Applies one committed entry. The reply must not be sent before
    /// [`Machine::commit`] has returned.
    ///
    /// # Errors
    /// The outer error is a fault of this member's storage; nothing more may
    /// be applied after it. The inner one is the command's answer.
    pub fn apply(
        &mut self,
        index: u64,
        term: u64,
        command: &Command,
    ) -> Result<Result<Reply, CommandError>, StorageError> {
        let outcome = match &command.body {
            Some(body) => self.dispatch(term, body),
            None => Err(CommandError::Unknown.into()),
        };
        self.advance(index, term);
        match outcome {
            Ok(reply) => Ok(Ok(reply)),
            Err(ApplyError::Rejected(error)) => Ok(Err(error)),
            Err(ApplyError::Fatal(error)) => Err(error),
        }
    }

    /// Makes everything staged, and the applied index, visible in one write.
    pub fn commit(&mut self) -> Result<Effects, StorageError> {
        self.commit_staged()?;
        self.effects.revision = self.writer.revision();
        Ok(std::mem::take(&mut self.effects))
    }

    /// A bounded slice of work that can wait: the physical part of a
    /// compaction. Returns whether there is more.
    pub fn background_step(&mut self) -> Result<bool, StorageError> {
        /// Deletions looked at in one step: well under a millisecond.
        const ROWS_PER_STEP: usize = 512;
        self.writer.compaction_step(ROWS_PER_STEP)
    }

    /// The visible list of all commands.
    fn dispatch(&mut self, term: u64, body: &Body) -> Result<Reply, ApplyError> {
        self.alarms.admit(body)?;
        Ok(match body {
            Body::Put(request) => Reply::Put(self.put(request)?),
            Body::DeleteRange(request) => Reply::DeleteRange(self.delete_range(request)?),
            Body::Txn(request) => Reply::Txn(self.txn(request)?),
            Body::Compaction(request) => Reply::Compaction(self.compact(request)?),
            Body::LeaseGrant(request) => Reply::LeaseGrant(self.grant(request)?),
            Body::LeaseRevoke(request) => Reply::LeaseRevoke(self.revoke(request)?),
            Body::Alarm(request) => Reply::Alarm(self.alarm(request)),
            Body::Publish(request) => {
                self.publish(request);
                Reply::Publish
            }
            Body::MemberChange(change) => Reply::MemberChange(self.change_members(term, change)?),
            Body::LeaseExpiry(expiry) => {
                self.expire(term, expiry)?;
                Reply::LeaseExpiry
            }
            Body::LeaseCheckpoint(checkpoints) => {
                self.checkpoint(term, checkpoints)?;
                Reply::LeaseCheckpoint
            }
        })
    }

    fn advance(&mut self, index: u64, term: u64) {
        assert!(
            index > self.applied.0 && term >= self.applied.1,
            "entry {index} of term {term} applied after {:?}",
            self.applied
        );
        self.applied = (index, term);
    }

    /// Commits what the entries so far have staged, keeping the effects for
    /// [`Machine::commit`]. Commands that read old revisions or compact need
    /// the writer clean before they run.
    fn commit_staged(&mut self) -> Result<(), StorageError> {
        let (index, term) = self.applied;
        let events = self.writer.commit(index, term)?;
        self.effects.events.extend(events);
        Ok(())
    }

    fn compact(&mut self, request: &CompactionRequest) -> Result<CompactionResponse, ApplyError> {
        self.commit_staged()?;
        self.writer.compact(request.revision)?;
        Ok(CompactionResponse {
            header: header(self.writer.revision()),
        })
    }

    fn grant(&mut self, request: &LeaseGrantRequest) -> Result<LeaseGrantResponse, ApplyError> {
        self.leases
            .grant(&mut self.writer, request.id, request.ttl)?;
        self.effects.leases.push(LeaseChange::Granted {
            id: request.id,
            ttl_seconds: request.ttl,
        });
        Ok(LeaseGrantResponse {
            header: header(self.writer.revision()),
            id: request.id,
            ttl: request.ttl,
            error: String::new(),
        })
    }

    fn revoke(&mut self, request: &LeaseRevokeRequest) -> Result<LeaseRevokeResponse, ApplyError> {
        let revision = self.end_lease(request.id)?;
        Ok(LeaseRevokeResponse {
            header: header(revision),
        })
    }

    /// Revokes what the leader of the entry's own term has seen expire.
    /// Revocations that a former leader left behind are void: the new one has
    /// given the lease more time (etcd issue 15247).
    fn expire(&mut self, term: u64, expiry: &LeaseExpiry) -> Result<(), ApplyError> {
        if expiry.term != term {
            return Err(CommandError::LeaderChanged.into());
        }
        self.end_lease(expiry.id)?;
        Ok(())
    }

    /// As with [`Machine::expire`], only the term's own leader is believed.
    fn checkpoint(&mut self, term: u64, request: &LeaseCheckpoints) -> Result<(), ApplyError> {
        if request.term != term {
            return Err(CommandError::LeaderChanged.into());
        }
        for checkpoint in &request.checkpoints {
            let made = Checkpoint {
                remaining_seconds: checkpoint.remaining_seconds,
                term,
                sequence: request.sequence,
            };
            if self
                .leases
                .checkpoint(&mut self.writer, checkpoint.id, made)
            {
                self.effects.leases.push(LeaseChange::Checkpointed {
                    id: checkpoint.id,
                    remaining_seconds: checkpoint.remaining_seconds,
                    sequence: request.sequence,
                });
            }
        }
        Ok(())
    }

    /// Deletes the lease and its keys, all in one revision (LEA-13), which it
    /// answers.
    fn end_lease(&mut self, id: i64) -> Result<i64, ApplyError> {
        let Some(keys) = self.leases.revoke(&mut self.writer, id) else {
            return Err(CommandError::LeaseNotFound.into());
        };
        let mut staged = self.writer.begin();
        for key in keys {
            staged.delete_range(&key, &[])?;
        }
        let revision = staged.revision();
        staged.finish();
        self.effects.leases.push(LeaseChange::Revoked { id });
        Ok(revision)
    }
}
