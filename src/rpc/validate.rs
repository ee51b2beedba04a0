//! What a request may look like, whatever the state of the store.
//!
//! Every check is against the request alone, runs before authentication and
//! before anything is proposed (GEN-24, GEN-26), and answers with etcd's
//! refusal (etcd server/etcdserver/api/v3rpc/key.go). Rules that depend on the
//! store (does the lease exist, is the revision readable) belong to `machine`
//! and `mvcc`.
//!
//! The long part is the rule against duplicate keys in a transaction, see
//! [`Footprint`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;

use super::status::{self, Refusal};
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::request_op::Request as Op;
use crate::proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};

/// How deep transactions may nest, the outermost included.
///
/// prost decodes at most 100 messages within each other. A transaction and its
/// operation are two, the log entry around them is one more, and what was
/// accepted here must decode again from the log: 2 * 48 + 1 leaves a margin.
/// etcd has no such limit besides the operation budget (TXN-28); there the
/// deepest nesting under the default budget is 128.
const MAX_TXN_DEPTH: usize = 48;

pub fn range(request: &RangeRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        return Err(status::EMPTY_KEY);
    }
    let is_known = SortOrder::try_from(request.sort_order).is_ok()
        && SortTarget::try_from(request.sort_target).is_ok();
    if is_known {
        Ok(())
    } else {
        Err(status::INVALID_SORT_OPTION)
    }
}

/// A stream is cut into chunks in key order, so it can neither sort nor filter
/// (RST-3). Order NONE with a target other than KEY passes, as in etcd, and is
/// then served in key order (RST-4).
pub fn range_stream(request: &RangeRequest) -> Result<(), Refusal> {
    range(request)?;
    let is_ascending_by_key = request.sort_order == SortOrder::Ascend as i32
        && request.sort_target == SortTarget::Key as i32;
    if request.sort_order != SortOrder::None as i32 && !is_ascending_by_key {
        return Err(status::STREAM_SORT);
    }
    let filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    if filters.iter().any(|&revision| revision != 0) {
        return Err(status::STREAM_FILTERS);
    }
    Ok(())
}

pub fn put(request: &PutRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        return Err(status::EMPTY_KEY);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(status::VALUE_PROVIDED);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(status::LEASE_PROVIDED);
    }
    Ok(())
}

pub fn delete_range(request: &DeleteRangeRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        return Err(status::EMPTY_KEY);
    }
    Ok(())
}

/// Checks sizes, compares and operations at every depth, then looks for
/// duplicate keys in each branch (TXN-27).
pub fn txn(request: &TxnRequest, max_ops: usize) -> Result<(), Refusal> {
    txn_shape(request, max_ops, 1)?;
    Footprint::of_branch(&request.success)?;
    Footprint::of_branch(&request.failure)?;
    Ok(())
}

/// A nested transaction may have as many operations as the enclosing one
/// leaves over of its own allowance (TXN-20, TXN-21).
fn txn_shape(request: &TxnRequest, max_ops: usize, depth: usize) -> Result<(), Refusal> {
    let ops = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    if ops > max_ops || depth > MAX_TXN_DEPTH {
        return Err(status::TOO_MANY_OPS);
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(status::EMPTY_KEY);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Op::RequestRange(request)) => range(request)?,
            Some(Op::RequestPut(request)) => put(request)?,
            Some(Op::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Op::RequestTxn(request)) => txn_shape(request, max_ops - ops, depth + 1)?,
            None => return Err(status::KEY_NOT_FOUND),
        }
    }
    Ok(())
}

/// The keys that one branch of a transaction may put, and the ranges it may
/// delete, nested transactions included.
///
/// A branch is refused when two of its operations could put the same key, or
/// one puts what another deletes (TXN-22). Two exceptions exist: the branches
/// of one nested transaction exclude each other, so between them nothing
/// collides; and a nested transaction's puts are compared with the nested
/// deletes of its earlier siblings only, not of the later ones (TXN-23, an
/// oversight in etcd that clients may have come to rely on).
///
/// Requests can be hostile: sets are merged small into large and compared
/// small against large, so that the work stays near n log n in the number of
/// operations.
#[derive(Default)]
struct Footprint<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Ranges<'a>,
}

impl<'a> Footprint<'a> {
    fn of_branch(ops: &'a [RequestOp]) -> Result<Footprint<'a>, Refusal> {
        let mut whole = Footprint::default();
        for op in ops {
            if let Some(Op::RequestDeleteRange(delete)) = &op.request {
                whole.deletes.insert_request(&delete.key, &delete.range_end);
            }
        }
        for op in ops {
            if let Some(Op::RequestTxn(nested)) = &op.request {
                whole.add_nested(nested)?;
            }
        }
        for op in ops {
            if let Some(Op::RequestPut(put)) = &op.request {
                let key = put.key.as_ref();
                if whole.deletes.contains(key) || !whole.puts.insert(key) {
                    return Err(status::DUPLICATE_KEY);
                }
            }
        }
        Ok(whole)
    }

    fn add_nested(&mut self, nested: &'a TxnRequest) -> Result<(), Refusal> {
        let mut either = Footprint::of_branch(&nested.success)?;
        let failure = Footprint::of_branch(&nested.failure)?;
        merge(&mut either.puts, failure.puts);
        if self.collides(&either.puts) {
            return Err(status::DUPLICATE_KEY);
        }
        merge(&mut self.puts, either.puts);
        self.deletes.merge(either.deletes);
        self.deletes.merge(failure.deletes);
        Ok(())
    }

    fn collides(&self, puts: &BTreeSet<&[u8]>) -> bool {
        let (few, many) = if puts.len() < self.puts.len() {
            (puts, &self.puts)
        } else {
            (&self.puts, puts)
        };
        few.iter().any(|key| many.contains(key)) || self.deletes.contain_any(puts)
    }
}

fn merge<'a>(into: &mut BTreeSet<&'a [u8]>, mut from: BTreeSet<&'a [u8]>) {
    if into.len() < from.len() {
        std::mem::swap(into, &mut from);
    }
    into.extend(from);
}

/// A union of key ranges.
///
/// Maps the start of each range to its exclusive end; ranges neither overlap
/// nor are empty. Unlike elsewhere, an end of one zero byte is an ordinary
/// bound here, below every start but the empty one: the check of etcd forgets
/// that it means "open", so a delete of an open range never counts (TXN-24).
#[derive(Default)]
struct Ranges<'a> {
    ends: BTreeMap<&'a [u8], End<'a>>,
}

/// An exclusive bound: `prefix`, or the first key after it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct End<'a> {
    prefix: &'a [u8],
    is_after: bool,
}

impl<'a> Ranges<'a> {
    fn insert_request(&mut self, key: &'a Bytes, range_end: &'a Bytes) {
        let end = if range_end.is_empty() {
            End {
                prefix: key,
                is_after: true,
            }
        } else {
            End {
                prefix: range_end,
                is_after: false,
            }
        };
        self.insert(key, end);
    }

    fn insert(&mut self, mut start: &'a [u8], mut end: End<'a>) {
        if !end.is_above(start) {
            return;
        }
        // The one range that begins below and may reach in.
        let below = self.ends.range(..start).next_back();
        if let Some((&other_start, &other_end)) = below
            && other_end.is_above(start)
        {
            start = other_start;
        }
        // Ranges that begin inside are swallowed.
        while let Some((&other_start, &other_end)) = self.ends.range(start..).next() {
            if !end.is_above(other_start) {
                break;
            }
            end = end.max(other_end);
            self.ends.remove(other_start);
        }
        self.ends.insert(start, end);
    }

    fn merge(&mut self, mut other: Ranges<'a>) {
        if self.ends.len() < other.ends.len() {
            std::mem::swap(self, &mut other);
        }
        for (start, end) in other.ends {
            self.insert(start, end);
        }
    }

    fn contains(&self, key: &[u8]) -> bool {
        let at_or_below = self.ends.range(..=key).next_back();
        at_or_below.is_some_and(|(_, end)| end.is_above(key))
    }

    fn contain_any(&self, keys: &BTreeSet<&[u8]>) -> bool {
        if keys.len() <= self.ends.len() {
            return keys.iter().any(|key| self.contains(key));
        }
        self.ends.iter().any(|(&start, end)| {
            let from = (Bound::Included(start), Bound::Unbounded);
            let first = keys.range::<[u8], _>(from).next();
            first.is_some_and(|key| end.is_above(key))
        })
    }
}

impl End<'_> {
    fn is_above(&self, key: &[u8]) -> bool {
        key < self.prefix || (self.is_after && key == self.prefix)
    }
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
