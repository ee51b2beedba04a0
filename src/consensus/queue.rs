//! The queues between the threads: bounded, many senders, one receiver.
//!
//! A thread that finds its queue empty sleeps at once. A single client's put
//! wakes four threads one after the other, each of which then waits for some
//! hundred microseconds; spinning before that, as general channels do, took
//! more CPU time than the put itself, from cores that clients need.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

pub(super) fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    assert!(capacity > 0);
    let queue = Arc::new(Queue {
        state: Mutex::new(State {
            items: VecDeque::new(),
            senders: 1,
            has_receiver: true,
        }),
        capacity,
        has_items: Condvar::new(),
        has_room: Condvar::new(),
    });
    (Sender(queue.clone()), Receiver(queue))
}

struct Queue<T> {
    state: Mutex<State<T>>,
    capacity: usize,
    has_items: Condvar,
    has_room: Condvar,
}

struct State<T> {
    /// At most `capacity`; none once the receiver is gone.
    items: VecDeque<T>,
    senders: usize,
    has_receiver: bool,
}

/// The other side is gone for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Disconnected;

/// With the item that was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TrySendError<T> {
    Full(T),
    Disconnected(T),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TryRecvError {
    Empty,
    Disconnected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecvTimeoutError {
    Timeout,
    Disconnected,
}

pub(super) struct Sender<T>(Arc<Queue<T>>);

impl<T> Sender<T> {
    /// Waits for room.
    pub(super) fn send(&self, item: T) -> Result<(), Disconnected> {
        let queue = &*self.0;
        let mut state = queue.state.lock();
        while state.has_receiver && state.items.len() >= queue.capacity {
            queue.has_room.wait(&mut state);
        }
        if !state.has_receiver {
            return Err(Disconnected);
        }
        state.items.push_back(item);
        drop(state);
        queue.has_items.notify_one();
        Ok(())
    }

    /// Waits for room, but not for longer than `timeout`; whether it was taken.
    pub(super) fn send_timeout(&self, item: T, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let queue = &*self.0;
        let mut state = queue.state.lock();
        while state.has_receiver && state.items.len() >= queue.capacity {
            if queue.has_room.wait_until(&mut state, deadline).timed_out() {
                return false;
            }
        }
        if !state.has_receiver {
            return false;
        }
        state.items.push_back(item);
        drop(state);
        queue.has_items.notify_one();
        true
    }

    pub(super) fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        let queue = &*self.0;
        let mut state = queue.state.lock();
        if !state.has_receiver {
            return Err(TrySendError::Disconnected(item));
        }
        if state.items.len() >= queue.capacity {
            return Err(TrySendError::Full(item));
        }
        state.items.push_back(item);
        drop(state);
        queue.has_items.notify_one();
        Ok(())
    }

    pub(super) fn is_full(&self) -> bool {
        self.0.state.lock().items.len() >= self.0.capacity
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.state.lock().senders += 1;
        Sender(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.senders -= 1;
        if state.senders == 0 {
            drop(state);
            self.0.has_items.notify_one();
        }
    }
}

/// Dropping it drops what is queued.
pub(super) struct Receiver<T>(Arc<Queue<T>>);

impl<T> Receiver<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.state.lock().items.is_empty()
    }

    /// Waits for the next item.
    pub(super) fn recv(&self) -> Result<T, Disconnected> {
        let mut state = self.0.state.lock();
        loop {
            match self.take(&mut state) {
                Ok(item) => return Ok(item),
                Err(TryRecvError::Empty) => self.0.has_items.wait(&mut state),
                Err(TryRecvError::Disconnected) => return Err(Disconnected),
            }
        }
    }

    /// Waits for the next item, but not for longer than `timeout`.
    pub(super) fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        let mut state = self.0.state.lock();
        let mut deadline = None;
        loop {
            match self.take(&mut state) {
                Ok(item) => return Ok(item),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) => {}
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + timeout);
            let waited = self.0.has_items.wait_until(&mut state, deadline);
            if waited.timed_out() && state.items.is_empty() {
                return Err(RecvTimeoutError::Timeout);
            }
        }
    }

    pub(super) fn try_recv(&self) -> Result<T, TryRecvError> {
        self.take(&mut self.0.state.lock())
    }

    /// What is queued now, and what comes while that is looked at.
    pub(super) fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.try_recv().ok())
    }

    fn take(&self, state: &mut State<T>) -> Result<T, TryRecvError> {
        match state.items.pop_front() {
            Some(item) => {
                self.0.has_room.notify_one();
                Ok(item)
            }
            None if state.senders == 0 => Err(TryRecvError::Disconnected),
            None => Err(TryRecvError::Empty),
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.has_receiver = false;
        let items = std::mem::take(&mut state.items);
        drop(state);
        self.0.has_room.notify_all();
        // Outside of the lock: an item may hold a sender of this very queue.
        drop(items);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn items_come_in_order_and_room_is_waited_for() {
        let (sender, receiver) = bounded(2);
        assert_eq!(sender.try_send(0), Ok(()));
        assert!(!sender.is_full());
        assert_eq!(sender.try_send(1), Ok(()));
        assert!(sender.is_full());
        assert_eq!(sender.try_send(2), Err(TrySendError::Full(2)));
        let second = sender.clone();
        let sending = thread::spawn(move || {
            for item in 2..1000 {
                second.send(item).unwrap();
            }
        });
        drop(sender);
        for item in 0..1000 {
            assert_eq!(receiver.recv(), Ok(item));
        }
        sending.join().unwrap();
        assert_eq!(receiver.recv(), Err(Disconnected));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
    }

    #[test]
    fn an_empty_queue_times_out() {
        let (sender, receiver) = bounded(1);
        let short = Duration::from_millis(1);
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(receiver.recv_timeout(short), Err(RecvTimeoutError::Timeout));
        sender.send("item").unwrap();
        assert_eq!(receiver.recv_timeout(Duration::ZERO), Ok("item"));
        drop(sender);
        let ended = receiver.recv_timeout(Duration::from_secs(60));
        assert_eq!(ended, Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn each_side_learns_that_the_other_is_gone() {
        let (sender, receiver) = bounded::<()>(1);
        let waiting = thread::spawn(move || receiver.recv());
        thread::sleep(Duration::from_millis(5));
        drop(sender);
        assert_eq!(waiting.join().unwrap(), Err(Disconnected));

        let (sender, receiver) = bounded(1);
        let queued = Arc::new(());
        sender.send(queued.clone()).unwrap();
        let blocked = sender.clone();
        let item = queued.clone();
        let waiting = thread::spawn(move || blocked.send(item));
        thread::sleep(Duration::from_millis(5));
        drop(receiver);
        assert_eq!(waiting.join().unwrap(), Err(Disconnected));
        let refused = sender.try_send(queued.clone());
        assert!(matches!(refused, Err(TrySendError::Disconnected(_))));
        drop(refused);
        assert_eq!(Arc::strong_count(&queued), 1, "what was queued is dropped");
    }
}
