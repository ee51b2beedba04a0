//! Answering a range request: which keys, in which order, how much of them.
//!
//! The rules are RNG-12 to RNG-24. Three things cost nothing beyond what is
//! returned: a plain list copies stored records without looking at them, a
//! limited list stops at its limit (the count comes from the index), and all
//! records of an answer share a few large buffers.

use super::ReadError;
use super::buffer::Buffer;
use super::range::KeyRange;
use super::record::{self, Fields};
use super::source::{self, Row, Source};
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::storage::{Column, keys};
use bytes::Bytes;
use std::cmp::Ordering;

/// The answer to a range request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResult {
    /// Encoded `mvccpb.KeyValue`s.
    pub kvs: Vec<Bytes>,
    /// Keys were left out because of the limit.
    pub more: bool,
    /// Keys in the range, whatever limit and filters.
    pub count: i64,
    /// The store's revision, for the header.
    pub revision: i64,
}

/// Answers `request` from `source`, whatever revision the request names: the
/// caller has chosen the source accordingly. `revision` is the store's, for
/// the header (GEN-7).
pub(super) fn select(
    source: &mut impl Source,
    request: &RangeRequest,
    revision: i64,
) -> Result<RangeResult, ReadError> {
    let range = KeyRange::new(&request.key, &request.range_end);
    let mut result = RangeResult {
        revision,
        ..RangeResult::default()
    };
    if range.is_empty() {
        return Ok(result);
    }
    if request.count_only {
        result.count = source::count(source, &range)?;
        return Ok(result);
    }
    let plan = Plan::new(request);
    let selection = plan.collect(source, &range)?;
    result.count = selection.seen;
    if let Some(unseen) = &selection.stopped_at {
        result.count += source::count(
            source,
            &KeyRange {
                start: unseen,
                ..range
            },
        )?;
    }
    result.more = plan.limit.is_some_and(|limit| selection.kvs.len() > limit);
    result.kvs = plan.finish(selection.kvs)?;
    Ok(result)
}

/// What a request asks for, in the terms of reading in key order.
struct Plan<'a> {
    request: &'a RangeRequest,
    /// `None`: no limit (RNG-17).
    limit: Option<usize>,
    /// `None`: key order, as read.
    sort: Option<Sort>,
    /// Whether reading may stop at the limit.
    stops_at_limit: bool,
    has_filters: bool,
    content: Content,
}

#[derive(Clone, Copy)]
struct Sort {
    target: SortTarget,
    is_descending: bool,
}

/// How much of a record is copied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    Whole,
    /// Everything before the value: `keys_only` (RNG-20).
    BeforeValue,
    /// `keys_only` sorted by value: needs the value until it is sorted, and
    /// then leaves the lease in (RNG-20, RNG-21).
    WholeThenValueDropped,
}

/// Keys collected in key order.
struct Selection {
    /// At most one more than the limit when reading may stop there.
    kvs: Vec<Bytes>,
    /// Keys read, whether or not they passed the filters.
    seen: i64,
    /// The next key to count from, when reading stopped before the end.
    stopped_at: Option<Vec<u8>>,
}

impl<'a> Plan<'a> {
    fn new(request: &'a RangeRequest) -> Plan<'a> {
        let limit = usize::try_from(request.limit)
            .ok()
            .filter(|&limit| limit > 0);
        let has_filters = request.min_mod_revision != 0
            || request.max_mod_revision != 0
            || request.min_create_revision != 0
            || request.max_create_revision != 0;
        let (order, target) = (request.sort_order(), request.sort_target());
        let sort = match (order, target) {
            (SortOrder::None | SortOrder::Ascend, SortTarget::Key) => None,
            _ => Some(Sort {
                target,
                is_descending: order == SortOrder::Descend,
            }),
        };
        // RNG-15: without an order, but with a target and no filter, the limit
        // takes its keys first and only those are sorted.
        let limit_first = order == SortOrder::None && !has_filters;
        let content = match (request.keys_only, target) {
            (false, _) => Content::Whole,
            (true, SortTarget::Value) => Content::WholeThenValueDropped,
            (true, _) => Content::BeforeValue,
        };
        Plan {
            request,
            limit,
            sort,
            stops_at_limit: sort.is_none() || limit_first,
            has_filters,
            content,
        }
    }

    fn collect(
        &self,
        source: &mut impl Source,
        range: &KeyRange<'_>,
    ) -> Result<Selection, ReadError> {
        let stop_at = if self.stops_at_limit {
            self.limit
        } else {
            None
        };
        let mut buffer = Buffer::default();
        let mut selection = Selection {
            kvs: Vec::new(),
            seen: 0,
            stopped_at: None,
        };
        source.seek(range.start, None)?;
        while let Some(row) = source.next()? {
            selection.seen += 1;
            if self.has_filters && !self.passes(&row)? {
                continue;
            }
            if stop_at.is_some_and(|limit| selection.kvs.len() == limit) {
                // The one too many proves `more`. It is returned only where a
                // sort may move it in front.
                selection.stopped_at = Some(keys::successor(row.key));
                selection.kvs.push(self.copy(&row, &mut buffer)?);
                break;
            }
            selection.kvs.push(self.copy(&row, &mut buffer)?);
        }
        Ok(selection)
    }

    /// RNG-22: inclusive bounds, zero is none; all must hold.
    fn passes(&self, row: &Row<'_>) -> Result<bool, ReadError> {
        let fields = fields(row.key, row.record)?;
        let request = self.request;
        let within = |value: i64, min: i64, max: i64| {
            (min == 0 || value >= min) && (max == 0 || value <= max)
        };
        Ok(within(
            fields.mod_revision,
            request.min_mod_revision,
            request.max_mod_revision,
        ) && within(
            fields.create_revision,
            request.min_create_revision,
            request.max_create_revision,
        ))
    }

    fn copy(&self, row: &Row<'_>, buffer: &mut Buffer) -> Result<Bytes, ReadError> {
        let record = match self.content {
            Content::Whole | Content::WholeThenValueDropped => row.record,
            Content::BeforeValue => &row.record[..fields(row.key, row.record)?.before_value],
        };
        Ok(buffer.copy(record))
    }

    /// Sorts, cuts, and drops what was only needed for sorting.
    fn finish(&self, mut kvs: Vec<Bytes>) -> Result<Vec<Bytes>, ReadError> {
        if let Some(sort) = self.sort {
            kvs = sort.apply(kvs)?;
        }
        if let Some(limit) = self.limit {
            kvs.truncate(limit);
        }
        if self.content == Content::WholeThenValueDropped {
            let mut buffer = Buffer::default();
            for kv in &mut kvs {
                let fields = fields(&[], kv)?;
                let parts = [&kv[..fields.before_value], &kv[fields.after_value..]];
                *kv = buffer.copy_parts(&parts);
            }
        }
        Ok(kvs)
    }
}

impl Sort {
    /// Ties stay in key order (RNG-16), the order they come in.
    fn apply(self, kvs: Vec<Bytes>) -> Result<Vec<Bytes>, ReadError> {
        let mut keyed = Vec::with_capacity(kvs.len());
        for kv in kvs {
            let fields = fields(&[], &kv)?;
            let key = match self.target {
                SortTarget::Key => SortKey::Bytes(kv.slice_ref(fields.key)),
                SortTarget::Value => SortKey::Bytes(kv.slice_ref(fields.value)),
                SortTarget::Version => SortKey::Number(fields.version),
                SortTarget::Create => SortKey::Number(fields.create_revision),
                SortTarget::Mod => SortKey::Number(fields.mod_revision),
            };
            keyed.push((key, kv));
        }
        keyed.sort_by(|(a, _), (b, _)| {
            let ordering = a.cmp(b);
            if self.is_descending {
                ordering.reverse()
            } else {
                ordering
            }
        });
        Ok(keyed.into_iter().map(|(_, kv)| kv).collect())
    }
}

/// All keys of one sort are of one kind.
#[derive(PartialEq, Eq)]
enum SortKey {
    Number(i64),
    Bytes(Bytes),
}

impl SortKey {
    fn cmp(&self, other: &SortKey) -> Ordering {
        match (self, other) {
            (SortKey::Number(a), SortKey::Number(b)) => a.cmp(b),
            (SortKey::Bytes(a), SortKey::Bytes(b)) => a.cmp(b),
            _ => Ordering::Equal,
        }
    }
}

/// An empty key (a record that has left its row) is replaced by the record's
/// own in an error, which cannot occur: it was parsed or compared before.
fn fields<'r>(key: &[u8], record: &'r [u8]) -> Result<Fields<'r>, ReadError> {
    Ok(record::parse_in(Column::Current, key, record)?)
}
