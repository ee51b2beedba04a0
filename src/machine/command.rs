//! The commands of the replicated state machine, and what they answer.
//!
//! Owns the list of commands as typed requests: proposing a `PutRequest`
//! yields a `PutResponse`. The wire form is `stele.Command`
//! (proto/stele/command.proto). [`CommandError`] holds the failures that every
//! member sees alike: they are replies, not faults of the member.

use thiserror::Error;

use crate::lease::table::GrantError;
use crate::mvcc;
pub use crate::proto::command::command::Body;
pub use crate::proto::command::member_change::Kind as MemberChangeKind;
pub use crate::proto::command::{
    Command, LeaseCheckpoint, LeaseCheckpoints, LeaseExpiry, MemberChange, Publish,
};
use crate::proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, CompactionRequest, CompactionResponse, DeleteRangeRequest,
    DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest,
    LeaseRevokeResponse, Member, PutRequest, PutResponse, TxnRequest, TxnResponse,
};

/// A command that was carried out. Headers inside hold only `revision`; the
/// rpc edge adds ids and term to the outermost one (GEN-5).
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    Compaction(CompactionResponse),
    LeaseGrant(LeaseGrantResponse),
    LeaseRevoke(LeaseRevokeResponse),
    Alarm(AlarmResponse),
    Publish,
    /// All members after the change.
    MemberChange(MemberChangeReply),
    LeaseExpiry,
    LeaseCheckpoint,
}

/// All members after a change, ordered by id (CLU-2).
pub type MemberChangeReply = Vec<Member>;

/// Why a command changed nothing. The same on every member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CommandError {
    #[error("required revision has been compacted")]
    Compacted,
    #[error("required revision is a future revision")]
    FutureRevision,
    #[error("key not found")]
    KeyNotFound,
    #[error("requested lease not found")]
    LeaseNotFound,
    #[error("lease already exists")]
    LeaseExists,
    #[error("too large lease TTL")]
    LeaseTtlTooLarge,
    #[error("database space exceeded")]
    NoSpace,
    #[error("corrupt cluster")]
    Corrupt,
    /// Also of a member that has been removed: its id never comes back.
    #[error("member not found")]
    MemberNotFound,
    #[error("member ID already exist")]
    MemberExists,
    #[error("Peer URLs already exists")]
    PeerUrlExists,
    #[error("can only promote a learner member")]
    MemberNotLearner,
    #[error("too many learner members in cluster")]
    TooManyLearners,
    /// Without it nobody could vote.
    #[error("the last voting member cannot be removed")]
    LastVoter,
    /// Proposed by the leader of another term: see `LeaseExpiry`.
    #[error("the leader has changed")]
    LeaderChanged,
    /// An entry without content: written by a newer version, or damaged.
    #[error("unknown command")]
    Unknown,
}

impl From<mvcc::CompactError> for super::ApplyError {
    fn from(error: mvcc::CompactError) -> Self {
        match error {
            mvcc::CompactError::Compacted => CommandError::Compacted.into(),
            mvcc::CompactError::FutureRevision => CommandError::FutureRevision.into(),
            mvcc::CompactError::Storage(error) => error.into(),
        }
    }
}

impl From<mvcc::ReadError> for super::ApplyError {
    fn from(error: mvcc::ReadError) -> Self {
        match error {
            mvcc::ReadError::Compacted => CommandError::Compacted.into(),
            mvcc::ReadError::FutureRevision => CommandError::FutureRevision.into(),
            mvcc::ReadError::Storage(error) => error.into(),
        }
    }
}

impl From<GrantError> for super::ApplyError {
    fn from(error: GrantError) -> Self {
        match error {
            GrantError::Exists => CommandError::LeaseExists.into(),
            GrantError::TtlTooLarge => CommandError::LeaseTtlTooLarge.into(),
        }
    }
}

impl Command {
    /// Whether it has to do with nothing but keys and leases, and is over when
    /// it has been applied: no member changes, and nothing is left to be done in
    /// the background.
    pub fn changes_data_only(&self) -> bool {
        matches!(
            self.body,
            Some(
                Body::Put(_)
                    | Body::DeleteRange(_)
                    | Body::Txn(_)
                    | Body::LeaseGrant(_)
                    | Body::LeaseRevoke(_)
            )
        )
    }
}

/// A request that can be proposed, and the type of its answer.
pub trait Request: Into<Body> + Send {
    type Reply: Send;

    /// The answer inside `reply`, or `None` when it answers another kind of
    /// request.
    fn unwrap_reply(reply: Reply) -> Option<Self::Reply>;
}

macro_rules! requests {
    ($($request:ident => $reply:ident, $variant:ident;)*) => {$(
        impl From<$request> for Body {
            fn from(request: $request) -> Body {
                Body::$variant(request)
            }
        }

        impl Request for $request {
            type Reply = $reply;

            fn unwrap_reply(reply: Reply) -> Option<$reply> {
                match reply {
                    Reply::$variant(reply) => Some(reply),
                    _ => None,
                }
            }
        }
    )*};
}

requests! {
    PutRequest => PutResponse, Put;
    DeleteRangeRequest => DeleteRangeResponse, DeleteRange;
    TxnRequest => TxnResponse, Txn;
    CompactionRequest => CompactionResponse, Compaction;
    LeaseGrantRequest => LeaseGrantResponse, LeaseGrant;
    LeaseRevokeRequest => LeaseRevokeResponse, LeaseRevoke;
    AlarmRequest => AlarmResponse, Alarm;
    MemberChange => MemberChangeReply, MemberChange;
}

/// Those whose answer says no more than that they were carried out.
macro_rules! requests_without_reply {
    ($($request:ident => $variant:ident;)*) => {$(
        impl From<$request> for Body {
            fn from(request: $request) -> Body {
                Body::$variant(request)
            }
        }

        impl Request for $request {
            type Reply = ();

            fn unwrap_reply(reply: Reply) -> Option<()> {
                matches!(reply, Reply::$variant).then_some(())
            }
        }
    )*};
}

requests_without_reply! {
    Publish => Publish;
    LeaseExpiry => LeaseExpiry;
    LeaseCheckpoints => LeaseCheckpoint;
}
