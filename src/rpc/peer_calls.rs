//! What other members ask of this one: what only the leader knows, and this
//! member's hash. The transport serves it on the peer port.

use std::sync::Arc;

use tonic::Status;

use super::cluster::Membership;
use super::hashing::Hashing;
use super::lease_time::LeaseTimes;
use super::{SERVER_VERSION, STORAGE_VERSION, header};
use crate::consensus::PeerCalls;
use crate::machine::Published;
use crate::proto::etcdserverpb::{
    HashKvResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, Member,
};
use crate::proto::peer::VersionResponse;

pub struct PeerService {
    pub(super) times: Arc<LeaseTimes>,
    pub(super) membership: Arc<Membership>,
    pub(super) hashing: Hashing,
    pub(super) published: Arc<Published>,
    pub(super) header: header::Source,
}

#[tonic::async_trait]
impl PeerCalls for PeerService {
    async fn lease_keep_alive(&self, id: i64) -> Result<i64, Status> {
        self.times.renew_for_peer(id).await
    }

    async fn lease_time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, Status> {
        self.times.time_to_live_for_peer(request).await
    }

    async fn member_promote(&self, id: u64) -> Result<Vec<Member>, Status> {
        self.membership.promote_as_leader(id).await
    }

    async fn hash_kv(&self, revision: i64) -> Result<HashKvResponse, Status> {
        self.hashing.hash_kv(revision).await
    }

    fn members(&self) -> (u64, Vec<Member>) {
        (self.header.cluster_id, self.published.members().to_vec())
    }

    fn version(&self) -> VersionResponse {
        VersionResponse {
            server: SERVER_VERSION.to_owned(),
            cluster: STORAGE_VERSION.to_owned(),
        }
    }

    fn is_removed(&self, id: u64) -> bool {
        self.published.is_removed(id)
    }
}
