//! What every watch must be, by the nine rules of etcd's robustness suite.
//!
//! | rule | what it says here |
//! |---|---|
//! | filter | only events of the range, kind and revisions that were asked for; no progress before the first revision asked for |
//! | ordered | revisions never go back, in events and in progress |
//! | unique | no event comes twice |
//! | atomic | the events of a revision come in one response, or in its fragments without anything between |
//! | reliable | no event is left out between the first asked for and the last sent; a watch is cancelled only if what comes next is compacted |
//! | resumable | a watch with a start revision begins with the first event at or after it |
//! | bookmarkable | at a progress response everything up to its revision has been sent |
//! | prev_kv | the value before, if and only if asked for (compaction may take it away) |
//! | is-create | creation, version and value are those of the history |
//!
//! Each stream is compared with the timeline event by event. That a watch gets
//! everything *in the end* is shown by the trial, which ends only when all have.

use std::time::Duration;

use stele::proto::client::mvccpb::Event;

use super::linear::Sighting;
use super::timeline::{Timeline, is_put, key_of, revision_of};
use crate::record::{Content, Response, Spec, Watch, is_in_range};

/// How much was compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compared {
    pub streams: usize,
    pub events: usize,
    pub fragments: usize,
    pub progress: usize,
    pub compacted: usize,
}

/// What may be missing without being wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowances {
    /// The highest revision that a compaction was ever asked for.
    pub compacted: i64,
    /// So many responses with events at the beginning of a stream may come
    /// without previous values. Not zero for etcd alone: it enters a watch
    /// before it notes that previous values are wanted (3.7.3,
    /// v3rpc/watch.go), and events in between go without.
    pub bare_responses: usize,
}

pub fn check(
    timeline: &Timeline,
    watches: &[Watch],
    allowances: Allowances,
) -> Result<Compared, String> {
    let mut compared = Compared::default();
    for watch in watches {
        let mut reader = Reader {
            timeline,
            spec: &watch.spec,
            allowances,
            responses: 0,
            start: watch.start_revision,
            expected: Vec::new(),
            sent: 0,
            is_open: false,
            progress: 0,
        };
        for (index, response) in watch.responses.iter().enumerate() {
            let checked = reader.check(response, &mut compared);
            checked.map_err(|broken| {
                format!(
                    "{broken}\n  in response {index} of watcher {} at member {} from {} with {:?}",
                    watch.watcher, watch.member, watch.start_revision, watch.spec
                )
            })?;
        }
        compared.streams += 1;
    }
    Ok(compared)
}

/// What was seen of the store's revision through watches.
pub fn sightings(watches: &[Watch]) -> Vec<Sighting> {
    let newest = |response: &Response| -> Option<(Duration, i64)> {
        let revision = match &response.content {
            Content::Events { events, .. } => events.last().map(revision_of)?,
            Content::Progress | Content::Created => response.revision,
            Content::Compacted { .. } | Content::Canceled { .. } => return None,
        };
        Some((response.received, revision))
    };
    watches
        .iter()
        .flat_map(|watch| watch.responses.iter().filter_map(newest))
        .collect()
}

fn matches(spec: &Spec, event: &Event) -> bool {
    let is_wanted = if is_put(event) {
        !spec.is_without_puts
    } else {
        !spec.is_without_deletes
    };
    is_wanted && is_in_range(key_of(event), &spec.key, &spec.end)
}

/// One stream, read up to some response.
struct Reader<'a> {
    timeline: &'a Timeline,
    spec: &'a Spec,
    allowances: Allowances,
    /// How many with events have come.
    responses: usize,
    /// The first revision asked for.
    start: i64,
    /// All events that should come.
    expected: Vec<&'a Event>,
    /// How many of them have come.
    sent: usize,
    /// The last response said that more of its revision follows.
    is_open: bool,
    progress: i64,
}

impl<'a> Reader<'a> {
    fn check(&mut self, response: &Response, compared: &mut Compared) -> Result<(), String> {
        let is_first = self.expected.is_empty() && self.sent == 0 && self.progress == 0;
        match &response.content {
            Content::Created => {
                if self.start == 0 {
                    self.start = response.revision + 1;
                }
                self.expect();
                Ok(())
            }
            Content::Events { events, is_partial } => {
                if is_first && self.start == 0 {
                    return Err("events came before the watch was created".to_owned());
                }
                compared.events += events.len();
                compared.fragments += usize::from(*is_partial);
                self.check_events(response, events, *is_partial)
            }
            Content::Progress => {
                compared.progress += 1;
                self.check_progress(response.revision)
            }
            Content::Compacted { compact_revision } => {
                compared.compacted += 1;
                self.check_compacted(*compact_revision)
            }
            Content::Canceled { reason } => Err(format!("reliable: cancelled, since {reason:?}")),
        }
    }

    fn expect(&mut self) {
        let events = self
            .timeline
            .revisions()
            .skip_while(|(revision, _)| *revision < self.start)
            .flat_map(|(_, events)| events);
        let spec = self.spec;
        self.expected = events.filter(|event| matches(spec, event)).collect();
    }

    /// The revision of the last event that came.
    fn newest(&self) -> i64 {
        let last = self.sent.checked_sub(1);
        last.map_or(0, |last| revision_of(self.expected[last]))
    }

    fn check_events(
        &mut self,
        response: &Response,
        events: &[Event],
        is_partial: bool,
    ) -> Result<(), String> {
        if is_partial && !self.spec.is_fragmented {
            return Err("atomic: a fragment that was not asked for".to_owned());
        }
        self.responses += 1;
        for event in events {
            let revision = revision_of(event);
            if revision > self.timeline.last() {
                // Later than everything that was collected.
                return Ok(());
            }
            if revision > response.revision {
                return Err(format!(
                    "ordered: revision {revision} under a header of {}",
                    response.revision
                ));
            }
            if !matches(self.spec, event) || revision < self.start {
                return Err(format!("filter: {event:?} was not asked for"));
            }
            match self.expected.get(self.sent) {
                Some(expected) if is_same(expected, event) => {
                    self.check_content(expected, event)?;
                }
                expected => return Err(self.misplaced(event, expected.copied())),
            }
            self.sent += 1;
        }
        self.is_open = is_partial;
        if let Some(next) = self.expected.get(self.sent)
            && revision_of(next) == self.newest()
            && !is_partial
        {
            return Err(format!(
                "atomic: {next:?} does not come with its revision but later"
            ));
        }
        Ok(())
    }

    /// Why an event is not the one to come next.
    fn misplaced(&self, event: &Event, expected: Option<&Event>) -> String {
        let was_sent = self.expected[..self.sent]
            .iter()
            .any(|sent| is_same(sent, event));
        let comes_later = self.expected[self.sent..]
            .iter()
            .any(|later| is_same(later, event));
        let rule = if was_sent {
            "unique (or ordered)"
        } else if comes_later && self.sent == 0 {
            "resumable"
        } else if comes_later {
            "reliable"
        } else {
            "is-create (or invented)"
        };
        format!("{rule}: {event:?} instead of {expected:?}")
    }

    fn check_content(&self, expected: &Event, event: &Event) -> Result<(), String> {
        if event.kv != expected.kv {
            return Err(format!("is-create: {event:?} instead of {expected:?}"));
        }
        let is_right = if self.spec.has_previous {
            // It is read at the revision before, which may be gone.
            let may_lack = revision_of(event) - 1 < self.allowances.compacted
                || self.responses <= self.allowances.bare_responses;
            event.prev_kv == expected.prev_kv || (event.prev_kv.is_none() && may_lack)
        } else {
            event.prev_kv.is_none()
        };
        if is_right {
            Ok(())
        } else {
            Err(format!("prev_kv: {event:?} instead of {expected:?}"))
        }
    }

    fn check_progress(&mut self, revision: i64) -> Result<(), String> {
        if self.is_open {
            return Err("atomic: progress between the fragments of a revision".to_owned());
        }
        if self.start > 0 && revision < self.start - 1 {
            return Err(format!(
                "filter: progress at {revision} before the first revision asked for"
            ));
        }
        if revision < self.progress || revision < self.newest() {
            return Err(format!(
                "ordered: progress at {revision} after {} and events of {}",
                self.progress,
                self.newest()
            ));
        }
        if let Some(missing) = self.expected.get(self.sent)
            && revision_of(missing) <= revision
        {
            return Err(format!(
                "bookmarkable: progress at {revision} ahead of {missing:?}"
            ));
        }
        self.progress = revision;
        Ok(())
    }

    /// Events after the last one sent must be gone. A member remembers how far
    /// a watch has come by its events only, so progress does not count.
    fn check_compacted(&self, compact_revision: i64) -> Result<(), String> {
        let next = self.start.max(self.newest() + 1);
        if compact_revision <= next || compact_revision > self.allowances.compacted {
            return Err(format!(
                "reliable: cancelled for compaction of {compact_revision}, {next} came next, \
                 and {} was compacted",
                self.allowances.compacted
            ));
        }
        Ok(())
    }
}

/// The same change: the same key at the same revision, put or deleted.
fn is_same(one: &Event, other: &Event) -> bool {
    revision_of(one) == revision_of(other)
        && key_of(one) == key_of(other)
        && is_put(one) == is_put(other)
}
