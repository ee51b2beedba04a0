//! Transactions: compares, the path they choose, and the operations on it.
//!
//! The order is etcd's (server/etcdserver/txn/txn.go) and shows in answers:
//!
//! 1. All compares on the way, those of nested transactions too, look at the
//!    state before the transaction; that fixes the path (TXN-10).
//! 2. Every operation on the path is checked against the same state; the
//!    first that fails, fails the whole (TXN-12).
//! 3. The operations run in order, each seeing the earlier ones (TXN-11).
//!
//! Shapes that no request may have (too many operations, duplicate keys) are
//! refused before a transaction is proposed, in `rpc::validate`.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use super::kv::{self, Attachment};
use super::{ApplyError, CommandError, Machine, header};
use crate::lease::table::Table as LeaseTable;
use crate::metrics;
use crate::mvcc::{ReadError, Reads, Staged};
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::request_op::Request as Op;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{
    Compare, RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest,
    TxnResponse,
};
use crate::proto::mvccpb::KeyValue;
use crate::storage::StorageError;

impl Machine {
    pub(super) fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, ApplyError> {
        if any_op(
            request,
            &|op| matches!(op, Op::RequestRange(range) if range.revision > 0),
        ) {
            // Reads at an old revision look at what is stored, not staged.
            self.commit_staged()?;
        }
        let mut attachments = Vec::new();
        let mut staged = self.writer.begin();
        let path = choose_path(&staged, request)?;
        check(&staged, &self.leases, request, &mut path.iter())?;
        let mut response = execute(&mut staged, &mut attachments, request, &mut path.iter())?;
        response.header = header(staged.revision());
        staged.finish();
        kv::attach(&mut self.writer, &mut self.leases, attachments);
        metrics::MVCC_TXN_TOTAL.inc();
        Ok(response)
    }
}

/// Why a read-only transaction has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadOnlyError {
    #[error(transparent)]
    Rejected(#[from] CommandError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<ReadError> for ReadOnlyError {
    fn from(error: ReadError) -> Self {
        ApplyError::from(error).into()
    }
}

impl From<ApplyError> for ReadOnlyError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Rejected(error) => ReadOnlyError::Rejected(error),
            ApplyError::Fatal(error) => ReadOnlyError::Storage(error),
        }
    }
}

/// True when neither branch holds anything but ranges (TXN-29); a nested
/// transaction takes the write path whatever it holds (TXN-30).
pub fn is_read_only(request: &TxnRequest) -> bool {
    let ops = || request.success.iter().chain(&request.failure);
    ops().all(|op| matches!(op.request, Some(Op::RequestRange(_))))
}

/// True when a read-only transaction need not wait for a quorum: all its
/// ranges are serializable, or there are none (TXN-29).
pub fn is_serializable(request: &TxnRequest) -> bool {
    let ops = || request.success.iter().chain(&request.failure);
    ops().all(|op| matches!(&op.request, Some(Op::RequestRange(range)) if range.serializable))
}

/// True when a put stands anywhere in the transaction, at any depth.
pub fn has_put(request: &TxnRequest) -> bool {
    any_op(request, &|op| matches!(op, Op::RequestPut(_)))
}

/// Answers a read-only transaction from one consistent view.
///
/// # Errors
/// `Rejected` when a range asks for a compacted or future revision.
pub fn read_only(view: &impl Reads, request: &TxnRequest) -> Result<TxnResponse, ReadOnlyError> {
    let succeeded = holds(view, &request.compare)?;
    let ops = branch(request, succeeded);
    for range in ops.iter().filter_map(as_range) {
        check_range(view, range)?;
    }
    let mut responses = Vec::with_capacity(ops.len());
    for range in ops.iter().filter_map(as_range) {
        let response = execute_range(view, range)?;
        responses.push(ResponseOp {
            response: Some(Response::ResponseRange(response)),
        });
    }
    Ok(TxnResponse {
        header: header(view.revision()),
        succeeded,
        responses,
    })
}

fn as_range(op: &RequestOp) -> Option<&RangeRequest> {
    match &op.request {
        Some(Op::RequestRange(range)) => Some(range),
        _ => None,
    }
}

fn branch(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded {
        &request.success
    } else {
        &request.failure
    }
}

fn any_op(request: &TxnRequest, test: &dyn Fn(&Op) -> bool) -> bool {
    let mut ops = request.success.iter().chain(&request.failure);
    ops.any(|op| match &op.request {
        Some(Op::RequestTxn(nested)) => any_op(nested, test),
        Some(op) => test(op),
        None => false,
    })
}

/// Which branch each transaction on the way takes, in the order in which they
/// are met.
type Path = Vec<bool>;

fn choose_path(reads: &impl Reads, request: &TxnRequest) -> Result<Path, ApplyError> {
    let mut path = Vec::new();
    extend_path(reads, request, &mut path)?;
    Ok(path)
}

fn extend_path(
    reads: &impl Reads,
    request: &TxnRequest,
    path: &mut Path,
) -> Result<(), ApplyError> {
    let succeeded = holds(reads, &request.compare)?;
    path.push(succeeded);
    for op in branch(request, succeeded) {
        if let Some(Op::RequestTxn(nested)) = &op.request {
            extend_path(reads, nested, path)?;
        }
    }
    Ok(())
}

fn step(path: &mut std::slice::Iter<'_, bool>) -> bool {
    *path
        .next()
        .expect("the path has one step for every transaction on it")
}

fn check(
    staged: &Staged<'_>,
    leases: &LeaseTable,
    request: &TxnRequest,
    path: &mut std::slice::Iter<'_, bool>,
) -> Result<(), ApplyError> {
    for op in branch(request, step(path)) {
        match &op.request {
            Some(Op::RequestRange(range)) => check_range(staged, range)?,
            Some(Op::RequestPut(put)) => kv::check_put(staged, leases, put)?,
            Some(Op::RequestDeleteRange(_)) | None => {}
            Some(Op::RequestTxn(nested)) => check(staged, leases, nested, path)?,
        }
    }
    Ok(())
}

/// Unlike a range of its own, one in a transaction may not have a negative
/// revision, unless it equals the -1 that stands for "never compacted"
/// (TXN-14).
fn check_range(reads: &impl Reads, range: &RangeRequest) -> Result<(), ApplyError> {
    match range.revision {
        0 => Ok(()),
        revision if revision > reads.revision() => Err(CommandError::FutureRevision.into()),
        revision if revision < reads.compacted_revision() => Err(CommandError::Compacted.into()),
        _ => Ok(()),
    }
}

fn execute(
    staged: &mut Staged<'_>,
    attachments: &mut Vec<Attachment>,
    request: &TxnRequest,
    path: &mut std::slice::Iter<'_, bool>,
) -> Result<TxnResponse, ApplyError> {
    let succeeded = step(path);
    let ops = branch(request, succeeded);
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        let response = match &op.request {
            Some(Op::RequestRange(range)) => {
                Some(Response::ResponseRange(execute_range(staged, range)?))
            }
            Some(Op::RequestPut(put)) => {
                Some(Response::ResponsePut(kv::put(staged, attachments, put)?))
            }
            Some(Op::RequestDeleteRange(range)) => Some(Response::ResponseDeleteRange(
                kv::delete_range(staged, attachments, range)?,
            )),
            Some(Op::RequestTxn(nested)) => Some(Response::ResponseTxn(execute(
                staged,
                attachments,
                nested,
                path,
            )?)),
            None => None,
        };
        responses.push(ResponseOp { response });
    }
    Ok(TxnResponse {
        // Present but empty in nested transactions (GEN-5); the caller fills
        // in the outermost.
        header: Some(ResponseHeader::default()),
        succeeded,
        responses,
    })
}

fn execute_range(reads: &impl Reads, range: &RangeRequest) -> Result<RangeResponse, ApplyError> {
    let result = reads.range(range)?;
    Ok(RangeResponse {
        header: header(reads.revision()),
        kvs: result.kvs,
        more: result.more,
        count: result.count,
    })
}

/// All compares must hold; none at all do (TXN-1).
fn holds(reads: &impl Reads, compares: &[Compare]) -> Result<bool, ReadError> {
    for compare in compares {
        if !compare_holds(reads, compare)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Must hold for every key of the range; where there is none, for a pair whose
/// numbers are all 0 and which has no value to compare (TXN-3, TXN-4).
fn compare_holds(reads: &impl Reads, compare: &Compare) -> Result<bool, ReadError> {
    let mut is_empty = true;
    let mut all_hold = true;
    reads.scan(&compare.key, &compare.range_end, &mut |kv| {
        is_empty = false;
        all_hold = pair_holds(compare, kv);
        if all_hold {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    if is_empty {
        let compares_value = compare.target == CompareTarget::Value as i32;
        return Ok(!compares_value && pair_holds(compare, &KeyValue::default()));
    }
    Ok(all_hold)
}

/// The stored side stands on the left: GREATER is stored > given (TXN-2). A
/// target or result outside the enums: equal, and true (TXN-6).
fn pair_holds(compare: &Compare, kv: &KeyValue) -> bool {
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => kv.version.cmp(&match compare.target_union {
            Some(TargetUnion::Version(version)) => version,
            _ => 0,
        }),
        Ok(CompareTarget::Create) => kv.create_revision.cmp(&match compare.target_union {
            Some(TargetUnion::CreateRevision(revision)) => revision,
            _ => 0,
        }),
        Ok(CompareTarget::Mod) => kv.mod_revision.cmp(&match compare.target_union {
            Some(TargetUnion::ModRevision(revision)) => revision,
            _ => 0,
        }),
        Ok(CompareTarget::Value) => match &compare.target_union {
            Some(TargetUnion::Value(value)) => kv.value.cmp(value),
            _ => kv.value.as_ref().cmp(&[]),
        },
        Ok(CompareTarget::Lease) => kv.lease.cmp(&match compare.target_union {
            Some(TargetUnion::Lease(lease)) => lease,
            _ => 0,
        }),
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Err(_) => true,
    }
}
