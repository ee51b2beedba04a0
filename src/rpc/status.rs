//! The one place where domain errors become gRPC statuses.
//!
//! Clients of etcd match on the text more often than on the code, so both are
//! etcd's to the byte (`tests/data/errors.tsv`; a test compares). Two codes
//! look wrong and are right: etcd forgets to map "too many requests", which
//! therefore travels as Unknown (LIM-7), and a transaction operation without
//! content is "key not found" (TXN-25).

use tonic::{Code, Status};

use crate::consensus::ProposeError;
use crate::machine::CommandError;
use crate::machine::txn::ReadOnlyError;
use crate::mvcc::ReadError;
use crate::proto::codec::{MAX_MESSAGE_BYTES, TOO_LARGE};
use crate::storage::StorageError;

/// A refusal with a fixed code and text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    pub code: Code,
    pub text: &'static str,
}

macro_rules! refusals {
    ($($name:ident = $code:ident, $text:literal;)*) => {
        $(
            #[doc = concat!("`", $text, "`")]
            pub const $name: Refusal = Refusal { code: Code::$code, text: $text };
        )*

        /// Every refusal that mimics one of etcd's.
        #[cfg(test)]
        const ALL: &[Refusal] = &[$($name),*];
    };
}

refusals! {
    // Requests that are wrong in themselves
    EMPTY_KEY = InvalidArgument, "etcdserver: key is not provided";
    KEY_NOT_FOUND = InvalidArgument, "etcdserver: key not found";
    VALUE_PROVIDED = InvalidArgument, "etcdserver: value is provided";
    LEASE_PROVIDED = InvalidArgument, "etcdserver: lease is provided";
    TOO_MANY_OPS = InvalidArgument, "etcdserver: too many operations in txn request";
    DUPLICATE_KEY = InvalidArgument, "etcdserver: duplicate key given in txn request";
    INVALID_SORT_OPTION = InvalidArgument, "etcdserver: invalid sort option";
    INVALID_CLIENT_API_VERSION = InvalidArgument, "etcdserver: invalid client api version";
    REQUEST_TOO_LARGE = InvalidArgument, "etcdserver: request is too large";
    STREAM_SORT = Unimplemented, "RangeStream does not support custom sort orders";
    STREAM_FILTERS = Unimplemented, "RangeStream does not support revision filters";

    // Requests that the state refuses
    COMPACTED = OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    FUTURE_REVISION = OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    NO_SPACE = ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    CORRUPT = DataLoss, "etcdserver: corrupt cluster";
    LEASE_NOT_FOUND = NotFound, "etcdserver: requested lease not found";
    LEASE_EXISTS = FailedPrecondition, "etcdserver: lease already exists";
    LEASE_TTL_TOO_LARGE = OutOfRange, "etcdserver: too large lease TTL";
    AUTH_NOT_ENABLED = FailedPrecondition, "etcdserver: authentication is not enabled";

    // The members
    MEMBER_EXISTS = FailedPrecondition, "etcdserver: member ID already exist";
    PEER_URL_EXISTS = FailedPrecondition, "etcdserver: Peer URLs already exists";
    MEMBER_NOT_ENOUGH_STARTED = Unknown, "etcdserver: re-configuration failed due to not enough started members";
    MEMBER_BAD_URLS = InvalidArgument, "etcdserver: given member URLs are invalid";
    MEMBER_NOT_FOUND = NotFound, "etcdserver: member not found";
    MEMBER_NOT_LEARNER = FailedPrecondition, "etcdserver: can only promote a learner member";
    LEARNER_NOT_READY = FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader";
    TOO_MANY_LEARNERS = FailedPrecondition, "etcdserver: too many learner members in cluster";
    UNHEALTHY = Unavailable, "etcdserver: unhealthy cluster";
    NOT_SUPPORTED_FOR_LEARNER = FailedPrecondition, "etcdserver: rpc not supported for learner";
    BAD_LEADER_TRANSFEREE = FailedPrecondition, "etcdserver: bad leader transferee";

    // The cluster, now
    NO_LEADER = Unavailable, "etcdserver: no leader";
    LEADER_CHANGED = Unavailable, "etcdserver: leader changed";
    NOT_LEADER = FailedPrecondition, "etcdserver: not leader";
    TIMEOUT = Unavailable, "etcdserver: request timed out";
    TIMEOUT_LEADER_FAILED = Unavailable, "etcdserver: request timed out, possibly due to previous leader failure";
    TIMEOUT_CONNECTION_LOST = Unavailable, "etcdserver: request timed out, possibly due to connection lost";
    TIMEOUT_LEADER_TRANSFER = Unknown, "etcdserver: request timed out, leader transfer took too long";
    TOO_MANY_REQUESTS = Unknown, "etcdserver: too many requests";
    STOPPED = Unavailable, "etcdserver: server stopped";
    WATCH_CANCELED = Cancelled, "etcdserver: watch canceled";
    DEADLINE_EXCEEDED = DeadlineExceeded, "context deadline exceeded";
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        Status::new(refusal.code, refusal.text)
    }
}

impl From<ReadError> for Status {
    fn from(error: ReadError) -> Status {
        match error {
            ReadError::Compacted => COMPACTED.into(),
            ReadError::FutureRevision => FUTURE_REVISION.into(),
            ReadError::Storage(error) => error.into(),
        }
    }
}

impl From<StorageError> for Status {
    /// A read that the disk failed: logged here, since the client can do
    /// nothing with the details.
    fn from(error: StorageError) -> Status {
        tracing::error!(%error, "failed to read from storage");
        Status::unknown(error.to_string())
    }
}

impl From<CommandError> for Status {
    fn from(error: CommandError) -> Status {
        match error {
            CommandError::Compacted => COMPACTED,
            CommandError::FutureRevision => FUTURE_REVISION,
            CommandError::KeyNotFound => KEY_NOT_FOUND,
            CommandError::LeaseNotFound => LEASE_NOT_FOUND,
            CommandError::LeaseExists => LEASE_EXISTS,
            CommandError::LeaseTtlTooLarge => LEASE_TTL_TOO_LARGE,
            CommandError::NoSpace => NO_SPACE,
            CommandError::Corrupt => CORRUPT,
            CommandError::MemberNotFound => MEMBER_NOT_FOUND,
            CommandError::MemberExists => MEMBER_EXISTS,
            CommandError::PeerUrlExists => PEER_URL_EXISTS,
            CommandError::MemberNotLearner => MEMBER_NOT_LEARNER,
            CommandError::TooManyLearners => TOO_MANY_LEARNERS,
            CommandError::LastVoter => MEMBER_NOT_ENOUGH_STARTED,
            CommandError::LeaderChanged => LEADER_CHANGED,
            CommandError::Unknown => return Status::unknown(format!("stele: {error}")),
        }
        .into()
    }
}

impl From<ReadOnlyError> for Status {
    fn from(error: ReadOnlyError) -> Status {
        match error {
            ReadOnlyError::Rejected(error) => error.into(),
            ReadOnlyError::Storage(error) => error.into(),
        }
    }
}

impl From<ProposeError> for Status {
    fn from(error: ProposeError) -> Status {
        match error {
            ProposeError::Rejected(error) => return error.into(),
            ProposeError::TooLarge => REQUEST_TOO_LARGE,
            ProposeError::TooManyRequests => TOO_MANY_REQUESTS,
            ProposeError::NoLeader => NO_LEADER,
            ProposeError::LeaderChanged => LEADER_CHANGED,
            ProposeError::NotLeader => NOT_LEADER,
            ProposeError::Timeout => TIMEOUT,
            ProposeError::TimeoutLeaderFailed => TIMEOUT_LEADER_FAILED,
            ProposeError::TimeoutConnectionLost => TIMEOUT_CONNECTION_LOST,
            ProposeError::LeaderTransferTimeout => TIMEOUT_LEADER_TRANSFER,
            ProposeError::Stopped => STOPPED,
        }
        .into()
    }
}

/// What a client would be told of this error; health checks say the same.
pub fn text(error: ProposeError) -> String {
    Status::from(error).message().to_owned()
}

/// The refusal of an answer that no message can hold, in the words of Go's
/// library.
pub fn too_large(bytes: usize) -> Status {
    Status::resource_exhausted(format!(
        "grpc: {TOO_LARGE} ({bytes} vs. {MAX_MESSAGE_BYTES})"
    ))
}

/// What comes with a later version: says so, and what to do meanwhile if
/// there is anything.
pub fn not_yet(what: &str) -> Status {
    Status::unimplemented(format!("stele: {what}"))
}

/// The code's name as Go's gRPC library spells it; dashboards and alerts
/// select on it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every refusal stands in etcd's table with the same code and text.
    #[test]
    fn refusals_are_those_of_etcd() {
        let table = include_str!("../../tests/data/errors.tsv");
        for refusal in ALL {
            let is_listed = table.lines().any(|line| {
                let cells: Vec<&str> = line.split('\t').collect();
                cells.len() > 3
                    && cells[1] == code_name(refusal.code)
                    && cells[2] == (refusal.code as i32).to_string()
                    && cells[3] == refusal.text
            });
            assert!(is_listed, "{refusal:?} is not in errors.tsv");
        }
    }

    #[test]
    fn each_text_stands_once() {
        for (index, refusal) in ALL.iter().enumerate() {
            let twin = ALL[..index].iter().find(|other| other.text == refusal.text);
            assert_eq!(twin, None);
        }
    }
}
