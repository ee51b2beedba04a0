//! Single keys: puts, gets, the read-compare-write of Kubernetes, and a mix.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use stele::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use stele::proto::etcdserverpb::request_op::Request as Operation;
use stele::proto::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest};

use crate::keys::{KeySpace, random_value};
use crate::measure::{Client, Sample, Timing, closed_loop};
use crate::target::Target;
use crate::wire::{Wire, decode_record, is_record};

/// What each client of a scenario does over and over, with a random key.
#[derive(Clone, Copy, Debug)]
pub enum Point {
    Put {
        value_bytes: usize,
    },
    Get {
        is_serializable: bool,
    },
    /// Reads a key, then puts it if nobody did in between: what an API server
    /// of Kubernetes does for an update. Two requests, one operation.
    Update,
    /// Four gets to a put.
    Mix,
}

/// Values of this size are put where the operation does not say otherwise.
pub const VALUE_BYTES: usize = 256;

pub async fn run(target: &Target, point: Point, count: usize, timing: Timing) -> Sample {
    closed_loop(clients(target, point, count), timing, target.processes()).await
}

/// Clients that do so, for a loop of any kind.
pub fn clients(target: &Target, point: Point, count: usize) -> Vec<PointClient> {
    let space = Arc::new(target.keys.clone());
    let client = |(number, wire)| PointClient {
        wire,
        point,
        number,
        of: count,
        space: Arc::clone(&space),
        random: StdRng::seed_from_u64(number as u64),
    };
    let numbered = target.wires(count).into_iter().enumerate();
    numbered.map(client).collect()
}

pub struct PointClient {
    wire: Wire,
    point: Point,
    /// Which of how many clients it is.
    number: usize,
    of: usize,
    space: Arc<KeySpace>,
    random: StdRng,
}

impl Client for PointClient {
    async fn operation(&mut self) {
        match self.point {
            Point::Put { value_bytes } => self.put(value_bytes).await,
            Point::Get { is_serializable } => self.get(is_serializable).await,
            Point::Update => self.update().await,
            Point::Mix if self.random.random_ratio(1, 5) => self.put(VALUE_BYTES).await,
            Point::Mix => self.get(false).await,
        }
    }
}

impl PointClient {
    async fn put(&mut self, value_bytes: usize) {
        let request = PutRequest {
            key: self.space.random_key(&mut self.random),
            value: random_value(&mut self.random, value_bytes),
            ..PutRequest::default()
        };
        let answer = self.wire.put(request).await;
        assert!(answer.header.is_some(), "a put is answered with a header");
    }

    async fn get(&mut self, is_serializable: bool) {
        let key = self.space.random_key(&mut self.random);
        let request = RangeRequest {
            key: key.clone(),
            serializable: is_serializable,
            ..RangeRequest::default()
        };
        let answer = self.wire.range(request).await;
        assert!(
            answer.kvs.len() == 1 && is_record(&answer.kvs[0], &key, VALUE_BYTES),
            "a get answers with its key"
        );
    }

    async fn update(&mut self) {
        // Each client keeps to keys of its own: a lost race would measure luck.
        let turn = self.random.random_range(0..self.space.len() / self.of);
        let key = self.space.key(turn * self.of + self.number);
        let get = RangeRequest {
            key: key.clone(),
            ..RangeRequest::default()
        };
        let found = self.wire.range(get.clone()).await;
        assert_eq!(found.kvs.len(), 1, "a get answers with its key");
        let read = decode_record(&found.kvs[0]);
        let put = PutRequest {
            key: key.clone(),
            value: random_value(&mut self.random, VALUE_BYTES),
            ..PutRequest::default()
        };
        let request = TxnRequest {
            compare: vec![Compare {
                result: CompareResult::Equal.into(),
                target: CompareTarget::Mod.into(),
                key,
                target_union: Some(TargetUnion::ModRevision(read.mod_revision)),
                ..Compare::default()
            }],
            success: vec![RequestOp {
                request: Some(Operation::RequestPut(put)),
            }],
            failure: vec![RequestOp {
                request: Some(Operation::RequestRange(get)),
            }],
        };
        let answer = self.wire.txn(request).await;
        assert!(answer.succeeded, "nobody else puts this client's keys");
    }
}
