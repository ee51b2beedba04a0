//! Many events of a watch stream at once: what is promised about them however
//! they are spread over responses, checked and summed up in a line per watcher.
//!
//! Checked are the order of revisions, that no revision is split over responses
//! except as fragments, that a header is never below the events under it, and
//! that no event comes after a progress response at its revision or above. What
//! does not hold is printed as FAULT, which no recorded output contains.

use std::collections::BTreeMap;

use stele::proto::client::etcdserverpb::WatchResponse;

use crate::words::shown;

/// Everything that came, until the caller has enough.
#[derive(Default)]
pub(crate) struct Gathered {
    watchers: BTreeMap<i64, Watcher>,
    events: i64,
    /// Highest revision a progress response for the whole stream has named.
    progress_revision: i64,
}

impl Gathered {
    pub(crate) fn events(&self) -> i64 {
        self.events
    }

    /// Takes a response with events, or with progress for the whole stream;
    /// others are not meant here and left to the caller.
    pub(crate) fn takes(&mut self, response: &WatchResponse) -> bool {
        let is_progress = response.watch_id == -1 && !response.created && !response.canceled;
        if response.events.is_empty() && !is_progress {
            return false;
        }
        if is_progress {
            let revision = response.header.as_ref().map_or(0, |header| header.revision);
            self.progress_revision = self.progress_revision.max(revision);
        } else {
            let watcher = self.watchers.entry(response.watch_id).or_default();
            watcher.add(response, self.progress_revision);
        }
        self.events += i64::try_from(response.events.len()).expect("a response fits in memory");
        true
    }

    /// A line for each watcher. How many events come before a cancellation
    /// depends on timing, so a cut summary says only what is always true.
    pub(crate) fn summary(&self, is_cut: bool) -> Vec<String> {
        let watchers = self.watchers.iter();
        watchers
            .map(|(id, watcher)| format!("id={id} {}", watcher.summary(is_cut)))
            .collect()
    }
}

#[derive(Default)]
struct Watcher {
    events: usize,
    revisions: usize,
    first: Option<(i64, String)>,
    last: (i64, String),
    /// Whether the last response was a part with more parts to follow.
    is_inside_fragments: bool,
    is_fragmented: bool,
    faults: Vec<String>,
}

impl Watcher {
    fn add(&mut self, response: &WatchResponse, progress_revision: i64) {
        let header_revision = response.header.as_ref().map_or(0, |header| header.revision);
        for (position, event) in response.events.iter().enumerate() {
            let pair = event.kv.as_ref();
            let (revision, key) = pair
                .map(|pair| (pair.mod_revision, shown(&pair.key)))
                .unwrap_or_default();
            let last = self.last.0;
            if revision < last {
                self.faults
                    .push(format!("revision {revision} after {last}"));
            }
            if revision == last && position == 0 && !self.is_inside_fragments {
                self.faults.push(format!("revision {revision} is split"));
            }
            if revision > header_revision {
                self.faults.push(format!(
                    "revision {revision} under header revision {header_revision}"
                ));
            }
            if revision <= progress_revision {
                self.faults.push(format!(
                    "revision {revision} after progress at {progress_revision}"
                ));
            }
            self.revisions += usize::from(revision != last);
            self.events += 1;
            self.first.get_or_insert_with(|| (revision, key.clone()));
            self.last = (revision, key);
        }
        self.is_inside_fragments = response.fragment;
        self.is_fragmented |= response.fragment;
    }

    fn summary(&self, is_cut: bool) -> String {
        let (first_revision, first_key) = self.first.clone().unwrap_or_default();
        let (last_revision, last_key) = &self.last;
        let mut text = if is_cut {
            let all = usize::try_from(last_revision - first_revision + 1);
            let is_gapless = all.is_ok_and(|all| all == self.revisions);
            format!("events from revision {first_revision} on, none missing: {is_gapless}")
        } else {
            let (events, revisions) = (self.events, self.revisions);
            format!(
                "{events} events of {revisions} revisions, from {first_key} at {first_revision} to {last_key} at {last_revision}"
            )
        };
        if self.is_fragmented {
            text.push_str(", fragmented");
        }
        if self.is_inside_fragments {
            text.push_str(", last part missing");
        }
        for fault in &self.faults {
            text.push_str(&format!(", FAULT: {fault}"));
        }
        text
    }
}
