//! The hub: who watches what, and the hand-over of changes to them.
//!
//! [`Hub::publish`] runs on the apply thread. It takes one short lock per
//! revision, does work for the watchers of the changed keys only, and never
//! waits for a client: a stream whose queue is full has its watcher marked
//! behind, and the catch-up thread (`catch_up.rs`) brings it back later. The
//! lock is never held during I/O, and is taken before a stream's own lock,
//! never after it.

use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};
use tokio_util::sync::CancellationToken;

use super::catch_up;
use super::history::History;
use super::outbox::{End, Outbox, Responses};
use super::state::State;
use super::watcher::CreateRequest;
use crate::mvcc::RevisionEvents;

/// Watchers that are visited before the hub's lock is let go of for others, in
/// work over many of them: about 0.1 ms.
pub(super) const WATCHERS_PER_LOCK: usize = 512;

/// The limits of the hub's memory.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Responses that may wait in one stream's queue.
    pub queue_responses: usize,
    /// Bytes of responses that may wait there.
    pub queue_bytes: usize,
    /// Recent revisions kept for watchers that are a little behind.
    pub ring_revisions: usize,
    /// Bytes of the same.
    pub ring_bytes: usize,
}

impl Default for Settings {
    /// The queue bridges some 50 ms at full write rate, beyond which a reader
    /// is better served by larger responses. The ring holds several queues, so
    /// that such a reader does not touch the store.
    fn default() -> Settings {
        Settings {
            queue_responses: 1024,
            queue_bytes: 2 << 20,
            ring_revisions: 16 << 10,
            ring_bytes: 8 << 20,
        }
    }
}

/// The watchers of one member. Dropping it ends all streams.
pub struct Hub {
    shared: Arc<Shared>,
    catch_up: Option<JoinHandle<()>>,
}

/// What the hub, its streams and the catch-up thread share.
pub(super) struct Shared {
    pub(super) history: Box<dyn History>,
    pub(super) settings: Settings,
    pub(super) state: Mutex<State>,
    /// Signalled when a watcher is queued for the catch-up thread, or it shall stop.
    pub(super) work: Condvar,
    pub(super) is_stopping: std::sync::atomic::AtomicBool,
    /// The catch-up thread has ended though it was not to.
    broken: CancellationToken,
}

impl Hub {
    /// A hub over `history`, whose present revision counts as published.
    pub fn new(history: impl History, settings: Settings) -> Arc<Hub> {
        let mut hub = Hub::without_thread(history, settings);
        let shared = Arc::clone(&hub.shared);
        let thread = thread::Builder::new()
            .name("watch-catch-up".to_owned())
            .spawn(move || {
                let _end = NotedEnd(&shared);
                catch_up::run(&shared);
            })
            .expect("a thread can be started while the server starts");
        hub.catch_up = Some(thread);
        Arc::new(hub)
    }

    /// For a simulation: [`Hub::catch_up`] does the thread's work.
    #[doc(hidden)]
    pub fn stepped(history: impl History, settings: Settings) -> Hub {
        Hub::without_thread(history, settings)
    }

    /// One turn for the watchers that are behind; answers whether there was one.
    #[doc(hidden)]
    pub fn catch_up(&self, sweep: &mut catch_up::Sweep) -> bool {
        let is_due = self.shared.state.lock().has_queued();
        if is_due {
            sweep.turn(&self.shared);
        }
        is_due
    }

    pub(super) fn without_thread(history: impl History, settings: Settings) -> Hub {
        let state = State::new(history.revision(), &settings);
        let shared = Shared {
            history: Box::new(history),
            settings,
            state: Mutex::new(state),
            work: Condvar::new(),
            is_stopping: false.into(),
            broken: CancellationToken::new(),
        };
        Hub {
            shared: Arc::new(shared),
            catch_up: None,
        }
    }

    /// Hands committed revisions to their watchers. The apply thread calls it
    /// after each commit and before it answers the writers, in order, without
    /// gaps.
    pub fn publish(&self, revisions: &[RevisionEvents]) {
        for revision in revisions {
            let mut state = self.shared.state.lock();
            state.publish(revision);
            // A gap in what is published queues watchers.
            if state.has_queued() {
                self.shared.work.notify_one();
            }
        }
    }

    /// The store's state was replaced by a later one, up to `revision`, without
    /// its revisions having been published: whoever is owed some of them reads
    /// them from the store (WAT-49). Called by the apply thread, in its turn.
    pub fn replaced(&self, revision: i64) {
        let mut state = self.shared.state.lock();
        state.replaced(revision);
        if state.has_queued() {
            self.shared.work.notify_one();
        }
    }

    /// Opens a stream: the one end takes the client's requests, the other
    /// gives the responses.
    pub fn open_stream(&self) -> (StreamHandle, Responses) {
        let settings = &self.shared.settings;
        let outbox = Arc::new(Outbox::new(settings.queue_responses, settings.queue_bytes));
        let stream = self.shared.state.lock().open_stream(Arc::clone(&outbox));
        let shared = Arc::downgrade(&self.shared);
        let handle = StreamHandle {
            shared: shared.clone(),
            stream,
            outbox: Arc::clone(&outbox),
        };
        (
            handle,
            Responses {
                shared,
                stream,
                outbox,
            },
        )
    }

    /// Ends all streams with [`End::Stopped`], those opened later too: the
    /// server stops.
    pub fn close(&self) {
        self.shared.state.lock().end_all(End::Stopped);
    }

    /// Resolves when watchers that are behind will never catch up, because of a
    /// fault of this process. It should then be stopped.
    pub async fn broken(&self) {
        self.shared.broken.cancelled().await;
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }
}

/// Tells when the catch-up thread ends, also by a panic.
struct NotedEnd<'a>(&'a Shared);

impl Drop for NotedEnd<'_> {
    fn drop(&mut self) {
        if !self.0.is_stopping() {
            self.0.broken.cancel();
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.close();
        self.shared.stop();
        if let Some(thread) = self.catch_up.take() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Shared {
    pub(super) fn unpark(&self, stream: u64) {
        if self.state.lock().unpark(stream) {
            self.work.notify_one();
        }
    }

    pub(super) fn close_stream(&self, stream: u64) {
        while self.state.lock().close_stream(stream, WATCHERS_PER_LOCK) {}
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn stop(&self) {
        let _state = self.state.lock();
        self.is_stopping
            .store(true, std::sync::atomic::Ordering::Relaxed);
        self.work.notify_all();
    }
}

/// The requesting end of a stream. Its methods answer through [`Responses`]
/// and do nothing once that is gone.
pub struct StreamHandle {
    shared: Weak<Shared>,
    stream: u64,
    outbox: Arc<Outbox>,
}

impl StreamHandle {
    /// Creates a watcher; always answered, by `Created` or `Refused`.
    pub fn create(&self, request: CreateRequest) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let mut state = shared.state.lock();
        let current = shared.history.revision();
        state.create(self.stream, request, current);
        if state.has_queued() {
            shared.work.notify_one();
        }
    }

    /// Cancels a watcher; answered by `Canceled` if there is such a watcher.
    pub fn cancel(&self, watch_id: i64) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let mut state = shared.state.lock();
        state.cancel(self.stream, watch_id, shared.history.revision());
    }

    /// Asks for progress of all watchers; answered if all of them are synced.
    pub fn progress(&self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        shared.state.lock().progress(self.stream);
    }

    /// The stream's interval for regular progress has passed.
    pub fn tick(&self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let mut from = Some(i64::MIN);
        while let Some(id) = from {
            from = shared.state.lock().tick(self.stream, id, WATCHERS_PER_LOCK);
        }
    }

    /// Ready when the answer to another request has room. Whoever reads the
    /// client's requests waits for this before each, which bounds what a client
    /// that does not read its answers can pile up. One task at a time.
    pub fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        self.outbox.poll_room(context)
    }

    /// [`StreamHandle::poll_room`] as a future.
    pub async fn room(&self) {
        std::future::poll_fn(|context| self.poll_room(context)).await;
    }
}
