//! The handle by which everybody else proposes, reads safely and looks.
//!
//! Owns the limits of what may be under way. It promises a typed answer within
//! the request timeout: `Ok` means durable, applied and visible (invariant 1);
//! a refusal by the machine means that nothing has changed; a timeout means
//! that nobody knows, the command may still take effect (GEN-13).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::ConfChangeType;
use tokio::sync::oneshot;

use super::drive::{Event, Proposal};
use super::permits::{PERMITS, Permits};
use super::queue::{Sender, TrySendError};
use super::replica::Payload;
use super::shared::{Shared, Status};
use super::waiting::{Refused, Waiting};
use super::{Progress, ProposeError, Reader, Settings, Waiter, peers};
use crate::machine::command::{
    Body, Command, MemberChange, MemberChangeKind, MemberChangeReply, Reply, Request,
};
use crate::metrics;
use crate::proto::command::Header;
use crate::proto::etcdserverpb::request_op::Request as Op;

/// Readers that wait for one round: requests of clients, bounded by their
/// connections long before.
pub(super) const MAX_READERS: usize = 1 << 16;

/// Proposals beyond those of the permits' holders, which need none.
const FIRST_PROPOSALS: usize = 256;

/// Proposals that wait for the drive loop: all that can be under way.
pub(super) const MAX_PROPOSALS: usize = PERMITS as usize + FIRST_PROPOSALS;

/// Events from the other threads. If they use it up they wait.
const OTHER_EVENTS: usize = 256;

/// The drive loop's inbox holds whatever can be under way.
pub(super) const INBOX_CAPACITY: usize = OTHER_EVENTS + peers::MAX_MESSAGES;

/// LIM-7: more entries committed and not applied than this, and clients are
/// told to slow down.
const MAX_APPLY_BACKLOG: u64 = 5000;

/// Consensus, for everybody who is not part of it. Cheap to clone.
#[derive(Clone)]
pub struct Consensus {
    inner: Arc<Inner>,
}

struct Inner {
    drive: Sender<Event>,
    shared: Arc<Shared>,
    permits: Permits,
    last_id: AtomicU64,
    max_request_bytes: usize,
    request_timeout: Duration,
    election_timeout: Duration,
}

/// Who has a queue place: everybody, or what must get through an overload.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Priority {
    Ordinary,
    First,
}

impl Consensus {
    pub(super) fn new(
        settings: &Settings,
        first_id: u64,
        drive: Sender<Event>,
        shared: Arc<Shared>,
    ) -> Consensus {
        let inner = Inner {
            drive,
            shared,
            permits: Permits::new(),
            last_id: AtomicU64::new(first_id),
            max_request_bytes: settings.max_request_bytes,
            request_timeout: settings.request_timeout(),
            election_timeout: settings.election_timeout,
        };
        Consensus {
            inner: Arc::new(inner),
        }
    }

    /// Has a command ordered, made durable and applied, and answers its reply.
    ///
    /// # Errors
    /// See [`ProposeError`]; after `Timeout` and `Stopped` the command may or
    /// may not take effect.
    pub async fn propose<R: Request>(&self, request: R) -> Result<R::Reply, ProposeError> {
        self.propose_as(request, Priority::Ordinary).await
    }

    /// As [`Consensus::propose`], past the limits that hold back ordinary
    /// writes: for the few commands that must get through when there are too
    /// many others. The caller bounds their number.
    pub async fn propose_first<R: Request>(&self, request: R) -> Result<R::Reply, ProposeError> {
        self.propose_as(request, Priority::First).await
    }

    async fn propose_as<R: Request>(
        &self,
        request: R,
        priority: Priority,
    ) -> Result<R::Reply, ProposeError> {
        let _pending = Pending::begin();
        let began = Instant::now();
        let mut outcome = self.bounded(self.submit(request.into(), priority)).await;
        if matches!(outcome, Err(ProposeError::Timeout)) {
            outcome = Err(self.cause_of_timeout(began));
        }
        if let Err(error) = &outcome
            && !matches!(error, ProposeError::Rejected(_))
        {
            metrics::SERVER_PROPOSALS_FAILED_TOTAL.inc();
        }
        Ok(R::unwrap_reply(outcome?).expect("the machine answers a request with its own reply"))
    }

    async fn submit(&self, body: Body, priority: Priority) -> Result<Reply, ProposeError> {
        let inner = &*self.inner;
        if inner.shared.is_stopped() || inner.shared.is_removed() {
            return Err(ProposeError::Stopped);
        }
        // Until then the log of the last run is being applied.
        inner.shared.caught_up().await;
        if priority == Priority::Ordinary && inner.shared.apply_backlog() > MAX_APPLY_BACKLOG {
            return Err(ProposeError::TooManyRequests);
        }
        let id = inner.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let command = Command {
            header: Some(Header { id }),
            body: Some(body),
        };
        let bytes = command.encoded_len();
        if bytes > inner.max_request_bytes {
            return Err(ProposeError::TooLarge);
        }
        let permit = match priority {
            Priority::Ordinary => Some(inner.permits.acquire(bytes).await?),
            Priority::First => None,
        };
        let data = Bytes::from(command.encode_to_vec());
        if is_nested(&command) && Command::decode(data.clone()).is_err() {
            return Err(ProposeError::TooLarge);
        }
        let payload = match conf_change(&command) {
            Some((kind, member_id)) => Payload::ConfChange {
                kind,
                member_id,
                command: data,
            },
            None => Payload::Command(data),
        };
        let changes_data_only = command.changes_data_only();
        drop(command);
        let (reply, outcome) = oneshot::channel();
        let waiter = Waiter {
            reply,
            changes_data_only,
            _permit: permit,
        };
        let proposal = Proposal {
            id,
            payload,
            waiter,
        };
        self.hand_over(proposal, &inner.shared.proposals)?;
        outcome.await.unwrap_or(Err(ProposeError::Stopped))
    }

    fn hand_over<T>(&self, item: T, place: &Waiting<T>) -> Result<(), ProposeError> {
        match place.add(item) {
            Ok(false) => Ok(()),
            // A loop whose inbox is full is awake and looks before it sleeps; one
            // that has ended has closed the place, and dropped what was there.
            Ok(true) => {
                let _ = self.inner.drive.try_send(Event::Waiting);
                Ok(())
            }
            Err(Refused::Full) => Err(ProposeError::TooManyRequests),
            Err(Refused::Closed) => Err(ProposeError::Stopped),
        }
    }

    fn send(&self, event: Event) -> Result<(), ProposeError> {
        match self.inner.drive.try_send(event) {
            Ok(()) if self.inner.shared.is_inbox_closed() => Err(ProposeError::Stopped),
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err(ProposeError::TooManyRequests),
            Err(TrySendError::Disconnected(_)) => Err(ProposeError::Stopped),
        }
    }

    /// Which of etcd's three time-outs it was (`parseProposeCtxErr`).
    fn cause_of_timeout(&self, began: Instant) -> ProposeError {
        let shared = &self.inner.shared;
        let two_elections = 2 * self.inner.election_timeout.as_millis() as u64;
        if shared.lost_leader_since(began, two_elections) {
            ProposeError::TimeoutLeaderFailed
        } else if shared.lost_contact_since(began) {
            ProposeError::TimeoutConnectionLost
        } else {
            ProposeError::Timeout
        }
    }

    /// Has the membership changed; the machine decides whether it may be.
    /// Answers all members after the change.
    pub async fn change_membership(
        &self,
        change: MemberChange,
    ) -> Result<MemberChangeReply, ProposeError> {
        self.propose(change).await
    }

    /// Returns when everything that was acknowledged before the call, on any
    /// member, is applied on this one (GEN-10, GEN-15).
    ///
    /// For a member that is alone and leads that is always so: a reply is sent
    /// only after its change is visible. Others ask the leader; all that wait
    /// at the same time share the question.
    ///
    /// # Errors
    /// `LeaderChanged` when another leader has come meanwhile, `Timeout` after
    /// the request timeout.
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        let shared = &self.inner.shared;
        if shared.has_failed() {
            return Err(ProposeError::Stopped);
        }
        if shared.may_read_alone() {
            return Ok(());
        }
        if shared.is_removed() {
            return Err(ProposeError::Stopped);
        }
        let (reply, outcome) = oneshot::channel();
        self.hand_over(Reader(reply), &shared.readers)?;
        let answered = async { outcome.await.unwrap_or(Err(ProposeError::Stopped)) };
        let outcome = self.bounded(answered).await;
        if let Err(ProposeError::Timeout) = outcome {
            metrics::SERVER_READ_INDEXES_FAILED_TOTAL.inc();
        }
        outcome
    }

    /// Hands leadership over to the voter `to`; returns when it leads.
    ///
    /// # Errors
    /// `NotLeader` when this member does not lead, `LeaderTransferTimeout`
    /// after the request timeout.
    pub async fn transfer_leadership(&self, to: u64) -> Result<(), ProposeError> {
        let status = self.status();
        if !status.is_leader {
            return Err(ProposeError::NotLeader);
        }
        if status.leader == to {
            return Ok(());
        }
        self.send(Event::TransferLeadership(to))?;
        let leads = self.inner.shared.leads(to);
        let leads = tokio::time::timeout(self.inner.request_timeout, leads);
        leads.await.map_err(|_| ProposeError::LeaderTransferTimeout)
    }

    /// How far another member is, as the leader knows; `None` elsewhere and
    /// for ids that are no members.
    pub fn progress(&self, member_id: u64) -> Option<Progress> {
        self.inner.shared.progress(member_id)
    }

    /// Resolves when this member is no longer one of the group. It should
    /// then be stopped (CLU-8).
    pub async fn removed(&self) {
        self.inner.shared.removed().await;
    }

    /// Leader, term and indexes as of now.
    pub fn status(&self) -> Status {
        self.inner.shared.status()
    }

    /// Resolves when this member must stop: a write, a sync or an apply has
    /// failed. No write is accepted after that.
    pub async fn failed(&self) {
        self.inner.shared.failed().await;
    }

    /// Resolves when no more proposals are taken, because of a failure or an
    /// orderly stop.
    pub async fn stopped(&self) {
        self.inner.shared.stopped().await;
    }

    /// Whether this member must stop, see [`Consensus::failed`].
    pub fn has_failed(&self) -> bool {
        self.inner.shared.has_failed()
    }

    async fn bounded<T>(
        &self,
        work: impl Future<Output = Result<T, ProposeError>>,
    ) -> Result<T, ProposeError> {
        let bounded = tokio::time::timeout(self.inner.request_timeout, work);
        bounded.await.unwrap_or(Err(ProposeError::Timeout))
    }
}

/// What a command means to raft if it changes who takes part.
fn conf_change(command: &Command) -> Option<(ConfChangeType, u64)> {
    let Some(Body::MemberChange(change)) = &command.body else {
        return None;
    };
    let kind = match change.kind() {
        MemberChangeKind::Add | MemberChangeKind::Promote => ConfChangeType::AddNode,
        MemberChangeKind::AddLearner => ConfChangeType::AddLearnerNode,
        MemberChangeKind::Remove => ConfChangeType::RemoveNode,
        MemberChangeKind::Update => return None,
    };
    Some((kind, change.member.as_ref().map_or(0, |member| member.id)))
}

/// Whether the command's depth depends on its client. prost decodes a hundred
/// levels; a transaction that just came in may be one level too deep as a
/// command. In the log it would stop every member.
fn is_nested(command: &Command) -> bool {
    let Some(Body::Txn(txn)) = &command.body else {
        return false;
    };
    let mut ops = txn.success.iter().chain(&txn.failure);
    ops.any(|op| matches!(op.request, Some(Op::RequestTxn(_))))
}

/// Counts a proposal as pending while it lives.
struct Pending;

impl Pending {
    fn begin() -> Pending {
        metrics::SERVER_PROPOSALS_PENDING.inc();
        Pending
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        metrics::SERVER_PROPOSALS_PENDING.dec();
    }
}

/// Ids start anywhere, so that neither another member nor an earlier run of
/// this one has used them: clocks can go back, and members' ids can be alike.
pub(super) fn first_id() -> u64 {
    rand::random()
}
