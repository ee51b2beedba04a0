//! The serving side of what members say to each other.
//!
//! Each call is checked for who makes it before its messages are looked at.
//! Raft's messages go to the inbox, which never blocks; what it has no room
//! for is dropped. What the other calls mean is [`PeerCalls`]'s business.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prost::Message as _;
use protobuf::ProtobufEnum as _;
use raft::eraftpb::MessageType;
use tokio_stream::Stream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, warn};

use super::Group;
use super::handshake::{self, Refusal};
use super::lane::Pieces;
use super::wire::from_wire;
use crate::metrics;
use crate::proto::etcdserverpb::{
    HashKvRequest, HashKvResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, Member, MemberPromoteRequest,
    MemberPromoteResponse,
};
use crate::proto::peer::peer_server::Peer;
use crate::proto::peer::{
    MembersRequest, MembersResponse, PingRequest, PingResponse, RaftEnd, RaftFrame, RaftMessage,
    SnapshotPart, SnapshotReply, VersionRequest, VersionResponse,
};

/// Callers whose last refusal is remembered, so that it is logged once. More
/// are forgotten together.
const MAX_REFUSED: usize = 64;

/// Messages that come from another member than the one they speak for: a
/// follower passes proposals and questions for the commit index on to whom it
/// takes for the leader, with their origin in them, and who asks for a transfer
/// of leadership names the member that is to lead.
const PASSED_ON: [MessageType; 3] = [
    MessageType::MsgPropose,
    MessageType::MsgReadIndex,
    MessageType::MsgTransferLeader,
];

/// What a member answers to others, besides raft's messages.
#[tonic::async_trait]
pub trait PeerCalls: Send + Sync + 'static {
    /// Answers the time to live, 0 for a lease that does not exist.
    async fn lease_keep_alive(&self, id: i64) -> Result<i64, Status>;

    async fn lease_time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, Status>;

    async fn member_promote(&self, id: u64) -> Result<Vec<Member>, Status>;

    async fn hash_kv(&self, revision: i64) -> Result<HashKvResponse, Status>;

    /// The cluster's id and its members.
    fn members(&self) -> (u64, Vec<Member>);

    fn version(&self) -> VersionResponse;

    /// Whether a member of this id has been removed. What this process has
    /// seen itself need not be remembered here.
    fn is_removed(&self, _id: u64) -> bool {
        false
    }
}

/// Replies to a member that sends its state.
pub type SnapshotReplies = Pin<Box<dyn Stream<Item = Result<SnapshotReply, Status>> + Send>>;

/// Takes the states that other members send.
#[tonic::async_trait]
pub trait SnapshotReceiver: Send + Sync + 'static {
    async fn receive(
        &self,
        from: u64,
        parts: Streaming<SnapshotPart>,
    ) -> Result<SnapshotReplies, Status>;
}

pub(super) struct Service {
    group: Arc<Group>,
    calls: Arc<dyn PeerCalls>,
    snapshots: Option<Arc<dyn SnapshotReceiver>>,
    /// The last refusal of each caller.
    refused: Mutex<HashMap<u64, Refusal>>,
}

impl Service {
    pub(super) fn new(
        group: Arc<Group>,
        calls: Arc<dyn PeerCalls>,
        snapshots: Option<Arc<dyn SnapshotReceiver>>,
    ) -> Service {
        Service {
            group,
            calls,
            snapshots,
            refused: Mutex::new(HashMap::new()),
        }
    }

    /// Who calls, if it may.
    ///
    /// A caller that this member does not know is let in: this one may be
    /// behind, and the caller a leader that has joined since. Its URLs came
    /// with the call, so that it can be answered.
    fn admit(&self, metadata: &MetadataMap) -> Result<u64, Status> {
        let caller = handshake::check(&self.group.local.settings, metadata);
        let caller = caller.map_err(|refusal| self.refuse(0, refusal))?;
        self.check_removed(caller.id)?;
        self.group.meet(caller.id, &caller.urls);
        Ok(caller.id)
    }

    fn check_removed(&self, id: u64) -> Result<(), Status> {
        if self.group.is_removed(id) || (!self.group.knows(id) && self.calls.is_removed(id)) {
            return Err(self.refuse(id, Refusal::Removed(id)));
        }
        Ok(())
    }

    /// Logs a refusal unless it is the caller's last one again.
    fn refuse(&self, caller: u64, refusal: Refusal) -> Status {
        let mut refused = self.refused.lock();
        if refused.get(&caller) != Some(&refusal) {
            if refused.len() >= MAX_REFUSED {
                refused.clear();
            }
            warn!(%refusal, "refused a call to the peer port");
            refused.insert(caller, refusal.clone());
        }
        refusal.into()
    }

    /// Steps raft's messages until the caller ends the call.
    async fn receive(&self, from: u64, frames: &mut Streaming<RaftFrame>) -> Result<(), Status> {
        let label = self.label(from);
        let received = metrics::NETWORK_PEER_RECEIVED_BYTES_TOTAL.with_label_values(&[&label]);
        let mut pieces = Pieces::default();
        while let Some(frame) = frames.message().await? {
            received.inc_by(frame.encoded_len() as u64);
            // It may have been removed since it was let in.
            self.check_removed(from)?;
            for message in pieces.take(frame)? {
                self.step(from, message)?;
            }
        }
        Ok(())
    }

    fn step(&self, from: u64, message: RaftMessage) -> Result<(), Status> {
        let to = self.group.local.settings.member_id;
        let is_passed_on = PASSED_ON
            .iter()
            .any(|kind| message.msg_type == kind.value());
        if message.to != to || (message.from != from && !is_passed_on) {
            return Err(Status::invalid_argument(format!(
                "a message from {:x} to {:x} in a call from {from:x} to {to:x}",
                message.from, message.to
            )));
        }
        if message.from != from && message.from != to && !self.group.knows(message.from) {
            // Its origin may have been removed on the way.
            debug!(
                from = message.from,
                "a message of a member that is not known was passed on"
            );
            return Ok(());
        }
        let message = from_wire(message);
        let message = message.map_err(|garbage| Status::invalid_argument(garbage.to_string()))?;
        if message.msg_type == MessageType::MsgSnapshot {
            return Err(Status::invalid_argument(
                "a snapshot comes with the state it speaks of",
            ));
        }
        // Dropped if there is no room; raft makes up for it.
        if self.group.local.inbox.step(message).is_err() {
            self.count_failure(from);
        }
        Ok(())
    }

    fn count_failure(&self, from: u64) {
        metrics::NETWORK_PEER_RECEIVED_FAILURES_TOTAL
            .with_label_values(&[&self.label(from)])
            .inc();
    }

    /// A caller's label in metrics. Callers can claim any id, and each label
    /// stays, so only those that are known have one of their own.
    fn label(&self, from: u64) -> String {
        match self.group.knows(from) {
            true => format!("{from:x}"),
            false => "unknown".to_owned(),
        }
    }
}

#[tonic::async_trait]
impl Peer for Service {
    async fn raft(
        &self,
        request: Request<Streaming<RaftFrame>>,
    ) -> Result<Response<RaftEnd>, Status> {
        let from = self.admit(request.metadata())?;
        let mut frames = request.into_inner();
        let received = tokio::select! {
            received = self.receive(from, &mut frames) => received,
            () = self.group.local.closing.cancelled() => Ok(()),
        };
        match received {
            Ok(()) => Ok(Response::new(RaftEnd {})),
            Err(status) => {
                self.count_failure(from);
                Err(status)
            }
        }
    }

    type SnapshotStream = SnapshotReplies;

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotPart>>,
    ) -> Result<Response<SnapshotReplies>, Status> {
        let from = self.admit(request.metadata())?;
        let Some(snapshots) = &self.snapshots else {
            return Err(Status::unimplemented("this member takes no snapshots"));
        };
        let replies = snapshots.receive(from, request.into_inner()).await?;
        Ok(Response::new(replies))
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        self.admit(request.metadata())?;
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanos = since_epoch.map_or(0, |time| time.as_nanos());
        Ok(Response::new(PingResponse {
            unix_nanos: i64::try_from(nanos).unwrap_or(i64::MAX),
        }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<LeaseKeepAliveRequest>,
    ) -> Result<Response<LeaseKeepAliveResponse>, Status> {
        self.admit(request.metadata())?;
        let id = request.get_ref().id;
        let ttl = self.calls.lease_keep_alive(id).await?;
        let header = None;
        Ok(Response::new(LeaseKeepAliveResponse { header, id, ttl }))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        self.admit(request.metadata())?;
        let response = self.calls.lease_time_to_live(request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        self.admit(request.metadata())?;
        let members = self.calls.member_promote(request.get_ref().id).await?;
        let header = None;
        Ok(Response::new(MemberPromoteResponse { header, members }))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        self.admit(request.metadata())?;
        let response = self.calls.hash_kv(request.get_ref().revision).await?;
        Ok(Response::new(response))
    }

    async fn members(
        &self,
        _request: Request<MembersRequest>,
    ) -> Result<Response<MembersResponse>, Status> {
        let (cluster_id, members) = self.calls.members();
        Ok(Response::new(MembersResponse {
            cluster_id,
            members,
            member_id: self.group.local.settings.member_id,
        }))
    }

    async fn version(
        &self,
        _request: Request<VersionRequest>,
    ) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(self.calls.version()))
    }
}
