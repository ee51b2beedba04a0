//! The Maintenance service: how this member is, its alarms, its hashes, and
//! giving disk space back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tonic::{Request, Response, Status};

use super::hashing::Hashing;
use super::timing::{Kind, Timer};
use super::{SERVER_VERSION, STORAGE_VERSION, header, status};
use crate::consensus::Consensus;
use crate::machine::Published;
use crate::metrics;
use crate::mvcc::Store;
use crate::proto::etcdserverpb::maintenance_server::Maintenance;
use crate::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    DowngradeInfo, DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest,
    HashResponse, MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse,
    StatusRequest, StatusResponse,
};
use crate::storage::Engine;

pub(super) struct Service {
    consensus: Consensus,
    store: Store,
    published: Arc<Published>,
    header: header::Source,
    hashing: Hashing,
    defragmentation: Defragmentation,
    /// As Status shows it.
    quota_bytes: i64,
}

impl Service {
    pub(super) fn new(
        consensus: Consensus,
        store: Store,
        engine: Arc<Engine>,
        published: Arc<Published>,
        header: header::Source,
        hashing: Hashing,
        quota_bytes: i64,
    ) -> Service {
        Service {
            consensus,
            store,
            published,
            header,
            hashing,
            defragmentation: Defragmentation {
                engine,
                is_running: Arc::default(),
            },
            quota_bytes,
        }
    }
}

#[tonic::async_trait]
impl Maintenance for Service {
    /// GET passes the log like the other actions, so the answer is of the
    /// whole cluster and current.
    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        let timer = Timer::request(Kind::Alarm);
        let mut reply = self.consensus.propose(request.into_inner()).await?;
        timer.succeed();
        self.header.fill(&mut reply.header, self.store.revision());
        Ok(Response::new(reply))
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let consensus = self.consensus.status();
        Ok(Response::new(StatusResponse {
            header: self.header.header(self.store.revision()),
            version: SERVER_VERSION.to_owned(),
            db_size: saturating(self.store.total_bytes()),
            leader: consensus.leader,
            raft_index: consensus.committed_index,
            raft_term: consensus.term,
            raft_applied_index: consensus.applied_index,
            errors: errors(consensus.leader, &self.published.alarms()),
            db_size_in_use: saturating(self.store.live_bytes()),
            is_learner: consensus.is_learner,
            storage_version: STORAGE_VERSION.to_owned(),
            db_size_quota: self.quota_bytes,
            downgrade_info: Some(DowngradeInfo::default()),
        }))
    }

    /// Answers at once, without a header (GEN-4); the work goes on behind.
    async fn defragment(
        &self,
        _request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        self.defragmentation.start();
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, _request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let hash = self.hashing.hash().await?;
        Ok(Response::new(HashResponse {
            header: self.header.header(self.store.revision()),
            hash,
        }))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        let revision = request.into_inner().revision;
        Ok(Response::new(self.hashing.hash_kv(revision).await?))
    }

    type SnapshotStream = tokio_stream::Empty<Result<SnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        _request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(status::not_yet(
            "snapshots over the network come with a later version; to back up this one, stop it \
             and copy its data directory",
        ))
    }

    /// Only the leader can hand over, and only to a member that votes (MNT-27).
    /// Answers without a header, as etcd.
    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        let target = request.into_inner().target_id;
        if !self.consensus.status().is_leader {
            return Err(status::NOT_LEADER.into());
        }
        let members = self.published.members();
        if !members
            .iter()
            .any(|each| each.id == target && !each.is_learner)
        {
            return Err(status::BAD_LEADER_TRANSFEREE.into());
        }
        self.consensus.transfer_leadership(target).await?;
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    async fn downgrade(
        &self,
        _request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        Err(status::not_yet("there is no older version to downgrade to"))
    }
}

/// What is wrong with this member, in Status's words (MNT-2).
fn errors(leader: u64, alarms: &[AlarmMember]) -> Vec<String> {
    let mut errors = Vec::new();
    if leader == 0 {
        errors.push(status::NO_LEADER.text.to_owned());
    }
    errors.extend(alarms.iter().map(|alarm| {
        let name = match AlarmType::try_from(alarm.alarm) {
            Ok(kind) => kind.as_str_name().to_owned(),
            Err(_) => alarm.alarm.to_string(),
        };
        format!("memberID:{} alarm:{name}", alarm.member_id)
    }));
    errors
}

fn saturating(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Rewriting the store without what was superseded, at most once at a time.
///
/// In etcd this stops the member for as long as it takes (MNT-17), so callers
/// wait for it with long time-outs; here it is the storage engine's ordinary
/// background work, asked for at once.
struct Defragmentation {
    engine: Arc<Engine>,
    is_running: Arc<AtomicBool>,
}

impl Defragmentation {
    /// Does nothing while an earlier one runs: that one does the work.
    fn start(&self) {
        if self.is_running.swap(true, Ordering::AcqRel) {
            return;
        }
        let engine = self.engine.clone();
        let is_running = self.is_running.clone();
        // A thread of its own: the runtime would wait for it when it stops.
        std::thread::spawn(move || {
            let timer = metrics::DISK_BACKEND_DEFRAG_DURATION_SECONDS.start_timer();
            metrics::DISK_DEFRAG_INFLIGHT.set(1);
            tracing::info!("defragmentation started");
            engine.compact_all();
            metrics::DISK_DEFRAG_INFLIGHT.set(0);
            let seconds = timer.stop_and_record();
            tracing::info!(seconds, "defragmentation finished");
            is_running.store(false, Ordering::Release);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MNT-2.
    #[test]
    fn errors_name_what_is_wrong() {
        let alarm = |member_id, alarm| AlarmMember { member_id, alarm };
        let alarms = [alarm(5, 2), alarm(6, 1), alarm(7, 9)];
        assert_eq!(
            errors(0, &alarms),
            [
                "etcdserver: no leader",
                "memberID:5 alarm:CORRUPT",
                "memberID:6 alarm:NOSPACE",
                "memberID:7 alarm:9",
            ]
        );
        assert_eq!(errors(1, &[]), Vec::<String>::new());
    }
}
