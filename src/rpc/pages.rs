//! A range read piece by piece from one revision.
//!
//! A read of a million keys must neither hold a thread of the runtime for
//! seconds nor go on when nobody waits for it any more (RNG-27). [`Pages`]
//! cuts a range in key order into pages, each read on the pool for blocking
//! work; between two of them the caller may be dropped. RangeStream sends the
//! pages as they are, Range puts them together.

use bytes::Bytes;
use prost::Message as _;
use tonic::Status;

use super::run_blocking;
use crate::mvcc::{RangeResult, ReadError, Reads as _, Store, View};
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::mvccpb::KeyValue;

/// The rest of a range, at a pinned revision, in ascending key order.
pub(super) struct Pages {
    store: Store,
    /// Gone after [`Pages::unpin`]; pages are then read at `revision`.
    view: Option<View>,
    /// The next page's request but for its limit. Its revision is 0 while the
    /// view stands for it.
    next: RangeRequest,
    /// The revision that is read.
    revision: i64,
    /// The store's revision when the read began, for headers (GEN-7).
    store_revision: i64,
    /// Keys that may still come; `None`: as many as there are.
    left: Option<i64>,
    sent: i64,
}

pub(super) struct Page {
    pub(super) kvs: Vec<Bytes>,
    /// Set on the last page only.
    pub(super) end: Option<End>,
}

/// What a whole range says besides its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// Keys were left out because of the limit.
    pub(super) more: bool,
    /// Keys of the range, whatever the limit.
    pub(super) count: i64,
}

impl Pages {
    /// Pins the revision. `request` must neither sort nor filter; a sort
    /// target is ignored.
    pub(super) fn open(store: Store, mut request: RangeRequest) -> Result<Pages, ReadError> {
        let view = store.view()?;
        let store_revision = view.revision();
        let revision = if request.revision > 0 {
            request.revision
        } else {
            store_revision
        };
        request.sort_order = 0;
        request.sort_target = 0;
        Ok(Pages {
            store,
            view: Some(view),
            left: (request.limit > 0).then_some(request.limit),
            next: request,
            revision,
            store_revision,
            sent: 0,
        })
    }

    pub(super) fn store_revision(&self) -> i64 {
        self.store_revision
    }

    /// Whether what is left has been compacted away meanwhile.
    pub(super) fn is_compacted(&self) -> bool {
        self.store.compacted_revision() > self.revision
    }

    /// Gives the view back. What follows is read from the store's history,
    /// which is slower but holds nothing.
    pub(super) fn unpin(&mut self) {
        self.view = None;
        self.next.revision = self.revision;
    }

    /// Reads up to `max_keys` more; not to be called again after the last
    /// page.
    pub(super) async fn read(mut self, max_keys: i64) -> Result<(Pages, Page), Status> {
        run_blocking(move || {
            let page = self.read_here(max_keys)?;
            Ok((self, page))
        })
        .await
    }

    fn read_here(&mut self, max_keys: i64) -> Result<Page, Status> {
        let limit = self.left.map_or(max_keys, |left| left.min(max_keys));
        self.next.limit = limit;
        let RangeResult {
            kvs, more, count, ..
        } = match &self.view {
            Some(view) => view.range(&self.next)?,
            None => self.store.range(&self.next)?,
        };
        let before = self.sent;
        let read = kvs.len() as i64;
        self.sent += read;
        if let Some(left) = &mut self.left {
            *left -= read;
        }
        let is_last = !more || self.left == Some(0) || self.next.count_only;
        if !is_last {
            self.next.key = successor(&kvs)?;
        }
        let end = is_last.then_some(End {
            more,
            count: before + count,
        });
        Ok(Page { kvs, end })
    }
}

/// The smallest key after the last of `kvs`.
fn successor(kvs: &[Bytes]) -> Result<Bytes, Status> {
    let last = kvs.last().map(|record| KeyValue::decode(record.clone()));
    match last {
        Some(Ok(kv)) => Ok([kv.key.as_ref(), &[0]].concat().into()),
        // A page that leaves keys out holds at least one, and what is stored
        // was encoded by us.
        Some(Err(_)) | None => Err(Status::unknown("stele: a stored record does not decode")),
    }
}
