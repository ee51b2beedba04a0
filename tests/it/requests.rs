//! From the words of a command to the request that goes over the wire. Every
//! field of every request can be said, and nothing is checked: what a server
//! makes of a nonsensical request is what many scripts are about.
//!
//! ```text
//! get KEY [END] [limit= revision= order= target= serializable keys_only count_only
//!                min_mod= max_mod= min_create= max_create= brief parts]
//! put KEY VALUE [lease= prev_kv ignore_value ignore_lease]
//! del KEY [END] [prev_kv]
//! txn
//!   if TARGET KEY [END] =|!=|<|> VALUE [union= result=]
//!   then
//!     get, put, del, txn as above, or `empty` for an operation without content
//!   else
//!     ...
//! ```
//!
//! Enums are given by name or, to leave the enum, by number.

use bytes::Bytes;
use stele::proto::client::etcdserverpb::compare::TargetUnion;
use stele::proto::client::etcdserverpb::{
    AlarmRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    WatchCreateRequest, request_op,
};

use crate::script::{Line, Mistake};
use crate::words::{self, Arguments, Word};

const RANGE_OPTIONS: [&str; 13] = [
    "limit",
    "revision",
    "order",
    "target",
    "serializable",
    "keys_only",
    "count_only",
    "min_mod",
    "max_mod",
    "min_create",
    "max_create",
    "brief",
    "parts",
];
const PUT_OPTIONS: [&str; 4] = ["lease", "prev_kv", "ignore_value", "ignore_lease"];
const WATCH_OPTIONS: [&str; 6] = [
    "revision",
    "prev_kv",
    "progress_notify",
    "filters",
    "id",
    "fragment",
];
const ORDERS: [&str; 3] = ["none", "ascend", "descend"];
const SORT_TARGETS: [&str; 5] = ["key", "version", "create", "mod", "value"];
const COMPARE_TARGETS: [&str; 5] = ["version", "create", "mod", "value", "lease"];
const COMPARE_RESULTS: [&str; 4] = ["=", ">", "<", "!="];
const ALARMS: [&str; 3] = ["none", "nospace", "corrupt"];

/// How an answer to a read is to be printed.
#[derive(Clone, Copy, Default)]
pub(crate) struct Wanted {
    /// First and last key only.
    pub(crate) brief: bool,
    /// Of a stream: whether it came in one message or several.
    pub(crate) parts: bool,
}

pub(crate) fn range(words: &[Word]) -> Result<(RangeRequest, Wanted), Mistake> {
    let mut given = Arguments::new(words, &RANGE_OPTIONS);
    let request = RangeRequest {
        key: given.need("key")?.bytes,
        range_end: given.bytes(),
        limit: given.number("limit")?,
        revision: given.number("revision")?,
        sort_order: given.choice("order", &ORDERS)?,
        sort_target: given.choice("target", &SORT_TARGETS)?,
        serializable: given.flag("serializable"),
        keys_only: given.flag("keys_only"),
        count_only: given.flag("count_only"),
        min_mod_revision: given.number("min_mod")?,
        max_mod_revision: given.number("max_mod")?,
        min_create_revision: given.number("min_create")?,
        max_create_revision: given.number("max_create")?,
    };
    let wanted = Wanted {
        brief: given.flag("brief"),
        parts: given.flag("parts"),
    };
    given.done()?;
    Ok((request, wanted))
}

pub(crate) fn put(words: &[Word]) -> Result<PutRequest, Mistake> {
    let mut given = Arguments::new(words, &PUT_OPTIONS);
    let request = PutRequest {
        key: given.need("key")?.bytes,
        value: given.bytes(),
        lease: given.number("lease")?,
        prev_kv: given.flag("prev_kv"),
        ignore_value: given.flag("ignore_value"),
        ignore_lease: given.flag("ignore_lease"),
    };
    given.done()?;
    Ok(request)
}

pub(crate) fn delete(words: &[Word]) -> Result<DeleteRangeRequest, Mistake> {
    let mut given = Arguments::new(words, &["prev_kv"]);
    let request = DeleteRangeRequest {
        key: given.need("key")?.bytes,
        range_end: given.bytes(),
        prev_kv: given.flag("prev_kv"),
    };
    given.done()?;
    Ok(request)
}

pub(crate) fn txn(lines: &[Line]) -> Result<TxnRequest, Mistake> {
    let mut request = TxnRequest::default();
    for line in lines {
        let words = words::split(&line.text)?;
        match words[0].text()? {
            "if" => request.compare.push(compare(&words[1..])?),
            "then" => request.success.append(&mut operations(&line.children)?),
            "else" => request.failure.append(&mut operations(&line.children)?),
            "for" => {
                let mut repeated = txn(&unrolled(line)?)?;
                request.compare.append(&mut repeated.compare);
            }
            other => return Err(Mistake::new(format!("a txn has no part {other}"))),
        }
    }
    Ok(request)
}

fn operations(lines: &[Line]) -> Result<Vec<RequestOp>, Mistake> {
    let mut operations = Vec::new();
    for line in lines {
        let words = words::split(&line.text)?;
        let rest = &words[1..];
        let request = match words[0].text()? {
            "get" => Some(request_op::Request::RequestRange(range(rest)?.0)),
            "put" => Some(request_op::Request::RequestPut(put(rest)?)),
            "del" => Some(request_op::Request::RequestDeleteRange(delete(rest)?)),
            "txn" => Some(request_op::Request::RequestTxn(txn(&line.children)?)),
            "empty" => None,
            "for" => {
                operations.append(&mut self::operations(&unrolled(line)?)?);
                continue;
            }
            other => return Err(Mistake::new(format!("a txn has no operation {other}"))),
        };
        operations.push(RequestOp { request });
    }
    Ok(operations)
}

fn unrolled(line: &Line) -> Result<Vec<Line>, Mistake> {
    line.unrolled()?
        .ok_or_else(|| Mistake::new("a loop is: for NAME FROM TO"))
}

/// `TARGET KEY [END] RESULT VALUE`. The value goes into the oneof field that
/// belongs to the target; `union=` names another one, or `none`.
fn compare(words: &[Word]) -> Result<Compare, Mistake> {
    let mut given = Arguments::new(words, &["union"]);
    let target = words::choice(given.need("target")?.text()?, &COMPARE_TARGETS)?;
    let key = given.need("key")?.bytes;
    let mut word = given.need("result")?;
    let mut range_end = Bytes::new();
    let is_result = |word: &Word| {
        !word.is_quoted
            && (COMPARE_RESULTS.iter().any(|r| r.as_bytes() == word.bytes)
                || word.bytes.starts_with(b"?"))
    };
    if !is_result(&word) {
        range_end = word.bytes;
        word = given.need("result")?;
    }
    // `?9` is the number 9 in place of a result of the enum.
    let result = words::choice(word.text()?.trim_start_matches('?'), &COMPARE_RESULTS)?;
    let value = given.need("value")?;
    let union = match given.value("union")? {
        Some(word) if word.text()? == "none" => None,
        Some(word) => Some(words::choice(word.text()?, &COMPARE_TARGETS)?),
        None => Some(target),
    };
    given.done()?;
    let target_union = match union {
        None => None,
        Some(0) => Some(TargetUnion::Version(value.number()?)),
        Some(1) => Some(TargetUnion::CreateRevision(value.number()?)),
        Some(2) => Some(TargetUnion::ModRevision(value.number()?)),
        Some(3) => Some(TargetUnion::Value(value.bytes)),
        Some(4) => Some(TargetUnion::Lease(value.number()?)),
        Some(other) => return Err(Mistake::new(format!("target {other} needs union="))),
    };
    Ok(Compare {
        result,
        target,
        key,
        target_union,
        range_end,
    })
}

pub(crate) fn watch(words: &[Word]) -> Result<WatchCreateRequest, Mistake> {
    let mut given = Arguments::new(words, &WATCH_OPTIONS);
    let mut request = WatchCreateRequest {
        key: given.need("key")?.bytes,
        range_end: given.bytes(),
        start_revision: given.number("revision")?,
        progress_notify: given.flag("progress_notify"),
        filters: Vec::new(),
        prev_kv: given.flag("prev_kv"),
        watch_id: given.number("id")?,
        fragment: given.flag("fragment"),
    };
    if let Some(filters) = given.value("filters")? {
        for filter in filters.text()?.split(',') {
            request
                .filters
                .push(words::choice(filter, &["noput", "nodelete"])?);
        }
    }
    given.done()?;
    Ok(request)
}

/// `alarm get|activate|deactivate [none|nospace|corrupt] [member=]`.
pub(crate) fn alarm(words: &[Word], own_member_id: u64) -> Result<AlarmRequest, Mistake> {
    let mut given = Arguments::new(words, &["member"]);
    let action = words::choice(
        given.need("action")?.text()?,
        &["get", "activate", "deactivate"],
    )?;
    let alarm = match given.next() {
        Some(word) => words::choice(word.text()?, &ALARMS)?,
        None => 0,
    };
    let member_id = match given.value("member")? {
        None => 0,
        Some(word) if word.text()? == "self" => own_member_id,
        Some(word) => word.number()?.cast_unsigned(),
    };
    given.done()?;
    Ok(AlarmRequest {
        action,
        member_id,
        alarm,
    })
}
