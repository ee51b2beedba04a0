//! What the HTTP side may ask of the node: health, alarms, and gauges brought
//! up to date before a scrape.

use std::sync::Arc;

use bytes::Bytes;

use crate::consensus::Consensus;
use crate::http::{self, Alarm, BoxFuture};
use crate::machine::Published;
use crate::metrics;
use crate::mvcc::Store;
use crate::proto::etcdserverpb::{AlarmType, Member, RangeRequest};
use crate::rpc::status;

pub(super) struct Probe {
    pub(super) consensus: Consensus,
    pub(super) store: Store,
    pub(super) published: Arc<Published>,
    pub(super) cluster_id: u64,
    pub(super) member_id: u64,
}

impl http::Member for Probe {
    fn status(&self) -> http::Status {
        let status = self.consensus.status();
        http::Status {
            member_id: self.member_id,
            leader: status.leader,
            term: status.term,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            is_learner: status.is_learner,
        }
    }

    fn alarms(&self) -> Vec<Alarm> {
        let alarms = self.published.alarms();
        let kinds = alarms.iter().map(|each| AlarmType::try_from(each.alarm));
        let kinds = kinds.map(|kind| match kind {
            Ok(AlarmType::Nospace) => Alarm::NoSpace,
            Ok(AlarmType::Corrupt) => Alarm::Corrupt,
            Ok(AlarmType::None) | Err(_) => Alarm::Unknown,
        });
        kinds.collect()
    }

    fn read_local(&self) -> Result<(), String> {
        let any_key = RangeRequest {
            key: Bytes::from_static(&[0]),
            range_end: Bytes::from_static(&[0]),
            limit: 1,
            keys_only: true,
            ..RangeRequest::default()
        };
        match self.store.range(&any_key) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn read_linearizable(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            match self.consensus.read_barrier().await {
                Ok(()) => self.read_local(),
                Err(error) => Err(status::text(error)),
            }
        })
    }

    fn cluster(&self) -> http::Cluster {
        let members = self.published.members();
        let member = |member: &Member| http::ClusterMember {
            id: member.id,
            peer_urls: member.peer_ur_ls.clone(),
            is_learner: member.is_learner,
            name: member.name.clone(),
            client_urls: member.client_ur_ls.clone(),
        };
        http::Cluster {
            id: self.cluster_id,
            members: members.iter().map(member).collect(),
        }
    }

    fn refresh_metrics(&self) {
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        metrics::MVCC_DB_TOTAL_SIZE_IN_BYTES.set(gauge(self.store.total_bytes()));
        metrics::MVCC_DB_TOTAL_SIZE_IN_USE_IN_BYTES.set(gauge(self.store.live_bytes()));
        metrics::DEBUGGING_MVCC_KEYS_TOTAL.set(self.store.keys_total());
        metrics::DEBUGGING_MVCC_CURRENT_REVISION.set(self.store.revision());
        metrics::DEBUGGING_MVCC_COMPACT_REVISION.set(self.store.compacted_revision());
    }
}
