//! Put and DeleteRange, alone or as operations of a transaction.
//!
//! Each operation has two halves, as in etcd (server/etcdserver/txn/put.go):
//! a check against the state before the command, which may refuse it, and the
//! change itself. Attachments of keys to leases follow when the whole command
//! is known to succeed, because a refused command must leave no trace.

use bytes::Bytes;
use prost::Message as _;

use super::{ApplyError, CommandError, Machine, header};
use crate::lease::table::Table as LeaseTable;
use crate::metrics;
use crate::mvcc::{Reads as _, Staged, Writer};
use crate::proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
};
use crate::proto::mvccpb::KeyValue;
use crate::storage::{Column, StorageError};

/// A key's move between leases; 0 is no lease.
pub(super) struct Attachment {
    key: Bytes,
    old_lease: i64,
    new_lease: i64,
}

impl Machine {
    pub(super) fn put(&mut self, request: &PutRequest) -> Result<PutResponse, ApplyError> {
        let mut attachments = Vec::new();
        let mut staged = self.writer.begin();
        check_put(&staged, &self.leases, request)?;
        let response = put(&mut staged, &mut attachments, request)?;
        staged.finish();
        attach(&mut self.writer, &mut self.leases, attachments);
        Ok(response)
    }

    pub(super) fn delete_range(
        &mut self,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, ApplyError> {
        let mut attachments = Vec::new();
        let mut staged = self.writer.begin();
        let response = delete_range(&mut staged, &mut attachments, request)?;
        staged.finish();
        attach(&mut self.writer, &mut self.leases, attachments);
        Ok(response)
    }
}

/// The lease must exist, then the key if something of it is to be kept
/// (PUT-3, PUT-4).
pub(super) fn check_put(
    staged: &Staged<'_>,
    leases: &LeaseTable,
    request: &PutRequest,
) -> Result<(), ApplyError> {
    if request.lease != 0 && !leases.contains(request.lease) {
        return Err(CommandError::LeaseNotFound.into());
    }
    if (request.ignore_value || request.ignore_lease) && staged.get(&request.key)?.is_none() {
        return Err(CommandError::KeyNotFound.into());
    }
    Ok(())
}

pub(super) fn put(
    staged: &mut Staged<'_>,
    attachments: &mut Vec<Attachment>,
    request: &PutRequest,
) -> Result<PutResponse, ApplyError> {
    let mut value = request.value.clone();
    let mut lease = request.lease;
    if request.ignore_value || request.ignore_lease {
        // Inside a transaction an earlier operation may have deleted the key
        // that the check had seen: etcd 3.5 crashes there, we refuse.
        let kept = staged.get(&request.key)?.ok_or(CommandError::KeyNotFound)?;
        if request.ignore_value {
            value = kept.value;
        }
        if request.ignore_lease {
            lease = kept.lease;
        }
    }
    let previous = staged.put(request.key.clone(), value, lease)?;
    let old_lease = previous.as_ref().map_or(Ok(0), lease_of)?;
    if old_lease != lease {
        attachments.push(Attachment {
            key: request.key.clone(),
            old_lease,
            new_lease: lease,
        });
    }
    metrics::MVCC_PUT_TOTAL.inc();
    Ok(PutResponse {
        header: header(staged.revision()),
        prev_kv: previous.filter(|_| request.prev_kv).unwrap_or_default(),
    })
}

pub(super) fn delete_range(
    staged: &mut Staged<'_>,
    attachments: &mut Vec<Attachment>,
    request: &DeleteRangeRequest,
) -> Result<DeleteRangeResponse, ApplyError> {
    let removed = staged.delete_range(&request.key, &request.range_end)?;
    for record in &removed {
        let record = decode(record)?;
        if record.lease != 0 {
            attachments.push(Attachment {
                key: record.key,
                old_lease: record.lease,
                new_lease: 0,
            });
        }
    }
    metrics::MVCC_DELETE_TOTAL.inc();
    Ok(DeleteRangeResponse {
        header: header(staged.revision()),
        deleted: removed.len() as i64,
        prev_kvs: if request.prev_kv { removed } else { Vec::new() },
    })
}

/// Carries out the moves of a command that has succeeded, in its order.
pub(super) fn attach(writer: &mut Writer, leases: &mut LeaseTable, attachments: Vec<Attachment>) {
    for Attachment {
        key,
        old_lease,
        new_lease,
    } in attachments
    {
        leases.attach(writer, key, new_lease, old_lease);
    }
}

fn lease_of(record: &Bytes) -> Result<i64, StorageError> {
    Ok(decode(record)?.lease)
}

fn decode(record: &Bytes) -> Result<KeyValue, StorageError> {
    KeyValue::decode(record.clone())
        .map_err(|error| StorageError::corrupt(Column::Current, record, error.to_string()))
}
