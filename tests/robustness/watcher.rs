//! Watchers that follow the store through all faults and write down what they
//! are sent.
//!
//! When its stream breaks, a watcher resumes after the last revision it has
//! seen whole: at the same member, or at any, as it was told. The *collector*
//! is a watcher of everything whose events become the history that all else is
//! compared with; nothing is compacted that it has not seen.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use stele::proto::client::etcdserverpb::watch_create_request::FilterType;
use stele::proto::client::etcdserverpb::watch_request::RequestUnion;
use stele::proto::client::etcdserverpb::{
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use crate::record::{Clock, Content, Response, Spec, Watch};
use crate::support::client::Clients;
use crate::support::read_back::EVERYTHING;

/// How long a watcher that may go elsewhere waits for a sign of life.
const IDLE: Duration = Duration::from_millis(1500);

/// And one that may not: its member may be paused or cut off meanwhile.
const IDLE_PINNED: Duration = Duration::from_secs(30);

/// Between two attempts to open a stream.
const PAUSE: Duration = Duration::from_millis(50);

/// What all watchers of a trial share.
#[derive(Clone)]
pub struct Surroundings {
    pub urls: Arc<[String]>,
    pub clock: Clock,
    /// Every revision up to here has been collected.
    pub collected: Arc<AtomicI64>,
    /// Set when the trial ends: watchers go on up to this revision.
    pub last: watch::Receiver<Option<i64>>,
}

pub struct Watcher {
    pub number: usize,
    /// Where it stays, unless it is to resume at any member.
    pub home: Option<usize>,
    pub spec: Spec,
    /// The first revision to ask for; 0: from now on.
    pub next: i64,
    pub progress_requests: Duration,
    /// Reads slower than events come, through small windows.
    pub is_slow: bool,
    pub is_collector: bool,
    pub random: StdRng,
    pub surroundings: Surroundings,
}

impl Watcher {
    /// The one that collects the history.
    pub fn collector(surroundings: Surroundings, random: StdRng) -> Watcher {
        Watcher {
            number: 0,
            home: None,
            spec: Spec {
                key: EVERYTHING,
                end: EVERYTHING,
                has_previous: true,
                is_without_puts: false,
                is_without_deletes: false,
                is_fragmented: false,
                is_notified: false,
            },
            next: 1,
            progress_requests: Duration::from_millis(200),
            is_slow: false,
            is_collector: true,
            random,
            surroundings,
        }
    }

    /// Any other, with its properties drawn.
    pub fn drawn(
        number: usize,
        surroundings: Surroundings,
        progress_requests: Duration,
        mut random: StdRng,
    ) -> Watcher {
        let members = surroundings.urls.len();
        let (key, end) = match random.random_range(0..4) {
            0 => (Bytes::from("k/"), Bytes::from("k0")),
            1 => (Bytes::from("k/05"), Bytes::new()),
            _ => (EVERYTHING, EVERYTHING),
        };
        let filter = random.random_range(0..6);
        Watcher {
            number,
            // Every member has watchers that stay with it.
            home: (!number.is_multiple_of(3)).then_some(number % members),
            spec: Spec {
                key,
                end,
                has_previous: random.random_bool(0.5),
                is_without_puts: filter == 0,
                is_without_deletes: filter == 1,
                is_fragmented: random.random_bool(0.3),
                is_notified: random.random_bool(0.5),
            },
            next: random.random_range(0..2),
            progress_requests,
            is_slow: random.random_bool(0.2),
            is_collector: false,
            random,
            surroundings,
        }
    }

    /// Watches until everything up to the last revision has come.
    pub async fn run(mut self) -> Vec<Watch> {
        let mut watches = Vec::new();
        while !self.is_done() {
            let watch = self.watch().await;
            if !watch.responses.is_empty() {
                watches.push(watch);
            }
            tokio::time::sleep(PAUSE).await;
        }
        watches
    }

    fn is_done(&self) -> bool {
        let last = *self.surroundings.last.borrow();
        last.is_some_and(|last| self.next > last)
    }

    /// One stream from beginning to end. That it breaks is no failure.
    async fn watch(&mut self) -> Watch {
        let members = self.surroundings.urls.len();
        let member = match self.home {
            Some(member) => member,
            None => self.random.random_range(0..members),
        };
        if !self.is_collector && self.surroundings.last.borrow().is_none() {
            // At times for what is not there yet, or for much of the past.
            match self.random.random_range(0..10) {
                0 => self.next += self.random.random_range(1..30),
                1 => self.next = (self.next - self.random.random_range(1..4_000)).max(1),
                _ => {}
            }
        }
        let mut watch = Watch {
            watcher: self.number,
            member,
            spec: self.spec.clone(),
            start_revision: self.next,
            responses: Vec::new(),
        };
        let idle = if self.home.is_some() {
            IDLE_PINNED
        } else {
            IDLE
        };
        let reopened = Instant::now() + Duration::from_millis(self.random.random_range(200..6_000));
        let (requests, queued) = mpsc::channel(4);
        let create = self.create_request();
        if requests.send(create).await.is_err() {
            return watch;
        }
        let mut client = self.clients(member).watch;
        let opened = tokio::time::timeout(idle, client.watch(ReceiverStream::new(queued))).await;
        let Ok(Ok(stream)) = opened else {
            return watch;
        };
        let mut stream = stream.into_inner();
        let mut ticks = tokio::time::interval(self.progress_requests);
        let mut last = self.surroundings.last.clone();
        let mut heard = Instant::now();
        while !self.is_done() && heard.elapsed() < idle {
            tokio::select! {
                message = stream.message() => {
                    let Ok(Some(message)) = message else { break };
                    heard = Instant::now();
                    let is_over = message.canceled;
                    self.note(&mut watch, message);
                    if is_over {
                        break;
                    }
                    if self.is_slow {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
                _ = ticks.tick() => {
                    let ask = RequestUnion::ProgressRequest(WatchProgressRequest {});
                    // A full queue means that one is under way already.
                    drop(requests.try_send(WatchRequest { request_union: Some(ask) }));
                }
                // Only so that the end is noticed.
                Ok(()) = last.changed() => {}
                () = tokio::time::sleep_until(reopened), if last.borrow().is_none() => break,
            }
        }
        watch
    }

    fn create_request(&self) -> WatchRequest {
        let filters = [
            (self.spec.is_without_puts, FilterType::Noput),
            (self.spec.is_without_deletes, FilterType::Nodelete),
        ];
        let create = WatchCreateRequest {
            key: self.spec.key.clone(),
            range_end: self.spec.end.clone(),
            start_revision: self.next,
            progress_notify: self.spec.is_notified,
            filters: filters
                .into_iter()
                .filter_map(|(is_set, filter)| is_set.then_some(filter.into()))
                .collect(),
            prev_kv: self.spec.has_previous,
            fragment: self.spec.is_fragmented,
            ..WatchCreateRequest::default()
        };
        WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        }
    }

    fn clients(&self, member: usize) -> Clients {
        let url = &self.surroundings.urls[member];
        if !self.is_slow {
            return Clients::new(crate::support::client::channel(url));
        }
        const WINDOW_BYTES: u32 = 4 << 10;
        let endpoint = Endpoint::from_shared(url.clone()).expect("an address of our own making");
        Clients::new(
            endpoint
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .connect_lazy(),
        )
    }

    fn note(&mut self, watch: &mut Watch, message: WatchResponse) {
        let revision = message.header.map_or(0, |header| header.revision);
        let content = if message.created {
            if self.next == 0 {
                self.next = revision + 1;
            }
            Content::Created
        } else if message.canceled && message.compact_revision == 0 {
            Content::Canceled {
                reason: message.cancel_reason,
            }
        } else if message.canceled {
            self.next = message.compact_revision;
            Content::Compacted {
                compact_revision: message.compact_revision,
            }
        } else if message.events.is_empty() {
            self.next = self.next.max(revision + 1);
            Content::Progress
        } else {
            let newest = message.events.last().and_then(|event| event.kv.as_ref());
            if let Some(kv) = newest
                && !message.fragment
            {
                self.next = self.next.max(kv.mod_revision + 1);
            }
            Content::Events {
                events: message.events,
                is_partial: message.fragment,
            }
        };
        if self.is_collector {
            let collected = self.next - 1;
            self.surroundings
                .collected
                .fetch_max(collected, Ordering::Relaxed);
        }
        watch.responses.push(Response {
            received: self.surroundings.clock.now(),
            revision,
            content,
        });
    }
}
