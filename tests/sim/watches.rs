//! Clients that watch everything, on some member, and resume elsewhere.
//!
//! What is checked: every revision once, whole, in order, as all members have
//! it; progress at a revision only after all events up to it.

use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use stele::mvcc::Store;
use stele::watch::{Body, CreateRequest, Hub, Responses, StreamHandle};

use super::Fault;
use super::oracle::Oracle;

pub struct Watch {
    pub host: usize,
    stream: Option<Stream>,
    /// The first revision not yet delivered.
    pub next: i64,
    has_prev: bool,
}

struct Stream {
    life: u64,
    handle: StreamHandle,
    responses: Responses,
}

impl Watch {
    pub fn new(host: usize, has_prev: bool) -> Watch {
        Watch {
            host,
            stream: None,
            next: 2,
            has_prev,
        }
    }

    pub fn is_open(&self, life: u64) -> bool {
        self.stream
            .as_ref()
            .is_some_and(|stream| stream.life == life)
    }

    pub fn close(&mut self) {
        self.stream = None;
    }

    /// Resumes on a member in its present life.
    pub fn open(&mut self, host: usize, life: u64, hub: &Hub) {
        self.host = host;
        let (handle, responses) = hub.open_stream();
        handle.create(CreateRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            start_revision: self.next,
            progress_notify: true,
            prev_kv: self.has_prev,
            ..CreateRequest::default()
        });
        self.stream = Some(Stream {
            life,
            handle,
            responses,
        });
    }

    /// Asks how far the member is.
    pub fn ask_progress(&mut self, store: &Store, fault: Option<Fault>, oracle: &mut Oracle) {
        let Some(stream) = &self.stream else { return };
        if fault == Some(Fault::ProgressAhead) {
            // As etcd had it in issue 15220.
            self.progress(store.revision(), oracle);
            return;
        }
        stream.handle.tick();
        stream.handle.progress();
    }

    /// Takes what has come.
    pub fn receive(&mut self, oracle: &mut Oracle) {
        let mut context = Context::from_waker(Waker::noop());
        while let Some(stream) = &mut self.stream {
            let Poll::Ready(response) = stream.responses.poll_recv(&mut context) else {
                return;
            };
            let Ok(response) = response else {
                self.close();
                return;
            };
            match response.body {
                Body::Created => {}
                Body::Events { events, .. } => self.events(&events, response.revision, oracle),
                Body::Progress => self.progress(response.revision, oracle),
                Body::Compacted { compact_revision } => {
                    if compact_revision <= self.next || compact_revision > oracle.compacted {
                        let next = self.next;
                        oracle.fail(format!(
                            "a watch from {next} is told that {compact_revision} is compacted"
                        ));
                    }
                    self.next = compact_revision;
                    self.close();
                }
                Body::Canceled | Body::Refused(_) => {
                    oracle.fail(format!("a watch was ended: {:?}", response.body));
                    self.close();
                }
            }
        }
    }

    fn events(&mut self, events: &[Bytes], revision: i64, oracle: &mut Oracle) {
        let mut events = events.iter();
        while events.len() > 0 {
            // A revision without events (a lease that held nothing) is skipped.
            let Some(expected) = oracle.revisions.get((self.next - 2) as usize) else {
                oracle.fail(format!(
                    "a watch gets events after {revision}, the last one"
                ));
                return;
            };
            for expected in expected.events.clone() {
                let expected = if self.has_prev {
                    expected.with_prev()
                } else {
                    expected.without_prev()
                };
                let found = events.next();
                // What was compacted is no longer known as a predecessor.
                let is_as_expected = found == Some(&expected)
                    || self.next <= oracle.compacted
                        && found.is_some_and(|found| expected.starts_with(found));
                if !is_as_expected {
                    let next = self.next;
                    oracle.fail(format!(
                        "a watch gets {found:?} in {next}, not {expected:?}"
                    ));
                    return;
                }
            }
            self.next += 1;
            oracle.counts.watched += 1;
        }
    }

    fn progress(&mut self, revision: i64, oracle: &mut Oracle) {
        oracle.counts.progress += 1;
        if revision >= self.next {
            let next = self.next;
            let missing = (next..=revision).find(|at| {
                let known = oracle.revisions.get((at - 2) as usize);
                known.is_none_or(|revision| !revision.events.is_empty())
            });
            match missing {
                Some(at) => oracle.fail(format!(
                    "a watch is told of progress to {revision}, but has no event of {at}"
                )),
                None => self.next = revision + 1,
            }
        }
    }
}
