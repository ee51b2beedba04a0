//! Random transactions: nested, mostly well-formed, at times not.

use std::collections::HashSet;

use bytes::Bytes;
use rand::Rng;
use rand::seq::IndexedRandom;
use stele::proto::client::etcdserverpb::compare::TargetUnion;
use stele::proto::client::etcdserverpb::request_op::Request as Op;
use stele::proto::client::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};

use super::{Generator, LEASE_IDS, keys};

const DEEPEST: usize = 3;

/// etcd's default for --max-txn-ops.
const MAX_OPS: usize = 128;

/// What one branch of the outermost txn has touched so far, so that a
/// well-formed txn does not name a key twice (TXN-22).
#[derive(Default)]
struct Claims {
    puts: HashSet<Bytes>,
    deletes: Vec<DeleteRangeRequest>,
}

impl Claims {
    fn claim_put(&mut self, put: &PutRequest) -> bool {
        !self
            .deletes
            .iter()
            .any(|delete| is_covered(delete, &put.key))
            && self.puts.insert(put.key.clone())
    }

    fn claim_delete(&mut self, delete: &DeleteRangeRequest) -> bool {
        let is_free = !self.puts.iter().any(|key| is_covered(delete, key));
        if is_free {
            self.deletes.push(delete.clone());
        }
        is_free
    }
}

fn is_covered(delete: &DeleteRangeRequest, key: &[u8]) -> bool {
    match &delete.range_end[..] {
        b"" => delete.key == key,
        b"\0" => delete.key <= key,
        end => &delete.key[..] <= key && key < end,
    }
}

impl Generator {
    pub(super) fn txn(&mut self) -> TxnRequest {
        // In a wide universe these are what fills it.
        let crowded = if self.climate.is_wide { 60 } else { 12 };
        let txn = match self.random.random_range(0..1_000) {
            choice if choice < crowded => self.crowded_txn(),
            995..1_000 => self.deep_txn(),
            0..200 => self.branching_txn(&mut None, &mut None),
            _ => {
                let mut success = Some(Claims::default());
                let mut failure = Some(Claims::default());
                self.branching_txn(&mut success, &mut failure)
            }
        };
        without_crash(txn)
    }

    /// A txn of a few ops; without claims its ops may contradict each other.
    fn branching_txn(
        &mut self,
        success: &mut Option<Claims>,
        failure: &mut Option<Claims>,
    ) -> TxnRequest {
        TxnRequest {
            compare: self.compares(),
            success: self.branch(DEEPEST, success),
            failure: self.branch(DEEPEST, failure),
        }
    }

    fn compares(&mut self) -> Vec<Compare> {
        let count = self.random.random_range(0..=2);
        (0..count).map(|_| self.compare()).collect()
    }

    fn branch(&mut self, depth: usize, claims: &mut Option<Claims>) -> Vec<RequestOp> {
        const COUNTS: [usize; 8] = [0, 1, 1, 1, 2, 2, 3, 5];
        let count = *COUNTS.choose(&mut self.random).expect("not empty");
        (0..count).map(|_| self.op(depth, claims)).collect()
    }

    fn op(&mut self, depth: usize, claims: &mut Option<Claims>) -> RequestOp {
        let kind = self.random.random_range(0..100);
        let request = match kind {
            0..40 => {
                let put = self.put();
                let is_allowed = claims.as_mut().is_none_or(|claims| claims.claim_put(&put));
                is_allowed.then_some(Op::RequestPut(put))
            }
            40..58 => {
                let delete = self.delete_range();
                let is_allowed = claims
                    .as_mut()
                    .is_none_or(|claims| claims.claim_delete(&delete));
                is_allowed.then_some(Op::RequestDeleteRange(delete))
            }
            58..72 if depth > 1 => {
                // Only one of the nested branches runs, but claiming for both
                // together keeps the rule of TXN-23 simple.
                Some(Op::RequestTxn(TxnRequest {
                    compare: self.compares(),
                    success: self.branch(depth - 1, claims),
                    failure: self.branch(depth - 1, claims),
                }))
            }
            // An op without content (TXN-25).
            99 if claims.is_none() => return RequestOp { request: None },
            _ => None,
        };
        let request = request.unwrap_or_else(|| Op::RequestRange(self.range()));
        RequestOp {
            request: Some(request),
        }
    }

    fn compare(&mut self) -> Compare {
        let key = self.keys.key(&mut self.random);
        let range_end = if self.random.random_bool(0.25) {
            self.keys.range_end(&mut self.random, &key)
        } else {
            Bytes::new()
        };
        let target = if self.random.random_bool(0.02) {
            5
        } else {
            self.random.random_range(0..5)
        };
        let result = if self.random.random_bool(0.02) {
            4
        } else {
            self.random.random_range(0..4)
        };
        // The value may also belong to another target, or be missing (TXN-5).
        let given = if self.random.random_bool(0.9) {
            target
        } else {
            self.random.random_range(0..6)
        };
        let target_union = match given {
            0 => Some(TargetUnion::Version(self.random.random_range(-1..5))),
            1 => Some(TargetUnion::CreateRevision(self.near_revision())),
            2 => Some(TargetUnion::ModRevision(self.near_revision())),
            3 => Some(TargetUnion::Value(self.keys.value(&mut self.random))),
            4 => Some(TargetUnion::Lease(self.lease_or_none())),
            _ => None,
        };
        Compare {
            result,
            target,
            key,
            range_end,
            target_union,
        }
    }

    fn near_revision(&mut self) -> i64 {
        keys::near_revision(&mut self.random, &self.model)
    }

    fn lease_or_none(&mut self) -> i64 {
        if self.random.random_bool(0.5) {
            return 0;
        }
        *LEASE_IDS.choose(&mut self.random).expect("not empty")
    }

    /// About as many ops as are allowed, at one level or over two (TXN-20,
    /// TXN-21).
    fn crowded_txn(&mut self) -> TxnRequest {
        const COUNTS: [usize; 5] = [0, 1, MAX_OPS - 1, MAX_OPS, MAX_OPS + 1];
        let mut count = || *COUNTS.choose(&mut self.random).expect("not empty");
        let (compares, successes, failures) = (count(), count(), count());
        let mut txn = TxnRequest {
            compare: (0..compares).map(|_| self.compare()).collect(),
            success: self.many_ops(successes),
            failure: self.many_ops(failures),
        };
        if self.random.random_bool(0.4) {
            let outer = *[1, 100, 127, 128]
                .choose(&mut self.random)
                .expect("not empty");
            let inner = (MAX_OPS + 1 - outer + self.random.random_range(0..2)).max(1) - 1;
            let nested = TxnRequest {
                success: self.many_ops(inner),
                ..TxnRequest::default()
            };
            txn = TxnRequest {
                success: self.many_ops(outer - 1),
                ..TxnRequest::default()
            };
            txn.success.push(RequestOp {
                request: Some(Op::RequestTxn(nested)),
            });
        }
        txn
    }

    /// Each key is put once, the other ops are cheap reads.
    fn many_ops(&mut self, count: usize) -> Vec<RequestOp> {
        let mut all = self.keys.all().to_vec();
        let first = self.random.random_range(0..all.len());
        all.rotate_left(first);
        let op = |index: usize| match all.get(index) {
            Some(key) if count > 20 => {
                let value = self.keys.value(&mut self.random);
                Op::RequestPut(PutRequest {
                    key: key.clone(),
                    value,
                    ..PutRequest::default()
                })
            }
            _ => {
                let key = self.keys.key(&mut self.random);
                Op::RequestRange(RangeRequest {
                    key,
                    ..RangeRequest::default()
                })
            }
        };
        (0..count)
            .map(op)
            .map(|op| RequestOp { request: Some(op) })
            .collect()
    }

    /// A chain of txns with a put at its end (TXN-28).
    fn deep_txn(&mut self) -> TxnRequest {
        let depth = self.random.random_range(1..super::DEEPEST_CHAIN);
        let put = PutRequest {
            key: self.keys.some_key(&mut self.random),
            ..PutRequest::default()
        };
        let mut op = Op::RequestPut(put);
        for _ in 0..depth {
            let txn = TxnRequest {
                success: vec![RequestOp { request: Some(op) }],
                ..TxnRequest::default()
            };
            op = Op::RequestTxn(txn);
        }
        match op {
            Op::RequestTxn(txn) => txn,
            _ => unreachable!("the chain has at least one link"),
        }
    }
}

/// Whether etcd may crash on the txn: a key that the txn deletes is put with
/// `ignore_value` or `ignore_lease`, where the checks made beforehand have
/// still seen the key (`txn/put.go` then reads the first of no keys). Says yes
/// more often than needed: it does not ask which ops will run, nor in which
/// order.
pub fn may_crash_etcd(txn: &TxnRequest) -> bool {
    let (mut deletes, mut keeping) = (Vec::new(), Vec::new());
    visit(txn, &mut |op| match op {
        Op::RequestDeleteRange(delete) => deletes.push(delete.clone()),
        Op::RequestPut(put) if put.ignore_value || put.ignore_lease => {
            keeping.push(put.key.clone());
        }
        _ => {}
    });
    keeping
        .iter()
        .any(|key| deletes.iter().any(|delete| is_covered(delete, key)))
}

fn visit(txn: &TxnRequest, see: &mut impl FnMut(&Op)) {
    for op in txn
        .success
        .iter()
        .chain(&txn.failure)
        .filter_map(|op| op.request.as_ref())
    {
        see(op);
        if let Op::RequestTxn(nested) = op {
            visit(nested, see);
        }
    }
}

fn without_crash(mut txn: TxnRequest) -> TxnRequest {
    fn write_plainly(txn: &mut TxnRequest) {
        for op in txn.success.iter_mut().chain(&mut txn.failure) {
            match &mut op.request {
                Some(Op::RequestPut(put)) => {
                    put.ignore_value = false;
                    put.ignore_lease = false;
                }
                Some(Op::RequestTxn(nested)) => write_plainly(nested),
                _ => {}
            }
        }
    }
    if may_crash_etcd(&txn) {
        write_plainly(&mut txn);
    }
    txn
}
