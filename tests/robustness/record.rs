//! What clients and watchers write down: every request with the times of its
//! call and its answer, every response of every watch.
//!
//! Times are counted from the start of the trial by one monotonic clock, so
//! that those of different clients compare.

use std::time::{Duration, Instant};

use bytes::Bytes;
use stele::proto::client::mvccpb::{Event, KeyValue};

use crate::support::operation::Intent;

/// The clock of a trial.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    pub fn start() -> Clock {
        Clock {
            start: Instant::now(),
        }
    }

    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A request, when it was sent and when its client stopped waiting, and what
/// is known of it.
#[derive(Clone, Debug)]
pub struct Operation {
    #[expect(dead_code, reason = "shown when something is wrong")]
    pub client: usize,
    #[expect(dead_code, reason = "shown when something is wrong")]
    pub member: usize,
    pub request: Request,
    pub invoked: Duration,
    pub returned: Duration,
    pub outcome: Outcome,
}

#[derive(Clone, Debug)]
pub enum Request {
    /// Changes keys or leases. No value is ever written twice.
    Write(Intent),
    Read(Read),
    KeepAlive {
        lease: i64,
    },
    Compact {
        revision: i64,
    },
}

#[derive(Clone, Debug)]
pub struct Read {
    pub key: Bytes,
    /// Empty for the one key.
    pub end: Bytes,
    /// 0 for the present.
    pub revision: i64,
    /// May show the past.
    pub is_serializable: bool,
}

impl Read {
    pub fn contains(&self, key: &Bytes) -> bool {
        is_in_range(key, &self.key, &self.end)
    }
}

/// etcd's ranges: an empty end is the one key, an end of one zero byte all
/// from the key on.
pub fn is_in_range(key: &Bytes, first: &Bytes, end: &Bytes) -> bool {
    if end.is_empty() {
        key == first
    } else {
        key >= first && (key < end || end.as_ref() == [0])
    }
}

#[derive(Clone, Debug)]
pub enum Outcome {
    /// It made this revision. For a revoke: it made this one, or none when the
    /// lease had no keys.
    Wrote { revision: i64 },
    /// It was carried out at this revision of the store and changed nothing.
    Unchanged { revision: i64 },
    /// What was there at this revision of the store: of a read, or of a
    /// transaction whose compare failed.
    Shown { revision: i64, kvs: Vec<KeyValue> },
    /// A lease was granted, or renewed, for so many seconds; 0: there is none.
    Lives { ttl_seconds: i64 },
    /// A compaction was accepted.
    Compacted,
    /// It did not take place.
    Refused(#[expect(dead_code, reason = "shown when something is wrong")] String),
    /// It took place as a whole, takes place later, or never.
    Unknown(#[expect(dead_code, reason = "shown when something is wrong")] String),
}

/// What a watcher asks for.
#[derive(Clone, Debug)]
pub struct Spec {
    pub key: Bytes,
    pub end: Bytes,
    pub has_previous: bool,
    pub is_without_puts: bool,
    pub is_without_deletes: bool,
    pub is_fragmented: bool,
    pub is_notified: bool,
}

/// One watch, from its creation until its stream ended. A watcher that resumes
/// has several.
#[derive(Clone, Debug)]
pub struct Watch {
    pub watcher: usize,
    pub member: usize,
    pub spec: Spec,
    /// 0: from whatever comes next.
    pub start_revision: i64,
    pub responses: Vec<Response>,
}

#[derive(Clone, Debug)]
pub struct Response {
    pub received: Duration,
    /// The revision in the header.
    pub revision: i64,
    pub content: Content,
}

#[derive(Clone, Debug)]
pub enum Content {
    Created,
    /// Some events; `is_partial`: more of the same revision follow.
    Events {
        events: Vec<Event>,
        is_partial: bool,
    },
    /// Everything up to the header's revision has been sent.
    Progress,
    /// The watch is over since what it was to begin with is compacted.
    Compacted {
        compact_revision: i64,
    },
    /// The watch is over for another reason; there should be none.
    Canceled {
        reason: String,
    },
}
