//! Filling a server with a data set before it is measured: transactions of 100
//! puts, several on their way, as fast as the server takes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use stele::proto::etcdserverpb::request_op::Request as Operation;
use stele::proto::etcdserverpb::{PutRequest, RequestOp, TxnRequest};
use tokio::task::JoinSet;

use crate::keys::random_value;
use crate::measure::{Interval, Sample, latencies, record};
use crate::target::Target;
use crate::wire;

/// Below this lie all keys of a data set.
pub const PREFIX: &str = "/registry/pods/default/";

/// Below etcd's default limit of 128 operations.
pub const BATCH: usize = 100;

/// Transactions on their way. More do not make etcd faster.
pub const IN_FLIGHT: usize = 16;

/// Puts every key of the target's space `times` times, in turns: first all,
/// then all again. Each transaction is one revision with [`BATCH`] changes. An
/// operation is a put, a latency that of a transaction.
pub async fn put_all(target: &mut Target, times: usize) -> Sample {
    let keys = target.keys.len();
    assert!(keys.is_multiple_of(BATCH), "whole transactions only");
    let interval = Interval::begin(target.processes());
    let per_turn = keys / BATCH;
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for (number, wire) in target.wires(IN_FLIGHT).into_iter().enumerate() {
        let mut wire = wire;
        let next = Arc::clone(&next);
        let space = target.keys.clone();
        let value_bytes = target.value_bytes;
        let mut random = StdRng::seed_from_u64(number as u64);
        tasks.spawn(async move {
            let mut revision = 0;
            let mut latencies = latencies();
            loop {
                let batch = next.fetch_add(1, Ordering::Relaxed);
                if batch >= per_turn * times {
                    return (revision, latencies);
                }
                let first = batch % per_turn * BATCH;
                let puts = (first..first + BATCH).map(|number| PutRequest {
                    key: space.key(number),
                    value: random_value(&mut random, value_bytes),
                    ..PutRequest::default()
                });
                let request = all_of(puts);
                let sent = Instant::now();
                let answer = wire.txn(request).await;
                record(&mut latencies, sent.elapsed());
                assert!(
                    answer.succeeded && answer.responses.len() == BATCH,
                    "a transaction of puts did not put"
                );
                revision = revision.max(wire::revision(answer.header.as_ref()));
            }
        });
    }
    let mut all = latencies();
    for (revision, latencies) in tasks.join_all().await {
        target.loaded_revision = target.loaded_revision.max(revision);
        all.add(latencies).expect("the same bounds");
    }
    let ended = interval.end();
    ended.sample_of((keys * times) as u64, &all)
}

/// One transaction of puts without a condition.
pub fn all_of(puts: impl Iterator<Item = PutRequest>) -> TxnRequest {
    TxnRequest {
        success: puts
            .map(|put| RequestOp {
                request: Some(Operation::RequestPut(put)),
            })
            .collect(),
        ..TxnRequest::default()
    }
}
