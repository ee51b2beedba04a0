//! The Watch service: translates between the wire and the hub.
//!
//! Each call has two sides that end separately. A task reads requests, one
//! after the other, and hands them to the hub; it goes on with the ticks of
//! regular progress when the client closes its sending side, since its
//! watchers live on (WAT-16). The other side is the stream of responses that
//! the transport pulls from; when it is dropped (the client is gone), the
//! task ends and the hub forgets the stream. What waits in between waits in
//! the hub's bounded queue.
//!
//! Here too: headers, cancel reasons, and the cutting of large responses for
//! clients that allow it. Not here: the loss of a leader (`identity` ends the
//! streams of clients that ask for it, GEN-19), and permissions.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prost::Message;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::header;
use super::status;
use crate::metrics;
use crate::proto::etcdserverpb::watch_create_request::FilterType;
use crate::proto::etcdserverpb::watch_request::RequestUnion;
use crate::proto::etcdserverpb::watch_server::Watch;
use crate::proto::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse};
use crate::watch::{self, Body, CreateRequest, End, Filters, Hub, Responses, StreamHandle};

/// What a response may exceed the largest request by before it is cut: events
/// carry more than the request that made them (WAT-31).
const OVERHEAD_BYTES: usize = 512 << 10;

/// Regular progress at shorter intervals is not worth its cost.
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The interval when none is set.
const PROGRESS_INTERVAL_DEFAULT: Duration = Duration::from_secs(600);

#[derive(Debug, Clone)]
pub struct Settings {
    pub max_request_bytes: usize,
    /// Zero for the default of ten minutes.
    pub progress_notify_interval: Duration,
}

pub struct Service {
    hub: Arc<Hub>,
    header: header::Source,
    fragment_bytes: usize,
    progress_interval: Duration,
}

impl Service {
    pub fn new(hub: Arc<Hub>, header: header::Source, settings: Settings) -> Service {
        let progress_interval = match settings.progress_notify_interval {
            Duration::ZERO => PROGRESS_INTERVAL_DEFAULT,
            interval => interval.max(PROGRESS_INTERVAL_MIN),
        };
        let fragment_bytes = settings.max_request_bytes.saturating_add(OVERHEAD_BYTES);
        Service {
            hub,
            header,
            fragment_bytes,
            progress_interval,
        }
    }
}

#[tonic::async_trait]
impl Watch for Service {
    type WatchStream = Outgoing;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Outgoing>, Status> {
        let (handle, responses) = self.hub.open_stream();
        let requests = read_requests(request.into_inner(), handle, self.progress_interval);
        Ok(Response::new(Outgoing {
            responses,
            requests: tokio::spawn(requests),
            parts: VecDeque::new(),
            header: self.header.clone(),
            fragment_bytes: self.fragment_bytes,
            is_finished: false,
        }))
    }
}

/// Serves requests and ticks until the receiving side fails, and returns its
/// status; otherwise until the task is aborted.
async fn read_requests(
    mut requests: Streaming<WatchRequest>,
    handle: StreamHandle,
    progress_interval: Duration,
) -> Status {
    // Up to a tenth more, or clients that start together would be told
    // together for ever.
    let interval = progress_interval.mul_f64(1.0 + rand::random::<f64>() / 10.0);
    let mut ticks = interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_half_closed = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => handle.tick(),
            request = next_request(&mut requests, &handle), if !is_half_closed => match request {
                Ok(Some(request)) => serve(request, &handle),
                Ok(None) => is_half_closed = true,
                Err(error) => return receive_failure(error),
            },
        }
    }
}

/// The next request, once its answer would have room.
async fn next_request(
    requests: &mut Streaming<WatchRequest>,
    handle: &StreamHandle,
) -> Result<Option<WatchRequest>, Status> {
    handle.room().await;
    requests.message().await
}

/// A request without content is ignored (WAT-12).
fn serve(request: WatchRequest, handle: &StreamHandle) {
    match request.request_union {
        Some(RequestUnion::CreateRequest(request)) => handle.create(create_request(request)),
        Some(RequestUnion::CancelRequest(request)) => handle.cancel(request.watch_id),
        Some(RequestUnion::ProgressRequest(_)) => handle.progress(),
        None => {}
    }
}

fn create_request(request: WatchCreateRequest) -> CreateRequest {
    let has = |filter: FilterType| request.filters.contains(&(filter as i32));
    CreateRequest {
        filters: Filters {
            no_put: has(FilterType::Noput),
            no_delete: has(FilterType::Nodelete),
        },
        key: request.key,
        range_end: request.range_end,
        start_revision: request.start_revision,
        progress_notify: request.progress_notify,
        prev_kv: request.prev_kv,
        watch_id: request.watch_id,
        fragment: request.fragment,
    }
}

/// The status that ends the stream when no request can be read any more.
fn receive_failure(error: Status) -> Status {
    if error.code() == Code::Cancelled {
        tracing::debug!(%error, "watch stream was cancelled by its client");
        return status::WATCH_CANCELED.into();
    }
    tracing::debug!(%error, "failed to receive a watch request");
    metrics::NETWORK_SERVER_STREAM_FAILURES_TOTAL
        .with_label_values(&["receive", "watch"])
        .inc();
    error
}

/// The responses of one call. Dropping it closes the stream in the hub.
pub struct Outgoing {
    responses: Responses,
    requests: JoinHandle<Status>,
    /// The rest of a response that is sent in parts.
    parts: VecDeque<WatchResponse>,
    header: header::Source,
    fragment_bytes: usize,
    is_finished: bool,
}

impl Stream for Outgoing {
    type Item = Result<WatchResponse, Status>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<WatchResponse, Status>>> {
        if self.is_finished {
            return Poll::Ready(None);
        }
        if let Some(part) = self.parts.pop_front() {
            return Poll::Ready(Some(Ok(part)));
        }
        if let Poll::Ready(received) = self.responses.poll_recv(context) {
            return Poll::Ready(Some(match received {
                Ok(response) => Ok(self.first_part(response)),
                Err(end) => Err(self.finish(end_status(end))),
            }));
        }
        match Pin::new(&mut self.requests).poll(context) {
            Poll::Ready(Ok(status)) => Poll::Ready(Some(Err(self.finish(status)))),
            // It panicked, which the panic hook has reported.
            Poll::Ready(Err(_)) => Poll::Ready(Some(Err(
                self.finish(Status::internal("stele: watch failed"))
            ))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Outgoing {
    /// The response for the wire, or its first part, with the rest kept.
    fn first_part(&mut self, response: watch::Response) -> WatchResponse {
        let may_cut = matches!(response.body, Body::Events { fragment: true, .. });
        let header = self.header.header(response.revision);
        let response = to_wire(response, header);
        if !may_cut {
            return response;
        }
        self.parts = cut(response, self.fragment_bytes);
        self.parts
            .pop_front()
            .expect("a response has at least one part")
    }

    fn finish(&mut self, status: Status) -> Status {
        self.is_finished = true;
        status
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.requests.abort();
    }
}

/// Clients look for another member on these, and resume their watches there.
fn end_status(end: End) -> Status {
    match end {
        End::Stopped => status::STOPPED.into(),
        End::HistoryFailed => Status::unavailable("stele: failed to read the watched history"),
    }
}

fn to_wire(response: watch::Response, header: Option<ResponseHeader>) -> WatchResponse {
    let mut wire = WatchResponse {
        header,
        watch_id: response.watch_id,
        ..WatchResponse::default()
    };
    match response.body {
        Body::Created => wire.created = true,
        Body::Refused(error) => {
            wire.created = true;
            wire.canceled = true;
            wire.cancel_reason = error.to_string();
        }
        Body::Events { events, .. } => wire.events = events,
        Body::Canceled => wire.canceled = true,
        Body::Compacted { compact_revision } => {
            wire.canceled = true;
            wire.compact_revision = compact_revision;
        }
        Body::Progress => {}
    }
    wire
}

/// Cuts a response of `limit_bytes` or more between its events into parts
/// below that, as many events in each as fit, but at least one; all parts but
/// the last say that more follows (WAT-31, WAT-32).
fn cut(response: WatchResponse, limit_bytes: usize) -> VecDeque<WatchResponse> {
    if response.events.len() < 2 || response.encoded_len() < limit_bytes {
        return VecDeque::from([response]);
    }
    let events = response.events;
    let empty = WatchResponse {
        events: Vec::new(),
        fragment: true,
        ..response
    };
    let empty_bytes = empty.encoded_len();
    let mut parts = VecDeque::new();
    let mut part = empty.clone();
    let mut part_bytes = empty_bytes;
    for event in events {
        // One byte of tag, since the field's number is below 16.
        let event_bytes = 1 + prost::length_delimiter_len(event.len()) + event.len();
        if !part.events.is_empty() && part_bytes + event_bytes >= limit_bytes {
            parts.push_back(std::mem::replace(&mut part, empty.clone()));
            part_bytes = empty_bytes;
        }
        part_bytes += event_bytes;
        part.events.push(event);
    }
    part.fragment = false;
    parts.push_back(part);
    parts
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::watch::CreateError;

    fn response(sizes: &[usize]) -> WatchResponse {
        WatchResponse {
            header: Some(ResponseHeader {
                cluster_id: u64::MAX,
                member_id: u64::MAX,
                revision: 1 << 40,
                raft_term: 2,
            }),
            watch_id: 7,
            events: sizes
                .iter()
                .map(|size| Bytes::from(vec![1; *size]))
                .collect(),
            ..WatchResponse::default()
        }
    }

    fn counts(parts: &VecDeque<WatchResponse>) -> Vec<usize> {
        parts.iter().map(|part| part.events.len()).collect()
    }

    #[test]
    fn small_or_single_responses_stay_whole() {
        let whole = response(&[100, 100]);
        let limit = whole.encoded_len();
        assert_eq!(counts(&cut(whole.clone(), limit + 1)), [2]);
        assert_eq!(counts(&cut(whole, limit)), [1, 1]);
        assert_eq!(cut(response(&[5000]), 100), [response(&[5000])]);
        assert_eq!(cut(response(&[]), 1), [response(&[])]);
    }

    #[test]
    fn parts_are_below_the_limit_and_complete() {
        let sizes = [300, 300, 300, 2000, 10, 10, 400, 500, 1];
        let limit = 900;
        let parts = cut(response(&sizes), limit);
        let mut events = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            assert_eq!(part.fragment, index + 1 < parts.len());
            assert_eq!((part.watch_id, part.header), (7, response(&[]).header));
            assert!(part.encoded_len() < limit || part.events.len() == 1);
            events.extend(part.events.iter().cloned());
        }
        assert_eq!(events, response(&sizes).events);
        assert_eq!(counts(&parts), [2, 1, 1, 3, 2]);
    }

    #[test]
    fn each_kind_of_response_has_its_form() {
        let of = |watch_id, body| {
            to_wire(
                watch::Response {
                    watch_id,
                    revision: 9,
                    body,
                },
                None,
            )
        };
        assert_eq!(
            of(3, Body::Created),
            WatchResponse {
                watch_id: 3,
                created: true,
                ..WatchResponse::default()
            }
        );
        assert_eq!(
            of(-1, Body::Refused(CreateError::DuplicateId)),
            WatchResponse {
                watch_id: -1,
                created: true,
                canceled: true,
                cancel_reason: "mvcc: duplicate watch ID provided on the WatchStream".to_owned(),
                ..WatchResponse::default()
            }
        );
        assert_eq!(
            of(
                3,
                Body::Compacted {
                    compact_revision: 5
                }
            ),
            WatchResponse {
                watch_id: 3,
                canceled: true,
                compact_revision: 5,
                ..WatchResponse::default()
            }
        );
        assert_eq!(
            of(3, Body::Canceled),
            WatchResponse {
                watch_id: 3,
                canceled: true,
                ..WatchResponse::default()
            }
        );
        assert_eq!(
            of(-1, Body::Progress),
            WatchResponse {
                watch_id: -1,
                ..WatchResponse::default()
            }
        );
    }

    #[test]
    fn filters_are_read_by_number() {
        let filters = |filters: &[i32]| {
            create_request(WatchCreateRequest {
                filters: filters.to_vec(),
                ..WatchCreateRequest::default()
            })
            .filters
        };
        assert_eq!(filters(&[]), Filters::default());
        assert_eq!(
            filters(&[1, 5]),
            Filters {
                no_put: false,
                no_delete: true
            }
        );
        assert_eq!(
            filters(&[0, 1, 0]),
            Filters {
                no_put: true,
                no_delete: true
            }
        );
    }
}
