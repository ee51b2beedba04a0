//! The queue between the hub and one stream's sender.
//!
//! Two kinds of responses go through one queue, so that their order is the
//! order of what happened. Answers to the client's own requests are always
//! taken: their number is bounded by not reading further requests
//! ([`Outbox::poll_room`]). Events and progress are only taken while there is
//! room in entries and bytes; a watcher that is refused falls behind and asks
//! to be told of room.
//!
//! The queue exceeds its limit of bytes by at most one response, which may be
//! as large as a revision is: a revision is never cut (WAT-22).

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::hub::Shared;
use super::watcher::Response;
use crate::metrics;

/// Answers to requests that may wait before requests are no longer read. A
/// client that sends requests without reading answers gains nothing by more.
const CONTROL_LIMIT: usize = 128;

/// Why a stream has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The server stops.
    Stopped,
    /// The history that a watcher needs could not be read.
    HistoryFailed,
}

pub(super) struct Outbox {
    limit_responses: usize,
    limit_bytes: usize,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    responses: VecDeque<Entry>,
    /// How many of `responses` are answers to requests.
    control: usize,
    /// Bytes of the responses that are not.
    bytes: usize,
    /// The task that sends responses, while it waits for one.
    sender: Option<Waker>,
    /// The task that reads requests, while it waits for room for the answer.
    reader: Option<Waker>,
    /// A watcher was refused and waits for room.
    has_parked: bool,
    end: Option<End>,
    /// Nobody will take responses any more.
    is_abandoned: bool,
}

struct Entry {
    response: Response,
    is_control: bool,
}

impl Queue {
    fn push(&mut self, response: Response, is_control: bool) {
        if self.end.is_some() || self.is_abandoned {
            return;
        }
        if is_control {
            self.control += 1;
        } else {
            self.bytes += response.queued_bytes();
        }
        let events = response.event_count();
        if events > 0 {
            metrics::DEBUGGING_MVCC_PENDING_EVENTS_TOTAL.add(events as i64);
        }
        self.responses.push_back(Entry {
            response,
            is_control,
        });
        if let Some(sender) = self.sender.take() {
            sender.wake();
        }
    }

    fn pop(&mut self) -> Option<Response> {
        let Entry {
            response,
            is_control,
        } = self.responses.pop_front()?;
        if is_control {
            self.control -= 1;
            if let Some(reader) = self.reader.take() {
                reader.wake();
            }
        } else {
            self.bytes -= response.queued_bytes();
        }
        let events = response.event_count();
        if events > 0 {
            metrics::DEBUGGING_MVCC_PENDING_EVENTS_TOTAL.sub(events as i64);
        }
        Some(response)
    }

    fn clear(&mut self) {
        while self.pop().is_some() {}
        self.has_parked = false;
        self.reader
            .take()
            .into_iter()
            .chain(self.sender.take())
            .for_each(Waker::wake);
    }

    /// Events and progress that wait.
    fn bounded(&self) -> usize {
        self.responses.len() - self.control
    }
}

impl Outbox {
    pub(super) fn new(limit_responses: usize, limit_bytes: usize) -> Outbox {
        Outbox {
            limit_responses,
            limit_bytes,
            queue: Mutex::default(),
        }
    }

    /// Queues the answer to a request.
    pub(super) fn push_control(&self, response: Response) {
        self.queue.lock().push(response, true);
    }

    /// Queues progress if there is room. Clients ask again (WAT-41).
    pub(super) fn offer(&self, response: Response) {
        let mut queue = self.queue.lock();
        if self.has_room(&queue, 1) {
            queue.push(response, false);
        }
    }

    /// Queues what `response` makes if there is room. If there is none, the
    /// caller must park the watcher (before it lets go of the hub's lock, which
    /// the message that there is room again has to take).
    #[must_use]
    pub(super) fn offer_or_park(&self, response: impl FnOnce() -> Response) -> bool {
        let mut queue = self.queue.lock();
        if self.has_room(&queue, 1) {
            queue.push(response(), false);
            true
        } else {
            queue.has_parked = true;
            false
        }
    }

    /// Ends the stream; what waits is dropped.
    pub(super) fn end(&self, end: End) {
        let mut queue = self.queue.lock();
        queue.end.get_or_insert(end);
        queue.clear();
    }

    /// The receiving side is gone.
    fn abandon(&self) {
        let mut queue = self.queue.lock();
        queue.is_abandoned = true;
        queue.clear();
    }

    /// Ready when the answer to another request would have room.
    pub(super) fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut queue = self.queue.lock();
        if queue.control < CONTROL_LIMIT {
            return Poll::Ready(());
        }
        queue.reader = Some(context.waker().clone());
        Poll::Pending
    }

    /// The next response, and whether the parked watchers are to be told of room.
    fn poll_pop(&self, context: &mut Context<'_>) -> Poll<Result<(Response, bool), End>> {
        let mut queue = self.queue.lock();
        if let Some(end) = queue.end {
            return Poll::Ready(Err(end));
        }
        let Some(response) = queue.pop() else {
            queue.sender = Some(context.waker().clone());
            return Poll::Pending;
        };
        // Half empty, so that a watcher is not called back for each single place.
        let unparks = queue.has_parked && self.has_room(&queue, 2);
        if unparks {
            queue.has_parked = false;
        }
        Poll::Ready(Ok((response, unparks)))
    }

    /// Is less than one `share`-th of the queue in use?
    fn has_room(&self, queue: &Queue, share: usize) -> bool {
        queue.bounded() < self.limit_responses.div_ceil(share)
            && queue.bytes < self.limit_bytes.div_ceil(share)
    }
}

/// The responses of one stream, in order. Dropping it closes the stream and
/// cancels its watchers.
pub struct Responses {
    pub(super) shared: Weak<Shared>,
    pub(super) stream: u64,
    pub(super) outbox: Arc<Outbox>,
}

impl Responses {
    /// The next response, or why there is none any more.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Result<Response, End>> {
        let (response, unparks) = match self.outbox.poll_pop(context) {
            Poll::Ready(Ok(popped)) => popped,
            Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
            Poll::Pending => return Poll::Pending,
        };
        if unparks && let Some(shared) = self.shared.upgrade() {
            shared.unpark(self.stream);
        }
        Poll::Ready(Ok(response))
    }

    /// [`Responses::poll_recv`] as a future.
    pub async fn recv(&mut self) -> Result<Response, End> {
        std::future::poll_fn(|context| self.poll_recv(context)).await
    }
}

impl Drop for Responses {
    fn drop(&mut self) {
        self.outbox.abandon();
        if let Some(shared) = self.shared.upgrade() {
            shared.close_stream(self.stream);
        }
    }
}
