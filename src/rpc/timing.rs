//! How long requests take, as the metrics show it.
//!
//! The children of the two families are looked up once: these histograms see
//! every request.

use std::sync::LazyLock;
use std::time::Instant;

use prometheus::{Histogram, HistogramVec};

use crate::metrics;

/// The kinds etcd tells apart in `etcd_server_request_duration_seconds`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Range,
    ReadonlyTxn,
    Put,
    DeleteRange,
    Txn,
    Compaction,
    LeaseGrant,
    LeaseRevoke,
    Alarm,
}

const KINDS: [(Kind, &str); 9] = [
    (Kind::Range, "Range"),
    (Kind::ReadonlyTxn, "ReadonlyTxn"),
    (Kind::Put, "Put"),
    (Kind::DeleteRange, "DeleteRange"),
    (Kind::Txn, "Txn"),
    (Kind::Compaction, "Compaction"),
    (Kind::LeaseGrant, "LeaseGrant"),
    (Kind::LeaseRevoke, "LeaseRevoke"),
    (Kind::Alarm, "Alarm"),
];

/// Failure, success.
type Outcomes = [Histogram; 2];

static REQUESTS: LazyLock<Vec<Outcomes>> = LazyLock::new(|| {
    let family: &HistogramVec = &metrics::SERVER_REQUEST_DURATION_SECONDS;
    KINDS
        .iter()
        .map(|(_, name)| {
            ["false", "true"].map(|success| family.with_label_values(&[*name, success]))
        })
        .collect()
});

static RANGES: LazyLock<Outcomes> = LazyLock::new(|| {
    let family: &HistogramVec = &metrics::SERVER_RANGE_DURATION_SECONDS;
    ["false", "true"].map(|success| family.with_label_values(&[success]))
});

/// Measures one piece of work from its making to its drop. Work that is given
/// up before [`Timer::succeed`] counts as failed.
pub(super) struct Timer {
    outcomes: &'static Outcomes,
    started_at: Instant,
    is_success: bool,
}

impl Timer {
    /// A request, from its arrival in the service to its answer.
    pub(super) fn request(kind: Kind) -> Timer {
        Timer::start(&REQUESTS[kind as usize])
    }

    /// The reading part of a range.
    pub(super) fn range() -> Timer {
        Timer::start(&RANGES)
    }

    fn start(outcomes: &'static Outcomes) -> Timer {
        Timer {
            outcomes,
            started_at: Instant::now(),
            is_success: false,
        }
    }

    pub(super) fn succeed(mut self) {
        self.is_success = true;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let seconds = self.started_at.elapsed().as_secs_f64();
        self.outcomes[usize::from(self.is_success)].observe(seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_stand_in_their_order() {
        for (index, (kind, name)) in KINDS.iter().enumerate() {
            assert_eq!(*kind as usize, index);
            assert_eq!(format!("{kind:?}"), *name);
        }
    }
}
