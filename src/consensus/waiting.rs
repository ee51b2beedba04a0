//! Where commands and readers wait for the drive loop.
//!
//! Owns the decision whether the loop is woken for one. The first that waits
//! wakes it for all, unless it is patient: then it will look by itself, when the
//! log has synced what it is busy with.

use parking_lot::Mutex;

/// See the [module](self).
pub(super) struct Waiting<T> {
    capacity: usize,
    state: Mutex<State<T>>,
}

struct State<T> {
    /// At most `capacity`; none once closed.
    items: Vec<T>,
    is_patient: bool,
    is_closed: bool,
}

/// Why an item was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Full,
    Closed,
}

impl<T> Waiting<T> {
    pub(super) fn new(capacity: usize) -> Waiting<T> {
        Waiting {
            capacity,
            state: Mutex::new(State {
                items: Vec::new(),
                is_patient: false,
                is_closed: false,
            }),
        }
    }

    /// Answers whether the drive loop has to be woken.
    pub(super) fn add(&self, item: T) -> Result<bool, Refused> {
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(Refused::Closed);
        }
        if state.items.len() >= self.capacity {
            return Err(Refused::Full);
        }
        state.items.push(item);
        Ok(!state.is_patient && state.items.len() == 1)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().items.is_empty()
    }

    /// All that wait; none if the caller `must_wait` for a sync. Until the next
    /// call nobody wakes it then.
    pub(super) fn take(&self, must_wait: bool) -> Vec<T> {
        let mut state = self.state.lock();
        state.is_patient = must_wait;
        if must_wait {
            return Vec::new();
        }
        std::mem::take(&mut state.items)
    }

    /// Takes no more, and lets go of those that wait.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        let items = std::mem::take(&mut state.items);
        drop(state);
        // Outside of the lock: it wakes those who wait for an answer.
        drop(items);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn the_first_that_waits_wakes_for_all() {
        let waiting = Waiting::new(8);
        assert_eq!(waiting.add(1), Ok(true));
        assert_eq!(waiting.add(2), Ok(false));
        assert_eq!(waiting.take(false), [1, 2]);
        assert_eq!(waiting.add(3), Ok(true));
    }

    #[test]
    fn nobody_wakes_who_waits_for_a_sync() {
        let waiting = Waiting::new(8);
        assert!(waiting.take(true).is_empty());
        assert_eq!(waiting.add(1), Ok(false));
        assert_eq!(waiting.add(2), Ok(false));
        assert!(waiting.take(true).is_empty());
        assert_eq!(waiting.take(false), [1, 2]);
        assert_eq!(waiting.add(3), Ok(true), "patience is over");
    }

    #[test]
    fn a_full_place_and_a_closed_one_refuse() {
        const CAPACITY: usize = 100;
        let waiting = Waiting::new(CAPACITY);
        let mut outcomes = Vec::new();
        for _ in 0..CAPACITY {
            let (reply, outcome) = oneshot::channel::<()>();
            assert!(waiting.add(reply).is_ok());
            outcomes.push(outcome);
        }
        assert_eq!(waiting.add(oneshot::channel().0), Err(Refused::Full));
        waiting.close();
        assert_eq!(waiting.add(oneshot::channel().0), Err(Refused::Closed));
        for mut outcome in outcomes {
            let ended = outcome.try_recv();
            assert!(matches!(ended, Err(oneshot::error::TryRecvError::Closed)));
        }
    }
}
