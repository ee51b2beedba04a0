//! What goes into the hub and what comes out of it, and the hub's record of
//! one watcher.
//!
//! The requests and responses are those of the Watch API, without the wire:
//! `rpc::watch` adds headers, texts and fragments.

use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

use super::outbox::Outbox;
use super::ranges::WatchRange;
use crate::mvcc::{Event, EventKind};

/// Kinds of events a watcher does not want (WAT-27).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filters {
    pub no_put: bool,
    pub no_delete: bool,
}

impl Filters {
    pub(super) fn lets_pass(self, event: &Event) -> bool {
        match event.kind {
            EventKind::Put => !self.no_put,
            EventKind::Delete => !self.no_delete,
        }
    }
}

/// A request for a watcher; the fields are those of `WatchCreateRequest`.
#[derive(Debug, Clone, Default)]
pub struct CreateRequest {
    pub key: Bytes,
    pub range_end: Bytes,
    /// 0 for "from now on".
    pub start_revision: i64,
    pub progress_notify: bool,
    pub filters: Filters,
    pub prev_kv: bool,
    /// 0 for "choose one".
    pub watch_id: i64,
    pub fragment: bool,
}

/// Why a watcher was not created. The texts are the ones clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CreateError {
    #[error("mvcc: watcher range is empty")]
    EmptyRange,
    #[error("mvcc: duplicate watch ID provided on the WatchStream")]
    DuplicateId,
    /// A revision below zero is as gone as a compacted one (WAT-9).
    #[error("etcdserver: mvcc: required revision has been compacted")]
    NegativeStart,
}

/// The watch id of responses that belong to no watcher: a refused creation,
/// or progress of the whole stream.
pub const NO_WATCHER: i64 = -1;

/// One response of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub watch_id: i64,
    /// What belongs into the header's `revision`.
    pub revision: i64,
    pub body: Body,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Created,
    /// In place of `Created`; the watch id is [`NO_WATCHER`].
    Refused(CreateError),
    /// Whole revisions, ascending. An event is an encoded `mvccpb.Event`.
    Events {
        events: Vec<Bytes>,
        /// The watcher allows large responses to be cut.
        fragment: bool,
    },
    /// As the client asked.
    Canceled,
    /// The watcher's next revision is gone; the header's revision is 0.
    Compacted {
        compact_revision: i64,
    },
    /// Every event up to the header's revision was sent before this.
    Progress,
}

impl Response {
    /// What the response counts for in a queue bounded in bytes: the events,
    /// although they may be shared with other queues, plus a share of overhead.
    pub(super) fn queued_bytes(&self) -> usize {
        const PER_RESPONSE: usize = 64;
        const PER_EVENT: usize = 32;
        match &self.body {
            Body::Events { events, .. } => {
                PER_RESPONSE
                    + events
                        .iter()
                        .map(|event| PER_EVENT + event.len())
                        .sum::<usize>()
            }
            _ => PER_RESPONSE,
        }
    }

    pub(super) fn event_count(&self) -> usize {
        match &self.body {
            Body::Events { events, .. } => events.len(),
            _ => 0,
        }
    }
}

/// Where a watcher stands. All but `Synced` are "behind".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Gets its events from `publish`.
    Synced,
    /// Waits for the catch-up thread.
    Queued,
    /// The catch-up thread reads for it.
    Reading,
    /// Waits for room in its stream's queue.
    Parked,
}

/// The hub's record of a watcher.
pub(super) struct Watcher {
    /// Tells this watcher from a later one in the same slot.
    pub(super) serial: u64,
    pub(super) id: i64,
    pub(super) stream: u64,
    pub(super) outbox: Arc<Outbox>,
    pub(super) range: WatchRange,
    pub(super) filters: Filters,
    pub(super) prev_kv: bool,
    pub(super) fragment: bool,
    /// Set by each response with events, cleared by each progress tick, which
    /// it makes unnecessary (WAT-37).
    pub(super) has_had_events: bool,
    /// Progress says nothing to this watcher before this revision.
    pub(super) progress_from: i64,
    /// The first revision that it may still be owed. While synced it is not
    /// kept up to date, so that publishing costs idle watchers nothing: then
    /// only revisions at or above it and above the published one are owed.
    pub(super) next: i64,
    pub(super) phase: Phase,
}

impl Watcher {
    /// The bytes of `event` as this watcher gets them, `None` when filtered.
    pub(super) fn select(&self, event: &Event) -> Option<Bytes> {
        if !self.filters.lets_pass(event) {
            return None;
        }
        Some(if self.prev_kv {
            event.with_prev()
        } else {
            event.without_prev()
        })
    }
}
