//! The limit on the size of the store (MNT-12 to MNT-16).
//!
//! A request that would pass it is refused before it is even validated
//! (GEN-24), and the member raises its NOSPACE alarm, which then refuses
//! growth on all members until an operator disarms it. Deletes are never
//! refused here.

use std::sync::Arc;

use tonic::Status;

use super::status;
use crate::consensus::Consensus;
use crate::machine::Published;
use crate::mvcc::Store;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::request_op::Request as Op;
use crate::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, PutRequest, RequestOp, TxnRequest,
};

/// What a put takes besides its key and value.
const PUT_OVERHEAD_BYTES: u64 = 256;

/// What a lease takes.
pub(super) const LEASE_BYTES: u64 = 64;

pub(super) struct Quota {
    /// `None`: unlimited.
    limit_bytes: Option<u64>,
    member_id: u64,
    store: Store,
    consensus: Consensus,
    published: Arc<Published>,
}

impl Quota {
    pub(super) fn new(
        limit_bytes: Option<u64>,
        member_id: u64,
        store: Store,
        consensus: Consensus,
        published: Arc<Published>,
    ) -> Quota {
        Quota {
            limit_bytes,
            member_id,
            store,
            consensus,
            published,
        }
    }

    /// Lets a request pass that adds up to `cost_bytes`, or raises the alarm.
    pub(super) async fn admit(&self, cost_bytes: u64) -> Result<(), Status> {
        let Some(limit) = self.limit_bytes else {
            return Ok(());
        };
        if self.store.total_bytes().saturating_add(cost_bytes) < limit {
            return Ok(());
        }
        let alarm = AlarmMember {
            member_id: self.member_id,
            alarm: AlarmType::Nospace.into(),
        };
        if !self.published.alarms().contains(&alarm) {
            self.raise(alarm).await;
        }
        Err(status::NO_SPACE.into())
    }

    /// Proposes the alarm and waits for it, so that a client that has been
    /// refused finds the alarm raised. A client that goes away meanwhile does
    /// not take the proposal with it.
    async fn raise(&self, alarm: AlarmMember) {
        let consensus = self.consensus.clone();
        let request = AlarmRequest {
            action: AlarmAction::Activate.into(),
            member_id: alarm.member_id,
            alarm: alarm.alarm,
        };
        let proposal = tokio::spawn(async move {
            match consensus.propose(request).await {
                Ok(_) => tracing::warn!("the store has reached its quota: alarm NOSPACE raised"),
                Err(error) => tracing::warn!(%error, "failed to raise the alarm NOSPACE"),
            }
        });
        // Fails only while the runtime shuts down.
        let _ = proposal.await;
    }
}

/// The quota as Status and the metric show it: negative when there is none,
/// as the flag then is.
pub(super) fn shown(limit_bytes: Option<u64>) -> i64 {
    limit_bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX))
}

pub(super) fn put_cost(request: &PutRequest) -> u64 {
    PUT_OVERHEAD_BYTES + request.key.len() as u64 + request.value.len() as u64
}

/// The dearer branch.
pub(super) fn txn_cost(request: &TxnRequest) -> u64 {
    branch_cost(&request.success).max(branch_cost(&request.failure))
}

fn branch_cost(ops: &[RequestOp]) -> u64 {
    let cost = |op: &RequestOp| match &op.request {
        Some(Op::RequestPut(put)) => put_cost(put),
        Some(Op::RequestTxn(nested)) => txn_cost(nested),
        _ => 0,
    };
    ops.iter().map(cost).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(value_bytes: usize) -> RequestOp {
        RequestOp {
            request: Some(Op::RequestPut(PutRequest {
                key: "abc".into(),
                value: vec![b'v'; value_bytes].into(),
                ..PutRequest::default()
            })),
        }
    }

    /// MNT-13.
    #[test]
    fn a_txn_costs_its_dearer_branch() {
        let nested = TxnRequest {
            success: vec![put(1)],
            failure: vec![put(5), put(5)],
            ..TxnRequest::default()
        };
        assert_eq!(txn_cost(&nested), 2 * (256 + 3 + 5));
        let outer = TxnRequest {
            success: vec![
                put(0),
                RequestOp {
                    request: Some(Op::RequestTxn(nested)),
                },
                RequestOp { request: None },
            ],
            failure: vec![put(7)],
            ..TxnRequest::default()
        };
        assert_eq!(txn_cost(&outer), 256 + 3 + 2 * (256 + 3 + 5));
        assert_eq!(txn_cost(&TxnRequest::default()), 0);
    }
}
